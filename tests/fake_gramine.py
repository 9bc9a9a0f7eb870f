"""A stand-in for Gramine on a processor with SGX: its three programs, and /dev/attestation.

`gramine-sgx` gives what it starts the manifest's file system and nothing else: trusted files, each with the hash that the manifest names, memory where
that is mounted, null, zero, random and urandom in /dev, the manifest's arguments and environment. System calls that Gramine lacks fail with ENOSYS (of
Documentation/devel/features.md), AF_UNIX sockets other than streams with EPROTONOSUPPORT. MRENCLAVE is a hash of the signed manifest.
`Attestation` is /dev/attestation, over FUSE, as libos/src/fs/dev/attestation.c and fs_pseudo.c have it: written files count when they are closed, and are
each process's own. What it cannot show: SGX, an enclave's memory, Gramine's own implementation of the calls that it has, its times.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import itertools
import os
import re
import socket
import stat
import struct
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fake_intel import Intel, enclave_report
from fake_tsm import FuseServer, serve, serving

from adyton.runtime.process.supervisor import fuse_abi as abi
from adyton.runtime.process.supervisor import fuse_answers as answers
from adyton.runtime.process.supervisor.fuse_abi import FileError, Opcode

HERE = "/run/attestation"  # where the programs find the mount of `Attestation`
STAND_IN = "mrenclave"  # the file by which gramine-sgx says there what a process is measured as
# fmt: off
LACKING = (
    "bpf", "clone3", "close_range", "copy_file_range", "fanotify_init", "inotify_add_watch", "inotify_init1", "io_uring_setup",
    "kcmp", "landlock_create_ruleset", "linkat", "membarrier", "memfd_create", "mount", "move_mount", "open_tree",
    "perf_event_open", "personality", "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "pivot_root", "prctl",
    "process_vm_readv", "ptrace", "renameat2", "seccomp", "setns", "setxattr", "signalfd4", "splice", "statx",
    "symlinkat", "timerfd_create", "umount2", "unshare", "userfaultfd", "utimensat",
)
# fmt: on
# As python/graminelibos/manifest_check.py has it, of what is not insecure, debugging, or a file that anybody may change.
KNOWN = {
    "fs": {"mounts", "root", "start_dir"},
    "libos": {"entrypoint", "check_invalid_pointers"},
    "loader": {"argv", "entrypoint", "env", "gid", "log_level", "uid"},
    "sgx": {
        *("cpu_features", "debug", "edmm_enable", "enclave_size", "isvprodid", "isvsvn", "max_threads"),
        *("remote_attestation", "seal_key", "trusted_files", "use_exinfo"),
    },
    "sys": {"brk", "disallow_subprocesses", "enable_sigterm_injection", "fds", "stack"},
}
_HASH = slice(960, 992)  # ENCLAVEHASH of a SIGSTRUCT


# -- the programs ---------------------------------------------------------------------------------------------------------


def install(folder: Path, runtime: Path) -> str:
    """Put the programs in `folder`, and what they call Gramine's C library in `runtime`; a PATH with them."""
    for name in ("gramine-manifest", "gramine-sgx-sign", "gramine-sgx"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} {runtime} "$@"\n')
        program.chmod(0o755)
    with open("/proc/self/maps") as file:
        libc = re.search(r"/\S+/libc\.so\.6", file.read())
    assert libc is not None
    for path in Path(libc[0]).parent.iterdir():
        if re.fullmatch(r"(ld-linux.*|lib(c|m|dl|pthread|resolv|rt|util))\.so\.\d", path.name):
            (runtime / path.name).write_bytes(path.read_bytes())
            (runtime / path.name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def mrenclave(text: str) -> bytes:
    """What an enclave of that manifest is measured as."""
    return hashlib.sha256(text.encode()).digest()


def main(name: str, runtime: str, arguments: list[str]) -> None:
    if name == "gramine-manifest":
        template, _ = arguments
        sys.stdout.write(Path(template).read_text().replace("{{ gramine.runtimedir() }}", runtime))
    elif name == "gramine-sgx-sign":
        sign(dict(zip(arguments[::2], arguments[1::2], strict=True)))
    else:
        start(arguments[0])


def sign(options: dict[str, str]) -> None:
    """Gramine verifies no hash that the manifest names, and we neither."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(Path(options["--key"]).read_bytes(), None)
    assert isinstance(key, RSAPrivateKey)
    assert (key.key_size, key.private_numbers().public_numbers.e) == (3072, 3)
    text = Path(options["--manifest"]).read_bytes()
    for table, content in tomllib.loads(text.decode()).items():
        assert set(content) <= KNOWN[table], f"{table}: {set(content) - KNOWN[table]}"
    Path(options["--output"]).write_bytes(text)
    signature = bytearray(1808)
    signature[_HASH] = hashlib.sha256(text).digest()
    Path(options["--manifest"].removesuffix(".manifest") + ".sig").write_bytes(signature)


def start(name: str) -> None:
    """Become what the manifest says."""
    from adyton.runtime.process import mounts, namespaces

    text = Path(f"{name}.manifest.sgx").read_bytes()
    measured = Path(f"{name}.sig").read_bytes()[_HASH]
    assert hashlib.sha256(text).digest() == measured, "the manifest is not the signed one"
    manifest = tomllib.loads(text.decode())
    assert not manifest["sgx"].get("allowed_files")
    trusted = {each["uri"].removeprefix("file:"): each["sha256"] for each in manifest["sgx"]["trusted_files"]}
    namespaces.unshare(namespaces.NEWNS)
    mounts.make_private()
    new = "/run/root"
    os.makedirs(new, exist_ok=True)
    mounts.attach(mounts.file_system("tmpfs", {"mode": "0755"}, 0), new)
    assert manifest["fs"]["root"] == {"type": "tmpfs"}
    for mount in manifest["fs"]["mounts"]:
        target = new + mount["path"]
        os.makedirs(target, exist_ok=True)
        if mount.get("type") == "tmpfs":
            mounts.attach(mounts.file_system("tmpfs", {"mode": "0777"}, 0), target)
            continue
        source = mount["uri"].removeprefix("file:")
        for path, digest in trusted.items():
            if path.startswith(source + "/"):
                _copy(path, f"{target}/{path[len(source) + 1 :]}", digest)
        mounts.attach(mounts.clone(target), target)
        mounts.restrict(target, mounts.READ_ONLY)
    os.symlink("lib", f"{new}/lib64")  # where Gramine finds the loader by its name
    os.makedirs(f"{new}/dev/attestation")
    for device in ("null", "zero", "random", "urandom"):
        Path(f"{new}/dev/{device}").touch()
        mounts.attach(mounts.clone(f"/dev/{device}"), f"{new}/dev/{device}")
    Path(HERE, STAND_IN).write_bytes(measured)
    mounts.attach(mounts.clone(HERE), f"{new}/dev/attestation")
    os.chroot(new)
    os.chdir("/")
    lack()
    loader = manifest["loader"]
    os.execve(manifest["libos"]["entrypoint"], loader["argv"], loader["env"])


def _copy(source: str, target: str, digest: str) -> None:
    """Nothing, if it is not what is trusted: Gramine refuses to open that."""
    data = Path(source).read_bytes()
    if hashlib.sha256(data).hexdigest() == digest:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).write_bytes(data)
        os.chmod(target, os.stat(source).st_mode)


def lack() -> None:
    """Fail what Gramine does not have, from now on."""
    from adyton.runtime.process import namespaces
    from adyton.runtime.process.libc import install_filter
    from adyton.runtime.process.table import number

    namespaces.no_new_privileges()
    load, mask, equal, back = 0x20, 0x54, 0x15, 0x06
    program = [(load, 0, 0, 0)]
    for each in LACKING:
        program += [(equal, 0, 1, number(each)), (back, 0, 0, 0x50000 | errno.ENOSYS)]
    for each in ("socket", "socketpair"):
        program += [
            *((load, 0, 0, 0), (equal, 0, 6, number(each))),
            *((load, 0, 0, 16), (equal, 0, 4, socket.AF_UNIX)),
            *((load, 0, 0, 24), (mask, 0, 0, 0xF), (equal, 1, 0, socket.SOCK_STREAM)),
            (back, 0, 0, 0x50000 | errno.EPROTONOSUPPORT),
        ]
    program.append((back, 0, 0, 0x7FFF0000))
    install_filter(b"".join(struct.pack("=HBBI", *each) for each in program))


# -- /dev/attestation -----------------------------------------------------------------------------------------------------

_FILES = {
    **dict.fromkeys(("attestation_type", "my_target_info", "report", "quote"), 0o444),
    **dict.fromkeys(("user_report_data", "target_info"), 0o666),
    "keys/_sgx_mrenclave": 0o444,
    STAND_IN: 0o222,
}
_SIZES = {"user_report_data": 64, "target_info": 512}


class Attestation:
    """`intel`: the processor. `asked`: the report data of each quote. `refuses`: errno of all reads of that file."""

    def __init__(self, intel: Intel, kind: bytes = b"dcap") -> None:
        self._intel = intel
        self._kind = kind
        self._fuse = os.urandom(32)  # the processor's, of which sealing keys are
        self._written: dict[tuple[int, str], bytes] = {}  # by process and file
        self.asked: list[bytes] = []
        self.refuses: dict[str, int] = {}

    def content(self, process: int, name: str) -> bytes:
        if name in self.refuses:
            raise FileError(self.refuses[name])
        enclave = self._written.get((process, STAND_IN), b"")
        data = self._written.get((process, "user_report_data"), bytes(64))
        if name == "attestation_type":
            return self._kind
        if name == "my_target_info":
            return enclave.ljust(512, b"\0")
        if name == "quote":
            self.asked.append(data)
            return self._intel.quote(enclave, data)
        if name == "report":
            assert self._written.get((process, "target_info"), b"")[:32] == enclave
            return enclave_report(enclave, data).ljust(432, b"\0")
        if name.startswith("keys/"):
            return hmac.digest(self._fuse, enclave, "sha256")[:16]
        return self._written.get((process, name), b"")

    def save(self, process: int, name: str, data: bytes) -> None:
        size = _SIZES.get(name, 32)
        self._written[process, name] = data[:size].ljust(size, b"\0")


class _Server(FuseServer):
    """FUSE requests to an Attestation. Nodes are files, in the order of _FILES, behind the root and its folder."""

    def __init__(self, attestation: Attestation) -> None:
        self.attestation = attestation
        self.names = ["", "keys", *_FILES]
        self.open: dict[int, tuple[int, str, bytearray | bytes]] = {}  # process, file, content
        self.numbers = itertools.count(1)

    def _body(self, header: abi.Header, body) -> bytes | None:
        name = self.names[header.node - 1] if 0 < header.node <= len(self.names) else ""
        match header.opcode:
            case Opcode.INIT:
                minor = min(body.minor, abi.MINOR_SPOKEN)
                return answers.pack_init(answers.InitAnswer(minor, 0, 0, 16, 1 << 16, 16))
            case Opcode.LOOKUP:
                path = f"{name}/{body.name.decode()}".lstrip("/")
                if path not in self.names:
                    raise FileError(errno.ENOENT)
                node = self.names.index(path) + 1
                return answers.pack_entry(answers.EntryAnswer(node, 0, 0, self._attr(node)))
            case Opcode.GETATTR:
                return answers.pack_attr(0, self._attr(header.node))
            case Opcode.SETATTR:  # O_TRUNC
                return answers.pack_attr(0, self._attr(header.node))
            case Opcode.OPEN:
                process = _process_of(header.pid)
                writes = body.flags & os.O_ACCMODE != os.O_RDONLY
                if not _FILES[name] & (0o222 if writes else 0o444):
                    raise FileError(errno.EACCES)
                handle = next(self.numbers)
                content = bytearray() if writes else self.attestation.content(process, name)
                self.open[handle] = process, name, content
                return answers.pack_open(answers.OpenAnswer(handle, abi.OpenFlag.DIRECT_IO))
            case Opcode.READ:
                return bytes(self.open[body.handle][2][body.offset : body.offset + body.size])
            case Opcode.WRITE:
                content = self.open[body.handle][2]
                assert isinstance(content, bytearray)
                content[body.offset : body.offset + len(body.data)] = body.data
                return answers.pack_written(len(body.data))
            case Opcode.FLUSH:
                process, name, content = self.open[body.handle]
                if isinstance(content, bytearray):
                    self.attestation.save(process, name, bytes(content))
                return b""
            case Opcode.RELEASE:
                del self.open[body.handle]
                return b""
            case Opcode.OPENDIR:
                return answers.pack_open(answers.OpenAnswer(0, 0))
            case Opcode.RELEASEDIR:
                return b""
            case Opcode.FORGET | Opcode.BATCH_FORGET | Opcode.INTERRUPT | Opcode.DESTROY:
                return None
            case _:
                raise FileError(errno.ENOSYS)

    def _attr(self, node: int) -> answers.Attr:
        name = self.names[node - 1]
        mode = stat.S_IFREG | _FILES[name] if name in _FILES else stat.S_IFDIR | 0o755
        return answers.Attr(node, 0, 0, 0, 0, 0, mode, 1 if name in _FILES else 2, os.geteuid(), os.getegid())


def _process_of(thread: int) -> int:
    with open(f"/proc/{thread}/status") as file:
        return int(re.search(r"^Tgid:\s+(\d+)", file.read(), re.MULTILINE)[1])  # type: ignore[index]


@contextmanager
def served(attestation: Attestation) -> Iterator[int]:
    """A mount of it, by its descriptor."""
    with serving(lambda device: serve(device, _Server(attestation))) as path:
        yield int(path.rpartition("/")[2])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
