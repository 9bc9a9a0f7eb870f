"""EnclaveLoadConfig.exit_logging: a line for each host call, with its name, outcome and time, and nothing that was said in it."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from adyton import (
    EnclaveFinal,
    EnclaveLoadConfig,
    EnclaveManager,
    EnclaveManagerOptions,
    FakeEnclaveLoader,
    remote_load_config,
)
from adyton.hostcall.client.exit_log import LOGGER
from adyton.trusted import Enclave, host_function

app = Enclave("chatty")

PROGRAM = """
def visit(path: str) -> None:
    for attempt in (path, path + ".missing", "/srv/secret"):
        try:
            with open(attempt) as file:
                print(file.read())
        except OSError:
            pass
"""


@host_function
def lookup(word: str) -> str: ...


@host_function
def forbidden() -> None: ...


@app.entry
def ask(word: str) -> str:
    for attempt in (lambda: lookup("bad"), forbidden):
        try:
            attempt()
        except (LookupError, PermissionError):
            continue
    return lookup(word)


def client_lookup(word: str) -> str:
    if word == "bad":
        raise LookupError("a secret word")
    return "a secret answer"


client_lookup.__name__ = "lookup"


@pytest.fixture
def manager():
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(app)))
    yield EnclaveManager.instance()
    EnclaveManager.configure(EnclaveManagerOptions())


@contextmanager
def nothing_set_up():
    """As in a program that has not: without pytest's handlers."""
    loggers = [logging.getLogger(LOGGER), logging.getLogger()]
    kept = [logger.handlers for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers = [each for each in logger.handlers if type(each).__module__.startswith("adyton")]
        yield
    finally:
        for logger, handlers in zip(loggers, kept, strict=True):
            logger.handlers = handlers + [each for each in logger.handlers if each not in handlers]


def run(manager: EnclaveManager, exit_logging: bool) -> None:
    config = EnclaveLoadConfig(name="chatty", exit_logging=exit_logging)
    client = manager.load_enclave(config, functions=[client_lookup], allow={"call": ["lookup"]})
    client.call("ask", "a secret question")
    manager.destroy_enclave(client, EnclaveFinal())


def outcomes(text: str) -> list[str]:
    found = [re.fullmatch(r"(\w+: .*) \d+\.\d{3} ms", line) for line in text.splitlines() if " ms" in line]
    assert all(found), text
    return [each[1] for each in found if each]


EXPECTED = ["chatty: call lookup() raised LookupError", "chatty: call forbidden() denied", "chatty: call lookup() ok"]


def test_each_host_call_is_a_line_on_standard_error_without_any_set_up(manager, capfd):
    with nothing_set_up():
        run(manager, exit_logging=True)
    text = capfd.readouterr().err
    assert outcomes(text) == EXPECTED
    assert "secret" not in text
    run(manager, exit_logging=False)
    assert outcomes(capfd.readouterr().err) == []


def test_a_program_that_has_set_logging_up_gets_records_only(manager, capfd):
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(LOGGER).addHandler(handler)
    try:
        run(manager, exit_logging=True)
    finally:
        logging.getLogger(LOGGER).removeHandler(handler)
    assert outcomes("\n".join(records)) == EXPECTED
    assert outcomes(capfd.readouterr().err) == []


@pytest.mark.sandbox
def test_host_calls_of_a_real_enclave(manager, workplace, capfd):
    EnclaveManager.configure(EnclaveManagerOptions())
    Path("program.py").write_text(PROGRAM)
    Path("words").write_text("secret content")
    config = EnclaveLoadConfig(name="visitor", exit_logging=True)
    config.Extensions[remote_load_config].sgx_load_config.file_enclave_config.enclave_path = "program.py"
    with nothing_set_up():
        client = manager.load_enclave(config, allow={"read": ["words", "words.missing"]})
        client.call("visit", str(workplace / "words"))
        manager.destroy_enclave(client, EnclaveFinal())
    captured = capfd.readouterr()
    assert captured.out == "secret content\n"
    lines = outcomes(captured.err)
    for line in ("stat ok", "read ok", "stat ENOENT", "access denied", "output ok"):
        assert f"visitor: {line}" in lines, line
    assert "words" not in "".join(lines)
