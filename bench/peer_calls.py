"""The peers for small calls: RPyC, Pyro5, and a Ray actor, each asked for what it was given, as it is used by itself.

Servers are processes of their own, as in bare_calls: `python bench/peer_calls.py rpyc|pyro`. Ray brings its own processes, so all of its
part runs apart: `python bench/peer_calls.py ray COUNT` prints the samples. Pyro5's serializer has no bytes: it gets a text.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings

import bare_calls

BODY = b"x" * 64
RAY_SECONDS = 120  # to start, to be called and to end

server = functools.partial(bare_calls.server, program=__file__)


def there(name: str) -> bool:
    """Whether that library is installed."""
    return importlib.util.find_spec(name) is not None


def rpyc_calls(port: int, count: int) -> list[float]:
    import rpyc

    connection = rpyc.connect_stream(rpyc.SocketStream.connect("127.0.0.1", port, nodelay=True))
    try:
        echo = connection.root.echo
        return bare_calls.sampled(lambda: echo(BODY), count)
    finally:
        connection.close()


def pyro_calls(port: int, count: int) -> list[float]:
    import Pyro5.api

    with Pyro5.api.Proxy(f"PYRO:echo@127.0.0.1:{port}") as echo:
        text = BODY.decode()
        return bare_calls.sampled(lambda: echo.echo(text), count)


def ray_calls(count: int) -> list[float]:
    """Samples; subprocess.SubprocessError with what went wrong."""
    command = [sys.executable, __file__, "ray", str(count)]
    output = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=RAY_SECONDS)
    samples: list[float] = json.loads(output.splitlines()[-1])
    return samples


def _serve_rpyc() -> None:
    import rpyc
    from rpyc.utils.server import ThreadedServer

    class Echo(rpyc.Service):
        def exposed_echo(self, data: bytes) -> bytes:
            return data

    served = ThreadedServer(Echo, hostname="127.0.0.1", port=0)
    served.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
    threading.Thread(target=served.start, daemon=True).start()
    while not served.active:  # it listens when it starts
        time.sleep(0.01)
    print(served.port, flush=True)
    sys.stdin.read()
    served.close()


def _serve_pyro() -> None:
    import Pyro5.api

    class Echo:
        @Pyro5.api.expose
        def echo(self, text: str) -> str:
            return text

    daemon = Pyro5.api.Daemon(host="127.0.0.1", port=0)
    daemon.register(Echo, "echo")
    print(daemon.sock.getsockname()[1], flush=True)
    threading.Thread(target=daemon.requestLoop, daemon=True).start()
    sys.stdin.read()
    os._exit(0)  # its loop ends with a next request only


def _run_ray(count: int) -> None:
    warnings.simplefilter("ignore")
    import ray

    class Echo:
        def echo(self, data: bytes) -> bytes:
            return data

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    actor = ray.remote(Echo).remote()
    samples = bare_calls.sampled(lambda: ray.get(actor.echo.remote(BODY)), count)
    ray.shutdown()
    print(json.dumps(samples))


if __name__ == "__main__":
    if sys.argv[1] == "ray":
        _run_ray(int(sys.argv[2]))
    else:
        {"rpyc": _serve_rpyc, "pyro": _serve_pyro}[sys.argv[1]]()
