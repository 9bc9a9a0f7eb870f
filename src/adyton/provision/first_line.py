"""How the first line of a proxy server begins, which whoever started it waits for. What it says follows."""

from __future__ import annotations

LISTENING = "adyton proxy listening on "  # … the address
CONNECTED = "adyton proxy connected to "  # … the client's address
