"""Starting enclaves: the only door of the runtime for the layers above.

A zygote belongs to one tenant and one blob store, and starts any number of enclaves; each is a supervisor's process, known here by a
stream socket that carries its attested channel, and by a descriptor of the process. The zygote is executed, not forked, so its
owner may have threads and grpc.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from adyton import errors
from adyton.attestation.identity import Platform
from adyton.communicator.joining import GRACE_SECONDS
from adyton.errors import AdytonError, ClosedError, PlatformError, UnreachableError
from adyton.handing_over import control_pair
from adyton.runtime.process import root, zygote
from adyton.runtime.process.attester import AttesterProcess
from adyton.runtime.process.sealed_container import SealedFile, sealed_place
from adyton.stopped import STOPPED_SECONDS, stopped

if TYPE_CHECKING:
    from adyton.trusted.application import TrustedApplication

__all__ = ["SUPERVISOR", "Enclave", "LaunchRequest", "Zygote", "launch_in_process", "sealed_place"]

START_SECONDS = 30.0  # for a zygote, and for an enclave
END_SECONDS = 5.0
_LOOK_SECONDS = 0.5  # between two looks at whether a starting process was stopped
SUPERVISOR = "adyton.runtime.process.supervisor.main:run"


Attached = Literal["attester"] | SealedFile


class LaunchRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an enclave is started from: digests ("sha256:HEX") of blobs in the zygote's store, which the supervisor verifies."""

    measurement: str  # of the image: the digest of its OCI manifest
    signatures: list[str]  # of its signature envelopes
    platform: Platform = "sim"
    grace: float = GRACE_SECONDS  # that it waits for another connection of its client's when one is lost
    attached: list[
        Attached
    ] = []  # what the descriptors are that go along with it, after those that always do; `Zygote.launch` says it


class Enclave:
    """A running enclave. `socket`: on which its supervisor is handed connections, see `handing_over`; `pid`, `pidfd`: its supervisor."""

    def __init__(self, stream: socket.socket, pid: int, pidfd: int) -> None:
        self.socket = stream
        self.pid = pid
        self.pidfd = pidfd

    def ended(self, seconds: float = 0) -> bool:
        """Whether it has ended, or does so within that time."""
        if self.pidfd < 0:
            return True
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def kill(self) -> None:
        """End it now, whatever it does; not after `close`, which is to follow."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """End it now, whatever it does. Safe to call again, and from any thread."""
        self.socket.close()
        if self.pidfd < 0:
            return
        self.kill()
        self.ended(END_SECONDS)
        pidfd, self.pidfd = self.pidfd, -1
        os.close(pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def launch_in_process(application: TrustedApplication) -> socket.socket:
    """An enclave on threads of this process, without image, sandbox or proof, for tests: the socket on which it is handed connections."""
    from adyton.runtime.in_process import launch

    return launch(application)


class Zygote:
    """The owner of one zygote process. Thread-safe."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """Use `start`."""
        self._control = control
        self._process = process
        self._lock = threading.Lock()
        self._closed = False
        self._attesters: dict[Platform, AttesterProcess] = {}
        self._attesters_lock = threading.Lock()

    @classmethod
    def start(cls, store: str, *, supervisor: str = SUPERVISOR, additions: Mapping[str, str] | None = None) -> Self:
        """Start one over the blob store in the directory `store`, and wait until it can launch.

        Raises PlatformError, whose failures are the doctor's findings, if there is no sandbox to be had. `supervisor`
        ("module:function") and `additions` (name → file or folder laid beside the runtime's libraries) are for tests.
        """
        _check_store(store)
        plan = root.plan(store, supervisor, additions or {})
        home = os.path.dirname(os.path.dirname(os.path.abspath(errors.__file__)))
        code = (
            "import sys; sys.path.append(sys.argv[1]); "
            "from adyton.runtime.process.zygote import prepare; prepare(sys.argv[2], int(sys.argv[3]))"
        )
        control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", code, home, root.to_json(plan), str(other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                cwd="/",
                start_new_session=True,
            )
        self = cls(control, process)
        _compile(plan)
        try:
            first = _receive(control, lambda: stopped(process.pid))
            if first != zygote.READY:
                raise _reason(first, "the zygote ended before it was ready")
        except AdytonError as error:
            self.close()
            raise _with_findings(error) from error
        return self

    def launch(self, request: LaunchRequest, sealed: Mapping[SealedFile, int] = MappingProxyType({})) -> Enclave:
        """Start an enclave, and wait until it is ready for its client. Any number of threads may. `sealed`: descriptors, see `sealed_place`.

        Raises ImageError or SignatureError if the image is not what it must be, else PlatformError.
        """
        attached = dict[Attached, int](sealed.items())
        if request.platform != "sim":
            attached["attester"] = self._attester(request.platform).asking.fileno()
        request = msgspec.structs.replace(request, attached=list(attached))
        stream, stream_end = control_pair()
        report, report_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with report:
            with stream_end, report_end:
                try:
                    self._send(request, [stream_end.fileno(), report_end.fileno(), *attached.values()])
                except BaseException:
                    stream.close()
                    raise
            enclave = Enclave(stream, 0, -1)
            try:
                self._wait(enclave, report)
            except BaseException:
                enclave.close()
                raise
        return enclave

    def _attester(self, platform: Platform) -> AttesterProcess:
        """Started when the first enclave needs it, or another has ended. PlatformError."""
        with self._attesters_lock:
            found = self._attesters.get(platform)
            if found is not None and not found.ended:
                return found
            if found is not None:
                found.close()
                del self._attesters[platform]
            if self._closed:
                raise ClosedError("the zygote is closed: no enclave can be started any more")
            made = self._attesters[platform] = AttesterProcess(platform)
            return made

    def _send(self, request: LaunchRequest, descriptors: list[int]) -> None:
        with self._lock:
            if self._closed:
                raise ClosedError("the zygote is closed: no enclave can be started any more")
            try:
                socket.send_fds(self._control, [msgspec.msgpack.encode(request)], descriptors)
            except OSError as error:
                raise PlatformError(f"the zygote has ended ({error}): start another one") from error

    def _wait(self, enclave: Enclave, report: socket.socket) -> None:
        """Until the zygote has said who the supervisor is, and the supervisor that it is ready: in either order."""

        def stands_still() -> bool:
            return stopped(self._process.pid) or (enclave.pid > 0 and stopped(enclave.pid, below=True))

        ready = False
        while not ready or enclave.pidfd < 0:
            message, pidfd = _receive_with_descriptor(report, stands_still)
            if message.startswith(zygote.STARTED) and pidfd is not None:
                (enclave.pid,) = zygote.PID.unpack(message[len(zygote.STARTED) :])
                enclave.pidfd = pidfd
            elif message == zygote.READY:
                ready = True
            else:
                raise _reason(message, "the zygote or the enclave's supervisor ended before it was ready")

    def wait(self) -> None:
        """Until it has ended, by `close` or by itself."""
        self._process.wait()

    def close(self) -> None:
        """End it, and all its enclaves. Safe to call again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._control.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._attesters_lock:
            for each in self._attesters.values():
                each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _compile(plan: root.Plan) -> None:
    """Write the bytecode of what supervisors import after their fork: in there nothing can be written. Next to nothing if it is there."""
    import compileall

    for source in (plan.libraries["adyton"], plan.supervisor_libraries["OpenSSL"]):
        compileall.compile_dir(source, quiet=2)  # where it may not be written, each start takes longer


def _receive_with_descriptor(sock: socket.socket, stands_still: Callable[[], bool]) -> tuple[bytes, int | None]:
    _await(sock, stands_still)
    try:
        message, descriptors, _, _ = socket.recv_fds(sock, zygote.MESSAGE_SIZE, 1)
    except ConnectionError:
        return b"", None
    return message, descriptors[0] if descriptors else None


def _await(sock: socket.socket, stands_still: Callable[[], bool]) -> None:
    """Until there is something to read. PlatformError, UnreachableError."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    until = time.monotonic() + START_SECONDS
    still = 0.0
    while not poller.poll(_LOOK_SECONDS * 1000):
        still = still + _LOOK_SECONDS if stands_still() else 0.0
        if still >= STOPPED_SECONDS:
            raise UnreachableError("no enclave could be started: a signal stopped one of its processes. Load it again")
        if time.monotonic() > until:
            raise PlatformError(f"no enclave could be started within {START_SECONDS:.0f} s: is the server overloaded?")


def _receive(sock: socket.socket, stands_still: Callable[[], bool]) -> bytes:
    message, descriptor = _receive_with_descriptor(sock, stands_still)
    if descriptor is not None:
        os.close(descriptor)
    return message


def _reason(message: bytes, otherwise: str) -> AdytonError:
    """What FAILED says; the text `otherwise` for the end of the socket."""
    if not message.startswith(zygote.FAILED):
        return PlatformError(f"{otherwise}: see its messages on standard error")
    name, _, text = message[len(zygote.FAILED) :].decode("utf-8", "replace").partition("\n")
    kind = getattr(errors, name, PlatformError)
    return kind(text) if isinstance(kind, type) and issubclass(kind, AdytonError) else PlatformError(text)


def _with_findings(error: AdytonError) -> PlatformError:
    from adyton.runtime.process.doctor import findings

    lacking = tuple(each for each in findings() if each.needed and not each.ok)
    reasons = "".join(f"\n  {each.name}: {each.detail}" for each in lacking)
    return PlatformError(f"no enclave can be started on this machine: {error}{reasons}", failures=lacking)


def _check_store(store: str) -> None:
    """Make the folder of blobs, and make sure that enclaves, which have user ids of their own, can read it."""
    blobs = os.path.join(store, "blobs", "sha256")
    os.makedirs(blobs, mode=0o755, exist_ok=True)
    for path in (os.path.dirname(blobs), blobs):
        readable = stat.S_IROTH | stat.S_IXOTH
        if os.geteuid() == 0 and os.stat(path).st_mode & readable != readable:
            raise PlatformError(f"enclaves cannot read the blob store: run chmod o+rx {path}")
