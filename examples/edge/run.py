"""An edge device's application: one confidential function, one file that stays on the device and is read from the enclave.

    python examples/edge/run.py
    ADYTON_ON=grpcs://tee.example python examples/edge/run.py

Nothing is needed but adyton and what it depends on: no extras, no build step.
"""

import sys
from pathlib import Path

import adyton

HERE = Path(__file__).parent


def main() -> int:
    beats = HERE / "heartbeats.txt"
    try:
        with adyton.load(HERE / "heart.py", allow_read=[beats]) as heart:
            pause = heart.call("longest_pause", str(beats))
    except adyton.AdytonError as error:
        print(f"edge: {error}", file=sys.stderr)
        return error.exit_code
    print(f"The longest pause between two heartbeats: {pause} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
