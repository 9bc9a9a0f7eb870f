"""The process that asks a platform's hardware for reports, for the enclaves of one launcher; how it is asked: `attesting`.

It is apart since the kernel gives reports to root only, and opens files anew for each, which no supervisor can; and since one may take seconds (Linux
looks once a second for a quote of TDX, and a host may slow down those of SEV-SNP), for which a supervisor has other things to do. It is executed, with
the server's Python and libraries, in the server's own file tree. It asks for one report at a time, and for none that nobody waits for any more. It ends
when nobody is left who could ask.

Who may ask: supervisors, each for the identity that it enrolled with before its guest ran. Nothing of an enclave but digests comes here.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Self

import msgspec

from adyton import errors
from adyton.attestation.binding import bound_to
from adyton.attestation.evidence import REPORT_DATA_SIZE
from adyton.attestation.hardware import Attester
from adyton.attestation.identity import Platform
from adyton.errors import AdytonError, PlatformError
from adyton.runtime.process import namespaces
from adyton.runtime.process.attesting import CONNECTION_SIZE, DIGEST_SIZE

READY = b"ready"
START_SECONDS = 120.0  # for the first report; some hosts let them wait for a minute
END_SECONDS = 5.0


class AttesterProcess:
    """Owns the process. `asking`: what supervisors ask on."""

    def __init__(self, platform: Platform) -> None:
        """Starts it, and waits until it has had a report. PlatformError: there is none to be had."""
        self.asking, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (
            "import sys; sys.path.append(sys.argv[3]); "
            "from adyton.runtime.process.attester import main; main(sys.argv[1], int(sys.argv[2]))"
        )
        home = os.path.dirname(os.path.dirname(os.path.abspath(errors.__file__)))
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, platform, str(other.fileno()), home],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                cwd="/",
                start_new_session=True,
            )
        try:
            said = _received(self.asking, START_SECONDS)
            if said != READY:
                raise PlatformError(said.decode("utf-8", "replace") or f"the attester of {platform} ended or hangs")
        except BaseException:
            self.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether it has, by itself."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End it, whatever it does. Idempotent."""
        self.asking.close()
        if not self.ended:
            self._process.kill()
        self._process.wait(END_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _received(sock: socket.socket, seconds: float) -> bytes:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    if not poller.poll(seconds * 1000):
        return b""
    try:
        return sock.recv(1 << 12)
    except ConnectionError:
        return b""


# -- the process ------------------------------------------------------------------------------------------------------------


def main(platform: Platform, descriptor: int) -> None:
    """Answer on the socket `descriptor` until nobody is left who could ask."""
    from adyton.attestation.attesters import open_attester

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a server drains, and its enclaves may need evidence meanwhile
    namespaces.set_name("adyton-attest")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # of each enclave we have one
    sock = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    with contextlib.ExitStack() as stack:
        try:
            attester = stack.enter_context(contextlib.closing(open_attester(platform)))
            attester.report(os.urandom(REPORT_DATA_SIZE))  # what does not work is found out before anybody waits for it
        except AdytonError as error:
            sock.send(error.message.encode()[:4096])
            return
        sock.send(READY)
        serve(sock, attester)


def serve(asking: socket.socket, attester: Attester) -> None:
    """See the module."""
    poller = select.poll()
    poller.register(asking, select.POLLIN)
    enrolled: dict[int, tuple[socket.socket, bytes]] = {}  # by descriptor: with the identity's digest
    while True:
        for descriptor, _ in poller.poll():
            known = enrolled.get(descriptor)
            request = _received_with_socket(asking if known is None else known[0])
            if request is None:
                poller.unregister(descriptor)
                if known is None:
                    asking.close()
                else:
                    del enrolled[descriptor]
                    known[0].close()
                if asking.fileno() < 0 and not enrolled:
                    return
                continue
            message, sock = request
            if sock is None:
                continue
            if known is None and len(message) == DIGEST_SIZE:
                enrolled[sock.fileno()] = sock, message
                poller.register(sock, select.POLLIN)
                continue
            with sock, contextlib.suppress(OSError):
                if known is not None and len(message) == CONNECTION_SIZE and _somebody_waits(sock):
                    sock.send(_report(attester, bound_to(message, known[1])), socket.MSG_DONTWAIT)


def _received_with_socket(sock: socket.socket) -> tuple[bytes, socket.socket | None] | None:
    """A message, and the socket that came with it; None: nobody is left at the other end."""
    try:
        message, descriptors, _, _ = socket.recv_fds(sock, CONNECTION_SIZE + 1, 1)
    except OSError:
        return None
    if not message and not descriptors:
        return None
    for descriptor in descriptors:
        try:
            return message, socket.socket(fileno=descriptor)
        except OSError:  # it is none
            os.close(descriptor)
    return message, None


def _somebody_waits(answer: socket.socket) -> bool:
    poller = select.poll()
    poller.register(answer, 0)
    return not poller.poll(0)  # POLLHUP


def _report(attester: Attester, data: bytes) -> bytes:
    """b"" for none, of which the server's standard error says why."""
    try:
        return msgspec.msgpack.encode(attester.report(data))
    except AdytonError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"adyton: {time.strftime('%FT%T')} no evidence for an enclave: {error.message}\n")
            sys.stderr.flush()
        return b""
