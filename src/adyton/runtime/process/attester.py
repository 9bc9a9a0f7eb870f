"""The process that asks a platform's hardware for reports and sealing keys, for the enclaves of one launcher; how it is asked: `attesting`.

It is apart since the kernel gives reports to root only, and opens files anew for each, which no supervisor can; and since one may take seconds (Linux
looks once a second for a quote of TDX, and a host may slow down those of SEV-SNP), for which a supervisor has other things to do. It is executed, with
the server's Python and libraries, in the server's own file tree. It asks for one report at a time, and for none that nobody waits for any more. It ends
when nobody is left who could ask.

Who may ask: supervisors, each for the identity that it enrolled with before its guest ran. So who has taken one over from its guest has reports of that
enclave, and the keys of what was sealed to that. It would have much more, had it what is here: with the device (/dev/sev-guest), reports in the name of any
enclave; with the root key, whatever any enclave of this machine has sealed.

Each enclave has its turn, however many questions another has: one that asks for all that it may costs others one of its reports for each of theirs.

Keys of the platform's present state are derived and given at once, while the hardware makes a report; for others it may have to be asked, in turn.
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
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Self

import msgspec

from adyton import errors
from adyton.attestation.binding import bound_to
from adyton.attestation.evidence import REPORT_DATA_SIZE
from adyton.attestation.hardware import Attester
from adyton.attestation.identity import EnclaveIdentity, Platform
from adyton.attestation.sealing.header import decode_whole
from adyton.attestation.sealing.keys import RootKeys
from adyton.attestation.sealing.roots import Root
from adyton.broker.secret_memory import harden
from adyton.errors import AdytonError, PlatformError
from adyton.runtime.process import namespaces
from adyton.runtime.process.attesting import CONNECTION_SIZE, MAX_MESSAGE
from adyton.runtime.process.key_answers import told

READY = b"ready"
START_SECONDS = 120.0  # for the first report; some hosts let them wait for a minute
END_SECONDS = 5.0
_MOST_WAITING = 64  # questions of one enclave: more than its connections and secrets can be
_IDENTITY = msgspec.msgpack.Decoder(EnclaveIdentity)


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
    from adyton.attestation.sealing.roots import open_root

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a server drains, and its enclaves may need evidence meanwhile
    namespaces.set_name("adyton-attest")
    harden()  # what of it cannot be had here, is as it is: the root key is in this memory
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
        root = open_root(platform)
        sock.send(READY)
        serve(sock, attester, root)


class _Enrolled:
    """A supervisor, by the identity that it has verified."""

    def __init__(self, sock: socket.socket, identity: EnclaveIdentity, root: Root) -> None:
        self.socket = sock
        self.digest = identity.digest()
        self.keys = RootKeys(identity, root)
        self.waits = threading.BoundedSemaphore(_MOST_WAITING)


def serve(asking: socket.socket, attester: Attester, root: Root) -> None:
    """See the module."""
    turns = _Turns()
    worker = threading.Thread(target=_work, args=(turns,), name="adyton-hardware")
    worker.start()
    try:
        _listen(asking, attester, root, turns)
    finally:
        turns.close()
        worker.join()


class _Turns:
    """What is to be done for whom: of each enclave one thing, in turn. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: dict[_Enrolled, deque[Callable[[], None]]] = {}  # of who is next, first
        self._closed = False

    def put(self, whose: _Enrolled, job: Callable[[], None]) -> None:
        """Behind its others."""
        with self._changed:
            self._jobs.setdefault(whose, deque()).append(job)
            self._changed.notify()

    def next(self) -> Callable[[], None] | None:
        """Waits for one; None: there is no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return None
            whose = next(iter(self._jobs))
            jobs = self._jobs.pop(whose)
            job = jobs.popleft()
            if jobs:
                self._jobs[whose] = jobs
            return job

    def close(self) -> None:
        """No more comes."""
        with self._changed:
            self._closed = True
            self._changed.notify()


def _work(turns: _Turns) -> None:
    """What takes its time, one after the other."""
    while (job := turns.next()) is not None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - of one question: others are still to be answered
            sys.excepthook(type(error), error, error.__traceback__)


def _listen(asking: socket.socket, attester: Attester, root: Root, turns: _Turns) -> None:
    poller = select.poll()
    poller.register(asking, select.POLLIN)
    enrolled: dict[int, _Enrolled] = {}  # by descriptor
    while True:
        for descriptor, _ in poller.poll():
            known = enrolled.get(descriptor)
            request = _received_with_socket(asking if known is None else known.socket)
            if request is None:
                poller.unregister(descriptor)
                if known is None:
                    asking.close()
                else:
                    del enrolled[descriptor]
                    known.socket.close()
                if asking.fileno() < 0 and not enrolled:
                    return
                continue
            message, sock = request
            if sock is None:
                continue
            if known is not None:
                _answer(known, message, sock, attester, root, turns)
            elif (new := _enrolled(message, sock, root)) is None:
                sock.close()
            else:
                enrolled[sock.fileno()] = new
                poller.register(sock, select.POLLIN)


def _enrolled(message: bytes, sock: socket.socket, root: Root) -> _Enrolled | None:
    """And it is told of which state of the platform its keys are."""
    try:
        new = _Enrolled(sock, _IDENTITY.decode(message), root)
    except msgspec.MsgspecError:
        return None
    with contextlib.suppress(OSError):
        sock.send(told(_or_error(lambda: root.tcb)), socket.MSG_DONTWAIT)
    return new


def _answer(
    asker: _Enrolled,
    question: bytes,
    sock: socket.socket,
    attester: Attester,
    root: Root,
    turns: _Turns,
) -> None:
    """Now, or later; `sock` is closed then."""
    for_report = len(question) == CONNECTION_SIZE

    def make() -> bytes:
        if for_report:
            return _report(attester, bound_to(question, asker.digest))
        return told(_or_error(lambda: asker.keys.key(question)))

    def give() -> None:
        with sock, contextlib.suppress(OSError):
            if _somebody_waits(sock):
                sock.send(make(), socket.MSG_DONTWAIT)

    def give_in_turn() -> None:
        try:
            give()
        finally:
            asker.waits.release()

    if not for_report and not _is_of_another_state(question, root):
        give()
    elif asker.waits.acquire(blocking=False):
        turns.put(asker, give_in_turn)
    else:
        sock.close()  # it asks for more than any enclave needs


def _is_of_another_state(header: bytes, root: Root) -> bool:
    try:
        return decode_whole(header).tcb != root.tcb
    except AdytonError:
        return False


def _or_error(make: Callable[[], bytes]) -> bytes | AdytonError:
    try:
        return make()
    except AdytonError as error:
        return error


def _received_with_socket(sock: socket.socket) -> tuple[bytes, socket.socket | None] | None:
    """A message, and the socket that came with it; None: nobody is left at the other end."""
    try:
        message, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE + 1, 1)
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
