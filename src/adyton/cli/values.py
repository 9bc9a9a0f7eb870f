"""What options take, each with a text that says what is wrong with a value."""

from __future__ import annotations

import math
from typing import Any

import click

from adyton.cli.nearest import nearest


class OneOf(click.Choice[str]):
    """One of several words; the nearest is suggested."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """See click.Choice."""
        return f"{super().get_invalid_choice_message(value, ctx)}{nearest(str(value), list(self.choices))}"


class _Seconds(click.ParamType[float]):
    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < math.inf:
            self.fail(f"{value!r} is no number of seconds above 0, such as 2.5.", param, ctx)
        return seconds


class _Port(click.ParamType[int]):
    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536):
            self.fail(f"{value!r} is no port: it is a number from 0 to 65535.", param, ctx)
        return int(text)


SECONDS = _Seconds()
PORT = _Port()


PATH = click.Path(readable=False)  # what is wrong with a file is said by who reads it
