"""What each Python that a program starts does first: root.py's virtual environment imports this module.

`python -c`, `python -m` and a Python that reads its program from standard input put their working directory in front of the modules'
places. That may be a folder of the client, who would then decide which code runs in the enclave: such an entry is taken out again, before
the first module is looked for. Nothing is taken away that a program adds itself.

And its clock is the enclave's, which an exec takes away (see vdso.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from adyton.runtime.process.guest import CLOCK_FILE, PRIVATE_ATTRIBUTE


class _WorkingDirectory:
    """The first finder on sys.meta_path until the program looks for its first module; it finds none."""

    def find_spec(self, _name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> None:
        if getattr(sys.modules["site"].__spec__, "_initializing", False):
            return  # what it imports, as sitecustomize; the interpreter's entry comes behind that
        sys.meta_path = [each for each in sys.meta_path if each is not self]  # a new list: the old one is being walked
        entry = sys.path.pop(0)  # before anything more is imported
        from adyton.hostcall.own_paths import own_path

        with contextlib.suppress(OSError):  # what cannot be asked about is not the enclave's
            here = os.getcwd()
            if entry not in ("", here):
                sys.path.insert(0, entry)
            elif own_path(os.path.normpath(here)) is not None or not _may_be_the_clients():
                sys.path.insert(0, here)  # "" would be wherever the program goes


def _may_be_the_clients() -> bool:
    """Of the working directory. In the root's file system what is private says so; what is mounted by itself, as a /tmp, is the enclave's own."""
    if os.stat(".").st_dev != os.stat("/").st_dev:
        return False
    try:
        os.getxattr(".", PRIVATE_ATTRIBUTE)
    except OSError:
        return True
    return False


if not sys.flags.safe_path and sys.argv[0] in ("-c", "-m", "-", ""):
    sys.meta_path.insert(0, _WorkingDirectory())

with contextlib.suppress(FileNotFoundError), open(CLOCK_FILE, "rb") as _file:  # not there: the clock is the server's
    from adyton.runtime.process import vdso

    with contextlib.suppress(vdso.VdsoError):
        vdso.install()
        vdso.follow(_file.fileno())
