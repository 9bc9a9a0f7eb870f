"""A provision server's proxy server for one running enclave.

    python -m adyton.provision.relay_process DESCRIPTOR PID GRACE listen ADDRESS [CERT KEY [CA]]
    python -m adyton.provision.relay_process DESCRIPTOR PID GRACE dial ADDRESS

DESCRIPTOR and PID: the supervisor's socket and process. GRACE: seconds that it waits for another connection of its client's. The session's secret is the first line of standard input, in hex; the certificate
of a client to dial the second. Where it listens, whom it has reached, or why it has not, is the first line of standard output.
"""

from __future__ import annotations

import sys

from adyton.errors import AdytonError
from adyton.provision.first_line import CONNECTED, FAILED, LISTENING
from adyton.provision.proxy import dial_for_enclave, serve_enclave
from adyton.remote import event_engine
from adyton.remote.address import TLS


def main(arguments: list[str]) -> None:
    """Relay until the session is over."""
    event_engine.keep_off()
    descriptor, pid, grace, way, address, *files = arguments
    session = bytes.fromhex(sys.stdin.readline().strip())

    def say(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - the spawner waits for it

    if way == "dial":
        certificate = bytes.fromhex(sys.stdin.readline().strip())
        try:
            dial_for_enclave(
                int(descriptor), int(pid), address, certificate, session, lambda to: say(CONNECTED + to), float(grace)
            )
        except AdytonError as error:
            say(FAILED + " ".join(error.message.split()))
        return
    tls = TLS(ca=files[2] if len(files) > 2 else None, cert=files[0], key=files[1]) if files else None
    serve_enclave(int(descriptor), int(pid), address, tls, session, lambda at: say(LISTENING + at), float(grace))


if __name__ == "__main__":
    main(sys.argv[1:])
