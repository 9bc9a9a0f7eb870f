"""`make bench`: what an empty call, a host call and a load cost here, beside a bare grpcio stream echo, in one run.

Prints a table, and writes bench/results/thin_line.json. Medians; every sample of one row is taken in one process, rows in turn, three
rounds, so that a slow minute of the machine hits all of them.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
from bare_calls import sampled

import adyton

ROUNDS = 3
CALLS = 400
LOADS = 5
BODY = b"x" * 64

PROGRAM = """
import adyton.trusted as trusted

def empty(data: bytes) -> bytes:
    return data

def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()

@trusted.host_function
def on_client(data: bytes) -> bytes: ...

def host_call(data: bytes, times: int) -> bytes:
    for _ in range(times):
        data = on_client(data)
    return data
"""

ECHO = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from bare_calls import sampled
handler = grpc.stream_stream_rpc_method_handler(lambda requests, context: (each for each in requests))
server = grpc.server(ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", {"Echo": handler}),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


def on_client(data: bytes) -> bytes:
    return data


def bare_echo() -> list[float]:
    with subprocess.Popen(
        [sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            responses = channel.stream_stream("/Echo/Echo")(iter(requests.get, None))

            def call() -> None:
                requests.put(BODY)
                next(responses)

            samples = sampled(call, CALLS)
            requests.put(None)
        server.stdin.close()
    return samples


def adyton_calls(program: str, data: str, rows: dict[str, list[float]]) -> None:
    with adyton.load(program, allow_read=[data], allow_call=["on_client"], functions=[on_client]) as client:
        rows["empty call, 64 bytes"] += sampled(lambda: client.call("empty", BODY), CALLS)
        times = 20
        rows["host call of a function, 64 bytes"] += [
            each / times for each in sampled(lambda: client.call("host_call", BODY, times), CALLS // times)
        ]
        rows["open, read and close a client's file"] += sampled(lambda: client.call("read", data), CALLS // 4)


def loads(program: str, on: str, rows: dict[str, list[float]]) -> None:
    for _ in range(LOADS):
        start = time.perf_counter()
        with adyton.load(program) as client:
            client.call("empty", b"")
            rows["load to first answer, local (cold: proxy server and zygote started)"].append(
                time.perf_counter() - start
            )
        start = time.perf_counter()
        with adyton.load(program, on=on, allow_sim=True) as client:
            client.call("empty", b"")
            rows["load to first answer, on a running server (warm)"].append(time.perf_counter() - start)


def main() -> None:
    rows: dict[str, list[float]] = {
        "bare grpcio stream echo, 64 bytes": [],
        "empty call, 64 bytes": [],
        "host call of a function, 64 bytes": [],
        "open, read and close a client's file": [],
        "load to first answer, local (cold: proxy server and zygote started)": [],
        "load to first answer, on a running server (warm)": [],
    }
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory() as directory:
        program, data = Path(directory, "thin_line.py"), Path(directory, "data.txt")
        program.write_text(PROGRAM)
        data.write_bytes(b"y" * 4096)
        server = subprocess.Popen(
            [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            on = "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
            for _ in range(ROUNDS):
                rows["bare grpcio stream echo, 64 bytes"] += bare_echo()
                adyton_calls(str(program), str(data), rows)
            loads(str(program), on, rows)
        finally:
            server.terminate()
            server.wait()
    report(rows)


def report(rows: dict[str, list[float]]) -> None:
    echo = statistics.median(rows["bare grpcio stream echo, 64 bytes"])
    table = []
    for name, samples in rows.items():
        ordered = sorted(samples)
        p50, p95 = statistics.median(ordered), ordered[int(len(ordered) * 0.95)]
        table.append(
            {"name": name, "p50_us": p50 * 1e6, "p95_us": p95 * 1e6, "times_echo": p50 / echo, "samples": len(ordered)}
        )
    width = max(len(row["name"]) for row in table)
    print(f"{'':{width}}  {'p50':>10}  {'p95':>10}  {'÷ echo':>7}")
    for row in table:
        print(f"{row['name']:{width}}  {row['p50_us']:>7.0f} µs  {row['p95_us']:>7.0f} µs  {row['times_echo']:>7.2f}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "adyton": adyton.__version__,
    }
    (results / "thin_line.json").write_text(json.dumps({"machine": machine, "rows": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
