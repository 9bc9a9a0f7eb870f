"""A process through which much goes uses its memory again, instead of having it from the system each time."""

import platform
import subprocess
import sys

import pytest

ROUNDS, SIZE = 64, 600_000

PROGRAM = f"""
import resource
from adyton import allocator
allocator.{{step}}
for _ in range({ROUNDS}):
    messages = [b"x" * {SIZE} for _ in range(4)]
    del messages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(step):
    return int(subprocess.check_output([sys.executable, "-c", PROGRAM.format(step=step)], text=True))


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="NO GLIBC: the C library is not GNU's, whose allocator this is about"
)
@pytest.mark.parametrize("step", ["keep_freed_memory()", "have_freed_much()"])
def test_what_was_freed_is_used_again(step):
    assert faults(step) < faults("__name__") / 4
