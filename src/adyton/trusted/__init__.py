"""What an enclave's code imports. It works outside an enclave too, so that entries can be run and tested as plain functions.

    enclave = trusted.Enclave("pay")

    @enclave.entry
    def mean_pay(path: str) -> float: ...

or, as in the original, a class:

    class Demo(trusted.TrustedApplication):
        def run(self, enclave_input: EnclaveInput) -> EnclaveOutput: ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adyton.proto.enclave import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput, user_message
    from adyton.trusted import channel
    from adyton.trusted.aead import AeadCryptor
    from adyton.trusted.application import Enclave, TrustedApplication, entry
    from adyton.trusted.callers import Caller, caller
    from adyton.trusted.host_functions import host_function
    from adyton.trusted.sealing import seal, unseal
    from adyton.trusted.secrets import secret
    from adyton.trusted.tracing import trace_context

_HOME = {
    "AeadCryptor": "adyton.trusted.aead",
    "Caller": "adyton.trusted.callers",
    "Enclave": "adyton.trusted.application",
    "EnclaveConfig": "adyton.proto.enclave",
    "EnclaveFinal": "adyton.proto.enclave",
    "EnclaveInput": "adyton.proto.enclave",
    "EnclaveOutput": "adyton.proto.enclave",
    "TrustedApplication": "adyton.trusted.application",
    "caller": "adyton.trusted.callers",
    "entry": "adyton.trusted.application",
    "host_function": "adyton.trusted.host_functions",
    "seal": "adyton.trusted.sealing",
    "secret": "adyton.trusted.secrets",
    "trace_context": "adyton.trusted.tracing",
    "unseal": "adyton.trusted.sealing",
    "user_message": "adyton.proto.enclave",
}

__all__ = [
    "AeadCryptor",
    "Caller",
    "Enclave",
    "EnclaveConfig",
    "EnclaveFinal",
    "EnclaveInput",
    "EnclaveOutput",
    "TrustedApplication",
    "caller",
    "channel",
    "entry",
    "host_function",
    "seal",
    "secret",
    "trace_context",
    "unseal",
    "user_message",
]


def __getattr__(name: str) -> Any:
    if name == "channel":
        return importlib.import_module("adyton.trusted.channel")
    if name not in _HOME:
        raise AttributeError(f"module 'adyton.trusted' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
