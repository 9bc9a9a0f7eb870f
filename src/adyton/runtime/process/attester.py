"""The process that asks a platform's hardware for reports, for the enclaves of one launcher; how it is asked: `attesting`.

It is apart since the kernel gives reports to root only, and opens files anew for each, which no supervisor can; and since one may take seconds (Linux
looks once a second for a quote of TDX, and a host may slow down those of SEV-SNP), for which a supervisor has other things to do. It is executed, with
the server's Python and libraries, in the server's own file tree. It asks for one report at a time, and for none that nobody waits for any more. It ends
when nobody is left who could ask.

Who may ask: whoever has the socket, which are supervisors, whose guests do not. Nothing of an enclave but the 64 bytes comes here.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Self

import msgspec

from adyton import errors
from adyton.attestation.evidence import REPORT_DATA_SIZE
from adyton.attestation.hardware import Attester
from adyton.attestation.identity import Platform
from adyton.errors import AdytonError, PlatformError
from adyton.runtime.process import namespaces

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


def serve(sock: socket.socket, attester: Attester) -> None:
    """See the module."""
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(sock, REPORT_DATA_SIZE + 1, 1)
        except OSError:
            return
        if not data and not descriptors:
            return
        for each in descriptors:
            try:
                answer = socket.socket(fileno=each)
            except OSError:  # it is none
                os.close(each)
                continue
            with answer, contextlib.suppress(OSError):
                if len(data) == REPORT_DATA_SIZE and _somebody_waits(answer):
                    answer.send(_report(attester, data), socket.MSG_DONTWAIT)


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
