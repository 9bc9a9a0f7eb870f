"""State that an enclave keeps between calls: it counts its visitors.

python examples/hello/run.py --names="Alice,Bob"
"""

import argparse
import sys
from pathlib import Path

import adyton

ENCLAVE = Path(__file__).parent / "hello_enclave.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default="Alice,Bob", help="who visits, separated by commas; default: %(default)s")
    names = [name.strip() for name in parser.parse_args().names.split(",") if name.strip()]
    if not names:
        print('Must supply a non-empty list of names with --names, such as --names="Alice,Bob".', file=sys.stderr)
        return 2
    print(f"Loading {ENCLAVE}", file=sys.stderr)
    try:
        with adyton.load(ENCLAVE) as hello:
            for name in names:
                print(f"Message from enclave: {hello.call('greet', name)}")
    except adyton.AdytonError as error:
        print(f"hello: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
