"""Names of files are bytes: what stands for them in text, and on the wire, where text is UTF-8.

    in this process    bytes that are no UTF-8 stand as U+DC80 to U+DCFF (PEP 383), as in the names that Python's os gives
    on the wire        each of these bytes stands as U+10FF00 + byte, and so does each byte of a real character of U+10FF80 to U+10FFFF,
                       which are for private use, and hardly in names

What comes in is turned back into bytes, and these into text anew: a name that is spelt in two ways on the wire is one name here. No byte
below 0x80 comes of it, so that it brings neither "/" nor NUL nor "." into a name.
"""

from __future__ import annotations

import re

LEAD = b"\xf4\x8f"  # in the UTF-8 of each character from U+10F000 on, and of no other
_ESCAPES = re.compile("[\U0010ff80-\U0010ffff]")
_UNSENDABLE = re.compile("[\udc80-\udcff\U0010ff80-\U0010ffff]")
_SURROGATES = {0x10FF00 + byte: chr(0xDC00 + byte) for byte in range(0x80, 0x100)}


def in_text(name: bytes) -> str:
    """As `os.fsdecode`, whatever the locale."""
    return name.decode("utf-8", "surrogateescape")


def in_bytes(name: str) -> bytes:
    """As `os.fsencode`, whatever the locale; UnicodeEncodeError for surrogates that stand for no byte."""
    return name.encode("utf-8", "surrogateescape")


def to_wire(name: str) -> str:
    """UnicodeEncodeError as in `in_bytes`."""
    return _UNSENDABLE.sub(lambda found: "".join(chr(0x10FF00 + byte) for byte in in_bytes(found[0])), name)


def from_wire(name: str) -> str:
    """The name as it stands in this process, whoever spelt it and how."""
    return in_text(in_bytes(name.translate(_SURROGATES))) if _ESCAPES.search(name) else name
