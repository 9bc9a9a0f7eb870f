"""The two ways to write an enclave: functions of an `Enclave`, or a `TrustedApplication` class. An Enclave is one of the latter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.proto.enclave import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput

_F = TypeVar("_F", bound=Callable[..., Any])
_MARK = "__adyton_entry__"


def entry(method: _F) -> _F:
    """Mark a method of a TrustedApplication as an entry; it stays an ordinary method."""
    setattr(method, _MARK, True)
    return method


class TrustedApplication:
    """One confidential program. One instance per enclave; `run` and entries are entered by several threads at once."""

    def initialize(self, config: EnclaveConfig) -> None:
        """Called once, before anything else; what it raises fails the load."""

    def run(self, enclave_input: EnclaveInput) -> EnclaveOutput | None:  # noqa: ARG002
        """Called for each `EnclaveClient.enter_and_run`; None stands for an empty EnclaveOutput."""
        raise UsageError(f"{type(self).__name__} has no run(): override it, or call one of its entries")

    def finalize(self, final: EnclaveFinal) -> None:
        """Called once, when the client destroys the enclave; what it raises is raised there after the enclave is gone."""

    def entries(self) -> dict[str, Callable[..., Any]]:
        """Name → bound callable of every entry."""
        found = {}
        for name in dir(type(self)):
            if getattr(getattr(type(self), name), _MARK, False):
                found[name] = getattr(self, name)
        return found


class Enclave(TrustedApplication):
    """A confidential program made of functions. `source`: the file that it was created in, which is what is loaded."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise UsageError(f"Enclave({name!r}): give it a name")
        self.name = name
        self.source: str | None = sys._getframe(1).f_globals.get("__file__")  # noqa: SLF001 - the caller's module is meant
        self._entries: dict[str, Callable[..., Any]] = {}
        self._initializers: list[Callable[..., Any]] = []
        self._finalizers: list[Callable[..., Any]] = []

    def __repr__(self) -> str:
        return f"Enclave({self.name!r})"

    def entry(self, function: _F) -> _F:
        """Make the function callable from the client, under its own name; calling it here still runs it here."""
        name = function.__name__
        if name in self._entries:
            raise UsageError(f"{self!r} has an entry {name}() already: give one of the two another name")
        self._entries[name] = function
        return function

    def on_initialize(self, function: _F) -> _F:
        """Have `function(config)` called when the enclave is loaded; what it raises fails the load."""
        self._initializers.append(function)
        return function

    def on_finalize(self, function: _F) -> _F:
        """Have `function(final)` called when the enclave is destroyed."""
        self._finalizers.append(function)
        return function

    def initialize(self, config: EnclaveConfig) -> None:
        """Call what on_initialize registered, in that order."""
        for function in self._initializers:
            function(config)

    def finalize(self, final: EnclaveFinal) -> None:
        """Call what on_finalize registered, last registered first."""
        for function in reversed(self._finalizers):
            function(final)

    def entries(self) -> dict[str, Callable[..., Any]]:
        """Name → function of every entry."""
        return {**super().entries(), **self._entries}
