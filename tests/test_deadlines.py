"""Timeouts of loads, calls and closes: each stage ends in time, says what was waited for, leaves nothing, and disturbs nobody else."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from command import adyton as run
from command import start
from parties import descendants, gone, litter

import adyton
from adyton import trusted
from adyton.communicator_pb2 import Envelope
from adyton.config import Policy
from adyton.errors import ClosedError, DeadlineError, UsageError
from adyton.image.build import build_file
from adyton.image.oci import Image
from adyton.loader import LoadArguments, load_enclave, load_in_process
from adyton.proto.enclave import EnclaveConfig, EnclaveFinal
from adyton.provision import budget as budgets
from adyton.provision import service
from adyton.provision.budget import Budget
from adyton.provision.client import RemoteProvision
from adyton.provision.service import ProvisionService
from adyton.provision.store import BlobStore
from adyton.provision_pb2 import Ready
from adyton.remote.connection import open_server

LIMIT = 40.0  # seconds until a test gives up on something that takes milliseconds
LATE = 25.0  # seconds: more than any timeout here by what a loaded machine takes; what hangs does so for longer

PROGRAM = """
import threading

from adyton.trusted import TrustedApplication, entry, host_function

@host_function
def back() -> int: ...

class Hanging(TrustedApplication):
    def initialize(self, config):
        if "HANG" in str(config):
            threading.Event().wait()

    def finalize(self, final):
        threading.Event().wait()

    @entry
    def forever(self) -> None:
        threading.Event().wait()

    @entry
    def compute(self) -> None:
        while True:
            sum(range(1000))

    @entry
    def quick(self) -> int:
        return 1

    @entry
    def ask(self) -> str:
        return input()

    @entry
    def call_back(self) -> int:
        return back()
"""


@pytest.fixture
def own_temporary_directory(monkeypatch):
    """Short, since sockets lie there; and other tests' files do not."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield


def timed(function, *arguments, **keywords):
    """The DeadlineError that it raised, and the seconds that it took."""
    started = time.monotonic()
    with pytest.raises(DeadlineError) as caught:
        function(*arguments, **keywords)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert caught.value.exit_code == 1
    return str(caught.value), time.monotonic() - started


def ours():
    """Threads that clients started; the server's rest in its pool, and one for steps is the whole process'."""
    found = {each for each in threading.enumerate() if each.name.startswith("adyton")}
    return {each for each in found if not each.name.startswith(("adyton-rpc", "adyton-steps"))}


# -- a load: each stage at a server that hangs there -------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "quick.py"
    path.write_text("def quick() -> int:\n    return 1\n")
    return Image.open(build_file(str(path)))


@pytest.fixture
def over():
    """What those wait for that hang: the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@contextlib.contextmanager
def serving(stage, directory, over):
    """A provision server that hangs at that stage of a load: its URL."""

    def start(_order):
        if stage == "starting":
            over.wait(LIMIT)
        return Ready(enclave_id="0", port=port, session=b"x" * 32)

    def communicate(_requests, _context):
        over.wait(LIMIT)
        yield Envelope(data=b"")

    class Slow(ProvisionService):
        def _receive(self, *arguments):
            if stage == "upload":
                over.wait(LIMIT)
            super()._receive(*arguments)

    handler = grpc.stream_stream_rpc_method_handler(communicate, Envelope.FromString, Envelope.SerializeToString)
    relay = grpc.method_handlers_generic_handler("adyton.Communicator", {"Communicate": handler})
    handlers = [Slow(BlobStore(str(directory)), start).handler(), relay]
    server, port = open_server(handlers, "127.0.0.1:0", None, 4)
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        over.set()
        server.stop(None).wait(LIMIT)


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("upload", "had not started the enclave when the load's 1.5 s were over"),
        ("starting", "had not started the enclave when the load's 1.5 s were over"),
        ("handshake", "showed no evidence within"),
    ],
)
def test_a_load_ends_in_time_at_a_server_that_hangs(tmp_path, image, over, monkeypatch, stage, text):
    monkeypatch.setattr(service, "UPLOAD_PATIENCE", LIMIT)
    others = ours()
    with serving(stage, tmp_path / "store", over) as url:
        if stage == "starting":
            monkeypatch.setenv("ADYTON_TIMEOUT", "1.5")
        # The stages before take some milliseconds, or on a loaded machine more; silence of 2.5 s is another error.
        timeout = {"upload": 1.5, "starting": None, "handshake": 1.5}[stage]
        message, seconds = timed(adyton.load, image, on=url, allow_sim=True, timeout=timeout)
        assert text in message
        assert seconds < LATE
        over.set()
    until = time.monotonic() + LIMIT
    incoming = tmp_path / "store" / "incoming"
    while (left := [*(ours() - others), *os.listdir(incoming)]) and time.monotonic() < until:
        threading.Event().wait(0.02)
    assert left == []


class Application(trusted.TrustedApplication):
    """Of this process; hangs where it is told to."""

    def __init__(self, over, stage=""):
        self.over = over
        self.stage = stage

    def initialize(self, config):
        if self.stage == "initialize":
            self.over.wait(LIMIT)

    def run(self, enclave_input):
        self.over.wait(LIMIT)

    def finalize(self, final):
        if self.stage == "finalize":
            self.over.wait(LIMIT)


def test_an_initialize_that_hangs_has_only_what_is_left_of_the_loads_time(over):
    message, seconds = timed(load_in_process, Application(over, "initialize"), LoadArguments(timeout=1))
    assert "no answer from the program's initialize" in message
    assert seconds < LATE


def test_the_parts_of_a_load_share_its_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(budgets, "time", SimpleNamespace(monotonic=lambda: now[0]))  # not that of other threads
    budget = Budget(10)
    now[0] += 7
    assert (budget.left(), budget.left(2), budget.left(5)) == (3, 2, 3)
    now[0] += 7
    assert budget.left() == 0
    assert Budget(1e300).left() == Budget(None).left() == threading.TIMEOUT_MAX


# -- calls and closes, without processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "with", "destroy"])
def test_a_finalize_that_hangs_ends_with_the_enclave(over, how):
    client = load_in_process(Application(over, "finalize"), LoadArguments())
    impatient = client.options(timeout=0.3)
    if how == "close":
        message, seconds = timed(impatient.close)
    elif how == "with":
        message, seconds = timed(impatient.__exit__, None, None, None)
    else:
        message, seconds = timed(impatient.finalize, EnclaveFinal(), wait=False)
    assert "no answer from the program's finalize within 0.3 s" in message
    assert seconds < LATE
    client.close()  # is done
    with pytest.raises(ClosedError):
        client.call("go")


def test_submitted_calls_that_hang_do_not_hold_up_a_close(over):
    class Waiting(Application):
        @trusted.entry
        def wait(self) -> None:
            self.over.wait(LIMIT)

    client = load_in_process(Waiting(over), LoadArguments())
    pending = [client.submit("wait") for _ in range(3)]
    message, seconds = timed(client.options(timeout=0.3).close)
    assert "3 submitted calls had no outcome within 0.3 s" in message
    assert seconds < LATE
    for each in pending:
        with pytest.raises(ClosedError):
            each.result(LIMIT)


def test_submitted_calls_that_end_in_time_are_waited_for(over):
    class Waiting(Application):
        @trusted.entry
        def wait(self) -> int:
            self.over.wait(LIMIT)
            return 7

    client = load_in_process(Waiting(over), LoadArguments(timeout=LIMIT))
    pending = [client.submit("wait") for _ in range(3)]
    closer = threading.Thread(target=client.close)
    closer.start()
    over.set()
    closer.join(LIMIT)
    assert not closer.is_alive()
    assert [each.result(0) for each in pending] == [7, 7, 7]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5"], ids=repr)
def test_what_is_no_number_of_seconds_is_refused(over, monkeypatch, timeout):
    with load_in_process(Application(over), LoadArguments()) as client, pytest.raises(UsageError, match="above 0"):
        client.options(timeout=timeout)
    with pytest.raises(UsageError, match="seconds above 0"):
        adyton.load("sha256:" + "0" * 64, on="grpc://127.0.0.1:1", timeout=timeout)
    if timeout != "5":
        monkeypatch.setenv("ADYTON_TIMEOUT", str(timeout))
        with pytest.raises(UsageError, match=r"ADYTON_TIMEOUT=.*seconds above 0"):
            adyton.load("sha256:" + "0" * 64, on="grpc://127.0.0.1:1")


# -- with all processes ------------------------------------------------------------------------------------------------


@pytest.fixture
def program(workplace, own_temporary_directory):
    Path("hang.py").write_text(PROGRAM)
    return str(Path("hang.py").absolute())


@pytest.fixture
def served(own_temporary_directory):
    """A provision server's process, and its URL."""
    process = start("serve", "--port", "0")
    assert process.stdout is not None
    url = "grpc://" + process.stdout.readline().rpartition(" ")[2].strip()
    yield process, url
    process.terminate()
    assert process.wait(80) == 0
    process.stdout.close()


@pytest.mark.sandbox
@pytest.mark.parametrize("where", ["local", "server"])
def test_calls_and_the_close_of_an_enclave_end_in_time_and_leave_nothing(program, where, request):
    process, url = request.getfixturevalue("served") if where == "server" else (None, None)
    above = process.pid if process else os.getpid()
    others = set(descendants(above))
    reading, writing = os.pipe()  # an input that never comes
    entries = ["forever", "compute", "ask", "call_back"]

    def back() -> int:
        client.call("forever")  # which has no timeout of its own
        return 1

    config = EnclaveConfig(stdin_fd=reading)
    provision = RemoteProvision.instantiate(url)
    policy = Policy.of_environment(None, {"call": ["back"]})
    arguments = LoadArguments(policy=policy, config=config, functions=[back], allow_sim=True)
    client = load_enclave(program, provision, arguments)
    found = set(descendants(above)) - others
    assert found
    impatient = client.options(timeout=1)
    steady, outcomes = threading.Event(), []

    def go_on() -> None:
        while not steady.wait(0.005):
            outcomes.append(client.call("quick"))

    beside = threading.Thread(target=go_on)
    beside.start()
    with ThreadPoolExecutor(len(entries)) as threads:
        for each, (message, seconds) in zip(entries, threads.map(partial(timed, impatient.call), entries), strict=True):
            assert "no answer from the entry within" in message or "from inside a host function" in message, each
            assert seconds < LATE, each
    steady.set()
    beside.join(LIMIT)
    assert set(outcomes) == {1}
    message, seconds = timed(impatient.close)
    assert "finalize" in message
    assert seconds < LATE
    assert gone(found) == set()
    os.close(reading)
    os.close(writing)
    if where == "local":
        assert litter() == set()


@pytest.mark.sandbox
def test_a_load_whose_initialize_hangs_leaves_nothing_on_the_server(program, served):
    process, url = served
    others = set(descendants(process.pid))
    config = EnclaveConfig()
    config.environment_variables.add(name="HANG", value="1")
    arguments = LoadArguments(config=config, allow_sim=True, timeout=4)
    message, seconds = timed(load_enclave, program, RemoteProvision.instantiate(url), arguments)
    assert any(stage in message for stage in ("initialize", "had not started", "no evidence")), message
    assert seconds < LATE
    assert gone(set(descendants(process.pid)) - others) == set()


@pytest.mark.long
@pytest.mark.sandbox
def test_a_command_ends_in_time_and_says_what_it_waited_for(program):
    # The load takes some of it: half a second, or more where the machine is busy.
    ended = run("call", program, "quick", "--timeout", "6")
    assert ended.returncode == 1, ended.stderr
    assert "no answer from the program's finalize within 6 s" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert litter() == set()
