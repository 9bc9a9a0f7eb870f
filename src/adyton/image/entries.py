"""An image's entries, with their parameters and types, read from its sources with `ast`; nothing is executed.

What is an entry: a function decorated with `.entry` of the image's Enclave object, in any of its modules; a method decorated with
`trusted.entry` of its TrustedApplication class or a base of that; and in an image of plain functions each public, annotated function
at the top of its module that is no stub of a host function.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from adyton.errors import UsageError
from adyton.image.manifest import Entry, Parameter, ParameterKind
from adyton.image.names import Definition, FunctionNode, Module, Program
from adyton.image.parse import parse_expression

ENCLAVE = "adyton.trusted.Enclave"
APPLICATION = "adyton.trusted.TrustedApplication"
ENTRY = "adyton.trusted.entry"
HOST_FUNCTION = "adyton.trusted.host_function"

_STREAMS = frozenset({"Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator"})
_MAX_BASES = 32  # classes that are followed upwards
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def read_entries(program: Program, entry: str) -> list[Entry]:
    """The entries of the Enclave or TrustedApplication "module:name"; UsageError if it is not in the sources, or neither."""
    module_name, _, attribute = entry.partition(":")
    if module_name not in program.modules:
        raise UsageError(f"entry = {entry!r}: the module {module_name} is not among the sources")
    dotted = program.canonical(f"{module_name}.{attribute}")
    found = program.definition(dotted)
    if found is None:
        raise UsageError(f"entry = {entry!r}: {program.modules[module_name].path} has no {attribute}")
    module, node = found
    if isinstance(node, ast.ClassDef):
        return _unique(_of_class(program, module, node, entry), entry)
    made_by = program.resolve(module, node.func) if isinstance(node, ast.Call) else None
    if made_by is None:
        raise _neither(entry)
    if made_by == ENCLAVE:
        return _unique(_of_enclave(program, dotted), entry)
    cls = program.definition(made_by)
    if cls is None or not isinstance(cls[1], ast.ClassDef):
        raise _neither(entry)
    return _unique([*_of_class(program, cls[0], cls[1], entry), *_of_enclave(program, dotted)], entry)


def find_applications(program: Program, module_name: str) -> list[tuple[str, str, str]]:
    """The Enclaves and TrustedApplication classes that a module itself defines, in order: kind, attribute, name as given."""
    module = program.modules[module_name]
    found = []
    for attribute, node in module.definitions.items():
        if isinstance(node, ast.Call) and program.resolve(module, node.func) == ENCLAVE:
            found.append((ENCLAVE, attribute, _literal_name(node) or attribute))
        elif isinstance(node, ast.ClassDef) and _ends_in(program, module, node) == APPLICATION:
            found.append((APPLICATION, attribute, attribute))
    return found


def plain_functions(program: Program, module_name: str) -> list[Entry]:
    """The public, annotated functions of a module."""
    module = program.modules[module_name]
    found: dict[str, Entry] = {}
    for name, node in module.definitions.items():
        if isinstance(node, _FUNCTIONS) and not name.startswith("_") and _annotated(node):
            decorators = {program.resolve(module, _undecorated(each)) for each in node.decorator_list}
            if HOST_FUNCTION not in decorators:
                found[name] = entry_of(node)
    return list(found.values())


def entry_of(node: FunctionNode, *, skip_first: bool = False) -> Entry:
    """The entry that a function is; `skip_first`: leave out `self`."""
    returns = _spelt(node.returns)
    streams = {part.id if isinstance(part, ast.Name) else part.attr for part in _heads(node.returns)} & _STREAMS
    return Entry(node.name, list(_parameters(node))[1 if skip_first else 0 :], returns, bool(streams) or _yields(node))


def _parameters(node: FunctionNode) -> Iterator[Parameter]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    without_default = len(positional) - len(arguments.defaults)
    for index, each in enumerate(positional):
        yield _parameter(each, "positional", required=index < without_default)
    if arguments.vararg is not None:
        yield _parameter(arguments.vararg, "rest", required=False)
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _parameter(each, "keyword", required=default is None)
    if arguments.kwarg is not None:
        yield _parameter(arguments.kwarg, "keywords", required=False)


def _parameter(argument: ast.arg, kind: ParameterKind, *, required: bool) -> Parameter:
    return Parameter(argument.arg, _spelt(argument.annotation), required, kind)


def _spelt(annotation: ast.expr | None) -> str:
    match annotation:
        case None:
            return ""
        case ast.Constant(value=str() as text):
            return text.strip()
        case _:
            return ast.unparse(annotation)


def _heads(annotation: ast.expr | None) -> Iterator[ast.Name | ast.Attribute]:
    """The outermost name of an annotation: `Iterator` of `Iterator[int]`, also of one in quotes."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            annotation = parse_expression(annotation.value.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    if isinstance(annotation, ast.Name | ast.Attribute):
        yield annotation


def _yields(node: FunctionNode) -> bool:
    """Whether the function itself, not one inside it, is a generator."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        current = waiting.pop()
        if isinstance(current, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(current, (*_FUNCTIONS, ast.Lambda, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(current))
    return False


def _annotated(node: FunctionNode) -> bool:
    """All parameters are annotated, or there are none and the result is."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    return all(each.annotation is not None for each in every) and (bool(every) or node.returns is not None)


def _undecorated(decorator: ast.expr) -> ast.expr:
    return decorator.func if isinstance(decorator, ast.Call) else decorator


def _of_enclave(program: Program, dotted: str) -> list[Entry]:
    """Functions registered with the Enclave object at a canonical path, in all modules."""
    home = program.definition(dotted)
    modules = sorted(program.modules.values(), key=lambda each: (home is None or each is not home[0], each.name))
    found = []
    for module in modules:
        for statement in module.body:
            match statement:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    if any(program.resolve(module, each) == f"{dotted}.entry" for each in statement.decorator_list):
                        found.append(entry_of(statement))
                case ast.Expr(value=ast.Call(func=function, args=[ast.Name(id=name)])):
                    node = module.definitions.get(name)
                    if isinstance(node, _FUNCTIONS) and program.resolve(module, function) == f"{dotted}.entry":
                        found.append(entry_of(node))
                case _:
                    pass
    return found


def _of_class(program: Program, module: Module, node: ast.ClassDef, entry: str) -> list[Entry]:
    if _ends_in(program, module, node) is None:
        raise _neither(entry)
    found: dict[str, Entry | None] = {}
    for home, cls in _with_bases(program, module, node):
        for statement in cls.body:
            if isinstance(statement, _FUNCTIONS):
                decorators = [program.resolve(home, each) for each in statement.decorator_list]
                static = any(
                    isinstance(each, ast.Name) and each.id == "staticmethod" for each in statement.decorator_list
                )
                found.setdefault(
                    statement.name, entry_of(statement, skip_first=not static) if ENTRY in decorators else None
                )
    return [each for each in found.values() if each is not None]


def _with_bases(program: Program, module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    """The class and its bases in the sources, nearest first, each once."""
    waiting: list[tuple[Module, Definition]] = [(module, node)]
    seen: list[ast.ClassDef] = []
    while waiting and len(seen) < _MAX_BASES:
        home, cls = waiting.pop(0)
        if not isinstance(cls, ast.ClassDef) or cls in seen:
            continue
        seen.append(cls)
        yield home, cls
        for base in cls.bases:
            dotted = program.resolve(home, base)
            found = program.definition(dotted) if dotted else None
            if found is not None:
                waiting.append(found)


def _ends_in(program: Program, module: Module, node: ast.ClassDef) -> str | None:
    """APPLICATION if the class derives from TrustedApplication or Enclave; "" if a base is not in the sources; else None."""
    unknown = False
    for home, cls in _with_bases(program, module, node):
        for base in cls.bases:
            dotted = program.resolve(home, base)
            if dotted in (APPLICATION, ENCLAVE):
                return APPLICATION
            unknown = unknown or dotted is None or program.definition(dotted) is None
    return "" if unknown else None


def _literal_name(call: ast.Call) -> str | None:
    """The name given to Enclave(…), where it is a plain text."""
    given = [*call.args[:1], *(each.value for each in call.keywords if each.arg == "name")]
    match given:
        case [ast.Constant(value=str() as name)]:
            return name
        case _:
            return None


def _unique(entries: list[Entry], entry: str) -> list[Entry]:
    names = [each.name for each in entries]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{entry} has two entries of the name {name}: give one of them another name")
    return entries


def _neither(entry: str) -> UsageError:
    return UsageError(f"entry = {entry!r} is neither an Enclave nor a TrustedApplication class")
