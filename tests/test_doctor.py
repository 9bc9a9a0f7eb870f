"""What the doctor finds, and what it says where something is missing."""

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from adyton.attestation.identity import PLATFORMS
from adyton.cli.doctor import command
from adyton.runtime.process import doctor
from adyton.runtime.process import filter as filters
from adyton.runtime.process.doctor import Finding, findings
from adyton.runtime.process.filter import Rule, compile_filter, pack
from adyton.runtime.process.table import architecture, number


def test_every_probe_has_its_finding():
    found = findings()
    assert [each.name for each in found] == ["packages", *(name for name, _, _ in doctor.PROBES), *PLATFORMS]
    for each in found:
        assert each.detail


def test_what_is_needed_and_what_is_not():
    needed = {name for name, needed, _ in doctor.PROBES if needed}
    assert needed >= {"kernel", "architecture", "namespaces", "mounts", "fuse", "seccomp"}
    assert "memory" not in needed
    assert not any(each.needed for each in findings() if each.name in PLATFORMS)


def test_each_platform_has_a_line_and_the_simulation_says_what_it_is():
    found = {each.name: each for each in findings() if each.name in PLATFORMS}
    assert set(found) == set(PLATFORMS)
    assert found["sim"].ok
    assert "NOT CONFIDENTIAL" in found["sim"].detail


def test_the_command_prints_them_and_its_exit_code_says_whether_enclaves_can_start():
    result = CliRunner().invoke(command, ["--json"])
    printed = json.loads(result.output)
    assert printed["ok"] == all(each["ok"] for each in printed["findings"] if each["needed"])
    assert result.exit_code == (0 if printed["ok"] else 31)
    text = CliRunner().invoke(command, []).output
    for each in printed["findings"]:
        assert each["name"] in text


def test_something_missing_is_exit_code_31(monkeypatch):
    lacking = [Finding("fuse", ok=False, detail="there is no /dev/fuse", needed=True)]
    monkeypatch.setattr(doctor, "findings", lambda: lacking)
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 31
    assert "FAIL fuse  there is no /dev/fuse" in result.output
    assert "NO enclave" in result.output
    lacking[:] = [Finding("tdx", ok=False, detail="no /dev/tdx_guest", needed=False)]
    assert CliRunner().invoke(command, []).exit_code == 0


UNDER_A_FILTER = """
import sys
from adyton.runtime.process import libc, namespaces
namespaces.no_new_privileges()
libc.install_filter(bytes.fromhex(sys.argv[1]))
from adyton.runtime.process.doctor import findings
import json
from adyton.errors import AdytonError
from adyton.runtime.launch import Zygote
found = {each.name: [each.ok, each.detail] for each in findings()}
try:
    Zygote.start(sys.argv[2])
except AdytonError as error:
    found["start"] = [error.exit_code, error.message]
print(json.dumps(found))
"""


@pytest.mark.skipif(architecture() is None, reason="no filter for this machine")
@pytest.mark.parametrize(
    ("call", "code", "lacking"),
    [
        ("unshare", errno.EPERM, {"user namespaces", "namespaces", "mounts", "fuse"}),
        ("fsopen", errno.ENOSYS, {"mounts", "fuse"}),
        ("seccomp", errno.EINVAL, {"seccomp"}),
        ("pidfd_open", errno.ENOSYS, {"process descriptors"}),
        ("pivot_root", errno.EPERM, {"mounts"}),
    ],
)
def test_a_container_that_forbids_a_call_is_found_out(tmp_path, call, code, lacking):
    program = compile_filter(architecture(), {number(call): Rule(errno=code)}, Rule())
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_FILTER, filters.pack(program).hex(), tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    here = {each.name for each in findings() if each.needed and not each.ok}
    assert {name for name, _, _ in doctor.PROBES if _needed(name) and not found[name][0]} == lacking | here
    if call in ("unshare", "fsopen", "pivot_root"):
        exit_code, message = found["start"]
        assert exit_code == 31
        for name in lacking:
            assert f"{name}: {found[name][1]}" in message


def _needed(name):
    return next(needed for each, needed, _ in doctor.PROBES if each == name)


def test_pack_is_what_the_kernel_takes():
    assert len(pack(compile_filter("x86_64", {1: Rule()}, Rule(errno=1)))) % 8 == 0


# -- other machines ----------------------------------------------------------------------------------------------------


def test_other_systems_need_not_be_looked_at(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    (found,) = findings()
    assert (found.ok, found.needed, found.detail) == (False, True, "darwin: the process runtime needs Linux")


def test_probes_that_fail_as_a_whole_say_what_they_said(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no memory left' >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    _, found, *_ = findings()
    assert (found.name, found.ok, found.needed) == ("probes", False, True)
    assert "exit status 3" in found.detail
    assert "no memory left" in found.detail
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    assert "No such file" in findings()[1].detail


def test_a_missing_package_is_found_out(monkeypatch):
    monkeypatch.setattr(doctor.root, "PACKAGES", (("no_such_package", True),))
    found = findings()[0]
    assert (found.name, found.ok) == ("packages", False)
    assert "no_such_package is not installed" in found.detail


@pytest.mark.parametrize(
    ("release", "ok"),
    [("6.6.0", True), ("6.10.3-arch1", True), ("7.0-rc1", True), ("6.5.13-generic", False), ("5.15.0-91", False)],
)
def test_kernels_by_their_release(monkeypatch, release, ok):
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release, machine="x86_64"))
    if ok:
        assert doctor._kernel() == f"Linux {release}"
    else:
        with pytest.raises(doctor._LackingError, match=r"6\.6 or newer is needed"):
            doctor._kernel()


def test_machines_and_pythons_that_are_not_known(monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    monkeypatch.setattr(doctor.table, "architecture", lambda: None)
    with pytest.raises(doctor._LackingError, match="riscv64: the process runtime knows x86_64 and aarch64"):
        doctor._architecture()
    monkeypatch.setattr(doctor.platform, "python_implementation", lambda: "PyPy")
    with pytest.raises(doctor._LackingError, match=r"PyPy .*: CPython 3\.11 or newer is needed"):
        doctor._python()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, ": is this a container that forbids them?"),
        ({"max_user_namespaces": "0"}, ": run sysctl user.max_user_namespaces=10000"),
        (
            {"unprivileged_userns_clone": "0", "apparmor_restrict_unprivileged_userns": "1"},
            ": run sysctl kernel.unprivileged_userns_clone=1 and sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"max_user_namespaces": "96365", "unprivileged_userns_clone": "1"}, ": is this a container"),
    ],
    ids=["none", "number", "two", "allowed"],
)
def test_settings_that_forbid_user_namespaces_are_named(monkeypatch, settings, advice):
    def forbidden(_step):
        raise doctor._LackingError("unshare: Operation not permitted")

    monkeypatch.setattr(doctor, "_in_child", forbidden)
    monkeypatch.setattr(doctor, "_read", lambda path: settings.get(path.rpartition("/")[2], ""))
    with pytest.raises(doctor._LackingError) as lacking:
        doctor._user_namespaces()
    assert str(lacking.value).startswith(f"unshare: Operation not permitted{advice}")


def test_the_bound_of_an_enclaves_memory_is_said(monkeypatch):
    monkeypatch.setattr(doctor.socket_memory, "queued", lambda _diagnosis: 5)
    monkeypatch.setattr(doctor.socket_memory, "listed", lambda _diagnosis: 0)
    place = doctor.memory_group.Place("/x", doctor.memory_group._VERSION_1)
    monkeypatch.setattr(doctor.memory_group, "find", lambda: place)
    assert "watched by its supervisor and bounded by the kernel (cgroup v1)" in doctor._memory()

    def none() -> None:
        raise doctor.memory_group.NoGroupError("it may not make control groups")

    monkeypatch.setattr(doctor.memory_group, "find", none)
    with pytest.raises(
        doctor._LackingError, match=r"the kernel does not bound them \(it may not make control groups\)"
    ):
        doctor._memory()
    monkeypatch.setattr(doctor.socket_memory, "queued", lambda _diagnosis: None)
    with pytest.raises(doctor._LackingError, match=r"not what waits in its sockets: run modprobe -a unix_diag as root"):
        doctor._memory()
    monkeypatch.setattr(doctor.socket_memory, "listed", lambda _diagnosis: None)
    with pytest.raises(
        doctor._LackingError, match=r"no lists of interfaces: run modprobe -a unix_diag netlink_diag as root"
    ):
        doctor._memory()
