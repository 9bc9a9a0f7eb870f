"""A provision server of SGX enclaves, on a machine that has neither SGX nor Gramine: it finds stand-ins for both.

Run as a program, it is `adyton ARGUMENTS` there: with the mount of the stand-in's /dev/attestation, and without ids to give, as the stand-in's program
needs the rights that it mounts with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hardware_server import until_stopped

ROOT = "STAND_IN_ROOT"  # a variable: in hex, the root that a client there trusts
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NO ROOT HERE, SO NO STAND-IN FOR GRAMINE IN ITS PLACE")


def start_there(mount: int, path: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`adyton ARGUMENTS` where the stand-ins are. `path`: of `fake_gramine.install`."""
    return subprocess.Popen(
        [sys.executable, __file__, str(mount), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[mount],
        env={**os.environ, **environment, "PATH": path},
    )


@contextmanager
def server(mount: int, path: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL."""
    with until_stopped(start_there(mount, path, "serve", "--port", "0", "--platform", "sgx", *arguments)) as started:
        yield started


def main() -> None:
    import dcap_qvl
    from fake_gramine import HERE

    from adyton.cli import main as adyton
    from adyton.runtime.process import mounts, namespaces

    mount = int(sys.argv[1])
    devices = {name: mounts.clone(f"/dev/{name}") for name in ("null", "zero", "full", "random", "urandom", "fuse")}
    namespaces.unshare(namespaces.NEWNS)
    mounts.make_private()
    for folder in ("/dev", "/run"):
        mounts.attach(mounts.file_system("tmpfs", {"mode": "0755"}, 0), folder)
    for name, device in devices.items():
        open(f"/dev/{name}", "w").close()
        mounts.attach(device, f"/dev/{name}")
    open("/dev/sgx_enclave", "w").close()
    os.symlink("/proc/self/fd", "/dev/fd")
    os.makedirs("/var/run/aesmd")
    open("/var/run/aesmd/aesm.socket", "w").close()
    os.mkdir(HERE)
    mounts.attach(mount, HERE)
    uid, gid = os.geteuid(), os.getegid()
    namespaces.unshare(namespaces.NEWUSER | namespaces.NEWNS)
    namespaces.map_ids(uid, gid, uid, gid)
    if root := os.environ.pop(ROOT, ""):
        real = dcap_qvl.QuoteVerifier
        dcap_qvl.QuoteVerifier = lambda given=None: real(given or bytes.fromhex(root))
    del sys.argv[1]
    adyton()


if __name__ == "__main__":
    main()
