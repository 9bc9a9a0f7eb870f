"""A provision server's proxy server for one running enclave: `python -m adyton.provision.relay_process DESCRIPTOR PID LISTEN [CERT KEY [CA]]`.

DESCRIPTOR and PID: the supervisor's socket and process. The session's secret is the first line of standard input; where it listens, the first line of standard output.
"""

from __future__ import annotations

import sys

from adyton.provision.proxy import serve_enclave
from adyton.remote.address import TLS


def main(arguments: list[str]) -> None:
    """Relay until the session is over."""
    descriptor, pid, listen, *files = arguments
    tls = TLS(ca=files[2] if len(files) > 2 else None, cert=files[0], key=files[1]) if files else None
    session = bytes.fromhex(sys.stdin.readline().strip())

    def announce(address: str) -> None:
        print(f"adyton proxy listening on {address}", flush=True)  # noqa: T201 - the spawner waits for it

    serve_enclave(int(descriptor), int(pid), listen, tls, session, announce)


if __name__ == "__main__":
    main(sys.argv[1:])
