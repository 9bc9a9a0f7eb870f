"""The guest's standard output and error on their way to the client, while that takes them; else they wait in their pipes.

A thread reads the pipes. Who writes to a pipe has it locked while the kernel copies what is written, and that may lie in a page of a file
that this supervisor has to serve: were it to read the pipe itself, it would wait for itself, and nothing could end either. The thread has a
table of descriptors of its own, see `own_table`.

    pipes ──► thread ──► what was taken ──► the loop ──► session         `then`: what was printed before goes out before
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from adyton.communicator.session import Session
from adyton.hostcall import abi
from adyton.runtime.process.supervisor.loop import Callback, Loop
from adyton.runtime.process.supervisor.own_table import Apart, keep_only

HIGH_WATER = 1 << 22  # bytes that wait in the session, above which nothing more is taken
MOST_TAKEN = 1 << 20  # bytes that the thread takes before the loop has passed them on
MOST_AWAITED = 1 << 21  # bytes of output that hold up what comes behind them; another thread may go on writing
AWAIT_SECONDS = 0.05  # after which who waits looks again, untold
# At the end: seconds for what was printed, and bytes. Of who is dead already, there is no more than two pipes hold (pipe-max-size), and the thread.
END_MOMENT, MOST_AT_END = 0.5, 1 << 22
_PIECE = 1 << 16

Stream = Literal["stdout", "stderr"]


class Output:
    """`streams`: the read ends of the guest's pipes; `guarded` wraps what the loop calls; `is_open` says whether the client can be told."""

    def __init__(
        self,
        streams: Mapping[Stream, int | None],
        loop: Loop,
        session: Session,
        is_open: Callable[[], bool],
        guarded: Callable[[Callback], Callback],
    ) -> None:
        self._pipes: dict[int, Stream] = {pipe: stream for stream, pipe in streams.items() if pipe is not None}
        self._loop = loop
        self._session = session
        self._is_open = is_open
        self._guarded = guarded
        self._awaiting: list[Callback] = []  # until what was printed before them is on its way
        self._awaited = 0  # bytes since they wait
        self._looks_later = False
        # The thread's: what it took, whether it may be taking something, and what wakes it and the loop.
        self._taken: deque[tuple[Stream, bytes]] = deque()
        self._taken_bytes = 0
        self._taking = False
        self._unread: set[int] = set()  # pipes
        self._lock = threading.Lock()
        if self._pipes:
            self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._resumed, self._resumer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._poller = select.poll()
            for pipe in self._pipes:
                os.set_blocking(pipe, False)
                self._poller.register(pipe, select.POLLIN)

    def start(self, *, apart: bool = True) -> None:
        """Begin to read, in a thread: before the process's filter is installed, which lets no more threads begin. PlatformError.

        `apart`: with a table of its own; it needs none where this process serves no files.
        """
        if self._pipes:
            told = Apart("the enclave's output cannot be read") if apart else None
            threading.Thread(target=self._run, args=(told,), name="adyton-output", daemon=True).start()
            if told is not None:
                told.wait()

    def begin(self) -> None:
        """Pass on from now on."""
        if self._pipes:
            self._loop.read(self._woken, self._guarded(self._arrived))

    def caught_up(self) -> None:
        """The client has taken something."""
        if self._taken and self._session.pending_bytes < HIGH_WATER:
            self._pass_on(HIGH_WATER)

    def then(self, step: Callback) -> None:
        """Do this when what was printed until now is on its way."""
        if self._taken:
            self._pass_on()
        if not self._awaiting and self._is_clear():
            if self._taken:
                self._pass_on()
            step()
        else:
            self._awaiting.append(step)
            self._look_later()

    def finish(self) -> None:
        """Pass on what was printed, at the end: until nobody has the pipes any more, for a moment, and so many bytes of it. And what waits for it."""
        deadline, passed = time.monotonic() + END_MOMENT, 0
        while self._pipes:
            over = self._are_over() and not self._taking
            passed += self._pass_on(most=MOST_AT_END - passed)
            if over or passed >= MOST_AT_END or (left := deadline - time.monotonic()) <= 0:
                break
            if select.select([self._woken], [], [], min(left, 0.01))[0]:
                os.read(self._woken, 4096)
        self._do_awaiting()

    def close(self) -> None:
        """Have the thread end, unless it waits for the guest."""
        if self._pipes:
            os.close(self._resumer)

    # -- the loop's side ----------------------------------------------------------------------------------------------

    def _arrived(self) -> None:
        os.read(self._woken, 4096)
        if self._awaiting:
            self._go_on()
        else:
            self._pass_on(HIGH_WATER)

    def _look_later(self) -> None:
        """What is in a pipe may come to be there no more, and nobody tells: a program can read it as well."""
        if self._awaiting and not self._looks_later:
            self._looks_later = True
            self._loop.later(AWAIT_SECONDS, self._guarded(self._look_again))

    def _look_again(self) -> None:
        self._looks_later = False
        if self._awaiting:
            self._go_on()
        self._look_later()

    def _go_on(self) -> None:
        self._awaited += self._pass_on()
        if self._awaited > MOST_AWAITED or self._is_clear():
            self._pass_on()
            self._awaited = 0
            self._do_awaiting()

    def _do_awaiting(self) -> None:
        steps, self._awaiting = self._awaiting, []
        for step in steps:
            step()

    def _is_clear(self) -> bool:
        """Whether nothing is in the pipes, nor in the thread's hands. Looking whether a pipe can be read takes no lock of it."""
        if not self._pipes:
            return True
        for _, events in self._poller.poll(0):
            if events & select.POLLIN:
                return False
        return not self._taking

    def _are_over(self) -> bool:
        """Whether nobody can write to the pipes, as far as anybody has them open, and all has been read."""
        ended = [
            pipe for pipe, events in self._poller.poll(0) if events & select.POLLHUP and not events & select.POLLIN
        ]
        return len(ended) == len(self._pipes)

    def _pass_on(self, high_water: int | None = None, most: int | None = None) -> int:
        """What was taken, while less than `high_water` bytes wait in the session, and until it is `most`; how many bytes that were."""
        passed = 0
        while (
            self._taken
            and (high_water is None or self._session.pending_bytes < high_water)
            and (most is None or passed < most)
        ):
            with self._lock:
                stream, data = self._taken.popleft()
                full, self._taken_bytes = self._taken_bytes >= MOST_TAKEN, self._taken_bytes - len(data)
                resumes = full and self._taken_bytes < MOST_TAKEN
            if resumes:
                os.write(self._resumer, b"\0")
            passed += len(data)
            if self._is_open():
                self._session.notify("output", msgspec.msgpack.encode(abi.Output(stream, data)))
        return passed

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self, told: Apart | None) -> None:
        try:
            if told is not None:
                keep_only([*self._pipes, self._waker, self._resumed])
            ready = select.epoll()
        except BaseException:
            if told is not None:
                told.tell(apart=False)
            raise
        if told is not None:
            told.tell(apart=True)
        # Told once of each change: an end, too, which is none when /proc/self/fd has the pipe opened anew.
        for descriptor in (*self._pipes, self._resumed):
            ready.register(descriptor, select.EPOLLIN | select.EPOLLET)
        while True:
            for descriptor, _ in ready.poll(0 if self._unread else None):
                if descriptor != self._resumed:
                    self._unread.add(descriptor)
                elif not self._resume():
                    return
            for pipe in list(self._unread):
                self._taking = True
                self._take_all(self._pipes[pipe], pipe)
                self._taking = False
                self._tell()
            while self._taken_bytes >= MOST_TAKEN:  # until the loop has passed something on
                select.select([self._resumed], [], [])
                if not self._resume():
                    return

    def _resume(self) -> bool:
        """False: at the end."""
        try:
            return bool(os.read(self._resumed, 4096))
        except BlockingIOError:
            return True

    def _take_all(self, stream: Stream, pipe: int) -> None:
        """What is in a pipe, or as much as there is room for: to tell of each piece would take longer than to take it."""
        for _ in range(MOST_TAKEN // _PIECE):
            if self._taken_bytes >= MOST_TAKEN:
                break
            if not self._take(stream, pipe):
                self._unread.discard(pipe)
                break

    def _take(self, stream: Stream, pipe: int) -> bool:
        """Whether there may be more."""
        try:
            data = os.read(pipe, _PIECE)
        except OSError:
            return False
        if data:
            with self._lock:
                self._taken.append((stream, data))
                self._taken_bytes += len(data)
        return bool(data)

    def _tell(self) -> None:
        try:
            os.write(self._waker, b"\0")
        except BlockingIOError:
            pass  # it is told already
