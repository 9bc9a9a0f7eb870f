"""The items that an entry gives, sent one by one as its client takes them."""

from __future__ import annotations

from typing import Any

from adyton.proto.values import encode_or_bulk
from adyton.runtime.process.guest.calls import Call


def send_all(call: Call, name: str, items: Any) -> None:
    """Of an iterable, until its end, or until nobody wants more: then it is closed, as it is after an error."""
    iterator = iter(items)
    try:
        for item in iterator:
            if not call.give(encode_or_bulk(name, item)):
                break
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


async def send_all_async(call: Call, name: str, items: Any) -> None:
    """The same of an asynchronous one. When nobody wants more, it is cancelled where it waits."""
    iterator = aiter(items)
    try:
        async for item in iterator:
            if not await call.give_async(encode_or_bulk(name, item)):
                break
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()
