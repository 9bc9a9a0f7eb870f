"""What benchmarks of many rows have in common: which rows, how they are printed, and the file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import adyton

VERDICT = {None: "", True: "met", False: "MISSED"}  # of a goal


def chosen(parser: argparse.ArgumentParser, text: str, names: Iterable[str]) -> list[str]:
    """The names in a text, separated by commas or spaces; all if it has none. Exits if there is no such name."""
    only = [each for each in text.replace(" ", ",").split(",") if each] or list(names)
    if unknown := set(only) - set(names):
        parser.error(f"nothing is named {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    return only


def line(texts: Sequence[str], widths: Sequence[int], left: Container[int]) -> None:
    """Print columns; those with the numbers in `left` to the left."""
    cells = [
        f"{text:<{width}}" if number in left else f"{text:>{width}}"
        for number, (text, width) in enumerate(zip(texts, widths, strict=True))
    ]
    print("  ".join(cells).rstrip(), flush=True)


def write(rows: Sequence[Any], sizes: object, path: Path) -> None:
    """As JSON, with what tells the machine."""
    machine = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "adyton": adyton.__version__,
    }
    path.parent.mkdir(exist_ok=True)
    document = {"machine": machine, "sizes": vars(sizes), "rows": [vars(row) for row in rows]}
    path.write_text(json.dumps(document, indent=2) + "\n")
