"""What an enclave's program cannot have in SGX, said where it asks for it: files and sockets of the client, processes.

By an audit hook of the interpreter (sys.addaudithook), which is no wall: what C code does by itself meets Gramine only. There is nothing of the host's
file system there, as the manifest names none; but a socket of it would be the host's.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

# Folders of the enclave's own, in its memory or measured; /dev and /proc are Gramine's.
OWN = ("/enclave", "/tmp", "/opt/adyton", "/usr", "/lib", "/dev", "/proc", "/sys", "/etc")  # noqa: S108

_FILES = "files of the client are not to be had in an SGX enclave yet: give the program what is in them as an argument"
_SOCKETS = "sockets are not to be had in an SGX enclave yet: have a function of the client's do that"
_PROCESSES = "other processes are not to be had in an SGX enclave"


def _not_here(why: str, path: str | None = None) -> OSError:
    return OSError(errno.ENOSYS, why, path)


def _path(*paths: Any) -> None:
    for each in paths:
        if isinstance(each, str | bytes | os.PathLike):
            path = os.path.normpath(os.path.join("/", os.fsdecode(each)))
            if not any(path == own or path.startswith(own + "/") for own in OWN):
                raise _not_here(_FILES, path)


def _opened(path: Any, *_: Any) -> None:
    _path(path)


def _renamed(source: Any, target: Any, *_: Any) -> None:
    _path(source, target)


def _address(sock: socket.socket, *_: Any) -> None:
    if sock.family != socket.AF_UNIX:  # those are Gramine's, and lead to this enclave only
        raise _not_here(_SOCKETS)


def _sent(sock: socket.socket, address: Any) -> None:
    if address is not None:
        _address(sock)


def _name(*_: Any) -> None:
    raise _not_here(_SOCKETS)


def _process(*_: Any) -> None:
    raise _not_here(_PROCESSES)


# By the names of Python's audit events.
_REFUSED: dict[str, Callable[..., None]] = {
    **dict.fromkeys(
        ("open", "os.chdir", "os.listdir", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.truncate"), _opened
    ),
    **dict.fromkeys(("os.link", "os.rename", "os.symlink"), _renamed),
    **dict.fromkeys(("socket.bind", "socket.connect"), _address),
    **dict.fromkeys(("socket.sendmsg", "socket.sendto"), _sent),
    **dict.fromkeys(
        ("socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname", "socket.getnameinfo"), _name
    ),
    **dict.fromkeys(
        ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"), _process
    ),
}


def put_up() -> None:
    """For the rest of this process; relative paths begin at /."""
    os.chdir("/")
    look = _REFUSED.get

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        refuse = look(event)
        if refuse is not None:
            refuse(*arguments)

    sys.addaudithook(hook)
