"""Signals, alarms, waiting for processes and identities, as a program finds them in an enclave."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import adyton

pytestmark = pytest.mark.sandbox

PROGRAM = """
import asyncio, faulthandler, os, select, signal, subprocess, sys, tempfile, threading, time

rung = threading.Event()

def execute(code: str) -> object:
    scope = dict(globals())
    exec(code, scope)
    return scope.get("result")
"""

SNIPPETS = {
    "alarm": """
class Late(Exception): ...
def late(*_): raise Late
signal.signal(signal.SIGALRM, late)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(60)
except Late:
    result = "late"
""",
    "wait for a signal": """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.kill(os.getpid(), signal.SIGUSR1)
result = signal.sigwait({signal.SIGUSR1}).name
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
""",
    "to a thread": """
seen = []
signal.signal(signal.SIGUSR2, lambda *_: seen.append(threading.current_thread() is threading.main_thread()))
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
signal.pthread_kill(thread.ident, signal.SIGUSR2)
while not seen:
    time.sleep(0.001)
stop.set()
thread.join()
result = seen
""",
    "of a child's end": """
seen = []
signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
child = os.fork()
if child == 0:
    os._exit(3)
while not seen:
    time.sleep(0.001)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
result = os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1])
""",
    "stop and continue": """
child = os.fork()
if child == 0:
    while True:
        time.sleep(1)
os.kill(child, signal.SIGSTOP)
stopped = os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
os.kill(child, signal.SIGCONT)
continued = os.WIFCONTINUED(os.waitpid(child, os.WCONTINUED)[1])
os.kill(child, signal.SIGTERM)
result = [stopped, continued, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
""",
    "a group": """
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
os.killpg(process.pid, signal.SIGKILL)
result = process.wait()
""",
    "a timeout of a process": """
try:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.05)
except subprocess.TimeoutExpired:
    result = "expired"
""",
    "asyncio": """
async def main():
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, seen.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await seen.wait()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(6 * 7)", stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return [process.returncode, int(out)]
result = asyncio.run(main())
""",
    "faulthandler": """
with tempfile.TemporaryFile() as file:
    faulthandler.dump_traceback(file)
    file.seek(0)
    result = b"most recent call first" in file.read()
""",
}
EXPECTED = {
    "alarm": "late",
    "wait for a signal": "SIGUSR1",
    "to a thread": [True],
    "of a child's end": 3,
    "stop and continue": [True, True, -15],
    "a group": -9,
    "a timeout of a process": "expired",
    "asyncio": [0, 42],
    "faulthandler": True,
}


@pytest.fixture(scope="module")
def enclave(tmp_path_factory):
    path = tmp_path_factory.mktemp("signals") / "program.py"
    path.write_text(PROGRAM)
    with adyton.load(str(path)) as loaded:
        yield loaded


@pytest.mark.parametrize("what", EXPECTED)
def test_signals_and_waits_are_an_ordinary_programs(enclave, what):
    assert enclave.call("execute", SNIPPETS[what]) == EXPECTED[what]


def test_a_handler_runs_between_calls_too(workplace, on_the_server):
    Path("program.py").write_text(PROGRAM)
    with adyton.load("program.py") as loaded:
        code = """
rung.clear()
signal.signal(signal.SIGALRM, lambda *_: rung.set())
signal.setitimer(signal.ITIMER_REAL, 0.05)
"""
        loaded.call("execute", code)
        future = loaded.submit("execute", "result = rung.wait(60)")  # in a thread of its own
        assert future.result(60) is True


def test_identities_are_the_enclaves_own_but_what_a_program_is_configured_to_have(
    workplace, on_the_server, monkeypatch
):
    Path("program.py").write_text(PROGRAM)
    monkeypatch.setenv("USER", "ann")
    code = "import getpass, socket; result = [os.getpid(), os.getppid(), os.getuid(), os.getgid(), getpass.getuser(), socket.gethostname()]"
    for allowed, name in (([], "enclave"), (["USER"], "ann")):
        with adyton.load("program.py", allow_env=allowed) as loaded:
            assert loaded.call("execute", code) == [2, 0, 1000, 1000, name, socket.gethostname()]


def test_python_has_a_users_packages_below_the_enclaves_home_not_the_servers(workplace, on_the_server, monkeypatch):
    Path("program.py").write_text(PROGRAM)
    monkeypatch.setenv("HOME", str(workplace))
    code = "import site, sysconfig; result = [site.USER_BASE, site.getuserbase(), sysconfig.get_config_var('userbase')]"
    for allowed, home in (([], "/enclave"), (["HOME"], str(workplace))):
        with adyton.load("program.py", allow_env=allowed) as loaded:
            assert loaded.call("execute", code) == [f"{home}/.local"] * 3
