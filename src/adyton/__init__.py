"""Load a confidential program into an enclave on another machine, and call it as if it were local.

    with adyton.load("pay.py", on="grpcs://tee.example", allow_read=["pay.csv"]) as pay:
        print(pay.call("mean_pay", "pay.csv"))

Importing this package loads nothing of gRPC; names are found when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adyton._version import __version__

if TYPE_CHECKING:
    from adyton.attestation.acl import AllOf, AnyOf, Not
    from adyton.attestation.expectation import Expectation
    from adyton.client import EnclaveClient
    from adyton.config import Policy
    from adyton.enclave_pb2 import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveLoadConfig
    from adyton.errors import AdytonError, EnclaveError, EnclaveTypeError
    from adyton.loader import load
    from adyton.manager import (
        EnclaveLoader,
        EnclaveManager,
        EnclaveManagerOptions,
        FakeEnclaveLoader,
        RemoteProxyClientConfig,
    )
    from adyton.proto.enclave import EnclaveOutput, user_message
    from adyton.provision.client import RemoteProvision
    from adyton.remote.address import TLS, Caller
    from adyton.remote_loader_pb2 import RemoteLoadConfig, remote_load_config
    from adyton.sgx_loader_pb2 import SgxLoadConfig, sgx_load_config

_HOME = {
    "AdytonError": "adyton.errors",
    "AllOf": "adyton.attestation.acl",
    "AnyOf": "adyton.attestation.acl",
    "Caller": "adyton.remote.address",
    "EnclaveClient": "adyton.client",
    "EnclaveConfig": "adyton.proto.enclave",
    "EnclaveError": "adyton.errors",
    "EnclaveFinal": "adyton.proto.enclave",
    "EnclaveInput": "adyton.proto.enclave",
    "EnclaveLoadConfig": "adyton.proto.enclave",
    "EnclaveLoader": "adyton.manager",
    "EnclaveManager": "adyton.manager",
    "EnclaveManagerOptions": "adyton.manager",
    "EnclaveOutput": "adyton.proto.enclave",
    "EnclaveTypeError": "adyton.errors",
    "Expectation": "adyton.attestation.expectation",
    "FakeEnclaveLoader": "adyton.manager",
    "Not": "adyton.attestation.acl",
    "Policy": "adyton.config",
    "RemoteLoadConfig": "adyton.remote_loader_pb2",
    "RemoteProvision": "adyton.provision.client",
    "RemoteProxyClientConfig": "adyton.manager",
    "SgxLoadConfig": "adyton.sgx_loader_pb2",
    "TLS": "adyton.remote.address",
    "load": "adyton.loader",
    "remote_load_config": "adyton.remote_loader_pb2",
    "sgx_load_config": "adyton.sgx_loader_pb2",
    "user_message": "adyton.proto.enclave",
}

__all__ = [
    "TLS",
    "AdytonError",
    "AllOf",
    "AnyOf",
    "Caller",
    "EnclaveClient",
    "EnclaveConfig",
    "EnclaveError",
    "EnclaveFinal",
    "EnclaveInput",
    "EnclaveLoadConfig",
    "EnclaveLoader",
    "EnclaveManager",
    "EnclaveManagerOptions",
    "EnclaveOutput",
    "EnclaveTypeError",
    "Expectation",
    "FakeEnclaveLoader",
    "Not",
    "Policy",
    "RemoteLoadConfig",
    "RemoteProvision",
    "RemoteProxyClientConfig",
    "SgxLoadConfig",
    "__version__",
    "load",
    "remote_load_config",
    "sgx_load_config",
    "user_message",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'adyton' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
