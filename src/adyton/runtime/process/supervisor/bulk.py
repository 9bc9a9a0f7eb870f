"""Large messages between client and guest, passed on as they come: nothing here ever has one whole.

    session ──► Begun, Piece … ──► Enter, and the bytes behind it ──► a thread's link, which may be slow: then less comes
    session ◄── begin_reply, go_on … ◄── Return, and the bytes behind it ◄── a thread's link, read when the client has taken what came before

A call of a registered function is the same the other way round: begin_call ◄── HostCall; ReplyBegun ──► HostReturn.

What a link still has to give waits in the guest: while the answer itself has to wait (`begin`), and while much is on its way to the client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from adyton.communicator.session import Session

if TYPE_CHECKING:
    from adyton.runtime.process.supervisor.guest_process import Link

MOST = 1 << 21  # bytes that wait here for the client, or for a link, and no more is read
FEW = 1 << 20  # bytes of them until more is


Kind = Literal["call", "reply"]


class Passed:
    """A call, or a result, that comes over a link. `left`: bytes of it; `held`: those that came before it was begun."""

    def __init__(self, kind: Kind, link: Link, call: int, size: int) -> None:
        self.kind = kind
        self.link = link
        self.call = call
        self.size = self.left = size
        self.encoded = False
        self.held: list[memoryview] = []
        self.begun = kind == "call"
        self.refused = False


class Bulk:
    """See the module. `listen` says whether a link is read; `slow_down` is called when more comes from the client than a link takes."""

    def __init__(self, session: Session, listen: Callable[[Link, bool], None], slow_down: Callable[[], None]) -> None:
        self._session = session
        self._listen = listen
        self._slow_down = slow_down
        self._coming: dict[tuple[Kind, int], Link | None] = {}  # from the client; None: refused
        self._answers: dict[int, Passed] = {}  # that are not begun
        self._waiting: list[Link] = []  # until the client has taken some

    def enters(self, call: int, link: Link | None) -> None:
        """A large call was begun on that link; None: it is to be refused when all of it has come."""
        self._coming["call", call] = link

    def replied(self, call: int, link: Link) -> None:
        """A large reply to our call was begun, which is for that link."""
        self._coming["reply", call] = link

    def piece(self, kind: Kind, call: int, data: memoryview, *, last: bool) -> bool:
        """Of what the client sends. True: now it is to be refused."""
        link = self._coming.pop((kind, call)) if last else self._coming[kind, call]
        if link is not None:
            link.give(data)
            if len(link.outbox) > MOST:
                self._slow_down()
        return last and link is None

    def returns(self, link: Link, call: int, size: int, *, encoded: bool) -> None:
        """The guest's result of so many bytes follows, which waits for `begin`. `encoded`: it is a body, and no bulk."""
        answer = link.passed = self._answers[call] = Passed("reply", link, call, size)
        answer.encoded = encoded
        self._listen(link, False)

    def calls(self, link: Link, call: int, size: int) -> None:
        """So many bytes of our call follow; 0: of one that was refused, so that they are dropped."""
        link.passed = Passed("call", link, call, size)
        link.passed.refused = not call

    def begin(self, call: int) -> None:
        """Its caller may be told now. ResourceLimitError: it is too large; what comes of it is dropped."""
        answer = self._answers.pop(call)
        answer.begun = answer.refused = True
        self._listen(answer.link, True)
        held, answer.held = answer.held, []
        self._session.begin_reply(call, answer.size, bulk=not answer.encoded)
        answer.refused = False
        for data in held:
            self._session.go_on(call, data)

    def came(self, link: Link, data: memoryview) -> None:
        """Bytes of what the guest sends."""
        passed = link.passed
        assert passed is not None
        passed.left -= len(data)
        if not passed.left:
            link.passed = None
        if not passed.begun:
            passed.held.append(data)
        elif not passed.refused:
            self._session.go_on(passed.call, data, passed.kind)
            if passed.left and self._session.pending_bytes > MOST:
                self._listen(link, False)
                self._waiting.append(link)

    def caught_up(self) -> None:
        """The client may have taken some."""
        if self._waiting and self._session.pending_bytes <= FEW:
            waiting, self._waiting = self._waiting, []
            for link in waiting:
                self._listen(link, True)
