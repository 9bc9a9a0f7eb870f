"""The quickstart with its server on another host: two network namespaces with a cable between them stand for the two.

    python examples/quickstart_remote/run.py "Asylo Rocks"

The client only dials out: nothing listens in its namespace. Needs root and the `ip` command; says so where it has not got them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER_ADDRESS, CLIENT_ADDRESS = "10.77.0.1", "10.77.0.2"
QUICKSTART = Path(__file__).parent.parent / "quickstart"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def two_hosts() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces that reach each other; the command prefixes that run something in each."""
    server, client = f"adyton-s{os.getpid()}", f"adyton-c{os.getpid()}"
    cable = (f"ady{os.getpid() % 100000}s", f"ady{os.getpid() % 100000}c")
    try:
        ip("netns", "add", server)
        ip("netns", "add", client)
        ip("link", "add", cable[0], "netns", server, "type", "veth", "peer", "name", cable[1], "netns", client)
        for host, end, address in ((server, cable[0], SERVER_ADDRESS), (client, cable[1], CLIENT_ADDRESS)):
            ip("-n", host, "address", "add", f"{address}/24", "dev", end)
            ip("-n", host, "link", "set", end, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield ["ip", "netns", "exec", server], ["ip", "netns", "exec", client]
    finally:
        for host in (server, client):
            subprocess.run(["ip", "netns", "delete", host], check=False, stderr=subprocess.DEVNULL)


def main(message: str) -> int:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print(
            "quickstart-remote makes network namespaces, which needs root and the ip command (Debian: iproute2).",
            file=sys.stderr,
        )
        print("By hand: `adyton serve` on one machine, `adyton run quickstart --on …` on the other.", file=sys.stderr)
        return 1
    adyton = [sys.executable, "-m", "adyton.cli"]
    with two_hosts() as (on_server, on_client):
        server = subprocess.Popen(
            [*on_server, *adyton, "serve", "--host", SERVER_ADDRESS, "--insecure"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            print(server.stdout.readline().strip(), file=sys.stderr)
            url = f"grpc://{SERVER_ADDRESS}:4321"
            driver = [*adyton, "run", "quickstart", "--on", url, "--allow-sim", "--", "--message", message]
            return subprocess.run([*on_client, *driver], cwd=QUICKSTART, check=False).returncode
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:]) or "Asylo Rocks"))
