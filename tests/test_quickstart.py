"""The first things that a user does: the quickstart and `adyton call`, in real enclaves, here and on a server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, adyton

from adyton.cli.root import run as run_command
from adyton.trusted import AeadCryptor

pytestmark = [pytest.mark.sandbox, pytest.mark.each_variant]
QUICKSTART = ROOT / "examples" / "quickstart"
PAY = ROOT / "examples" / "pay"
KEY = bytes(range(16))


def decrypted(output: str) -> str:
    lines = output.splitlines()
    assert lines[0] == "Encrypted message:"
    assert re.fullmatch(r"[0-9a-f]+", lines[1])
    return AeadCryptor.aes_gcm_siv(KEY).open(bytes.fromhex(lines[1])).decode()


def test_the_quickstart_encrypts_a_message_differently_each_time():
    runs = [adyton("run", "quickstart", "--", "--message", "Asylo Rocks", cwd=QUICKSTART) for _ in range(2)]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert decrypted(run.stdout) == "Asylo Rocks"
        assert len(run.stdout.splitlines()[1]) == 78
        assert "adyton: simulated enclave: NOT CONFIDENTIAL\n" in run.stderr
    assert runs[0].stdout != runs[1].stdout


def test_the_quickstart_runs_on_a_server(server):
    run = adyton("run", "quickstart", "--on", server, "--allow-sim", "--", "--message", "hi", cwd=QUICKSTART)
    assert run.returncode == 0, run.stderr
    assert decrypted(run.stdout) == "hi"


def test_a_simulated_enclave_on_a_server_needs_leave(server):
    run = adyton("run", "quickstart", "--on", server, "--", "--message", "hi", cwd=QUICKSTART)
    assert run.returncode != 0
    assert "platform" in run.stderr
    call = adyton("call", "pay.py", "mean_pay", "pay.csv", "--allow-read", "pay.csv", "--on", server, cwd=PAY)
    assert call.returncode == 24
    assert call.stdout == ""


@pytest.mark.parametrize("flag", ["--message", "--enclave_path"])
def test_an_empty_flag_of_the_driver_is_refused(flag):
    run = adyton("run", "quickstart", "--", f"{flag}=", cwd=QUICKSTART)
    assert run.returncode == 2
    assert f"Empty {flag} flag." in run.stderr


def test_call_prints_the_result_as_json():
    call = adyton("call", "pay.py", "mean_pay", "pay.csv", "--allow-read", "pay.csv", cwd=PAY)
    assert call.returncode == 0, call.stderr
    rows = [float(line) for line in (PAY / "pay.csv").read_text().splitlines()]
    assert float(call.stdout) == sum(rows) / len(rows)


def test_call_on_a_server_reads_the_clients_file(server):
    call = adyton(
        "call", "pay.py", "mean_pay", "pay.csv", "--allow-read", "pay.csv", "--on", server, "--allow-sim", cwd=PAY
    )
    assert call.returncode == 0, call.stderr
    assert float(call.stdout) > 0


def test_without_the_option_the_file_is_denied():
    call = adyton("call", "pay.py", "mean_pay", "pay.csv", cwd=PAY)
    assert call.returncode == 30
    assert call.stdout == ""
    path = PAY / "pay.csv"
    assert f"denied: read {path} (add --allow-read {path})\n" in call.stderr
    assert "PermissionError" in call.stderr


def test_the_second_form_of_pay_runs_as_a_program():
    run = subprocess.run(
        [sys.executable, "pay_enclave.py"], cwd=PAY, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) > 0


def test_call_names_entries_when_one_is_mistyped():
    call = adyton("call", "pay.py", "mean_pya", "pay.csv", cwd=PAY)
    assert call.returncode == 2
    assert "mean_pay(path: str) -> float" in call.stderr
    call = adyton("call", "pay.py", "mean_pay", cwd=PAY)
    assert call.returncode == 2
    assert "mean_pay(path: str) -> float" in call.stderr


@pytest.mark.netns
def test_the_quickstart_between_two_network_namespaces():
    run = subprocess.run(
        [sys.executable, "examples/quickstart_remote/run.py", "Asylo Rocks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert decrypted(run.stdout) == "Asylo Rocks"


def test_results_of_every_kind_are_printed(workplace: Path, on_the_server, capfd):
    """In this process, and on a server: no time is lost with starts, which others show."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_command(["call", "kinds.py", *arguments])
        return (int(str(ended.value.code)), *capfd.readouterr())

    Path("kinds.py").write_text(
        "import datetime\n"
        "def text(x: str) -> str:\n    return x\n"
        "def data(x: bytes) -> bytes:\n    return x + b'!'\n"
        "def numbers(x: list[int], y: float = 1.5) -> dict[str, float]:\n    return {'sum': sum(x) * y}\n"
        "def when(x: datetime.date) -> datetime.date:\n    return x + datetime.timedelta(days=1)\n"
        "def nothing() -> None:\n    print('printed')\n"
    )
    for arguments, printed in (
        (["text", "[1]"], '"[1]"\n'),
        (["data", "aGk="], '"aGkh"\n'),
        (["numbers", "[1,2]"], '{"sum":4.5}\n'),
        (["numbers", "[1,2]", "2"], '{"sum":6.0}\n'),
        (["when", "2026-11-23"], '"2026-11-24"\n'),
        (["nothing"], "null\n"),
        (["text", "--raw", "--", "-x"], "-x"),
        (["data", "--raw", "aGk="], "hi!"),
    ):
        status, out, err = call(*arguments)
        assert (status, out) == (0, printed), (arguments, err)
        assert ("printed\n" in err) == (arguments == ["nothing"])
    status, _, err = call("numbers", "[1,")
    assert status == 2
    assert "numbers(x: list[int]" in err
    assert call("numbers", '["a"]')[0] == 2
