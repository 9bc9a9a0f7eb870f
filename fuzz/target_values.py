"""Fuzz target of the arguments and results of entries."""

from __future__ import annotations

import msgspec
from draw import Draw

from adyton.proto.values import Signature, decode_result


class _Point(msgspec.Struct):
    x: int
    y: float = 0.0


def _annotated(
    numbers: list[int], *rest: str, point: _Point | None = None, **more: dict[str, bytes]
) -> tuple[str, ...]:
    raise AssertionError((numbers, rest, point, more))


def _plain(first, second=None, *rest, **more):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202
    raise AssertionError((first, second, rest, more))


def value(data: bytes) -> None:
    """Arguments and results, with annotations and without."""
    draw = Draw(data)
    kind = draw.below(6)
    body = draw.rest()
    if kind < 4:
        function = (_annotated, _plain)[kind % 2]
        Signature(function).decode_arguments(body, "msgpack" if kind < 2 else "json", bulk=(b"bulk",) * (kind % 2))
    else:
        decode_result("entry", body, *([dict[str, tuple[int, ...]]] if kind == 4 else []))
