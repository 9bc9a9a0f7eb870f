"""EnclaveConfig, field by field: what the client must not say, what the enclave sees of the rest, and what it sees without."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from descriptors import held, nothing_more_than

from adyton import (
    EnclaveFinal,
    EnclaveLoadConfig,
    EnclaveManager,
    EnclaveManagerOptions,
    FakeEnclaveLoader,
    remote_load_config,
)
from adyton.errors import ClosedError, UsageError
from adyton.proto.enclave import EnclaveConfig
from adyton.trusted import Enclave

PROGRAM = """
import json, logging, os, select, signal, socket, sys, threading
import adyton.trusted as trusted

enclave = trusted.Enclave("configured")
received = []

@enclave.on_initialize
def initialize(config: trusted.EnclaveConfig) -> None:
    received.append(config)
    logging.getLogger("at.start").info("initialized")

@enclave.entry
def world() -> dict[str, object]:
    return {"host": socket.gethostname(), "cwd": os.getcwd(), "environment": dict(os.environ),
            "level": logging.getLogger().level, "handlers": len(logging.getLogger().handlers)}

@enclave.entry
def config() -> bytes:
    return received[0].SerializeToString()

@enclave.entry
def line() -> str:
    return sys.stdin.readline()

@enclave.entry
def everything() -> str:
    return sys.stdin.read()

@enclave.entry
def take(size: int) -> bytes:
    return os.read(0, size)

@enclave.entry
def write(out: str, error: str) -> None:
    os.write(1, out.encode())
    os.write(2, error.encode())

@enclave.entry
def log() -> None:
    logging.getLogger("mine").debug("a detail")
    logging.getLogger("mine").info("a fact")

@enclave.entry
def about_stdin(path: str) -> list[object]:
    with open("/dev/stdin", "rb", buffering=0) as again:
        same = again.read(3)
    found = [sys.stdin.isatty(), sys.stdin.seekable(), same.decode(), bool(select.select([0], [], [], 0)[0])]
    for attempt in (lambda: os.write(0, b"x"), lambda: os.open("/dev/stdin", os.O_WRONLY), lambda: os.lseek(0, 1, 0)):
        try:
            attempt()
            found.append("done")
        except OSError as error:
            found.append(error.errno)
    return found

@enclave.entry
def in_a_child() -> bytes:
    read, write = os.pipe()
    if not os.fork():
        os.write(write, os.read(0, 5))
        os._exit(0)
    os.wait()
    return os.read(read, 5)

class Alarm(Exception):
    pass

def ring(*_):
    raise Alarm

@enclave.entry
def in_a_child_that_is_interrupted() -> bytes:
    read, write = os.pipe()
    if not os.fork():
        signal.signal(signal.SIGALRM, ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            os.read(0, 5)
        except Alarm:
            os.write(1, b"interrupted")
            os.write(write, os.read(0, 5))
        os._exit(0)
    os.wait()
    return os.read(read, 5)
"""

app = Enclave("fake")
seen: list[EnclaveConfig] = []


@app.on_initialize
def initialize(config: EnclaveConfig) -> None:
    seen.append(config)


@pytest.fixture
def place(workplace, on_the_server):
    Path("configured.py").write_text(PROGRAM)
    return workplace


def load_config(**fields) -> EnclaveLoadConfig:
    config = EnclaveLoadConfig(name="configured", config=EnclaveConfig(**fields))
    config.Extensions[remote_load_config].sgx_load_config.file_enclave_config.enclave_path = "configured.py"
    return config


@contextmanager
def loaded(config: EnclaveLoadConfig, **arguments):
    manager = EnclaveManager.instance()
    client = manager.load_enclave(config, **arguments)
    try:
        yield client
    finally:
        if manager.get_name(client):
            manager.destroy_enclave(client, EnclaveFinal())


@pytest.fixture
def fake():
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(app)))
    seen.clear()
    yield
    EnclaveManager.configure(EnclaveManagerOptions())


# -- what the client must not say -------------------------------------------------------------------------------------


def variable(name=None, value=None) -> EnclaveConfig:
    config = EnclaveConfig()
    entry = config.environment_variables.add()
    if name is not None:
        entry.name = name
    if value is not None:
        entry.value = value
    return config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (EnclaveConfig(stdin_fd=987654), "stdin_fd: 987654 is no open descriptor"),
        (EnclaveConfig(stdout_fd=987654), "stdout_fd: 987654 is no open descriptor"),
        (EnclaveConfig(stderr_fd=987654), "stderr_fd: 987654 is no open descriptor"),
        (EnclaveConfig(host_name=""), "host_name: '' is no name"),
        (EnclaveConfig(host_name="a" * 65), "1 to 64"),
        (EnclaveConfig(host_name="two words"), "is no name of a machine"),
        (EnclaveConfig(host_name="-x"), "is no name of a machine"),
        (EnclaveConfig(current_working_directory="here"), "not an absolute path; write /"),
        (EnclaveConfig(current_working_directory=""), "not an absolute path"),
        (EnclaveConfig(current_working_directory="/not/there"), "there is no directory /not/there"),
        (variable("ONLY_A_NAME"), r"number 1 \(ONLY_A_NAME\) has no value"),
        (variable(value="only a value"), "number 1 has no name"),
        (variable("LD_PRELOAD", "x"), "LD_PRELOAD is obeyed by the loader"),
        (variable("A", "nul\0"), "the value of A holds a NUL"),
        (variable("TZ", "/etc/passwd"), "TZ='/etc/passwd' is no time zone"),
        (EnclaveConfig(logging_config={"log_directory": "a\0b"}), "log_directory holds a NUL"),
    ],
    ids=lambda each: "" if isinstance(each, EnclaveConfig) else each[:24],
)
def test_a_config_that_cannot_be_is_refused_before_anything_starts(fake, config, said):
    load = EnclaveLoadConfig(name="wrong", config=config)
    with pytest.raises(UsageError, match=said) as refused:
        EnclaveManager.instance().load_enclave(load)
    assert refused.value.exit_code == 2
    assert not seen


def test_descriptors_must_be_open_in_the_right_way(fake):
    read, write = os.pipe()
    try:
        for fields, said in (
            ({"stdin_fd": write}, "not open for reading"),
            ({"stdout_fd": read}, "not open for writing"),
            ({"stderr_fd": read}, "not open for writing"),
        ):
            with pytest.raises(UsageError, match=said):
                EnclaveManager.instance().load_enclave(EnclaveLoadConfig(name="wrong", config=EnclaveConfig(**fields)))
    finally:
        os.close(read)
        os.close(write)


def test_no_descriptor_of_a_load_is_left_open(fake):
    read, write = os.pipe()
    fields = {"stdin_fd": read, "stdout_fd": write, "stderr_fd": write}
    with loaded(EnclaveLoadConfig(name="warm", config=EnclaveConfig())):
        pass
    before = held()
    with loaded(EnclaveLoadConfig(name="streams", config=EnclaveConfig(**fields))):
        pass
    with pytest.raises(UsageError):
        EnclaveManager.instance().load_enclave(
            EnclaveLoadConfig(name="streams", config=EnclaveConfig(**fields | {"stderr_fd": 987654}))
        )
    nothing_more_than(before)  # once threads of the enclave's have made their last steps
    os.close(read)
    os.close(write)


def test_initialize_receives_every_field_with_defaults_filled_in(fake, capfd):
    config = EnclaveConfig(enable_fork=True, host_name="edge-7", logging_config={"vlog_level": 2})
    config.enclave_assertion_authority_configs.add(config=b"opaque")
    config.environment_variables.add(name="A", value="1")
    before = config.SerializeToString()
    with loaded(EnclaveLoadConfig(name="whole", config=config)):
        (received,) = seen
    assert config.SerializeToString() == before
    assert received.current_working_directory == os.getcwd()
    assert received.host_name == "edge-7"
    assert (received.stdin_fd, received.stdout_fd, received.stderr_fd) == (0, 1, 2)
    assert received.enable_fork
    assert received.logging_config.vlog_level == 2
    assert received.enclave_assertion_authority_configs[0].config == b"opaque"
    assert received.environment_variables[0].name == "A"
    assert "enclave_assertion_authority_configs go to the program's initialize" in capfd.readouterr().err


# -- what the enclave sees --------------------------------------------------------------------------------------------


@pytest.mark.sandbox
def test_without_a_config_the_world_is_the_clients(place):
    with loaded(load_config()) as client:
        world = client.call("world")
        assert world["host"] == socket.gethostname()
        assert world["cwd"] == str(place)
        assert "SHELL" not in world["environment"]
        assert (world["level"], world["handlers"]) == (30, 0)
        assert client.call("everything") == ""  # its standard input is at its end, whatever the client's is
        assert client.call("take", 5) == b""


@pytest.mark.sandbox
def test_host_name_directory_and_environment_are_as_configured(place, monkeypatch):
    monkeypatch.setenv("GIVEN", "by the policy")
    (place / "inner").mkdir()
    config = load_config(host_name="edge-7.example", current_working_directory=str(place / "inner"))
    for name, value in (("A", "first"), ("A", "second"), ("GIVEN", "ignored"), ("TZ", "Asia/Tokyo"), ("HOME", "/x")):
        config.config.environment_variables.add(name=name, value=value)
    with loaded(config, allow={"env": ["GIVEN"]}) as client:
        world = client.call("world")
        received = EnclaveConfig.FromString(client.call("config"))
    assert world["host"] == received.host_name == "edge-7.example"
    assert world["cwd"] == received.current_working_directory == str(place / "inner")
    environment = world["environment"]
    assert [environment[name] for name in ("A", "GIVEN", "TZ", "HOME")] == [
        "first",
        "by the policy",
        "Asia/Tokyo",
        "/x",
    ]


@pytest.mark.sandbox
def test_output_goes_to_the_descriptors_of_the_clients_choice(place, capfd):
    with open("out", "wb") as out:
        read, write = os.pipe()
        with loaded(load_config(stdout_fd=out.fileno(), stderr_fd=write)) as client:
            client.call("write", "to the file", "to the pipe")
            out.close()  # the enclave's is its own
            client.call("write", ", twice", "")
        os.close(write)
        assert os.read(read, 100) == b"to the pipe"
        assert os.read(read, 100) == b""
        os.close(read)
    assert Path("out").read_text() == "to the file, twice"
    with loaded(load_config(stdout_fd=-1)) as client:
        client.call("write", "nowhere", "to stderr")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "nowhere" not in captured.err
    assert "to stderr" in captured.err


@pytest.mark.sandbox
def test_a_pipe_that_nobody_reads_holds_the_enclave_up_and_not_its_end(place):
    read, write = os.pipe()
    with loaded(load_config(stdout_fd=write)) as client:
        stuck = client.submit("write", "x" * 300_000, "")
        first = os.read(read, 10_000)
        assert first == b"x" * len(first)
        EnclaveManager.instance().destroy_enclave(client, EnclaveFinal(), skip_finalize=True)
        assert isinstance(stuck.exception(30), ClosedError)
    os.close(write)
    while os.read(read, 1 << 16):  # its end: the enclave's own descriptor is closed
        pass
    os.close(read)


@pytest.mark.sandbox
def test_input_is_read_from_a_file_as_far_as_is_asked(place):
    Path("in").write_text("one line\nand another\n" + "x" * 100_000)
    with open("in", "rb") as file, loaded(load_config(stdin_fd=file.fileno())) as client:
        assert client.call("take", 4) == b"one "
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 4
        assert client.call("about_stdin", "in") == [False, False, "lin", True, 9, 13, 29]
        assert client.call("in_a_child") == b"e\nand"
        assert client.call("take", 9) == b" another\n"
        assert client.call("everything") == "x" * 100_000
        assert client.call("everything") == ""
        assert client.stats()["host_calls"]["input"] >= 6
        assert "denied" not in client.stats()["denied"]


@pytest.mark.sandbox
def test_input_from_a_pipe_comes_as_it_is_written(place):
    read, write = os.pipe()
    with loaded(load_config(stdin_fd=read)) as client:
        os.close(read)  # the enclave's is its own
        waiting = client.submit("line")
        assert client.call("world")["host"]  # others go on meanwhile
        assert not waiting.done()
        os.write(write, b"hello\nthere")
        assert waiting.result(30) == "hello\n"
        os.close(write)
        assert client.call("everything") == "there"


@pytest.mark.sandbox
def test_a_read_that_a_signal_interrupts_loses_nothing(place):
    read, write = os.pipe()
    told, tell = os.pipe()
    with loaded(load_config(stdin_fd=read, stdout_fd=tell)) as client:
        answer = client.submit("in_a_child_that_is_interrupted")
        assert os.read(told, 100) == b"interrupted"  # and this machine was asked for five bytes that nobody waits for
        os.write(write, b"hello world")
        assert answer.result(30) == b"hello"
        assert client.call("take", 100) == b" world"
    for each in (read, write, told, tell):
        os.close(each)


@pytest.mark.sandbox
def test_an_enclave_that_waits_for_input_can_be_destroyed(place):
    before = set(threading.enumerate())
    read, write = os.pipe()
    with loaded(load_config(stdin_fd=read)) as client:
        waiting = client.submit("line")
        while not client.stats()["host_calls"].get("input"):
            assert not waiting.done()
            threading.Event().wait(0.01)
        EnclaveManager.instance().destroy_enclave(client, EnclaveFinal())
        assert waiting.exception(30) is not None
    os.close(write)
    os.close(read)
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("adyton-host"):
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.sandbox
@pytest.mark.parametrize("level", [0, 1])
def test_logging_is_set_up_in_a_file_of_the_clients(place, level, capfd):
    (place / "logs").mkdir()
    config = load_config(logging_config={"vlog_level": level, "log_directory": str(place / "logs")})
    with loaded(config, allow={"write": ["logs"]}) as client:
        client.call("log")
    lines = Path("logs/configured").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO at.start: initialized",
        *(["DEBUG mine: a detail"] if level else []),
        "INFO mine: a fact",
    ]
    assert "a fact" not in capfd.readouterr().err


@pytest.mark.sandbox
def test_a_log_file_that_cannot_be_opened_is_a_warning(place, capfd):
    with loaded(load_config(logging_config={"log_directory": str(place)})) as client:
        client.call("log")
    said = capfd.readouterr().err
    assert f"adyton: warning: the log file {place}/configured cannot be opened: Permission denied" in said
    assert "INFO mine: a fact\n" in said
    with loaded(load_config(logging_config={"vlog_level": 1})) as client:
        client.call("log")
    assert "DEBUG mine: a detail\n" in capfd.readouterr().err
