"""A provision server of enclaves on hardware, on a machine that has none: it finds stand-ins where the kernel's interfaces would be.

Run as a program, it is the server: with the stand-ins' mounts, which it attaches in a mount namespace of its own, and the server's arguments. Or it
runs the code behind "-c" there, of a machine on which everything is local.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NO ROOT HERE, SO NO STAND-INS IN THE PLACE OF HARDWARE")
CONFIGFS = "/sys/kernel/config/tsm/report"


def _command(places: Mapping[str, str], *arguments: str) -> tuple[list[str], list[int]]:
    """And the descriptors that it needs. `places`: where a stand-in is to be found, and as which it is served."""
    mounts = {path: int(served.rpartition("/")[2]) for path, served in places.items()}
    return [sys.executable, __file__, json.dumps(mounts), *arguments], list(mounts.values())


@contextmanager
def server(
    places: Mapping[str, str], *arguments: str, platform: str = "sev-snp"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL."""
    command, mounts = _command(places, "--port", "0", "--platform", platform, *arguments)
    with until_stopped(
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=mounts)
    ) as started:
        yield started


@contextmanager
def until_stopped(process: subprocess.Popen[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A provision server that was just started, and its URL."""
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("adyton provision server listening on "), line + process.stderr.read()
        yield process, "grpc://" + line.rpartition(" ")[2].strip()
    finally:
        process.terminate()
        process.wait(80)
        sys.stderr.write(process.stderr.read())  # why a test failed
        process.stdout.close()
        process.stderr.close()


def run_there(places: Mapping[str, str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program where the stand-ins are."""
    command, mounts = _command(places, "-c", code, *arguments)
    return subprocess.run(command, capture_output=True, text=True, pass_fds=mounts, timeout=100, check=False)


def main() -> None:
    from adyton.cli import main as adyton
    from adyton.runtime.process import mounts, namespaces

    places: dict[str, int] = json.loads(sys.argv[1])
    namespaces.unshare(namespaces.NEWNS)
    mounts.make_private()
    if CONFIGFS in places:
        mounts.attach(mounts.file_system("tmpfs", {"mode": "0755"}), "/sys/kernel")
        os.makedirs(CONFIGFS)
    if any(path.startswith("/dev/") for path in places):
        _own_devices(places)
    for path, mount in places.items():
        mounts.attach(mount, path)
    if sys.argv[2] == "-c":
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
    sys.argv[1:2] = ["serve"]
    adyton()


def _own_devices(places: Mapping[str, int]) -> None:
    """A /dev in which there are places for more, and all that was there."""
    from adyton.runtime.process import mounts

    clones = {name: mounts.clone(f"/dev/{name}") for name in os.listdir("/dev") if not os.path.islink(f"/dev/{name}")}
    folders = {name for name in clones if os.path.isdir(f"/dev/{name}")}
    links = {name: os.readlink(f"/dev/{name}") for name in os.listdir("/dev") if name not in clones}
    mounts.attach(mounts.file_system("tmpfs", {"mode": "0755"}, mounts.NO_SUID), "/dev")
    for name, target in links.items():
        os.symlink(target, f"/dev/{name}")
    for name, clone in clones.items():
        path = f"/dev/{name}"
        if name in folders:
            os.mkdir(path)
        else:
            open(path, "x").close()
        mounts.attach(clone, path)
    for path in places:
        if path.startswith("/dev/"):
            open(path, "x").close()


if __name__ == "__main__":
    main()
