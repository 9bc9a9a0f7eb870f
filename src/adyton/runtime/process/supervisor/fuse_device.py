"""/dev/fuse: the kernel's requests out of it, and answers into it.

While the thread that serves them looks at the guest, and waits (see `looks`), another one takes requests in its place, and keeps them for it,
in their order. Two kinds it answers: what an execve waits for, and a page that the look itself wants (a READ of no process of the guest's).
An execve closes files (FLUSH), and before that has the kernel write the pages of mapped ones (WRITE, of nobody's); it tells nobody what came of
either. What is answered so is served as all else is, before or afterwards; what it is answered then nobody waits for. (A page that cannot be
written then is told of by the cache, so not of a strict file.)
Source: linux/fuse.h; fs/fuse/file.c: fuse_vma_close, fuse_flush; proc_pid_statm(5), which takes no lock that an execve holds.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from adyton.runtime.process.supervisor import fuse_abi, fuse_answers

AT_ONCE = 64  # requests that are served before anything else
LOOKS = 8  # for the next one, before it is waited for
READ_SIZE = (1 << 20) + (1 << 13)  # a write's data and its headers
MOST_TAKEN = 1 << 26  # bytes of requests that are kept, above which no more are taken
WAIT_SECONDS = 0.01
_OPCODE = slice(4, 5)  # the lowest byte: struct fuse_in_header
_FLUSH, _WRITE = bytes([fuse_abi.Opcode.FLUSH]), bytes([fuse_abi.Opcode.WRITE])
_PROCESS = struct.Struct("<32xI")  # of a request
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
        self._pages: dict[int, int] = {}  # the same, of written pages: how many bytes
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
            kind = request[_OPCODE]
            if kind == _FLUSH or (kind == _WRITE and _is_of_nobody(request)):
                self._note(request)
            yield request
            patience = LOOKS  # who has one answer often asks for the next: to sleep and be woken takes longer

    def _note(self, request: bytes) -> None:
        with suppress(fuse_abi.MalformedRequestError):
            header, body = fuse_abi.decode(request)
            if isinstance(body, fuse_abi.Write):
                self._pages[header.unique] = body.size
            else:
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
        if self._closes or self._pages:
            (unique,) = _UNIQUE.unpack_from(parts[0])
            self._closes.pop(unique, None)
            self._pages.pop(unique, None)
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
        poller = select.poll()
        if self._taken_bytes < MOST_TAKEN:
            with suppress(ValueError):  # closed meanwhile
                poller.register(self.descriptor, select.POLLIN)
        poller.poll(WAIT_SECONDS * 1e3)

    def serve_looks(self) -> None:
        """Take what there is, and answer what the look may be waiting for."""
        before = len(self._taken)
        for unique, process in list(self._closes.items()):
            self._answer_close(unique, process)
        if self._pages and self._any_has_no_program():
            for unique, size in list(self._pages.items()):
                self._answer_page(unique, size)
        with suppress(OSError):
            while self._taken_bytes < MOST_TAKEN:
                with suppress(FileNotFoundError):
                    size = os.readv(self.descriptor, [self._others_room])
                    self._take(bytes(self._others_room[:size]))
        if self._taken and not before:
            self._tell()

    def _take(self, message: bytes) -> None:
        with suppress(fuse_abi.MalformedRequestError):
            header, body = fuse_abi.decode(message)
            if header.opcode == fuse_abi.Opcode.READ and not header.pid:
                self.write([fuse_answers.failure(header.unique, errno.EIO)])
                return
            if header.opcode == fuse_abi.Opcode.FLUSH:
                self._answer_close(header.unique, header.pid)
            if isinstance(body, fuse_abi.Write) and _is_of_nobody(message) and self._any_has_no_program():
                self._answer_page(header.unique, body.size)
        self._taken.append(message)
        self._taken_bytes += len(message)

    def _answer_close(self, unique: int, process: int) -> None:
        if self._has_no_program(process):
            self.write([fuse_answers.success(unique)])

    def _answer_page(self, unique: int, size: int) -> None:
        body = fuse_answers.pack_written(size)
        self.write([fuse_answers.success(unique, len(body)), body])

    def _any_has_no_program(self) -> bool:
        with suppress(OSError):
            return any(map(self._has_no_program, filter(str.isdigit, os.listdir(self._proc))))
        return False

    def _has_no_program(self, process: int | str) -> bool:
        """Whether a process of the guest has memory, but no program text: the old one's is gone, and the new one's not there yet."""
        try:
            with open(f"{self._proc}/{process}/statm", "rb") as file:
                size, _resident, _shared, text, *_ = file.read().split()
        except (OSError, ValueError):
            return False
        return text == b"0" != size


def _is_of_nobody(request: bytes) -> bool:
    """Whether the kernel asks for it by itself."""
    return len(request) >= fuse_abi.HEADER_SIZE and _PROCESS.unpack_from(request)[0] == 0
