"""Functions that the client registered (`functions=[lookup]`), called from inside the enclave through typed stubs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from adyton.errors import ClosedError
from adyton.proto.values import Signature, decode_result, encode_arguments

_P = ParamSpec("_P")
_R = TypeVar("_R")

Caller = Callable[[str, bytes], bytes]  # (function's name, encoded arguments) -> encoded result; raises what it raised
_caller: Caller | None = None


def connect(caller: Caller | None) -> None:
    """Tell the stubs how to reach the client; the runtime does this before it imports the enclave's code."""
    global _caller  # noqa: PLW0603 - one client per enclave process
    _caller = caller


def host_function(stub: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn an annotated stub into a call of the client's function of that name.

    The client's policy must allow it (`allow_call`), else PermissionError. Arguments are checked by the client against its own
    function's annotations, the result here against the stub's. What the client's function raises is raised here: the
    built-in exception class of that kind, or RuntimeError.
    """
    signature = Signature(stub)

    @functools.wraps(stub)
    def call(*positional: _P.args, **keywords: _P.kwargs) -> _R:
        if _caller is None:
            raise ClosedError(f"{signature.name}() is a function of the client, and this is no enclave: load it and call it there")
        arguments = encode_arguments(signature.name, positional, keywords)
        result: _R = decode_result(signature.name, _caller(signature.name, arguments), signature.returns)
        return result

    return call
