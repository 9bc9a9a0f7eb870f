"""`adyton init`: what it writes runs and is tested, is what the quickstart is, and takes the place of nothing."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from command import ROOT, adyton

from adyton.cli.init import FILES
from adyton.config import Policy
from adyton.trusted import AeadCryptor

TEMPLATES = ROOT / "src" / "adyton" / "cli" / "new_project"
QUICKSTART = ROOT / "examples" / "quickstart"


def commands_of(output: str) -> list[str]:
    """The commands that `init` says come next."""
    return [line.partition("  #")[0].strip() for line in output.partition("next:\n")[2].splitlines()]


@pytest.mark.sandbox
def test_what_init_says_comes_next_works(workplace):
    written = adyton("init", "Mein Übungsplatz")
    assert (written.returncode, written.stderr) == (0, "")
    project = workplace / "Mein Übungsplatz"
    assert sorted(os.listdir(project)) == sorted(FILES)
    enter, run, inspect, test = commands_of(written.stdout)
    assert enter == "cd 'Mein Übungsplatz'"
    assert (run, inspect, test) == (
        'adyton run quickstart -- --message "Asylo Rocks"',
        "adyton inspect build/demo_enclave.enclave",
        "python -m pytest",
    )
    for line in (run, run.replace(" --", " --policy policy.toml --", 1)):
        command = line.replace("adyton", f"{sys.executable} -m adyton.cli", 1)
        ran = subprocess.run(["/bin/sh", "-c", command], cwd=project, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        title, sealed = ran.stdout.splitlines()
        assert title == "Encrypted message:"
        assert re.fullmatch(r"[0-9a-f]{78}", sealed)
        assert AeadCryptor.aes_gcm_siv(bytes(range(16))).open(bytes.fromhex(sealed)) == b"Asylo Rocks"
    assert adyton(*inspect.split()[1:], cwd=project).returncode == 0
    assert tomllib.loads((project / "pyproject.toml").read_text())["project"]["name"] == "mein-ubungsplatz"


def test_the_projects_own_test_passes_without_a_sandbox(workplace):
    adyton("init")
    environment = {**os.environ, "PATH": "/nowhere"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tested = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert tested.returncode == 0, tested.stdout
    assert "4 passed" in tested.stdout


def test_init_here_says_no_cd(workplace):
    written = adyton("init")
    assert len(commands_of(written.stdout)) == 3
    assert sorted(os.listdir(workplace)) == sorted(FILES)


def test_init_as_json(workplace):
    written = adyton("init", "--json", "demo")
    assert json.loads(written.stdout) == {"path": str(workplace / "demo"), "files": list(FILES)}
    refused = adyton("init", "--json", "demo")
    assert (refused.returncode, refused.stderr) == (2, "")
    assert json.loads(refused.stdout)["error"]["exit_code"] == 2


@pytest.mark.parametrize("present", [["pyproject.toml"], ["test_demo.py", "policy.toml"], ["dangling"]])
def test_nothing_is_overwritten(workplace, present):
    if present == ["dangling"]:
        present = ["demo_driver.py"]
        Path("demo_driver.py").symlink_to("missing")
    for name in present:
        if not os.path.lexists(name):
            Path(name).write_text("mine")
    refused = adyton("init", ".")
    assert (refused.returncode, refused.stdout) == (2, "")
    for name in present:
        assert name in refused.stderr
    assert "nothing is overwritten" in refused.stderr
    assert sorted(os.listdir()) == sorted(present)
    assert all(os.path.islink(name) or Path(name).read_text() == "mine" for name in present)


@pytest.mark.parametrize(
    ("directory", "text"),
    [("file", "file is a file: name a folder"), ("file/x", "cannot be made"), ("/proc/x", "cannot be made")],
)
def test_folders_that_cannot_be_had(workplace, directory, text):
    Path("file").touch()
    refused = adyton("init", directory)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert text in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_what_was_begun_is_taken_back_when_the_disk_is_full(workplace, monkeypatch):
    from adyton.cli import init
    from adyton.errors import UsageError

    monkeypatch.setattr(init, "FILES", (*FILES[:2], "x" * 300))  # a name that no file system takes
    with pytest.raises(UsageError, match="nothing can be written into"):
        init.write_project("demo")
    assert os.listdir("demo") == []


def test_init_writes_what_the_quickstart_is():
    assert (TEMPLATES / "demo_driver.py").read_bytes() == (QUICKSTART / "demo_driver.py").read_bytes()
    ours, theirs = (
        (folder / "demo_enclave.py").read_text().splitlines(keepends=True) for folder in (TEMPLATES, QUICKSTART)
    )
    changes = [line for line in difflib.ndiff(ours, theirs) if not line.startswith(("  ", "?"))]
    assert all(line.startswith("+ ") for line in changes)
    assert sum(1 for line in changes if line.strip() != "+") == 3  # the quickstart's own .proto: needs a compiler
    ours, theirs = (
        tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["adyton"] for folder in (TEMPLATES, QUICKSTART)
    )
    assert ours["loader"] == theirs["loader"]
    assert ours["enclave"]["demo_enclave"]["entry"] == theirs["enclave"]["demo_enclave"]["entry"]
    assert Policy.read(TEMPLATES / "policy.toml").expect is not None
    assert sorted(each.name for each in TEMPLATES.iterdir() if each.is_file()) == sorted(FILES)


def test_the_wheel_holds_the_projects_files(tmp_path):
    source = tmp_path / "source"
    skip = shutil.ignore_patterns("__pycache__", "*_pb2.py*")
    shutil.copytree(ROOT / "src", source / "src", ignore=skip)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=100, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        for name in FILES:
            assert opened.read(f"adyton/cli/new_project/{name}") == (TEMPLATES / name).read_bytes()
        assert "adyton/enclave_pb2.py" in opened.namelist()
