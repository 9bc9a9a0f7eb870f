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


HOLES = """
from adyton import allocator
allocator.keep_freed_memory()
pieces = [b"x" * 100_000 for _ in range(400)]
kept = pieces[::10]
del pieces
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before = resident()
allocator.give_back_freed_memory()
print(before - resident())
"""

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="NO GLIBC: the C library is not GNU's, whose allocator this is about"
)


@needs_glibc
def test_what_lies_between_what_is_used_is_given_back():
    assert int(subprocess.check_output([sys.executable, "-c", HOLES], text=True)) > 300 * 100_000


@needs_glibc
@pytest.mark.parametrize("step", ["keep_freed_memory()", "have_freed_much()"])
def test_what_was_freed_is_used_again(step):
    assert faults(step) < faults("__name__") / 4
