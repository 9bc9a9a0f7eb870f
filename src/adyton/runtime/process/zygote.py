"""The process from which enclaves are forked: Python, warm, in a file tree of its own, without grpc and without a network.

    launcher (may have threads and grpc)
      └─ zygote, first `prepare`: namespaces, the tree of root.py; then it executes itself in there: `serve`
           ├─ supervisor, one for each enclave: user id, Landlock domain, few capabilities
           │    └─ guest (guest_start)
           └─ unpacker, one for each layer that several enclaves may share (layer_store)

On the control socket (SEQPACKET) the launcher first gets READY or FAILED, and then sends one LaunchRequest for each enclave, with these
descriptors: the socket on which the enclave's supervisor is handed connections; a SEQPACKET socket that is this launch's alone, see below; and
what the request names in `attached`, in that order, for the supervisor alone:

    attester        the socket on which it asks for reports of the hardware (attesting); there unless the enclave is simulated
    container       the file of its sealed files on this machine's disk (sealed_container); there if they have one
    memory          the file in which sealed files on clients' disks are remembered; likewise

On the second descriptor the launcher gets

    STARTED pid     from the zygote, with a descriptor of the supervisor's process; or
    FAILED error    from the zygote or the supervisor
    READY           from the supervisor: the guest waits for its client

When the launcher closes the control socket, or ends, all enclaves end. Their processes are the zygote's to reap, orphaned guests
included. No adyton module of this process may import what is not in root.PACKAGES or SUPERVISOR_PACKAGES.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from adyton.errors import AdytonError, PlatformError
from adyton.image.layers import PACKAGES
from adyton.runtime.process import (
    attesting,
    idle_watch,
    landlock,
    layer_store,
    memory_group,
    mounts,
    namespaces,
    root,
    sealed_container,
    unpacker,
    vdso,
)
from adyton.runtime.process import filter as syscall_filter
from adyton.runtime.process.dead_mans_switch import DeadMansSwitch

if TYPE_CHECKING:
    from adyton.runtime.launch import LaunchRequest

READY = b"ready"
FAILED = b"failed:"  # class of the error, newline, its text
STARTED = b"started:"  # struct PID
PID = struct.Struct("<i")
MESSAGE_SIZE = 1 << 16
MOST_ATTACHED = 3  # descriptors that LaunchRequest.attached names

PLACE = f"/enclave/{PACKAGES}"  # where programs see an unpacked layer

_KEPT = (namespaces.CAP_SYS_CHROOT,)  # capabilities of a supervisor until its guest runs, see confine.py

# What supervisors and guests need anyway is imported once, before any fork, and its memory is shared.
PRELOAD = (
    "asyncio",
    "base64",
    "collections.abc",
    "concurrent.futures",
    "ctypes",
    "dataclasses",
    "datetime",
    "decimal",
    "encodings.ascii",
    "enum",
    "functools",
    "hashlib",
    "inspect",
    "io",
    "json",
    "logging",
    "pathlib",
    "random",
    "re",
    "secrets",
    "selectors",
    "statistics",
    "tempfile",
    "threading",
    "traceback",
    "typing",
    "uuid",
    "zoneinfo",
    "msgspec",
    "google.protobuf.message",
    "cryptography.hazmat.backends.openssl.backend",
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.hazmat.bindings.openssl.binding",
    "cryptography.x509",
    "adyton.attestation.sealing.keys",
    "adyton.attestation.sim",
    "adyton.communicator.session",
    "adyton.hostcall.check",
    "adyton.runtime.launch",
    "adyton.runtime.process.guest.run",
    "adyton.runtime.process.guest_start",
    "adyton.runtime.process.supervisor.files",
    "adyton.runtime.process.supervisor.loop",
    "adyton.runtime.process.supervisor.emulation",
    "adyton.runtime.process.supervisor.proving",
    "adyton.runtime.process.supervisor.wanted",
    "adyton.trusted",
    "adyton.trusted.aead",
    "adyton.trusted.application",
)


def failure(error: BaseException) -> bytes:
    """FAILED with what the launcher is to raise."""
    kind = type(error).__name__ if isinstance(error, AdytonError) else "PlatformError"
    return FAILED + f"{kind}\n{error}".encode()[:4096]


# -- the first half, under the launcher's Python ----------------------------------------------------------------------------


def prepare(plan: str, descriptor: int) -> NoReturn:
    """Move into namespaces and a file tree of one's own, and go on there as `serve`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)  # what the launcher ignores, its enclaves must not
    control = socket.socket(fileno=descriptor)
    try:
        _execute(root.from_json(plan), descriptor)
    except (OSError, AdytonError, LookupError) as error:
        with contextlib.suppress(OSError):  # the launcher was killed meanwhile
            control.send(failure(error))
        os._exit(1)


def _execute(plan: root.Plan, descriptor: int) -> NoReturn:
    uid, gid = os.geteuid(), os.getegid()
    kinds = namespaces.NEWNS | namespaces.NEWNET | namespaces.NEWIPC
    own_ids = namespaces.has_ids_to_give()
    groups = memory_group.make()
    try:
        if own_ids:
            namespaces.unshare(kinds)
        else:
            namespaces.unshare(kinds | namespaces.NEWUSER)
            # Never root in there: an exec would bring its capabilities back, and a supervisor without CAP_SETFCAP could not map
            # it for its guest (user_namespaces(7), on user id 0 of the parent).
            namespaces.map_ids(uid or namespaces.GUEST_UID, gid or namespaces.GUEST_UID, uid, gid)
        mounts.make_private()
        root.build(plan)
        os.close(os.open(root.FUSE, os.O_RDWR))  # what each guest will do
        if not own_ids:
            namespaces.set_capabilities(_KEPT, inherited=True)
    except OSError as error:
        raise PlatformError(f"the zygote's namespaces and file tree cannot be made here ({error})") from error
    code = (
        f"import sys; sys.path += [{root.LIBRARIES!r}, {root.SUPERVISOR_LIBRARIES!r}]; "
        f"from adyton.runtime.process.zygote import serve; serve({descriptor}, {plan.supervisor!r}, {groups})"
    )
    os.set_inheritable(descriptor, True)
    if groups is not None:
        os.set_inheritable(groups, True)
    interpreter = f"{root.PYTHON}/{plan.interpreter}"
    # multiprocessing starts its processes with the same options, which therefore are no others than these; there are no packages and
    # no environment in here that site or Python could obey.
    options = ["-s", "-P", "-B", "-X", "utf8"]
    os.execve(interpreter, [interpreter, *options, "-c", code], {"LANG": "C.UTF-8"})  # noqa: S606


# -- the second half, under its own Python ----------------------------------------------------------------------------------


def serve(descriptor: int, supervisor: str, groups: int | None) -> NoReturn:
    """Fork supervisors until the launcher closes the socket. `supervisor`: "module:function", see supervisor.main.run.

    `groups`: see memory_group.make.
    """
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    if groups is not None:
        os.set_inheritable(groups, False)
    try:
        for name in PRELOAD:
            importlib.import_module(name)
        module, _, attribute = supervisor.partition(":")
        run = getattr(importlib.import_module(module), attribute)
        _warm_up()
        namespaces.set_name("adyton-zygote")
        namespaces.adopt_orphans()
    except BaseException as error:  # noqa: BLE001 - the launcher raises it
        control.send(failure(error))
        os._exit(1)
    gc.collect()
    gc.freeze()
    _Zygote(control, run, None if groups is None else memory_group.Groups(groups)).serve()


def _warm_up() -> None:
    """Do once, before any fork, what each supervisor does and what is slow the first time: read an image, make a certificate.

    Nothing of it is kept. What is forked draws its random numbers anew: see crypto.fresh.
    """
    import datetime as dt

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    from adyton.crypto.keys import debug_key
    from adyton.image.manifest import Manifest
    from adyton.image.oci import Image
    from adyton.image.sign import add_signature, verified_signature

    for programs in (False, True):
        syscall_filter.guest_filter(programs=programs)
    syscall_filter.supervisor_filter()
    syscall_filter.unpacker_filter()
    with contextlib.suppress(vdso.VdsoError):  # clocks are the server's then, and each load says so
        vdso.install()
    made = add_signature(Image.create(Manifest(name="none", entry="none:", entries=[]), {"none.py": b""}), debug_key())
    blobs = {digest: blob.read() for digest, blob in made.blobs.items()}
    image = Image.from_parts(made.oci_manifest, blobs, [each.envelope for each in made.signatures])
    verified_signature(image, accept_debug=True)
    image.layers()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "none")])
    day = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    x509.CertificateBuilder(name, name, key.public_key(), 1, day, day).sign(key, hashes.SHA256())


class _Zygote:
    def __init__(
        self, control: socket.socket, run: Callable[..., NoReturn], groups: memory_group.Groups | None
    ) -> None:
        self._control = control
        self._run = run
        self._groups = groups
        self._pid = os.getpid()
        self._own_ids = namespaces.has_ids_to_give()
        self._supervisors: set[int] = set()
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poller = select.poll()
        self._layers = layer_store.LayerStore(root.LAYERS, root.layers_limit(), self._unpack, self._poller)
        self._switch = DeadMansSwitch()
        self._idle = idle_watch.IdleWatch(self._poller, sign=self._switch.put_off)

    def serve(self) -> NoReturn:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._poller.register(self._control, select.POLLIN)
        self._poller.register(self._woken, select.POLLIN)
        with contextlib.suppress(OSError):  # the launcher was killed meanwhile, which is seen below
            self._control.send(READY)
        while True:
            for descriptor, _ in self._poller.poll(self._idle.pause()):
                if descriptor == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                elif descriptor == self._control.fileno():
                    if not self._take():
                        self._end()
                elif not self._layers.ready(descriptor):
                    self._idle.ready(descriptor)
            self._idle.look()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._layers.ended(pid)
                self._idle.ended(pid)
                if pid in self._supervisors:
                    self._supervisors.discard(pid)
                    self._end_orphans()
        if self._groups is not None:
            self._groups.sweep()

    def _end_orphans(self) -> None:
        """What a supervisor leaves ends by itself, unless it was stopped."""
        try:
            with open(f"/proc/self/task/{self._pid}/children", encoding="ascii") as file:
                orphans = {int(each) for each in file.read().split()} - self._supervisors - self._layers.unpackers
        except OSError:
            return  # a kernel that does not tell
        for pid in orphans:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _end(self) -> NoReturn:
        for pid in self._supervisors | self._layers.unpackers:
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                self._supervisors.discard(os.waitpid(-1, 0)[0])
                if not self._supervisors:
                    self._end_orphans()
        if self._groups is not None:
            self._groups.remove()
        os._exit(0)

    def _take(self) -> bool:
        """Start what the launcher asks for; False: it is gone."""
        try:
            request, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_SIZE, 2 + MOST_ATTACHED)
        except ConnectionError:
            return False
        if not request:
            return False
        stream, report = (socket.socket(fileno=each) for each in descriptors[:2])
        attached = descriptors[2:]
        with stream, report, contextlib.ExitStack() as owned:
            for each in attached:
                owned.callback(os.close, each)
            try:
                asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                resting, watched = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with asking, resting, self._group() as group:
                    pid = os.fork()
                    if pid == 0:
                        asked.close()
                        watched.close()
                        layer_store.connect(asking)
                        idle_watch.connect(resting, self._switch)
                        memory_group.connect(group)
                        self._supervise(stream, report, request, attached)
            except OSError as error:
                report.send(failure(PlatformError(f"no process for another enclave can be had ({error})")))
                return True
            self._supervisors.add(pid)
            self._layers.join(pid, asked)
            self._idle.join(pid, watched)
            handle = os.pidfd_open(pid)
            with contextlib.suppress(OSError):  # a launcher that does not wait any more
                socket.send_fds(report, [STARTED + PID.pack(pid)], [handle])
            os.close(handle)
        return True

    def _group(self) -> contextlib.AbstractContextManager[memory_group.Group | None]:
        return contextlib.nullcontext() if self._groups is None else contextlib.closing(self._groups.new())

    def _unpack(self, digest: str, size: int, folder: str) -> tuple[int, int]:
        """Start an unpacker, see layer_store.Unpack."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError:
            os.close(reading)
            raise
        else:
            if pid == 0:
                self._leave()
                self._switch.close()
                blob = f"{root.STORE}/blobs/sha256/{digest[7:]}"
                unpacker.run(blob, digest, size, folder, PLACE, writing, self._pid, own_ids=self._own_ids)
        finally:
            os.close(writing)
        return pid, reading

    def _leave(self) -> None:
        """In a child: let go of what is the zygote's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (self._woken, self._waker):
            os.close(descriptor)
        self._control.close()
        self._layers.abandon()
        self._idle.abandon()
        if self._groups is not None:
            self._groups.close()

    def _supervise(self, stream: socket.socket, report: socket.socket, message: bytes, attached: list[int]) -> NoReturn:
        from adyton.crypto.fresh import draw_anew

        reporter = Reporter(report)
        status = 1
        try:
            self._leave()
            draw_anew()
            self._confine()
            request = _decode(message)
            named = dict(zip(request.attached, attached, strict=True))
            asking = named.get("attester")
            attesting.connect(None if asking is None else socket.socket(fileno=asking))
            sealed_container.connect(named.get("container"), named.get("memory"))
            self._run(stream, request, reporter)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except AdytonError as error:
            reporter.fail(error)
        except BaseException as error:  # noqa: BLE001 - nothing may return into the zygote's loop
            sys.excepthook(type(error), error, error.__traceback__)
            reporter.fail(PlatformError(f"the enclave's supervisor failed: {type(error).__name__}: {error}"))
        finally:
            os._exit(status)

    def _confine(self) -> None:
        """Become a process of the enclave's own user, which ends with the zygote."""
        os.setsid()
        namespaces.set_name("adyton-super")
        namespaces.no_new_privileges()
        if self._own_ids:
            namespaces.take_ids(namespaces.UID_BASE + os.getpid(), _KEPT)
        else:
            namespaces.set_capabilities(_KEPT)
        namespaces.die_with_parent()
        if os.getppid() != self._pid:
            os._exit(1)
        namespaces.adopt_orphans()
        landlock.enter_domain()


class Reporter:
    """Tells the launcher once how the start went: call with None (ready) or with the text of a PlatformError, or `fail`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket: socket.socket | None = sock

    def __call__(self, error: str | None) -> None:
        self._send(READY if error is None else failure(PlatformError(error)))

    def fail(self, error: AdytonError) -> None:
        """The launcher raises this error."""
        self._send(failure(error))

    def _send(self, message: bytes) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the launcher is gone, and so will be this process
                self._socket.send(message)
            self._socket.close()
            self._socket = None


def _decode(request: bytes) -> LaunchRequest:
    import msgspec

    from adyton.runtime.launch import LaunchRequest

    return msgspec.msgpack.decode(request, type=LaunchRequest)
