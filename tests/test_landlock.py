"""What a supervisor's Landlock domain is made of, by the kernel's ABI: old kernels have none, and are told so, not failed on."""

import errno
import os
import struct

import pytest

from adyton.runtime.process import doctor, landlock

NET = 1 | 2  # bind and connect of TCP
SCOPES = 1 | 2  # abstract unix sockets, signals


@pytest.fixture
def ruleset(tmp_path):
    """A file whose descriptors stand for those of rulesets."""
    path = tmp_path / "ruleset"
    path.touch()
    return str(path)


def held(path):
    """How many descriptors of that file are open; those of other threads come and go."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}") == path
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def kernel(monkeypatch, ruleset):
    """kernel(ABI or errno) → the calls that were made, after the question for the ABI."""

    def kernel(answer):
        calls = []

        def system_call(name, *arguments):
            if name == "landlock_create_ruleset" and arguments[0] is None:
                if isinstance(answer, OSError):
                    raise answer
                return answer
            calls.append((name, *arguments))
            return os.open(ruleset, os.O_RDONLY) if name == "landlock_create_ruleset" else 0

        monkeypatch.setattr(landlock, "system_call", system_call)
        return calls

    return kernel


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_kernel_without_landlock(kernel, code):
    calls = kernel(OSError(code, "no"))
    assert landlock.abi() == 0
    assert landlock.enter_domain() is False
    assert calls == []
    with pytest.raises(doctor._LackingError, match="ABI 0: from 6 on"):
        doctor._landlock()


def test_any_other_error_is_an_error(kernel):
    kernel(PermissionError(errno.EPERM, "a filter"))
    with pytest.raises(PermissionError):
        landlock.enter_domain()


@pytest.mark.parametrize("abi", [1, 2, 3])
def test_a_kernel_whose_domains_know_no_network(kernel, abi):
    calls = kernel(abi)
    assert landlock.enter_domain() is False
    assert calls == []


@pytest.mark.parametrize(
    ("abi", "attributes"),
    [(4, (0, NET)), (5, (0, NET)), (6, (0, NET, SCOPES)), (7, (0, NET, SCOPES))],
    ids=str,
)
def test_the_domain_asks_for_all_that_the_kernel_knows_and_for_no_more(kernel, ruleset, abi, attributes):
    calls = kernel(abi)
    assert landlock.enter_domain() is True
    (create, given, size, flags), (restrict, _, _) = calls
    assert (create, restrict) == ("landlock_create_ruleset", "landlock_restrict_self")
    assert (size, flags) == (len(given), 0)
    assert struct.unpack(f"<{size // 8}Q", given) == attributes
    assert held(ruleset) == 0


def test_a_ruleset_that_cannot_be_entered_is_closed(kernel, ruleset, monkeypatch):
    kernel(6)
    made = landlock.system_call

    def system_call(name, *arguments):
        if name == "landlock_restrict_self":
            assert held(ruleset) == 1
            raise PermissionError(errno.EPERM, "no_new_privs is not set")
        return made(name, *arguments)

    monkeypatch.setattr(landlock, "system_call", system_call)
    with pytest.raises(PermissionError):
        landlock.enter_domain()
    assert held(ruleset) == 0
