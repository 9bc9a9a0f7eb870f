"""Which modules a Python that a program starts does not take from its working directory."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_programs import PROGRAM

import adyton

RUN = "subprocess.run(['python', *{}], cwd={!r}, capture_output=True, text=True, input='import {}').stdout"


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory directly in /tmp, with a program."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as name:
        directory = Path(name)
        (directory / "prog.py").write_text(PROGRAM)
        yield directory


@pytest.mark.sandbox
def test_none_that_the_client_has_laid_into_the_private_tmp(beside, monkeypatch):
    monkeypatch.chdir("/var")
    allowed = beside.with_suffix(".py")
    name = allowed.stem
    allowed.write_text("print('the client decides what runs')")
    try:
        with adyton.load(beside / "prog.py", allow_read=[str(allowed)]) as loaded:
            assert name in loaded.call("attempt", "os.listdir('/tmp')")
            for arguments in (["-m", name], ["-c", f"import {name}"], []):
                assert loaded.call("attempt", RUN.format(arguments, "/tmp", name)) == "''"
    finally:
        allowed.unlink()


@pytest.mark.sandbox
def test_none_of_the_clients_when_the_program_goes_there_later(beside, monkeypatch):
    (beside / "spam.py").write_text("print('the client decides what runs')")
    monkeypatch.chdir(beside)
    with adyton.load("prog.py", allow_read=["."]) as loaded:
        loaded.call("execute", "os.mkdir('/tmp/made'); open('/tmp/made/ham.py', 'w').write('print(1)')")
        code = f"import ham, os; os.chdir({str(beside)!r}); import spam"
        assert loaded.call("attempt", RUN.format(["-c", code], "/tmp/made", "spam")) == repr("1\n")
        assert loaded.call("attempt", RUN.format(["-"], str(beside), "spam")) == "''"


@pytest.mark.parametrize("customized", ["", "sys.path.append('/x')", "sys.path.insert(0, '/x'); import colorsys"])
@pytest.mark.parametrize("trouble", ["", "def refused(*_): raise OSError(5, 'EIO')", "sys.modules.pop('re', None)"])
def test_none_whatever_happens_before_the_first_is_looked_for(tmp_path, customized, trouble):
    (tmp_path / "spam.py").write_text("")
    (tmp_path / "re.py").write_text("raise SystemExit('the client decides what runs')")
    code = f"""
import sys
sys.path.remove("")
from types import SimpleNamespace
from adyton.runtime.process.guest import child
site, sys.modules["site"] = sys.modules["site"], SimpleNamespace(__spec__=SimpleNamespace(_initializing=True))
sys.meta_path.insert(0, child._WorkingDirectory())
{customized}
sys.modules["site"] = site
sys.path.insert(0, "")
sys.modules.pop("adyton.hostcall.own_paths", None)
{trouble}
if "refused" in globals():
    child.os.stat = refused
try:
    import spam
except (ImportError, OSError):
    print("not found")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.stdout, done.stderr) == ("not found\n", "")
