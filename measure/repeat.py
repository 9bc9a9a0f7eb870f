"""`make repeat COUNT=20`: the whole suite again and again, each time in another random order, until that often or until a test fails.

And thoroughly: see tests/thorough.py.

Each run is a line; what failed stays in build/repeat/, with the seed that orders the tests like that again (--randomly-seed).
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

OUTPUT = Path(__file__).parent.parent / "build" / "repeat"


def main() -> int:
    parser = argparse.ArgumentParser(description="run all tests in random order, again and again")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--keep-going", action="store_true", help="after a failure, too")
    options, more = parser.parse_known_args()  # more: pytest's
    OUTPUT.mkdir(parents=True, exist_ok=True)
    failed, environment = 0, {**os.environ, "THOROUGH": "1"}
    for number in range(1, options.count + 1):
        seed, begin = random.SystemRandom().randrange(1 << 31), time.monotonic()
        arguments = ["-n", "3", "--dist", "worksteal", "-q", f"--randomly-seed={seed}", *more]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments], capture_output=True, text=True, check=False, env=environment
        )
        print(
            f"{number}: seed {seed}, {time.monotonic() - begin:.0f} s, {(done.stdout.splitlines() or ['nothing was said'])[-1].strip('= ')}",
            flush=True,
        )
        if done.returncode != 0:
            failed += 1
            (OUTPUT / f"{seed}.txt").write_text(done.stdout + done.stderr)
            if not options.keep_going:
                break
    print(f"{number - failed} of {number} runs without a failure")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
