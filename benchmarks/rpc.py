"""The RPC between nodes against bare sockets in threads, and against a server as one writes it first.

    python -m benchmarks.rpc [--rounds 9] [--json PATH]

Servers are processes of their own on one core, clients on another. Rounds are interleaved, figures are medians, ratios
those of one round. Sequential: one request at a time, 200 bytes each way, against a thread per connection that moves
the same bytes. In flight: 256 requests at a time from the same bare client, against one task per connection, one task
per request, one lock, one send per reply, and msgpack. Bulk: attachments of 4 MiB, two on the way at a time.
"echo" is answered by a task per request, "ecin" by a handler that is run inline.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import trio

from conveyord.core.wire.frames import PREFIX_BYTES, FrameDecoder, opening
from conveyord.core.wire.heads import Hello, Reply, Request
from conveyord.runtime.rpc.dialing import dial_once
from conveyord.runtime.rpc.greeting import Me, Side
from conveyord.runtime.rpc.handlers import Admission, Answer, Handlers, Incoming
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.server import RpcServer

PAYLOAD = bytes(200)
FIRST_ID = 1 << 17  # from here on an id has five bytes, so that all frames have one length
IN_FLIGHT = 256
SEQUENTIAL = 3000
PIPELINED_SECONDS = 1.5
BULK_BYTES = 4 * 1024 * 1024
BULK_COUNT = 150
BULK_IN_FLIGHT = 2
REQUEST_BYTES = len(opening(Request(FIRST_ID, "echo", None, PAYLOAD)))
REPLY_BYTES = len(opening(Reply(FIRST_ID, PAYLOAD)))


# ------------------------------------------------------------------------------ servers, each a process


def receive_exactly(connection: socket.socket, view: memoryview) -> bool:
    while view:
        if not (count := connection.recv_into(view)):
            return False
        view = view[count:]
    return True


def raw_echo(connection: socket.socket) -> None:
    """Answers frames of the length of ours with such of our replies'."""
    request, reply = bytearray(REQUEST_BYTES), bytes(REPLY_BYTES)
    while receive_exactly(connection, memoryview(request)):
        connection.sendall(reply)


def raw_bulk(connection: socket.socket) -> None:
    length = bytearray(4)
    while receive_exactly(connection, memoryview(length)):
        body = bytearray(int.from_bytes(length, "big"))
        receive_exactly(connection, memoryview(body))
        connection.sendall(b"\0")


def serve_threads(handle: Callable[[socket.socket], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=handle, args=(connection,), daemon=True).start()


async def naive(stream: trio.SocketStream) -> None:
    unpacker, lock = msgpack.Unpacker(), trio.Lock()

    async def answer(number: int, payload: bytes) -> None:
        reply = msgpack.packb([number, payload])
        async with lock:
            await stream.send_all(reply)

    async with trio.open_nursery() as nursery:
        async for data in stream:
            unpacker.feed(data)
            for number, _method, payload in unpacker:
                nursery.start_soon(answer, number, payload)


async def serve_naive() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)

    async def until_it_breaks(stream: trio.SocketStream) -> None:
        try:
            await naive(stream)
        except* trio.BrokenResourceError:
            pass  # the client had enough

    await trio.serve_listeners(until_it_breaks, listeners)


def handlers() -> Handlers:
    found = Handlers()

    async def unary(incoming: Incoming) -> Answer:
        return Answer(incoming.payload)

    async def sink(incoming: Incoming) -> bytes:
        assert len(incoming.body) == BULK_BYTES
        return b""

    found.unary("echo", unary)
    found.inline("ecin", lambda incoming: Answer(incoming.payload))
    found.unary("sink", sink)
    return found


async def serve_ours() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    side = Side(lambda: Me("server", 1, "bench"), handlers(), Limits(), Counters())
    server = RpcServer(side, lambda *_: Admission())
    await server.serve(listeners, drain=trio.Event())


SERVERS: dict[str, Callable[[], None]] = {
    "raw": lambda: serve_threads(raw_echo),
    "raw_bulk": lambda: serve_threads(raw_bulk),
    "naive": lambda: trio.run(serve_naive),
    "ours": lambda: trio.run(serve_ours),
}


@contextmanager
def running(name: str, core: int) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.rpc", "--serve", name, "--core", str(core)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield int(child.stdout.readline())
        finally:
            child.kill()


# ------------------------------------------------------------------------------ clients


def connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def greeted(port: int) -> socket.socket:
    connection = connected(port)
    connection.sendall(opening(Hello(1, 1, "bench", "", 1, "rpc", None, "", 1 << 24, 1 << 16)))
    decoder = FrameDecoder(1 << 16)
    while not decoder.receive(connection.recv(65536)):
        pass
    return connection


def sequential(connection: socket.socket, requests: Iterator[bytes]) -> float:
    """Median of the microseconds that an answer takes."""
    reply, spent = bytearray(REPLY_BYTES), []
    for request in requests:
        begun = time.perf_counter()
        connection.sendall(request)
        receive_exactly(connection, memoryview(reply))
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent) * 1e6


def ours(method: str, numbers: Iterator[int]) -> Iterator[bytes]:
    return (opening(Request(number, method, None, PAYLOAD)) for number in numbers)


def pipelined(connection: socket.socket, reply_bytes: int, requests: Iterator[bytes]) -> float:
    """Answers per second with so many in flight."""
    end = time.perf_counter() + PIPELINED_SECONDS
    buffer = memoryview(bytearray(1 << 18))
    connection.sendall(b"".join(next(requests) for _ in range(IN_FLIGHT)))
    begun, answers, left = time.perf_counter(), 0, 0
    while (now := time.perf_counter()) < end:
        whole, left = divmod(left + connection.recv_into(buffer), reply_bytes)
        answers += whole
        connection.sendall(b"".join([next(requests) for _ in range(whole)]))
    return answers / (now - begun)


def naive_requests() -> Iterator[bytes]:
    return (msgpack.packb([number, "echo", PAYLOAD]) for number in range(FIRST_ID, FIRST_ID * 1000))


def bulk_raw(port: int) -> float:
    body, length, one = bytes(BULK_BYTES), BULK_BYTES.to_bytes(4, "big"), bytearray(1)
    with connected(port) as connection:
        begun = time.perf_counter()
        for number in range(BULK_COUNT):
            connection.sendall(length)
            connection.sendall(body)
            if number >= BULK_IN_FLIGHT - 1:
                receive_exactly(connection, memoryview(one))
        for _ in range(BULK_IN_FLIGHT - 1):
            receive_exactly(connection, memoryview(one))
        return BULK_BYTES * BULK_COUNT / (time.perf_counter() - begun) / 1e6


async def with_our_client(port: int) -> dict[str, float]:
    """Both sides ours: median microseconds of a call, calls per second of 256 tasks, MB/s of attachments."""
    side = Side(lambda: Me("", 1, "bench"), Handlers(), Limits(), Counters())
    found: dict[str, float] = {}
    async with dial_once(side, ("127.0.0.1", port)) as connection:
        for method in ("echo", "ecin"):
            spent = []
            for _ in range(SEQUENTIAL):
                begun = time.perf_counter()
                await connection.call(method, PAYLOAD, deadline_seconds=60)
                spent.append(time.perf_counter() - begun)
            found[f"sequential_{method}"] = statistics.median(spent) * 1e6
        done = 0
        end = time.perf_counter() + PIPELINED_SECONDS

        async def ask() -> None:
            nonlocal done
            while time.perf_counter() < end:
                await connection.call("echo", PAYLOAD, deadline_seconds=60)
                done += 1

        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT):
                nursery.start_soon(ask)
        found["in_flight"] = done / (time.perf_counter() - begun)
        body, left = bytes(BULK_BYTES), BULK_COUNT

        async def push() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await connection.call("sink", b"", body, deadline_seconds=60)

        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(BULK_IN_FLIGHT):
                nursery.start_soon(push)
        found["bulk"] = BULK_BYTES * BULK_COUNT / (time.perf_counter() - begun) / 1e6
    return found


def one_round(ports: dict[str, int], number: int) -> dict[str, float]:
    def raw_sequential() -> None:
        with connected(ports["raw"]) as connection:
            found["sequential_raw"] = sequential(connection, (bytes(REQUEST_BYTES) for _ in range(SEQUENTIAL)))

    def our_sequential() -> None:
        for method in ("echo", "ecin"):
            with greeted(ports["ours"]) as connection:
                numbers = iter(range(FIRST_ID, FIRST_ID + SEQUENTIAL))
                found[f"sequential_server_{method}"] = sequential(connection, ours(method, numbers))

    def naive_flight() -> None:
        reply_bytes = len(msgpack.packb([FIRST_ID, PAYLOAD]))
        with connected(ports["naive"]) as connection:
            found["in_flight_naive"] = pipelined(connection, reply_bytes, naive_requests())

    def our_flight() -> None:
        for method in ("echo", "ecin"):
            with greeted(ports["ours"]) as connection:
                requests = ours(method, iter(range(FIRST_ID, FIRST_ID * 1000)))
                found[f"in_flight_server_{method}"] = pipelined(connection, REPLY_BYTES, requests)

    def raw_bulk_round() -> None:
        found["bulk_raw"] = bulk_raw(ports["raw_bulk"])

    def both_ours() -> None:
        found.update({f"both_{name}": value for name, value in trio.run(with_our_client, ports["ours"]).items()})

    found: dict[str, float] = {}
    steps = [raw_sequential, our_sequential, naive_flight, our_flight, raw_bulk_round, both_ours]
    for step in steps if number % 2 else reversed(steps):
        step()
    found["ratio_sequential_unary"] = found["sequential_server_echo"] / found["sequential_raw"]
    found["ratio_sequential_inline"] = found["sequential_server_ecin"] / found["sequential_raw"]
    found["ratio_sequential_both_unary"] = found["both_sequential_echo"] / found["sequential_raw"]
    found["ratio_sequential_both_inline"] = found["both_sequential_ecin"] / found["sequential_raw"]
    found["ratio_in_flight_unary"] = found["in_flight_server_echo"] / found["in_flight_naive"]
    found["ratio_in_flight_inline"] = found["in_flight_server_ecin"] / found["in_flight_naive"]
    found["ratio_bulk"] = found["both_bulk"] / found["bulk_raw"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if arguments.serve:
        os.sched_setaffinity(0, {arguments.core})
        SERVERS[arguments.serve]()
        return
    load = os.getloadavg()[0]
    os.sched_setaffinity(0, {cores[-1]})
    with (
        running("raw", cores[0]) as raw,
        running("raw_bulk", cores[0]) as bulk,
        running("naive", cores[0]) as naive_port,
        running("ours", cores[0]) as port,
    ):
        ports = {"raw": raw, "raw_bulk": bulk, "naive": naive_port, "ours": port}
        one_round(ports, 0)  # warms everything, and does not count
        rounds = [one_round(ports, number) for number in range(arguments.rounds)]
    digits = {name: 2 if name.startswith("ratio") else 0 for name in rounds[0]}
    figures: dict[str, object] = {
        "rounds": arguments.rounds,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "payload_bytes": len(PAYLOAD),
        "frame_bytes": REQUEST_BYTES - PREFIX_BYTES,
        **{name: round(statistics.median(each[name] for each in rounds), digits[name] or None) for name in rounds[0]},
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
