"""A name server for the guest's C library, which asks what it asks with one host call for a name. Pure: messages in, messages out.

The guest's /etc/resolv.conf names ADDRESS; who sends datagrams there talks to this. Both families of a name are asked for together, and
looked up together. What is not an address of a name is answered here: the enclave's own name, and that there is nothing else.
Source: RFC 1035 (messages), RFC 3596 (AAAA).
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass

from adyton.hostcall import abi
from adyton.hostcall.sockets import Addresses, Endpoint

ADDRESS = Endpoint("127.0.0.53", 53)
MAX_MESSAGE = 512  # of a datagram, without extensions
SECONDS = 30  # that an answer may be kept

_HEADER = struct.Struct(">6H")  # id, flags, questions, answers, authorities, additional
_QUESTION = struct.Struct(">2H")  # type, class
_RECORD = struct.Struct(">3HIH")  # a pointer to the name, type, class, seconds, size
_POINTER = 0xC00C  # to the question's name
_A, _AAAA, _IN = 1, 28, 1
_RESPONSE, _OPCODE, _DESIRED, _AVAILABLE = 0x8000, 0x7800, 0x0100, 0x0080
_FORMAT_ERROR, _FAILED, _NO_SUCH_NAME = 1, 2, 3
_NEVER_NAMES = (".arpa", ".invalid")  # of addresses; RFC 6761
_LABEL = re.compile(rb"[A-Za-z0-9_-]{1,63}\Z")


@dataclass(frozen=True, slots=True)
class Query:
    """`name` is None where nothing has to be looked up: `code` says what is answered."""

    head: bytes  # of the answer: identification, flags without the code, and the question
    question: bytes
    type: int
    name: str | None
    code: int = 0


def parse(message: bytes, own_name: str) -> Query | None:
    """A query; None for what deserves no answer."""
    if len(message) < _HEADER.size:
        return None
    identity, flags, questions, *_ = _HEADER.unpack_from(message)
    if flags & _RESPONSE:
        return None
    head = struct.pack(">2H", identity, _RESPONSE | (flags & (_OPCODE | _DESIRED)) | _AVAILABLE)
    labels: list[bytes] = []
    position = _HEADER.size
    try:
        while size := message[position]:
            if size > 63:
                return Query(head, b"", 0, None, _FORMAT_ERROR)
            labels.append(message[position + 1 : position + 1 + size])
            position += 1 + size
        kind, group = _QUESTION.unpack_from(message, position + 1)
    except (IndexError, struct.error):
        return Query(head, b"", 0, None, _FORMAT_ERROR)
    question = message[_HEADER.size : position + 1 + _QUESTION.size]
    if questions != 1 or flags & _OPCODE or len(question) > 255 + _QUESTION.size:
        return Query(head, b"", 0, None, _FORMAT_ERROR)
    if group != _IN or not labels or not all(map(_LABEL.match, labels)):
        return Query(head, question, kind, None, _NO_SUCH_NAME)
    name = b".".join(labels).decode().lower()
    if name.endswith(_NEVER_NAMES):
        return Query(head, question, kind, None, _NO_SUCH_NAME)
    if name in (own_name.lower(), "localhost") or kind not in (_A, _AAAA):
        return Query(head, question, kind, None)
    return Query(head, question, kind, name)


def own(query: Query) -> bytes:
    """The answer to a query whose name is None."""
    if query.code or query.type not in (_A, _AAAA):
        return _message(query, [], query.code)
    return _message(query, ["127.0.0.1" if query.type == _A else "::1"], 0)


def answer(query: Query, result: Addresses | abi.Failed) -> bytes:
    """The answer to a query, from what the client found; as many addresses as there is room for."""
    if isinstance(result, abi.Failed):
        return _message(query, [], _FAILED)
    if not result.addresses:
        return _message(query, [], _NO_SUCH_NAME)
    return _message(query, [each.host for each in result.addresses if (":" in each.host) == (query.type == _AAAA)], 0)


def _message(query: Query, hosts: list[str], code: int) -> bytes:
    family, size = (socket.AF_INET, 4) if query.type == _A else (socket.AF_INET6, 16)
    room = (MAX_MESSAGE - _HEADER.size - len(query.question)) // (_RECORD.size + size)
    records = [
        _RECORD.pack(_POINTER, query.type, _IN, SECONDS, size) + socket.inet_pton(family, host) for host in hosts[:room]
    ]
    identity, flags = struct.unpack(">2H", query.head)
    header = _HEADER.pack(identity, flags | code, 1 if query.question else 0, len(records), 0, 0)
    return header + query.question + b"".join(records)
