"""The process that unpacks one layer: it sees nothing but the folder that it fills, and nothing but it writes there.

    zygote ─fork─► unpacker: root directory and user of its own, no capabilities, a short list of calls
           ◄─ UNPACKED ──   every byte was verified; or FAILED
    unpacker: compiles what Python will import, beside the sources, until it has ended

The layer may be hostile: whoever takes this process over has a folder that only enclaves with this very layer read.
"""

from __future__ import annotations

import contextlib
import os
import py_compile
import resource
import warnings
from collections.abc import Iterator
from typing import NoReturn

from adyton.errors import AdytonError, ImageError
from adyton.image.layers import unpack_file
from adyton.runtime.process import landlock, namespaces
from adyton.runtime.process.filter import unpacker_filter
from adyton.runtime.process.libc import install_filter

UNPACKED = b"unpacked"
FAILED = b"failed:"  # class of the error, newline, its text
UID = (
    namespaces.UID_BASE
)  # of all unpackers where enclaves have ids of their own: no process has the id 0, so no enclave has this one

_MAX_MEMORY = 4 << 30  # bytes, of which a source as long as they come needs some
_MAX_SECONDS = 1800  # of a processor: some source takes the compiler for ever
_LAST = ("test", "tests")  # folders that hardly any program imports from


def run(
    blob: str, digest: str, size: int, folder: str, place: str, pipe: int, parent: int, *, own_ids: bool
) -> NoReturn:
    """Unpack a blob (its path) into an empty folder, compile, and exit; `place`: where programs will see the folder.

    `parent`: the process that forked this one, without which it does not go on.
    """
    status = 1
    try:
        with open(blob, "rb") as file:
            _confine(folder, parent, own_ids=own_ids)
            unpack_file(file, digest, size, ".")
        os.write(pipe, UNPACKED)
        _compile(place)
        status = 0
    except AdytonError as error:
        _fail(pipe, type(error).__name__, str(error))
    except FileNotFoundError:
        _fail(pipe, ImageError.__name__, f"blob {digest} is not in the server's store")
    except BaseException as error:  # noqa: BLE001 - nothing may return into the zygote
        _fail(pipe, "PlatformError", f"the layer {digest} cannot be unpacked: {type(error).__name__}: {error}")
    finally:
        os._exit(status)


def _fail(pipe: int, kind: str, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(pipe, FAILED + f"{kind}\n{text}".encode()[:2048])


def _confine(folder: str, parent: int, *, own_ids: bool) -> None:
    os.setsid()
    namespaces.set_name("adyton-unpack")
    namespaces.no_new_privileges()
    if own_ids:
        os.chown(folder, UID, UID)
    os.chroot(folder)
    os.chdir("/")
    os.umask(0o022)
    if own_ids:
        namespaces.take_ids(UID)
    else:
        namespaces.set_capabilities()
    namespaces.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    limits = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _MAX_MEMORY), (resource.RLIMIT_CPU, _MAX_SECONDS))
    for kind, most in limits:
        resource.setrlimit(kind, (most, most))
    landlock.enter_domain()
    install_filter(unpacker_filter())


def _compile(place: str) -> None:
    """Write the bytecode of each module beside it; of what is not Python, or cannot be compiled here, there is none.

    The bytecode does not look at its source again: nobody can change either.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # programs wait for their own compiling meanwhile
    warnings.simplefilter("ignore")
    for path in (*_sources(last=False), *_sources(last=True)):
        with contextlib.suppress(Exception, RecursionError):
            py_compile.compile(
                path,
                dfile=os.path.join(place, path[2:]),
                doraise=True,
                quiet=2,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )


def _sources(*, last: bool) -> Iterator[str]:
    """Those of modules, but the folders in _LAST; or only those."""
    for above, folders, files in os.walk("."):
        folders.sort()
        if last == any(each in _LAST for each in above.split("/")):
            yield from (f"{above}/{name}" for name in sorted(files) if name.endswith(".py"))
