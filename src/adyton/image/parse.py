"""Python's parser, for one thread at a time.

CPython counts how deep a syntax tree is per interpreter, so two threads that make trees at once can both fail, with SystemError
(python/cpython issue 106905); and the warnings that it issues are silenced for the whole process.
"""

from __future__ import annotations

import ast
import threading
import warnings

_one_at_a_time = threading.Lock()


def parse_module(source: bytes, name: str) -> ast.Module:
    """The tree of a module's source. SyntaxError, ValueError, RecursionError."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source, name)


def parse_expression(source: str) -> ast.expr:
    """The tree of an expression. SyntaxError, ValueError, RecursionError."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source, mode="eval").body
