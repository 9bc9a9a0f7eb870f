"""The guest's calls of registered functions: from a thread's link to the client, and the answer back. What is large passes as it comes (`bulk`)."""

from __future__ import annotations

import msgspec

from adyton.communicator.messages import Raised, encode
from adyton.communicator.session import Body, ReplyBegun, Session
from adyton.errors import RemoteProtocolError, ResourceLimitError
from adyton.hostcall import abi
from adyton.runtime.process.guest import link as protocol
from adyton.runtime.process.supervisor.bulk import Bulk
from adyton.runtime.process.supervisor.guest_process import Link
from adyton.runtime.process.supervisor.spans import Spans
from adyton.runtime.process.supervisor.waits import Waits


class FunctionCalls:
    """See the module. `waits`, `spans`: told when a thread begins to wait, and when it has its answer."""

    def __init__(self, session: Session, bulk: Bulk, waits: Waits, spans: Spans) -> None:
        self._session = session
        self._bulk = bulk
        self._waits = waits
        self._spans = spans
        self._waiting: dict[int, Link] = {}  # by our calls

    def called(self, link: Link, message: protocol.HostCall) -> None:
        """The guest calls. RemoteProtocolError: not its turn."""
        if (link.stack and link.stack[-1][0] != "enter") or (not link.stack and link.pair):
            raise RemoteProtocolError("its guest made a host call out of turn")
        self._spans.asked(link.entry or message.call, self._session.next_call, message.span)
        body = msgspec.msgpack.encode(abi.Call(message.name, message.arguments, message.left))
        method, call = "host" if link.pair else "function", 0
        try:
            if message.sizes:
                call = self._session.begin_call(link.pair, method, body, *message.sizes)
            else:
                call = self._session.call(link.pair, method, body)
        except ResourceLimitError as error:  # too deep, too large, or too many: the program's own trouble
            self._spans.answered(self._session.next_call)
            raised = Raised("raised", "RecursionError", error.message, "RecursionError")
            link.give(protocol.HostReturn(ok=False, body=encode(raised)))
        else:
            self._waits.began(link.sock, "Call")
            self._waiting[call] = link
            link.stack.append(("host", call))
        if message.sizes:
            self._bulk.calls(link, call, sum(message.sizes))

    def made(self, call: int) -> bool:
        """Whether that call of ours is one of these, and not answered."""
        return call in self._waiting

    def reply_begun(self, event: ReplyBegun) -> None:
        """A large answer comes."""
        link = self._waiting[event.call]
        self._bulk.replied(event.call, link)
        link.give(protocol.HostReturn(event.ok, b"", event.sizes))

    def over(self, call: int) -> Link:
        """It is answered, but for what its thread is told."""
        link = self._waiting.pop(call)
        self._waits.ended(link.sock)
        kind, expected = link.stack.pop()
        assert (kind, expected) == ("host", call), (kind, expected, call)
        self._spans.answered(call)
        return link

    def replied(self, call: int, body: Body, *, ok: bool) -> bool:
        """The answer to a call of ours; False: it is none of these."""
        if not self.made(call):
            return False
        self.over(call).give(protocol.HostReturn(ok, body))  # type: ignore[arg-type]  # a bytearray is encoded alike
        return True
