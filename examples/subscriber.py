#!/usr/bin/env python3
"""Subscribes to Tombola's events from another system.

    subscriber.py --name accounting 'activity.taken.v1' 'activity.*.*'

RabbitMQ keeps what this program has not acknowledged, in a queue of its own that outlives both, so every event comes at
least once: again if this program or the broker dies between the effect and the acknowledgement. The id of an event is
therefore remembered in the same commit as its effect. That makes it exactly once.

What is no event, and what is delivered too often without being settled, is set aside in the queue NAME.dead.

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

# Seconds between two tries, at most.
LONGEST_PAUSE = 60

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
    if event["sequence"] is not None:
        db.execute(
            "INSERT INTO latest VALUES (?, ?, ?) ON CONFLICT (subject) DO UPDATE"
            " SET sequence = excluded.sequence, event = excluded.event WHERE excluded.sequence >= sequence",
            (event["subject"], event["sequence"], event["text"]),
        )


def parse(body):
    """The event that a message is, with its data and all of it as JSON; raises an error for anything else."""
    text = body.decode()
    members = json.loads(text)
    event = {name: members[name] for name in ("id", "type", "subject", "time")}
    event["sequence"] = members.get("sequence")
    for name, value in event.items():
        if not (isinstance(value, str) or (name == "sequence" and value is None)):
            raise TypeError(f"{name} is no text")
    # JSON can name half a character, which nothing can store.
    "".join(filter(None, event.values())).encode()
    return event | {"data": json.dumps(members.get("data")), "text": text}


def apply_in_the_end(connection, db, event):
    """Applies an event, after longer and longer pauses while that fails: those behind it wait, and nothing is lost."""
    pause = 1
    while True:
        try:
            return apply(db, event)
        except Exception as error:  # whatever an effect may raise
            print(f"{event['id']}: {error!r}; again in {pause} s", file=sys.stderr, flush=True)
        connection.sleep(pause)  # and answers the broker meanwhile
        pause = min(2 * pause, LONGEST_PAUSE)


def declare(channel, arguments):
    """Declares the queue and binds it. What is there already stays, so it does not matter who starts first."""
    channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
    # A quorum queue lives on several brokers, if there are several.
    dead = f"{arguments.name}.dead"
    channel.queue_declare(dead, durable=True, arguments={"x-queue-type": "quorum"})
    # RabbitMQ drops what is rejected, or delivered too often (20 times by default since 4.0), unless it is told where
    # to put it. It takes back what it could not put there, which needs the last argument.
    kept = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    channel.queue_declare(arguments.name, durable=True, arguments=kept)
    # Bindings are added: to hear less than before, unbind, or take another name.
    for key in arguments.keys:
        channel.queue_bind(arguments.name, EXCHANGE, routing_key=key)


def consume(connection, arguments, db):
    """Takes in events until the connection is lost."""
    channel = connection.channel()
    declare(channel, arguments)
    # How many events may be under way to us; without a limit the broker would send all it has.
    channel.basic_qos(prefetch_count=100)
    print(f"subscribed as {arguments.name}", file=sys.stderr, flush=True)

    for method, _, body in channel.consume(arguments.name):
        try:
            event = parse(body)
        except (ValueError, TypeError, LookupError, RecursionError):
            # It will not become readable by trying again.
            print(f"not an event: {body[:200]!r}", file=sys.stderr, flush=True)
            channel.basic_reject(method.delivery_tag, requeue=False)
            continue
        if apply_in_the_end(connection, db, event):
            print(f"{event['time']} {event['type']} {event['subject']} {event['data']}", flush=True)
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
    sys.stdout.reconfigure(errors="backslashreplace")  # no event is one that a terminal cannot show

    pause = 1
    while True:
        start = time.monotonic()
        try:
            random.shuffle(brokers)
            with pika.BlockingConnection(brokers) as connection:
                consume(connection, arguments, db)
        # What was not acknowledged comes again.
        except (AMQPError, OSError) as error:
            if time.monotonic() - start > LONGEST_PAUSE:
                pause = 1
            print(f"{error!r}; again in {pause} s", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
