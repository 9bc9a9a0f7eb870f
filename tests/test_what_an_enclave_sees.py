"""The enclave's file tree: its own names, the client's allowed ones, a private /tmp, and nothing of the server."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import adyton

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("on_the_server")]

PROGRAM = '''
import os, sys, threading, tempfile, socket, json, subprocess, time, random

def tree(path: str) -> list[str]:
    return sorted(os.listdir(path))

def attempt(expression: str) -> str:
    """What an expression gives, or the error's name and errno."""
    try:
        return repr(eval(expression))
    except OSError as error:
        return f"{type(error).__name__} {error.errno}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def execute(code: str) -> str:
    scope: dict = {}
    exec(code, globals() | {"out": scope})
    return repr(scope.get("result"))
'''


@pytest.fixture
def program(workplace: Path) -> str:
    Path("look.py").write_text(PROGRAM)
    return str(Path("look.py").absolute())


def test_files_of_the_client_are_read_written_listed_and_removed(program, workplace):
    (workplace / "data").mkdir()
    (workplace / "data" / "a.txt").write_text("hello")
    with adyton.load(program, allow_write=["data"]) as look:
        assert look.call("tree", "data") == ["a.txt"]
        assert look.call("attempt", "open('data/a.txt').read()") == "'hello'"
        assert look.call("attempt", "open('data/b.txt', 'w').write('x' * 100000)") == "100000"
        assert (workplace / "data" / "b.txt").read_text() == "x" * 100000
        assert look.call("attempt", "open('data/b.txt', 'a').write('end')") == "3"
        assert look.call("attempt", "os.stat('data/b.txt').st_size") == "100003"
        assert look.call("attempt", "os.truncate('data/b.txt', 2)") == "None"
        assert look.call("attempt", "os.mkdir('data/sub')") == "None"
        assert look.call("attempt", "os.rename('data/b.txt', 'data/sub/c.txt')") == "None"
        assert look.call("tree", "data/sub") == ["c.txt"]
        assert look.call("attempt", "os.unlink('data/sub/c.txt')") == "None"
        assert look.call("attempt", "os.rmdir('data/sub')") == "None"
        assert look.call("attempt", "os.fsync(os.open('data/a.txt', os.O_RDWR))") == "None"
        assert look.call("attempt", "os.fsync(os.open('data', os.O_RDONLY))") == "None"
        assert look.call("attempt", "open('data/none')") == "FileNotFoundError 2"
        assert look.call("attempt", "open('data/a.txt', 'x')") == "FileExistsError 17"
    assert os.listdir(workplace / "data") == ["a.txt"]


def test_reading_does_not_allow_writing(program, workplace, capfd):
    (workplace / "data").mkdir()
    (workplace / "data" / "a.txt").write_text("hello")
    with adyton.load(program, allow_read=["data"]) as look:
        assert look.call("attempt", "open('data/a.txt', 'w')") == "PermissionError 13"
        assert look.call("attempt", "open('data/new', 'w')") == "PermissionError 13"
        assert look.call("attempt", "os.unlink('data/a.txt')") == "PermissionError 13"
    path = workplace / "data" / "a.txt"
    assert path.read_text() == "hello"
    assert f"denied: write {path} (add --allow-write {path})\n" in capfd.readouterr().err


def test_what_is_not_allowed_is_denied_with_its_full_path(program, workplace, capfd):
    (workplace / "secret.txt").write_text("secret")
    with adyton.load(program) as look:
        assert look.call("attempt", "open('secret.txt').read()") == "PermissionError 13"
        assert look.call("attempt", "open('/home/ann/deep/.netrc').read()") == "PermissionError 13"
        assert look.call("attempt", "open('/home/ann/deep/.netrc').read()") == "PermissionError 13"
        assert look.call("attempt", "os.listdir('.')") == "PermissionError 13"
        assert look.call("attempt", "os.getcwd()") == repr(str(workplace))
        assert look.call("attempt", "os.stat('.').st_mode & 0o170000") == str(0o040000)
    err = capfd.readouterr().err
    for path in (workplace / "secret.txt", Path("/home/ann/deep/.netrc"), workplace):
        assert err.count(f"denied: read {path} (add --allow-read {path})\n") == 1, err


def test_what_the_c_library_looks_for_by_itself_is_no_denial(program, workplace, capfd):
    with adyton.load(program) as look:
        assert int(look.call("attempt", "os.cpu_count()")) >= 1
        assert look.call("attempt", "open('/sys/devices/system/cpu/online')") == "PermissionError 13"
        assert look.stats()["denied"] == {}
    assert "denied" not in capfd.readouterr().err


def test_links_do_not_lead_out(program, workplace):
    (workplace / "data").mkdir()
    (workplace / "outside.txt").write_text("secret")
    (workplace / "data" / "out").symlink_to("../outside.txt")
    (workplace / "data" / "passwd").symlink_to("/etc/passwd")
    (workplace / "data" / "in").symlink_to("inside.txt")
    (workplace / "data" / "inside.txt").write_text("fine")
    with adyton.load(program, allow_read=["data"]) as look:
        assert look.call("attempt", "open('data/out').read()") == "PermissionError 13"
        assert look.call("attempt", "open('data/passwd').read()") == "PermissionError 13"
        assert look.call("attempt", "open('data/../outside.txt').read()") == "PermissionError 13"
        assert look.call("attempt", "open('data/in').read()") == "'fine'"


def test_nothing_of_the_server_is_there(program, workplace):
    marker = Path("/var/tmp") / f"adyton-marker-{os.getpid()}"
    marker.write_text("server")
    try:
        with adyton.load(program, allow_read=["/"]) as look:
            roots = look.call("tree", "/")
            assert {"enclave", "proc", "dev", "etc", "usr", "opt", "tmp"} <= set(roots)
            processes = look.call("attempt", "[p for p in os.listdir('/proc') if p.isdigit()]")
            assert processes == "['1', '2']"
            assert look.call("attempt", "open('/etc/passwd').read().count('root:x')") in ("0", "1")
            environment = look.call("attempt", "open('/proc/self/environ').read()")
            assert set(re.findall(r"([A-Z_]+)=", environment)) <= {"LANG", "LD_LIBRARY_PATH"}
            assert (
                look.call("attempt", "sorted(os.listdir('/opt/adyton'))")
                == "['channel', 'clock', 'lib', 'python', 'venv']"
            )
            assert look.call("attempt", "[n for n in os.listdir('/usr')]").count("local") == 0
            assert look.call("attempt", "sorted(os.listdir('/enclave'))") == "['look.py']"
            assert "PermissionError" in look.call("attempt", "open('/enclave/x', 'w')") or "30" in look.call(
                "attempt", "open('/enclave/x', 'w')"
            )
            assert look.call("attempt", "os.getuid() == 0") == "False"
        with adyton.load(program) as look:
            assert look.call("attempt", f"open('{marker}')") == "PermissionError 13"
    finally:
        marker.unlink()


def test_system_calls_that_reach_out_are_refused(program, workplace):
    with adyton.load(program) as look:
        assert look.call("attempt", "socket.create_connection(('127.0.0.1', 9))").startswith("PermissionError")
        assert look.call("attempt", "subprocess.run(['/bin/true'])").split()[0] in (
            "PermissionError",
            "FileNotFoundError",
        )
        assert look.call("attempt", "os.kill(1, 0)") == "None"
        assert look.call("execute", "a, b = socket.socketpair(); a.send(b'x'); out['result'] = b.recv(1)") == "b'x'"
        assert look.call("attempt", "os.chroot('/tmp')").startswith("PermissionError")
        assert look.call("attempt", "len(os.urandom(8)) + len(random.randbytes(8))") == "16"
        assert (
            look.call("execute", "t = threading.Thread(target=lambda: out.update(result=1)); t.start(); t.join()")
            == "1"
        )
        fork = "pid = os.fork()\nif pid == 0: os._exit(7)\nout['result'] = os.waitpid(pid, 0)[1] >> 8"
        assert look.call("execute", fork) == "7"


def test_tmp_is_private_and_gone(program, workplace):
    with adyton.load(program) as look:
        name = look.call("attempt", "tempfile.mkstemp()[1]").strip("'")
        assert name.startswith("/tmp/")
        assert not os.path.exists(name)
        assert look.call("attempt", f"open({name!r}, 'w').write('private')") == "7"
        assert look.call("attempt", f"open({name!r}).read()") == "'private'"
    with adyton.load(program) as look:
        assert look.call("attempt", f"open({name!r})") == "FileNotFoundError 2"


def test_own_names_cannot_be_covered_by_any_policy(program, workplace):
    for path in (
        "/enclave",
        "/usr",
        "/usr/lib",
        "/bin/sh",
        "/lib",
        "/opt/adyton",
        "/proc/1",
        "/dev/null",
        "/etc/passwd",
    ):
        for keyword in ("allow_read", "allow_write"):
            with pytest.raises(adyton.AdytonError) as caught:
                adyton.load(program, **{keyword: [path]})
            assert caught.value.exit_code == 2
            assert path.split("/")[1] in str(caught.value)


def test_no_policy_makes_the_guest_import_a_file_of_the_client(program, workplace):
    for name in ("evil", "look", "json", "sitecustomize", "usercustomize"):
        (workplace / f"{name}.py").write_text("raise SystemExit('imported from the client')\n")
    Path("look_again.py").write_text(PROGRAM)
    with adyton.load("look_again.py", allow_read=["/"], allow_write=[str(workplace)]) as look:
        assert look.call("attempt", "__import__('evil')").startswith("ModuleNotFoundError")
        paths = look.call("attempt", "[p for p in sys.path if not p.startswith(('/enclave', '/opt/adyton'))]")
        assert paths == "[]"
    for name in ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "PATH"):
        with pytest.raises(adyton.AdytonError) as caught:
            adyton.load("look_again.py", allow_env=[name])
        assert caught.value.exit_code == 2


def test_environment_is_what_the_policy_names(program, workplace, monkeypatch):
    monkeypatch.setenv("COLOUR", "blue")
    monkeypatch.setenv("SECRET", "x")
    with adyton.load(program, allow_env=["COLOUR"]) as look:
        assert look.call("attempt", "os.environ['COLOUR']") == "'blue'"
        assert look.call("attempt", "'SECRET' in os.environ") == "False"


def test_output_arrives_before_the_reply(program, workplace, capfd):
    with adyton.load(program) as look:
        look.call("attempt", "print('line') or sys.stderr.write('err\\n')")
        captured = capfd.readouterr()
        assert captured.out == "line\n"
        assert "err\n" in captured.err


def test_a_working_directory_that_is_the_enclaves_own_is_left(program, monkeypatch, capfd):
    monkeypatch.chdir("/usr/lib")
    with adyton.load(program) as look:
        assert look.call("attempt", "os.getcwd()") == "'/enclave'"
    assert capfd.readouterr().err.count("adyton: warning: the working directory /usr/lib") == 1
