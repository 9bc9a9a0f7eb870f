"""The messages of enclave.proto, and `user_message`: one handle for the extension of EnclaveInput and of EnclaveOutput.

In proto2 an extension belongs to one message, so `user_message` of input and of output are two descriptors. A program has one
name for both: EnclaveOutput's `Extensions`, `HasExtension` and `ClearExtension` take the input's descriptor for the output's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adyton.enclave_pb2 import (
    EnclaveConfig,
    EnclaveFinal,
    EnclaveInput,
    EnclaveLoadConfig,
    EnclaveOutput,
    OutputExtensions,
    StatusProto,
    user_message,
)

__all__ = [
    "EnclaveConfig",
    "EnclaveFinal",
    "EnclaveInput",
    "EnclaveLoadConfig",
    "EnclaveOutput",
    "StatusProto",
    "user_message",
]


def _own(handle: Any) -> Any:
    return OutputExtensions.user_message if handle is user_message else handle


class _OutputExtensionDict:
    """EnclaveOutput.Extensions, for which `user_message` is its own extension 1000."""

    def __init__(self, extensions: Any) -> None:
        self._extensions = extensions

    def __getitem__(self, handle: Any) -> Any:
        return self._extensions[_own(handle)]

    def __setitem__(self, handle: Any, value: Any) -> None:
        self._extensions[_own(handle)] = value

    def __delitem__(self, handle: Any) -> None:
        del self._extensions[_own(handle)]

    def __contains__(self, handle: Any) -> bool:
        return _own(handle) in self._extensions

    def __iter__(self) -> Iterator[Any]:
        return iter(self._extensions)

    def __len__(self) -> int:
        return len(self._extensions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extensions, name)


def _install() -> None:
    message: Any = EnclaveOutput
    if isinstance(message.__dict__.get("Extensions"), property):
        return
    extensions, has, clear = message.Extensions, message.HasExtension, message.ClearExtension
    message.Extensions = property(lambda self: _OutputExtensionDict(extensions.__get__(self)))
    message.HasExtension = lambda self, handle: has(self, _own(handle))
    message.ClearExtension = lambda self, handle: clear(self, _own(handle))


_install()
