"""The broker's messages, its configuration file, and what it makes of evidence that it cannot judge."""

import datetime as dt
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.attestation import verify
from adyton.attestation.collateral import Collateral
from adyton.attestation.evidence import HardwareBody, ImageClaims, seal
from adyton.broker.config import BrokerConfig
from adyton.broker.decisions import decide, standing
from adyton.broker.protocol import (
    BLOCK,
    MAX_SECRET,
    Given,
    Refused,
    Request,
    answers,
    encode_answer,
    encode_request,
    requests,
)
from adyton.broker.secret_memory import SecretMemory, _address
from adyton.errors import RemoteProtocolError, UsageError

DIGEST = "sha256:" + "7" * 64


@given(st.binary(min_size=1, max_size=MAX_SECRET), st.integers(1, 5000))
def test_a_secret_arrives_however_it_is_cut(secret, size):
    data = encode_answer(memoryview(secret))
    reader = answers()
    found = [reader.receive(data[start : start + size]) for start in range(0, len(data), size)]
    assert found[:-1] == [None] * (len(found) - 1)
    assert isinstance(found[-1], Given)
    assert found[-1].secret == secret
    reader.wipe()
    assert bytes(found[-1].secret) == bytes(len(secret))


def test_who_sees_the_size_cannot_tell_a_key_from_a_refusal():
    refused = encode_answer(None)
    assert isinstance(answers().receive(refused), Refused)
    assert len(refused) == len(encode_answer(memoryview(bytes(32)))) == len(encode_answer(memoryview(bytes(3800))))
    for size in (1, 255, 256, BLOCK - 16, BLOCK, 1 << 16):
        assert (len(encode_answer(memoryview(bytes(size)))) - 4) % BLOCK == 0


@given(st.binary(max_size=2000))
def test_only_its_own_error_leaves_a_reader(data):
    for reader in (answers(), requests()):
        try:
            message = reader.receive(data)
        except RemoteProtocolError:
            continue
        assert message is None or isinstance(message, Request | Given | Refused)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a" * 65, "ä", "a\n", "-a", " "])
def test_what_is_no_name_is_not_asked_for(name):
    with pytest.raises(UsageError):
        encode_request(name)
    body = msgspec.msgpack.encode([1, name])
    with pytest.raises(RemoteProtocolError):
        requests().receive(len(body).to_bytes(4, "little") + body)


def test_a_second_message_is_not_taken():
    with pytest.raises(RemoteProtocolError, match="more than one"):
        requests().receive(encode_request("a") + encode_request("b"))


def test_nothing_shows_a_secret():
    memory = SecretMemory(6)
    memory.view[:] = b"hushed"
    assert "hushed" not in repr(memory) + repr(Given(memory.view))
    memory.wipe()
    assert bytes(memory.view) == bytes(6)


def test_pages_of_secrets_are_in_no_dump_and_no_child():
    memory = SecretMemory(5)
    memory.view[:] = b"pages"
    address = _address(memory._pages)
    flags, here = set(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            begin, end = (int(each, 16) for each in line.split()[0].split("-"))
            here = begin <= address < end
        elif here and line.startswith("VmFlags:"):
            flags = set(line.split()[1:])
    assert {"dd", "wf"} <= flags
    assert ("lo" in flags) == memory.locked
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, memory.view)
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 5) == bytes(5)
    os.close(reading)
    os.close(writing)


# -- broker.toml ----------------------------------------------------------------------------------------------------------


def config(folder, text, secret=b"hushed", mode=0o600):
    path = folder / "broker.toml"
    path.write_text(text)
    (folder / "s").write_bytes(secret)
    (folder / "s").chmod(mode)
    return BrokerConfig.read(str(path))


GOOD = f"""
[secret.a]
file = "s"
[secret.a.expect]
platforms = ["sim"]
measurement = ["{DIGEST}"]
"""


def test_a_configuration_is_read_and_its_keys_are_made_once(tmp_path):
    first = config(tmp_path, GOOD)
    assert bytes(first.secrets["a"].view) == b"hushed"
    assert first.secrets["a"].expect.measurement == [DIGEST]
    assert "hushed" not in repr(first)
    assert config(tmp_path, GOOD).key == first.key
    assert (tmp_path / "broker.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "broker.log.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no secret"),
        ("[secrets.a]\n" + GOOD, "did you mean secret?"),
        ("logg = 'x'\n" + GOOD, "did you mean log?"),
        ("[limits]\nconnection = 3\n" + GOOD, "did you mean connections?"),
        ("[limits]\nseconds = 0\n" + GOOD, "limits"),
        (GOOD.replace("file", "fil"), "did you mean file?"),
        (GOOD.replace("platforms", "platform"), "did you mean platforms?"),
        (GOOD.replace("sim", "simm"), "did you mean 'sim'?"),
        (GOOD.replace('platforms = ["sim"]\n', ""), "platforms is empty"),
        (GOOD.replace(f'measurement = ["{DIGEST}"]\n', ""), "no image is named"),
        (GOOD.replace(DIGEST, "sha256:7"), "is no digest"),
        (GOOD.partition("[secret.a.expect]")[0], "says not who is given it"),
        (GOOD.replace("secret.a]", 'secret."a/b"]'), "a secret's name"),
        (GOOD.replace('"s"', '"absent"'), "cannot be read"),
        (GOOD.replace('"s"', '"."'), "is no file"),
        ("[", "not TOML"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(tmp_path, text, says):
    with pytest.raises(UsageError) as failure:
        config(tmp_path, text)
    assert says in str(failure.value)
    assert not (tmp_path / "broker.key").exists()


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602])
def test_a_secret_that_others_can_read_is_refused(tmp_path, mode):
    with pytest.raises(UsageError, match="chmod 600"):
        config(tmp_path, GOOD, mode=mode)


@pytest.mark.parametrize("size", [0, MAX_SECRET + 1])
def test_a_secret_of_no_size_that_is_taken_is_refused(tmp_path, size):
    with pytest.raises(UsageError, match=f"has {size} bytes"):
        config(tmp_path, GOOD, secret=bytes(size))


def test_a_key_that_others_can_read_is_refused(tmp_path):
    config(tmp_path, GOOD)
    for name in ("broker.key", "broker.log.key"):
        (tmp_path / name).chmod(0o644)
        with pytest.raises(UsageError, match=name):
            config(tmp_path, GOOD)
        (tmp_path / name).chmod(0o600)


def test_a_log_whose_key_is_gone_does_not_go_on_with_another(tmp_path):
    config(tmp_path, GOOD)
    (tmp_path / "broker.log").touch()
    os.unlink(tmp_path / "broker.log.key")
    with pytest.raises(UsageError, match=r"broker\.log\.key is not there"):
        config(tmp_path, GOOD)


def test_evidence_of_a_platform_that_cannot_be_judged_here_is_a_finding(monkeypatch):
    def not_installed(platform):
        raise ImportError(name="dcap_qvl")

    monkeypatch.setattr(verify, "_hardware", not_installed)
    evidence = seal("tdx", HardwareBody(b"a quote", ImageClaims(DIGEST, "", 0, 0, debug=False)))
    stands = standing(evidence, lambda _: bytes(64), Collateral(), dt.datetime.now(dt.UTC))
    assert stands.identity is None
    assert "dcap_qvl" in stands.findings[0].got
    assert decide({}, stands, "name").secret is None
