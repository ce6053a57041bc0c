# shellcheck shell=bash
# Private services for the tests and the benchmark: every instance is new, listens on a free port of the loopback
# interface, keeps its data in a directory of its own, and is as durable as its defaults make it. Sourced.

# Group | shows that it is there | Debian package | what for. Rust and a C compiler are taken for granted.
packages='
test  | postgres_bin              | postgresql      | the stories and faults on PostgreSQL
test  | command -v mariadbd       | mariadb-server  | the stories and faults on MariaDB
test  | command -v curl           | curl            | talking to a server from a script
test  | command -v jq             | jq              | reading its answers
test  | command -v shellcheck     | shellcheck      | linting these scripts
test  | python3 -c "import venv, ensurepip" | python3-venv | schemathesis, which tests the HTTP contract
bench | postgres_bin              | postgresql      | the server on PostgreSQL; pgbench for the hot row
bench | command -v mariadbd       | mariadb-server  | the server on MariaDB
bench | command -v redis-server   | redis-server    | the counter that a user would write; redis-benchmark
bench | command -v wrk            | wrk             | the load
bench | command -v python3        | python3         | running the measurements and printing the table
'

# Makes sure that a group of packages is there: installs what is missing on Debian as root, else says what to install.
require_packages() {
  local group probe package reason missing=()
  while IFS='|' read -r group probe package reason; do
    group=${group// /} package=${package// /}
    [[ $group == "$1" ]] || continue
    eval "$probe" >/dev/null 2>&1 && continue
    missing+=("$package")
    echo "missing: $package, for$reason" >&2
  done <<<"$packages"
  ((${#missing[@]} == 0)) && return

  if [[ ! -f /etc/debian_version || $EUID -ne 0 ]]; then
    echo "Install these, then run this again: ${missing[*]} (names of Debian packages)" >&2
    return 1
  fi
  install_packages "${missing[@]}"
}

# Installs without letting Debian start system services: the private instances are the only ones wanted.
install_packages() (
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -q -y --no-install-recommends "$@"
)

# The directory of PostgreSQL's programs; Debian keeps them out of the PATH, one directory for each version.
postgres_bin() {
  local newest
  newest=$(find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
  : "${newest:=$(realpath "$(command -v initdb)" 2>/dev/null)}"
  [[ -n $newest ]] && dirname "$newest"
}

# Runs a command as the service's own user, because PostgreSQL refuses to run as root.
as_user() {
  local user=$1
  shift
  if ((EUID == 0)); then
    setpriv --reuid="$user" --regid="$user" --init-groups "$@"
  else
    "$@"
  fi
}

# A directory that belongs to the service's user.
own_directory() {
  mkdir -p "$2"
  ((EUID != 0)) || chown "$1:" "$2"
}

# A port nobody listens on, below the ports that outgoing connections get.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# Waits until a command succeeds, while the process lives; ends the process if that takes more than 60 seconds.
wait_for() {
  local pid=$1 deadline=$((SECONDS + 60))
  shift
  until "$@" >/dev/null 2>&1; do
    kill -0 "$pid" 2>/dev/null || return 1
    if ((SECONDS > deadline)); then
      kill -KILL "$pid"
      return 1
    fi
    sleep 0.1
  done
}

# Everything started here, for stop_services: "name pid-file log". A file, because a fault test may restart a service.
services=()

# start_postgres DIR exports TOMBOLA_TEST_POSTGRES_URL (a superuser), _BIN (its programs) and _DATA (its data directory).
start_postgres() {
  local dir=$1 bin port
  bin=$(postgres_bin)
  port=$(free_port)
  own_directory postgres "$dir"
  echo tombola >"$dir/password"
  # Clear-text passwords: a debug build would spend more time on SCRAM than on the tests.
  if ! {
    as_user postgres "$bin/initdb" --pgdata="$dir/data" --username=tombola --pwfile="$dir/password" \
      --auth-local=trust --auth-host=password --encoding=UTF8 --no-locale --no-sync >"$dir/initdb.log" 2>&1 &&
      as_user postgres "$bin/pg_ctl" start --wait --silent --pgdata="$dir/data" --log="$dir/log" \
        --options="-p $port -k $dir -c listen_addresses=127.0.0.1 -c max_connections=200" >&2
  }; then
    service_failed PostgreSQL "$dir"/*log
    return 1
  fi
  services+=("PostgreSQL $dir/data/postmaster.pid $dir/log")
  export TOMBOLA_TEST_POSTGRES_URL="postgres://tombola:tombola@127.0.0.1:$port/postgres"
  export TOMBOLA_TEST_POSTGRES_BIN=$bin TOMBOLA_TEST_POSTGRES_DATA=$dir/data
}

# start_mariadb DIR exports TOMBOLA_TEST_MARIADB_URL (a user who may do everything) and _PID.
start_mariadb() {
  local dir=$1 port user=() pid
  port=$(free_port)
  ((EUID != 0)) || user=(--user=mysql)
  own_directory mysql "$dir"
  cat >"$dir/init.sql" <<'SQL'
CREATE USER IF NOT EXISTS tombola@127.0.0.1 IDENTIFIED BY 'tombola';
GRANT ALL ON *.* TO tombola@127.0.0.1 WITH GRANT OPTION;
SQL
  mariadb-install-db --no-defaults "${user[@]}" --datadir="$dir/data" --skip-test-db \
    --auth-root-authentication-method=normal >"$dir/log" 2>&1 || {
    service_failed MariaDB "$dir/log"
    return 1
  }
  run_mariadb "$dir" "$port"
  services+=("MariaDB $dir/pid $dir/log")
  export TOMBOLA_TEST_MARIADB_URL="mysql://tombola:tombola@127.0.0.1:$port/mysql" TOMBOLA_TEST_MARIADB_PID=$pid
}

# run_mariadb DIR PORT starts MariaDB, again or for the first time, on the data in DIR; sets pid.
run_mariadb() {
  local dir=$1 port=$2 user=()
  ((EUID != 0)) || user=(--user=mysql)
  mariadbd --no-defaults "${user[@]}" --datadir="$dir/data" --init-file="$dir/init.sql" --pid-file="$dir/pid" \
    --socket="$dir/socket" --port="$port" --bind-address=127.0.0.1 --skip-name-resolve --max-connections=200 \
    --character-set-server=utf8mb4 --collation-server=utf8mb4_general_ci >>"$dir/log" 2>&1 &
  pid=$!
  disown "$pid"
  wait_for "$pid" mariadb --no-defaults --protocol=tcp --host=127.0.0.1 --port="$port" --user=tombola \
    --password=tombola --execute='SELECT 1' || {
    service_failed MariaDB "$dir/log"
    return 1
  }
}

# start_redis DIR exports TOMBOLA_TEST_REDIS_URL; it keeps nothing on disk until it is told to (CONFIG SET appendonly).
start_redis() {
  local dir=$1 port pid
  port=$(free_port)
  mkdir -p "$dir"
  redis-server --pidfile "$dir/pid" --port "$port" --bind 127.0.0.1 --dir "$dir" --save '' --appendonly no >"$dir/log" 2>&1 &
  pid=$!
  disown "$pid"
  services+=("Redis $dir/pid $dir/log")
  wait_for "$pid" redis-cli -p "$port" ping || {
    service_failed Redis "$dir/log"
    return 1
  }
  export TOMBOLA_TEST_REDIS_URL="redis://127.0.0.1:$port"
}

# service_failed NAME LOG…
service_failed() {
  echo "$1 did not start; the end of its log:" >&2
  shift
  tail -n 40 "$@" >&2
}

# Ends everything that was started, at once: the data goes with it. Names a service that had died on its own.
stop_services() {
  local service name pid_file pid log
  for service in "${services[@]}"; do
    read -r name pid_file log <<<"$service"
    if ! pid=$(head -n 1 "$pid_file" 2>/dev/null) || ! kill -0 "$pid" 2>/dev/null; then
      echo "$name had died; the end of its log:" >&2
      tail -n 40 "$log" >&2
      continue
    fi
    # A fault test may have left it stopped. SIGQUIT lets PostgreSQL end its children; the others have none.
    kill -CONT "$pid"
    if [[ $name == PostgreSQL ]]; then kill -QUIT "$pid"; else kill -KILL "$pid"; fi
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
  done
  services=()
}
