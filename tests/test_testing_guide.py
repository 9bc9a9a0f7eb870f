"""docs/testing.md: its program and its tests run as they stand there, without a sandbox and without listening anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from command import ROOT

from adyton import EnclaveFinal, EnclaveLoadConfig, EnclaveManager, EnclaveManagerOptions, FakeEnclaveLoader
from adyton.trusted import TrustedApplication, entry

# Sockets of a network are refused to what the guide's tests run.
NO_NETWORK = """
import socket

class Refused(socket.socket):
    def bind(self, *_):
        raise AssertionError("bound")
    def connect(self, *_):
        raise AssertionError("connected")

socket.socket = Refused
"""


def test_the_guides_tests_pass(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/testing.md").read_text(), re.DOTALL)
    named = {match[1]: block for block in blocks if (match := re.match(r"# (\w+\.py)\n", block))}
    assert sorted(named) == ["pay_enclave.py", "test_pay.py"]
    for name, block in named.items():
        (tmp_path / name).write_text(block)
    (tmp_path / "conftest.py").write_text(NO_NETWORK)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--rootdir", "."]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{named['test_pay.py'].count('def test_')} passed" in run.stdout


class Counting(TrustedApplication):
    def __init__(self) -> None:
        self.calls = 0

    @entry
    def count(self) -> int:
        self.calls += 1
        return self.calls


def test_a_class_is_made_anew_for_each_load_and_an_instance_is_not():
    manager = EnclaveManager.instance()
    for given, expected in ((Counting, [1, 1]), (Counting(), [1, 2])):
        EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(given)))
        try:
            found = []
            for _ in range(2):
                client = manager.load_enclave(EnclaveLoadConfig(name="counting"))
                found.append(client.call("count"))
                manager.destroy_enclave(client, EnclaveFinal())
            assert found == expected
        finally:
            EnclaveManager.configure(EnclaveManagerOptions())
