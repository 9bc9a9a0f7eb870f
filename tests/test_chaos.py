"""A slice of `make chaos`: one seeded moment for each party, and one signal, in each run of the tests another one; or both.

It runs beside other tests, so an error may take longer here than the 5 s that `make chaos` holds it to.
"""

import random
import subprocess
import sys

import pytest
from command import ROOT
from thorough import THOROUGH

pytestmark = pytest.mark.sandbox


@pytest.mark.long
def test_parties_that_are_hit_at_random_moments_leave_nothing():
    signal = [] if THOROUGH else ["--signal", random.choice(["KILL", "STOP"])]
    done = subprocess.run(
        [sys.executable, "chaos/run.py", "--count", "1", "--seed", "7", "--lanes", "3", "--limit", "60", *signal],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
