"""What the names in a program's modules stand for, read with `ast`: imports, aliases and definitions; nothing is executed.

A name is resolved to a dotted path, as far as the sources go: with `from adyton import trusted as t`, `t.entry` is
"adyton.trusted.entry"; with `from app.core import enclave`, `enclave` is "app.core.enclave". Only statements at a module's top level
count, those in `if`, `try` and `with` included, except what runs only as a script or only for type checkers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from adyton.errors import UsageError
from adyton.image.parse import parse_module

_MAX_HOPS = 64  # re-exports that are followed for one name
_PRIVATE_HOME = "adyton.trusted.application."  # where what adyton.trusted exports is defined

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Definition = FunctionNode | ast.ClassDef | ast.expr


@dataclass
class Module:
    """One module. `names`: local name → dotted path; `definitions`: local name → what it was last bound to by def, class or `=`."""

    name: str
    path: str
    body: list[ast.stmt]
    package: str
    names: dict[str, str] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


def module_name(path: str) -> str | None:
    """The dotted name under which a file is imported; None if it is no Python source."""
    if not path.endswith(".py"):
        return None
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class Program:
    """All Python sources of an image, by path ("pkg/module.py"); UsageError if one cannot be parsed."""

    def __init__(self, sources: Mapping[str, bytes]) -> None:
        self.modules: dict[str, Module] = {}
        for path in sorted(sources):
            name = module_name(path)
            if name is not None:
                self.modules[name] = _read(name, path, sources[path])

    def resolve(self, module: Module, node: ast.expr) -> str | None:
        """The dotted path that an expression of names and attributes stands for; None for any other expression."""
        match node:
            case ast.Name(id=name):
                dotted = module.names.get(name) or self._from_star(module, name)
            case ast.Attribute(value=value, attr=attr):
                base = self.resolve(module, value)
                dotted = None if base is None else f"{base}.{attr}"
            case _:
                return None
        return None if dotted is None else self.canonical(dotted)

    def canonical(self, dotted: str) -> str:
        """Follow re-exports through the sources to where the name is defined."""
        for _ in range(_MAX_HOPS):
            module, rest = self._split(dotted)
            if module is None or not rest:
                break
            first, _, behind = rest.partition(".")
            target = module.names.get(first) or self._from_star(module, first)
            if target is None or target == f"{module.name}.{first}":
                break
            dotted = f"{target}.{behind}" if behind else target
        if dotted.startswith(_PRIVATE_HOME):
            return "adyton.trusted." + dotted[len(_PRIVATE_HOME) :]
        return dotted

    def definition(self, dotted: str) -> tuple[Module, Definition] | None:
        """Module and node of the definition of a canonical path; None if it is not in the sources."""
        module, name = self._split(dotted)
        if module is None or name not in module.definitions:
            return None
        return module, module.definitions[name]

    def _split(self, dotted: str) -> tuple[Module | None, str]:
        """The longest prefix that is a module of the sources, and what is behind it."""
        parts = dotted.split(".")
        for cut in range(len(parts), 0, -1):
            module = self.modules.get(".".join(parts[:cut]))
            if module is not None:
                return module, ".".join(parts[cut:])
        return None, dotted

    def _from_star(self, module: Module, name: str) -> str | None:
        for star in reversed(module.stars):
            source = self.modules.get(star)
            if source is not None and name in source.names and not name.startswith("_"):
                return source.names[name]
            if (
                source is None
                and star == "adyton.trusted"
                and name in ("Enclave", "TrustedApplication", "entry", "host_function")
            ):
                return f"{star}.{name}"
        return None


def _read(name: str, path: str, source: bytes) -> Module:
    try:
        tree = parse_module(source, path)
    except SyntaxError as error:
        raise UsageError(f"{path}, line {error.lineno}: {error.msg}. Correct the source and build again") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be parsed: {error}") from error
    package = name if path.endswith("/__init__.py") else name.rpartition(".")[0]
    module = Module(name, path, list(_flat(tree.body)), package)
    for statement in module.body:
        _bind(module, statement)
    return module


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        match statement:
            case ast.If(test=test) if not _runs_on_import(test):
                yield from _flat(statement.orelse)
            case ast.If():
                yield from _flat(statement.body)
                yield from _flat(statement.orelse)
            case ast.Try() | ast.TryStar():
                yield from _flat(statement.body)
                for handler in statement.handlers:
                    yield from _flat(handler.body)
                yield from _flat(statement.orelse)
                yield from _flat(statement.finalbody)
            case ast.With():
                yield from _flat(statement.body)
            case _:
                yield statement


def _runs_on_import(test: ast.expr) -> bool:
    """Whether a condition may hold in the enclave: not `__name__ == "__main__"`, not TYPE_CHECKING."""
    match test:
        case ast.Compare(left=ast.Name(id="__name__")):
            return False
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return False
        case _:
            return True


def _bind(module: Module, statement: ast.stmt) -> None:
    match statement:
        case ast.Import(names=aliases):
            for alias in aliases:
                first = alias.name.partition(".")[0]
                module.names[alias.asname or first] = alias.name if alias.asname else first
        case ast.ImportFrom(names=aliases):
            base = _absolute(module, statement)
            for alias in aliases:
                if alias.name == "*":
                    module.stars.append(base)
                else:
                    module.names[alias.asname or alias.name] = f"{base}.{alias.name}"
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            module.names[name] = f"{module.name}.{name}"
            module.definitions[name] = statement
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                _assign(module, target, value)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            _assign(module, target, value)
        case _:
            pass


def _assign(module: Module, target: ast.expr, value: ast.expr) -> None:
    if isinstance(target, ast.Name):
        alias = _plain(module, value)
        module.names[target.id] = alias or f"{module.name}.{target.id}"
        module.definitions.pop(target.id, None)
        if alias is None:
            module.definitions[target.id] = value


def _plain(module: Module, value: ast.expr) -> str | None:
    """What `name = other.thing` makes an alias of, by the bindings so far."""
    match value:
        case ast.Name(id=name):
            from_star = f"{module.name}.{name}" if module.stars else None
            return module.names.get(name, from_star)
        case ast.Attribute(value=base, attr=attr):
            found = _plain(module, base)
            return None if found is None else f"{found}.{attr}"
        case _:
            return None


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    """The module that a `from … import` names."""
    if not statement.level:
        return statement.module or ""
    base = module.package.split(".")
    base = base[: len(base) - statement.level + 1]
    return ".".join([*base, *([statement.module] if statement.module else [])])
