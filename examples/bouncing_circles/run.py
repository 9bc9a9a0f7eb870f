"""Four enclaves on a provision server, each with a circle of its own; a web page shows them move.

    python examples/bouncing_circles/run.py                        # then open http://127.0.0.1:8888/
    python examples/bouncing_circles/run.py --on grpcs://tee.example

Without --on or ADYTON_ON it starts a provision server here. Ctrl-C or SIGTERM ends everything.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from circle import Circle
from web import Field, Handler, Server

import adyton

PROGRAM = Path(__file__).with_name("circle.py")
CIRCLES = (
    Circle(100, 200, 5, 3, 5, "rgb(66,133,244)"),
    Circle(-200, -100, 5, 5, 10, "rgb(219,68,55)"),
    Circle(-100, 200, 3, 5, 20, "rgb(244,180,0)"),
    Circle(200, -100, 3, 3, 15, "rgb(15,157,88)"),
)


@contextmanager
def provision_server() -> Iterator[str]:
    """The address of a provision server of our own, on a port that only this machine reaches."""
    command = [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().rpartition(" ")[2].strip()
            if not address:
                raise adyton.AdytonError("the provision server did not start: see the line above")
            yield f"grpc://{address}"
        finally:
            server.terminate()


def serve(web: Server, on: str | None, *, allow_sim: bool) -> None:
    """Until a signal ends it."""
    with ExitStack() as closing:
        if on is None:
            on, allow_sim = closing.enter_context(provision_server()), True
        enclaves = [
            closing.enter_context(adyton.load(PROGRAM, on=on, allow_sim=allow_sim, name=f"circle_{number}"))
            for number in range(1, len(CIRCLES) + 1)
        ]
        web.field = Field(enclaves, CIRCLES)
        host, port = web.server_address[:2]
        print(f"bouncing_circles listening on http://{host}:{port}/", flush=True)
        web.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", metavar="URL", default=os.environ.get("ADYTON_ON"), help="the provision server")
    parser.add_argument("--allow-sim", action="store_true", help="accept simulated enclaves there: NOT CONFIDENTIAL")
    parser.add_argument("--host", default="127.0.0.1", help="where the web page is; default: %(default)s")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one; default: %(default)s")
    flags = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with Server((flags.host, flags.port), Handler) as web:
            serve(web, flags.on or None, allow_sim=flags.allow_sim)
    except KeyboardInterrupt:
        return 130
    except adyton.AdytonError as error:
        print(f"bouncing_circles: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, OverflowError) as error:
        print(
            f"bouncing_circles: cannot listen at {flags.host}:{flags.port}: {getattr(error, 'strerror', None) or error}; choose another with --port",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
