"""Processes that a program starts: Python itself by default, files of the image that the manifest names, nothing else."""

from __future__ import annotations

import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile import Ward

import adyton
from adyton.errors import ImageError, UsageError
from adyton.image.manifest import Manifest, decode_manifest, encode_manifest
from adyton.image.project import build_project

PROGRAM = """
import ctypes.util, json, multiprocessing, os, signal, subprocess, sys, tempfile, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory

def execute(code: str) -> object:
    scope: dict = {}
    exec(code, globals() | {"out": scope})
    return scope.get("result")

def attempt(expression: str) -> str:
    try:
        return repr(eval(expression))
    except BaseException as error:
        return f"{type(error).__name__} {getattr(error, 'errno', '')}".rstrip()

def python(*arguments: str) -> list:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]

def square(number):
    return number * number

def put(queue, value):
    queue.put(value)

def write(name):
    shared = shared_memory.SharedMemory(name=name)
    shared.buf[:5] = b"child"
    shared.close()
"""
PROJECT = """
[tool.adyton.enclave.prog]
entry = "prog:enclave"
sources = ["prog.py", "bin/*"]
programs = {programs}
"""
ENCLAVE = """
import adyton.trusted
enclave = adyton.trusted.Enclave("prog")
for function in (execute, attempt, python):
    enclave.entry(function)
"""


@pytest.fixture(scope="module")
def enclave(tmp_path_factory):
    directory = tmp_path_factory.mktemp("programs")
    (directory / "prog.py").write_text(PROGRAM)
    with adyton.load(str(directory / "prog.py")) as loaded:
        yield loaded


def project(programs: list[str], folder: str = ".") -> str:
    """The image of the program above, made in a new folder, that may start these programs."""
    top = Path(folder)
    (top / "bin").mkdir(parents=True)
    (top / "prog.py").write_text(PROGRAM + ENCLAVE)
    true = shutil.which("true")
    assert true is not None
    for name in ("tool", "other"):
        shutil.copyfile(true, top / "bin" / name)
    (top / "bin/script").write_text(
        "#!/opt/adyton/venv/bin/python3\nimport sys, prog\nprint('script', *sys.argv[1:])\n"
    )
    (top / "pyproject.toml").write_text(PROJECT.format(programs=programs))
    (built,) = build_project(top)
    return built.path


# -- Python ---------------------------------------------------------------------------------------------------------------


@pytest.mark.sandbox
def test_a_python_that_is_started_has_the_images_modules_and_the_runtimes(enclave):
    code = "import sys, prog, msgspec, adyton.trusted; print(prog.square(3), sys.executable, sys.stdin.read())"
    done = "subprocess.run([sys.executable, '-c', {!r}], input='in', capture_output=True, text=True, env={})"
    for environment in ("None", "{}", "{'PYTHONPATH': '/nowhere'}"):
        said = enclave.call("attempt", done.format(code, environment) + ".stdout")
        assert said.startswith("'9 /opt/adyton/venv/bin/python3")
        assert said.endswith(" in\\n'")


@pytest.mark.sandbox
def test_python_is_found_by_its_usual_names(enclave):
    for name in ("python3", "python"):
        assert enclave.call("attempt", f"subprocess.run([{name!r}, '-c', '']).returncode") == "0"


@pytest.mark.sandbox
def test_shared_libraries_are_found_by_their_names(enclave):
    assert enclave.call("attempt", "ctypes.util.find_library('c')") == "'libc.so.6'"
    assert enclave.call("attempt", "ctypes.CDLL(ctypes.util.find_library('m')).abs(-3)") == "3"
    assert enclave.call("attempt", "ctypes.util.find_library('nothing-of-that-name')") == "None"
    refused = enclave.call("attempt", "subprocess.run(['/sbin/ldconfig'], capture_output=True, text=True).stderr")
    assert "only -p is there" in refused


@pytest.mark.sandbox
def test_no_module_comes_from_the_working_directory_of_the_client(workplace, on_the_server):
    Path("prog.py").write_text(PROGRAM)
    Path("json.py").write_text("raise SystemExit('the client decides what runs')")
    Path("own.py").write_text("raise SystemExit('the client decides what runs')")
    with adyton.load("prog.py", allow_write=["."]) as loaded:
        assert loaded.call("python", "-c", "import json; print(json.dumps(1))") == [0, "1\n", ""]
        assert loaded.call("python", "-c", "import own")[2].endswith("No module named 'own'\n")
        assert loaded.call("python", "-m", "own")[2].endswith("No module named own\n")
        code = "subprocess.run([sys.executable], input='import json, own', capture_output=True, text=True).stderr"
        assert "ModuleNotFoundError" in loaded.call("attempt", code)
        Path("script.py").write_text("import sibling\nprint(sibling.NAME)\n")
        Path("sibling.py").write_text("NAME = 'sibling'\n")
        assert loaded.call("python", "script.py") == [0, "sibling\n", ""]  # the program names it itself


@pytest.mark.sandbox
@pytest.mark.parametrize("directory", ["/", "."], ids=["/tmp by itself", "/tmp beside the client's"])
def test_modules_come_from_a_directory_that_the_enclave_has_made(workplace, monkeypatch, directory):
    program = workplace / "prog.py"
    program.write_text(PROGRAM)
    monkeypatch.chdir(directory)
    made = "subprocess.run(['python', *{}], cwd='/tmp/made', capture_output=True, text=True).stdout"
    with adyton.load(program) as loaded:
        loaded.call("execute", "os.mkdir('/tmp/made'); open('/tmp/made/ham.py', 'w').write('print(__name__)')")
        assert loaded.call("attempt", made.format(["-m", "ham"])) == repr("__main__\n")
        assert loaded.call("attempt", made.format(["-c", "import ham"])) == repr("ham\n")


@pytest.mark.sandbox
def test_standard_streams_can_be_the_clients_files(workplace, on_the_server):
    Path("prog.py").write_text(PROGRAM)
    with adyton.load("prog.py", allow_write=["."]) as loaded:
        code = """
with open("out.txt", "w") as out_file, open("in.txt", "w+") as in_file:
    in_file.write("hello")
    in_file.seek(0)
    code = "import sys; print(sys.stdin.read().upper()); sys.exit(3)"
    out["result"] = subprocess.run([sys.executable, "-c", code], stdin=in_file, stdout=out_file).returncode
"""
        assert loaded.call("execute", code) == 3
    assert Path("out.txt").read_text() == "HELLO\n"


@pytest.mark.sandbox
def test_multiprocessing_starts_processes_by_fork_and_anew(enclave):
    code = """
out["result"] = []
for method in ("fork", "spawn"):
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        out["result"].append(pool.map(square, range(4)))
    queue = context.Queue()
    process = context.Process(target=put, args=(queue, method))
    process.start()
    out["result"].append(queue.get(timeout=60))
    process.join()
    with ProcessPoolExecutor(2, context) as pool:
        out["result"].append(list(pool.map(square, range(3))))
"""
    assert enclave.call("execute", code) == [[0, 1, 4, 9], "fork", [0, 1, 4], [0, 1, 4, 9], "spawn", [0, 1, 4]]


@pytest.mark.sandbox
def test_shared_memory_and_locks_are_shared_with_processes(enclave):
    code = """
shared = shared_memory.SharedMemory(create=True, size=64)
context = multiprocessing.get_context("spawn")
process = context.Process(target=write, args=(shared.name,))
process.start()
process.join()
lock, counter = context.Lock(), multiprocessing.Value("i", 0)
out["result"] = [bytes(shared.buf[:5]).decode(), process.exitcode, lock.acquire(), lock.acquire(timeout=0.01)]
shared.close()
shared.unlink()
"""
    assert enclave.call("execute", code) == ["child", 0, True, False]


@pytest.mark.sandbox
def test_a_started_python_is_behind_the_same_walls(enclave):
    code = """
import ctypes, errno, resource
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    return errno.errorcode.get(ctypes.get_errno(), "done") if libc.syscall(number, *arguments) < 0 else "done"
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(call(165, 0, 0, 0, 0, 0), call(425, 1, 0), status["Seccomp"].strip(), status["NoNewPrivs"].strip(), int(status["CapEff"], 16))
"""
    assert enclave.call("python", "-c", code) == [0, "EPERM ENOSYS 2 1 0\n", ""]


# -- what the manifest names ----------------------------------------------------------------------------------------------


@pytest.mark.sandbox
def test_what_the_manifest_names_can_be_started_and_nothing_else(workplace, on_the_server):
    with adyton.load(project(["bin/script", "bin/tool", "python"])) as loaded:
        assert loaded.call("attempt", "subprocess.run(['/enclave/bin/tool']).returncode") == "0"
        assert loaded.call("attempt", "subprocess.run(['tool']).returncode") == "0"  # it is on PATH
        assert loaded.call("attempt", "subprocess.run(['/enclave/bin/other'])") == "PermissionError 13"
        said = loaded.call("attempt", "subprocess.run(['script', 'a'], capture_output=True, text=True).stdout")
        assert said == "'script a\\n'"
        code = "import os, shutil; shutil.copy('/enclave/bin/other', '/tmp/x'); os.chmod('/tmp/x', 0o755); os.execv('/tmp/x', ['x'])"
        assert "PermissionError" in loaded.call("python", "-c", code)[2]
    with adyton.load(project(["bin/tool"], "only")) as loaded:
        assert loaded.call("attempt", "subprocess.run(['tool']).returncode") == "0"
        assert loaded.call("attempt", "subprocess.run([sys.executable])") == "PermissionError 13"


@pytest.mark.sandbox
def test_an_image_may_renounce_all_programs(workplace, on_the_server):
    with adyton.load(project([])) as loaded:
        assert loaded.call("attempt", "subprocess.run([sys.executable])") == "PermissionError 13"
        assert loaded.call("attempt", "os.execv('/enclave/bin/tool', ['tool'])") == "PermissionError 13"


def test_a_program_that_is_not_in_the_image_is_found_when_it_is_built(workplace):
    with pytest.raises(UsageError, match=r"programs: 'bin/tol' is none of the image's files \(nearest: bin/tool\)"):
        project(["bin/tol"])


@pytest.mark.parametrize("programs", [["../x"], ["/bin/sh"], ["b", "a"], ["a", "a"], [""], ["a/./b"]])
def test_a_manifest_names_programs_by_plain_paths_sorted_and_once(programs):
    with pytest.raises(ImageError):
        encode_manifest(Manifest(name="n", entry="n:", entries=[], programs=programs))
    fine = Manifest(name="n", entry="n:", entries=[], programs=["bin/tool", "python"])
    assert decode_manifest(encode_manifest(fine)) == fine


# -- life and death -------------------------------------------------------------------------------------------------------


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
        ("os.abort()", "SIGABRT"),
        ("signal.raise_signal(signal.SIGALRM)", "SIGALRM"),
        ("os.execv(sys.executable, [sys.executable, '-c', 'raise SystemExit(5)'])", "status 5|closed its link"),
    ],
)
def test_a_program_dies_of_what_it_dies_of_elsewhere(workplace, on_the_server, code, reason):
    Path("prog.py").write_text(PROGRAM)
    with pytest.raises(adyton.errors.AdytonError, match=reason), adyton.load("prog.py") as loaded:
        loaded.call("execute", code)


@pytest.mark.sandbox
def test_orphans_are_reaped(enclave):
    code = """
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    orphan = os.fork()
    if orphan == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent is gone
        os._exit(0)
    os._exit(0)
os.waitpid(child, 0)
handle = None
for name in os.listdir("/proc"):
    if name.isdigit() and open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[1] == "1":
        orphan = int(name)
handle = os.pidfd_open(orphan)
os.close(writer)
os.close(reader)
import select
select.select([handle], [], [], 60)
while os.path.exists(f"/proc/{orphan}"):
    time.sleep(0.001)  # a zombie, until PID 1 has waited for it
out["result"] = "reaped"
"""
    assert enclave.call("execute", code) == "reaped"


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("end", "status"),
    [("out['result'] = 1", 0), ("raise SystemExit(3)", 3), ("raise ValueError('in the child')", 1), ("sys.exit()", 0)],
)
def test_a_forked_process_that_comes_back_from_its_entry_ends(enclave, end, status):
    code = f"""
child = os.fork()
if child == 0:
    sys.stderr = open(os.devnull, "w")
    {end}
else:
    out["result"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    assert enclave.call("execute", code) == status


@pytest.mark.sandbox
def test_threads_and_their_files_go_on_beside_forks(workplace, on_the_server):
    Path("prog.py").write_text(PROGRAM)
    Path("data").mkdir()
    with adyton.load("prog.py", allow_write=["data"]) as loaded:
        code = """
def work(number):
    with open(f"data/{number}", "w") as file:
        for line in range(20):
            file.write(f"{number} {line}\\n")
            if line % 10 == 0:
                child = os.fork()
                if child == 0:
                    os._exit(7)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
codes = []
threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out["result"] = codes
"""
        assert loaded.call("execute", code) == [7] * 12
    for number in range(6):
        assert Path(f"data/{number}").read_text().count("\n") == 20


@pytest.mark.sandbox
def test_what_a_program_leaves_running_ends_with_its_enclave(workplace, on_the_server):
    Path("prog.py").write_text(PROGRAM)
    marker = f"left-running-{id(workplace)}"
    with adyton.load("prog.py") as loaded:
        loaded.call("execute", f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}])")
        assert marker in subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    until = 1000
    while marker in subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout:
        until -= 1
        assert until


# -- the main thread ------------------------------------------------------------------------------------------------------

SIGNALS = """
import signal, socket, sqlite3, threading, time
from adyton import trusted

ends = []

made_at_import = sqlite3.connect(":memory:")
seen = []

def alarms() -> list[int]:
    signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while not seen:
        time.sleep(0.002)
    return seen

def wakes(which: str = "") -> int:
    if which == "own":
        ends.extend(socket.socketpair())
        ends[1].setblocking(False)
        signal.set_wakeup_fd(ends[1].fileno())
        return 0
    before = signal.set_wakeup_fd(-1)
    return before if before < 0 else int(before == ends[1].fileno())

def query() -> int:
    return made_at_import.execute("select 41 + 1").fetchone()[0]

def threads() -> list[str]:
    return [each.name for each in threading.enumerate()]

def is_main() -> bool:
    return threading.current_thread() is threading.main_thread()

async def async_is_main() -> bool:
    return is_main()
"""


@pytest.mark.sandbox
def test_the_first_threads_calls_run_in_the_programs_main_thread(workplace, on_the_server):
    Path("prog.py").write_text(SIGNALS)
    with adyton.load("prog.py") as loaded:
        assert loaded.call("is_main") is True
        assert loaded.call("async_is_main") is True
        assert loaded.call("query") == 42
        with ThreadPoolExecutor(1) as other:
            assert other.submit(loaded.call, "is_main").result() is False
        assert loaded.call("is_main") is True


@pytest.mark.sandbox
def test_a_program_sees_no_threads_but_its_own(workplace, on_the_server):
    Path("prog.py").write_text(SIGNALS)
    with adyton.load("prog.py") as loaded:
        assert loaded.call("threads") == ["MainThread"]


@pytest.mark.sandbox
def test_a_programs_wakeups_by_signals_are_its_own_and_last_from_call_to_call(workplace, on_the_server):
    Path("prog.py").write_text(SIGNALS)
    with adyton.load("prog.py") as loaded:
        assert loaded.call("wakes") == -1
        loaded.call("wakes", "own")
        assert loaded.call("alarms") == [14]
        assert loaded.call("wakes") == 1
        assert loaded.call("wakes") == -1


@pytest.mark.sandbox
def test_what_is_local_to_the_main_thread_is_seen_by_no_second_client_thread(workplace, on_the_server):
    Path("prog.py").write_text(SIGNALS)
    with adyton.load("prog.py") as loaded:
        seen = []
        for _ in range(3):
            with ThreadPoolExecutor(1) as threads:
                seen.append(threads.submit(loaded.call, "async_is_main").result())
        assert seen == [True, False, False]


@pytest.mark.sandbox
def test_an_entry_may_set_signal_handlers_and_alarms(workplace, on_the_server):
    Path("prog.py").write_text(SIGNALS)
    with adyton.load("prog.py") as loaded:
        assert loaded.call("alarms") == [signal.SIGALRM]


FINALIZED = """
import threading
from adyton import trusted
enclave = trusted.Enclave("application")
begun, ended = threading.Event(), threading.Event()

@enclave.entry
def wait() -> bool:
    begun.set()
    return ended.wait(60)

@enclave.entry
def has_begun() -> bool:
    return begun.wait(60)

@enclave.on_finalize
def finalize(final: trusted.EnclaveFinal) -> None:
    ended.set()
"""


@pytest.mark.sandbox
def test_finalize_does_not_wait_for_a_call_that_has_the_main_thread(tmp_path):
    tmp_path.chmod(0o755)
    ward = Ward(tmp_path, FINALIZED)
    try:
        with ward.enclave() as client:
            assert client.load().ok
            waiting = client.start("wait")
            assert client.enter("has_begun", pair=2) is True
            assert client.result(client.call("finalize", b"", pair=2)).ok
            assert client.entered(waiting) is True
    finally:
        ward.close()
