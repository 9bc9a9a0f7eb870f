"""How enclaves end: nothing is left running, whoever dies first; and what a start that fails says."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from descriptors import held, nothing_more_than
from parties import stop
from sandbox import PROBE, alive, children, enclave, guest_of, start_zygote, wait_until_ended

from adyton.errors import ClosedError, ImageError, PlatformError, SignatureError
from adyton.runtime import launch
from adyton.runtime.launch import LaunchRequest, Zygote

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    with start_zygote(tmp_path_factory.mktemp("store")) as started:
        yield started


def processes_of(probe):
    """Supervisor and guest."""
    found = {probe.pid, *children(probe.pid)}
    assert len(found) == 3  # supervisor, init and guest
    return found


def test_closing_an_enclave_ends_its_processes(zygote):
    with enclave(zygote) as probe:
        processes = processes_of(probe)
        assert not probe.enclave.ended()
        probe.enclave.close()
        assert probe.enclave.ended()
        assert wait_until_ended(processes) == set()
        probe.enclave.close()


def test_the_end_of_the_stream_ends_the_enclave(zygote):
    with enclave(zygote) as probe:
        processes = processes_of(probe)
        probe._lines.close()
        probe.enclave.socket.close()
        assert probe.enclave.ended(60)
        assert wait_until_ended(processes) == set()


def test_a_killed_supervisor_takes_its_guest_along(zygote):
    with enclave(zygote) as probe:
        processes = processes_of(probe)
        os.kill(probe.pid, signal.SIGKILL)
        assert probe.enclave.ended(60)
        assert wait_until_ended(processes) == set()
        assert probe.answer() == {"error": "EOF"}


def test_a_supervisor_killed_while_its_guest_waits_for_a_file_takes_it_along(zygote):
    with enclave(zygote) as probe:
        processes = processes_of(probe)
        stop(probe.pid)  # so that nobody answers
        code = b'{"where": "guest", "code": "import os; os.listdir(\'/client\')"}\n'
        probe.socket.sendall(code)
        os.kill(probe.pid, signal.SIGKILL)
        assert wait_until_ended(processes) == set()


def test_a_guest_with_children_ends_as_a_whole(zygote):
    with enclave(zygote) as probe:
        probe.guest("finish(True, '/client', 'host')")
        probe.guest("import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        time.sleep(1000)")
        processes = {probe.pid, *children(probe.pid)}
        assert len(processes) == 6
        os.kill(probe.pid, signal.SIGKILL)
        assert wait_until_ended(processes) == set()


def test_a_guest_that_ends_is_noticed(zygote):
    with enclave(zygote) as probe:
        guest = guest_of(probe.pid)
        os.kill(guest, signal.SIGKILL)
        assert probe.answer() == {"ended": signal.SIGKILL}
        assert wait_until_ended({guest, probe.pid}) == set()
    with enclave(zygote) as probe:
        assert probe.ask("guest", "import os; os._exit(5)") == {"ended": 5}


def test_closing_the_zygote_ends_all(tmp_path):
    zygote = start_zygote(tmp_path)
    with enclave(zygote) as first, enclave(zygote) as second:
        processes = {zygote._process.pid} | processes_of(first) | processes_of(second)
        zygote.close()
        zygote.close()
        assert wait_until_ended(processes) == set()
        with pytest.raises(ClosedError):
            zygote.launch(LaunchRequest("sha256:00", []))


def test_a_killed_zygote_takes_all_along(tmp_path):
    zygote = start_zygote(tmp_path)
    with zygote, enclave(zygote) as probe:
        processes = processes_of(probe)
        zygote._process.kill()
        assert wait_until_ended(processes) == set()
        zygote._process.wait()
        with pytest.raises(PlatformError, match="zygote"):
            zygote.launch(LaunchRequest("sha256:00", []))


def test_a_zygote_that_hangs_is_given_up_and_what_it_starts_later_ends(tmp_path, monkeypatch):
    with start_zygote(tmp_path) as zygote:
        stop(zygote._process.pid)
        with monkeypatch.context() as patience:
            patience.setattr(launch, "START_SECONDS", 0.05)
            with pytest.raises(PlatformError, match="could be started within 0 s: is the server overloaded"):
                zygote.launch(LaunchRequest("sha256:00", []))
        os.kill(zygote._process.pid, signal.SIGCONT)
        with enclave(zygote) as probe:  # takes its turn after the one that nobody waits for
            assert probe.guest("return 1") == 1
            others = children(zygote._process.pid) - {probe.pid} - children(probe.pid)
            assert wait_until_ended(others) == set()


def test_a_zygote_that_hangs_is_killed_at_the_end(tmp_path, monkeypatch):
    zygote = start_zygote(tmp_path)
    with enclave(zygote) as probe:
        processes = processes_of(probe)
        stop(zygote._process.pid)
        monkeypatch.setattr(launch, "END_SECONDS", 0.05)
        zygote.close()
        assert zygote._process.returncode == -signal.SIGKILL
        assert wait_until_ended(processes) == set()
    zygote.close()


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (b"failed:ImageError\nit is damaged", ImageError, "it is damaged"),
        (b"failed:SystemExit\nno", PlatformError, "no"),
        (b"failed:COMMANDS\nno", PlatformError, "no"),
        (b"failed:\xff\xff\nno", PlatformError, "no"),
        (b"", PlatformError, "it ended: see its messages"),
        (b"what?", PlatformError, "it ended: see its messages"),
    ],
    ids=["ours", "foreign", "other", "undecodable", "end", "unknown"],
)
def test_a_failure_names_an_error_of_ours_or_is_a_platform_error(message, kind, text):
    error = launch.reason_of(message, "it ended")
    assert type(error) is kind
    assert text in error.message


LAUNCHER = """
import sys, time
from adyton.runtime.launch import LaunchRequest, Zygote
zygote = Zygote.start(sys.argv[1], supervisor="sandbox_probe:run", additions={"sandbox_probe.py": sys.argv[2]})
enclave = zygote.launch(LaunchRequest("sha256:00", []))
print(zygote._process.pid, enclave.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_launcher_takes_all_along(tmp_path, how):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, tmp_path, PROBE],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with launcher:
        zygote, supervisor = map(int, launcher.stdout.readline().split())
        processes = {zygote, supervisor, *children(supervisor)}
        assert alive(processes) == processes
        launcher.send_signal(how)
        launcher.wait()
        assert wait_until_ended(processes) == set()


@pytest.mark.parametrize(("name", "kind"), [("ImageError", ImageError), ("SignatureError", SignatureError)])
def test_what_a_supervisor_raises_is_raised_at_launch(zygote, name, kind):
    with pytest.raises(kind, match="as asked for"), enclave(zygote, **{"raise": name}):
        pass


def test_a_supervisor_that_dies_is_a_platform_error(zygote):
    with pytest.raises(PlatformError, match="ended before it was ready"), enclave(zygote, die=True):
        pass


def test_a_failed_launch_leaves_the_zygote_working(zygote):
    with pytest.raises(PlatformError), enclave(zygote, die=True):
        pass
    with enclave(zygote) as probe:
        assert probe.guest("return 1") == 1


def test_many_threads_launch_at_once(zygote):
    answers = []

    def launch(number):
        with enclave(zygote) as probe:
            answers.append(probe.guest(f"return {number}"))

    threads = [threading.Thread(target=launch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(8))


def test_launching_leaves_no_descriptors_and_no_processes(zygote):
    with enclave(zygote):
        pass
    before = held()
    for _ in range(3):
        with enclave(zygote):
            pass
        with pytest.raises(PlatformError), enclave(zygote, die=True):
            pass
    assert wait_until_ended(children(zygote._process.pid)) == set()
    nothing_more_than(before)


def test_a_zygote_whose_python_lacks_a_package_says_so(tmp_path, monkeypatch):
    from adyton.runtime.process import root

    monkeypatch.setattr(root, "PACKAGES", (*root.PACKAGES, ("no_such_package", True)))
    with pytest.raises(PlatformError, match="no_such_package"):
        Zygote.start(str(tmp_path))


def test_a_zygote_whose_supervisor_cannot_be_imported_says_so(tmp_path):
    with pytest.raises(PlatformError, match="no_such_module"):
        Zygote.start(str(tmp_path), supervisor="no_such_module:run")


def test_a_store_that_enclaves_cannot_read_is_named(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: no enclave has a user id of its own")
    (tmp_path / "blobs").mkdir(mode=0o700)
    with pytest.raises(PlatformError, match=f"chmod o\\+rx {tmp_path}/blobs"):
        Zygote.start(str(tmp_path))
