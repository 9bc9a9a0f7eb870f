"""gRPC without its EventEngine, in a process of ours that relays: there each byte passes through up to three threads of that."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec

_VARIABLE = "GRPC_EXPERIMENTS"  # https://github.com/grpc/grpc/blob/master/doc/environment_variables.md
_OFF = "-event_engine_client,-event_engine_listener"
_LAST = (1, 85)  # grpcio's last version that is known to know these: one that does not says so on standard error


def keep_off() -> None:
    """Before grpc is imported, for then it reads its variables; what the environment says of experiments is left as it is."""
    if _VARIABLE not in os.environ and _grpcio_version() <= _LAST:
        os.environ[_VARIABLE] = _OFF


def _grpcio_version() -> tuple[int, int]:
    """Without an import of grpc."""
    spec = find_spec("grpc")
    assert spec is not None
    assert spec.origin is not None
    with open(os.path.join(os.path.dirname(spec.origin), "_grpcio_metadata.py")) as file:
        found = re.search(r'"(\d+)\.(\d+)', file.read())
    assert found is not None
    return int(found[1]), int(found[2])
