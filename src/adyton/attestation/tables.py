"""Tables that people write in TOML, read strictly: what is unknown is an error that names the nearest key; among them `[expect]`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from adyton.attestation.expectation import Expectation
from adyton.attestation.identity import PLATFORMS
from adyton.crypto.digest import is_digest, is_register
from adyton.errors import UsageError

_EXPECT = tuple(each.name for each in msgspec.structs.fields(Expectation))
_DIGESTS = ("measurement", "signer", "runtime")
_T = TypeVar("_T")


def known(table: Any, keys: Collection[str], name: str, where: str | None) -> None:
    """UsageError, with the nearest key, unless `table` is one and has these keys only."""
    if not isinstance(table, Mapping):
        raise UsageError(f"{name}: {where} must be a table: write [{where}] and its keys below")
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(keys)}"
            raise UsageError(f"{name}: unknown key {f'{where}.{key}' if where else key}; {hint}")


def convert(table: Any, kind: type[_T], name: str, where: str) -> _T:
    """The table as a struct; UsageError says what of it is of the wrong kind."""
    try:
        return msgspec.convert(table, kind, strict=True)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise UsageError(f"{name}: [{where}]: {str(error).replace('`$.', f'`{where}.')}") from error


def expect_table(table: Any, name: str, below: Expectation | None = None, where: str = "expect") -> Expectation:
    """The table [expect], on top of `below`. `name`: of the file; `where`: of the table in it."""
    known(table, _EXPECT, name, where)
    if not table:
        raise UsageError(
            f"{name}: [{where}] is empty, and would accept nothing; say what evidence must hold, or leave the table out"
        )
    for item in table["platforms"] if isinstance(table.get("platforms"), list | tuple) else ():
        one_of(item, PLATFORMS, name, f"{where}.platforms")
    for key in _DIGESTS:
        for item in table[key] if isinstance(table.get(key), list | tuple) else ():
            if not isinstance(item, str) or not (is_digest(item) or (key == "runtime" and is_register(item))):
                also = ", or sha384: and the 96 of MRTD, launch digest or PCR 0" if key == "runtime" else ""
                raise UsageError(
                    f"{name}: {where}.{key}: {item!r} is no digest; write sha256: and 64 hex digits in lower case{also}"
                )
    merged = dict(table)
    for key in _EXPECT if below is not None else ():
        before = getattr(below, key)
        if key not in table:
            merged[key] = before
        elif isinstance(before, list | tuple) and isinstance(table[key], list | tuple):
            merged[key] = [*before, *(item for item in table[key] if item not in before)]
    return convert(merged, Expectation, name, where)


def one_of(item: Any, values: Collection[str], name: str, where: str) -> None:
    """UsageError, with the nearest value, for what is none of these."""
    if item not in values:
        near = difflib.get_close_matches(str(item), values, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(values)}"
        raise UsageError(f"{name}: {where}: {item!r} is unknown; {hint}")
