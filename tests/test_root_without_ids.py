"""Root of a user namespace that maps one user id, as in a rootless container: there are enclaves, all of one user."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.image.build import build_file

pytestmark = pytest.mark.sandbox
PAY = Path(__file__).parent.parent / "examples/pay"

START = """
import json, os, sys
from adyton.runtime.process import namespaces
uid, gid = os.geteuid(), os.getegid()
namespaces.unshare(namespaces.NEWUSER)
namespaces.map_ids(0, 0, uid, gid)
assert os.geteuid() == 0
"""


def in_a_user_namespace(program, *arguments):
    """Run the program there; what it prints, from JSON."""
    done = subprocess.run(
        [sys.executable, "-c", START + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_program_runs_and_reads_the_clients_file():
    program = """
import adyton
with adyton.load(sys.argv[1] + "/pay.py", allow_read=[sys.argv[1] + "/pay.csv"]) as pay:
    print(pay.call("mean_pay", sys.argv[1] + "/pay.csv"))
"""
    assert in_a_user_namespace(program, PAY) > 0


def test_packages_are_unpacked_once_for_its_enclaves_and_read_only(wheels, workplace):
    wheels.add("alpha", "1.0")
    (workplace / "prog.py").write_text(
        "# /// script\n# dependencies = ['alpha']\n# ///\nimport os\nimport alpha\n\n"
        "def where() -> list[str]:\n    return [alpha.VERSION, str(os.stat(alpha.__file__).st_ino)]\n\n"
        "def touch() -> None:\n    open(alpha.__file__, 'a')\n"
    )
    image = build_file(workplace / "prog.py")
    program = """
import subprocess
import adyton
command = [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
on = "grpc://" + server.stdout.readline().rpartition(" ")[2].strip()
seen = []
for _ in range(2):
    with adyton.load(sys.argv[1], on=on, allow_sim=True) as enclave:
        seen.append(enclave.call("where"))
        try:
            enclave.call("touch")
        except OSError as error:
            seen.append(error.errno)
server.terminate()
server.wait()
print(json.dumps(seen))
"""
    one, errno_of_one, other, errno_of_other = in_a_user_namespace(program, image)
    assert one == other
    assert one[0] == "1.0"
    assert errno_of_one == errno_of_other == errno.EROFS


def test_its_processes_have_no_capabilities_and_see_no_other_enclave(tmp_path):
    program = """
from sandbox import CodeError, children, enclave, start_zygote, status, wait_until_ended
with start_zygote(sys.argv[1]) as zygote, enclave(zygote) as one, enclave(zygote) as other:
    seen = {"warnings": one.guest("return finish(True, '/client', 'host')")}
    seen["ids"] = one.guest("import os; return os.getresuid()")
    seen["server"] = one.guest("import os; return [p for p in ('/root', '/home', '/opt/adyton/store') if os.path.exists(p)]")
    seen["null"] = one.guest("return open('/dev/null', 'wb').write(b'x')")
    seen["capabilities"] = sorted({status(one.pid)[n] for n in ("CapInh", "CapPrm", "CapEff", "CapAmb")})
    seen["refused"] = []
    for pid in (other.pid, *children(other.pid), os.getpid()):
        try:
            one.supervisor(f"import os; os.kill({pid}, 0)")
        except CodeError as error:
            seen["refused"].append(str(error)[:15])
    processes = {one.pid, *children(one.pid), other.pid, *children(other.pid)}
    zygote.close()
    seen["left"] = sorted(wait_until_ended(processes))
print(json.dumps(seen))
"""
    assert in_a_user_namespace(program, tmp_path) == {
        "warnings": [],
        "ids": [1000] * 3,
        "server": [],
        "null": 1,
        "capabilities": ["0" * 16],
        "refused": ["PermissionError"] * 4,
        "left": [],
    }


def test_the_doctor_says_what_is_lacking():
    program = """
from adyton.runtime.process.doctor import findings
print(json.dumps({each.name: [each.ok, each.needed, each.detail] for each in findings()}))
"""
    found = in_a_user_namespace(program)
    assert [name for name, (ok, needed, _) in found.items() if needed and not ok] == []
    assert found["user ids"][:2] == [False, False]
    assert "maps too few user ids" in found["user ids"][2]
