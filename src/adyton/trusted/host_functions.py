"""Functions that the client registered (`functions=[lookup]`), called from inside the enclave through typed stubs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from adyton.errors import ClosedError
from adyton.proto.values import Bulk, Signature, decode_result, encode_arguments

_P = ParamSpec("_P")
_R = TypeVar("_R")

# (function's name, encoded arguments, bulk beside them) -> result; raises what it raised
Caller = Callable[[str, bytes, Sequence[bytes]], bytes | Bulk]


class _Connection(threading.local):
    """How stubs reach the client: of the calling thread, else of the process."""

    process: Caller | None = None
    thread: Caller | None = None


_connection = _Connection()


def connect(caller: Caller | None, *, whole_process: bool) -> None:
    """Tell the stubs of this thread, or of every thread, how to reach the client; the runtime does this."""
    if whole_process:
        _Connection.process = caller
    else:
        _connection.thread = caller


def host_function(stub: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn an annotated stub into a call of the client's function of that name.

    The client's policy must allow it (`allow_call`), else PermissionError. Arguments are checked by the client against its own
    function's annotations, the result here against the stub's. What the client's function raises is raised here: the
    built-in exception class of that kind, or RuntimeError.
    """
    signature = Signature(stub)

    @functools.wraps(stub)
    def call(*positional: _P.args, **keywords: _P.kwargs) -> _R:
        caller = _connection.thread or _connection.process
        if caller is None:
            raise ClosedError(
                f"{signature.name}() is a function of the client, and this is no enclave: load it and call it there"
            )
        bulk: list[bytes] = []
        arguments = encode_arguments(signature.name, positional, keywords, bulk=bulk)
        result: _R = decode_result(signature.name, caller(signature.name, arguments, bulk), signature.returns)
        return result

    return call
