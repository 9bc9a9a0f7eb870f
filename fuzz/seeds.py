"""Writes fuzz/corpus anew: few small seeds for each target, from which its parser's depths are near.

Most are drawn at random, once, and kept if they get far: nearly valid input is what `draw` makes of any bytes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import ipaddress
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import forged
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from target_images import MANIFEST, signed_image
from target_sessions import HASH
from target_tpm import AREA, quoted, signed, sized
from targets import TARGETS

from adyton.attestation import sim
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.tpm.report import TpmReport
from adyton.hostcall import sockets as net
from adyton.image.manifest import encode_manifest
from adyton.image.signature import Payload
from adyton.provision.upload import offer_of
from adyton.provision_pb2 import Chunk, ProvisionRequest

CORPUS = Path(__file__).parent / "corpus"
DRAWN = 4  # seeds of a target that are drawn
TRIED = 200
SIZES = (24, 96, 320)  # bytes

_IDENTITY = EnclaveIdentity(
    platform="sim",
    measurement=HASH,
    signer="",
    product_id=0,
    security_version=0,
    debug=True,
    runtime="",
    machine="",
)
_POLICY = b"""[expect]
platforms = ["sim"]
measurement = ["%s"]
debug = true
[allow]
read = ["in", "/srv/data"]
write = ["out"]
net = ["example.org:443"]
listen = ["127.0.0.1:8080"]
env = ["HOME"]
call = ["lookup"]
[[mount]]
path = "in"
coherence = "close-to-open"
""" % HASH.encode()

_STAT = (
    b"12 (a) b) S 1 12 12 0 -1 4194304 9 0 1 0 3 2 0 0 20 0 1 0 1674 20766720 3810 18446744073709551615" + b" 0" * 27
)
_STATUS = b"""Name:	a\\n
Umask:	0022
State:	S (sleeping)
Tgid:	12
Pid:	12
PPid:	1
TracerPid:	0
Uid:	0	0	0	0
Gid:	0	0	0	0
FDSize:	64
Groups:	0 1 
NSpid:	12	1
VmPeak:	   20280 kB
Threads:	1
SigQ:	1/96365
SigPnd:	0000000000000000
ShdPnd:	0000000000000000
SigBlk:	0000000000000000
SigIgn:	0000000001001000
SigCgt:	0000000000000002
CapInh:	0000000000000000
CapPrm:	000001ffffffffff
CapEff:	000001ffffffffff
CapBnd:	000001ffffffffff
CapAmb:	0000000000000000
NoNewPrivs:	0
Seccomp:	0
Cpus_allowed_list:	0-1
voluntary_ctxt_switches:	26
"""  # noqa: W291 - as the kernel writes it


def _image_file() -> list[bytes]:
    with tempfile.NamedTemporaryFile() as file:
        signed_image().save(file.name)
        return [b"\0" + Path(file.name).read_bytes()]


def _upload() -> list[bytes]:
    image = signed_image()
    offer = ProvisionRequest(offer=offer_of(image, "sim")).SerializeToString()
    size = -(-len(offer) // 8)
    offer += ProvisionRequest(chunk=Chunk()).SerializeToString() * ((size * 8 - len(offer)) // 2)
    steps = [bytes([size]) + offer.ljust(size * 8, b"\0")]
    for digest, blob in image.blobs.items():
        data = blob.read()[:100]
        chunk = ProvisionRequest(chunk=Chunk(digest=digest, data=data, last=True)).SerializeToString()
        steps.append(bytes([len(chunk)]) + chunk)
    return [b"".join(steps)]


def _parts(head: bytes = b"") -> list[bytes]:
    """By what is replaced: see target_images._parts."""
    image = signed_image()
    config = image.blobs[image.config_digest].read()
    payload = msgspec.json.encode(Payload(image.measurement, 0, 0, debug=True))
    envelope = image.signatures[0].envelope
    return [
        head + bytes([kind]) + text
        for kind, text in enumerate((config, b"", envelope, image.oci_manifest, b"", payload))
    ]


def _values() -> list[bytes]:
    arguments = [[[1, 2], "rest"], {"point": {"x": 1, "y": 0.5}, "more": {"k": b""}}]
    encoded = msgspec.msgpack.encode(arguments)
    text = msgspec.json.encode(arguments)
    result = msgspec.msgpack.encode({"k": [1, 2]})
    return [b"\0" + encoded, b"\1" + encoded, b"\2" + text, b"\3" + text, b"\4" + result, b"\5" + result]


def _certificates() -> list[bytes]:
    """One with names, one with a common name only."""
    key = ec.generate_private_key(ec.SECP256R1())
    since, until = dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tee.example")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, since, until)
    names = [x509.DNSName("tee.example"), x509.IPAddress(ipaddress.ip_address("192.0.2.1"))]
    extended = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return [each.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER) for each in (builder, extended)]


def _queries() -> list[bytes]:
    """An address of a name, and its other family's; a reverse one; what has more than one question."""
    head = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0)
    name, reverse = b"\2db\7example\0", b"\0011\0010\0010\003127\7in-addr\4arpa\0"
    queries = [head + text + struct.pack(">2H", kind, 1) for text, kind in ((name, 1), (name, 28), (reverse, 12))]
    return [*queries, struct.pack(">6H", 7, 0, 2, 0, 0, 1) + name + struct.pack(">2H", 1, 1) + bytes(11)]


def _socket_messages() -> list[bytes]:
    new = net.New("inet", "stream", [net.Option("SO_LINGER", [1, 5])])
    peer = net.Endpoint("127.0.0.1", 80)
    return [
        b"\0" + net.encode(net.Received(1, b"data")),
        b"\0" + net.encode(net.Incoming(1, 2, peer, peer)),
        b"\1" + net.encode(net.SendTo(1, peer, b"data")),
        b"\1" + net.encode(net.SendTo(1, peer, b"data", net.Ancillary("127.0.0.1", 5, 32))),
        b"\1" + net.encode(net.Accepts(1, [2, 3])),
        b"\2" + net.encode(net.Connect(1, new, peer)),
        b"\2" + net.encode(net.Listen(1, new, 5, [2, 3])),
        b"\0" + net.encode(net.Begun(1, peer)),
    ]


def _control() -> list[bytes]:
    """An own address, hops and a traffic class, of either family; and one that is cut."""

    def items(level: int, *each: tuple[int, bytes]) -> bytes:
        packed = (
            struct.pack("=Qii", 16 + len(data), level, kind) + data + bytes(-len(data) % 8) for kind, data in each
        )
        return b"".join(packed)

    inet = items(0, (8, bytes(4) + b"\x7f\0\0\1" + bytes(4)), (2, b"\5\0\0\0"), (1, b"\x20"))
    inet6 = items(41, (50, bytes(15) + b"\1" + bytes(4)), (52, b"\5\0\0\0"), (67, b"\x20\0\0\0"))
    return [b"\0" + inet, b"\n" + inet6, b"\n" + inet6[:-8]]


def _collateral() -> list[bytes]:
    document = {"tcbInfo": {"id": "TDX", "fmspc": "00", "issueDate": "2025-01-01T00:00:00Z"}, "signature": "00"}
    amd = forged.Amd()
    return [
        msgspec.json.encode(document),
        forged.der(amd.endorsement()),
        forged.revocations("SEV-Milan", amd.between, 9),
    ]


def _tpm_quotes() -> list[bytes]:
    """Over one register and over sixteen, in two banks, over none; with values that are zeros."""
    one, many = struct.pack(">IHBBBB", 1, 11, 3, 1, 0, 0), struct.pack(">IHBBBB", 1, 11, 3, 255, 255, 0)
    two = struct.pack(">IHBBBBHBBBB", 2, 11, 3, 1, 0, 0, 12, 3, 0, 0, 1)
    sizes = {one: 32, many: 512, two: 80}
    quotes = [quoted(selection, hashlib.sha256(bytes(size)).digest()) for selection, size in sizes.items()]
    return [*quotes, quoted(struct.pack(">IHBBBB", 1, 11, 3, 0, 0, 0), hashlib.sha256(b"").digest())]


def _tpm_keys() -> list[bytes]:
    """Of P-256, and of RSA."""
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n.to_bytes(256, "big")
    return [AREA, struct.pack(">HHIHHHHHI", 1, 11, 0x50472, 0, 16, 0x14, 11, 2048, 0) + sized(modulus)]


def _tpm_answers() -> list[bytes]:
    """By which command is answered: see target_tpm.COMMANDS."""
    quote = _tpm_quotes()[0]
    attested = sized(quote) + signed(quote)
    bodies = {
        0: struct.pack(">II", 0x80000000, 0) + sized(AREA),
        2: sized(AREA),
        3: struct.pack(">I", len(attested)) + attested,
        4: struct.pack(">IIHBBBBI", 1, 1, 11, 3, 1, 0, 0, 1) + sized(bytes(32)),
        5: sized(struct.pack(">IHIHH", 1, 11, 1 << 18, 0, 8)),
        6: struct.pack(">I", 10) + sized(bytes(8)),
        7: struct.pack(">I", 0x03000000) + sized(bytes(16)),
        9: struct.pack(">I", 34) + sized(bytes(32)),
    }
    return [bytes([number, 1]) + body for number, body in bodies.items()]


def _tpm_reports() -> list[bytes]:
    """adyton's; and keys that lie beside a quote of others."""
    quote = _tpm_quotes()[0]
    report = msgspec.json.encode(TpmReport(quote, signed(quote), AREA, {"sha256": {0: bytes(32)}}, bytes(64)))
    certificates = [b"\1\0" + certificate for certificate in _certificates()]
    return [b"\0" + report[1:], b"\1" + bytes([len(AREA)]) + AREA + sized(AREA), *certificates]


def _event_logs() -> list[bytes]:
    """A head and two events, as they are and as they are drawn."""
    head = b"Spec ID Event03\0" + bytes(8) + struct.pack("<IHH", 1, 11, 32) + b"\0"
    log = struct.pack("<II20sI", 0, 3, b"", len(head)) + head
    for pcr, kind, text in ((0, 3, b"StartupLocality\0\3"), (4, 4, b"loader")):
        log += (
            struct.pack("<IIIH", pcr, kind, 1, 11) + hashlib.sha256(text).digest() + struct.pack("<I", len(text)) + text
        )
    return [b"\0" + log, b"\1" + bytes(200), b"\1" + bytes(range(256))]


def _host_certificates() -> list[bytes]:
    """A chip's key and its issuer's; a cloud's; and none."""
    kinds = ("63da758de6644564adc5f4b93be8accd", "4ab7b379bbac4fe4a02f05aef327c782", "a8074bc2a25a483eaae639c045a0b8a1")
    chip, issuer, cloud = (bytes.fromhex(kind) for kind in kinds)
    two = struct.pack("<16sII16sII", issuer, 76, 6, chip, 72, 4) + bytes(24) + b"chipissuer"
    return [two, struct.pack("<16sII", cloud, 48, 5) + bytes(24) + b"cloud", bytes(48)]


WRITTEN: Mapping[str, Callable[[], list[bytes]]] = {
    "evidence": lambda: [
        b"\0" + sim.attest(_IDENTITY, bytes(64)),
        b"\2" + bytes(16) + msgspec.json.encode(sim.SimulatedClaims(_IDENTITY, bytes(64))),
    ],
    "tpm-quote": _tpm_quotes,
    "tpm-signature": lambda: [signed(_tpm_quotes()[0]), struct.pack(">HH", 0x14, 11) + sized(bytes(range(256)))],
    "tpm-public": _tpm_keys,
    "tpm-event-log": _event_logs,
    "tpm-report": _tpm_reports,
    "tpm-answer": _tpm_answers,
    "host-certificates": _host_certificates,
    "image-file": lambda: [*_image_file(), *_parts(b"\3")],
    "image-parts": _parts,
    "signature": lambda: [
        b"\0" + signed_image().signatures[0].envelope,
        b"\1" + msgspec.json.encode(Payload(signed_image().measurement, 0, 0, debug=True), order="sorted"),
    ],
    "manifest": lambda: [b"\0" + encode_manifest(MANIFEST)],
    "upload": _upload,
    "policy": lambda: [_POLICY],
    "dial-back": lambda: [
        b"[::]:7000\nipv4:10.77.0.2:4444",
        b"[fe80::2]:7\nipv6:%5Bfe80::2%25eth1%5D:4444",
        b"0.0.0.0:7\nipv6:%5B::ffff:10.77.0.2%5D:4444",
        b"unix:/run/x.sock\nunix:",
    ],
    "proc-file": lambda: [b"\0" + _STAT, b"\1" + _STATUS, b"\2" + b"12 345 ", b"\3" + b"a) S 1 (b\n1"],
    "value": _values,
    "server-certificate": _certificates,
    "name-query": _queries,
    "dcap-quote": lambda: [
        forged.quote(3, signature=b""),
        forged.quote(4, signature=b""),
        forged.quote(5, kind=3, signature=b""),
    ],
    "snp-report": lambda: [
        forged.Amd().report(2),
        forged.Amd("Turin").report(5),
        forged.Amd("Genoa").report(3) + bytes(48),
    ],
    "nitro-document": lambda: [forged.Aws().document()],
    "certificate": lambda: [forged.p256_certificate(), forged.der(forged.Amd("Turin").endorsement())],
    "collateral": _collateral,
    "any-evidence": lambda: [forged.quote(4, signature=b""), forged.Amd().report(), sim.attest(_IDENTITY, bytes(64))],
    "datagram-message": _control,
    "socket-message": _socket_messages,
}


def main() -> None:
    """Replace the corpus."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    for name, target in TARGETS.items():
        (CORPUS / name).mkdir(parents=True)
        seeds = WRITTEN[name]() if name in WRITTEN else []
        if name not in WRITTEN:
            source = random.Random(name)
            tried = [source.randbytes(source.choice(SIZES)) for _ in range(TRIED)]
            seeds += sorted(tried, key=lambda data: -_lines(target.run, data))[:DRAWN]
        for number, seed in enumerate(seeds):
            (CORPUS / name / f"{number}").write_bytes(seed)


def _lines(run: Callable[[bytes], None], data: bytes) -> int:
    """How many places of the package the input gets to."""
    reached: set[tuple[str, int]] = set()

    def trace(frame, event, _argument):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if "/adyton/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        with contextlib.suppress(Exception):
            run(data)
    finally:
        sys.settrace(None)
    return len(reached)


if __name__ == "__main__":
    main()
