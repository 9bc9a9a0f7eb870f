"""Networks of a test's own: a client behind NAT, a router, and a server that has no way back to the client's network; or two hosts.

    client 192.168.77.2 ── 192.168.77.1 router 203.0.113.1 ── 203.0.113.2 server
    server 10.78.0.1, fd78::1 ── 10.78.0.2, fd78::2 client

Each is a network namespace, with nothing but its loopback and its cables. Needs root, `ip` and, for NAT, `nft`; everything is gone at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

CLIENT, INSIDE = "192.168.77.2", "192.168.77.1"  # the router's side of the client's network
SERVER, OUTSIDE = "203.0.113.2", "203.0.113.1"  # RFC 5737
_MASQUERADE = """
table ip nat {
    chain out {
        type nat hook postrouting priority srcnat;
        oifname "outside" masquerade
    }
}
table ip filter {
    chain through {
        type filter hook forward priority filter; policy drop;
        iifname "inside" tcp dport 9 drop
        iifname "inside" accept
        iifname "outside" ct state established,related accept
    }
}
"""


def missing(*commands: str) -> str:
    """Why no such network can be made here; "" if it can. `commands`: that it needs; default: those of a NAT."""
    if os.geteuid() != 0:
        return "NOT ROOT: network namespaces cannot be made"
    gone = [command for command in commands or ("ip", "nft") if shutil.which(command) is None]
    return f"NO {' AND NO '.join(gone)} HERE (Debian: iproute2, nftables): no NAT can be made" if gone else ""


@dataclass(frozen=True)
class Host:
    """A network namespace, by its name."""

    name: str

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs a command in it."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def python(self, *arguments: str) -> list[str]:
        """… and that runs this Python in it."""
        return self.command(sys.executable, *arguments)

    def processes(self) -> list[int]:
        """Of which it is the network."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in listed.stdout.split()]

    def ip(self, *arguments: str) -> None:
        """Set up something of it."""
        _run("ip", "-n", self.name, *arguments)


@dataclass(frozen=True)
class Network:
    client: Host
    router: Host
    server: Host


@contextmanager
def behind_nat() -> Iterator[Network]:
    """The first network of this module's head, and its end."""
    with ExitStack() as stack:
        network = Network(*(stack.enter_context(_host(role)) for role in ("client", "router", "server")))
        _cable(network.client, "eth0", CLIENT, network.router, "inside", INSIDE)
        _cable(network.router, "outside", OUTSIDE, network.server, "eth0", SERVER)
        network.client.ip("route", "add", "default", "via", INSIDE)
        _run(*network.router.command("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
        _run(*network.router.command("nft", "-f", "-"), said=_MASQUERADE)
        yield network


@contextmanager
def with_a_middle() -> Iterator[Network]:
    """The first, where the router passes nothing on by itself: who is there does, or not."""
    with ExitStack() as stack:
        network = Network(*(stack.enter_context(_host(role)) for role in ("client", "middle", "server")))
        _cable(network.client, "eth0", CLIENT, network.router, "inside", INSIDE)
        _cable(network.router, "outside", OUTSIDE, network.server, "eth0", SERVER)
        yield network


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """The second, (server, client), and its end."""
    with _host("server") as server, _host("client") as client:
        _cable(server, "eth0", "10.78.0.1", client, "eth0", "10.78.0.2")
        for number, host in enumerate((server, client), 1):
            host.ip("address", "add", f"fd78::{number}/64", "dev", "eth0", "nodad")
        yield server, client


@contextmanager
def _host(role: str) -> Iterator[Host]:
    host = Host(f"adyton-{os.getpid()}-{secrets.token_hex(3)}-{role}")
    _run("ip", "netns", "add", host.name)
    try:
        host.ip("link", "set", "lo", "up")
        yield host
    finally:
        for pid in host.processes():  # a test that failed has left them; a process would keep its namespace
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _run("ip", "netns", "delete", host.name)


def _cable(one: Host, end: str, address: str, other: Host, other_end: str, other_address: str) -> None:
    ends = (end, "netns", one.name, "type", "veth", "peer", "name", other_end, "netns", other.name)
    _run("ip", "link", "add", *ends)
    for host, device, own in ((one, end, address), (other, other_end, other_address)):
        host.ip("address", "add", f"{own}/24", "dev", device)
        host.ip("link", "set", device, "up")


def _run(*command: str, said: str = "") -> None:
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
