"""Orders on PostgreSQL: bought, paid, and given up in time; beside the same rows in one hand-written transaction."""

import hashlib
import hmac
import json
import os
import pathlib
import re
import signal
import subprocess
import time

from measure import (HERE, WARM_UP_SECONDS, Livez, Load, Postgres, Row, Server, Takes, check_output, load, new_server,
                     percentile, progress, take_turns)

SECRET = "the benchmark's sandbox"
PRICE = 20_000
PAID_ORDERS = 20_000
WAITING_ORDERS = 1_000_000
# The waiting orders fall due within so many seconds, after a pause for the server to start.
DUE_WITHIN, DUE_AFTER = 300, 60


def measure_orders(options, rows, notes):
    """Flash-sale purchases, orders of the shop, and callbacks until the orders are paid."""
    database, connections = Postgres("bench_orders"), max(options.connections)
    settings = {"TOMBOLA__PAYMENT__SANDBOX__SECRET": SECRET, "TOMBOLA__ORDER__PAYMENT_TIMEOUT_S": "86400",
                "TOMBOLA__RATE_LIMIT__PER_USER_PER_S": "0"}
    with new_server(database, options, **settings) as (server, tokens):
        livez = Livez(database, server, tokens, connections)
        # Each with its order, written in the batch of the take.
        purchases = Takes(database, server, "flash-sale purchases", tokens, connections, kind="flash_sale",
                          sale_price_minor=PRICE)
        take_turns([livez, purchases], options.seconds)
        behind = server.drain()
        rows.append(livez.row(livez))
        row, check = purchases.row(livez), purchases.check()
        rows.append(row)
        check.remaining = server.remaining(check.activity)
        row.verdict = check.verdict(database, orders_verdict(database, check.activity))
        [told] = database.query("SELECT count(*) FROM notification")
        notes.append(f"orders: the {told:,} customers of the flash sale were all told {behind:.0f} s after the last purchase")
        goods = server.call("POST", "/api/v1/admin/goods",
                            {"name": "Mooncakes", "price_minor": PRICE, "stock_total": 2_000_000_000})["id"]
        row = measure_shop_orders(server, database, goods, tokens, connections, options.seconds)
        row.ratio = row.rate / livez.total().rate
        rows.append(row)
        server.drain()
        rows.append(measure_callbacks(server, database, check.activity, tokens.parent, connections))
        notes.append(f"orders: {server.memory('VmRSS')} MiB resident at the end, {server.memory('VmHWM')} MiB at most")
    rows.append(measure_by_hand(database, goods, options))


def orders_verdict(database, activity):
    [orders] = database.query(f"SELECT count(*) FROM orders WHERE activity_id = {activity}")
    [both] = database.query(
        f"SELECT count(*) FROM take t JOIN orders o ON o.id = t.id WHERE t.activity_id = {activity}")
    return "" if orders == both else f"{orders} orders, {both} of them with a take"


def measure_shop_orders(server, database, goods, tokens, connections, seconds):
    """Orders of one unit of one kind of goods, each a saga."""
    body = json.dumps({
        "items": [{"goods_id": goods, "quantity": 1, "unit_price_minor": PRICE}],
        "shipping_fee_minor": 0, "order_amount_minor": PRICE,
        "address": {"consignee": "Alice", "phone": "123", "line": "1 Rabbit Hole"}})
    warm_up = load(server, "POST", "/api/v1/orders", tokens, connections, WARM_UP_SECONDS, count=True, body=body)
    progress(f"postgres: orders of the shop; warm-up: {warm_up.statuses}")
    timed = load(server, "POST", "/api/v1/orders", tokens, connections, seconds, body=body)
    accepted = timed.requests - timed.refused
    time.sleep(1)
    [orders, taken] = database.query(
        "SELECT (SELECT count(*) FROM orders WHERE kind = 'shop' AND state = 'awaiting_payment'),"
        f" (SELECT stock_total - available FROM goods WHERE id = {goods})")
    counted = warm_up.accepted() + accepted
    exact = counted <= orders <= counted + 2 * connections and orders == taken
    return Row("postgres", "orders of the shop", connections, accepted / timed.seconds, timed.p50_ms, timed.p99_ms,
               refused=timed.refusals(),
               verdict="exact" if exact else f"{orders} orders, {taken} units taken, {counted} answered")


def measure_callbacks(server, database, activity, directory, connections):
    """Captures told by the gateway: from the first callback until the last order is paid."""
    progress(f"postgres: {PAID_ORDERS:,} payments")
    # Opened behind the server's back: a payment for each order, as POST /orders/{id}/payments writes it.
    database.execute(
        "INSERT INTO payment (id, order_id, user_id, channel, state, amount_minor, currency, version, created_at, updated_at)"
        " SELECT id, id, user_id, 'sandbox', 'pending', payable_minor, currency, 1, created_at, created_at FROM orders"
        f" WHERE activity_id = {activity} AND state = 'awaiting_payment' LIMIT {PAID_ORDERS}")
    database.execute("ANALYZE")
    ids = check_output("psql", database.url, "-Atc", "SELECT id FROM payment").split()
    requests = directory / "callbacks"
    now = int(time.time())
    with requests.open("w") as file:
        for number in ids:
            body = json.dumps({"payment_id": number, "transaction_id": f"bench-{number}", "amount_minor": PRICE,
                               "result": "success"}, separators=(",", ":"))
            tag = hmac.new(SECRET.encode(), f"{now}.{body}".encode(), hashlib.sha256).hexdigest()
            head = (f"POST /api/v1/payments/callbacks/sandbox HTTP/1.1\\r\\nHost: {server.address}\\r\\n"
                    f"Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n"
                    f"Tombola-Signature: t={now},v1={tag}\\r\\n\\r\\n")
            file.write(f"{head}{body}\n")
    wrk = subprocess.Popen(["wrk", "-t2", f"-c{connections}", "-d120s", "--timeout", "10s", "-s", HERE / "replay.lua",
                            f"http://{server.address}", "--", requests, "2"], stdout=subprocess.PIPE, text=True)
    started = time.monotonic()
    paid = 0
    while paid < len(ids) and wrk.poll() is None:
        time.sleep(0.1)
        [paid] = database.query(f"SELECT count(*) FROM orders WHERE activity_id = {activity} AND state = 'paid'")
    took = time.monotonic() - started
    wrk.send_signal(signal.SIGINT)
    output, _ = wrk.communicate()
    told = Load(json.loads(output.splitlines()[-1]))
    return Row("postgres", "callbacks until the order is paid", connections, paid / took, told.p50_ms, told.p99_ms,
               refused=told.refusals(), verdict="exact" if paid == len(ids) else f"{paid} of {len(ids)} paid")


def measure_by_hand(database, goods, options):
    """The rows of an order of the shop in one transaction, by pgbench on the tables the server has made."""
    progress("postgres: orders by hand")
    script = options.directory / "shop_order.sql"
    script.write_text((HERE / "shop_order.sql").read_text().replace("goods_id = 1", f"goods_id = {goods}")
                      .replace("WHERE id = 1 ", f"WHERE id = {goods} ").replace(":order, 1, :order", f":order, {goods}, :order"))
    pgbench = pathlib.Path(os.environ["TOMBOLA_TEST_POSTGRES_BIN"]) / "pgbench"
    output = check_output(pgbench, "--no-vacuum", "--protocol=prepared", "--client=64", "--jobs=2",
                          f"--time={options.seconds}", f"--file={script}", "--log",
                          f"--log-prefix={options.directory / 'by_hand'}", database.url)
    times = sorted(int(line.split()[2]) for part in options.directory.glob("by_hand.*") for line in part.open())
    return Row("postgres", "the shop order's rows, by hand", 64, float(re.search(r"tps = ([\d.]+)", output)[1]),
               percentile(times, 50), percentile(times, 99))


def measure_deadlines(options, notes):
    """A million orders that wait for their payment, fall due within five minutes, and are cancelled; the server is killed
    in the middle."""
    database = Postgres("bench_deadlines")
    database.create()
    directory = options.directory / "deadlines"
    directory.mkdir()
    with Server(database.url, directory) as server:
        activity = server.start_activity("deadlines", WAITING_ORDERS, kind="flash_sale", sale_price_minor=PRICE)
    progress(f"postgres: {WAITING_ORDERS:,} waiting orders")
    due = f"(extract(epoch FROM now()) + {DUE_AFTER} + {DUE_WITHIN} * n::float8 / {WAITING_ORDERS}) * 1000000"
    database.execute(f"""
        INSERT INTO take (id, activity_id, user_id, token_no, take_no, live_token, live_take_no, state, taken_at)
          SELECT n, {activity}, n, n, 1, n, 1, 'unused', 0 FROM generate_series(1, {WAITING_ORDERS}) n;
        UPDATE token_block SET sold = last_token - first_token + 1 WHERE activity_id = {activity};
        INSERT INTO orders (id, user_id, kind, state, version, activity_id, items, goods_amount_minor, shipping_fee_minor,
          order_amount_minor, coupon_deduction_minor, balance_paid_minor, payable_minor, currency, due_at, created_at,
          updated_at)
          SELECT n, n, 'flash_sale', 'awaiting_payment', 1, {activity}, '[]', {PRICE}, 0, {PRICE}, 0, 0, {PRICE}, 'CNY',
            ({due})::bigint, 0, 0 FROM generate_series(1, {WAITING_ORDERS}) n;
        ANALYZE""")
    waiting = "SELECT count(*) FROM orders WHERE state = 'awaiting_payment'"
    memory = 0
    with Server(database.url, directory) as server:
        time.sleep(DUE_AFTER + DUE_WITHIN / 2)
        memory = server.memory("VmHWM")
        server.process.kill()
        server.process.wait()
        server.__enter__()
        deadline = time.monotonic() + 2 * DUE_WITHIN
        while database.query(waiting) != [0] and time.monotonic() < deadline:
            time.sleep(1)
        memory = max(memory, server.memory("VmHWM"))
        drained = server.drain()
        [late, left] = database.query(
            "SELECT coalesce(max((updated_at - due_at) / 1000), 0), count(*) FILTER (WHERE state <> 'cancelled') FROM orders")
        [held] = database.query("SELECT count(*) FROM take WHERE live_token IS NOT NULL")
        notes.append(f"{WAITING_ORDERS:,} orders that fell due within {DUE_WITHIN} s, the server killed and started again in "
                     f"the middle: the latest was cancelled {late / 1000:.1f} s after it was due, {left} were left; "
                     f"{held} tokens still held {drained:.0f} s later; {memory} MiB at most")
