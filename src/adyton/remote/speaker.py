"""What is said to an enclave: calls, answers to its own, and news. Of any thread, each under the session's lock, and behind what the enclave has
to know first: what others did to files comes before what is said after it.

    threads, tasks ──► made, make_all ──┐
    host calls     ──► answer ──────────┼──► news of files, the time if it is due ──► session ──► line
    sockets        ──► notify, reply_to ┘
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from adyton.communicator import session as communicator
from adyton.communicator.messages import EnterRequest, encode
from adyton.errors import AdytonError, ClosedError
from adyton.hostcall import abi
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.encoding import whole
from adyton.hostcall.events import MAX_HAPPENED, Happened
from adyton.proto.values import BULK
from adyton.remote import steps
from adyton.remote.client_pairs import Pair, reply, settle
from adyton.remote.deadlines import Deadline
from adyton.remote.line import Line
from adyton.remote.tally import Tally
from adyton.remote.time_teller import TimeTeller
from adyton.remote.trace import Trace

if TYPE_CHECKING:
    from adyton.remote.unpaired import UnpairedCall
    from adyton.telemetry.calls import Telemetry

WAITED_FOR = {"load": "the program's initialize", "run": "the program's run", "finalize": "the program's finalize"}


class Speaker:
    """See the module. `error`, `closing`: set by the owner, under the lock, when nothing can be said any more, and why."""

    def __init__(
        self,
        session: communicator.Session,
        lock: threading.Lock,
        line: Line,
        pairs: dict[int, Pair],
        executor: Executor,
        time: TimeTeller,
        tally: Tally,
        trace: Trace | None,
        telemetry: Telemetry | None,
    ) -> None:
        """`lock`: the session's; `pairs`: by number."""
        self._session = session
        self._lock = lock
        self._line = line
        self._wake = line.wake
        self._pairs = pairs
        self._executor = executor
        self._time = time
        self._tally = tally
        self._trace = trace
        self._send_call = session.call
        if telemetry is not None:
            self._send_call = functools.partial(telemetry.send, session)
        self.error: AdytonError | None = None
        self.closing = False

    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self.error is None and not self.closing

    def _check_open(self) -> None:
        if self.error is not None:
            raise type(self.error)(*self.error.args)
        if self.closing:
            raise ClosedError("the enclave is being destroyed: load it again")

    # -- calls --------------------------------------------------------------------------------------------------------

    def made(
        self,
        pair: int,
        method: str,
        body: bytes | EnterRequest,
        deadline: Deadline,
        began: Callable[[int], None] = lambda _: None,
        bulk: Sequence[bytes] = (),
    ) -> int:
        """Make a call; its number, which `began` is told before anything can come of it. DeadlineError: no time is left for it."""
        encoded, bulk = _encoded(method, body, deadline, bulk)
        with self._lock:
            self._check_open()
            self._tell_changes()
            self.tell_time()
            call = self._send_call(pair, method, encoded, bulk)
            if method in ("enter", "stream", "run"):
                self._tally.entered()
            began(call)
            if self._trace is not None:
                self._trace.entered(call)
        self._wake()
        return call

    def make_all(
        self,
        calls: Sequence[UnpairedCall],
        note: Callable[[Iterable[tuple[UnpairedCall, int]]], list[UnpairedCall]],
    ) -> None:
        """Make calls of tasks, to be sent at the next `wake`; each has its number then, or has failed. `note`: see UnpairedCalls.made."""
        made: list[tuple[UnpairedCall, int]] = []
        failed: list[tuple[UnpairedCall, Exception]] = []
        with self._lock:
            if self.is_open():
                self._tell_changes()
                self.tell_time()
            for call in calls:
                try:
                    self._check_open()
                    body, bulk = _encoded("enter", call.request, call.deadline, call.bulk)
                    if call.context is None:
                        number = self._send_call(0, "enter", body, bulk)
                    else:
                        number = call.context.run(self._send_call, 0, "enter", body, bulk)
                except Exception as error:  # noqa: BLE001 - for who waits
                    failed.append((call, error))
                    continue
                self._tally.entered()
                if self._trace is not None:
                    self._trace.entered(number)
                made.append((call, number))
            over = note(made)
        for call in over:  # in this moment
            call.account(cancels=True)
        for call, why in failed:
            call.failed(why)

    def wake(self) -> None:
        """Calls were made that are to be sent."""
        self._wake()

    def cancel(self, call: int) -> None:
        """Nobody waits for a call without a pair any more."""
        with self._lock:
            if self.error is None:
                self._session.cancel(call)
        self._wake()

    # -- answers ------------------------------------------------------------------------------------------------------

    def answer(
        self, called: communicator.Called, *, ok: bool, body: communicator.Parts, bulk: tuple[bytes, ...] = ()
    ) -> None:
        """Answer a host call, once that is in order."""

        def step() -> None:
            with self._lock:
                self._tell_changes()
                pair = self._pairs.get(called.pair)
                if pair is not None:
                    pair.serving.discard(called.call)
                if self.error is not None:
                    return
                if pair is not None and pair.abandoned:
                    settle(
                        self._session, pair.number, pair
                    )  # not before a call inside of it, which the enclave may still run
                elif not called.pair or self._session.owed_on(called.pair) == called.call:
                    # Else it was settled, of a stream that nobody has any more, say.
                    reply(self._session, called.call, body, bulk, ok=ok)
            self._wake()

        steps.take(step)

    def reply_to(self, call: int, body: bytes) -> None:
        """Answer a host call that something in the enclave waited for."""
        with self._lock:
            self._tell_changes()
            if self.error is None:
                self._session.reply(call, ok=True, body=body)
        self._wake()

    # -- news ---------------------------------------------------------------------------------------------------------

    def notify(self, method: str, bodies: Iterable[communicator.Parts]) -> None:
        """Tell the enclave what has no answer."""
        with self._lock:
            if self.error is not None:
                return
            self._tell_changes()
            for body in bodies:
                self._session.notify(method, body)
        self._wake()

    def bytes_pending(self) -> int:
        """How much is on its way out, and not sent yet."""
        return self._session.pending_bytes

    def tell_time(self) -> None:
        """Under the lock: say what time it is, if the enclave cannot know."""
        if self._time.due():
            self._session.notify("time", self._time.told().to_bytes(8, "little", signed=True))

    def _tell_changes(self) -> None:
        """Under the lock: what others did to files comes before what is said after it."""
        if self._line.begun and self.is_open():
            changes = self._executor.take_changes()
            for start in range(0, len(changes), abi.MAX_CHANGED):
                self._session.notify("changed", whole(abi.Changed(changes[start : start + abi.MAX_CHANGED])))
            events = self._executor.take_events()
            for start in range(0, len(events), MAX_HAPPENED):
                happened = Happened(events[start : start + MAX_HAPPENED])
                self._session.notify("happened", whole(happened))

    def files_changed(self) -> None:
        """From the executor's thread."""
        with self._lock:
            self._tell_changes()
        self._line.wake_if_due()


def _encoded(
    method: str, body: bytes | EnterRequest, deadline: Deadline, bulk: Sequence[bytes]
) -> tuple[bytes, Sequence[bytes]]:
    """What is to be said of a call now, and what beside it. DeadlineError."""
    if deadline.over:
        raise deadline.error(WAITED_FOR.get(method, "the entry"))
    if isinstance(body, EnterRequest):
        if len(body.arguments) >= BULK:
            bulk, body = (body.arguments, *bulk), msgspec.structs.replace(body, arguments=b"")
        body = encode(msgspec.structs.replace(body, left=deadline.left()))
    return body, bulk
