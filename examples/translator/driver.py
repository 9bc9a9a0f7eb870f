"""Loads the translator and keeps it for a while.

adyton run translator -- --port 62831 --server_max_lifetime 10
"""

import argparse
import sys
import threading

import adyton


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--enclave_path", required=True)
    parser.add_argument(
        "--address", default="127.0.0.1", help="of this machine, on which the server listens; default: %(default)s"
    )
    parser.add_argument("--port", type=int, default=0, help="default: any")
    parser.add_argument(
        "--server_max_lifetime", type=float, default=300, metavar="SECONDS", help="default: %(default)g"
    )
    flags = parser.parse_args()
    place = f"{flags.address}:{flags.port}"
    try:
        with adyton.load(flags.enclave_path, allow_listen=[place]) as translator:
            print(f"Server started on port {translator.call('start', place)}", flush=True)
            threading.Event().wait(flags.server_max_lifetime)
    except KeyboardInterrupt:
        pass
    except adyton.AdytonError as error:
        print(f"translator: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
