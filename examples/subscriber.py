#!/usr/bin/env python3
"""Subscribes to Tombola's events from another system.

    subscriber.py --name accounting 'activity.taken.v1' 'activity.*.*'

RabbitMQ keeps what this program has not acknowledged, in a queue of its own that outlives both, so every event comes at
least once: again if this program or the broker dies between the effect and the acknowledgement. The id of an event is
therefore remembered in the same commit as its effect. That makes it exactly once.

Needs pika (`apt install python3-pika` or `pip install pika`).
"""

import argparse
import json
import os
import random
import sqlite3
import sys
import time

import pika
from pika.exceptions import AMQPError

EXCHANGE = "tombola.events"

TABLES = """
    CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS count (type TEXT PRIMARY KEY, events INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS latest (subject TEXT PRIMARY KEY, sequence TEXT NOT NULL, event TEXT NOT NULL);
"""


def apply(db, event):
    """Applies an event once, however often it comes; answers whether this was the time."""
    with db:  # one transaction: all of it or nothing
        if db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (event["id"],)).rowcount == 0:
            return False
        effect(db, event)
    return True


def effect(db, event):
    """What your system does about an event; here it counts, and keeps the latest event of each subject."""
    db.execute(
        "INSERT INTO count VALUES (?, 1) ON CONFLICT (type) DO UPDATE SET events = events + 1", (event["type"],)
    )
    # Events of one subject come in order, except when one comes again. Where an event has a `sequence`, an older one
    # has a lower one; they all have the same length, so text compares as numbers do.
    if "sequence" in event:
        db.execute(
            "INSERT INTO latest VALUES (?, ?, ?) ON CONFLICT (subject) DO UPDATE"
            " SET sequence = excluded.sequence, event = excluded.event WHERE excluded.sequence >= sequence",
            (event["subject"], event["sequence"], json.dumps(event)),
        )


def consume(connection, arguments, db):
    """Takes in events until the connection is lost."""
    channel = connection.channel()
    # Declaring what is there already changes nothing, so it does not matter who starts first.
    channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
    # A quorum queue lives on several brokers, if there are several. Bindings are added: to hear less than before,
    # unbind, or take another name.
    channel.queue_declare(arguments.name, durable=True, arguments={"x-queue-type": "quorum"})
    for key in arguments.keys:
        channel.queue_bind(arguments.name, EXCHANGE, routing_key=key)
    # How many events may be under way to us; without a limit the broker would send all it has.
    channel.basic_qos(prefetch_count=100)
    print(f"subscribed as {arguments.name}", file=sys.stderr, flush=True)

    for method, _, body in channel.consume(arguments.name):
        try:
            event = json.loads(body)
            if not all(isinstance(event[name], str) for name in ("id", "type", "subject", "time")):
                raise ValueError("not an event")
        except (ValueError, TypeError, LookupError):
            # It will not become readable by trying again. Give the queue a dead-letter exchange to keep such messages.
            print(f"not an event: {body[:200]!r}", file=sys.stderr)
            channel.basic_reject(method.delivery_tag, requeue=False)
            continue
        if apply(db, event):
            print(f"{event['time']} {event['type']} {event['subject']} {json.dumps(event.get('data'))}", flush=True)
        # Only now: an event acknowledged before its effect is committed could be lost.
        channel.basic_ack(method.delivery_tag)
    raise AMQPError("the broker ended the subscription")


def main():
    parser = argparse.ArgumentParser(description="Subscribes to Tombola's events.")
    parser.add_argument("keys", nargs="+", metavar="KEY", help="an event type; * is any one word of it, # any rest")
    parser.add_argument("--name", required=True, help="of the queue; those who share it share its events")
    parser.add_argument("--store", help="the SQLite file with what was applied [NAME.db]")
    parser.add_argument(
        "--url",
        default=os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"),
        help="of the broker, or several with commas between; or AMQP_URL",
    )
    arguments = parser.parse_args()
    db = sqlite3.connect(arguments.store or f"{arguments.name}.db")
    db.executescript(TABLES)
    brokers = [pika.URLParameters(url) for url in arguments.url.split(",")]

    pause = 1
    while True:
        try:
            random.shuffle(brokers)
            with pika.BlockingConnection(brokers) as connection:
                pause = 1
                consume(connection, arguments, db)
        # Also when the effect failed: what was not acknowledged comes again.
        except (AMQPError, OSError, sqlite3.Error) as error:
            print(f"{error!r}; again in {pause} s", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 30)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
