"""The error that a client gets for what the enclave's code raised: an EnclaveError, and an instance of the same built-in exception."""

from __future__ import annotations

import builtins
import copy
import errno
import pickle

import pytest

from adyton.errors import EnclaveError, HostCallDeniedError, enclave_error

KINDS = [kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)]
GROUPS = (ExceptionGroup,)  # made from exceptions, which do not cross


def same(one: EnclaveError, other: EnclaveError) -> bool:
    facts = "type", "message", "traceback", "code", "exit_code", "args", "failures"
    return type(one) is type(other) and [getattr(one, each) for each in facts] == [
        getattr(other, each) for each in facts
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_was_raised(kind):
    error = enclave_error(EnclaveError, kind.__name__, f"app.{kind.__name__}", "it is so", "a traceback", None)
    assert isinstance(error, kind if kind not in GROUPS else EnclaveError)
    assert isinstance(error, EnclaveError)
    assert type(error).__name__ == "EnclaveError"
    assert (error.type, error.message, error.traceback) == (f"app.{kind.__name__}", "it is so", "a traceback")
    assert str(error) == f"app.{kind.__name__}: it is so"
    assert error.args == (str(error),)
    assert same(pickle.loads(pickle.dumps(error)), error)
    assert same(copy.copy(error), error)


@pytest.mark.parametrize("name", ["", "print", "KeyboardInterrupt", "no_such_name", "Exception"])
def test_what_is_no_kind_of_exception_is_an_enclave_error(name):
    error = enclave_error(EnclaveError, name, "Odd", "", "", None)
    assert type(error) is EnclaveError
    assert str(error) == "Odd"


def test_numbers_of_the_system_and_denials_are_kept():
    error = enclave_error(HostCallDeniedError, "PermissionError", "PermissionError", "[Errno 13] no", "", errno.EACCES)
    assert isinstance(error, PermissionError)
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(each, HostCallDeniedError)
        assert (each.errno, each.strerror, each.filename) == (errno.EACCES, "Permission denied", None)
        assert each.exit_code == 30


def test_an_error_made_by_hand():
    error = EnclaveError("ValueError", "m", "tb")
    assert (str(error), error.message, error.type, error.traceback) == ("ValueError: m", "m", "ValueError", "tb")
    assert same(copy.deepcopy(error), error)
