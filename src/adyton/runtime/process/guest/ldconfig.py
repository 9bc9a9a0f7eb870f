"""The shared libraries that an enclave has, as `ldconfig -p` lists them, see ldconfig(8): ctypes.util.find_library looks there.

root.py makes it /sbin/ldconfig. Nothing but -p is done.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import sysconfig
from collections.abc import Iterator

_ABI = {"x86_64": "libc6,x86-64", "aarch64": "libc6,AArch64"}


def libraries() -> Iterator[tuple[str, str]]:
    """Name and path of each library of this machine's 64-bit programs that the loader finds, where it looks first coming first."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for directory in (f"/lib/{multiarch}", f"/usr/lib/{multiarch}", "/lib64", "/usr/lib64", "/lib", "/usr/lib"):
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        names = [name for name in names if re.search(r"\Alib.+\.so(\.|\Z)|\Ald-.+\.so\.", name)]
        under_their_sonames = {_target(directory, name) for name in names if re.search(r"\.so\.\d", name)}
        for name in names:
            path = os.path.join(directory, name)
            if name not in under_their_sonames and _is_native(path):
                yield name, path


def _target(directory: str, name: str) -> str:
    """What a link in the directory leads to; its own name is none."""
    try:
        return os.readlink(os.path.join(directory, name))
    except OSError:
        return ""


def _is_native(path: str) -> bool:
    """Whether it is an ELF file of this interpreter's own class and machine: ELF-64 Object File Format, figure 3."""
    try:
        with open(path, "rb") as library, open(sys.executable, "rb") as own:
            kinds = [struct.unpack("4sB13xH", each.read(20)) for each in (library, own)]
    except (OSError, struct.error):
        return False
    return kinds[0] == kinds[1]


def main() -> int:
    """The listing."""
    if sys.argv[1:] != ["-p"]:
        sys.stderr.write("ldconfig: an enclave's libraries are as they are: only -p is there\n")
        return 1
    abi = _ABI.get(os.uname().machine, "libc6")
    found = dict(reversed(list(libraries())))
    sys.stdout.write(f"{len(found)} libs found in cache `/etc/ld.so.cache'\n")
    for name, path in sorted(found.items(), reverse=True):
        sys.stdout.write(f"\t{name} ({abi}) => {path}\n")
    return 0
