"""Stand-ins for devices, each a file that FUSE serves: met through real system calls, where the kernel's would be."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from fake_amd import Firmware
from fake_tsm import serving

from adyton.runtime.process import mounts
from adyton.runtime.process.supervisor import fuse_abi as abi
from adyton.runtime.process.supervisor import fuse_answers as answers
from adyton.runtime.process.supervisor.fuse_abi import FileError, Opcode

_HEAD = 40  # bytes of a request's header
_IOCTL_IN = struct.Struct("<QIIQII")  # fuse_ioctl_in: handle, flags, command, argument, sizes
_IOCTL_OUT = struct.Struct("<iIII")


class Device(Protocol):
    """All raise OSError for what the program is told. `ioctl`: of a thread, with what its argument points to before, and after."""

    def write(self, data: bytes) -> None: ...

    def read(self) -> bytes: ...

    def ioctl(self, thread: int, command: int, argument: bytes) -> bytes: ...


class SevGuest:
    """/dev/sev-guest: the driver, which takes requests from the caller's memory and puts answers there."""

    def __init__(self, firmware: Firmware) -> None:
        self.firmware = firmware

    def write(self, data: bytes) -> None:
        raise OSError(errno.EINVAL, "")

    def read(self) -> bytes:
        raise OSError(errno.EINVAL, "")

    def ioctl(self, thread: int, command: int, argument: bytes) -> bytes:
        version, request, response, _ = struct.unpack("<B7xQQQ", argument)
        size, room = self.firmware.sizes(command)
        if version != 1:
            raise OSError(errno.EINVAL, "")
        with open(f"/proc/{thread}/mem", "r+b", buffering=0) as memory:
            memory.seek(request)
            answer = self.firmware.answer(command, memory.read(size))
            assert len(answer) == room
            memory.seek(response)
            memory.write(answer)
        return argument


class TpmDevice:
    """/dev/tpmrm0, in front of a TPM that takes one command at a time: whole in a write, and its answer whole in a read."""

    def __init__(self, exchange: Callable[[bytes], bytes]) -> None:
        self._exchange = exchange
        self._answer = b""

    def write(self, data: bytes) -> None:
        self._answer = self._exchange(data)

    def read(self) -> bytes:
        answer, self._answer = self._answer, b""
        return answer

    def ioctl(self, thread: int, command: int, argument: bytes) -> bytes:
        raise OSError(errno.ENOTTY, "")


@contextmanager
def served(device: Device) -> Iterator[str]:
    """The path of something that is mounted nowhere yet, and that a file can be covered with."""
    with serving(lambda descriptor: _serve(descriptor, device), _of_a_file) as path:
        yield path


def _of_a_file(device: int, uid: int) -> int:
    options = {"source": "adyton", "fd": device, "rootmode": "100600", "user_id": uid, "group_id": uid}
    return mounts.file_system("fuse", options)


def _serve(descriptor: int, device: Device) -> None:
    while True:
        try:
            message = os.read(descriptor, (1 << 17) + 8192)
        except FileNotFoundError:
            continue
        except OSError:
            return  # unmounted
        request = abi.decode(message)
        unique = request.header.unique
        try:
            body = _body(request.header, request.body, message[_HEAD:], device)
        except FileError as error:
            answer = answers.failure(unique, error.number)
        except OSError as error:
            answer = answers.failure(unique, error.errno or errno.EIO)
        else:
            if body is None:
                continue
            answer = answers.success(unique, len(body)) + body
        with suppress(OSError):  # nobody waits any more
            os.write(descriptor, answer)


def _body(header: abi.Header, body, raw: bytes, device: Device) -> bytes | None:
    match header.opcode:
        case Opcode.INIT:
            minor = min(body.minor, abi.MINOR_SPOKEN)
            return answers.pack_init(answers.InitAnswer(minor, 0, 0, 16, 1 << 16, 16))
        case Opcode.GETATTR:
            mode = stat.S_IFREG | 0o600
            attr = answers.Attr(header.node, 0, 0, 0, 0, 0, mode, 1, os.geteuid(), os.getegid())
            return answers.pack_attr(0, attr)
        case Opcode.OPEN:
            return answers.pack_open(answers.OpenAnswer(1, abi.OpenFlag.DIRECT_IO))
        case Opcode.READ:
            return device.read()
        case Opcode.WRITE:
            device.write(body.data)
            return answers.pack_written(len(body.data))
        case Opcode.IOCTL:
            _, _, command, _, size, room = _IOCTL_IN.unpack_from(raw)
            after = device.ioctl(header.pid, command, raw[_IOCTL_IN.size : _IOCTL_IN.size + size])
            return _IOCTL_OUT.pack(0, 0, 0, 0) + after[:room]
        case Opcode.FLUSH | Opcode.RELEASE:
            return b""
        case Opcode.FORGET | Opcode.BATCH_FORGET | Opcode.INTERRUPT | Opcode.DESTROY:
            return None
        case _:
            raise FileError(errno.ENOSYS)
