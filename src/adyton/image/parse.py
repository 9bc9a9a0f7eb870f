"""Python's parser, for one thread at a time.

CPython counts how deep a syntax tree is per interpreter, so two threads that make trees at once can both fail, with SystemError
(python/cpython issue 106905). The application's threads make some, too, that we know nothing of: the module traceback does for each
traceback that it formats. So what fails like that is tried again. And the warnings that the parser issues are silenced for the whole
process.
"""

from __future__ import annotations

import ast
import threading
import warnings
from typing import Literal

_TRIES = 100
_one_at_a_time = threading.Lock()


def parse_module(source: bytes, name: str) -> ast.Module:
    """The tree of a module's source. SyntaxError, ValueError, RecursionError."""
    tree = _parse(source, name, "exec")
    assert isinstance(tree, ast.Module)
    return tree


def parse_expression(source: str) -> ast.expr:
    """The tree of an expression. SyntaxError, ValueError, RecursionError."""
    tree = _parse(source, "<expression>", "eval")
    assert isinstance(tree, ast.Expression)
    return tree.body


def _parse(source: bytes | str, name: str, mode: Literal["exec", "eval"]) -> ast.AST:
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(_TRIES - 1):
            try:
                return ast.parse(source, name, mode)
            except SystemError:
                pass
        return ast.parse(source, name, mode)
