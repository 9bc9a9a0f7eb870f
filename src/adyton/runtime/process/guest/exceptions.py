"""What was raised on the client, as an exception of the enclave's."""

from __future__ import annotations

import builtins
import contextlib

from adyton.communicator.messages import Raised
from adyton.errors import EnclaveTypeError


def exception_of(raised: Raised) -> Exception:
    """What a registered function, or an iterator that is an argument, raised on the client, as the nearest built-in exception here."""
    kind = getattr(builtins, raised.builtin, None)
    if raised.kind == "type":
        return EnclaveTypeError(raised.message)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return RuntimeError(f"{raised.type}: {raised.message}")
    if issubclass(kind, OSError) and raised.errno:
        return kind(raised.errno, raised.message)
    for each in kind.__mro__:  # UnicodeDecodeError, which takes five arguments, is a UnicodeError besides
        with contextlib.suppress(TypeError):
            return each(raised.message if each is kind else f"{raised.type}: {raised.message}")  # type: ignore[no-any-return]
    raise AssertionError("Exception takes any text")
