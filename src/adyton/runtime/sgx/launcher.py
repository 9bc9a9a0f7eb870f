"""Starting SGX enclaves: a folder for Gramine is made once (application.py), and a manifest signed in it for each image; each enclave is `gramine-sgx` there, and is
handed its image.

Nothing here is trusted by anybody but the server's owner, whom it protects little: an enclave's program can make its host process do anything that the
server's user may (as root: a user id that nobody else has). Gramine says the same of itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from adyton.attestation.dcap import gramine
from adyton.crypto.digest import is_digest
from adyton.errors import ImageError, PlatformError, RemoteProtocolError
from adyton.image.layers import pieces_of
from adyton.image.oci import Image
from adyton.runtime.launch import END_SECONDS, Enclave, LaunchRequest, reason_of
from adyton.runtime.process import namespaces, zygote
from adyton.runtime.sgx.application import lay_out, manifest
from adyton.runtime.sgx.order import MAX_ANSWER, MAX_ORDER, TOKEN_SIZE, Order, hear, say

START_SECONDS = 120.0  # for an enclave: its memory is measured page by page, and Python begins without bytecode
SIGN_SECONDS = 120.0
MAX_SMALL = 1 << 20  # bytes of an OCI manifest or a signature
_ENCLAVE_HASH = slice(960, 992)  # of a SIGSTRUCT: SDM 3D, table 38-21
_PROBE = """libos.entrypoint = "/"
loader.env.RUNTIME = "{{ gramine.runtimedir() }}"
fs.mounts = []
"""


class Gramine:
    """A folder from which enclaves are started. Thread-safe."""

    def __init__(self, folder: str, key: str = "") -> None:
        """Made in `folder`, of which nothing stays that was there. `key`: a file that gramine-sgx-sign takes; "": a new one, as nobody here looks at
        who has signed (MRSIGNER). PlatformError: SGX enclaves are not to be had here."""
        gramine.check()
        self._folder = folder
        self._users = itertools.count(1)
        self._signed: set[str] = set()  # names
        self._lock = threading.Lock()
        try:
            shutil.rmtree(folder, ignore_errors=True)
            os.mkdir(folder, 0o755)
            self._files = lay_out(folder, self._runtime_directory())
            self._key = os.path.abspath(key) if key else self._new_key()
        except OSError as error:
            raise PlatformError(f"{folder}: no enclave of SGX can be made ready there: {error}") from error
        self._sign("adyton", manifest(self._files, ""))  # of no image: what does not work is found out now

    def _name(self, measurement: str) -> str:
        """Of the signed manifest for that image; made, if there is none. What its enclaves are measured as is said on standard error. PlatformError."""
        name = f"adyton-{measurement[7:]}"
        with self._lock:
            if name not in self._signed:
                runtime = self._sign(name, manifest(self._files, measurement))
                self._signed.add(name)
                _say(
                    f"enclaves of the image {measurement} are measured as {runtime} (MRENCLAVE; `runtime` of [expect])"
                )
        return name

    def _write(self, name: str, data: bytes, mode: int = 0o644) -> str:
        path = f"{self._folder}/{name}"
        with open(path, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(data)
        os.chmod(path, mode)
        return path

    def _runtime_directory(self) -> str:
        """Gramine's C library."""
        template = self._write("probe", _PROBE.encode())
        said = self._run("gramine-manifest", template, "-")
        os.remove(template)
        try:
            return str(tomllib.loads(said)["loader"]["env"]["RUNTIME"])
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise PlatformError(f"gramine-manifest does not say where Gramine's runtime is: {said[:200]!r}") from error

    def _new_key(self) -> str:
        """RSA with 3072 bits and exponent 3, as SGX has it; the file goes with the folder."""
        pem = rsa.generate_private_key(3, 3072).private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
        )
        return self._write("key.pem", pem, 0o600)

    def _sign(self, name: str, text: str) -> str:
        """What its enclaves are measured as."""
        try:
            self._write(f"{name}.manifest", text.encode())
            files = ["--manifest", f"{name}.manifest", "--output", f"{name}.manifest.sgx"]
            self._run("gramine-sgx-sign", "--key", self._key, *files)
            with open(f"{self._folder}/{name}.sig", "rb") as file:
                return f"sha256:{file.read()[_ENCLAVE_HASH].hex()}"
        except OSError as error:
            raise PlatformError(f"{self._folder}: no enclave of SGX can be made ready there: {error}") from error

    def _run(self, *command: str) -> str:
        try:
            done = subprocess.run(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SIGN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PlatformError(f"{command[0]} did not end within {SIGN_SECONDS:.0f} s") from error
        if done.returncode:
            raise PlatformError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def launch(self, request: LaunchRequest, store: str) -> Enclave:
        """Start an enclave of the image in the blob store, and wait until it is ready. ImageError, SignatureError, PlatformError. Thread-safe."""
        order = _order(request, store)
        identity = {}
        if namespaces.has_ids_to_give():
            user = namespaces.UID_BASE + namespaces.UID_COUNT - next(self._users)  # the zygote's begin at the other end
            identity = {"user": user, "group": user, "extra_groups": []}
        process = subprocess.Popen(  # type: ignore[call-overload]
            ["gramine-sgx", self._name(request.measurement)],  # noqa: S607 - of the server's own PATH
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            **identity,
        )
        with contextlib.ExitStack() as started:
            started.callback(process.wait, END_SECONDS)
            started.callback(process.kill)
            control = started.enter_context(_control(process))
            try:
                control.settimeout(START_SECONDS)
                say(control, order)
                answer = bytes(hear(control, MAX_ANSWER))
                control.settimeout(None)
            except (OSError, RemoteProtocolError) as error:
                raise PlatformError(f"the SGX enclave did not become ready ({error})") from error
            if answer != zygote.READY:
                raise reason_of(answer, "the SGX enclave ended before it was ready")
            started.pop_all()
        return _Started(control, process)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"adyton: {text}\n")
        sys.stderr.flush()


class _Started(Enclave):
    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        super().__init__(control, process.pid, os.pidfd_open(process.pid))
        self._process = process

    def close(self) -> None:
        super().close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)


def _control(process: subprocess.Popen[bytes]) -> socket.socket:
    """See order.py."""
    assert process.stdin is not None
    assert process.stdout is not None
    token = secrets.token_bytes(TOKEN_SIZE)
    with contextlib.suppress(OSError), process.stdin, process.stdout:
        process.stdin.write(token)
        process.stdin.close()
        port = _line(process.stdout.fileno())
        if port.isdigit():
            control = socket.create_connection(("127.0.0.1", int(port)), END_SECONDS)
            control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            control.sendall(token)
            return control
    raise PlatformError("the SGX enclave did not start: see what Gramine says on the server's standard error")


def _line(descriptor: int) -> str:
    """What comes until a newline; less at the end, or when it takes too long."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    said, until = b"", time.monotonic() + START_SECONDS
    while len(said) < 64 and (left := until - time.monotonic()) > 0 and poller.poll(left * 1000):
        piece = os.read(descriptor, 1)
        if not piece or piece == b"\n":
            break
        said += piece
    return said.decode("ascii", "replace")


def _order(request: LaunchRequest, store: str) -> bytes:
    """What the enclave is handed, in which nothing is believed. ImageError."""

    def pieces(digest: str, size: int) -> Iterator[bytes]:
        return pieces_of(f"{store}/blobs/sha256/{digest[7:]}", 0, size + 1)

    def small(digest: str) -> bytes:
        if not is_digest(digest):
            raise ImageError(f"{digest[:80]!r} is not a digest")
        return b"".join(pieces(digest, MAX_SMALL))

    oci = small(request.measurement)
    signatures = [small(each) for each in request.signatures]
    image = Image.from_store(oci, pieces, signatures)
    size = sum(each.size for each in image.blobs.values())
    if size + MAX_SMALL > MAX_ORDER:
        raise ImageError(
            f"the image {image.manifest.name} has {size} bytes; an SGX enclave takes {MAX_ORDER - MAX_SMALL}"
        )
    blobs = [blob.read() for blob in image.blobs.values()]
    return msgspec.msgpack.encode(Order(oci, signatures, blobs, request.grace))
