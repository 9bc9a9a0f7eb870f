"""The client, as stand-ins see it: requests and messages of the ABI's sockets, on the session of the enclave."""

from __future__ import annotations

from adyton.communicator.session import Session
from adyton.errors import AdytonError
from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.sockets.pump import Done
from adyton.runtime.process.supervisor.waits import Waits


class SocketClient:
    """See the module; `replied` is given the session's replies."""

    def __init__(self, session: Session, waits: Waits) -> None:
        self._session = session
        self._waits = waits
        self._waiting: dict[int, tuple[net.Request, Done]] = {}

    def request(self, request: net.Request, done: Done) -> None:
        """Ask; `done` is given the checked answer, or ENOBUFS at once when too much waits already."""
        try:
            call = self._session.call(0, "net", net.encode(request))
        except AdytonError:
            done(abi.Failed("ENOBUFS"))
            return
        self._waiting[call] = (request, done)
        self._waits.began(("net", call), type(request).__name__)

    def replied(self, call: int, ok: bool, body: bytes | bytearray) -> bool:
        """Whether the reply was one to a request of ours."""
        waiting = self._waiting.pop(call, None)
        if waiting is None:
            return False
        request, done = waiting
        self._waits.ended(("net", call))
        done(net.check(request, body) if ok else abi.Failed("EIO"))
        return True

    def tell(self, message: net.FromEnclave) -> None:
        self._session.notify("net", net.parts(message))

    def bytes_pending(self) -> int:
        return self._session.pending_bytes
