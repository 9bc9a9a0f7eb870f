"""Modules of .proto files, for the image and for its driver.

protoc only parses: the module is made here, from the file's descriptor. Its bytes then depend on the .proto file alone, not on the
version of protoc, and the runtime's own version of protobuf reads it whatever the builder had.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from adyton.errors import UsageError

_PROVIDED = ("adyton/", "google/protobuf/")  # imports whose modules the runtime has
_TEMPLATE = '''\
"""Messages of {name}; made by adyton."""

from importlib import import_module as _import

from google.protobuf import descriptor_pool as _pool
from google.protobuf.internal import builder as _builder

{imports}
DESCRIPTOR = _pool.Default().AddSerializedFile(
    {descriptor!r}
)
_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, {module!r}, globals())
'''


def compile_protos(files: Mapping[str, bytes], where: str) -> dict[str, bytes]:
    """Modules by path ("pkg/demo_pb2.py") of .proto files by path ("pkg/demo.proto").

    They may import each other, adyton's own ("adyton/enclave.proto") and protobuf's. UsageError: protoc's message, or it is missing.
    """
    if not files:
        return {}
    return dict(sorted(_module(each) for each in _descriptors(files, where)))


def _module_name(proto: str) -> str:
    """As protoc names it."""
    return proto.removesuffix(".proto").replace("-", "_").replace("/", ".") + "_pb2"


def _module_path(proto: str) -> str:
    return _module_name(proto).replace(".", "/") + ".py"


def _descriptors(files: Mapping[str, bytes], where: str) -> Iterator[FileDescriptorProto]:
    if importlib.util.find_spec("grpc_tools") is None:
        raise UsageError(f"{where}: .proto files need protoc: install it with `pip install 'adyton[build]'`")
    own = importlib.util.find_spec("adyton")
    assert own is not None
    adyton_parents = [os.path.dirname(os.path.abspath(path)) for path in own.submodule_search_locations or ()]
    with tempfile.TemporaryDirectory(prefix="adyton-proto-") as folder:
        for path, content in files.items():
            target = os.path.join(folder, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as file:
                file.write(content)
        output = os.path.join(folder, ".descriptors")
        command = [sys.executable, "-P", "-m", "grpc_tools.protoc", "-I.", *(f"-I{path}" for path in adyton_parents)]
        command += [f"--descriptor_set_out={output}", *sorted(files)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            raise UsageError(f"{where}: a .proto file cannot be compiled:\n{done.stderr.strip()}")
        with open(output, "rb") as file:
            descriptors = FileDescriptorSet.FromString(file.read())
    for descriptor in descriptors.file:
        for imported in descriptor.dependency:
            if imported not in files and not imported.startswith(_PROVIDED):
                raise UsageError(f"{where}: {descriptor.name} imports {imported}: add that to `sources`")
        yield descriptor


def _module(descriptor: FileDescriptorProto) -> tuple[str, bytes]:
    public = {descriptor.dependency[index] for index in descriptor.public_dependency}
    imports = [
        f"from {_module_name(each)} import *" if each in public else f"_import({_module_name(each)!r})"
        for each in descriptor.dependency
    ]
    text = _TEMPLATE.format(
        name=descriptor.name,
        imports="".join(f"{line}\n" for line in imports),
        descriptor=descriptor.SerializeToString(deterministic=True),
        module=_module_name(descriptor.name),
    )
    return _module_path(descriptor.name), text.encode()
