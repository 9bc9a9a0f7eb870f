"""A temporary folder that goes with its process, kill -9 included."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from typing import Self

_REMOVE = 'read -r _; exec rm -rf -- "$1"'  # read: until the other end of the pipe is closed, which the end of its process does


class TemporaryFolder:
    """For a `with`, or closed by hand. Its owner's alone."""

    def __init__(self, prefix: str) -> None:
        """Make it, in TMPDIR. OSError."""
        self.path = tempfile.mkdtemp(prefix=prefix)
        reading, self._life = os.pipe()
        try:
            self._remover: subprocess.Popen[bytes] | None = subprocess.Popen(
                ["/bin/sh", "-c", _REMOVE, "adyton-remover", self.path],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # what a terminal says to us is not for it
            )
        except OSError:
            self._remover = None  # where there is no shell, kill -9 leaves the folder
        finally:
            os.close(reading)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it now. Safe to call again."""
        if self._life < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._life)
        self._life = -1
        if self._remover is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._remover.wait(5)
