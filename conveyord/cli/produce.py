"""`produce`: the lines of a file, as records of a Kafka topic."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from conveyord.cli.exits import print_json, reports_failures
from conveyord.cli.options import output_option

if TYPE_CHECKING:
    from conveyord.cli.produce_lines import LineReader, Lines
    from conveyord.storage.kafka.connection import Connection, Contact
    from conveyord.storage.kafka.topics import FoundTopic

CONNECT_SECONDS = 5.0
SETTLED_RECORDS = 20_000  # after so many, or bytes, or seconds it is made sure that they arrived
SETTLED_BYTES = 8 * 1024 * 1024
SETTLED_SECONDS = 1.0
TOLD_SECONDS = 5.0  # between two lines about how far it is
SLICES_PER_SECOND = 20  # of a limited rate: records come in small groups, not in one a second
_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/(s|m|h))?")
_RATE_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(slots=True)
class Produced:
    """What was sent. keyless: records whose field `--key` is absent or null. stopped: by Ctrl-C, before the end."""

    topic: str
    partitions: int
    records: int = 0
    bytes: int = 0
    keyless: int = 0
    seconds: float = 0.0
    stopped: bool = False


class Rate(click.ParamType[float]):
    """`1000/s`, `50/m`, or a number a second."""

    name = "rate"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Records a second."""
        found = _RATE.fullmatch(str(value))
        rate = 0.0 if found is None else float(found[1]) / _RATE_SECONDS[found[2] or "s"]
        if rate <= 0:
            self.fail(f"{value!r} is no rate; write it like 1000/s or 50/m", param, ctx)
        return rate


@click.command()
@click.argument("file", metavar="FILE")
@click.argument("topic", metavar="TOPIC")
@click.option(
    "--brokers",
    envvar="CONVEYORD_KAFKA",
    default="localhost:9092",
    show_default="$CONVEYORD_KAFKA, or localhost:9092",
    metavar="HOST:PORT,...",
    help="Where Kafka is.",
)
@click.option("--key", metavar="FIELD", help="The field of each record whose value becomes its key.")
@click.option(
    "--format", "form", type=click.Choice(["json", "csv"]), help="What the lines are.  [default: as FILE's ending says]"
)
@click.option("--rate", type=Rate(), metavar="1000/s", help="Send no faster.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after so many records.")
@click.option("--repeat", is_flag=True, help="Begin again at the end of FILE, until --limit or Ctrl-C.")
@click.option("--create", type=click.IntRange(1, 10_000), metavar="PARTITIONS", help="Make TOPIC if it is missing.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of librdkafka, such as sasl.password=env:NAME or compression.type=zstd. Again for more.",
)
@output_option("text", "json")
@reports_failures
def produce(
    file: str,
    topic: str,
    brokers: str,
    key: str | None,
    form: str | None,
    rate: float | None,
    limit: int | None,
    repeat: bool,
    create: int | None,
    settings: tuple[str, ...],
    output: str,
) -> None:
    """Send the lines of FILE to a Kafka TOPIC, each as one record; `-` is standard input.

    Lines are sent as they are, by default as JSON; of CSV each row becomes a JSON object with the header's names,
    and every value is text. FILE may end in .gz or .zst. Records with the same key stay in order. Ctrl-C finishes
    what is under way; a second one does not.
    """
    from conveyord.cli.produce_lines import STDIN, LineReader, format_of
    from conveyord.core.errors import ConfigError

    if repeat and file == STDIN:
        raise ConfigError("standard input cannot be read again; leave out --repeat")
    reader = LineReader(file, "csv" if (form or format_of(file)) == "csv" else "json", key)
    with stopping() as stop:
        sender = _Sender(topic, brokers, settings, create=create, stop=stop)
        done = sender.send(_records(reader, limit=limit, repeat=repeat), rate=rate, shows=output == "text")
    if output == "json":
        print_json(asdict(done))
    else:
        click.echo(_summary(done))


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one is as ever."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def first(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, first)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Sender:
    """Sends records to a topic that it has found or made. Raises a ConveyordError within seconds if it cannot."""

    def __init__(
        self, topic: str, brokers: str, settings: tuple[str, ...], *, create: int | None, stop: threading.Event
    ) -> None:
        from conveyord.cli.produce_settings import given_settings
        from conveyord.engine.kafka.sink_options import producer_options
        from conveyord.storage.kafka.connection import Connection, Contact
        from conveyord.storage.kafka.delivery import Delivery
        from conveyord.storage.kafka.topics import max_message_bytes

        self._stop = stop
        client, config = given_settings(settings)
        connection = Connection(brokers, client, CONNECT_SECONDS)
        contact = Contact(connection)
        self._topic = _found(connection, contact, topic, create=create)
        options = producer_options(config, topic_bytes_max=max_message_bytes(contact, topic))
        self._delivery = Delivery(connection, options, check=lambda: None)

    def send(self, records: Iterator[tuple[str, Lines]], *, rate: float | None, shows: bool) -> Produced:
        """Send all of them, or until `stop` is set. shows: how far it is, on stderr."""
        from conveyord.core.errors import RecordError
        from conveyord.core.flow.token_bucket import TokenBucket
        from conveyord.storage.kafka.producer import Outgoing

        done = Produced(self._topic.name, self._topic.partitions)
        started = settled_at = told_at = time.monotonic()
        bucket = None if rate is None else TokenBucket(rate, max(1.0, rate / SLICES_PER_SECOND))
        open_parts: list[tuple[str, Lines]] = []
        with closing(self._delivery):
            try:
                for name, lines in _sliced(records, rate):
                    if bucket is not None:
                        self._stop.wait(bucket.pay(len(lines.values), now_seconds=time.monotonic()))
                    if self._stop.is_set():
                        done.stopped = True
                        break
                    self._delivery.add(Outgoing(self._topic.name, lines.values, lines.keys))
                    open_parts.append((name, lines))
                    done.keyless += (lines.keys or []).count(None)
                    now = time.monotonic()
                    if _are_many(open_parts) or now - settled_at >= SETTLED_SECONDS:
                        self._settle(open_parts, done)
                        settled_at = now
                    if shows and now - told_at >= TOLD_SECONDS:
                        click.echo(f"{done.records:,} records, {done.records / (now - started):,.0f}/s", err=True)
                        told_at = now
            except RecordError:
                self._settle(open_parts, done)  # what stands before a bad line is sent
                raise
            self._settle(open_parts, done)
        done.seconds = round(time.monotonic() - started, 3)
        return done

    def _settle(self, parts: list[tuple[str, Lines]], done: Produced) -> None:
        from conveyord.core.errors import RecordError

        for (name, lines), refused in zip(parts, self._delivery.settle(), strict=True):
            for number, error in refused.items():
                raise RecordError(f"{name}:{lines.numbers[number]}", error.reason, code=error.code)
            done.records += len(lines.values)
            done.bytes += lines.bytes
        self._delivery.clear()
        parts.clear()


def _found(connection: Connection, contact: Contact, topic: str, *, create: int | None) -> FoundTopic:
    from conveyord.core.errors import ConfigError
    from conveyord.storage.kafka.topics import TopicPlan, find_or_await_topic, find_topic, make_topic

    if create is not None:
        return find_topic(contact, topic) or make_topic(contact, topic, TopicPlan(create))
    found = find_or_await_topic(connection, contact, topic)
    if found is None:
        raise ConfigError(
            f"Kafka at {connection.brokers} has no topic {topic}; mend the name, or make it with --create PARTITIONS"
        )
    return found


def _records(reader: LineReader, *, limit: int | None, repeat: bool) -> Iterator[tuple[str, Lines]]:
    left = limit
    while True:
        count = 0
        for lines in reader.records():
            count += len(lines.values)
            yield reader.name, lines if left is None else lines.cut(0, left)
            if left is not None:
                left -= len(lines.values)
                if left <= 0:
                    return
        if not repeat or not count:
            return


def _sliced(records: Iterator[tuple[str, Lines]], rate: float | None) -> Iterator[tuple[str, Lines]]:
    """The same in groups that are small enough for the rate."""
    for name, lines in records:
        size = len(lines.values) if rate is None else max(1, int(rate / SLICES_PER_SECOND))
        for first in range(0, len(lines.values), size):
            yield name, lines.cut(first, first + size)


def _are_many(parts: list[tuple[str, Lines]]) -> bool:
    return (
        sum(len(lines.values) for _, lines in parts) >= SETTLED_RECORDS
        or sum(lines.bytes for _, lines in parts) >= SETTLED_BYTES
    )


def _summary(done: Produced) -> str:
    from conveyord.core.units import counted, format_bytes, format_seconds

    rate = done.records / done.seconds if done.seconds else 0.0
    stopped = "; stopped before the end" if done.stopped else ""
    sent = f"{counted(done.records, 'record')} ({format_bytes(done.bytes)}) in {format_seconds(done.seconds)}"
    where = f"{done.topic} with {counted(done.partitions, 'partition')}"
    keyless = f"; {counted(done.keyless, 'record')} without a key (no such field, or null)" if done.keyless else ""
    return f"{sent}, {rate:,.0f}/s, to {where}{keyless}{stopped}"
