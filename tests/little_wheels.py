"""Wheels made in a test, and uv told to look for packages nowhere else."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path


class Wheels:
    """A folder of wheels. uv's cache is of this folder too, so that no test sees another's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "empty-index"
        index.mkdir(parents=True)
        self.environment = {
            "UV_FIND_LINKS": str(folder),
            "UV_DEFAULT_INDEX": index.as_uri(),
            "UV_CACHE_DIR": str(folder / "uv-cache"),
            "UV_LINK_MODE": "copy",
        }

    def add(
        self,
        name: str,
        version: str,
        files: Mapping[str, bytes] | None = None,
        *,
        requires: Iterable[str] = (),
        tag: str = "py3-none-any",
        python: str = ">=3.8",
        extras: Iterable[str] = (),
        record: str | None = None,
        build: str = "",
    ) -> Path:
        """One wheel; without `files`, a module that says its version. `record` stands in for the true one."""
        module = name.replace("-", "_")
        information = f"{module}-{version}.dist-info"
        content = dict(files if files is not None else {f"{module}.py": f"VERSION = {version!r}\n".encode()})
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", f"Requires-Python: {python}"]
        metadata += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {each}" for each in requires]
        content[f"{information}/METADATA"] = "".join(f"{line}\n" for line in metadata).encode()
        pure = str(tag.endswith("-none-any")).lower()
        content[f"{information}/WHEEL"] = (
            f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: {pure}\nTag: {tag}\n{build}".encode()
        )
        lines = [f"{path},{_hash(data)},{len(data)}\n" for path, data in content.items()]
        content[f"{information}/RECORD"] = (
            "".join([*lines, f"{information}/RECORD,,\n"]) if record is None else record
        ).encode()
        path = self.folder / f"{module}-{version}-{tag}.whl"
        with zipfile.ZipFile(path, "w") as file:
            for each, data in content.items():
                file.writestr(zipfile.ZipInfo(each), data)
        return path


def _hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
