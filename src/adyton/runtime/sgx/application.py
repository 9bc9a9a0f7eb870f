"""The folder from which Gramine starts enclaves: copies of all that is measured, and the manifest that names each of them with its SHA-256.

    adyton-….manifest  one for each image
    lib/               Gramine's own C library and loader       → /lib
    usr/lib/           shared libraries that Python or the packages need      → /usr/lib
    usr/share/zoneinfo/                                         → /usr/share/zoneinfo
    opt/adyton/python/ the interpreter and its standard library → /opt/adyton/python
    opt/adyton/lib/    adyton and the libraries that are the runtime's own    → /opt/adyton/lib

A manifest names the one image that its enclaves run. It has to: nothing there is between the program and the runtime, so a program could have quotes made
over what another image's runtime would say of itself. So MRENCLAVE is of the image as well, and another image's is another.

All else that an enclave sees is memory of its own. Nothing is allowed (`sgx.allowed_files`), passed through, or `insecure`. Copies, under relative
names, so that MRENCLAVE says nothing of where the server has them: equal versions measure alike. Without bytecode, which differs from one run of the
compiler to another. Documentation/manifest-syntax.rst of Gramine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from adyton.errors import PlatformError
from adyton.runtime.process import root

ENCLAVE_SIZE = "1G"  # all the memory of an enclave, which it takes when it starts
MAX_THREADS = 128
_STACK_SIZE = "2M"  # of a thread
_FILES = 4096  # open at once

_LIBRARIES = "opt/adyton/lib"
_PYTHON = "opt/adyton/python"
_ZONES = "usr/share/zoneinfo"
# Of the standard library what needs a screen or a network, or is for nobody there; and packages, which are not its own.
_LEFT_OUT = {
    *("__pycache__", "dist-packages", "ensurepip", "idlelib", "site-packages", "test", "tkinter", "turtledemo"),
    *("posix", "right"),  # time zones again, by other names and in other counts
}
_MAIN = "from adyton.runtime.sgx.enclave import main; main(sys.argv[1])"


class _Copy(NamedTuple):
    """Of one file: where it goes, and where it is from."""

    target: str
    source: str


def lay_out(folder: str, gramine: str) -> dict[str, str]:
    """Copy all that an enclave needs into the folder: path there → SHA-256 in hex. `gramine`: its runtime directory. PlatformError, OSError."""
    plan = root.plan("", "", {})
    files = [*_below("lib", gramine), *_python(plan)]
    for target, source in [*plan.libraries.items(), *plan.supervisor_libraries.items()]:
        files += _below(f"{_LIBRARIES}/{target}", source)
    files += _needed_by([each.source for each in files if _is_program(each)], set(os.listdir(gramine)))
    if os.path.isdir(f"/{_ZONES}"):
        files += _below(_ZONES, f"/{_ZONES}")
    return {target: _copied(source, os.path.join(folder, target)) for target, source in sorted(files)}


def _python(plan: root.Plan) -> Iterator[_Copy]:
    version = os.path.basename(plan.interpreter)
    for target, source in plan.python.items():
        if target != "lib":
            yield from _below(f"{_PYTHON}/{target}", source)
            continue
        for name in os.listdir(source):  # a folder that may be of more than Python
            if name == version or (name.startswith(f"lib{version}") and ".so" in name):
                yield from _below(f"{_PYTHON}/lib/{name}", f"{source}/{name}")


def _below(target: str, source: str) -> Iterator[_Copy]:
    """A file, or those in a folder; links to files are what they lead to."""
    if not os.path.isdir(source):
        yield _Copy(target, source)
        return
    for name in os.listdir(source):
        path = f"{source}/{name}"
        if name in _LEFT_OUT or name.startswith(("config-", "_tkinter")) or name.endswith((".a", ".pyc", ".pyi")):
            continue
        if os.path.isdir(path) and os.path.islink(path):
            continue
        yield from _below(f"{target}/{name}", path)


def _is_program(file: _Copy) -> bool:
    return file.target.startswith("opt/") and (file.target.startswith(f"{_PYTHON}/bin/") or ".so" in file.target)


_FOUND = re.compile(rb"^\s*(\S+) => (/\S+) \(0x", re.MULTILINE)


def _needed_by(programs: list[str], there: set[str]) -> list[_Copy]:
    """The shared libraries that those need, but for what is `there`, by name, or among them. As ldd(1) finds them: it runs what is to be trusted."""
    done = subprocess.run(["ldd", *programs], capture_output=True, check=False)  # noqa: S607 - of the server's own PATH
    if b"=>" not in done.stdout:
        raise PlatformError(
            f"ldd does not say what libraries Python needs: {done.stderr.decode(errors='replace')[:200]}"
        )
    own = {os.path.realpath(each) for each in programs}
    found = {}
    for name, path in _FOUND.findall(done.stdout):
        if os.fsdecode(name) not in there and os.path.realpath(os.fsdecode(path)) not in own:
            found[os.fsdecode(name)] = os.fsdecode(path)
    return [_Copy(f"usr/lib/{name}", path) for name, path in found.items()]


def _copied(source: str, target: str) -> str:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(source, "rb") as file:
        data = file.read()
    with open(target, "wb") as file:
        file.write(data)
    os.chmod(target, 0o755 if os.stat(source).st_mode & 0o100 else 0o644)
    return hashlib.sha256(data).hexdigest()


def manifest(files: Mapping[str, str], measurement: str) -> str:
    """Its text, for what `lay_out` has copied and the image of that measurement. Equal files give equal text."""
    interpreter = f"/{_PYTHON}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    # No environment, site or current folder that Python could obey; libraries behind its own.
    code = f"import sys; sys.path.append('/{_LIBRARIES}'); {_MAIN}"
    argv = [interpreter, "-I", "-S", "-B", "-X", "utf8", "-c", code, measurement]
    lines = [
        f"libos.entrypoint = {_text(interpreter)}",
        f"loader.argv = [{', '.join(map(_text, argv))}]",
        'loader.log_level = "error"',
        'loader.env.LANG = "C.UTF-8"',
        f'loader.env.LD_LIBRARY_PATH = "/lib:/usr/lib:/{_PYTHON}/lib"',
        "loader.uid = 1000",
        "loader.gid = 1000",
        'fs.root = { type = "tmpfs" }',
        "fs.mounts = [",
        *(f"  {{ path = {_text('/' + each)}, uri = {_text('file:' + each)} }}," for each in _mounted(files)),
        *(f'  {{ type = "tmpfs", path = {_text(each)} }},' for each in (root.IMAGE, "/tmp")),  # noqa: S108
        "]",
        "sys.disallow_subprocesses = true",
        f"sys.fds.limit = {_FILES}",
        f"sys.stack.size = {_text(_STACK_SIZE)}",
        "sgx.debug = false",
        'sgx.remote_attestation = "dcap"',
        f"sgx.enclave_size = {_text(ENCLAVE_SIZE)}",
        f"sgx.max_threads = {MAX_THREADS}",
        "sgx.trusted_files = [",
        *(
            f"  {{ uri = {_text('file:' + path)}, sha256 = {_text(digest)} }},"
            for path, digest in sorted(files.items())
        ),
        "]",
    ]
    return "\n".join([*lines, ""])


def _mounted(files: Mapping[str, str]) -> list[str]:
    """The folders that become mounts."""
    known = ("lib", "opt/adyton", "usr/lib", _ZONES)
    return [each for each in known if any(path.startswith(each + "/") for path in files)]


def _text(value: str) -> str:
    """A TOML string: JSON's, in ASCII, are such."""
    return json.dumps(value)
