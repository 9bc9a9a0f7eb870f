"""The enclave's check of what its client answered. The validator is chosen by the request, never by the reply.

A client is free to lie. What it may achieve by that is an errno in the enclave, or data that its owner could have written into the
file himself; never a length, name, kind or errno that the request does not admit. A reply that does not fit is `Failed("EIO")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from adyton.hostcall import abi
from adyton.hostcall.encoding import restored
from adyton.hostcall.names import in_bytes

_NAME_BYTES = 255  # NAME_MAX of linux/limits.h: abi.Name bounds characters, a directory entry bounds bytes
_TARGET_BYTES = 4095  # PATH_MAX without its NUL
_BAD = abi.Failed("EIO")


class Checked(NamedTuple):
    """abi.Results, each checked."""

    results: list[abi.Result]


def check(request: abi.Request, result: bytes | bytearray) -> abi.Result | Checked:
    """The client's answer to `request` (MessagePack) if it is one that `request` can have, else Failed("EIO"). Raises nothing."""
    rule = _RULES[type(request)]
    try:
        decoded: abi.Result = restored(rule.decoder.decode(result), result)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _BAD
    if isinstance(decoded, abi.Failed):
        return decoded if decoded.errno in abi.ERRNO_NAMES else _BAD
    if isinstance(request, abi.Compound) and isinstance(decoded, abi.Results):
        return _each(request, decoded)
    return decoded if rule.fits(request, decoded) else _BAD


def _each(request: abi.Compound, results: abi.Results) -> abi.Failed | Checked:
    """One result for each request, up to the first Failed unless it goes through."""
    if len(results.results) > len(request.requests):
        return _BAD
    checked: list[abi.Result] = []
    for one, raw in zip(request.requests, results.results, strict=False):
        result = check(one, bytes(raw))
        assert not isinstance(result, Checked), one  # none is within another
        checked.append(result)
    failed = [position for position, one in enumerate(checked) if isinstance(one, abi.Failed)]
    whole = len(checked) == len(request.requests)
    complete = whole if request.through or not failed else failed == [len(checked) - 1]
    if not complete or not (whole or failed):
        return _BAD
    return Checked(checked)


class _Rule(NamedTuple):
    decoder: msgspec.msgpack.Decoder[Any]
    fits: Callable[[Any, Any], bool]


def _rule(expected: type[msgspec.Struct], fits: Callable[[Any, Any], bool]) -> _Rule:
    return _Rule(msgspec.msgpack.Decoder(expected | abi.Failed), fits)


def _always(_request: object, _result: object) -> bool:
    return True


def _regular(_request: object, attributes: abi.Attributes) -> bool:
    return attributes.kind == "file"


def _directory(_request: object, attributes: abi.Attributes) -> bool:
    return attributes.kind == "directory"


def _symlink(_request: object, attributes: abi.Attributes) -> bool:
    return attributes.kind == "symlink"


def _open_or_any(request: abi.Stat, attributes: abi.Attributes) -> bool:
    return request.handle is None or attributes.kind == "file"


def _linked(request: abi.Link, attributes: abi.Attributes) -> bool:
    """No directory has two names, and only a regular file is ever open."""
    return attributes.kind == "file" or (request.handle is None and attributes.kind != "directory")


def _same_object(request: abi.SetAttributes, attributes: abi.Attributes) -> bool:
    """Only a regular file is ever open or has a size that can be set."""
    return attributes.kind == "file" or (request.size is None and request.handle is None)


def _target(_request: abi.ReadLink, target: abi.Target) -> bool:
    return "\0" not in target.path and len(in_bytes(target.path)) <= _TARGET_BYTES


def is_name(name: str) -> bool:
    """Whether a directory can hold it."""
    return name not in (".", "..") and "/" not in name and "\0" not in name and len(in_bytes(name)) <= _NAME_BYTES


def _entries(request: abi.List, entries: abi.Entries) -> bool:
    """Names that a directory can hold, each once; the next cookie lies ahead, so that a listing ends."""
    names = [entry.name for entry in entries.entries]
    return (
        (entries.next == 0 or entries.next > request.cookie)
        and len(set(names)) == len(names)
        and all(map(is_name, names))
    )


def _content(request: abi.Peek, content: abi.Content) -> bool:
    """All of a regular file."""
    return content.attributes.kind == "file" and len(content.data) == content.attributes.size <= request.size


def _data(request: abi.Read | abi.ReadInput, data: abi.Data) -> bool:
    return len(data.data) <= request.size


def _note(_request: abi.Recall, data: abi.Data) -> bool:
    return len(data.data) <= abi.MAX_NOTE


def _written(request: abi.Write, written: abi.Written) -> bool:
    """Something of something: a writer that goes on with the rest comes to an end."""
    return min(1, len(request.data)) <= written.size <= len(request.data)


def _ahead(request: abi.Seek, position: abi.Position) -> bool:
    return position.offset >= request.offset


def _copied(request: abi.Copy, copied: abi.Copied) -> bool:
    return copied.size <= request.size


def _value(_request: object, value: abi.Data) -> bool:
    return len(value.data) <= abi.MAX_EXTENDED


def extended_name(name: str) -> bool:
    """Whether a client's file may have an extended attribute of that name."""
    return (
        name.startswith(abi.EXTENDED_PREFIX)
        and len(name) > len(abi.EXTENDED_PREFIX)
        and "\0" not in name
        and len(in_bytes(name)) <= _NAME_BYTES
    )


def _extended_names(_request: object, names: abi.Names) -> bool:
    return (
        all(map(extended_name, names.names))
        and len(set(names.names)) == len(names.names)
        and sum(len(in_bytes(name)) + 1 for name in names.names) <= abi.MAX_EXTENDED
    )


def _in_the_way(request: abi.GetLock, found: abi.Conflict) -> bool:
    """A lock that bars the one that was asked about."""
    if found.kind == "none":
        return True
    return (
        "write" in (found.kind, request.kind)
        and (found.end is None or found.end >= max(found.start, request.start))
        and (request.end is None or found.start <= request.end)
    )


_RULES: dict[type[Any], _Rule] = {
    abi.Access: _rule(abi.Done, _always),
    abi.Stat: _rule(abi.Attributes, _open_or_any),
    abi.StatFileSystem: _rule(abi.FileSystem, _always),
    abi.ReadLink: _rule(abi.Target, _target),
    abi.List: _rule(abi.Entries, _entries),
    abi.Open: _rule(abi.Attributes, _regular),
    abi.OpenUnnamed: _rule(abi.Attributes, _regular),
    abi.OpenAgain: _rule(abi.Attributes, _regular),
    abi.Read: _rule(abi.Data, _data),
    abi.Write: _rule(abi.Written, _written),
    abi.SetAttributes: _rule(abi.Attributes, _same_object),
    abi.Seek: _rule(abi.Position, _ahead),
    abi.Allocate: _rule(abi.Done, _always),
    abi.Copy: _rule(abi.Copied, _copied),
    abi.Sync: _rule(abi.Done, _always),
    abi.SyncDirectory: _rule(abi.Done, _always),
    abi.SyncAll: _rule(abi.Done, _always),
    abi.Close: _rule(abi.Done, _always),
    abi.MakeDirectory: _rule(abi.Attributes, _directory),
    abi.Remove: _rule(abi.Done, _always),
    abi.Rename: _rule(abi.Done, _always),
    abi.Link: _rule(abi.Attributes, _linked),
    abi.SymbolicLink: _rule(abi.Attributes, _symlink),
    abi.GetExtended: _rule(abi.Data, _value),
    abi.ListExtended: _rule(abi.Names, _extended_names),
    abi.SetExtended: _rule(abi.Done, _always),
    abi.RemoveExtended: _rule(abi.Done, _always),
    abi.Lock: _rule(abi.Done, _always),
    abi.GetLock: _rule(abi.Conflict, _in_the_way),
    abi.Flock: _rule(abi.Done, _always),
    abi.StopWaiting: _rule(abi.Done, _always),
    abi.Look: _rule(abi.Found, _always),
    abi.Peek: _rule(abi.Content, _content),
    abi.Watch: _rule(abi.Done, _always),
    abi.Unwatch: _rule(abi.Done, _always),
    abi.Follow: _rule(abi.Done, _always),
    abi.Unfollow: _rule(abi.Done, _always),
    abi.Hold: _rule(abi.Done, _always),
    abi.Compound: _rule(abi.Results, _always),
    abi.Recall: _rule(abi.Data, _note),
    abi.Remember: _rule(abi.Done, _always),
    abi.ReadInput: _rule(abi.Data, _data),
    abi.Call: _rule(abi.Value, _always),
}
