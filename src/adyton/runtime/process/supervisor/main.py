"""A supervisor's life, from the zygote's fork to its end: verify the image, start the guest, confine itself, serve."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import socket
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple, NoReturn

from adyton._version import __version__
from adyton.attestation.identity import EnclaveIdentity, Platform
from adyton.crypto.digest import digest_of, is_digest
from adyton.errors import ImageError, PlatformError
from adyton.image.layers import PACKAGES, LayerFile, pieces_of, unpack_layer
from adyton.image.manifest import ABI, RUNTIME_PACKAGES
from adyton.image.oci import DEPENDENCY_LAYER, Image
from adyton.image.platforms import fits, this_machine
from adyton.image.sign import verified_signature
from adyton.image.versions import spell_python, this_python
from adyton.runtime.launch import LaunchRequest
from adyton.runtime.process import attesting, idle_watch, layer_store, memory_group, mounts, root, sealed_container
from adyton.runtime.process.confine import confine_supervisor
from adyton.runtime.process.guest.run import main as guest_main
from adyton.runtime.process.guest_start import GuestSide, Limits, start_guest
from adyton.runtime.process.init import INIT, PROGRAM

STORE = "/opt/adyton/store"  # bound there by the zygote
MAX_SMALL = 1 << 20  # bytes of an OCI manifest or a signature

Report = Callable[[str | None], None]


def run(sock: socket.socket, request: LaunchRequest, report: Report) -> NoReturn:
    """Serve one enclave on `sock`, and exit. `report(None)` once it can be joined. ImageError, SignatureError, PlatformError before."""
    image = read_image(request)
    identity = identity_of(image, request.platform)
    asking = attesting.client()
    enrolled = None if asking is None else attesting.enrol(asking, identity)

    def enter(side: GuestSide) -> NoReturn:
        guest_main(side.control, side.finish)
        os._exit(0)

    stated, group = image.manifest.limits, memory_group.client()
    memory = stated.memory or root.half_of_memory()
    limits = Limits(memory, stated.threads, stated.files, stated.cpu)
    guest = start_guest(
        enter,
        _placed(image),
        lambda placed, directory: _place(placed, directory, image.manifest.programs),
        limits,
        image.manifest.programs,
        image.manifest.time == "client",
        meanwhile=_load_the_rest,
        join=(lambda _process: None) if group is None else group.join,
    )

    from adyton.allocator import keep_freed_memory
    from adyton.attestation.sealing.keys import Keys, RootKeys, Sealing
    from adyton.attestation.sealing.roots import SimulatedRoot
    from adyton.runtime.process.supervisor.clock import Clock
    from adyton.runtime.process.supervisor.disk_thread import DiskThread
    from adyton.runtime.process.supervisor.fetching import Fetcher
    from adyton.runtime.process.supervisor.files import FileServer
    from adyton.runtime.process.supervisor.guest_process import Program
    from adyton.runtime.process.supervisor.links import Links
    from adyton.runtime.process.supervisor.memory_watch import MemoryWatch
    from adyton.runtime.process.supervisor.proving import by_hardware, simulated
    from adyton.runtime.process.supervisor.rescue import Rescue
    from adyton.runtime.process.supervisor.sealed_loading import SealedSettings
    from adyton.runtime.process.supervisor.sealing_keys import AskedKeys
    from adyton.runtime.process.supervisor.serve import Supervisor
    from adyton.runtime.process.supervisor.socket_memory import listed
    from adyton.runtime.process.supervisor.thread_numbers import ThreadNumbers
    from adyton.runtime.process.supervisor.wanted import GuestThreads

    keep_freed_memory()
    program = Program(
        image.manifest.entry,
        [entry.name for entry in image.manifest.entries],
        identity.debug,
        image.manifest.names_broker,
    )
    clock = Clock(guest.clock)
    inside = ThreadNumbers().inside
    threads = GuestThreads(PROGRAM, ".", INIT, inside)
    files = FileServer(wanted=threads.wanted, now=clock.now)
    fetcher = Fetcher(guest.pid, Links(inside, "."))
    watch = MemoryWatch(guest.init, memory, guest.diagnosis, idle=idle_watch.client(), group=group)
    if group is not None:
        group.bound(watch.wall + limits.kept)
    keys: Keys = RootKeys(identity, SimulatedRoot()) if enrolled is None else AskedKeys(enrolled)
    container, memory_of_others = sealed_container.taken()
    disk = DiskThread() if memory_of_others is not None else None
    supervisor = Supervisor(
        *(sock, guest, program, identity, simulated(identity) if enrolled is None else by_hardware(identity, enrolled)),
        *(files, lambda: report(None)),
        fetcher=fetcher,
        directory=threads.directory,
        clock=clock,
        watch=watch,
        sealed=SealedSettings(
            Sealing(identity, keys),
            image.manifest.seals_to,
            image.manifest.demands_memory,
            *(container, memory_of_others, disk),
        ),
        lists=listed(guest.diagnosis) is not None,
        grace=request.grace,
    )
    assert supervisor.fuse is not None
    rescue = Rescue(guest.init, supervisor.fuse)
    confine_supervisor(
        guest.proc,
        rescue.start,
        fetcher.start,
        watch.start,
        supervisor.output.start,
        *([] if disk is None else [disk.start]),
    )
    reason = supervisor.run()
    report(reason or "the enclave ended before it was ready")  # says nothing if it was
    os._exit(0)


def _load_the_rest() -> None:
    """What only the supervisor needs, loaded after the guest was forked: the guest's memory has nothing of it."""
    for name in ("serve", "wanted"):
        importlib.import_module(f"adyton.runtime.process.supervisor.{name}")


class _Placed(NamedTuple):
    """What goes into the guest's /enclave: a layer to unpack there, or the folder of one that is unpacked already."""

    layer: LayerFile | None
    folder: str = ""


def _placed(image: Image) -> list[_Placed]:
    """Every byte of it verified; ImageError, ResourceLimitError, PlatformError."""
    placed, unpacked = [], layer_store.client()
    for each in image.layer_descriptors:
        if each.media_type == DEPENDENCY_LAYER:
            placed.append(_Placed(None, unpacked.unpacked(each.digest, each.size)))
        else:
            image.blobs[each.digest].verify()
            placed.append(_Placed(LayerFile(each.digest, each.size, _path(each.digest))))
    unpacked.close()
    return placed


def _place(placed: _Placed, directory: str, programs: Collection[str]) -> None:
    if placed.layer is not None:
        unpack_layer(placed.layer, directory, programs)
        return
    target = f"{directory}/{PACKAGES}"
    os.mkdir(target, 0o755)
    mount = mounts.clone(placed.folder)
    mounts.restrict(mount, mounts.READ_ONLY | mounts.NO_SUID | mounts.NO_DEV)
    mounts.attach(mount, target)


def read_image(request: LaunchRequest) -> Image:
    """The image that was asked for, from the store: manifest and signatures, verified. ImageError, PlatformError."""
    manifest = _blob(request.measurement, MAX_SMALL)
    signatures = [_blob(digest, MAX_SMALL) for digest in request.signatures]
    image = Image.from_store(manifest, _pieces, signatures)
    check_image(image)
    return image


def check_image(image: Image) -> None:
    """PlatformError: it does not run here."""
    have = spell_python(this_python())
    if not image.manifest.runs_on_python(this_python()):
        raise PlatformError(
            f"the image {image.manifest.name} runs on Python {image.manifest.python}; this server has {have}: build it with --python"
            f" {have} if the program can (its `python`, of a .py file requires-python), or load it where there is such a Python"
        )
    machine, glibc = this_machine()
    if not fits(image.manifest.platforms, machine, glibc):
        raise PlatformError(
            f"the image {image.manifest.name} has compiled code for {', '.join(image.manifest.platforms)}; this server has"
            f" {f'glibc {glibc}' if glibc else 'another C library'} on {machine}: build it for that, with `platform` in its"
            " table of pyproject.toml, or on such a machine, or load it where it fits"
        )
    if image.manifest.runtime != "process" or image.manifest.abi != ABI:
        raise PlatformError(
            f"the image wants runtime {image.manifest.runtime} with ABI {image.manifest.abi}; this server has process with {ABI}"
        )


def _path(digest: str) -> str:
    """Where a blob is. ImageError: nowhere."""
    if not is_digest(digest):
        raise ImageError(f"{digest[:80]!r} is not a digest")
    path = f"{STORE}/blobs/sha256/{digest[7:]}"
    if not os.path.exists(path):
        raise ImageError(f"blob {digest} is not in the server's store")
    return path


def _pieces(digest: str, size: int) -> Iterator[bytes]:
    return pieces_of(_path(digest), 0, size + 1)


def _blob(digest: str, limit: int) -> bytes:
    data = b"".join(_pieces(digest, limit))
    if len(data) > limit or digest_of(data) != digest:
        raise ImageError(f"blob {digest} in the server's store is damaged")
    return data


def runtime_digest() -> str:
    """Reference value of the runtime as `sim` states it: what it is made of, which no hardware vouches for."""
    parts = {"abi": ABI, "adyton": __version__, "python": platform.python_version(), **RUNTIME_PACKAGES}
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def identity_of(image: Image, where: Platform) -> EnclaveIdentity:
    """What is known here of what evidence will say of the enclave; SignatureError unless the image has a signature that holds.

    Of a runtime and a machine that hardware vouches for, nothing is.
    """
    signature = verified_signature(image, accept_debug=True)
    return EnclaveIdentity(
        platform=where,
        measurement=image.measurement,
        signer=signature.signer,
        product_id=signature.product_id,
        security_version=signature.security_version,
        debug=signature.debug,
        runtime=runtime_digest() if where == "sim" else "",
        machine="",
    )
