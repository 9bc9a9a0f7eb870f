"""A provision server of SEV-SNP enclaves, on a machine that has none: it finds a stand-in for configfs-tsm where the kernel's would be.

Run as a program, it is the server: with the stand-in's mount, which it attaches in a mount namespace of its own, and the server's arguments. Or it
runs the code behind "-c" there, of a machine on which everything is local.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NO ROOT HERE, SO NO STAND-IN FOR configfs IN ITS PLACE")


@contextmanager
def server(folder: str, *arguments: str, platform: str = "sev-snp") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL. `folder`: of `fake_tsm.served`."""
    mount = int(folder.rpartition("/")[2])
    process = subprocess.Popen(
        [sys.executable, __file__, str(mount), "--port", "0", "--platform", platform, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[mount],
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("adyton provision server listening on "), line + process.stderr.read()
        yield process, "grpc://" + line.rpartition(" ")[2].strip()
    finally:
        process.terminate()
        process.wait(80)
        process.stdout.close()
        process.stderr.close()


def run_there(folder: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program where the stand-in is."""
    mount = int(folder.rpartition("/")[2])
    return subprocess.run(
        [sys.executable, __file__, str(mount), "-c", code, *arguments],
        capture_output=True,
        text=True,
        pass_fds=[mount],
        timeout=100,
        check=False,
    )


def main() -> None:
    from adyton.cli import main as adyton
    from adyton.runtime.process import mounts, namespaces

    mount = int(sys.argv[1])
    namespaces.unshare(namespaces.NEWNS)
    mounts.make_private()
    mounts.attach(mounts.file_system("tmpfs", {"mode": "0755"}), "/sys/kernel")
    os.makedirs("/sys/kernel/config/tsm/report")
    mounts.attach(mount, "/sys/kernel/config/tsm/report")
    if sys.argv[2] == "-c":
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
    sys.argv[1:2] = ["serve"]
    adyton()


if __name__ == "__main__":
    main()
