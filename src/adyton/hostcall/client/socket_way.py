"""What the client's sockets need of those around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.hostcall.client.policy import Denied

Result = net.Result | abi.Failed

# Under which name a request is counted and logged
COUNTED_AS: dict[type[Any], str] = {
    net.Resolve: "resolve",
    net.Bind: "bind",
    net.Connect: "connect",
    net.Reach: "sendto",
    net.Listen: "listen",
    net.Join: "setsockopt",
    net.GetOption: "getsockopt",
}


class Way(Protocol):
    """What sockets need of the connection to the enclave and of the account of its host calls. All may be called from any thread."""

    def send(self, *messages: net.FromClient) -> None: ...
    def reply(self, call: int, result: Result) -> None: ...
    def bytes_pending(self) -> int: ...
    def submit(self, step: Callable[[], None]) -> None:
        """Run a step that may wait, in another thread."""

    def note(self, name: str, outcome: str, started: float) -> None:
        """A request has been answered."""

    def denied(self, name: str, denied: Denied) -> None: ...
    def failed(self, error: Exception) -> None:
        """Sockets cannot go on, by a defect of this program: nothing that the enclave asks of them is answered any more."""
