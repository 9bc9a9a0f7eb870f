"""Every error that adyton raises on purpose. One tree, drawn here:

    AdytonError                          exit code  canonical code
    ├── UsageError                       2          INVALID_ARGUMENT
    │   ├── UnknownEntryError            2          NOT_FOUND
    │   ├── EnclaveTypeError (TypeError) 2          INVALID_ARGUMENT
    │   ├── NameInUseError               2          ALREADY_EXISTS
    │   └── ClosedError                  2          FAILED_PRECONDITION     closed or destroyed by us
    ├── NotFoundError                    1          NOT_FOUND               an image or enclave that the server has not
    ├── DeadlineError (TimeoutError)     1          DEADLINE_EXCEEDED
    ├── ResourceLimitError               1          RESOURCE_EXHAUSTED
    ├── IntegrityError                   1          DATA_LOSS               sealed data that does not open
    ├── UnreachableError                 10         UNAVAILABLE             no server there, or it never started
    ├── ConnectionLostError              10         UNAVAILABLE             it was there; outcomes are unknown
    ├── UnauthenticatedError             10         UNAUTHENTICATED
    ├── ProtocolError                    11         INTERNAL
    │   ├── LocalProtocolError           11         INTERNAL                our misuse of a protocol: a bug of adyton
    │   └── RemoteProtocolError          11         DATA_LOSS               the peer's misbehaviour
    ├── AttestationError                 -          PERMISSION_DENIED
    │   ├── EvidenceMalformedError       20
    │   ├── NotGenuineError              21
    │   ├── CollateralMissingError       22
    │   ├── TcbError                     23
    │   ├── ExpectationError             24
    │   └── BindingError                 25
    ├── PlatformError                    31         UNIMPLEMENTED           platform or sandbox not to be had here
    ├── ImageError                       40         INVALID_ARGUMENT
    │   └── SignatureError               41         PERMISSION_DENIED
    └── EnclaveError                     50         UNKNOWN                 what the enclave's own code raised
        └── HostCallDeniedError          30         PERMISSION_DENIED       … because this client's policy denied a host call

An error's text says what failed, why, and what to do next. `exit_code` is what the command line exits with; `code` is the name of the
canonical status code.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from typing import ClassVar

# The canonical codes by number, as StatusProto carries them (google/rpc/code.proto).
CANONICAL_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


class AdytonError(Exception):
    """The root. `code`: canonical name; `exit_code`: of the command line; `failures`: all findings where there are several."""

    code: str = "UNKNOWN"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, failures: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.failures = failures

    def __str__(self) -> str:
        return self.message


class UsageError(AdytonError):
    """An option, argument, file or policy of the caller's that cannot be used as it is."""

    code = "INVALID_ARGUMENT"
    exit_code = 2


class UnknownEntryError(UsageError):
    """The image has no entry of that name."""

    code = "NOT_FOUND"


class EnclaveTypeError(UsageError, TypeError):
    """An argument or result does not fit the annotation; nothing of the entry has run."""


class NameInUseError(UsageError):
    """An enclave of that name is loaded already."""

    code = "ALREADY_EXISTS"


class ClosedError(UsageError):
    """Use after close or destroy, or before initialize."""

    code = "FAILED_PRECONDITION"


class NotFoundError(AdytonError):
    """The server has no image or enclave of that name."""

    code = "NOT_FOUND"


class DeadlineError(AdytonError, TimeoutError):
    """The call took longer than its timeout; its outcome is unknown."""

    code = "DEADLINE_EXCEEDED"


class ResourceLimitError(AdytonError):
    """A bound on what a peer may make us hold was reached."""

    code = "RESOURCE_EXHAUSTED"


class IntegrityError(AdytonError):
    """Sealed data that was changed, or sealed under another key."""

    code = "DATA_LOSS"


class UnreachableError(AdytonError):
    """No server answers there, or a proxy server did not start."""

    code = "UNAVAILABLE"
    exit_code = 10


class ConnectionLostError(AdytonError):
    """The other side went away; the outcome of calls under way is unknown."""

    code = "UNAVAILABLE"
    exit_code = 10


class UnauthenticatedError(AdytonError):
    """The server does not accept who we are."""

    code = "UNAUTHENTICATED"
    exit_code = 10


class ProtocolError(AdytonError):
    """A protocol was not followed."""

    code = "INTERNAL"
    exit_code = 11


class LocalProtocolError(ProtocolError):
    """Our own misuse of a protocol object."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow."""

    code = "DATA_LOSS"


class AttestationError(AdytonError):
    """The evidence does not prove what was asked for. `failures` holds every finding."""

    code = "PERMISSION_DENIED"
    exit_code = 21


class EvidenceMalformedError(AttestationError):
    """The evidence cannot be parsed."""

    exit_code = 20


class NotGenuineError(AttestationError):
    """A signature or certificate chain does not hold."""

    exit_code = 21


class CollateralMissingError(AttestationError):
    """Certificates, CRLs or TCB data needed to judge are not there."""

    exit_code = 22


class TcbError(AttestationError):
    """Revoked, or a TCB that the policy does not accept."""

    exit_code = 23


class ExpectationError(AttestationError):
    """Genuine, but not the enclave that the policy expects."""

    exit_code = 24


class BindingError(AttestationError):
    """The evidence is not bound to this connection, or not fresh."""

    exit_code = 25


class PlatformError(AdytonError):
    """The platform or the sandbox cannot be had on this machine."""

    code = "UNIMPLEMENTED"
    exit_code = 31


class ImageError(AdytonError):
    """The file is not an enclave image, or what it holds is not what it says."""

    code = "INVALID_ARGUMENT"
    exit_code = 40


class SignatureError(ImageError):
    """The image's signature is missing, or does not hold."""

    code = "PERMISSION_DENIED"
    exit_code = 41


class EnclaveError(AdytonError):
    """The enclave's code raised. `type`, `message`: the exception's name and text there; `traceback`: in debug only, else "".

    If it was a built-in exception, the object is an instance of that, too (see `enclave_error`). An EnclaveOutput whose status is not OK
    is raised as one, with the name of the status' code as `type` and `code`.
    """

    code = "UNKNOWN"
    exit_code = 50

    def __init__(self, type: str, message: str, traceback: str = "") -> None:  # noqa: A002
        self.type = type
        self.message = message
        self.traceback = traceback
        self.failures = ()
        Exception.__init__(self, str(self))  # not the built-in's own, which may want other arguments

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...], dict[str, object]]:
        """For copies and pools of processes: the class may have been made for this one error."""
        base = HostCallDeniedError if isinstance(self, HostCallDeniedError) else EnclaveError
        builtin = next((each.__name__ for each in type(self).__mro__ if each.__module__ == "builtins"), "")
        number = self.errno if isinstance(self, OSError) else None
        return enclave_error, (base, builtin, self.type, self.message, self.traceback, number), self.__dict__


class HostCallDeniedError(EnclaveError):
    """The enclave's code ended with the PermissionError of a host call that this client's policy denied."""

    code = "PERMISSION_DENIED"
    exit_code = 30


def enclave_error(
    base: type[EnclaveError], builtin: str, name: str, message: str, traceback: str, errno: int | None
) -> EnclaveError:
    """The error for what the enclave's code raised: a `base`, and an instance of the built-in exception of that name, if it is one."""
    error = _class_of(base, builtin)(name, message, traceback)
    if isinstance(error, OSError):  # OSError.__new__ took our arguments for its own
        error.errno, error.filename = errno or None, None
        error.strerror = os.strerror(errno) if errno else None
    return error


_classes: dict[tuple[type, str], type[EnclaveError]] = {}


def _class_of(base: type[EnclaveError], builtin: str) -> type[EnclaveError]:
    kind = getattr(builtins, builtin, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return base
    if (base, builtin) not in _classes:
        _classes[base, builtin] = next(_made(base, kind), base)
    return _classes[base, builtin]


def _made(base: type[EnclaveError], kind: type[Exception]) -> Iterator[type[EnclaveError]]:
    """Classes that are both; of what wants other arguments (a group of exceptions), what it is besides."""
    for each in kind.__mro__[: kind.__mro__.index(Exception)]:
        try:
            made = type(base.__name__, (base, each), {"__module__": base.__module__})
            made("", "")
        except (TypeError, ValueError):
            continue
        yield made
