"""A plugin of coverage.py that has enclaves measured too: in each process that it measures, what starts a Python without `site`.

Those are a zygote's first half and the doctor's probes. Their code begins with enclave_arcs.prelude; a zygote's file tree gets that
module as one of its libraries. Nothing in the product knows of it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import enclave_arcs

FOLDER = os.path.dirname(os.path.abspath(__file__))
TABLE = os.path.join(os.path.dirname(FOLDER), ".coverage-data", "enclaves")

_BARE = [sys.executable, "-I", "-S", "-B", "-c"]


def coverage_init(registry: Any, options: Any) -> None:
    """Called by coverage.py at each of its starts; a fork starts it again."""
    del registry, options
    original = subprocess.Popen.__init__
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def init(self: Any, args: Any, *rest: Any, **named: Any) -> None:
        if not isinstance(args, list) or args[: len(_BARE)] != _BARE:
            original(self, args, *rest, **named)
            return
        with open(TABLE, "r+b") as table:
            args, kept = _measured(args, table.fileno()), (*named.pop("pass_fds", ()), table.fileno())
            original(self, args, *rest, pass_fds=kept, **named)

    subprocess.Popen.__init__ = init  # type: ignore[method-assign]


def _measured(arguments: list[str], descriptor: int) -> list[str]:
    """The command of a bare Python: -c CODE HOME [PLAN DESCRIPTOR]."""
    code, home, *others = arguments[len(_BARE) :]
    if others:
        plan = json.loads(others[0])
        plan["libraries"]["enclave_arcs.py"] = enclave_arcs.__file__
        others[0] = json.dumps(plan)
    return [*_BARE, enclave_arcs.prelude(FOLDER, descriptor, home) + code, home, *others]
