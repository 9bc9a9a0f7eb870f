"""The guest's file requests on their way: from /dev/fuse to the file server, what that asks of the client, and the answers back.

/dev/fuse ──► FileServer ──► session (pair 0) ──► client ──► check ──► FileServer ──► /dev/fuse
"""

from __future__ import annotations

from collections.abc import Callable

from adyton.communicator.messages import ORDER, decode
from adyton.communicator.session import Body, Session
from adyton.hostcall import abi
from adyton.hostcall.check import check
from adyton.hostcall.encoding import encode, restored
from adyton.hostcall.events import Happened
from adyton.runtime.process.supervisor.calls import Ask
from adyton.runtime.process.supervisor.files import Effect, FileServer
from adyton.runtime.process.supervisor.fuse_device import FuseDevice
from adyton.runtime.process.supervisor.loop import Callback, Loop

HOLD_SECONDS = 0.02  # that what a program writes waits for more of it


class FileRequests:
    """See the module. `descriptor`: of /dev/fuse, its own from now on; `guarded`: what a callback of the loop is wrapped in."""

    def __init__(
        self,
        files: FileServer,
        descriptor: int,
        session: Session,
        loop: Loop,
        guarded: Callable[[Callback], Callback],
    ) -> None:
        self.files = files
        self._session = session
        self._loop = loop
        self._receives = guarded(self._receive)
        self._pushes = guarded(self.push)
        self._loses_patience = guarded(self._lose_patience)
        self.fuse = FuseDevice(descriptor, lambda: loop.later(0, self._receives))
        self.tell_events: Callable[[], None] = lambda: (
            None
        )  # what has happened to files, before the calls end that did it: see Emulation
        self._waiting: dict[int, tuple[int, abi.Request]] = {}  # host call → ticket
        self._ordered = 0  # host calls that were numbered
        self._due = False  # in a moment, what was written
        self._impatient = False  # in a while, of what was interrupted

    def begin(self) -> None:
        """Serve from now on."""
        self._loop.read(self.fuse.descriptor, self._receives)

    def close(self) -> None:
        """Abort what the guest waits for, so that it can be killed; and so can this process, which may have got a file that is served here (`fetching`)."""
        if self.fuse.descriptor >= 0:
            self._loop.forget(self.fuse.descriptor)
            self.fuse.close()

    def _receive(self) -> None:
        for request in self.fuse.requests():
            self.do(self.files.receive(request))
        if self.fuse.is_unmounted:  # the guest is ending
            self._loop.forget(self.fuse.descriptor)
        elif self.fuse.has_taken:
            self._loop.later(0, self._receives)

    def push(self) -> None:
        """Send what programs wrote, and what waits for more of it."""
        self._due = False
        self.do(self.files.push())

    def _lose_patience(self) -> None:
        self._impatient = False
        self.do(self.files.lose_patience())

    def do(self, effects: list[Effect]) -> None:
        """Carry out what the file server wants."""
        self.tell_events()
        for effect in effects:
            if isinstance(effect, Ask):
                body = encode(effect.request)
                if effect.ordered:
                    body = (ORDER.pack(self._ordered), *(body if isinstance(body, tuple) else (body,)))
                    self._ordered += 1
                call = self._session.call(0, "order" if effect.ordered else "host", body)
                self._waiting[call] = effect.ticket, effect.request
            else:
                self.fuse.write(effect.parts)
        self.files.told()
        if self.files.holds and not self._due:
            self._due = True
            self._loop.later(HOLD_SECONDS, self._pushes)
        if not self._impatient and (patience := self.files.patience) is not None:
            self._impatient = True
            self._loop.later(patience, self._loses_patience)

    # -- the client ---------------------------------------------------------------------------------------------------

    def replied(self, call: int, body: Body, *, ok: bool) -> None:
        """The answer to a host call about files."""
        ticket, request = self._waiting.pop(call)
        result = check(request, body) if ok else abi.Failed("EIO")
        self.do(self.files.resume(ticket, result))

    def changed(self, body: Body) -> None:
        """What others did to files whose attributes or names are believed here."""
        self.do(self.files.changed(restored(decode(body, abi.Changed), body)))

    def happened(self, body: Body) -> None:
        """What others did where the guest's programs watch."""
        self.do(self.files.happened(restored(decode(body, Happened), body)))
