"""The bodies of the communicator's calls, by method. MessagePack arrays, strictly typed: an unknown or missing field is an error.

    method     from client to enclave                     reply
    load       LoadRequest                                LoadReply
    enter      EnterRequest, and bulk                     a MessagePack value (adyton.proto.values), or nothing but bulk
    stream     EnterRequest, of an entry of LoadReply.streams   StreamEnd, after or before its last items
    items      of an argument: adyton.communicator.streams     how eager its taker is
    run        EnterRequest of RUN, and bulk              EnclaveOutput, serialized protobuf
    finalize   EnclaveFinal, serialized protobuf          empty
    changed    (one way) a Changed of adyton.hostcall.abi
    time       (one way) the client's time in ns since 1970, 8 bytes, little-endian

    method     from enclave to client                     reply
    host       a request of adyton.hostcall.abi           its result
    function   the same, of a registered function, without a pair
    items      of a result: adyton.communicator.streams   how eager its taker is
    output     (one way) an Output of adyton.hostcall.abi
    order      the same behind its number (ORDER): carried out one after the other, whatever overtakes what on the way
    counts     (one way) Counts: before the reply to an entry if anything changed, and about each second during one
    ended      (one way) text: why the enclave ended by itself

A call that failed is replied to with Raised.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from adyton.errors import RemoteProtocolError
from adyton.proto.values import Encoding, Seconds

Right = Literal["read", "write"]
ORDER = struct.Struct("<Q")  # from 0
Unsigned = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Umask = Annotated[int, msgspec.Meta(ge=0, le=0o777)]
MAX_WAITS = 1024  # of one Counts
RUN = ""  # the entry that is TrustedApplication.run: its arguments are an EnclaveInput, serialized protobuf


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages inside the attested channel."""


class Grant(Message, frozen=True):
    """A path that the client's policy allows: `path` as the enclave may spell it, absolute and normalised. Layout only."""

    path: str
    right: Right


Coherence = Literal["strict", "close-to-open", "exclusive"]


class Mount(Message, frozen=True):
    """How coherent a path and all below it is to be, `path` as in a Grant."""

    path: str
    coherence: Coherence


class Streams(Message, frozen=True):
    """Which of the standard streams the client has opened: one that is not reads as empty, or drops what is written."""

    stdin: bool = False
    stdout: bool = True
    stderr: bool = True


class Logging(Message, frozen=True):
    """How the enclave's logging is set up. `verbosity` 0: INFO and above; more: DEBUG too. `directory` "": to standard error."""

    verbosity: int
    directory: str


class LoadRequest(Message, frozen=True):
    """All that an enclave learns of its client before its code is imported."""

    config: bytes  # EnclaveConfig, serialized protobuf
    grants: list[Grant]
    working_directory: str
    time_zone: str  # a value for TZ, or "" for UTC
    environment: dict[str, str]
    name: str = ""  # that the client loads it under
    host_name: str = "enclave"
    streams: Streams = Streams()
    logging: Logging | None = None  # None: as the program sets it up
    coherence: list[Mount] = []
    trace: bool = False  # Counts are to have `waits`
    time: int = 0  # the client's, in ns since 1970; 0: it says none
    umask: Umask = 0o022  # that the program starts with
    sealed: str = ""  # the client's path of the container of its sealed files; "": it has none for them
    remembers: bool = False  # the client keeps notes of sealed files that are on the server's disk
    demands_memory: bool = False  # sealed files that nobody remembers are not to be opened


class LoadReply(Message, frozen=True):
    """`streams`: those of the entries whose results are streams."""

    entries: list[str]
    warnings: list[str]
    streams: list[str] = []


class EnterRequest(Message, frozen=True):
    """`arguments`: b"" if they are large, and the first of the bulk. `left`: seconds that the caller will wait at most. No time of day, nor of a clock: theirs differ."""

    entry: str
    arguments: bytes
    encoding: Encoding = "msgpack"
    left: Seconds | None = None


class StreamEnd(Message, frozen=True):
    """How many batches of items a stream of results has had, and an encoded Raised, b"" if it came to its end."""

    batches: Unsigned
    raised: bytes = b""


class Wait(Message, frozen=True):
    """A time in which something in the enclave waited for its client: nanoseconds since the enclave started."""

    start: Unsigned
    duration: Unsigned
    what: Annotated[str, msgspec.Meta(max_length=32)]  # it asked for first


class Counts(Message, frozen=True):
    """What the enclave has counted since it started: `waiting` in nanoseconds, `hits` and `misses` of requests about the client's files.

    `received` and `sent`: in nanoseconds since then, when `call` arrived, the entry that is about to be replied to (0: none), and when this
    was sent. `waits`: those since the last Counts, if the load asked for a trace; `lost`: how many are in none.
    """

    round_trips: Unsigned
    waiting: Unsigned
    hits: Unsigned
    misses: Unsigned
    call: Unsigned = 0
    received: Unsigned = 0
    sent: Unsigned = 0
    lost: Unsigned = 0
    waits: Annotated[list[Wait], msgspec.Meta(max_length=MAX_WAITS)] = []


RaisedKind = Literal["raised", "unknown-entry", "type", "state", "sealed", "platform", "usage"]


class Raised(Message, frozen=True):
    """Why a call failed. `kind`: "raised" by the enclave's or the function's code; the others are refusals before it ran ("sealed": its sealed files are not as they must be;
    "platform": where it runs there can be none; "usage": of this image there can be none).

    `builtin`: the nearest built-in exception class of what was raised; `arguments` its plain arguments, where it has such
    (errno and text of an OSError). `traceback` is empty unless the enclave is in debug. `argument`: the stream among the call's arguments
    that this came from, if it did.
    """

    kind: RaisedKind
    type: str
    message: str
    builtin: str = "Exception"
    errno: int = 0
    traceback: str = ""
    argument: Unsigned = 0


_M = TypeVar("_M")
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(message: Message) -> bytes:
    """The message's bytes."""
    return msgspec.msgpack.encode(message)


def decode(body: bytes | bytearray, type: type[_M]) -> _M:  # noqa: A002
    """A message from the peer; RemoteProtocolError for anything but a well-formed one."""
    decoder = _decoders.get(type)
    if decoder is None:
        decoder = _decoders[type] = msgspec.msgpack.Decoder(type)
    try:
        result: _M = decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed {type.__name__} from the peer: {error}") from error
    return result
