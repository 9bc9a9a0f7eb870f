"""From a folder into which wheels were installed to a layer: the same bytes whatever installed them.

What counts are the files that the packages' RECORDs list, each with the hash that it must have. Left out is what an installer adds or
what is no use in an enclave: its own notes, scripts (no program is started from them) and bytecode (nobody measured it; whoever
unpacks compiles). RECORD is written anew, for importlib.metadata. `.pth` files are data: nothing in an enclave executes them.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import BinaryIO

from adyton.errors import ImageError, UsageError
from adyton.image import archive

_INSTALLERS = frozenset(
    [
        "INSTALLER",
        "REQUESTED",
        "RECORD",
        "RECORD.jws",
        "RECORD.p7s",
        "direct_url.json",
        "uv_build.json",
        "uv_cache.json",
    ]
)
_SCRIPTS = ("bin", "Scripts")
_PIECE = 1 << 20

# Where the runtime's own packages are imported from: an image that had them would say something else than what runs.
_RUNTIMES = ("adyton", "msgspec", "google/protobuf", "google/_upb", "cryptography", "cffi", "_cffi_backend")


def distributions(folder: str) -> dict[str, PathDistribution]:
    """The packages in the folder by their information's folder, sorted."""
    return {path.name: PathDistribution(path) for path in sorted(Path(folder).glob("*.dist-info"))}


def write_layer(folder: str, file: BinaryIO, where: str) -> tuple[str, int]:
    """Write the layer of the packages in `folder`: its digest and size in bytes.

    UsageError: two packages have the same file, or one has a file that cannot be in an image; ImageError: a file is not what its
    package's RECORD says.
    """
    kept = dict[str, list[tuple[str, str, str]]]()
    hashes = dict[str, tuple[str, str]]()  # path → hash as RECORD spells it, and the package
    strays = set[str]()
    for name, each in distributions(folder).items():
        kept[name] = list(_kept(each, name))
        for path, digest, _ in kept[name]:
            if hashes.setdefault(path, (digest, name))[0] != digest:
                if "/" not in path and not path.endswith((".py", ".so")):
                    strays.add(path)  # a licence or the like, where it does not belong: nobody can say whose is there
                    continue
                raise UsageError(f"{where}: {hashes[path][1]} and {name} both have a file {path}, and not the same one")
            _check_place(path, name, where)
    records = {
        f"{name}/RECORD": _record([*(line for line in lines if line[0] not in strays), (f"{name}/RECORD", "", "")])
        for name, lines in kept.items()
    }
    state, size = hashlib.sha256(), 0

    def put(data: bytes) -> None:
        nonlocal size
        file.write(data)
        state.update(data)
        size += len(data)

    for path in sorted([*(hashes.keys() - strays), *records], key=lambda each: each.encode("utf-8", "surrogatepass")):
        if path in records:
            length, content = len(records[path]), iter([records[path]])
        else:
            length, content = _content(folder, path, *hashes[path])
        try:
            put(archive.header(path, length))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        for piece in content:
            put(piece)
        put(bytes(-length % archive.BLOCK))
    put(bytes(2 * archive.BLOCK))
    return f"sha256:{state.hexdigest()}", size


def _kept(distribution: PathDistribution, name: str) -> Iterator[tuple[str, str, str]]:
    """Path, hash and size, as RECORD has them, of the files that go into a layer."""
    text = distribution.read_text("RECORD")
    if text is None:
        raise ImageError(f"{name} has no RECORD: it does not come from a wheel")
    for line in csv.reader(text.splitlines()):
        if not line:
            continue
        path, digest, size = (*line, "", "")[:3]
        parts = path.split("/")
        own = len(parts) == 2 and parts[0] == name and parts[1] in _INSTALLERS
        if own or parts[0] in (*_SCRIPTS, "..") or os.path.isabs(path) or "__pycache__" in parts:
            continue
        yield path, digest, size


def _check_place(path: str, name: str, where: str) -> None:
    for own in _RUNTIMES:
        if path == own or path.startswith((f"{own}/", f"{own}.")):
            raise UsageError(f"{where}: {name} has {path}, which would take the place of the runtime's own {own}")


def _record(lines: list[tuple[str, str, str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(sorted(lines))
    return buffer.getvalue().encode()


def _content(folder: str, path: str, digest: str, name: str) -> tuple[int, Iterator[bytes]]:
    """Length and bytes of an installed file, whose hash is looked at when the last of them is taken."""
    source = os.path.join(folder, path)
    wrong = ImageError(f"{path} of {name} is not what the package's RECORD says")
    if os.path.islink(source) or not os.path.isfile(source):
        raise wrong
    algorithm, _, expected = digest.partition("=")
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise wrong
    length = os.stat(source).st_size

    def pieces() -> Iterator[bytes]:
        state, left = hashlib.new(algorithm), length
        with open(source, "rb") as file:
            while left and (piece := file.read(min(left, _PIECE))):
                state.update(piece)
                left -= len(piece)
                yield piece
        if left or base64.urlsafe_b64encode(state.digest()).rstrip(b"=").decode() != expected:
            raise wrong

    return length, pieces()
