# shellcheck shell=bash
# Private services for the tests and the benchmark: every instance is new, listens on a free port of the loopback
# interface, keeps its data in a directory of its own, and is as durable as its defaults make it. Sourced.

# Group | shows that it is there | Debian package | what for. Rust and a C compiler are taken for granted.
packages='
check | command -v shellcheck     | shellcheck      | linting these scripts
check | command -v docker-compose | docker-compose  | checking docker/compose.yaml
check | command -v jq             | jq              | reading what JSON says
test  | postgres_bin              | postgresql      | the stories and faults on PostgreSQL
test  | command -v mariadbd       | mariadb-server  | the stories and faults on MariaDB
test  | rabbitmq_bin              | rabbitmq-server | the stories and faults with RabbitMQ
test  | pika_python               | python3-pika    | a subscriber that shares no code with the server
test  | command -v curl           | curl            | talking to a server from a script
test  | command -v openssl        | openssl         | signatures of payment gateways that share no code with the server
test  | python3 -c "import venv, ensurepip" | python3-venv | schemathesis, which tests the HTTP contract
bench | postgres_bin              | postgresql      | the server on PostgreSQL; pgbench for the hot row
bench | command -v mariadbd       | mariadb-server  | the server on MariaDB
bench | rabbitmq_bin              | rabbitmq-server | the events of the server on RabbitMQ
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

# The directory of RabbitMQ's programs; those in Debian's PATH are for its system service only.
rabbitmq_bin() {
  local newest
  newest=$(find /usr/lib/rabbitmq -path '*/sbin/rabbitmq-server' 2>/dev/null | sort -V | tail -n 1)
  : "${newest:=$(realpath "$(command -v rabbitmq-server)" 2>/dev/null)}"
  [[ -n $newest ]] && dirname "$newest"
}

# A Python that has pika: the one in the PATH may not be the one that Debian's packages are for.
pika_python() {
  local python
  for python in python3 /usr/bin/python3; do
    "$python" -c 'import pika' 2>/dev/null || continue
    echo "$python"
    return
  done
  return 1
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

# Notes a service for stop_services: its name, a file with its process id, because a fault test may restart it, and its
# log. The notes are in a file, TOMBOLA_TEST_SERVICES, because tests start services of their own from other shells.
register() {
  echo "$@" >>"${TOMBOLA_TEST_SERVICES:-/dev/null}"
}

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
  register PostgreSQL "$dir/data/postmaster.pid" "$dir/log"
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
  register MariaDB "$dir/pid" "$dir/log"
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
  register Redis "$dir/pid" "$dir/log"
  wait_for "$pid" redis-cli -p "$port" ping || {
    service_failed Redis "$dir/log"
    return 1
  }
  export TOMBOLA_TEST_REDIS_URL="redis://127.0.0.1:$port"
}

# start_rabbitmq DIR exports TOMBOLA_TEST_RABBITMQ_URL (an administrator, virtual host /), _API (its HTTP interface, where
# a virtual host is made in milliseconds), _PID, and TOMBOLA_TEST_RABBITMQCTL (the command, for this broker).
start_rabbitmq() {
  local dir=$1
  start_rabbitmq_nodes "$dir" 1
  TOMBOLA_TEST_RABBITMQ_URL=$(<"$dir/1/url")
  TOMBOLA_TEST_RABBITMQ_API=$(<"$dir/1/api")
  TOMBOLA_TEST_RABBITMQ_PID=$(<"$dir/1/pid")
  TOMBOLA_TEST_RABBITMQCTL=$dir/1/rabbitmqctl
  export TOMBOLA_TEST_RABBITMQ_URL TOMBOLA_TEST_RABBITMQ_API TOMBOLA_TEST_RABBITMQ_PID TOMBOLA_TEST_RABBITMQCTL
}

# start_rabbitmq_cluster DIR exports TOMBOLA_TEST_RABBITMQ_CLUSTER, the URLs of three nodes, with commas between. A node
# N keeps everything in DIR/N: its process id in pid, rabbitmqctl, api; `run_rabbitmq DIR/N` starts it again.
start_rabbitmq_cluster() {
  local dir=$1
  start_rabbitmq_nodes "$dir" 1 2 3
  "$dir/1/rabbitmqctl" --silent await_online_nodes 3
  TOMBOLA_TEST_RABBITMQ_CLUSTER=$(cat "$dir"/?/url | paste --serial --delimiters=,)
  export TOMBOLA_TEST_RABBITMQ_CLUSTER
}

# start_rabbitmq_nodes DIR NODE… starts one broker of these nodes.
start_rabbitmq_nodes() {
  local dir=$1 epmd_port epmd_pid node
  shift
  epmd_port=$(free_port)
  own_directory rabbitmq "$dir"
  # Erlang's port mapper, which nodes find each other by: one of our own, so that no system's broker is met.
  epmd -address 127.0.0.1 -port "$epmd_port" >"$dir/epmd.log" 2>&1 &
  epmd_pid=$!
  disown "$epmd_pid"
  echo "$epmd_pid" >"$dir/epmd.pid"
  register epmd "$dir/epmd.pid" "$dir/epmd.log"
  echo "$RANDOM$RANDOM$RANDOM" >"$dir/.erlang.cookie"
  ((EUID != 0)) || chown rabbitmq: "$dir/.erlang.cookie"
  chmod 400 "$dir/.erlang.cookie"

  for node; do make_rabbitmq_node "$dir" "$epmd_port" "$node" "$@"; done
  for node; do launch_rabbitmq "$dir/$node"; done
  for node; do await_rabbitmq "$dir/$node"; done
}

# make_rabbitmq_node DIR EPMD-PORT NODE ALL-NODES… writes the settings of a node to DIR/NODE.
make_rabbitmq_node() {
  local base=$1 epmd_port=$2 dir=$1/$3 node=$3 amqp_port api_port peer
  shift 3
  amqp_port=$(free_port)
  api_port=$(free_port)
  own_directory rabbitmq "$dir"
  echo "amqp://tombola:tombola@127.0.0.1:$amqp_port/%2f" >"$dir/url"
  echo "http://tombola:tombola@127.0.0.1:$api_port/api" >"$dir/api"
  echo '[rabbitmq_management].' >"$dir/plugins"
  # No statistics: they would keep an idle node busy.
  cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$amqp_port
management.tcp.ip = 127.0.0.1
management.tcp.port = $api_port
management.disable_stats = true
management_agent.disable_metrics_collector = true
collect_statistics_interval = 60000
default_user = tombola
default_pass = tombola
vm_memory_high_watermark.absolute = 1GB
raft.wal_max_size_bytes = 64000000
CONF
  if (($# > 1)); then
    echo "cluster_formation.peer_discovery_backend = classic_config" >>"$dir/rabbitmq.conf"
    for peer; do
      echo "cluster_formation.classic_config.nodes.$peer = tombola$peer@localhost" >>"$dir/rabbitmq.conf"
    done
  fi
  # RUNNING_UNDER_SYSTEMD: become the broker, so that its process id is the one that was started.
  cat >"$dir/environment" <<ENV
export HOME='$base' ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$epmd_port
export RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_CONFIG_FILE='$dir/rabbitmq.conf'
export RABBITMQ_NODENAME=tombola$node@localhost RABBITMQ_DIST_PORT=$(free_port)
export RABBITMQ_ENABLED_PLUGINS_FILE='$dir/plugins' RABBITMQ_MNESIA_BASE='$dir/data'
export RABBITMQ_LOG_BASE='$dir' RABBITMQ_LOGS=- RABBITMQ_SCHEDULER_BIND_TYPE=u RUNNING_UNDER_SYSTEMD=1
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
export RABBITMQ_CTL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
unset NOTIFY_SOCKET
ENV
  cat >"$dir/rabbitmqctl" <<CTL
#!/bin/sh
. '$dir/environment'
exec '$(rabbitmq_bin)/rabbitmqctl' "\$@"
CTL
  chmod +x "$dir/rabbitmqctl"
  register RabbitMQ "$dir/pid" "$dir/log"
}

# run_rabbitmq DIR starts a node, again or for the first time, on the data in DIR; sets pid.
run_rabbitmq() {
  launch_rabbitmq "$1"
  await_rabbitmq "$1"
}

launch_rabbitmq() {
  local dir=$1 user=()
  ((EUID != 0)) || user=(setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups)
  # shellcheck disable=SC2016 # expanded by the inner shell
  "${user[@]}" bash -c 'source "$0/environment"; cd "$0"; exec "$1/rabbitmq-server"' "$dir" "$(rabbitmq_bin)" \
    >>"$dir/log" 2>&1 &
  pid=$!
  disown "$pid"
  echo "$pid" >"$dir/pid"
}

await_rabbitmq() {
  local dir=$1
  pid=$(<"$dir/pid")
  wait_for "$pid" curl --silent --fail "$(<"$dir/api")/overview" || {
    service_failed RabbitMQ "$dir/log"
    return 1
  }
}

# service_failed NAME LOG…
service_failed() {
  echo "$1 did not start; the end of its log:" >&2
  shift
  tail -n 40 "$@" >&2
}

# Ends everything that was started, at once: the data goes with it. Names a service that had died on its own; one whose
# directory is gone was a test's, and ended by it.
stop_services() {
  local name pid_file pid log
  [[ -f ${TOMBOLA_TEST_SERVICES:-} ]] || return 0
  while read -r name pid_file log; do
    [[ -d ${pid_file%/*} ]] || continue
    if ! pid=$(head -n 1 "$pid_file" 2>/dev/null) || ! lives "$pid"; then
      echo "$name had died; the end of its log:" >&2
      tail -n 40 "$log" >&2
      continue
    fi
    # A fault test may have left it stopped. SIGQUIT lets PostgreSQL end its children; the others end by themselves.
    kill -CONT "$pid"
    if [[ $name == PostgreSQL ]]; then kill -QUIT "$pid"; else kill -KILL "$pid"; fi
    while lives "$pid"; do sleep 0.05; done
  done <"$TOMBOLA_TEST_SERVICES"
  : >"$TOMBOLA_TEST_SERVICES"
}

# Whether a process is there and has not ended; nobody may have asked yet how it did.
lives() {
  local state
  state=$(ps -o stat= -p "$1") && [[ $state != Z* ]]
}
