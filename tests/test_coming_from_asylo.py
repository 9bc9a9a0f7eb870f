"""docs/coming-from-asylo.md stays true: what it names is there, and each of the 44 weaknesses is answered.

Of a table, the last column speaks of what is here, and of a weakness, all behind its bold words: every piece of code in them is a
name that exists.
"""

from __future__ import annotations

import ast
import builtins
import errno
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from typing import Any

import click
import pytest
from command import ROOT

import adyton
from adyton import errors, trusted
from adyton.attestation.expectation import Expectation
from adyton.cli.options import variable
from adyton.cli.root import root
from adyton.hostcall.own_paths import own_path
from adyton.image.pyproject import EnclaveTable, LoaderTable
from adyton.runtime.process.table import ROWS

PAGE = ROOT / "docs" / "coming-from-asylo.md"
TEXT = PAGE.read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")
WEAKNESSES = TEXT.partition("\n## Its weaknesses\n")[2]
COUNT = 44

VARIABLES = {  # of the programs that the page shows: what they stand for
    "client": adyton.EnclaveClient,
    "enclave_input": adyton.EnclaveInput,
    "load_config": adyton.EnclaveLoadConfig,
    "manager": adyton.EnclaveManager,
    "remote_config": adyton.RemoteLoadConfig,
}
VALUES = {"application", "enclave_path", "entry", "message", "proxy_config", "provision", "server"}
DRIVER_OPTIONS = {"--enclave_path", "--message"}
TABLES_OF_FILES = {
    "[allow]",
    "[expect]",
    "[tool.adyton.enclave.NAME]",
    "[tool.adyton.loader.NAME]",
}


def rows() -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row of a table."""
    for number, line in enumerate(TEXT.splitlines(), 1):
        if line.startswith("| ") and line.endswith(" |"):
            yield number, [cell.strip() for cell in line[1:-1].split(" | ")]


def weaknesses() -> dict[int, tuple[str, str]]:
    """Number → what is wrong there, and what is said of it."""
    found = re.findall(r"^(\d+)\. \*\*(.+?)\*\*(.*?)(?=^\d+\. |^### |\Z)", WEAKNESSES, re.MULTILINE | re.DOTALL)
    assert len({number for number, _, _ in found}) == len(found)
    return {int(number): (title, answer) for number, title, answer in found}


def ours() -> list[tuple[str, str]]:
    """(where, code) of all that the page says is here."""
    found = [(f"line {number}", code) for number, cells in rows() for code in CODE.findall(cells[-1])]
    found += [
        (f"weakness {number}", code) for number, (_, answer) in weaknesses().items() for code in CODE.findall(answer)
    ]
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        found += [("block", line) for line in block.splitlines()]
    return found


def test_every_weakness_is_answered_once_and_in_order():
    assert list(weaknesses()) == list(range(1, COUNT + 1))
    for number, (title, answer) in weaknesses().items():
        assert title.rstrip(")").endswith(".") or answer.lstrip().startswith("("), number
        sentence = CODE.sub("", answer)
        assert len(sentence.split()) >= 5, number
        assert any(code.startswith("tests/") for code in CODE.findall(answer)), number


def test_every_test_that_is_named_exists():
    named = {code for _, code in ours() if code.startswith("tests/")}
    assert len(named) > COUNT
    there = set()
    for path in sorted({code.partition("::")[0] for code in named}):
        if (ROOT / path).exists():
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            there |= {f"{path}::{each.name}" for each in tree.body if isinstance(each, ast.FunctionDef)}
    assert not named - there, "\n".join(sorted(named - there))


def test_rows_are_short_and_have_two_cells():
    lines = TEXT.splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 130] == []
    for number, cells in rows():
        assert len(cells) == 2, number
        assert all(cells), number


def test_every_public_name_has_its_place():
    for module in (adyton, trusted):
        for name in module.__all__:
            assert getattr(module, name) is not None
            if not name.startswith("__"):
                assert re.search(rf"\b{re.escape(name)}\b", TEXT) is not None, name


def test_links_resolve():
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    for link in links:
        assert (PAGE.parent / link).exists(), link
    assert "(docs/coming-from-asylo.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


ENCLAVE = """
from adyton import trusted

class Demo(trusted.TrustedApplication):
    def run(self, enclave_input: trusted.EnclaveInput) -> trusted.EnclaveOutput:
        output = trusted.EnclaveOutput()
        output.Extensions[trusted.user_message] = enclave_input.Extensions[trusted.user_message][::-1]
        return output
"""


@pytest.mark.sandbox
def test_the_lines_of_the_driver_are_a_program(workplace):
    (workplace / "demo.py").write_text(ENCLAVE)
    table = TEXT.partition("### Its driver")[2].partition("\n## ")[0]
    lines = [
        code for line in table.splitlines() if line.startswith("| ") for code in CODE.findall(line.split(" | ")[-1])
    ]
    program = [line for line in lines if " = " in line or line.startswith(("manager.", "EnclaveManager."))]
    assert len(program) >= 12
    names = {name: getattr(adyton, name) for name in adyton.__all__}
    names |= {"enclave_path": "demo.py", "message": "Asylo Rocks"}
    exec("\n".join(program), names)
    assert names["output"].Extensions[adyton.user_message] == "skcoR olysA"
    assert adyton.EnclaveManager.instance().get_client("demo_enclave") is None


FEATURES = """
import ctypes, errno, fcntl, mmap, multiprocessing, os, pwd, select, signal, socket, sqlite3, subprocess, sys, threading
from adyton import trusted

enclave = trusted.Enclave("features")
signalled = threading.Event()
libc = ctypes.CDLL(None, use_errno=True)

@enclave.on_initialize
def initialize(config: trusted.EnclaveConfig) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: signalled.set())

def by_libc(name: str, *arguments: int) -> None:
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def locked(path: str, lock) -> None:
    with open(path, "r+") as file:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

def mapped(path: str) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:1] = b"X"

def forked() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"a forked process ended with {status}"

def pooled() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(abs, (-3,)) == 3

def database(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table words (word)")
    connection.close()

def signalled_itself() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signalled.wait(30), "no handler has run"

def signalled_a_thread() -> None:
    signalled.clear()
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # handlers run in the main thread, which sleeps
    assert signalled.wait(30), "no handler has run"

@enclave.entry
def outcomes(folder: str) -> dict[str, str]:
    path = folder + "/file"
    with open(path, "w") as file:
        file.write("content")
    found = {}
    for name, attempt in {
        "listdir": lambda: os.listdir(folder),
        "link": lambda: os.link(path, path + ".link"),
        "symlink": lambda: os.symlink("file", path + ".symlink"),
        "symlink in /tmp": lambda: os.symlink("file", "/tmp/symlink"),
        "symlink out": lambda: os.symlink("../file", path + ".out"),
        "setxattr": lambda: os.setxattr(path, "user.a", b"b"),
        "setxattr of the machine": lambda: os.setxattr(path, "security.a", b"b"),
        "O_TMPFILE": lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR),
        "fallocate": lambda: os.posix_fallocate(os.open(path, os.O_RDWR), 0, 9),
        "mkfifo": lambda: os.mkfifo(path + ".fifo"),
        "chown to its own": lambda: os.chown(path, os.getuid(), os.getgid()),
        "flock": lambda: locked(path, fcntl.flock),
        "lockf": lambda: locked(path, fcntl.lockf),
        "mmap": lambda: mapped(path),
        "sqlite3": lambda: database(folder + "/database"),
        "inotify": lambda: by_libc("inotify_init"),
        "connection": lambda: socket.create_connection(("127.0.0.1", 9)),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "socketpair": socket.socketpair,
        "epoll": select.epoll,
        "eventfd": lambda: os.eventfd(0),
        "pipe": lambda: os.pipe2(os.O_NONBLOCK),
        "fork": forked,
        "multiprocessing": pooled,
        "execve": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "signal": signalled_itself,
        "signal of a thread": signalled_a_thread,
        "getpwuid": lambda: pwd.getpwuid(os.getuid()),
        "msgget": lambda: by_libc("msgget", 0, 0o1600),
        "random": lambda: open("/dev/random", "rb").read(8),
    }.items():
        try:
            attempt()
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno]
    found["ids"] = f"{os.getpid()} {os.getuid()}"
    return found
"""
REFUSED = {
    "symlink out": "EACCES",
    "setxattr of the machine": "EPERM",
    "mkfifo": "EPERM",
    "msgget": "ENOSYS",
    "connection": "EACCES",
}


@pytest.mark.sandbox
def test_a_program_can_use_what_the_page_says(workplace, on_the_server):
    (workplace / "features.py").write_text(FEATURES)
    (workplace / "box").mkdir()
    with adyton.load("features.py", allow_write=["box"]) as client:
        outcomes = client.call("outcomes", "box")
    assert outcomes.pop("ids") == "2 1000"
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "done"} == REFUSED


# -- each piece of code ------------------------------------------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    assert isinstance(root, click.Group)
    context = click.Context(root)
    return {name: root.get_command(context, name) for name in root.list_commands(context)}  # type: ignore[misc]


def options(command: click.Command) -> set[str]:
    return {option for each in command.params if isinstance(each, click.Option) for option in each.opts}


def is_command(code: str) -> bool:
    name, *arguments = shlex.split(code)[1:]
    if name == "--help":
        return True
    command = commands().get(name)
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    known = options(command) if command else set()
    return command is not None and all(normal(each) in known for each in before if each.startswith("--"))


def normal(option: str) -> str:
    return "--" + option[2:].partition("=")[0].replace("_", "-")


def is_option(code: str) -> bool:
    name = code.split(maxsplit=1)[0]
    return name in DRIVER_OPTIONS or any(normal(name) in options(command) for command in commands().values())


def is_variable(code: str) -> bool:
    return any(variable(option) == code for command in commands().values() for option in options(command))


def is_target(code: str) -> bool:
    _, target, *settings = shlex.split(code)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    if target.startswith("example-"):
        return (ROOT / "examples" / target.removeprefix("example-") / "run.py").exists()
    return re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) is not None and all(
        "=" in each for each in settings
    )


def is_file(code: str) -> bool:
    if code.startswith("."):  # a kind of file
        return code in (".py", ".proto", ".enclave")
    here = [ROOT / code, ROOT / "src" / "adyton" / code]
    return any(each.exists() for each in here) or any((ROOT / "examples").glob(f"*/{code}"))


def resolve(head: Any, attributes: list[str]) -> Any:
    """What the attributes lead to; AttributeError."""
    for name in attributes:
        descriptor = getattr(head, "DESCRIPTOR", None)
        fields = getattr(descriptor, "fields_by_name", {})
        if name in fields:
            kind = fields[name].message_type
            head = kind._concrete_class if kind is not None else ""
        elif not hasattr(head, name) and inspect.ismodule(head):
            head = importlib.import_module(f"{head.__name__}.{name}")
        elif not hasattr(head, name) and isinstance(head, type) and f"self.{name}" in inspect.getsource(head):
            head = None  # an attribute of its instances
        else:
            head = getattr(head, name)
    return head


def find(name: str) -> Any:
    """What a plain name of the page stands for; NameError."""
    if name in VARIABLES:
        return VARIABLES[name]
    for module in (adyton, errors, builtins):
        if hasattr(module, name):
            return getattr(module, name)
    if name == "adyton":
        return adyton
    try:
        return importlib.import_module(f"adyton.{name}")
    except ModuleNotFoundError:
        pass
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise NameError(name) from None


def value_of(node: ast.expr) -> Any:
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Call):
        return called(node)
    if isinstance(node, ast.Subscript):
        value_of(node.value)
        value_of(node.slice)
        return None
    if isinstance(node, ast.Name):
        return None if node.id in VALUES and not attributes else resolve(find(node.id), attributes)
    if isinstance(node, ast.List):
        return [value_of(each) for each in node.elts]
    return ast.literal_eval(node)


def called(node: ast.Call) -> Any:
    function = value_of(node.func)
    for each in node.args:
        value_of(each)
    names = [each.arg for each in node.keywords]
    if hasattr(function, "DESCRIPTOR"):
        assert set(names) <= set(function.DESCRIPTOR.fields_by_name)
    elif names:
        parameters = inspect.signature(function).parameters
        assert set(names) <= set(parameters), (names, parameters)
    return None


def is_python(code: str) -> bool:
    if re.fullmatch(r"\w+=", code):  # an argument
        functions = (adyton.load, adyton.EnclaveManager.load_enclave)
        return any(code[:-1] in inspect.signature(each).parameters for each in functions)
    (statement,) = ast.parse(code).body
    if isinstance(statement, ast.Import):
        return all(importlib.import_module(each.name) for each in statement.names)
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
        if not isinstance(target, ast.Name):
            value_of(target)
    else:
        assert isinstance(statement, ast.Expr)
    value_of(statement.value)
    return True


def is_key(code: str) -> bool:
    tables = (EnclaveTable, LoaderTable, Expectation)
    return code in TABLES_OF_FILES or any(code in table.__struct_fields__ for table in tables)


def is_word(code: str) -> bool:
    """Of a status, an errno, a system call, a platform, a method of a program, or a field of what is reported."""
    from adyton.processes_pb2 import ProcessReport, ProcStat

    return (
        code in errors.CANONICAL_CODES
        or code in errno.errorcode.values()
        or code in ("EOPNOTSUPP", "sim", "build", "..")
        or code in {row.name for row in ROWS}
        or hasattr(trusted.TrustedApplication, code)
        or code in ProcessReport.DESCRIPTOR.fields_by_name
        or code in ProcStat.DESCRIPTOR.fields_by_name
    )


def exists(code: str) -> bool:
    if code.startswith("tests/"):
        return True  # another test looks for them
    if code.startswith("adyton "):
        return is_command(code)
    if code.startswith("make "):
        return is_target(code)
    if code.startswith("--"):
        return is_option(code)
    if code.startswith("ADYTON_"):
        return is_variable(code)
    if code.startswith("/"):
        return code == "/tmp" or own_path(code) is not None
    if is_key(code) or is_word(code) or is_file(code):
        return True
    return is_python(code)


def test_what_the_page_names_is_there():
    missing = []
    for where, code in ours():
        try:
            if not exists(code):
                missing.append(f"{where}: {code}")
        except (SyntaxError, NameError, AttributeError, ImportError, AssertionError, TypeError, ValueError) as error:
            missing.append(f"{where}: {code}: {error!r}")
    assert not missing, "\n".join(missing)
