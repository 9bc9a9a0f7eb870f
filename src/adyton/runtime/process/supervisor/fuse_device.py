"""/dev/fuse: the kernel's requests out of it, and answers into it.

While the thread that serves them looks at the guest, and waits (see `looks`), another one takes requests in its place, and keeps them for it,
in their order. Two kinds it answers: the closes (FLUSH) of an execve, which tells nobody what came of them: those that it takes, which are
served afterwards as all others are, and those that are being served; what they are answered then nobody waits for. And a page that the look
itself wants (a READ of no process of the guest's).
Source: linux/fuse.h; proc_pid_statm(5), which takes no lock that an execve holds.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from adyton.runtime.process.supervisor import fuse_abi, fuse_answers

AT_ONCE = 64  # requests that are served before anything else
LOOKS = 8  # for the next one, before it is waited for
READ_SIZE = (1 << 20) + (1 << 13)  # a write's data and its headers
MOST_TAKEN = 1 << 26  # bytes of requests that are kept, above which no more are taken
WAIT_SECONDS = 0.01
_OPCODE, _FLUSH = slice(4, 5), bytes([fuse_abi.Opcode.FLUSH])  # the lowest byte: struct fuse_in_header
_UNIQUE = struct.Struct("<8xQ")  # of an answer


class FuseDevice:
    """`descriptor` is its own from now on. `proc`: the guest's; `taken`: is called, by the other thread, once there is something that it took."""

    def __init__(self, descriptor: int, taken: Callable[[], None], proc: str = ".") -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._tell = taken
        self._proc = proc
        self._taken: deque[bytes] = deque()
        self._taken_bytes = 0
        self._closes: dict[int, int] = {}  # that are being served: the unique of each, and who waits
        # To make room for the largest each time takes longer. No memory until much comes.
        self._room = memoryview(mmap.mmap(-1, READ_SIZE))
        self.is_unmounted = False
        self._others_room = memoryview(mmap.mmap(-1, READ_SIZE))

    @property
    def has_taken(self) -> bool:
        """Whether there are requests that were taken, of which the descriptor does not tell."""
        return bool(self._taken)

    def requests(self) -> Iterator[bytes]:
        """Those that there are, but no more than AT_ONCE. Afterwards see `is_unmounted` and `has_taken`."""
        patience = 0
        for _ in range(AT_ONCE):
            try:
                request = self._read()
            except BlockingIOError:
                if not patience:
                    return
                patience -= 1
                os.sched_yield()
                continue
            except FileNotFoundError:
                continue  # the request was interrupted before it was read
            except OSError:
                self.is_unmounted = True
                return
            if request[_OPCODE] == _FLUSH:
                self._note_close(request)
            yield request
            patience = LOOKS  # who has one answer often asks for the next: to sleep and be woken takes longer

    def _note_close(self, request: bytes) -> None:
        with suppress(fuse_abi.MalformedRequestError):
            header, _ = fuse_abi.decode(request)
            self._closes[header.unique] = header.pid

    def _read(self) -> bytes:
        if self._taken:
            request = self._taken.popleft()
            self._taken_bytes -= len(request)
            return request
        if self.descriptor < 0:
            raise BlockingIOError
        size = os.readv(self.descriptor, [self._room])
        return bytes(self._room[:size])

    def write(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """An answer, or what the kernel did not ask for, in one piece. That nobody waits for it any more is no error."""
        if self._closes:
            self._closes.pop(_UNIQUE.unpack_from(parts[0])[0], None)
        if self.descriptor >= 0:
            with suppress(FileNotFoundError):
                os.writev(self.descriptor, parts)

    def close(self) -> None:
        """Abort what anybody waits for, for good: nobody else has it."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    # -- the other thread, while the one that reads does not -----------------------------------------------------------------

    def wait(self) -> None:
        """For a request, or a moment."""
        if self._taken_bytes >= MOST_TAKEN:
            time.sleep(WAIT_SECONDS)
        else:
            with suppress(OSError, ValueError):  # closed meanwhile
                select.select([self.descriptor], [], [], WAIT_SECONDS)

    def serve_looks(self) -> None:
        """Take what there is, and answer what the look may be waiting for."""
        before = len(self._taken)
        for unique, process in list(self._closes.items()):
            self._answer_close(unique, process)
        with suppress(OSError):
            while self._taken_bytes < MOST_TAKEN:
                with suppress(FileNotFoundError):
                    size = os.readv(self.descriptor, [self._others_room])
                    self._take(bytes(self._others_room[:size]))
        if self._taken and not before:
            self._tell()

    def _take(self, message: bytes) -> None:
        with suppress(fuse_abi.MalformedRequestError):
            header, _ = fuse_abi.decode(message)
            if header.opcode == fuse_abi.Opcode.READ and not header.pid:
                self.write([fuse_answers.failure(header.unique, errno.EIO)])
                return
            if header.opcode == fuse_abi.Opcode.FLUSH:
                self._answer_close(header.unique, header.pid)
        self._taken.append(message)
        self._taken_bytes += len(message)

    def _answer_close(self, unique: int, process: int) -> None:
        if self._has_no_program(process):
            self.write([fuse_answers.success(unique)])

    def _has_no_program(self, process: int) -> bool:
        """Whether a process of the guest has memory, but no program text: the old one's is gone, and the new one's not there yet."""
        try:
            with open(f"{self._proc}/{process}/statm", "rb") as file:
                size, _resident, _shared, text, *_ = file.read().split()
        except (OSError, ValueError):
            return False
        return text == b"0" != size
