"""Whether a request for a socket may be carried out: asked of the policy in a thread that may wait for a resolver.

A socket can be closed by its enclave before its request is decided: then it is not opened.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.hostcall.client.net_policy import NetPolicy
from adyton.hostcall.client.policy import Denied

Opening = net.Bind | net.Connect | net.Reach | net.Listen | net.Join


class Decisions:
    """Thread-safe. `begin` comes before a request is judged, `end` when it is about to be carried out, or is not."""

    def __init__(self, policy: NetPolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._undecided: Counter[int] = Counter()  # requests for a number that the policy looks at
        self._given_up: set[int] = set()  # of those, numbers that were closed meanwhile

    def begin(self, number: int) -> None:
        with self._lock:
            self._undecided[number] += 1

    def end(self, number: int) -> bool:
        """Whether the enclave still wants the socket."""
        with self._lock:
            self._undecided[number] -= 1
            wanted = number not in self._given_up
            if not self._undecided[number]:
                del self._undecided[number]
                self._given_up.discard(number)
            return wanted

    def give_up(self, number: int) -> None:
        """The enclave has closed a socket that is not open (yet)."""
        with self._lock:
            if number in self._undecided:
                self._given_up.add(number)

    def judge(self, request: Opening) -> Denied | abi.Failed | None:
        """None if the policy allows it."""
        if isinstance(request, net.Bind | net.Listen | net.Join):
            self._policy.look_up_listeners()
        try:
            match request:
                case net.Connect(_, _, peer) | net.Reach(_, _, peer):
                    return self._policy.connect(peer.host, peer.port)
                case net.Bind(_, _, local) if local.port == 0:
                    return None if self._policy.binds_any(local.host) else self._policy.listen(local.host, 0)
                case net.Bind(_, _, local):
                    return self._policy.listen(local.host, local.port)
                case _:  # where it is bound is known when it is
                    return None
        except (ValueError, OSError):  # no address
            return abi.Failed("EINVAL")

    def resolve(self, host: str) -> net.Addresses | abi.Failed:
        """What a name leads to."""
        try:
            hosts = self._policy.resolve(host)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)):
                return net.Addresses([])
            return abi.Failed("EAGAIN")
        except (OSError, ValueError):  # a name that cannot be one
            return net.Addresses([])
        return net.Addresses([net.Found(each, _source(each)) for each in hosts])


def _source(host: str) -> str | None:
    """The machine's own address towards another; None: there is no way. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 9))  # any port: it only asks for the route
            return str(sock.getsockname()[0]).partition("%")[0]
    except OSError:
        return None
