"""Who computes is not taken for dead: an entry and its client that let none of their threads run for long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sandbox

PROGRAM = """
import time

def compute(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1_000_000))  # without a moment for another thread
    return True
"""

CLIENT = """
import time
import adyton

with adyton.load("computing.py") as client:
    call = client.submit("compute", 12.0)
    while not call.done():
        sum(range(10_000_000))
    print(call.result())
"""


@pytest.mark.long
def test_an_entry_that_computes_for_long_and_its_client_are_no_loss(workplace):
    """Longer than any end waits for the other (a server 10 s). Niced, so that other tests go on beside it."""
    Path("computing.py").write_text(PROGRAM)
    done = subprocess.run(
        ["nice", "-n", "10", sys.executable, "-c", CLIENT], capture_output=True, text=True, timeout=280, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
