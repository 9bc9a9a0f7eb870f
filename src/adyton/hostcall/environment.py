"""What an enclave takes of its client's environment: variables by name, the time zone, and the host name.

Both ends hold this table, as they hold own_paths: the client refuses a policy that names what is not to be had, and the enclave
refuses a client that sends it all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from adyton.errors import UsageError

# Environment variables that loader, libc or interpreter obey; "*" stands for any ending. Besides the plain ones: what ld.so itself
# drops for set-user-id programs because code or data of the variable's choice is loaded (glibc, sysdeps/generic/unsecvars.h).
REFUSED_ENVIRONMENT = (
    "LD_*",
    "PYTHON*",
    "GLIBC_*",
    "OPENSSL_*",
    "PATH",
    "GCONV_PATH",
    "GETCONF_DIR",
    "LOCPATH",
    "MALLOC_*",
    "NLSPATH",
    "TZDIR",
)

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z")  # at most HOST_NAME_MAX of limits.h
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_REFUSED = re.compile("|".join(re.escape(row).replace(r"\*", ".*") for row in REFUSED_ENVIRONMENT), re.DOTALL)
# A name in the zone database, or a rule as in tzset(3). No path: libc would read a file of the client's choice.
_TIME_ZONE = re.compile(r"(?![/:])(?!.*\.\.)[A-Za-z0-9_+,./:<>-]{0,128}\Z")


def check_variable(name: str, where: str = "allow_env") -> str:
    """`name`, if a client may set this variable in an enclave; UsageError if not."""
    if not isinstance(name, str) or not _VARIABLE.match(name):
        raise UsageError(
            f"{where}: {name!r} is no name of an environment variable; list names, without values or wildcards"
        )
    if _REFUSED.fullmatch(name):
        raise UsageError(
            f"{where}: {name} is obeyed by the loader or the interpreter, and would change what runs in the enclave. Leave it out; "
            f"never allowed are {', '.join(REFUSED_ENVIRONMENT)}"
        )
    return name


def check_environment(variables: Mapping[str, str]) -> None:
    """UsageError unless a client may set all of these."""
    for name, value in variables.items():
        check_variable(name, "environment")
        if "\0" in value:
            raise UsageError(f"environment: the value of {name} holds a NUL, which none can")


def is_time_zone(text: str) -> bool:
    """Whether `text` is a value for TZ that names no file but one of the zone database; "" is."""
    return _TIME_ZONE.match(text) is not None


def is_host_name(text: str) -> bool:
    """Whether an enclave may be told that it runs on a machine of this name: 1 to 64 letters, digits, dots, hyphens and underscores."""
    return _HOST_NAME.match(text) is not None
