"""Functions that the client registered (`functions=[lookup]`), called from inside the enclave through typed stubs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from adyton.errors import ClosedError
from adyton.proto.values import Bulk, Signature, decode_result, encode_arguments
from adyton.trusted.connection import Connection

_P = ParamSpec("_P")
_R = TypeVar("_R")

# (function's name, encoded arguments, bulk beside them) -> result; raises what it raised
Caller = Callable[[str, bytes, Sequence[bytes]], bytes | Bulk]


connection: Connection[Caller] = Connection()  # to the client


def host_function(stub: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn an annotated stub into a call of the client's function of that name.

    The client's policy must allow it (`allow_call`), else PermissionError. Arguments are checked by the client against its own
    function's annotations, the result here against the stub's. What the client's function raises is raised here: the
    built-in exception class of that kind, or RuntimeError.
    """
    signature = Signature(stub)

    @functools.wraps(stub)
    def call(*positional: _P.args, **keywords: _P.kwargs) -> _R:
        caller = connection.made
        if caller is None:
            raise ClosedError(
                f"{signature.name}() is a function of the client, and this is no enclave: load it and call it there"
            )
        bulk: list[bytes] = []
        arguments = encode_arguments(signature.name, positional, keywords, bulk=bulk)
        result: _R = decode_result(signature.name, caller(signature.name, arguments, bulk), signature.returns)
        return result

    return call
