"""Measures the server on each database, and what a user would build instead; prints one Markdown table.

`bench` builds the server, starts the services and calls this. The load is closed: each connection sends its next
request when the last one is answered, so times do not include waiting that an open crowd would see.
"""

import argparse
import collections
import contextlib
import datetime
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

HERE = pathlib.Path(__file__).parent
BINARY = HERE.parent.parent / "target/release/tombola"
WARM_UP_SECONDS = 2
# Lines that are compared take turns, because a shared machine is faster at one time than at another.
TURNS = 5
LARGE_STOCK = 100_000_000
AWAY_STOCK = 2_000_000
SMALL_STOCK = 10_000
HOT_ROW_CLIENTS = 64
LARGE_TAKES = 5_000_000
LARGE_CUSTOMERS = 1_000_000


def main():
    options = parse_arguments()
    options.directory.mkdir(parents=True)
    introduction = describe_machine()
    rows, notes = [], []
    if options.large:
        measure_large(Sqlite(options.directory), options, notes)
        print_report(introduction, rows, notes)
        return
    if options.broker_away:
        measure_broker_away(options, notes)
        print_report(introduction, rows, notes)
        return
    if options.deadlines:
        orders.measure_deadlines(options, notes)
        print_report(introduction, rows, notes)
        return
    for database in (Sqlite(options.directory), Postgres(), MariaDb()):
        if options.only in (None, database.name):
            measure_server(database, options, rows, notes)
    if options.only in (None, "postgres"):
        measure_hot_row(options, rows)
    if options.only in (None, "orders"):
        orders.measure_orders(options, rows, notes)
    if options.only == "orders":
        print_report(introduction, rows, notes)
        return
    if options.only is None:
        measure_redis(options, rows)
        measure_rabbitmq_takes(options, rows, notes)
    events = measure_events(options)
    print_report(introduction, rows, notes + factors(rows))
    print_events(events)
    if any(row.verdict not in ("", "exact") for row in rows):
        sys.exit("The checker found differences; see the table.")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/load/bench", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=10, help="how long each line of the table is measured (10)")
    parser.add_argument("--connections", type=lambda text: [int(n) for n in text.split(",")], default=[64, 256],
                        help="connections of the load generator, separated by commas (64,256)")
    parser.add_argument("--customers", type=int, default=100_000, help="customers who take turns (100000)")
    parser.add_argument("--large", action="store_true",
                        help="only memory and restart: 5 million takes by 1 million customers on SQLite")
    parser.add_argument("--deadlines", action="store_true",
                        help="only a million orders that are not paid in time, on PostgreSQL")
    parser.add_argument("--broker-away", action="store_true",
                        help="only a sale of two million takes while RabbitMQ is stopped, on PostgreSQL")
    parser.add_argument("--only", choices=["sqlite", "postgres", "mariadb", "orders"],
                        help="only one database, or only orders")
    parser.add_argument("--directory", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


@dataclass
class Row:
    database: str
    what: str
    connections: int
    rate: float
    p50_ms: float
    p99_ms: float
    ratio: float | None = None
    refused: str = ""
    verdict: str = ""


# The server


def measure_server(database, options, rows, notes):
    """Measures one server with a new database, and then asks the database whether every answer was true."""
    progress(f"{database.name}: starting")
    database.create()
    directory = options.directory / database.name
    directory.mkdir(exist_ok=True)
    tokens = directory / "tokens"
    checks = []
    with Server(database.url, directory) as server:
        server.run("token", "--count", str(options.customers), "--out", str(tokens))
        for connections in options.connections:
            lines = [Takes(database, server, "takes", tokens, connections),
                     Takes(database, server, "takes with Idempotency-Key", tokens, connections, keys=True),
                     SoldOut(database, server, "sold out", tokens, connections)]
            livez = Livez(database, server, tokens, connections)
            take_turns([livez, *lines], options.seconds)
            rows.append(livez.row(livez))
            for line in lines:
                row = line.row(livez)
                rows.append(row)
                checks.append((row, line.check()))
        for _, check in checks:
            check.remaining = server.remaining(check.activity)
        notes.append(f"{database.name}: ready {server.seconds_to_ready:.2f} s after its start on an empty database, "
                     f"{server.memory('VmRSS')} MiB resident at the end, {server.memory('VmHWM')} MiB at most")
    for row, check in checks:
        row.verdict = check.verdict(database, row.verdict)


def measure_large(database, options, notes):
    """Memory after many takes, and the start of a server that finds a running activity with as many."""
    database.create()
    directory = options.directory / database.name
    directory.mkdir(exist_ok=True)
    tokens = directory / "tokens"
    with Server(database.url, directory) as server:
        server.run("token", "--count", str(LARGE_CUSTOMERS), "--out", str(tokens))
        activity = server.start_activity("large", LARGE_STOCK)
        while LARGE_STOCK - server.remaining(activity) < LARGE_TAKES:
            progress(f"large: {LARGE_STOCK - server.remaining(activity):,} takes")
            load(server, "POST", f"/api/v1/activities/{activity}/takes", tokens, 256, 20)
        taken = LARGE_STOCK - server.remaining(activity)
        notes.append(f"{taken:,} takes by {LARGE_CUSTOMERS:,} customers: {server.memory('VmRSS')} MiB resident, "
                     f"{server.memory('VmHWM')} MiB at most")
    with Server(database.url, directory) as server:
        asked = time.monotonic()
        server.call("POST", f"/api/v1/activities/{activity}/takes")
        notes.append(f"started on these takes: ready after {server.seconds_to_ready:.2f} s, "
                     f"first take {time.monotonic() - asked:.2f} s after it was asked")
    [takes, different] = database.query(
        f"SELECT count(*), count(DISTINCT live_token) FROM take WHERE activity_id = {activity}")
    [sold] = database.query(f"SELECT sum(sold) FROM token_block WHERE activity_id = {activity}")
    notes.append(f"checker: {takes:,} takes, {different:,} tokens, {sold:,} sold by the blocks")


@contextlib.contextmanager
def new_server(database, options, **settings):
    """A server with a new database, and the file of its customers' tokens."""
    database.create()
    directory = options.directory / database.database
    directory.mkdir()
    tokens = directory / "tokens"
    with Server(database.url, directory, **settings) as server:
        server.run("token", "--count", str(options.customers), "--out", str(tokens))
        yield server, tokens


def measure_rabbitmq_takes(options, rows, notes):
    """Takes on PostgreSQL while every take is also an event that the broker confirms."""
    database, connections = Postgres("bench_rabbitmq"), max(options.connections)
    with new_server(database, options, TOMBOLA__BUS=os.environ["TOMBOLA_TEST_RABBITMQ_URL"]) as (server, tokens):
        livez = Livez(database, server, tokens, connections)
        takes = Takes(database, server, "takes, events to RabbitMQ", tokens, connections)
        take_turns([livez, takes], options.seconds)
        row, check = takes.row(livez), takes.check()
        rows.append(row)
        check.remaining = server.remaining(check.activity)
        notes.append(f"takes with RabbitMQ: the last event was confirmed {server.drain():.0f} s after the last take; "
                     f"{server.memory('VmHWM')} MiB at most")
    row.verdict = check.verdict(database)


def measure_broker_away(options, notes):
    """A sale of two million takes on PostgreSQL while the broker is stopped, and the backlog afterwards."""
    database, connections = Postgres("bench_broker_away"), max(options.connections)
    with new_server(database, options, TOMBOLA__BUS=os.environ["TOMBOLA_TEST_RABBITMQ_URL"]) as (server, tokens):
        path = f"/api/v1/activities/{server.start_activity('broker away', AWAY_STOCK)}/takes"
        load(server, "POST", path, tokens, connections, WARM_UP_SECONDS)
        broker_control("stop_app")
        try:
            rates, memory = [], []
            refused = 0
            while not refused:
                timed = load(server, "POST", path, tokens, connections, options.seconds)
                refused = timed.refused
                if not refused:
                    rates.append(timed.requests / timed.seconds)
                memory.append(server.memory("VmRSS"))
                progress(f"postgres: the broker is away; {timed.requests / timed.seconds:,.0f} takes/s")
        finally:
            broker_control("start_app")
        events = int(server.metric("tombola_outbox_unsent_rows"))
        drained = server.drain()
        peak = server.memory("VmHWM")
    [unsent] = database.query("SELECT count(*) FROM outbox WHERE sent_at IS NULL")
    notes.append(f"{AWAY_STOCK:,} takes sold while RabbitMQ was stopped, {min(rates):,.0f} to {max(rates):,.0f}/s in each "
                 f"{options.seconds} s until they were gone; {min(memory)} to {max(memory)} MiB resident meanwhile. "
                 f"The {events:,} rows of the outbox were published {drained:.0f} s after it was back "
                 f"({AWAY_STOCK / drained:,.0f} events/s), {unsent} were left; {peak} MiB at most")


def broker_control(command):
    subprocess.run([os.environ["TOMBOLA_TEST_RABBITMQCTL"], command], check=True, stdout=subprocess.DEVNULL)


def measure_events(options):
    """Events out of the outbox and into a consumer group, by the Rust benchmark; rates per second."""
    lines = []
    for database in (Sqlite(options.directory / "events"), Postgres("bench_events")):
        for bus in ("embedded", "RabbitMQ"):
            if options.only not in (None, database.name):
                continue
            if isinstance(database, Postgres):
                database = Postgres(f"bench_events_{bus.lower()}")
            else:
                database = Sqlite(options.directory / f"events_{bus}")
                database.file.parent.parent.mkdir()
            database.create()
            url = "embedded" if bus == "embedded" else os.environ["TOMBOLA_TEST_RABBITMQ_URL"]
            progress(f"{database.name}: events over the {bus} bus")
            output = check_output("cargo", "bench", "--quiet", "--locked", "--bench", "messaging", "--",
                                  database.url, url)
            lines += [(database.name, bus, json.loads(line)) for line in output.splitlines() if line.startswith("{")]
    return lines


def print_events(lines):
    print("\n| database | bus | events in an outbox row | published and confirmed/s | applied with an effect row/s |")
    print("|---|---|---:|---:|---:|")
    for database, bus, line in lines:
        print(f"| {database} | {bus} | {line['events_per_row']} | {line['relayed_per_s']:,.0f} "
              f"| {line['applied_per_s']:,.0f} |")


class Line:
    """One line of the table: the same request again and again, by one customer after the other."""

    def __init__(self, database, server, what, request, tokens, connections, keys=False):
        self.database, self.server, self.what, self.request = database, server, what, request
        self.tokens, self.connections, self.keys = tokens, connections, keys
        self.loads = []

    def load(self, seconds, count=False):
        return load(self.server, *self.request, self.tokens, self.connections, seconds, keys=self.keys, count=count)

    def warm_up(self):
        warm_up = self.load(WARM_UP_SECONDS, count=True)
        progress(f"{self.database.name}: {self.what}, {self.connections} connections; warm-up: {warm_up.statuses}")
        return warm_up

    def total(self):
        return Load.sum(self.loads)

    def row(self, livez):
        total = self.total()
        rate = self.rate(total)
        return Row(self.database.name, self.what, self.connections, rate, total.p50_ms, total.p99_ms,
                   rate / livez.total().rate, self.refused(total), self.verdict(total))

    def rate(self, total):
        return total.rate

    def refused(self, total):
        return total.refusals()

    def verdict(self, _total):
        return ""


class Livez(Line):
    """The bare endpoint."""

    def __init__(self, database, server, tokens, connections):
        super().__init__(database, server, "/livez", ("GET", "/livez"), tokens, connections)

    def refused(self, _total):
        return ""


class Takes(Line):
    """An activity with more stock than demand: the rate is that of committed takes."""

    def __init__(self, database, server, what, tokens, connections, keys=False, **activity):
        self.activity = server.start_activity(f"{what}, {connections}", LARGE_STOCK, **activity)
        super().__init__(database, server, what, take_of(self.activity), tokens, connections, keys)
        self.counted = self.warm_up()

    def rate(self, total):
        return total.accepted() / total.seconds

    def check(self):
        # The load generator hangs up in the middle of its last requests: at most one a connection is sold but not counted.
        runs = [self.counted, *self.loads]
        accepted = sum(run.accepted() for run in runs)
        return Check(self.activity, LARGE_STOCK, accepted, len(runs) * self.connections)


class SoldOut(Line):
    """An activity whose stock is gone: the rate is that of refusals."""

    def __init__(self, database, server, what, tokens, connections):
        self.activity = server.start_activity(f"{what}, {connections}", SMALL_STOCK)
        super().__init__(database, server, what, take_of(self.activity), tokens, connections)
        self.sold, self.attempts = 0, 0
        while server.remaining(self.activity) > 0 and self.attempts < 30:
            self.sold += self.warm_up().accepted()
            self.attempts += 1

    def verdict(self, total):
        accepted = total.accepted()
        return f"{accepted} accepted after the stock was gone" if accepted else ""

    def check(self):
        return Check(self.activity, SMALL_STOCK, self.sold, self.attempts * self.connections, sold_out=True)


def take_of(activity):
    return "POST", f"/api/v1/activities/{activity}/takes"


def take_turns(lines, seconds):
    """Loads each line for so many seconds in all; what follows from one turn is done before the next begins."""
    # The load generator counts in whole seconds.
    turns = min(TURNS, seconds)
    for turn in range(turns):
        for line in lines:
            line.server.drain(quiet=1)
            line.loads.append(line.load(seconds * (turn + 1) // turns - seconds * turn // turns))


@dataclass
class Check:
    """What the customers of one activity were told, to be compared with what the database says."""
    activity: str
    stock: int
    counted: int
    uncounted_at_most: int
    sold_out: bool = False
    remaining: int = -1

    def verdict(self, database, known=""):
        [takes, tokens, lowest, highest] = database.query(
            "SELECT count(*), count(DISTINCT live_token), coalesce(min(live_token), 1), coalesce(max(live_token), 1)"
            f" FROM take WHERE activity_id = {self.activity} AND live_token IS NOT NULL")
        [sold] = database.query(
            f"SELECT coalesce(sum(sold), 0) FROM token_block WHERE activity_id = {self.activity}")
        differences = [known] if known else []
        if tokens != takes:
            differences.append(f"{takes - tokens} tokens sold twice")
        if lowest < 1 or highest > self.stock:
            differences.append(f"tokens {lowest}..{highest} of 1..{self.stock}")
        if sold != takes:
            differences.append(f"{takes} takes, but the blocks say {sold}")
        if takes + self.remaining != self.stock:
            differences.append(f"{takes} takes and {self.remaining} remaining of {self.stock}")
        if not self.counted <= takes <= self.counted + self.uncounted_at_most:
            differences.append(f"{takes} takes, but {self.counted} customers were told so")
        if self.sold_out and takes != self.stock:
            differences.append(f"{takes} takes of {self.stock} when it was sold out")
        return "; ".join(differences) or "exact"


class Server:
    """A release server on a free port, with its own directory; its secret is shared with the commands run beside it."""

    def __init__(self, database_url, directory, **settings):
        self.directory = directory
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = os.environ | {
            "TOMBOLA__HTTP__ADDRESS": self.address,
            "TOMBOLA__DATABASE__URL": database_url,
            "TOMBOLA__AUTH__DEV_LOGIN": "true",
            "TOMBOLA__AUTH__SECRET": secrets.token_hex(32),
        } | settings

    def __enter__(self):
        self.log = (self.directory / "log").open("w")
        started = time.monotonic()
        self.process = subprocess.Popen([BINARY, "serve"], cwd=self.directory, env=self.environment,
                                        stdout=self.log, stderr=self.log)
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() - started > 60:
                self.process.kill()
                sys.exit(f"The server did not become ready:\n{self.end_of_log()}")
            time.sleep(0.005)
        self.seconds_to_ready = time.monotonic() - started
        operator = {"provider": "dev", "name": "bench-operator", "roles": ["operator"]}
        self.token = None
        self.token = self.call("POST", "/api/v1/sessions", operator)["access_token"]
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "none, it had to be killed"
        self.log.close()
        if code != 0:
            sys.exit(f"The server stopped with exit code {code}:\n{self.end_of_log()}")

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def end_of_log(self):
        return "\n".join((self.directory / "log").read_text().splitlines()[-30:])

    def run(self, *arguments):
        subprocess.run([BINARY, *arguments], cwd=self.directory, env=self.environment, check=True, stdout=sys.stderr)

    def call(self, method, path, body=None):
        request = urllib.request.Request(f"http://{self.address}{path}", method=method)
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, None if body is None else json.dumps(body).encode()) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            sys.exit(f"{method} {path} answered {refusal.code}: {refusal.read().decode()}")

    def start_activity(self, name, stock, kind="giveaway", **more):
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        activity = self.call("POST", "/api/v1/admin/activities", {
            "name": name,
            "kind": kind,
            "starts_at": (now - datetime.timedelta(minutes=1)).isoformat(),
            "ends_at": (now + datetime.timedelta(days=1)).isoformat(),
            "stock_total": stock,
            "take_limit_per_user": None,
            **more,
        })["id"]
        for event in ("submit", "approve"):
            state = self.transition(activity, event)
        if state != "running":
            self.transition(activity, "start")
        return activity

    def transition(self, activity, event):
        return self.call("POST", f"/api/v1/admin/activities/{activity}/transitions", {"event": event})["state"]

    def remaining(self, activity):
        return self.call("GET", f"/api/v1/activities/{activity}")["stock"]["remaining"]

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.address}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[1])
        return None

    def drain(self, quiet=3):
        """Waits until no event is unsent or queued by the embedded bus, as measured `quiet` times, once a second; answers
        how long that took, in seconds."""
        between_measurements = 1.1
        started = time.monotonic()
        seen = 0
        while seen < quiet:
            time.sleep(between_measurements)
            left = self.metric("tombola_outbox_unsent_rows"), self.metric("tombola_embedded_queue_rows")
            seen = seen + 1 if left == (0, 0) else 0
        return time.monotonic() - started - quiet * between_measurements

    def memory(self, field):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) // 1024


class Load:
    """The result of one run of the load generator."""

    def __init__(self, result):
        self.requests = result["requests"]
        self.refused = result["refused"]
        self.broken = result["broken"]
        self.statuses = result["statuses"]
        self.seconds = result["duration"] / 1e6
        self.rate = self.requests / self.seconds
        self.times = collections.Counter(dict(result["times"]))
        self.p50_ms = self.percentile(50)
        self.p99_ms = self.percentile(99)

    @classmethod
    def sum(cls, loads):
        """All of `loads` as one."""
        times = sum((load.times for load in loads), collections.Counter())
        return cls({
            "requests": sum(load.requests for load in loads),
            "refused": sum(load.refused for load in loads),
            "broken": sum(load.broken for load in loads),
            "statuses": {},
            "duration": sum(load.seconds for load in loads) * 1e6,
            "times": times.items(),
        })

    def percentile(self, percent):
        left = self.times.total() * percent / 100
        for time_us, requests in sorted(self.times.items()):
            left -= requests
            if left <= 0:
                return time_us / 1e3
        return 0.0

    def accepted(self):
        return self.requests - self.refused

    def refusals(self):
        return f"{self.refused:,}" + (f", {self.broken:,} broken" if self.broken else "")


def load(server, method, path, tokens, connections, seconds, keys=False, count=False, body=""):
    environment = os.environ | {"BODY": body}
    if keys:
        environment["KEYS"] = "1"
    if count:
        environment["COUNT"] = "1"
    threads = 2
    output = check_output(
        "wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", HERE / "customers.lua",
        f"http://{server.address}", "--", method, path, tokens, str(threads), env=environment)
    return Load(json.loads(output.splitlines()[-1]))


# The databases


class Sqlite:
    name = "sqlite"

    def __init__(self, directory):
        self.file = directory / "sqlite" / "tombola.db"
        self.url = f"sqlite://{self.file}"

    def create(self):
        self.file.parent.mkdir()

    def query(self, sql):
        """The numbers of the only row."""
        connection = sqlite3.connect(self.file)
        try:
            return list(connection.execute(sql).fetchone())
        finally:
            connection.close()


class Postgres:
    name = "postgres"

    def __init__(self, database="bench"):
        self.server_url = os.environ["TOMBOLA_TEST_POSTGRES_URL"]
        self.database = database
        self.url = with_path(self.server_url, database)

    def create(self):
        check_output("psql", self.server_url, "-qc", f"CREATE DATABASE {self.database}")

    def execute(self, sql):
        check_output("psql", self.url, "-qv", "ON_ERROR_STOP=1", "-c", sql)

    def query(self, sql):
        """The numbers of the only row."""
        return [int(n) for n in check_output("psql", self.url, "-Atc", sql).split("|")]


class MariaDb:
    name = "mariadb"

    def __init__(self):
        self.server_url = os.environ["TOMBOLA_TEST_MARIADB_URL"]
        self.url = with_path(self.server_url, "bench")

    def create(self):
        self.client("mysql", "CREATE DATABASE bench")

    def query(self, sql):
        """The numbers of the only row."""
        return [int(n) for n in self.client("bench", sql).split("\t")]

    def client(self, database, sql):
        url = urllib.parse.urlsplit(self.server_url)
        return check_output(
            "mariadb", "--no-defaults", f"--host={url.hostname}", f"--port={url.port}", f"--user={url.username}",
            f"--password={url.password}", "--batch", "--skip-column-names", f"--execute={sql}", database)


def with_path(url, path):
    return urllib.parse.urlsplit(url)._replace(path=f"/{path}").geturl()


# What a user would build instead


def measure_hot_row(options, rows):
    postgres = Postgres("hot_row")
    postgres.create()
    postgres.execute(f"""
        CREATE TABLE stock (id int PRIMARY KEY, n int NOT NULL);
        CREATE TABLE orders (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            stock_id int NOT NULL,
            customer_id bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now());
        INSERT INTO stock VALUES (1, {LARGE_STOCK});""")
    pgbench = pathlib.Path(os.environ["TOMBOLA_TEST_POSTGRES_BIN"]) / "pgbench"
    for what, script in (("hot row", "hotrow.sql"), ("hot row and order", "hotrow_order.sql")):
        progress(f"postgres: {what}")
        [before] = postgres.query("SELECT n FROM stock")
        log = options.directory / script
        output = check_output(
            pgbench, "--no-vacuum", "--protocol=prepared", f"--client={HOT_ROW_CLIENTS}", "--jobs=2",
            f"--time={options.seconds}", f"--file={HERE / script}", "--log", f"--log-prefix={log}", postgres.url)
        rate = float(re.search(r"tps = ([\d.]+)", output)[1])
        done = int(re.search(r"actually processed: (\d+)", output)[1])
        times = sorted(int(line.split()[2]) for part in log.parent.glob(f"{script}.*") for line in part.open())
        [after] = postgres.query("SELECT n FROM stock")
        rows.append(Row("postgres", what, HOT_ROW_CLIENTS, rate, percentile(times, 50), percentile(times, 99),
                        verdict="exact" if before - after == done else f"{done} updates, {before - after} sold"))


def measure_redis(options, rows):
    url = os.environ["TOMBOLA_TEST_REDIS_URL"]
    sha = check_output("redis-cli", "-u", url, "SCRIPT", "LOAD", (HERE / "redis_counter.lua").read_text()).strip()
    port = str(urllib.parse.urlsplit(url).port)

    def benchmark(requests):
        output = check_output("redis-benchmark", "-p", port, "-c", str(HOT_ROW_CLIENTS), "-n", str(requests), "--csv",
                              "EVALSHA", sha, "1", "stock")
        # The name contains no comma, so the numbers are: rate, average, minimum, p50, p95, p99, maximum.
        return [float(field.strip('"')) for field in output.splitlines()[-1].split(",")[1:]]

    for what, appendonly in (("counter, in memory", "no"), ("counter, appendfsync always", "yes")):
        progress(f"redis: {what}")
        check_output("redis-cli", "-u", url, "CONFIG", "SET", "appendfsync", "always", "appendonly", appendonly)
        check_output("redis-cli", "-u", url, "SET", "stock", str(10 * LARGE_STOCK))
        rate = benchmark(20_000)[0]
        [rate, _, _, p50, _, p99, _] = benchmark(int(rate * options.seconds))
        rows.append(Row("redis", what, HOT_ROW_CLIENTS, rate, p50, p99))


def factors(rows):
    """How many times the hot row each database's takes are, at the same number of clients."""
    rates = {(row.database, row.what): row.rate for row in rows if row.connections == HOT_ROW_CLIENTS}
    return [f"{database}: takes are {rates[database, 'takes'] / rates['postgres', hot_row]:.1f} times the {hot_row}"
            for hot_row in ("hot row", "hot row and order") if ("postgres", hot_row) in rates
            for database in ("sqlite", "postgres", "mariadb") if (database, "takes") in rates]


# The report


def describe_machine():
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) / 2**20
    commit = check_output("git", "-C", HERE, "describe", "--always", "--dirty").strip()
    return (f"{os.cpu_count()} × {cpu}, {memory:.0f} GiB, {datetime.date.today()}, commit {commit}; "
            f"load average before the run {os.getloadavg()[0]:.1f}")


def print_report(introduction, rows, notes):
    print(introduction)
    print()
    print("| database | what | connections | requests/s | of /livez | p50 ms | p99 ms | refused | check |")
    print("|---|---|--:|--:|--:|--:|--:|--:|---|")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        print(f"| {row.database} | {row.what} | {row.connections} | {row.rate:,.0f} | {ratio} | {row.p50_ms:.1f} | "
              f"{row.p99_ms:.1f} | {row.refused} | {row.verdict} |")
    print()
    for note in notes:
        print(f"- {note}")


# Small things


def percentile(sorted_microseconds, percent):
    return sorted_microseconds[len(sorted_microseconds) * percent // 100] / 1e3


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def check_output(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def progress(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Known by its name to what it imports.
    sys.modules["measure"] = sys.modules["__main__"]
    import orders
    main()
