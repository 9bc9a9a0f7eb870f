"""The file tree in which a zygote, its supervisors and (in part) their guests live; nothing else of the server is in it.

    /system/                       what a guest sees, and a supervisor from its guest's start on; read-only
        usr/lib*, usr/share/…      the server's shared libraries, locales and time zones; no Python packages
        bin sbin lib*              as the server has them: links into usr, or directories of their own
        sbin/ldconfig              a listing of the libraries, and the only program in either
        etc/                       a few files written here; ld.so.cache says where the interpreter's own library is
        dev/                       null zero full random urandom, links to the standard streams, shm/
        opt/adyton/python/         the interpreter and its standard library, without site-packages
        opt/adyton/venv/           a virtual environment: Python with the image's modules and the runtime's, as programs start it
        opt/adyton/clock/          an empty directory, for the guest's clock
        opt/adyton/lib/            adyton and the libraries that are the runtime's own
        opt/adyton/channel/        those of the supervisor once more, for programs that open attested channels
    /opt/adyton/supervisor         libraries of the supervisor alone
    /bin /dev /etc /lib* /sbin /usr, /opt/adyton/lib     links to those
    /opt/adyton/python             the interpreter again: it finds its library from its own, resolved path
    /opt/adyton/store/blobs        the blob store
    /opt/adyton/layers             unpacked layers, in memory; the zygote's unpackers write there
    /opt/adyton/fuse               the FUSE device
    /proc
    /mnt                           an empty directory, where a guest builds its tree

`plan` runs in the process that starts a zygote, whose Python and installed packages are meant; `build` in the zygote.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adyton.errors import PlatformError
from adyton.image.layers import PACKAGES as DEPENDENCIES
from adyton.runtime.process import mounts
from adyton.runtime.process.guest import CLOCK

SYSTEM = "/system"
PYTHON = "/opt/adyton/python"
VENV = "/opt/adyton/venv"
LIBRARIES = "/opt/adyton/lib"
SUPERVISOR_LIBRARIES = "/opt/adyton/supervisor"
CHANNEL_LIBRARIES = (
    "/opt/adyton/channel"  # the same, for guests that open channels of their own; not among their modules before
)
STORE = "/opt/adyton/store"
LAYERS = "/opt/adyton/layers"
FUSE = "/opt/adyton/fuse"
IMAGE = "/enclave"  # where a guest sees its image
MOUNT_POINT = "/mnt"

# The runtime's own packages, and whether it can do without: those that an image may use too, and those of the supervisor alone.
PACKAGES = (
    ("adyton", True),
    ("msgspec", True),
    ("google.protobuf", True),
    ("google._upb", False),
    ("cryptography", True),
    ("cffi", False),
    ("_cffi_backend", True),
    ("pycparser", False),
)
SUPERVISOR_PACKAGES = (
    ("OpenSSL", True),
    ("typing_extensions", False),
)

# Python's own folder for modules of other origin, and what there is of them in the server's library folders.
_MASKED = ("site-packages", "dist-packages")

# Shared data that C libraries and Python read at run time, below /usr.
_SHARED = ("lib/locale", "share/locale", "share/zoneinfo")

_LOADER = re.compile(r"ld[\w.-]*\.so(\.\d+)*")

_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")

# Documentation/admin-guide/devices.txt
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}
FUSE_DEVICE = (10, 229)
_DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)

_ETC = {
    "passwd": "enclave:x:1000:1000::/enclave:/sbin/nologin\n"
    "root:x:0:0:root:/:/sbin/nologin\n"
    "nobody:x:65534:65534::/:/sbin/nologin\n",
    "group": "enclave:x:1000:\nroot:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost enclave\n::1 localhost enclave\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    # The supervisor answers there, see supervisor.sockets.resolver; the client has search lists of its own.
    "resolv.conf": "nameserver 127.0.0.53\nsearch .\noptions timeout:30 attempts:1\n",
    "services": "http 80/tcp\nhttps 443/tcp\ndomain 53/tcp\ndomain 53/udp\nssh 22/tcp\nsmtp 25/tcp\n",
    "protocols": "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\n",
}


@dataclass(frozen=True)
class Plan:
    """What to mount where. Of each mapping the keys are targets, relative to PYTHON, LIBRARIES or SUPERVISOR_LIBRARIES."""

    store: str
    python: dict[str, str]
    interpreter: str  # relative to PYTHON
    libraries: dict[str, str]
    supervisor_libraries: dict[str, str]
    mask: list[str]  # relative to PYTHON: folders whose content is not the interpreter's own
    supervisor: str  # "module:function"


def plan(store: str, supervisor: str, additions: Mapping[str, str]) -> Plan:
    """The plan for this process's interpreter and packages, and `additions` to the libraries. PlatformError if a package is missing.

    `store` must have its folder blobs.
    """
    python, interpreter, mask = _plan_python()
    return Plan(
        store=os.path.realpath(store),
        python=python,
        interpreter=interpreter,
        libraries={**_plan_libraries(PACKAGES), **additions},
        supervisor_libraries=_plan_libraries(SUPERVISOR_PACKAGES),
        mask=mask,
        supervisor=supervisor,
    )


def _plan_python() -> tuple[dict[str, str], str, list[str]]:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix = os.path.realpath(sys.base_prefix)
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    interpreter = f"bin/{name}"
    standard_library = os.path.realpath(sysconfig.get_path("stdlib", vars={"installed_base": prefix, "base": prefix}))
    python = {interpreter: executable}
    library = os.path.join(prefix, "lib")
    if prefix in ("/usr", "/usr/local") or not os.path.isdir(library):
        # Below lib is much that is not Python's.
        python[os.path.relpath(standard_library, prefix)] = standard_library
        if os.path.isdir(library):
            for entry in sorted(os.listdir(library)):
                if entry.startswith("libpython") and ".so" in entry:
                    python[f"lib/{entry}"] = os.path.join(library, entry)
    else:
        python["lib"] = library
        if not standard_library.startswith(library + os.sep):
            python[os.path.relpath(standard_library, prefix)] = standard_library
    within = os.path.relpath(standard_library, prefix)
    mask = [f"{within}/{folder}" for folder in _MASKED if os.path.isdir(os.path.join(standard_library, folder))]
    return python, interpreter, mask


def _plan_libraries(packages: Iterable[tuple[str, bool]]) -> dict[str, str]:
    libraries = {}
    for package, needed in packages:
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            spec = None
        if spec is None:
            if needed:
                raise PlatformError(
                    f"the package {package} is not installed for {sys.executable}, and enclaves need it: reinstall adyton"
                )
            continue
        target = package.replace(".", "/")
        if spec.submodule_search_locations:
            source = os.path.realpath(next(iter(spec.submodule_search_locations)))
            bundled = f"{source}.libs"  # shared libraries that a repaired wheel carries beside its package
            if os.path.isdir(bundled):
                libraries[f"{target}.libs"] = bundled
        else:
            assert spec.origin is not None
            source = os.path.realpath(spec.origin)
            target = os.path.basename(source)
        libraries[target] = source
    return libraries


def to_json(value: Plan) -> str:
    """The plan as text."""
    import json

    return json.dumps(dataclasses.asdict(value))


def from_json(text: str) -> Plan:
    """What `to_json` made."""
    import json

    return Plan(**json.loads(text))


@dataclass
class _Tree:
    """What is to be in the new root: paths absolute there."""

    binds: dict[str, str]  # target → source
    links: dict[str, str]  # target → text
    empty: list[str]  # directories, over which nothing of the server may show


def build(plan: Plan) -> None:
    """Make the tree, and make it this mount namespace's root. Needs CAP_SYS_ADMIN over the namespace."""
    tree = _tree(plan)
    # All sources are cloned first: the new root is mounted over the store's directory, the only one that surely is there.
    clones = {target: _clone(source) for target, source in tree.binds.items()}
    directories = {target for target, source in tree.binds.items() if os.path.isdir(source)}
    devices = {name: _clone_device(name) for name in ("fuse", *_DEVICES)}
    proc = _proc()
    mounts.attach(mounts.file_system("tmpfs", {"mode": "0755", "size": "4m"}, mounts.NO_SUID), plan.store)
    os.chdir(plan.store)
    os.umask(0o022)
    for target in sorted(clones):  # outer ones first
        if target in directories:
            _directory(target)
        else:
            _file(target, "")
        mounts.attach(clones[target], target[1:])
    for target, text in tree.links.items():
        _link(target, text)
    _hide(tree.empty)
    for name, text in _ETC.items():
        _file(f"{SYSTEM}/etc/{name}", text)
    _file(f"{SYSTEM}/etc/ld.so.cache", ld_so_cache(_shared_libraries(plan)))
    _virtual_environment(plan)
    _program(f"{SYSTEM}/sbin/ldconfig", "adyton.runtime.process.guest.ldconfig")
    for name, numbers in _DEVICES.items():
        _device(f"{SYSTEM}/dev/{name}", devices[name], numbers)
    for name, text in _DEVICE_LINKS:
        _link(f"{SYSTEM}/dev/{name}", text)
    _device(FUSE, devices["fuse"], FUSE_DEVICE)
    for target in (f"{SYSTEM}/dev/shm", SYSTEM + CLOCK, "/proc", MOUNT_POINT, LAYERS):  # noqa: S108 - below the new root
        _directory(target)
    for name in os.listdir(SYSTEM[1:]):
        if name != "opt":
            _link(f"/{name}", f"system/{name}")
    _link(LIBRARIES, SYSTEM + LIBRARIES)
    mounts.attach(proc, "proc")
    mounts.attach(mounts.file_system("tmpfs", {"mode": "0755", "size": layers_limit()}), LAYERS[1:])
    mounts.restrict(".", mounts.READ_ONLY, below=False)
    mounts.become_root(".")


def layers_limit() -> int:
    """Bytes of memory that unpacked layers may take, all together: as any tmpfs."""
    return half_of_memory()


def half_of_memory() -> int:
    """Bytes: of the machine's."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _tree(plan: Plan) -> _Tree:
    tree = _system()
    tree.binds[f"{STORE}/blobs"] = os.path.join(plan.store, "blobs")
    for base in (SYSTEM + PYTHON, PYTHON):
        for target, source in plan.python.items():
            text = os.readlink(source) if os.path.islink(source) else None
            if text is not None and os.sep not in text:  # libpython3.so and the like
                tree.links[f"{base}/{target}"] = text
            else:
                tree.binds[f"{base}/{target}"] = source
        tree.empty += [f"{base}/{masked}" for masked in plan.mask]
    for target, source in plan.libraries.items():
        tree.binds[f"{SYSTEM}{LIBRARIES}/{target}"] = source
    for target, source in plan.supervisor_libraries.items():
        tree.binds[f"{SUPERVISOR_LIBRARIES}/{target}"] = source
        tree.binds[f"{SYSTEM}{CHANNEL_LIBRARIES}/{target}"] = source
    return tree


def _system() -> _Tree:
    """What is shown of the server's /usr and /lib*."""
    tree = _Tree({}, {}, [f"{SYSTEM}/usr/bin", f"{SYSTEM}/usr/sbin"])
    multiarch = sysconfig.get_config_var("MULTIARCH")
    narrow = f"lib/{multiarch}" if multiarch and os.path.isdir(f"/usr/lib/{multiarch}") else "lib"
    shown = [f"/usr/{name}" for name in (narrow, "lib32", "lib64", "libx32", *_SHARED)]
    for name in _LINKS:
        path = f"/{name}"
        if os.path.islink(path):
            tree.links[f"{SYSTEM}{path}"] = os.readlink(path).lstrip("/")
        elif name.startswith("lib"):
            shown.append(path)
        else:
            tree.empty.append(f"{SYSTEM}{path}")
    if narrow != "lib":
        tree.links |= {f"{SYSTEM}/usr/lib/{name}": text for name, text in loader_links("/usr/lib").items()}
    for path in shown:
        if os.path.isdir(path) and not os.path.islink(path):
            tree.binds[SYSTEM + path] = path
            tree.empty += [f"{SYSTEM}{path}/{name}" for name in os.listdir(path) if name.startswith("python")]
    return tree


def loader_links(folder: str) -> dict[str, str]:
    """The links of a folder by which programs find the loader of shared libraries, which their header names: name → text.

    On arm64 that is /lib/ld-linux-aarch64.so.1, and the loader lies in the folder of the architecture, as ld-linux-aarch64.so.1.
    """
    found = {}
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if _LOADER.fullmatch(name) and os.path.islink(path):
            found[name] = os.readlink(path)
    return found


def _shared_libraries(plan: Plan) -> dict[str, str]:
    """Of the interpreter, which looks for them where it was installed: name → path in the tree."""
    found = {}
    for target, source in plan.python.items():
        names = os.listdir(source) if target == "lib" else [os.path.basename(target)]
        for name in names:
            if name.startswith(f"{os.path.basename(plan.interpreter).replace('python', 'libpython')}.so"):
                found[name] = f"{PYTHON}/lib/{name}"
    return found


def ld_so_cache(libraries: Mapping[str, str]) -> bytes:
    """An ld.so.cache of libraries by name, for 64-bit programs of this machine. See sysdeps/generic/dl-cache.h of glibc."""
    flags = {"x86_64": 0x0303, "aarch64": 0x0A03}.get(os.uname().machine, 0x0003)  # FLAG_ELF_LIBC6 and the machine's
    entry = struct.Struct("<iIIIQ")  # flags, name, path (offsets from the file's start), unused, required hardware
    count = len(libraries)
    strings = b""
    entries = b""
    start = 48 + entry.size * count
    for name, path in sorted(libraries.items(), reverse=True):  # ld.so halves a list that descends
        at = start + len(strings)
        entries += entry.pack(flags, at, at + len(name) + 1, 0, 0)
        strings += name.encode() + b"\0" + path.encode() + b"\0"
    head = struct.pack("<20sIIB3xI12x", b"glibc-ld.so.cache1.1", count, len(strings), 2, 0)  # 2: little-endian
    return head + entries + strings


def _virtual_environment(plan: Plan) -> None:
    """See venv(3). Its .pth is run when it starts, see guest/child.py."""
    name = os.path.basename(plan.interpreter)
    _link(f"{SYSTEM}{VENV}/bin/{name}", f"{PYTHON}/{plan.interpreter}")
    for link in ("python3", "python"):
        _link(f"{SYSTEM}{VENV}/bin/{link}", name)
        _link(f"{SYSTEM}{PYTHON}/bin/{link}", name)
    home = os.path.dirname(f"{PYTHON}/{plan.interpreter}")
    version = ".".join(map(str, sys.version_info[:3]))
    _file(f"{SYSTEM}{VENV}/pyvenv.cfg", f"home = {home}\ninclude-system-site-packages = false\nversion = {version}\n")
    lines = [IMAGE, f"{IMAGE}/{DEPENDENCIES}", LIBRARIES, "import adyton.runtime.process.guest.child"]
    _file(f"{SYSTEM}{VENV}/lib/{name}/site-packages/adyton.pth", "\n".join([*lines, ""]))


def _program(path: str, module: str) -> None:
    """The module's `main`, as a program of guests."""
    _file(path, f"#!{VENV}/bin/python3 -I\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
    os.chmod(path[1:], 0o755)  # noqa: S103


def _clone(source: str) -> int:
    mount = mounts.clone(source)
    mounts.restrict(mount, mounts.READ_ONLY | mounts.NO_SUID | mounts.NO_DEV)
    return mount


def _clone_device(name: str) -> int | None:
    try:
        return mounts.clone(f"/dev/{name}")
    except FileNotFoundError:
        return None


def _proc() -> int:
    try:
        return mounts.file_system("proc", {"hidepid": "invisible"}, mounts.NO_SUID | mounts.NO_DEV | mounts.NO_EXEC)
    except PermissionError:  # the pid namespace is not ours
        return mounts.clone("/proc")


def _hide(directories: list[str]) -> None:
    for directory in directories:
        if os.path.isdir(directory[1:]):
            empty = mounts.file_system("tmpfs", {"mode": "0555", "size": "4k"}, mounts.READ_ONLY | mounts.NO_SUID)
            mounts.attach(empty, directory[1:])
        else:
            _directory(directory)


def make_device(path: str, numbers: tuple[int, int]) -> None:
    """A character device that every user may open: each enclave is one of its own. PermissionError in a user namespace."""
    os.mknod(path, stat.S_IFCHR, os.makedev(*numbers))
    os.chmod(path, 0o666)  # noqa: S103 - mknod's mode is under the umask


def _device(path: str, clone: int | None, numbers: tuple[int, int]) -> None:
    """A device node; where only the server's own may be used, that one."""
    _directory(os.path.dirname(path))
    try:
        make_device(f".{path}", numbers)
    except PermissionError:
        if clone is None:
            raise FileNotFoundError(f"the server has no /dev/{os.path.basename(path)}") from None
        _file(path, "")
        mounts.attach(clone, path[1:])
    else:
        if clone is not None:
            os.close(clone)


def _directory(path: str) -> None:
    os.makedirs(f".{path}", exist_ok=True)


def _file(path: str, content: str | bytes) -> None:
    _directory(os.path.dirname(path))
    with open(path[1:], "wb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
        file.write(content.encode("ascii") if isinstance(content, str) else content)


def _link(path: str, text: str) -> None:
    _directory(os.path.dirname(path))
    os.symlink(text, path[1:])
