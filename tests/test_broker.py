"""The broker as a process: who is given secrets, what its log says of it, and what enclaves say to programs that ask."""

import json
import os
import re
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from broker_load import NAMES, OTHER, RIGHT, Broker, ask, of_product, run
from command import adyton as command
from thorough import few_or

import adyton
import adyton.trusted as trusted
from adyton import EnclaveManager, EnclaveManagerOptions, FakeEnclaveLoader
from adyton.attestation import sim
from adyton.broker.asking import Asking
from adyton.broker.records import Decided, Reader, Started, Stopped, lines_of
from adyton.errors import AdytonError, ImageError, NotGenuineError, UnauthenticatedError
from adyton.proto.enclave import EnclaveLoadConfig
from adyton.runtime.in_process import MEASUREMENT
from adyton.runtime.process.guest import secrets as asked_by_guest
from adyton.trusted import Enclave


@pytest.fixture
def broker(tmp_path):
    made = Broker(tmp_path)
    made.start()
    yield made
    made.stop(signal.SIGKILL)


def records(broker):
    reader = Reader(broker.public_key)
    found = [reader.read(line) for line in lines_of([broker.log.read_bytes()])]
    assert None not in found
    return found


def test_each_enclave_is_given_its_own_secrets_and_no_others(broker):
    for name in NAMES:
        assert ask(broker, name, of_product(name), sim.attest) == broker.secrets[name]
        others = [each for each in NAMES if each != name]
        assert [ask(broker, each, of_product(name), sim.attest) for each in others] == [None, None]
    assert ask(broker, "absent", RIGHT, sim.attest) is None
    decided = [each for each in records(broker) if isinstance(each, Decided)]
    assert sum(each.decision == "released" for each in decided) == 3
    assert {each.secret for each in decided if each.decision == "refused"} == {*NAMES, "absent"}
    assert all(each.findings for each in decided if each.decision == "refused")
    assert all(each.identity is not None for each in decided)


def test_what_happened_is_in_the_log_from_start_to_stop(broker, tmp_path):
    ask(broker, "database", of_product("database", signer=OTHER), sim.attest)
    assert broker.stop() == 0
    started, refused, stopped = records(broker)
    assert isinstance(started, Started)
    assert started.key == broker.key
    assert set(started.policies) == set(NAMES)
    assert refused.findings[0].field == "signer"
    assert isinstance(stopped, Stopped)
    done = command("broker", "verify", str(broker.log), "--json")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert (said["ok"], said["records"], said["refused"], said["released"]) == (True, 3, 1, 0)
    secrets = [*broker.secrets.values()]
    for path in tmp_path.iterdir():
        if not path.name.endswith(".secret"):
            assert not any(secret in path.read_bytes() for secret in secrets), path


def test_verify_finds_an_edit_and_exits_with_1(broker):
    ask(broker, "database", of_product("database"), sim.attest)
    broker.stop()
    broker.log.write_bytes(broker.log.read_bytes().replace(b"released", b"refused_"))
    done = command("broker", "verify", str(broker.log))
    assert done.returncode == 1
    assert "is not as its broker wrote it" in done.stderr


def test_a_log_that_was_removed_is_missed_until_somebody_says_that_a_new_one_is_to_begin(broker):
    broker.stop()
    config = str(broker.log.parent / "broker.toml")
    again = command("broker", "--config", config, "--listen", "127.0.0.1:0", "--new-log")
    assert again.returncode == 2
    assert "is there" in again.stderr
    for path in (broker.log, broker.log.with_name(broker.log.name + ".head")):
        path.unlink()
    gone = command("broker", "--config", config, "--listen", "127.0.0.1:0")
    assert gone.returncode == 1
    assert "is gone" in gone.stderr
    for path in broker.log.parent.glob(
        f"{broker.log.name}.key*"
    ):  # with the key that signed it: the broker's own is there
        path.unlink()
    assert command("broker", "--config", config, "--listen", "127.0.0.1:0").returncode == 1
    broker.start("--new-log")
    assert isinstance(records(broker)[0], Started)


def test_a_head_that_was_kept_elsewhere_is_compared(broker):
    broker.stop()
    number, digest = broker.log.parent.joinpath("said").read_text().rpartition("head ")[2].split()
    broker.start()
    broker.stop()
    assert command("broker", "verify", str(broker.log), "--head", number, digest).returncode == 0
    assert command("broker", "verify", str(broker.log), "--head", number, OTHER).returncode == 1
    assert command("broker", "verify", str(broker.log), "--head", number, "x").returncode == 2


def test_evidence_that_was_shown_before_or_is_anothers_is_refused(broker):
    shown = []

    def record(identity, report_data):
        shown.append(sim.attest(identity, report_data))
        return shown[-1]

    assert ask(broker, "database", of_product("database"), record)
    for attest in (lambda *_: shown[0], lambda *_: b"{}", lambda who, data: sim.attest(who, data[::-1])):
        with pytest.raises((AdytonError, OSError)):
            ask(broker, "database", of_product("database"), attest)
    refused = [each for each in records(broker) if isinstance(each, Decided) and each.decision == "refused"]
    assert [each.findings[0].stage for each in refused] == ["binding", "malformed", "binding"]


def test_evidence_that_is_relayed_by_somebody_in_the_middle_is_refused(broker):
    """Who has a real enclave's evidence made for his own connection to the broker: that enclave wants the broker's key, which he has not."""
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def middle():
            from adyton.channel.credential import Credential
            from adyton.channel.server import EvidenceReceived, ServerChannel

            sock, _ = listener.accept()
            channel = ServerChannel(verifies=True, credential=Credential.fresh())
            with sock:
                while data := sock.recv(1 << 14):
                    for event in channel.receive(data):
                        if isinstance(event, EvidenceReceived):
                            asked.set()
                    sock.sendall(channel.data_to_send())

        thread = threading.Thread(target=middle)
        thread.start()
        elsewhere = type("Elsewhere", (), {"key": broker.key, "port": listener.getsockname()[1]})()
        with pytest.raises(NotGenuineError, match="is to have"):
            ask(elsewhere, "database", of_product("database"), sim.attest)
        thread.join()
    assert not asked.is_set()


def test_a_connection_that_says_nothing_or_nonsense_gets_nothing(broker):
    with socket.create_connection(("127.0.0.1", broker.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"secret" not in sock.recv(1 << 14)
    with socket.create_connection(("127.0.0.1", broker.port)):
        assert ask(broker, "database", of_product("database"), sim.attest)
    assert broker.stop() == 0


def test_a_log_that_cannot_be_written_ends_the_broker_before_it_answers(broker):
    os.truncate(broker.log, 5)
    with pytest.raises((AdytonError, OSError)):
        ask(broker, "database", of_product("database"), sim.attest)
    assert broker.process.wait(30) == 1
    assert "cannot be written" in (broker.folder / "said").read_text()


def test_a_broker_leaves_no_core(broker):
    limits = Path(f"/proc/{broker.process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert (
        Path(f"/proc/{broker.process.pid}/mem").stat().st_uid == 0
    )  # of a process that is not dumpable: root's, whoever runs it


def test_wrong_uses_are_said(tmp_path):
    for arguments, says in (
        (["--listen", "127.0.0.1:0"], "--config"),
        (["--config", str(tmp_path / "absent.toml")], "cannot be read"),
        (["--config", str(tmp_path), "--listen", "here"], "HOST:PORT"),
        (["verfy", "x"], "verify"),
    ):
        done = command("broker", *arguments)
        assert done.returncode == 2, done
        assert says in done.stderr


def test_load_with_kills():
    assert run(seconds=few_or(4, 6), seed=7, clients=4, kills=few_or(2, 3)) == 0


# -- in an enclave --------------------------------------------------------------------------------------------------------

app = Enclave("asks")


@app.entry
def get(name: str, address: str, key: str) -> bytes:
    return trusted.secret(name, broker=address, key=key)


@app.entry
def get_of_image(name: str) -> bytes:
    return trusted.secret(name)


@pytest.fixture
def for_tests(tmp_path):
    """A broker that gives the secret to the applications that tests run."""
    (tmp_path / "s").write_bytes(b"hushed")
    (tmp_path / "s").chmod(0o600)
    expect = f'platforms = ["sim"]\nmeasurement = ["{MEASUREMENT}"]\ndebug = true\n'
    others = expect.replace(MEASUREMENT, OTHER)
    broker = Broker(tmp_path)
    (tmp_path / "broker.toml").write_text(
        f'[secret.mine]\nfile = "s"\n[secret.mine.expect]\n{expect}[secret.yours]\nfile = "s"\n[secret.yours.expect]\n{others}'
    )
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def client():
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(app)))
    try:
        with EnclaveManager.instance().load_enclave(EnclaveLoadConfig(name="asks")) as loaded:
            yield loaded
    finally:
        EnclaveManager.configure(EnclaveManagerOptions())


def test_a_program_in_an_enclave_gets_its_secret(for_tests, client):
    address = f"127.0.0.1:{for_tests.port}"
    assert client.call(get, "mine", address, for_tests.key) == b"hushed"
    for name in ("yours", "absent"):
        with pytest.raises(PermissionError, match="the broker's log says which"):
            client.call(get, name, address, for_tests.key)
    with pytest.raises(adyton.errors.EnclaveError, match="is to have"):
        client.call(get, "mine", address, OTHER)
    with pytest.raises(adyton.errors.EnclaveError, match="names no broker"):
        client.call(get_of_image, "mine")
    with pytest.raises(ConnectionRefusedError):
        client.call(get, "mine", "127.0.0.1:1", for_tests.key)


def test_outside_of_an_enclave_there_are_no_secrets():
    with pytest.raises(adyton.errors.ClosedError, match="this is none"):
        trusted.secret("mine", broker="127.0.0.1:1", key=OTHER)


PROGRAM = """
import adyton.trusted as trusted

enclave = trusted.Enclave("asks")


@enclave.entry
def get(name: str) -> bytes:
    return trusted.secret(name)


@enclave.entry
def get_at(name: str, address: str, key: str) -> str:
    return trusted.secret(name, broker=address, key=key).decode()
"""


@pytest.mark.sandbox
def test_a_real_enclave_asks_the_broker_that_its_image_names(tmp_path):
    (tmp_path / "asks.py").write_text(PROGRAM)
    broker = Broker(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    broker.port = port
    broker.start()
    broker.stop()
    table = f'[tool.adyton.enclave.asks]\nentry = "asks:enclave"\nbroker = {{ address = "127.0.0.1:{port}", key = ["{broker.key}"] }}\n'
    (tmp_path / "pyproject.toml").write_text(table)
    built = command("build", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    measurement = built.stdout.split()[1]
    (tmp_path / "s").write_bytes(b"hushed")
    (tmp_path / "s").chmod(0o600)
    (tmp_path / "broker.toml").write_text(
        f'[secret.mine]\nfile = "s"\n[secret.mine.expect]\nplatforms = ["sim"]\nmeasurement = ["{measurement}"]\ndebug = true\n'
    )
    broker.start()
    address = f"127.0.0.1:{port}"
    try:
        image = str(tmp_path / "build" / "asks.enclave")
        with adyton.load(image, allow_net=[address]) as enclave:
            assert enclave.call("get", "mine") == b"hushed"
            assert enclave.call("get_at", "mine", address, broker.key) == "hushed"
            with pytest.raises(adyton.errors.EnclaveError, match="is to have"):
                enclave.call("get_at", "mine", address, OTHER)
        with adyton.load(image) as enclave, pytest.raises(PermissionError):
            enclave.call("get", "mine")
    finally:
        broker.stop()


def test_who_sends_on_and_on_in_a_brokers_place_is_waited_for_no_longer_than_was_said(monkeypatch):
    control, supervisor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    now = iter((0.0, 1.0, 2.0))
    monkeypatch.setattr(asked_by_guest, "time", SimpleNamespace(monotonic=lambda: next(now, 31.0)))
    answers = []

    def want_more():
        _, (descriptor,), _, _ = socket.recv_fds(supervisor, 100, 1)
        with socket.socket(fileno=descriptor) as question:
            while question.recv(1 << 16) and len(answers) < 5:
                answers.append(question.send(b"\0"))

    wants = threading.Thread(target=want_more)
    with control, supervisor, socket.create_server(("127.0.0.1", 0)) as listener:
        wants.start()
        with socket.create_connection(listener.getsockname()) as first:
            taken, _ = listener.accept()
            monkeypatch.setattr(socket, "create_connection", lambda *_: first)
            taken.sendall(bytes(1 << 18))  # there is always more
            with pytest.raises(TimeoutError):
                asked_by_guest.SupervisorAsker(control).ask("name", "h", 1, ["sha256:" + "1" * 64], 30)
            taken.close()
        wants.join()
    assert len(answers) == 1


def test_whatever_a_broker_says_only_the_documented_errors_leave(broker):
    asking = Asking("database", [broker.key], RIGHT.digest())
    with pytest.raises(UnauthenticatedError):
        asking.receive(b"")
    with pytest.raises(AdytonError):
        Asking("database", [broker.key], RIGHT.digest()).receive(b"\0" * 100)


def test_a_broker_in_an_image_is_measured_and_others_stay_as_they_are():
    from adyton.image.manifest import Broker as Named
    from adyton.image.manifest import Manifest, decode_manifest, encode_manifest

    plain = Manifest(name="a", entry="a:", entries=[])
    assert b"broker" not in encode_manifest(plain)
    named = msgspec.structs.replace(plain, broker=Named("h:1", [OTHER]))
    assert decode_manifest(encode_manifest(named)).names_broker == Named("h:1", [OTHER])
    with pytest.raises(ImageError):
        encode_manifest(msgspec.structs.replace(plain, broker=Named("h", [OTHER])))
