"""Sockets of the client's machine, as an enclave uses them: the typed ABI of the communicator's method "net".

As in `abi`: families, kinds, options and errors have names. A socket is a number that the *enclave* chooses, and never uses again.
Addresses are IP literals; a name is resolved by Resolve only.

    request (a call)   result        what the client does
    Resolve            Addresses     look a name up, both families at once; one that no rule allows gets an address that leads nowhere
    Bind               Bound         a new socket with a local address; EADDRINUSE and the like
    Connect            Connected     connect; `socket` is new unless it was bound. Of a datagram socket: its one peer
    Reach              Bound         may datagrams go to `peer`? Opens the socket unless it is open
    Listen             Bound         listen on a bound or new socket; `accepts`: numbers for the connections to come
    Join               Bound         a datagram socket joins a multicast group, or leaves it, on an interface of the system's choice
    GetOption          OptionValue   of an open socket, or (socket None) of a new one with these options
    Any request may be answered with abi.Failed.

    message (one way, in order)       from
    Send, SendTo                      enclave    bytes for a stream; a datagram (`peer` None: to its one peer)
    SendUrgent                        enclave    a byte for a stream, of which TCP is to say that it is urgent
    Received, ReceivedFrom            client     the same the other way
    ShutWrite / EndOfStream           enclave / client: nothing more comes
    Credit                            both       the receiver has taken so many bytes: as many more may be on their way
    Blocked                           both       the sender has no credit left, and would send more
    Begun                             client     a Connect is under way, from this address; before its result, where that takes time
    Broken                            client     the connection is lost
    Accepts                           enclave    more numbers for a listening socket's connections
    Incoming                          client     a connection to a listening socket, under one of its numbers
    SetOption, CloseSocket            enclave

Backpressure: what is under way to a socket, in either direction, never exceeds its credit, at first WINDOW of datagrams and FIRST of a stream,
to which each side gives WINDOW at once when it is connected. A datagram counts DATAGRAM_COST more than its bytes. A side that sends more than
it has credit for breaks the socket. Where a stream's bytes are taken as fast as they come, and its sender is Blocked all the same, the line
between the two is what takes the time: the receiver doubles the window, up to MAX_WINDOW. All that its windows have beyond FIRST is within
MAX_GROWTH: of many connections the latest have FIRST only. (QUIC's STREAM_DATA_BLOCKED, RFC 9000 section 4.1.)
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from adyton.errors import RemoteProtocolError
from adyton.hostcall import abi
from adyton.hostcall.encoding import LARGE, in_parts

FIRST = 1 << 16  # bytes
WINDOW = 1 << 20
MAX_WINDOW = 8 << 20
MAX_GROWTH = 128 << 20  # of one side of an enclave
STEPS = 8  # in how many a window's worth of credit is given
CHUNK = (1 << 18) - 64  # bytes of a stream in one message, which the communicator then carries in full frames
MAX_DATAGRAM = 65507  # bytes, of UDP over IPv4
DATAGRAM_COST = 256
MAX_SOCKETS = 4096  # of one enclave
MAX_ACCEPTS = 128  # connections of one listening socket that the program has not accepted
MAX_ADDRESSES = 32  # of one name
PORTS = 1 << 16

Socket = Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]
Family = Literal["inet", "inet6"]
Kind = Literal["stream", "datagram"]
OptionName = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
Number = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
HostName = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]

# What an answer or Broken may say went wrong; anything else becomes EIO.
ERRNO_NAMES = frozenset(
    [
        "EACCES",
        "EADDRINUSE",
        "EADDRNOTAVAIL",
        "EAFNOSUPPORT",
        "EAGAIN",
        "EALREADY",
        "EBADF",
        "ECONNABORTED",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "EINVAL",
        "EIO",
        "EISCONN",
        "EMFILE",
        "EMSGSIZE",
        "ENETDOWN",
        "ENETRESET",
        "ENETUNREACH",
        "ENFILE",
        "ENOBUFS",
        "ENODEV",
        "ENOENT",
        "ENOMEM",
        "ENOPROTOOPT",
        "ENOTCONN",
        "EOPNOTSUPP",
        "EPERM",
        "EPIPE",
        "EPROTONOSUPPORT",
        "ETIMEDOUT",
    ]
)


class _Struct(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    pass


class Endpoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An IP address, as text without scope or brackets, and a port."""

    host: Annotated[str, msgspec.Meta(min_length=2, max_length=45)]
    port: Annotated[int, msgspec.Meta(ge=0, lt=PORTS)]

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Option(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An option by its C name. SO_LINGER has two values: whether, and seconds."""

    name: OptionName
    values: Annotated[list[Number], msgspec.Meta(min_length=1, max_length=2)]


class New(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a socket is, where a request may have to open it."""

    family: Family
    kind: Kind
    options: Annotated[list[Option], msgspec.Meta(max_length=64)]


class Ancillary(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What goes or comes with a datagram, as far as it was asked for: the address that it has on the client's side, how many hops it
    may go or may still have gone (TTL, hop limit), and its traffic class (TOS)."""

    local: Annotated[str, msgspec.Meta(min_length=2, max_length=45)] | None = None
    hops: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    traffic_class: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None


# -- requests and results ---------------------------------------------------------------------------------------------------


class Resolve(_Struct, frozen=True):
    name: HostName


class Bind(_Struct, frozen=True):
    socket: Socket
    new: New
    local: Endpoint


class Connect(_Struct, frozen=True):
    socket: Socket
    new: New
    peer: Endpoint


class Reach(_Struct, frozen=True):
    socket: Socket
    new: New
    peer: Endpoint


class Listen(_Struct, frozen=True):
    socket: Socket
    new: New
    backlog: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    accepts: Annotated[list[Socket], msgspec.Meta(max_length=MAX_ACCEPTS)]


class Join(_Struct, frozen=True):
    """`group`: a multicast address; `leaves`: it."""

    socket: Socket
    new: New
    group: Annotated[str, msgspec.Meta(min_length=2, max_length=45)]
    leaves: bool


class GetOption(_Struct, frozen=True):
    socket: Socket | None
    new: New
    name: OptionName


Request = Resolve | Bind | Connect | Reach | Listen | Join | GetOption


class Found(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An address of a name. `source`: the client's own address towards it; None: it has no way there."""

    host: Annotated[str, msgspec.Meta(min_length=2, max_length=45)]
    source: Annotated[str, msgspec.Meta(min_length=2, max_length=45)] | None


class Addresses(_Struct, frozen=True):
    """None of them: there is no such name."""

    addresses: Annotated[list[Found], msgspec.Meta(max_length=MAX_ADDRESSES)]


class Bound(_Struct, frozen=True):
    local: Endpoint


class Connected(_Struct, frozen=True):
    local: Endpoint
    peer: Endpoint


class OptionValue(_Struct, frozen=True):
    values: Annotated[list[Number], msgspec.Meta(min_length=1, max_length=2)]


Result = Addresses | Bound | Connected | OptionValue

# -- messages ---------------------------------------------------------------------------------------------------------------


class Send(_Struct, frozen=True):
    socket: Socket
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=CHUNK)]


class SendUrgent(_Struct, frozen=True):
    socket: Socket
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=1)]


class SendTo(_Struct, frozen=True):
    socket: Socket
    peer: Endpoint | None
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_DATAGRAM)]
    ancillary: Ancillary | None = None


class ShutWrite(_Struct, frozen=True):
    socket: Socket


class Credit(_Struct, frozen=True):
    socket: Socket
    size: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class Blocked(_Struct, frozen=True):
    socket: Socket


class Accepts(_Struct, frozen=True):
    socket: Socket
    accepts: Annotated[list[Socket], msgspec.Meta(min_length=1, max_length=MAX_ACCEPTS)]


class SetOption(_Struct, frozen=True):
    socket: Socket
    option: Option


class CloseSocket(_Struct, frozen=True):
    """`reset`: the program left bytes unread, or wanted no lingering."""

    socket: Socket
    reset: bool


FromEnclave = Send | SendUrgent | SendTo | ShutWrite | Credit | Blocked | Accepts | SetOption | CloseSocket


class Received(_Struct, frozen=True):
    socket: Socket
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=CHUNK)]


class ReceivedFrom(_Struct, frozen=True):
    socket: Socket
    peer: Endpoint
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_DATAGRAM)]
    ancillary: Ancillary | None = None


class EndOfStream(_Struct, frozen=True):
    socket: Socket


class Broken(_Struct, frozen=True):
    socket: Socket
    errno: str


class Begun(_Struct, frozen=True):
    socket: Socket
    local: Endpoint


class Incoming(_Struct, frozen=True):
    socket: Socket  # the listening one
    accepted: Socket
    local: Endpoint
    peer: Endpoint


FromClient = Received | ReceivedFrom | EndOfStream | Begun | Broken | Credit | Blocked | Incoming


def first(kind: Kind) -> int:
    """A socket's window, in bytes, before anything is said of it."""
    return FIRST if kind == "stream" else WINDOW


def opening(grown: int) -> int:
    """By how much a stream's window is larger once it is connected, in bytes; `grown`: what all windows of this side have beyond FIRST."""
    return max(0, min(WINDOW - FIRST, MAX_GROWTH - grown))


def growth(window: int, waiting: int, grown: int) -> int:
    """By how much the receiver of a stream whose sender is blocked makes its window larger, in bytes.

    `waiting`: what has come, and is not taken; `grown`: see `opening`.
    """
    return 0 if waiting > window // 4 else max(0, min(window, MAX_WINDOW - window, MAX_GROWTH - grown))


encode = msgspec.msgpack.encode
_from_client: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromClient)
_from_enclave: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromEnclave)
_request: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Request)


def parts(message: FromEnclave | FromClient) -> bytes | tuple[bytes, ...]:
    """As `encode`, in parts where much of a stream would else be copied."""
    if isinstance(message, Send | Received) and len(message.data) >= LARGE:
        return in_parts(type(message)(message.socket, b""), message.data)
    return encode(message)


def _decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes | bytearray) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed message about a socket from the peer: {error}") from error


def from_client(body: bytes | bytearray) -> FromClient:
    """A message from the client; RemoteProtocolError."""
    result: FromClient = _decode(_from_client, body)
    return result


def from_enclave(body: bytes | bytearray) -> FromEnclave:
    """A message from the enclave; RemoteProtocolError."""
    result: FromEnclave = _decode(_from_enclave, body)
    return result


def request_of(body: bytes | bytearray) -> Request:
    """A request of the enclave; RemoteProtocolError."""
    result: Request = _decode(_request, body)
    return result


# -- the enclave's check of results -----------------------------------------------------------------------------------------

_RESULTS: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {
    Resolve: msgspec.msgpack.Decoder(Addresses | abi.Failed),
    Bind: msgspec.msgpack.Decoder(Bound | abi.Failed),
    Connect: msgspec.msgpack.Decoder(Connected | abi.Failed),
    Reach: msgspec.msgpack.Decoder(Bound | abi.Failed),
    Listen: msgspec.msgpack.Decoder(Bound | abi.Failed),
    Join: msgspec.msgpack.Decoder(Bound | abi.Failed),
    GetOption: msgspec.msgpack.Decoder(OptionValue | abi.Failed),
}
_BAD = abi.Failed("EIO")


def check(request: Request, body: bytes | bytearray) -> Result | abi.Failed:
    """The client's answer to `request` if it is one that it can have, else Failed("EIO"). Raises nothing."""
    try:
        result: Result | abi.Failed = _RESULTS[type(request)].decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _BAD
    match result:
        case abi.Failed(name):
            fits = name in ERRNO_NAMES
        case Addresses(addresses):
            fits = all(
                is_address(found.host)
                and (found.source is None or is_address(found.source, "inet6" if ":" in found.host else "inet"))
                for found in addresses
            )
        case Bound(local):
            assert not isinstance(request, Resolve)
            fits = is_address(local.host, request.new.family)
        case Connected(local, peer):
            assert not isinstance(request, Resolve)
            fits = is_address(local.host, request.new.family) and is_address(peer.host, request.new.family)
        case _:
            assert isinstance(request, GetOption)
            fits = len(result.values) == (2 if request.name == "SO_LINGER" else 1)
    return result if fits else _BAD


def is_address(host: str, family: Family | None = None) -> bool:
    """Whether it is an address, of that family."""
    import socket

    kinds = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
    for name, number in kinds.items():
        if family in (None, name):
            try:
                socket.inet_pton(number, host)
            except (OSError, ValueError):
                continue
            return True
    return False
