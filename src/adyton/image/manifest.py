"""What an image says about itself: its config blob, covered by the measurement.

The blob is canonical JSON (sorted keys, no spaces, UTF-8) of a Manifest with every field present but `broker`, `seal` and `seal_memory`, which most have not. Reading is strict: unknown or
missing fields, values out of range and any other spelling of the same content are ImageError, so two readers never disagree.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from adyton.errors import ImageError
from adyton.image.archive import check_path
from adyton.image.versions import PythonRange, PythonRangeError

ABI = "adyton-1"  # of the runtime: its entry and host-call ABI, and the packages in RUNTIME_PACKAGES
DEFAULT_PYTHON = ">=3.11"
ANY_PLATFORM = "any"
MAX_CONFIG = 1 << 20  # bytes of the config blob
MAX_ENTRIES = 4096
MAX_PROGRAMS = 1024
LEAST_MEMORY = 48 << 20  # bytes of data that an enclave's Python has of itself, with a stack for a thread

# Packages that are the runtime's, not the image's, with the versions that the ABI stands for. adyton itself: the one that builds.
RUNTIME_PACKAGES = {"cffi": "2.1.1", "cryptography": "50.0.2", "msgspec": "0.22.0", "protobuf": "7.36.2"}

HostCallGroup = Literal["call", "file", "net"]

# Groups of host calls that an image can renounce: registered functions, files, sockets and names.
HOST_CALL_GROUPS: tuple[HostCallGroup, ...] = ("call", "file", "net")

Runtime = Literal["process", "wasm"]
Time = Literal["client", "server"]
Seal = Literal["measurement", "signer"]
PYTHON_PROGRAM = "python"  # in `programs`: the runtime's own interpreter
ParameterKind = Literal["positional", "keyword", "rest", "keywords"]

Text = Annotated[str, msgspec.Meta(max_length=4096)]
Number16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]  # as wide as ISVPRODID and ISVSVN of SGX
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Bytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 50)]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
_ENTRY = re.compile(r"(?!\d)[\w-]+(\.(?!\d)[\w-]+)*:((?!\d)\w+)?")


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter of an entry. `type`: the annotation as its source spells it, "" for none.

    `kind`: "positional" (by position or name), "keyword" (by name only), "rest" (`*args`), "keywords" (`**kwargs`).
    """

    name: Text
    type: Text
    required: bool
    kind: ParameterKind = "positional"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may call. `returns`: the annotation as its source spells it; `stream`: the result comes item by item."""

    name: Text
    parameters: list[Parameter]
    returns: Text
    stream: bool

    def __str__(self) -> str:
        """As a signature: `mean_pay(path: str) -> float`."""
        mark = {"rest": "*", "keywords": "**"}
        spelt: list[str] = []
        for parameter in self.parameters:
            if parameter.kind == "keyword" and not any(text.startswith("*") for text in spelt):
                spelt.append("*")
            text = mark.get(parameter.kind, "") + parameter.name + (f": {parameter.type}" if parameter.type else "")
            optional = not parameter.required and parameter.kind not in mark
            spelt.append(text + (" = …" if parameter.type else "=…") if optional else text)
        return f"{self.name}({', '.join(spelt)})" + (f" -> {self.returns}" if self.returns else "")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the image never needs more of; None: whatever the server gives.

    `memory`: bytes of data of each process; `threads`: of all processes together; `files`: open at a time in each process; `cpu`:
    seconds of processor time of each process.
    """

    memory: Bytes | None = None
    threads: Count | None = None
    files: Count | None = None
    cpu: Count | None = None


class Broker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the image's secrets are asked for: `address` (HOST:PORT), and `key`: digests of the keys, of which the broker has one."""

    address: Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):[1-9]\d{0,4}\Z", max_length=300)]
    key: Annotated[
        list[Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]], msgspec.Meta(min_length=1, max_length=16)
    ]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """See the module. `entry`: "module:attribute" of an Enclave or TrustedApplication, or "module:" for plain functions.

    `python`: the versions that it runs on, as in `requires-python`; `platforms`: wheel platforms, or "any". `programs`: what it may
    start as processes: paths of the image's own files, and "python". `time`: whose clock it sees.
    """

    name: str
    entry: str
    entries: Annotated[list[Entry], msgspec.Meta(max_length=MAX_ENTRIES)]
    runtime: Runtime = "process"
    abi: Text = ABI
    python: Text = DEFAULT_PYTHON
    platforms: list[Text] = msgspec.field(default_factory=lambda: [ANY_PLATFORM])
    product_id: Number16 = 0
    security_version: Number16 = 0
    host_calls: list[HostCallGroup] = msgspec.field(default_factory=lambda: list(HOST_CALL_GROUPS))
    limits: Limits = msgspec.field(default_factory=Limits)
    programs: Annotated[list[Text], msgspec.Meta(max_length=MAX_PROGRAMS)] = msgspec.field(
        default_factory=lambda: [PYTHON_PROGRAM]
    )
    time: Time = "client"
    broker: Broker | msgspec.UnsetType = msgspec.UNSET  # not there at all in an image that names none
    seal: Literal["signer"] | msgspec.UnsetType = msgspec.UNSET  # … whose sealed files belong to its measurement
    seal_memory: Literal["required"] | msgspec.UnsetType = (
        msgspec.UNSET
    )  # … that takes them though nobody remembers them

    @property
    def seals_to(self) -> Seal:
        """Whom its sealed files belong to."""
        return self.seal or "measurement"

    @property
    def demands_memory(self) -> bool:
        """Whether sealed files whose last commit nobody remembers are refused."""
        return self.seal_memory == "required"

    @property
    def names_broker(self) -> Broker | None:
        """None: none."""
        return self.broker or None

    @property
    def module(self) -> str:
        """The module that is imported in the guest."""
        return self.entry.partition(":")[0]

    @property
    def attribute(self) -> str:
        """The Enclave or TrustedApplication in it; "" for an image of plain functions."""
        return self.entry.partition(":")[2]

    def runs_on_python(self, version: tuple[int, int]) -> bool:
        """Whether a Python of this (major, minor) may run it."""
        return version in PythonRange.parse(self.python)


# Made at import: msgspec's first look at a type must not be two threads' at once, of which one would see it half done.
_MANIFEST = msgspec.json.Decoder(Manifest)


def canonical_json(value: Any) -> bytes:
    """The one spelling in which adyton writes and accepts JSON that is measured or signed."""
    return msgspec.json.encode(value, order="sorted")


def encode_manifest(manifest: Manifest) -> bytes:
    """The config blob; ImageError if the manifest could not be read back."""
    data = canonical_json(manifest)
    decode_manifest(data)
    return data


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in a config blob; ImageError for anything but a well-formed one of a known ABI."""
    if len(data) > MAX_CONFIG:
        raise ImageError(f"the manifest of the image is {len(data)} bytes long; at most {MAX_CONFIG} are accepted")
    try:
        manifest = _MANIFEST.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ImageError(f"the manifest of the image is malformed: {error}") from error
    if canonical_json(manifest) != data:
        raise ImageError(
            "the manifest of the image is not in canonical form: build the image again with `adyton build`"
        )
    _check(manifest)
    return manifest


def too_little(memory: int | None) -> str:
    """What is wrong with such a limit of memory; "": nothing."""
    if memory is None or memory >= LEAST_MEMORY:
        return ""
    return (
        f"{memory} bytes are less than an enclave's Python needs for itself: give it {LEAST_MEMORY >> 20}MiB or more,"
        " or leave it out for the server's own limit"
    )


def _check(manifest: Manifest) -> None:
    """What the types cannot say."""
    if manifest.abi != ABI:
        raise ImageError(
            f"the image is for runtime ABI {manifest.abi!r}, and this adyton has {ABI}: build it again, or update adyton"
        )
    if not _NAME.fullmatch(manifest.name):
        raise ImageError(f"the image's name {manifest.name[:80]!r} is not one: letters, digits and _ . + - are")
    if len(manifest.entry) > 512 or not _ENTRY.fullmatch(manifest.entry):
        raise ImageError(f"the image's entry point {manifest.entry[:80]!r} is not of the form module:name")
    names = [entry.name for entry in manifest.entries]
    if len(set(names)) != len(names) or not all(name.isidentifier() for name in names):
        raise ImageError("the image's entries have the same name twice, or a name that is none")
    if sorted(set(manifest.host_calls)) != manifest.host_calls:
        raise ImageError("the image's groups of host calls are not sorted, or one is there twice")
    if sorted(set(manifest.platforms)) != manifest.platforms or not manifest.platforms:
        raise ImageError("the image's platforms are not sorted, one is there twice, or there is none")
    if sorted(set(manifest.programs)) != manifest.programs:
        raise ImageError("the image's programs are not sorted, or one is there twice")
    for program in manifest.programs:
        check_path(program)
    if said := too_little(manifest.limits.memory):
        raise ImageError(f"the image's limits.memory: {said}")
    try:
        PythonRange.parse(manifest.python)
    except PythonRangeError as error:
        raise ImageError(f"the image's Python version is malformed: {error}") from error


def is_image_name(name: str) -> bool:
    """Whether an image may be called that."""
    return _NAME.fullmatch(name) is not None
