"""What a registered function raised on the client, as the enclave's code sees it: the nearest built-in exception."""

import errno

import pytest

from adyton.communicator.messages import Raised
from adyton.errors import EnclaveTypeError
from adyton.runtime.process.guest.run import exception_of


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (Raised("raised", "KeyError", "no such word", "KeyError"), KeyError, "'no such word'"),
        (Raised("raised", "app.Odd", "odd", "ValueError"), ValueError, "odd"),
        (Raised("type", "EnclaveTypeError", "a is no int"), EnclaveTypeError, "a is no int"),
        (Raised("raised", "app.Odd", "odd", "Exception"), Exception, "odd"),
        (Raised("raised", "SystemExit", "3", "SystemExit"), RuntimeError, "SystemExit: 3"),
        (Raised("raised", "KeyboardInterrupt", "", "KeyboardInterrupt"), RuntimeError, "KeyboardInterrupt: "),
        (Raised("raised", "app.Odd", "odd", "no_such_name"), RuntimeError, "app.Odd: odd"),
        (Raised("raised", "app.Odd", "odd", "print"), RuntimeError, "app.Odd: odd"),
        (Raised("raised", "UnicodeDecodeError", "bad", "UnicodeDecodeError"), UnicodeError, "UnicodeDecodeError: bad"),
        (Raised("raised", "OSError", "no number", "OSError"), OSError, "no number"),
    ],
    ids=["builtin", "derived", "type", "plain", "exit", "interrupt", "unknown", "function", "arguments", "os"],
)
def test_the_nearest_built_in(raised, kind, text):
    error = exception_of(raised)
    assert type(error) is kind
    assert str(error) == text


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC])
def test_an_oserror_keeps_its_number_and_so_its_class(number):
    raised = Raised("raised", "OSError", "so it was", "OSError", errno=number)
    error = exception_of(raised)
    assert (error.errno, error.strerror) == (number, "so it was")
    assert type(error) is type(OSError(number, ""))
