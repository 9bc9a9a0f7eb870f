"""The demo without a sandbox: its program runs on threads of this process. Nothing is confidential here."""

import sys

import demo_driver
import pytest
from demo_enclave import KEY, Demo

from adyton import (
    EnclaveInput,
    EnclaveLoadConfig,
    EnclaveManager,
    EnclaveManagerOptions,
    FakeEnclaveLoader,
    user_message,
)
from adyton.trusted import AeadCryptor


@pytest.fixture
def client():
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(Demo())))
    with EnclaveManager.instance().load_enclave(EnclaveLoadConfig(name="demo_enclave")) as client:
        yield client
    EnclaveManager.configure(EnclaveManagerOptions())


def encrypted(client, message):
    enclave_input = EnclaveInput()
    enclave_input.Extensions[user_message] = message
    return bytes.fromhex(client.enter_and_run(enclave_input).Extensions[user_message])


def test_a_message_is_encrypted(client):
    sealed = encrypted(client, "Asylo Rocks")
    assert AeadCryptor.aes_gcm_siv(KEY).open(sealed) == b"Asylo Rocks"


def test_the_same_message_is_never_encrypted_to_the_same(client):
    assert encrypted(client, "Asylo Rocks") != encrypted(client, "Asylo Rocks")


@pytest.mark.parametrize("flag", ["--enclave_path", "--message"])
def test_the_driver_wants_both_flags(monkeypatch, capsys, flag):
    monkeypatch.setattr(sys, "argv", ["demo_driver.py", "--enclave_path=x", "--message=x", f"{flag}="])
    assert demo_driver.main() == 2
    assert capsys.readouterr().err == f"Empty {flag} flag.\n"
