"""How the command line ends when what it prints has no reader, when it is interrupted, and when its driver ends first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import adyton

COMMAND = [sys.executable, "-m", "adyton.cli"]
PROJECT = """
[tool.adyton.enclave.one]
entry = "one:One"
sources = ["one.py"]

[tool.adyton.loader.app]
driver = "driver.py"
enclaves = { one = "one" }
loader_args = []
"""
ONE = """
from adyton.trusted import TrustedApplication
class One(TrustedApplication):
    pass
"""


def test_output_that_nobody_reads_ends_the_command_without_a_word(workplace):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        done = subprocess.run([*COMMAND, "syscalls"], stdout=pipe, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_output_that_does_not_fit_is_an_error_of_one_line(workplace):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "syscalls"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("adyton: ")
    assert done.stderr.endswith("No space left on device\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["serve", "--proxy-ports", "5099-5000"], 2, "--proxy-ports 5099-5000: write LOW-HIGH, such as 5000-5099"),
        (["serve", "--proxy-ports", "0-9"], 2, "write LOW-HIGH"),
        (["serve", "--proxy-ports", "80"], 2, "write LOW-HIGH"),
        (["serve", "--platform", "sgx"], 31, "platform sgx is not to be had here"),
        (["call", "sha256:" + "0" * 64], 2, "call which entry of sha256:0000"),
        (["call", "empty.py"], 2, "empty.py has no entry"),
    ],
    ids=["order", "zero", "one", "platform", "entry", "empty"],
)
def test_refused_before_anything_is_started(workplace, arguments, status, text):
    Path("empty.py").write_text("x = 1\n")
    done = adyton(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.sandbox
def test_an_image_that_is_on_the_server_is_called_by_its_measurement(workplace, server):
    Path("one.py").write_text("def add(a: int, b: str = '') -> str:\n    return f'{a + 1}{b}'\n")
    remote = ["--on", server, "--allow-sim"]
    assert adyton("call", "one.py", "add", "1", *remote).returncode == 0  # brings it there
    measurement = json.loads(adyton("inspect", "one.py", "--json").stdout)["measurement"]
    done = adyton("call", measurement, "add", "41", "no JSON", *remote)
    assert (done.returncode, done.stdout) == (0, '"42no JSON"\n'), done.stderr
    wrong = adyton("call", measurement, "add", "x", *remote)
    assert wrong.returncode != 0
    assert "'a'" in wrong.stderr


HERE = "print('here', flush=True)"


def run_driver(code: str) -> subprocess.Popen[str]:
    """`adyton run app` with a driver that does that, and says "here" first."""
    Path("pyproject.toml").write_text(PROJECT)
    Path("one.py").write_text(ONE)
    Path("driver.py").write_text(f"import os, signal, sys, time\n{code}")
    process = subprocess.Popen(
        [*COMMAND, "run", "app"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "here\n":
        _, errors = process.communicate(timeout=60)
        pytest.fail(errors)
    return process


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (f"{HERE}; {code}", status)
        for code, status in (("sys.exit(7)", 7), ("signal.raise_signal(9)", 128 + 9), ("", 0))
    ],
    ids=["exit", "killed", "end"],
)
def test_run_ends_as_its_driver_did(workplace, code, status):
    with run_driver(code) as process:
        process.communicate(timeout=60)
        assert process.returncode == status


def test_an_interrupt_at_the_terminal_is_the_drivers(workplace):
    code = f"""
try:
    {HERE}
    while True:  # pause() would wait for ever, were it begun just after the signal
        time.sleep(0.1)
except KeyboardInterrupt:
    print("ends in order")
    sys.exit(5)
"""
    with run_driver(code) as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (5, "ends in order\n"), errors
