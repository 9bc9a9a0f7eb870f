"""What this process holds open, whatever threads of other tests open and close meanwhile."""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import suppress

_LOOKS = 1000


def held() -> Counter[str]:
    """How many of its descriptors there are of each file, socket or process."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile, as what lists them is
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
    return found


def nothing_more_than(before: Counter[str]) -> None:
    """Of what was `held` before, as soon as what others have open for a moment is closed. What they closed meanwhile does not count."""
    for _ in range(_LOOKS):
        if not held() - before:
            return
        threading.Event().wait(0.01)
    assert not held() - before
