"""Random numbers of a forked process that nobody else has.

OpenSSL draws its own anew where a process has another id than the one that drew them last (RAND(7)). That is not enough for a process in a pid
namespace of its own: all guests are number 2 in theirs, and in a container the zygote may be number 2 as well. Its state, and so all keys to
come, would be theirs.
"""

from __future__ import annotations

import os
import ssl

from cryptography.hazmat.bindings.openssl.binding import Binding

_SIZE = 48  # bytes: of a state


def draw_anew() -> None:
    """Have what OpenSSL gives from now on depend on new randomness of the system's: both that of `cryptography` and that of `ssl`."""
    Binding.lib.RAND_add(os.urandom(_SIZE), _SIZE, _SIZE)
    ssl.RAND_add(os.urandom(_SIZE), _SIZE)
