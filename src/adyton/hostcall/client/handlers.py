"""The form in which groups of host calls say what they serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adyton.hostcall import abi

# By the type of request: the name under which it is counted, and what answers it (which may raise OSError, Refused or ValueError).
Handlers = Mapping[type[Any], tuple[str, Callable[[Any], abi.Result]]]
