"""What the doctor finds, and what it says where something is missing."""

import errno
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from adyton.cli.doctor import command
from adyton.runtime.process import doctor
from adyton.runtime.process import filter as filters
from adyton.runtime.process.doctor import Finding, findings
from adyton.runtime.process.filter import Rule, compile_filter, pack
from adyton.runtime.process.table import architecture, number


def test_every_probe_has_its_finding():
    found = findings()
    assert [each.name for each in found] == ["packages", *(name for name, _, _ in doctor.PROBES)]
    for each in found:
        assert each.detail


def test_what_is_needed_and_what_is_not():
    needed = {name for name, needed, _ in doctor.PROBES if needed}
    assert needed >= {"kernel", "architecture", "namespaces", "mounts", "fuse", "seccomp"}
    assert not needed & {"sgx", "tdx", "sev-snp", "nitro", "tpm", "cgroup"}


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
