"""Compile adyton's .proto files when a wheel or an editable install is built; generated code is not committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileProtos(BuildHookInterface):  # type: ignore[misc]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        from grpc_tools import protoc

        source = Path(self.root) / "src"
        names = sorted(str(path.relative_to(source)) for path in (source / "adyton").glob("*.proto"))
        arguments = ["protoc", f"-I{source}", f"--python_out={source}", f"--pyi_out={source}", *names]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc failed: see the messages above")
