"""The process that unpacks a layer: what it leaves in its folder, what it says, and that it can do nothing else."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import socket
import stat

import pytest

from adyton.crypto.digest import digest_of
from adyton.image import archive
from adyton.runtime.process import libc, unpacker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: an unpacker changes its root directory and user")

PR_GET_PDEATHSIG = 2
PLACE = "/enclave/site-packages"


def run(tmp_path, layer, *, digest=None, size=None):
    """Unpack a layer in a process; what it said, its exit status, and its folder."""
    blob, folder = tmp_path / "blob", tmp_path / "folder"
    if layer is not None:
        blob.write_bytes(layer)
    folder.mkdir()
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            unpacker._MAX_MEMORY = 1 << 40  # this process may have mapped much more than a zygote has
            expected = digest or digest_of(layer), size or len(layer or b"")
            unpacker.run(str(blob), *expected, str(folder), PLACE, writing, parent, own_ids=True)
        finally:
            os._exit(77)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), folder


def test_a_layer_is_unpacked_and_compiled(tmp_path):
    files = {
        "alpha/__init__.py": b"def f():\n    return __file__\n",
        "alpha/tests/test_a.py": b"",
        "broken.py": b"def\n",
        "latin.py": b"# -*- coding: latin-1 -*-\nNAME = '\xe9'\n",
        "nul.py": b"\0",
        "table": b"1",
    }
    said, status, folder = run(tmp_path, archive.pack(files))
    assert (said, status) == (unpacker.UNPACKED, 0)
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items() if path.suffix != ".pyc"} == files
    compiled = {path.name.partition(".")[0] for path in folder.rglob("*.pyc")}
    assert {"__init__", "test_a"} <= compiled
    assert "broken" not in compiled
    for path in (folder, *folder.rglob("*")):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (unpacker.UID, unpacker.UID)
        assert stat.S_IMODE(found.st_mode) == (0o755 if path.is_dir() else 0o644)


def test_what_was_compiled_is_what_python_imports(tmp_path):
    _, _, folder = run(tmp_path, archive.pack({"alpha.py": b"VALUE = 1\n"}))
    (folder / "alpha.py").write_bytes(b"VALUE = 2\n")  # which nobody can, and so nobody looks
    spec = importlib.util.spec_from_file_location("alpha", folder / "alpha.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.VALUE == 1


@pytest.mark.parametrize(
    ("layer", "given", "says"),
    [
        (archive.pack({"a": b"1"}), {"digest": digest_of(b"another")}, b"failed:ImageError\nthe layer sha256:"),
        (archive.pack({"a": b"1"}) + bytes(512), {"size": 2048}, b"failed:ImageError\n"),
        (archive.pack({"a": b"1"})[:-700], {}, b"failed:ImageError\n"),
        (b"", {"size": 1}, b"failed:ImageError\n"),
        (None, {"digest": "sha256:" + "0" * 64}, b"failed:ImageError\nblob sha256:"),
    ],
)
def test_what_is_no_layer_or_another_is_said(tmp_path, layer, given, says):
    said, status, folder = run(tmp_path, layer, **given)
    assert said.startswith(says)
    assert status == 1
    assert not list(folder.rglob("*.pyc"))


@pytest.mark.parametrize(
    "attempt",
    [
        "os.stat('/etc/passwd')",
        "os.listdir('/proc/1')",
        "libc.system_call('clone', 17, 0, 0, 0, 0)",  # not os.fork(): what this process runs at a fork, such as gRPC's handlers, is not an unpacker's
        "os.symlink('a', 'b')",
        "os.link('a', 'b')",
        "os.mknod('a')",
        "os.chown('a', 0, 0)",
        "os.setuid(0)",
        "os.chroot('.')",
        "os.kill(1, 0)",
        "socket.socket()",
        "libc.system_call('ptrace', 0, 0, 0, 0)",
    ],
)
def test_who_takes_it_over_has_its_folder_and_nothing_else(tmp_path, monkeypatch, attempt):
    def compile_evil(place):
        try:
            eval(attempt, {"os": os, "libc": libc, "socket": socket})
        except OSError as error:
            raise RuntimeError(f"refused {error.errno}") from None
        raise RuntimeError("allowed")

    monkeypatch.setattr(unpacker, "_compile", compile_evil)
    said, _, _ = run(tmp_path, archive.pack({"a": b"1"}))
    assert said.startswith(unpacker.UNPACKED + b"failed:PlatformError")
    assert b"refused" in said


def test_it_ends_with_its_parent(tmp_path, monkeypatch):
    def tell(_):
        signal_number = ctypes.c_int()
        libc.prctl(PR_GET_PDEATHSIG, ctypes.addressof(signal_number))
        raise RuntimeError(f"signal {signal_number.value}")

    monkeypatch.setattr(unpacker, "install_filter", tell)
    said, _, _ = run(tmp_path, archive.pack({"a": b"1"}))
    assert said.endswith(b"signal 9")
