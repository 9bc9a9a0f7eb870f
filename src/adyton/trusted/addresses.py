"""Addresses as an enclave's code gives them: HOST:PORT."""

from __future__ import annotations

import re

from adyton.errors import UsageError

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):(\d{1,5})")


def host_and_port(address: str, where: str, least: int = 1) -> tuple[str, int]:
    """UsageError, which begins with `where`: it is none, or its port is below `least`."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not least <= int(match[2]) < 65536:
        raise UsageError(f"{where}: write HOST:PORT, an IPv6 address in brackets")
    return match[1].strip("[]"), int(match[2])
