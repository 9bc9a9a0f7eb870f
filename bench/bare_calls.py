"""The references for small calls: a stream and unary calls of bare grpcio that send back what they get, sync and aio.

The server is a process of its own: `python bench/bare_calls.py sync|aio` prints the port, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import grpc
import servers

STREAM, UNARY = "/Calls/stream", "/Calls/unary"
THREADS = 32  # of the sync server


def server(kind: str, program: str = __file__) -> AbstractContextManager[int]:
    """The port of a server process of that kind."""
    return servers.running([sys.executable, program, kind])


def sampled(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of so many calls, after some that are not counted."""
    for _ in range(max(1, count // 10)):
        call()
    samples = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return samples


def rate(call: Callable[[], object], threads: int, seconds: float) -> float:
    """Calls per second by so many threads, after a quarter of that time."""
    counts = [0] * threads
    ends = threading.Event()

    def work(number: int) -> None:
        while not ends.is_set():
            call()
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    time.sleep(seconds / 4)
    before, start = sum(counts), time.perf_counter()
    time.sleep(seconds)
    found = (sum(counts) - before) / (time.perf_counter() - start)
    ends.set()
    for worker in workers:
        worker.join()
    return found


def stream_echo(port: int, body: bytes, count: int) -> list[float]:
    """Samples over one sync stream."""
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        responses = channel.stream_stream(STREAM)(iter(requests.get, None))

        def call() -> None:
            requests.put(body)
            next(responses)

        samples = sampled(call, count)
        requests.put(None)
    return samples


def aio_echo(port: int, body: bytes, count: int) -> list[float]:
    """Samples over one aio stream."""

    async def run() -> list[float]:
        samples = []
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(STREAM)()
            for _ in range(count + max(1, count // 10)):
                start = time.perf_counter()
                await call.write(body)
                await call.read()
                samples.append(time.perf_counter() - start)
            await call.done_writing()
        return samples[-count:]

    return asyncio.run(run())


def unary_rate(port: int, body: bytes, threads: int, seconds: float) -> float:
    """Unary calls per second."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(UNARY)
        call(body)
        return rate(lambda: call(body), threads, seconds)


def _handler(stream: Any, unary: Any) -> grpc.GenericRpcHandler:
    handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
        "Calls",
        {
            "stream": grpc.stream_stream_rpc_method_handler(stream),
            "unary": grpc.unary_unary_rpc_method_handler(unary),
        },
    )
    return handler


def _serve() -> None:
    served = grpc.server(ThreadPoolExecutor(THREADS))
    served.add_generic_rpc_handlers((_handler(lambda requests, _: iter(requests), lambda request, _: request),))
    print(served.add_insecure_port("127.0.0.1:0"), flush=True)
    served.start()
    sys.stdin.read()


async def _serve_aio() -> None:
    async def stream(_requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    async def unary(request: bytes, _context: Any) -> bytes:
        return request

    served = grpc.aio.server()
    served.add_generic_rpc_handlers((_handler(stream, unary),))
    print(served.add_insecure_port("127.0.0.1:0"), flush=True)
    await served.start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await served.stop(0)


if __name__ == "__main__":
    if sys.argv[1] == "aio":
        asyncio.run(_serve_aio())
    else:
        _serve()
