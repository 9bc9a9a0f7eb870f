"""What is made durable is so by its name, too: the folder that it is in is synced, and each that had to be made."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from adyton.broker.config import BrokerConfig
from adyton.config import Policy
from adyton.crypto.keys import SigningKey
from adyton.durable import make_folder
from adyton.hostcall import abi
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.runtime.process.sealed_container import sealed_place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(os.path.realpath(tmp_path))


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[], list[str]]:
    """Folders and files that were, below the test's, in order."""
    found: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        found.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), folder))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda: found


def test_a_folder_and_those_above_it(folder: Path, synced: Callable[[], list[str]]) -> None:
    make_folder(str(folder / "a/b/c"))
    assert synced() == [".", "a", "a/b"]
    assert stat.S_IMODE((folder / "a/b/c").stat().st_mode) == 0o700
    make_folder(str(folder / "a/b/c"))
    assert len(synced()) == 3
    (folder / "file").touch()
    for path in ("file", "file/d"):
        with pytest.raises(OSError, match=r"File exists|Not a directory"):
            make_folder(str(folder / path))


def test_a_servers_container(folder: Path, synced: Callable[[], list[str]]) -> None:
    with sealed_place(str(folder / "sealed/owner")) as found:
        assert set(found) == {"container", "memory"}
    assert synced() == [".", "sealed", "sealed/owner"]
    for name in ("container", "remembered"):
        (folder / "sealed/owner" / name).write_bytes(b"in use")
    with sealed_place(str(folder / "sealed/owner")):
        assert len(synced()) == 3


def test_a_clients_container(folder: Path, synced: Callable[[], list[str]]) -> None:
    container = Policy(sealed=str(folder / "sealed")).container("image")
    assert container is not None
    policy = HostCallPolicy.create(base=str(folder), container=container, write=["work"])
    executor = Executor(policy, [], denied=print, output=print)
    (folder / "work").mkdir()
    try:
        for path, number in ((container, 1), (f"{folder}/work/f", 2)):
            opened = executor.execute(abi.Open(path, number, "read-write", create=True, mode=0o600))
            assert isinstance(opened, abi.Attributes)
    finally:
        executor.close()
    assert synced() == [".", "sealed"]


def test_keys(folder: Path, synced: Callable[[], list[str]]) -> None:
    SigningKey.generate().save(folder / "k")
    assert synced() == ["k.pub", "k", "."]


def test_a_brokers_keys(folder: Path, synced: Callable[[], list[str]]) -> None:
    (folder / "secret").touch(0o600)
    (folder / "secret").write_bytes(b"s")
    (folder / "broker.toml").write_text(
        '[secret.a]\nfile = "secret"\n[secret.a.expect]\nplatforms = ["sim"]\nmeasurement = ["sha256:'
        + "ab" * 32
        + '"]\n'
    )
    BrokerConfig.read(str(folder / "broker.toml"))
    assert synced() == ["broker.key", ".", "broker.log.key.pub", "broker.log.key", "."]
