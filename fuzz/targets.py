"""Fuzz targets: one for every parser of bytes from another party. TARGETS is the whole truth about which there are.

A target takes any bytes. Only the errors of its row may leave it; they are what the parser documents. Asserts in a target are what the
parser promises beyond that. The first byte mostly chooses between raw bytes and nearly valid input (see `draw`).
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
import msgspec
from draw import Draw, framed, packed
from google.protobuf.message import DecodeError

from adyton.attestation import sim
from adyton.attestation.evidence import seal
from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.verify import validate, verify
from adyton.channel.client import ClientChannel, EvidenceReceived
from adyton.channel.messages import Accept, AttestRequest, Evidence
from adyton.channel.messages import encode as encode_channel_message
from adyton.channel.server import EvidenceRequested, ServerChannel
from adyton.channel.tls import Tls
from adyton.communicator import frames, messages
from adyton.communicator.session import Called, Limits, Session, Side
from adyton.config import Policy
from adyton.crypto.digest import digest_of
from adyton.crypto.keys import debug_key
from adyton.errors import (
    AdytonError,
    AttestationError,
    EnclaveTypeError,
    ImageError,
    RemoteProtocolError,
    ResourceLimitError,
    SignatureError,
    UsageError,
)
from adyton.hostcall import abi
from adyton.hostcall.check import check
from adyton.hostcall.client.executor import Executor, FunctionRaised
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.hostcall.own_paths import own_path
from adyton.image import archive, dsse
from adyton.image.layers import unpack_layer
from adyton.image.manifest import Entry, Manifest, Parameter, canonical_json, decode_manifest, encode_manifest
from adyton.image.oci import APPLICATION_LAYER, ARTIFACT_TYPE, CONFIG_TYPE, OCI_MANIFEST_TYPE, SIGNATURE_TYPE, Image
from adyton.image.sign import add_signature, verified_signature
from adyton.image.signature import PAYLOAD_TYPE, make_signature, read_signature
from adyton.processes_pb2 import ProcessesReply
from adyton.proto.values import Signature, decode_result
from adyton.provision.store import BlobStore
from adyton.provision.upload import Reception
from adyton.provision_pb2 import ProvisionRequest
from adyton.remote import connection
from adyton.remote.certificates import Shown
from adyton.remote.dial_address import _seen, target_for
from adyton.remote.proc_files import parse_children, parse_stat, parse_status
from adyton.remote.process_metrics import GAUGES
from adyton.remote.process_query import reports_of
from adyton.runtime.process.guest import link
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.files import Answer, Ask, Effect, FileServer
from adyton.runtime.process.supervisor.fuse_abi import FORMS, Opcode
from adyton.runtime.process.supervisor.layout import Layout, is_normal

# -- communicator: sessions, and the bodies of calls ------------------------------------------------------------------

SMALL = Limits(message=3 << 14, notification=2 << 14, buffered=5 << 14, pairs=4, nesting=4, in_flight=8)
METHODS = ("load", "enter", "run", "finalize", "host", "output", "ended", "")
FRAMES = (*[frames.CallFrame] * 3, *[frames.ReplyFrame] * 2, frames.NotifyFrame, *[frames.MoreFrame] * 3)
RARE_FRAMES = (frames.CancelFrame, frames.DisposeFrame, frames.GoodbyeFrame, frames.PingFrame, frames.PongFrame)


def session(side: Side, data: bytes) -> None:
    """The peer's bytes, between calls and replies of this end's own."""
    draw, ours = Draw(data, METHODS), Session(side, SMALL)
    raw, waiting, next_call, next_notification = draw.below(8) == 0, [], 1, 1
    while draw:
        piece = draw.blob() if raw else b""
        if not raw:
            frame = draw.struct(draw.pick((*FRAMES, *RARE_FRAMES)))
            if isinstance(frame, frames.CallFrame) and draw.often():
                frame = msgspec.structs.replace(frame, call=next_call, size=_size_of(draw, frame.chunk))
                next_call += 1
            elif isinstance(frame, frames.NotifyFrame) and draw.often():
                frame = msgspec.structs.replace(frame, notification=next_notification, size=_size_of(draw, frame.chunk))
                next_notification += 1
            elif isinstance(frame, frames.MoreFrame) and draw.often():
                frame = msgspec.structs.replace(frame, chunk=bytes(frames.CHUNK))
            elif isinstance(frame, frames.ReplyFrame) and draw.often():
                frame = msgspec.structs.replace(frame, size=_size_of(draw, frame.chunk))
            piece = draw.spoilt(frames.encode(frame))
        try:
            events = ours.receive(piece)
        except (RemoteProtocolError, ResourceLimitError) as error:
            ours.data_to_send()
            with contextlib.suppress(type(error)):
                ours.receive(b"more")
                raise AssertionError("a session that has failed takes more bytes") from error
            raise
        waiting += [event.call for event in events if isinstance(event, Called)]
        with contextlib.suppress(AdytonError):  # of this end's own doing
            _act(draw, ours, waiting)
        assert ours._arrived <= SMALL.buffered  # noqa: SLF001


def _size_of(draw: Draw, chunk: bytes) -> int:
    return len(chunk) if draw.often() else draw.below(256) << 10


def _act(draw: Draw, ours: Session, waiting: list[int]) -> None:
    action = draw.below(8)
    if action == 0:
        ours.call(draw.below(4), "host", draw.blob())
    elif action == 1 and waiting:
        ours.reply(waiting.pop(), ok=True, body=draw.blob())
    elif action == 2:
        ours.cancel(draw.below(4))
    elif action == 3:
        ours.data_to_send(draw.below(256) << 6)
    elif action == 4:
        ours.notify("output", draw.blob())


def message(data: bytes) -> None:
    """Each type of body; a load's grants go on into the layout of the guest's files."""
    draw = Draw(data, (*PATHS, "UTC", "TZ"))
    kinds = (messages.LoadRequest, messages.LoadReply, messages.EnterRequest, messages.Raised)
    kind: Any = draw.pick(kinds)
    body = draw.spoilt(packed(draw.struct(kind))) if draw.often() else draw.rest()
    decoded = messages.decode(body, kind)
    assert messages.decode(messages.encode(decoded), kind) == decoded
    if isinstance(decoded, messages.LoadRequest):
        layout = Layout(decoded.grants, decoded.working_directory)
        for path in (*filter(is_normal, PATHS), layout.working_directory):
            layout.classify(path)


# -- channel ----------------------------------------------------------------------------------------------------------


def client_channel(data: bytes) -> None:
    """A server that makes its own TLS properly, or not."""
    _channel(data, ClientChannel(nonce=bytes(range(32))), Tls.server())


def server_channel(data: bytes) -> None:
    """A client that makes its own TLS properly, or not."""
    _channel(data, ServerChannel(bytes(32)), Tls.client())


def _channel(data: bytes, ours: ClientChannel | ServerChannel, peer: Tls) -> None:
    draw = Draw(data)
    kind = draw.below(4)
    if kind == 0:
        while draw:
            _received(draw, ours, draw.blob())
        return
    for _ in range(3):
        _received(draw, ours, _spoilt(draw, peer.data_to_send(), kind == 1))
        with contextlib.suppress(RemoteProtocolError):
            peer.receive(ours.data_to_send())
    closing = False
    while draw and peer.finished and not closing:
        text = draw.blob()
        if draw.often():
            text = encode_channel_message(draw.struct(draw.pick((AttestRequest, Evidence, Accept))))
        if kind == 2 and not ours.established and draw.often():
            right = Evidence(b"evidence") if isinstance(ours, ClientChannel) else AttestRequest(1, bytes(32))
            text = encode_channel_message(Accept() if ours._state == "acceptance" else right)  # noqa: SLF001
        peer.send(text)
        if closing := draw.below(16) == 15:
            peer.close()
        _received(draw, ours, _spoilt(draw, peer.data_to_send(), spoil=kind == 3 and draw.below(8) == 0))


def _received(draw: Draw, ours: ClientChannel | ServerChannel, data: bytes) -> None:
    half = len(data) // 2 if draw.below(2) else 0
    for piece in (data[:half], data[half:]):
        for event in ours.receive(piece):
            if isinstance(event, EvidenceReceived) and isinstance(ours, ClientChannel):
                ours.report_data(bytes(32))
                ours.accept()
            elif isinstance(event, EvidenceRequested) and isinstance(ours, ServerChannel):
                ours.provide(b"evidence")


def _spoilt(draw: Draw, flight: bytes, spoil: bool) -> bytes:
    """The flight with some of its bytes changed."""
    if not spoil:
        return flight
    changed = bytearray(flight)
    for _ in range(draw.below(4)):
        at, change = int.from_bytes(draw.take(2), "little"), draw.below(256)
        if changed:
            changed[at % len(changed)] ^= change
    return bytes(changed)


# -- attestation ------------------------------------------------------------------------------------------------------

HASH = "sha256:" + "1f" * 32
WORDS_OF_EVIDENCE = (HASH, "", "sim", "tdx")
EXPECTED = Expectation(platforms=("sim",), measurement=(HASH,))


def evidence(data: bytes) -> None:
    """Raw evidence; or claims that are signed, which anybody can do for a simulated enclave."""
    draw = Draw(data, WORDS_OF_EVIDENCE)
    kind = draw.below(3)
    if kind == 0:
        shown = draw.rest()
    else:
        drawn = draw.struct(EnclaveIdentity)
        claims = msgspec.json.encode(sim.SimulatedClaims(drawn, bytes(64))) if kind == 1 else draw.rest()
        signature = sim.simulation_key().sign(sim._signed(claims))  # noqa: SLF001
        shown = seal("sim", sim.SimulatedBody(claims, signature))
    verified = verify(shown)
    assert len(verified.identity.digest()) == 32
    validate(verified, EXPECTED, bytes(64))


# -- the guest's end --------------------------------------------------------------------------------------------------


def guest_link(data: bytes) -> None:
    """What a guest sends to its supervisor, cut anywhere."""
    draw = Draw(data, ("lookup",))
    reader = link.Reader(link.ToSupervisor)
    while draw:
        piece = draw.blob()
        if draw.often():
            piece = framed(draw.spoilt(packed(draw.struct(link.ToSupervisor))) if draw.often() else piece)
        cut = draw.below(256)
        for part in (piece[:cut], piece[cut:]):
            for received in reader.receive(part):
                assert isinstance(received, link.ToSupervisor)


# -- files in the enclave ---------------------------------------------------------------------------------------------

PATHS = (
    *(
        "/work",
        "/work/in",
        "/work/out",
        "/work/out/d",
        "/tmp",
        "/tmp/d",
        "/tmp/shared",
        "/",
        "/etc",
        "/usr/lib",
        "/opt",
    ),
    *(
        "/opt/adyton",
        "/home/ann/.netrc",
        "a",
        "d",
        "..",
        ".",
        "../../etc",
        "/work/../etc",
        "/work//out",
        "é",
        "\0",
        "x" * 300,
    ),
)
NAMES = (*(os.fsencode(path.rpartition("/")[2]) for path in PATHS), b"in", b"work", b"\xff", b"lib")
FEW = (b"d", b"e", b"f")
READ, WRITE = messages.Grant("/work/in", "read"), messages.Grant("/work/out", "write")
LAYOUTS = (
    Layout([READ, WRITE, messages.Grant("/tmp/shared/deep", "write")], "/work"),
    Layout([READ, WRITE], "/"),
    Layout([messages.Grant("/", "write")], "/work"),
)
OPCODES = (
    *FORMS,
    *[Opcode.OPEN, Opcode.CREATE, Opcode.READ, Opcode.WRITE, Opcode.SETATTR] * 2,
    Opcode.GETATTR,
    Opcode.READLINK,
    Opcode.STATFS,
    Opcode.DESTROY,
)
RESULTS: Mapping[type, Any] = {
    abi.Access: abi.Done,
    abi.Stat: abi.Attributes,
    abi.ReadLink: abi.Target,
    abi.List: abi.Entries,
    abi.Open: abi.Attributes,
    abi.Read: abi.Data,
    abi.Write: abi.Written,
    abi.SetAttributes: abi.Attributes,
    abi.Sync: abi.Done,
    abi.SyncDirectory: abi.Done,
    abi.Close: abi.Done,
    abi.MakeDirectory: abi.Attributes,
    abi.Remove: abi.Done,
    abi.Rename: abi.Done,
    abi.ReadInput: abi.Data,
    abi.Call: abi.Value,
}
ERRORS = ("ENOENT", "EACCES", "EEXIST", "EIO", "E2BIG", "EINTR", "nonsense")


FLAGS = (*(0, 0, 1, 2, 2, 3), os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_EXCL | os.O_CREAT, -1)
SEEN = (("/", b"work"), ("/work", b"in"), ("/work", b"out"), ("/work/out", b"d"), ("/work/out", b"f"), ("/", b"tmp"))
_ENTRIES = {Opcode.LOOKUP, Opcode.MKDIR, Opcode.SYMLINK, Opcode.CREATE}
_OPENS = {Opcode.OPEN, Opcode.OPENDIR, Opcode.CREATE}


@dataclass
class _Mount:
    """A file server with a kernel and a client that do anything. `nodes`, `handles`: what the kernel was told of."""

    draw: Draw
    server: FileServer
    sent: dict[int, int] = field(default_factory=dict)  # operations by their unique
    answered: set[int] = field(default_factory=set)
    nodes: list[int] = field(default_factory=lambda: [fuse_abi.ROOT_ID])
    handles: list[int] = field(default_factory=lambda: [0, 1])  # 0: the standard input's
    asks: list[Ask] = field(default_factory=list)

    def carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Answer):
                self._answered(effect.data)
                continue
            request = effect.request
            assert msgspec.msgpack.decode(packed(request), type=abi.Request) == request
            for name in ("path", "source", "target"):
                path = getattr(request, name, "/")
                assert path in ("", "/") or own_path(path) is None, "the client was asked about the enclave's own"
            if isinstance(effect, Ask):
                self.asks.append(effect)

    def _answered(self, data: bytes) -> None:
        length, error, unique = struct.unpack_from("<IiQ", data)
        assert length == len(data)
        assert -4096 < error <= 0
        assert unique not in self.answered, "answered twice"
        self.answered.add(unique)
        operation = 0 if error else self.sent.get(unique, 0)
        if operation in _ENTRIES:
            self.nodes.append(struct.unpack_from("<Q", data, fuse_answers.ANSWER_SIZE)[0])
        if operation in _OPENS:
            self.handles.append(struct.unpack_from("<Q", data, length - 16)[0])  # an OpenAnswer comes last

    def look_around(self) -> None:
        """The kernel learns of some names, all of directories but "f", and makes two in /tmp."""
        found = {"/": fuse_abi.ROOT_ID}
        for number, (above, name) in enumerate(SEEN, 1):
            path = above.rstrip("/") + "/" + name.decode()
            self._send(Opcode.LOOKUP, found[above], name + b"\0")
            self._find("file" if name == b"f" else "directory", number)
            found[path] = self.nodes[-1]
        self._send(Opcode.MKDIR, found["/tmp"], struct.pack("<II", 0o755, 0) + b"d\0")
        self._find("directory", len(SEEN) + 1)
        self._send(Opcode.CREATE, found["/tmp"], struct.pack("<III4x", os.O_RDWR, 0o644, 0) + b"f\0")
        self._find("file", len(SEEN) + 2)

    def _find(self, kind: abi.Kind, identity: int) -> None:
        while self.asks:
            ask = self.asks.pop()
            self.carry_out(self.server.resume(ask.ticket, abi.Attributes(kind, identity, 1, 0o755, 1, 0, 0, 0)))

    def request(self) -> None:
        """A message from the kernel: its fields drawn one by one, or as raw bytes."""
        draw = self.draw
        opcode = draw.pick(OPCODES)
        form = FORMS.get(opcode)
        raw = form is None or draw.below(16) == 0
        body = draw.take(draw.below(128)) if raw else self._body(form)
        self._send(opcode, self._node(), body)

    def _node(self) -> int:
        draw = self.draw
        return draw.pick(self.nodes[-64:]) if draw.often() else draw.below(32)

    def _send(self, opcode: int, node: int, body: bytes) -> None:
        unique = 2 * len(self.sent) + 2
        self.sent[unique] = opcode
        length = fuse_abi.HEADER_SIZE + len(body)
        header = struct.pack("<IIQQIII4x", length, int(opcode), unique, node, 1000, 1000, 1)
        self.carry_out(self.server.receive(header + body))

    def _body(self, form: fuse_abi.Form) -> bytes:
        draw, data = self.draw, b""
        values = [self._field(name) for name in getattr(form.make, "_fields", ())]
        values = values[: len(form.fixed.unpack(bytes(form.fixed.size)))]
        if form.tail in ("name", "names"):
            count = 2 if form.tail == "names" else 1
            data = b"".join(draw.pick(FEW if draw.often() else NAMES) + b"\0" for _ in range(count))
        elif form.tail == "data":
            data = draw.blob()
            values[2] = len(data)
        elif form.tail == "nodes":
            values = [draw.below(4)]
            data = b"".join(struct.pack("<QQ", self._node(), draw.below(4)) for _ in range(values[0]))
        with contextlib.suppress(struct.error):
            return form.fixed.pack(*values) + data
        return form.fixed.pack(*[value & 0xFF for value in values]) + data

    def _field(self, name: str) -> int:
        draw = self.draw
        match name:
            case "handle":
                return draw.pick(self.handles[-64:]) if draw.often() else draw.number()
            case "directory" | "node":
                return self._node()
            case "unique":
                return draw.pick(list(self.sent)[-64:] or [0])
            case "flags":
                return draw.pick(FLAGS) & 0xFFFFFFFF
            case "valid":
                return draw.below(256) | draw.below(2) << 8
            case "accessed_nanoseconds" | "modified_nanoseconds":
                return draw.number() % fuse_abi.SECOND
        return draw.number()

    def answer(self) -> None:
        """What the client says to one of the host calls that wait for it."""
        draw = self.draw
        ask = self.asks.pop(draw.below(len(self.asks)))
        self.carry_out(self.server.resume(ask.ticket, check(ask.request, result_of(draw, ask.request))))


def result_of(draw: Draw, request: Any) -> bytes:
    """A client's answer: mostly one that fits the request."""
    kind = draw.below(16)
    if kind == 0:
        return draw.blob()
    if kind == 1:
        return packed(draw.struct(abi.Result))
    if kind < 4:
        return packed(abi.Failed(draw.pick(ERRORS)))
    result = draw.struct(RESULTS[type(request)])
    if isinstance(request, abi.Write) and draw.often():
        result = abi.Written(len(request.data))
    if isinstance(request, abi.Open) and draw.often():
        result = msgspec.structs.replace(result, kind="file")
    return draw.spoilt(packed(result))


def file_server(data: bytes) -> None:
    """Requests of the kernel, and the client's answers in any order."""
    draw = Draw(data, PATHS)
    mount = _Mount(draw, FileServer(wanted=lambda _thread, _path: None, now=lambda: 1, capacity=1 << 20))
    if draw.below(16) == 0:
        mount.carry_out(mount.server.receive(draw.rest()))
        return
    if draw.below(8):
        mount.server.set_layout(draw.pick(LAYOUTS))
        if draw.below(2):
            mount.server.open_standard_input()
        mount.look_around()
    while draw:
        mount.request()
        while draw and mount.asks and draw.often():
            mount.answer()
    mount.carry_out(mount.server.abort())
    while mount.asks:
        mount.answer()


def host_call_result(data: bytes) -> None:
    """What a client answers to a host call of each kind."""
    draw = Draw(data, (*PATHS, *ERRORS))
    request = draw.struct(draw.pick(tuple(RESULTS)))
    result = check(request, draw.rest() if draw.below(4) == 0 else result_of(draw, request))
    assert isinstance(result, RESULTS[type(request)] | abi.Failed)
    assert msgspec.msgpack.decode(packed(result), type=abi.Result) == result


# -- files on the client ----------------------------------------------------------------------------------------------


def host_call(data: bytes) -> None:
    """Any requests: under an empty policy, and under one that allows a folder with links out of it."""
    draw = Draw(data)
    with tempfile.TemporaryDirectory(prefix="adyton-fuzz-") as home:
        allowed, secret = f"{home}/allowed", f"{home}/secret"
        for folder in (allowed, secret, f"{allowed}/d"):
            os.mkdir(folder)
        for path in (f"{allowed}/f", f"{secret}/f"):
            with open(path, "wb") as file:
                file.write(b"content")
        os.symlink("../secret", f"{allowed}/out")
        os.symlink("d", f"{allowed}/in")
        os.symlink("loop", f"{allowed}/loop")
        os.mkfifo(f"{allowed}/pipe")
        write = [allowed] if draw.often() else []
        policy = HostCallPolicy.create(base=home, read=[], write=write, net=[], listen=[], env=[], call=["twice"])
        names = (
            "f",
            "d",
            "out",
            "in",
            "loop",
            "pipe",
            "new",
            "out/f",
            "d/g",
            "in/g",
            "../secret/f",
            ".",
            "..",
            "é",
            "\0",
        )
        words = [
            home,
            secret,
            f"{secret}/f",
            "/",
            allowed,
            "twice",
            "/etc/passwd",
            *(f"{allowed}/{name}" for name in names),
        ]
        before = _state(secret)
        with Executor(policy, [_twice], denied=lambda _line: None, output=lambda _output: None) as executor:
            for request in _requests(draw, words):
                try:
                    result = executor.execute(request)
                except FunctionRaised as raised:
                    assert isinstance(raised.error, AdytonError | LookupError)  # noqa: PT017
                    continue
                assert msgspec.msgpack.decode(packed(result), type=abi.Result) == result
                if not write and not isinstance(request, abi.Call):
                    assert isinstance(result, abi.Failed) or leads(request, home), "an empty policy allowed something"
                if isinstance(result, abi.Failed):
                    assert result.errno in abi.ERRNO_NAMES
        assert _state(secret) == before, "a folder that was not allowed was changed"


def leads(request: Any, home: str) -> bool:
    """Whether it is about the working directory or a folder above it, which may be looked at."""
    return isinstance(request, abi.Stat) and (home + "/").startswith(request.path.rstrip("/") + "/")


def _twice(number: int) -> int:
    return number * 2


def _requests(draw: Draw, words: Sequence[str]) -> Iterator[Any]:
    named = Draw(draw.rest(), words)
    while named:
        drawn = named.spoilt(packed(named.struct(abi.Request))) if named.below(16) else named.blob()
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            yield msgspec.msgpack.decode(drawn, type=abi.Request)


def _state(folder: str) -> list[tuple[str, int, int, bytes]]:
    found = []
    for name in sorted(os.listdir(folder)):
        status = os.lstat(f"{folder}/{name}")
        with open(f"{folder}/{name}", "rb") as file:
            found.append((name, status.st_mode, status.st_mtime_ns, file.read(64)))
    return found


@functools.cache
def _memory() -> str | None:
    """Where files cost least."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# -- images -----------------------------------------------------------------------------------------------------------

MANIFEST = Manifest(
    name="pay", entry="pay:", entries=[Entry("pay", [Parameter("path", "str", required=True)], "float", stream=False)]
)


@functools.cache
def signed_image() -> Image:
    """A small image with a debug signature."""
    return add_signature(Image.create(MANIFEST, {"pay.py": b"def pay(path: str) -> float: ...\n"}), debug_key())


def _parts(draw: Draw) -> tuple[bytes, dict[str, bytes], list[bytes]]:
    """OCI manifest, blobs and signatures of the small image, one of them replaced; digests that cover it are made right again."""
    image = signed_image()
    config, layer = image.blobs[image.config_digest].read(), image.layers()[0]
    envelope = image.signatures[0].envelope
    kind = draw.below(6)
    blob = draw.rest()
    if kind == 0:
        config = _canonical(blob)
    elif kind == 1:
        layer = blob
    elif kind == 2:
        envelope = blob
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": APPLICATION_LAYER, "digest": digest_of(layer), "size": len(layer)}],
        }
    )
    if kind == 3:
        manifest = _canonical(blob)
    elif kind == 4:
        envelope = make_signature(digest_of(manifest), MANIFEST, debug_key())
    elif kind == 5:
        envelope = dsse.sign(PAYLOAD_TYPE, _canonical(blob), debug_key())
    return manifest, {digest_of(data): data for data in (config, layer)}, [envelope]


def _canonical(text: bytes) -> bytes:
    """JSON in the one spelling that is accepted; anything else as it is."""
    try:
        return canonical_json(msgspec.json.decode(text))
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        return text


def image_parts(data: bytes) -> None:
    """What a store or a supervisor is given."""
    manifest, blobs, signatures = _parts(Draw(data))
    image = Image.from_parts(manifest, blobs, signatures)
    verified_signature(image, accept_debug=True)


def image_file(data: bytes) -> None:
    """A raw file; or an archive of right headers around anything."""
    draw = Draw(data)
    kind = draw.below(4)
    if kind == 0:
        content = draw.rest()
    elif kind == 1:
        content = _archive(draw)
    else:
        index = draw.take(draw.below(256) * 4) if kind == 2 else b""
        manifest, blobs, signatures = _parts(draw)
        files = {f"blobs/sha256/{digest_of(blob)[7:]}": blob for blob in (manifest, *blobs.values(), *signatures)}
        listed = [(OCI_MANIFEST_TYPE, manifest), *((SIGNATURE_TYPE, each) for each in signatures)]
        entries = [{"mediaType": kind, "digest": digest_of(blob), "size": len(blob)} for kind, blob in listed]
        files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        files["index.json"] = index or canonical_json({"schemaVersion": 2, "mediaType": "", "manifests": entries})
        content = archive.pack(files)
    with tempfile.NamedTemporaryFile(prefix="adyton-fuzz-", dir=_memory()) as file:
        file.write(content)
        file.flush()
        image = Image.open(file.name)
        assert (
            Image.from_parts(
                image.oci_manifest,
                {digest: blob.read() for digest, blob in image.blobs.items()},
                [each.envelope for each in image.signatures],
            ).measurement
            == image.measurement
        )
        verified_signature(image, accept_debug=True)


def _archive(draw: Draw) -> bytes:
    """A tar archive whose checksums are right, and little else."""
    names = ("a", "a/b", "a/b/c", "b", "../a", "/a", "a/", "a//b", "a/./b", "é", "\x01", "oci-layout", "index.json")
    parts = []
    while draw:
        content = draw.blob()[:4096]
        block = bytearray(archive.header("a", len(content)))
        name = draw.pick(names).encode() if draw.often() else draw.take(draw.below(100))
        block[0:100] = name.ljust(100, b"\0")[:100]
        if draw.below(4) == 0:
            block[156:157] = draw.pick((b"0", b"5", b"\0", b"1", b"2", b"L", b"x"))
        if draw.below(4) == 0:
            field_at, size = draw.pick(((100, 8), (124, 12), (257, 8), (345, 155), (157, 100)))
            block[field_at : field_at + size] = draw.take(size).ljust(size, b"\0")
        if block[156:157] == b"5" and draw.often():
            block[124:136], content = b"00000000000\0", b""
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        parts += [bytes(block), content, bytes(-len(content) % archive.BLOCK)]
    return b"".join(parts) + bytes(draw.pick((1024, 1024, 512, 0)))


def layer(data: bytes) -> None:
    """A layer, unpacked twice: below an empty folder, and over what is there then. Nothing appears beside the folder."""
    draw = Draw(data)
    content = draw.rest() if draw.below(4) == 0 else _archive(draw)
    with tempfile.TemporaryDirectory(prefix="adyton-fuzz-", dir=_memory()) as home:
        folder = f"{home}/folder"
        os.mkdir(folder)
        os.symlink("/", f"{folder}/b")
        try:
            unpack_layer(content, folder)
            unpack_layer(content, folder)
        finally:
            assert os.listdir(home) == ["folder"]
            assert os.path.islink(f"{folder}/b")
            for above, folders, files in os.walk(folder):
                assert not any(
                    os.path.islink(f"{above}/{name}") for name in (*folders, *files) if (above, name) != (folder, "b")
                )


def signature(data: bytes) -> None:
    """A raw envelope; or a signed one around anything."""
    draw = Draw(data)
    kind = draw.below(3)
    text = draw.rest()
    if kind == 0:
        dsse.open_envelope(text)
        envelope = text
    elif kind == 1:
        envelope = dsse.sign(PAYLOAD_TYPE, text, debug_key())
    else:
        envelope = _canonical(text)
    read_signature(envelope, signed_image().measurement, MANIFEST)


def manifest(data: bytes) -> None:
    """A config blob as it is; or in the spelling in which it might be accepted."""
    draw = Draw(data)
    canonical = draw.often()
    text = draw.rest()
    decoded = decode_manifest(_canonical(text) if canonical else text)
    assert decode_manifest(encode_manifest(decoded)) == decoded
    decoded.runs_on_python((3, 11))
    assert all(str(entry) for entry in decoded.entries)


def upload(data: bytes) -> None:
    """The steps of an upload, as a server receives them."""
    draw = Draw(data)
    with tempfile.TemporaryDirectory(prefix="adyton-fuzz-", dir=_memory()) as home:
        first = ProvisionRequest.FromString(draw.take(draw.below(256) * 8))
        reception = Reception(BlobStore(home), first.offer)
        try:
            while not reception.complete and draw:
                reception.receive(ProvisionRequest.FromString(draw.take(draw.below(256))).chunk)
            if reception.complete:
                verified_signature(reception.image(), accept_debug=True)
        finally:
            reception.close()


# -- policy, values, errors of servers --------------------------------------------------------------------------------


def policy(data: bytes) -> None:
    """A policy file, up to the rules that are made of it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # refused where the file is read
    read = Policy.parse(text, name="p.toml", base="/work")
    read.extended(environment={})
    if read.expect is not None:
        read.expect.check()
    read.host_calls("/work")


class _Point(msgspec.Struct):
    x: int
    y: float = 0.0


def _annotated(
    numbers: list[int], *rest: str, point: _Point | None = None, **more: dict[str, bytes]
) -> tuple[str, ...]:
    raise AssertionError((numbers, rest, point, more))


def _plain(first, second=None, *rest, **more):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202
    raise AssertionError((first, second, rest, more))


def value(data: bytes) -> None:
    """Arguments and results, with annotations and without."""
    draw = Draw(data)
    kind = draw.below(6)
    body = draw.rest()
    if kind < 4:
        function = (_annotated, _plain)[kind % 2]
        Signature(function).decode_arguments(body, "msgpack" if kind < 2 else "json")
    else:
        decode_result("entry", body, *([dict[str, tuple[int, ...]]] if kind == 4 else []))


class _Failure(grpc.RpcError):
    """What grpc raises for a call that a server ended; all of it is the server's."""

    def __init__(self, data: bytes) -> None:
        draw = Draw(data, ("ImageError", "EnclaveError", "HostCallDeniedError", "annotations", "AdytonError", "text"))
        self._status = draw.pick(list(grpc.StatusCode))
        detail = draw.spoilt(packed([draw.text(), draw.text()])) if draw.often() else draw.rest()
        self._metadata = ((connection.ERROR_METADATA, detail),)

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> Any:
        return self._metadata


def server_error(data: bytes) -> None:
    """What a server says of a failure."""
    error = connection.error_from(_Failure(data), "grpc://host", connected=bool(data and data[0] & 1))
    assert isinstance(error, AdytonError)


def dial_back(data: bytes) -> None:
    """Where a client wants to be dialled, and as what gRPC sees it: two lines."""
    offered, _, peer = data.decode("utf-8", "surrogateescape").partition("\n")
    target = target_for(offered, peer)
    if target.startswith("unix:"):
        return
    host, _, port = target.rpartition(":")
    assert 0 < int(port) < 65536
    dialled = ipaddress.ip_address(unquote(host).strip("[]"))
    assert dialled.is_loopback or dialled == _seen(peer)


# -- processes of an enclave ------------------------------------------------------------------------------------------------


def proc_file(data: bytes) -> None:
    """A file of /proc as it is, or the end of one that began well: its program chooses a process's name."""
    kind, text = data[:1], data[1:]
    if kind == b"\0":
        parse_stat(text)
    elif kind == b"\1":
        parse_status(text)
    elif kind == b"\2":
        parse_children(text)
    else:
        name, _, rest = text.partition(b"\n")
        stat = parse_stat(b"12 (" + name + b") S " + b"1 " * 49 + rest.replace(b")", b""))
        assert stat.ppid == 1
        assert stat.comm == name.decode("utf-8", "replace")


def process_report(data: bytes) -> None:
    """What a server says of processes, up to the numbers that are shown."""
    raw = data[:1] == b"\0"
    for report in reports_of(data[1:] if raw else _reply(Draw(data))).values():
        for gauge in GAUGES:
            value = gauge.value(report.stat)
            assert value is None or isinstance(value, float) or -(1 << 63) <= value < 1 << 63


def _reply(draw: Draw) -> bytes:
    reply = ProcessesReply()
    for _ in range(draw.below(4)):
        report = reply.processes.add(kind=draw.below(5), error=draw.text())
        for each in report.stat.DESCRIPTOR.fields:
            if draw.often():
                with contextlib.suppress(ValueError, TypeError):  # out of the field's range, or a text
                    setattr(report.stat, each.name, draw.number())
    return draw.spoilt(reply.SerializeToString())


def server_certificate(data: bytes) -> None:
    """What a server that is not trusted shows as its certificate."""
    shown = Shown.read(data)
    if shown is not None:
        assert (shown.issuer + shown.names + shown.wrong_dates(shown.until)).isprintable()


# -- the table --------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """`run` takes any bytes; `raises` may leave it, and nothing else."""

    run: Callable[[bytes], None]
    raises: tuple[type[Exception], ...] = ()

    def __call__(self, data: bytes) -> None:
        with contextlib.suppress(*self.raises):
            self.run(data)


TARGETS: Mapping[str, Target] = {
    "client-session": Target(functools.partial(session, Side.CLIENT), (RemoteProtocolError, ResourceLimitError)),
    "enclave-session": Target(functools.partial(session, Side.ENCLAVE), (RemoteProtocolError, ResourceLimitError)),
    "message": Target(message, (RemoteProtocolError, UsageError)),
    "client-channel": Target(client_channel, (RemoteProtocolError,)),
    "server-channel": Target(server_channel, (RemoteProtocolError,)),
    "evidence": Target(evidence, (AttestationError,)),
    "guest-link": Target(guest_link, (RemoteProtocolError,)),
    "file-server": Target(file_server),
    "host-call-result": Target(host_call_result),
    "host-call": Target(host_call),
    "image-file": Target(image_file, (ImageError,)),
    "image-parts": Target(image_parts, (ImageError,)),
    "layer": Target(layer, (ImageError,)),
    "signature": Target(signature, (SignatureError,)),
    "manifest": Target(manifest, (ImageError,)),
    "upload": Target(upload, (ImageError, RemoteProtocolError, ResourceLimitError, DecodeError)),
    "policy": Target(policy, (UsageError,)),
    "value": Target(value, (EnclaveTypeError,)),
    "server-error": Target(server_error),
    "dial-back": Target(dial_back, (UsageError,)),
    "proc-file": Target(proc_file, (ValueError,)),
    "process-report": Target(process_report, (RemoteProtocolError,)),
    "server-certificate": Target(server_certificate),
}
