"""The command line where the world is not as it should be: streams, folders and files, projects, drivers."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, adyton

from adyton.cli.root import run

ADYTON = f"{shlex.quote(sys.executable)} -m adyton.cli"
PROGRAM = """
def shout(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().upper()
"""
PROJECT = """
[tool.adyton.enclave.demo]
entry = "prog:enclave"
[tool.adyton.loader.demo]
driver = "driver.py"
"""
ENCLAVE = "from adyton import trusted\nenclave = trusted.Enclave('demo')\n"


def shell(script: str, **attributes: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **attributes,  # type: ignore[call-overload]
    )


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["syscalls", "syscalls --json", "--help"])
def test_a_reader_that_has_seen_enough_is_no_news(command):
    shown = shell(f"{ADYTON} {command} | head -c 9; exit ${{PIPESTATUS[0]}}")
    assert shown.returncode in (0, 1)  # 0: all of it fitted into the pipe
    assert len(shown.stdout) == 9
    assert shown.stderr == ""


def test_a_full_disk_is_one_line(workplace):
    shown = shell(f"{ADYTON} syscalls >/dev/full")
    assert (shown.returncode, shown.stderr) == (
        1,
        "adyton: standard output cannot be written: No space left on device\n",
    )
    Path("prog.py").write_text("def half(number: int) -> float:\n    return number / 2\n")
    shown = shell(f"{ADYTON} inspect prog.py --json >/dev/full")
    assert (shown.returncode, shown.stderr) == (
        1,
        "adyton: standard output cannot be written: No space left on device\n",
    )


def test_an_argument_that_is_no_text_is_one_line(workplace):
    Path("prog.py").write_text("def echo(text: str) -> str:\n    return text\n")
    shown = shell(f"{ADYTON} call prog.py echo $(printf '\\377a')")
    assert (shown.returncode, shown.stderr) == (2, "adyton: '\\udcffa' is no text: it holds bytes that are not UTF-8\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_bugs(workplace, closed):
    for command, status in (("syscalls", 0), ("inspect missing", 2), ("keygen k", 0)):
        shown = shell(f"{ADYTON} {command} {closed}")
        assert shown.returncode == status
        assert "Traceback" not in shown.stderr
    assert Path("k").exists()


@pytest.mark.sandbox
def test_a_call_with_closed_standard_input(workplace):
    Path("prog.py").write_text("def half(number: int) -> float:\n    return number / 2\n")
    called = shell(f"{ADYTON} call prog.py half 5 <&-")
    assert (called.returncode, called.stdout) == (0, "2.5\n"), called.stderr


# -- folders and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["build", "run demo", "init", "keygen k", "inspect x", "call x.py f", "sign x --debug"]
)
def test_a_deleted_working_directory_is_named(workplace, command):
    gone = workplace / "gone"
    gone.mkdir()
    refused = shell(f"rmdir {gone}; {ADYTON} {command}", cwd=gone, env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.endswith(". The working directory was deleted: change to one that is there\n"), refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("inspect secret", "the image secret cannot be read: Permission denied"),
        ("call secret.py shout x", "secret.py cannot be read: Permission denied"),
        ("sign good --key secret", "the signing key secret cannot be read: Permission denied"),
        ("keygen locked/k", "the key cannot be written to locked/k.pub: Permission denied"),
        ("init locked", "nothing can be written into locked: Permission denied; name a folder of yours"),
        ("init locked/deeper", "the folder locked/deeper cannot be made: Permission denied; name one of yours"),
    ],
)
def test_what_an_ordinary_user_may_not_do(tmp_path, monkeypatch, capfd, command, text):
    def prepared(name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        for file in ("secret", "secret.py", "good"):
            Path(file).write_text("x")
            Path(file).chmod(0)
        Path("locked").mkdir(mode=0o555)

    def refused() -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(shlex.split(command))
        return (ended.value.code, *capfd.readouterr())

    if os.geteuid() == 0:
        prepared("for root")
        refused()  # so that all is imported while it can be
    prepared("for others")
    if os.geteuid() == 0:
        os.seteuid(65534)  # names in the working directory are found, whatever is above it
    try:
        status, out, err = refused()
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert (status, out) == (2, ""), err
    assert text in err


@pytest.mark.sandbox
def test_names_with_spaces_and_umlauts(workplace):
    folder = workplace / "Ein Übungs-Ordner"
    folder.mkdir()
    (folder / "prog.py").write_text(PROGRAM)
    (folder / "ein Text.txt").write_text("grüße")
    program, text = "Ein Übungs-Ordner/prog.py", "Ein Übungs-Ordner/ein Text.txt"
    called = adyton("call", "--raw", program, "shout", text, "--allow-read", text)
    assert (called.returncode, called.stdout) == (0, "GRÜSSE"), called.stderr
    denied = adyton("call", program, "shout", text)
    assert denied.returncode == 30
    assert f"denied: read {workplace / text} (add --allow-read " in denied.stderr
    assert adyton("keygen", "ein Schlüssel").returncode == 0
    assert adyton("init", "neu hier").returncode == 0
    built = adyton("build", "--key", "../ein Schlüssel", cwd="neu hier")
    assert built.returncode == 0, built.stderr
    image = "neu hier/build/demo_enclave.enclave"
    assert adyton("sign", image, "--debug", "-o", "zweimal signiert.enclave").returncode == 0
    inspected = adyton("inspect", "--json", "zweimal signiert.enclave")
    assert [each["debug"] for each in json.loads(inspected.stdout)["signatures"]] == [False, True]


# -- projects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("project", "text"),
    [
        ("[tool.adyton", "is not valid TOML"),
        ("[tool.other]\n", "or above: change to the project's folder"),
        ("[tool.adyton.enclav.demo]\n", "key 'enclav' that is not known (nearest: enclave)"),
        ('[tool.adyton.enclave.demo]\nentri = "a:b"\n', "key 'entri' that is not known (nearest: entry)"),
        ("[tool.adyton.enclave.demo]\n", "missing required field `entry`"),
        ("[tool.adyton.enclave.demo]\nentry = 5\n", "Expected `str`, got `int`"),
        ('[tool.adyton.enclave.demo]\nentry = "prog"\n', "entry = 'prog' is not of the form module:name"),
        ('[tool.adyton.enclave.demo]\nentry = "nope:Demo"\n', "nope"),
        ('[tool.adyton.enclave.demo]\nentry = "prog:Dmeo"\n', "Dmeo"),
        ('[tool.adyton.enclave.demo]\nentry = "prog:enclave"\nsources = ["nope.py"]\n', "nope.py"),
        (
            '[tool.adyton.enclave.demo]\nentry = "prog:enclave"\nruntime = "proces"\n',
            "no runtime 'proces': use \"process\"",
        ),
        ('[tool.adyton.enclave.demo]\nentry = "prog:enclave"\nsign = "k"\n', "k cannot be read: No such file"),
        ('[tool.adyton.enclave.demo]\nentry = "prog:enclave"\npython = "three"\n', "three"),
        ('[tool.adyton.enclave.demo]\nentry = "prog:enclave"\nproduct_id = -1\n', "not between 0 and 65535"),
        ('[tool.adyton.enclave.demo]\nentry = "prog:enclave"\nhost_calls = ["fiel"]\n', "(nearest: file)"),
        ('[tool.adyton.enclave.demo]\nentry = "prog:enclave"\nlimits = { memroy = 1 }\n', "(nearest: memory)"),
        ('[tool.adyton.enclave.demo]\nentry = "prog:enclave"\nlimits = { memory = "1 XB" }\n', "1 XB"),
        (
            '[tool.adyton.loader.demo]\ndriver = "driver.py"\nenclaves = { e = "dmeo" }\n',
            "no enclave 'dmeo' is declared",
        ),
        ("[tool.adyton.loader.demo]\n", "missing required field `driver`"),
    ],
)
def test_projects_that_are_none(workplace, capfd, project, text):
    Path("prog.py").write_text(ENCLAVE)
    Path("pyproject.toml").write_text(project)
    for command in (["build"], ["run", "demo"]):
        if "loader" not in project and command == ["run", "demo"]:
            continue
        with pytest.raises(SystemExit) as ended:
            run(command)
        out, err = capfd.readouterr()
        assert (ended.value.code, out) == (2, ""), err
        assert text in err
        assert "Traceback" not in err
    assert not Path("build").exists()


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("run dmeo", "declares no loader 'dmeo' (nearest: demo); it declares: demo"),
        ("build dmeo", "declares no enclave or loader 'dmeo' (nearest: demo); it declares: demo"),
        ("run demo", "the driver {here}/driver.py is not there"),
        ("run demo other", "the driver {here}/driver.py is not there"),
    ],
)
def test_targets_that_are_none(workplace, capfd, command, text):
    Path("prog.py").write_text(ENCLAVE)
    Path("pyproject.toml").write_text(PROJECT)
    with pytest.raises(SystemExit) as ended:
        run(command.split())
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert text.format(here=workplace) in err


# -- drivers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "status", "text"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("raise ValueError('no')", 1, "ValueError: no"),
        ("def f(:", 1, "SyntaxError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM, ""),
        ("import sys; sys.exit('sorry')", 1, "sorry"),
    ],
    ids=["status", "raises", "syntax", "killed", "text"],
)
def test_run_exits_as_its_driver_did(workplace, driver, status, text):
    Path("pyproject.toml").write_text(PROJECT)
    Path("driver.py").write_text(driver)
    ran = adyton("run", "demo")
    assert (ran.returncode, ran.stdout) == (status, "")
    assert text in ran.stderr
    assert "adyton" not in ran.stderr.replace(str(ROOT), "")


def test_an_interrupted_run_waits_for_its_driver(workplace):
    Path("pyproject.toml").write_text(PROJECT)
    Path("driver.py").write_text(
        "import sys, time\n"
        "try:\n    print('here', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('in order', flush=True)\n    sys.exit(130)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "adyton.cli", "run", "demo"], stdout=subprocess.PIPE, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == "in order\n"
        assert process.wait(30) == 130
