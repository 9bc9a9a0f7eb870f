"""The examples that run here: each by its one command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from command import ROOT

EXAMPLES = ROOT / "examples"
PAUSE = "The longest pause between two heartbeats: 1.94 s\n"


def run(name: str, *arguments: str, python: str = sys.executable, cwd: Path | str = ROOT, **environment: str):
    """`python examples/NAME/run.py ARGUMENTS`, with more environment."""
    return subprocess.run(
        [python, str(EXAMPLES / name / "run.py"), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_each_example_is_in_the_readme_and_has_its_command():
    readme = (ROOT / "README.md").read_text()
    for folder in sorted(each.name for each in EXAMPLES.iterdir() if (each / "run.py").exists()):
        assert f"make example-{folder}" in readme


# -- hello -------------------------------------------------------------------------------------------------------------


@pytest.mark.sandbox
def test_hello_counts_its_visitors(workplace):
    hello = run("hello", "--names=Alice,Bob", cwd=workplace)
    assert hello.returncode == 0, hello.stderr
    assert hello.stdout == (
        "Message from enclave: Hello Alice! You are visitor #1 to this enclave.\n"
        "Message from enclave: Hello Bob! You are visitor #2 to this enclave.\n"
    )
    assert f"Loading {EXAMPLES}/hello/hello_enclave.py\n" in hello.stderr


@pytest.mark.sandbox
def test_hello_on_a_server_starts_to_count_anew(server):
    for _ in range(2):
        hello = run("hello", "--names=Ann", ADYTON_ON=server, ADYTON_ALLOW_SIM="1")
        assert hello.stdout == "Message from enclave: Hello Ann! You are visitor #1 to this enclave.\n", hello.stderr


@pytest.mark.parametrize("names", ["", " , "])
def test_hello_wants_names(names):
    hello = run("hello", f"--names={names}")
    assert (hello.returncode, hello.stdout) == (2, "")
    assert hello.stderr == 'Must supply a non-empty list of names with --names, such as --names="Alice,Bob".\n'


# -- edge --------------------------------------------------------------------------------------------------------------


def _base_distributions() -> set[str]:
    """The distributions that adyton needs without extras, itself included."""
    found: set[str] = set()
    wanted = ["adyton"]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        for requirement in importlib.metadata.requires(name) or ():
            needed = re.match(r"[\w.-]+", requirement)
            assert needed is not None
            marker = requirement.partition(";")[2]
            if "extra ==" not in marker and _installed(needed[0]):
                wanted.append(needed[0])
    return found


def _installed(name: str) -> bool:
    """Whether the distribution is installed: those that a marker excludes for this Python are not."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> str:
    """The Python of a fresh virtual environment that holds nothing but adyton and its base dependencies."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for name in _base_distributions():
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and source.suffix != ".pyc" and source.is_file():
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    return str(folder / "bin" / "python")


@pytest.mark.sandbox
def test_edge_needs_the_base_dependencies_only(bare_python, server):
    probe = "import importlib.util, sys; sys.exit(any(map(importlib.util.find_spec, ('grpc_tools', 'pytest', 'pip'))))"
    assert subprocess.run([bare_python, "-c", probe], check=False).returncode == 0
    here = run("edge", python=bare_python)
    assert (here.returncode, here.stdout) == (0, PAUSE), here.stderr
    there = run("edge", python=bare_python, ADYTON_ON=server, ADYTON_ALLOW_SIM="1")
    assert (there.returncode, there.stdout) == (0, PAUSE), there.stderr


@pytest.mark.sandbox
def test_edge_runs_from_any_folder(workplace):
    edge = run("edge", cwd=workplace)
    assert (edge.returncode, edge.stdout) == (0, PAUSE), edge.stderr


def test_edge_without_its_server_is_one_line():
    edge = run("edge", ADYTON_ON="grpc://127.0.0.1:1")
    assert (edge.returncode, edge.stdout) == (10, "")
    assert edge.stderr.startswith("edge: cannot reach 127.0.0.1:1: ")
    assert edge.stderr.count("\n") == 1


# -- secure_grpc -------------------------------------------------------------------------------------------------------


@pytest.mark.sandbox
@pytest.mark.skipif(platform.machine() != "x86_64", reason="NOT X86-64: an image is for that machine by default")
def test_two_enclaves_speak_grpc_and_refuse_two_others(tmp_path, environment_of_wheels, cache_of_tests):
    project = tmp_path / "secure_grpc"
    shutil.copytree(
        EXAMPLES / "secure_grpc", project, ignore=shutil.ignore_patterns("build", "__pycache__", "adyton.lock")
    )
    environment = {**os.environ, **environment_of_wheels, "XDG_CACHE_HOME": str(cache_of_tests)}
    command = [sys.executable, "run.py", "--word", "istio"]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "istio: sail\n" in done.stdout
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert "does not accept this enclave" in said["The server refuses another client"]
    assert "product_id: expected 1, got 4" in said["The client refuses another server"]
    assert "product_id: expected 2, got 3" in done.stderr  # the server's own log
    assert done.stdout.count("server: asked by product 2\n") == 1


# -- broker ------------------------------------------------------------------------------------------------------------


@pytest.mark.sandbox
def test_the_broker_gives_its_secret_to_one_program_and_says_so(workplace):
    done = run("broker", "--message", "some words", cwd=workplace)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("The program's tag: ")
    assert lines[1] == "It is the secret's: True"
    assert "the broker does not give it to this enclave" in lines[2]
    assert lines[3].startswith("4 records: 1 released, 1 refused; signed by sha256:")
