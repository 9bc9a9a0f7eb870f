"""Sources are read in many threads at once: CPython's parser is used by one of them at a time."""

import ast
import contextlib
import gc
import sys
import threading
import warnings

import pytest

from adyton.image.build import script_image
from adyton.image.entries import _heads
from adyton.image.parse import parse_expression, parse_module

SOURCE = b"def f(a, b):\n    return [x + (y * (z ** 2)) for x in a if x]\n" * 60


class Cycle:
    """Garbage whose collection runs Python, so that threads change places in the middle of whatever allocates."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        for _ in range(20):
            pass


@pytest.fixture
def _restless():
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("_restless")
def test_four_threads_parse_at_once():
    failures = []

    def work():
        try:
            for _ in range(40):
                Cycle()
                parse_module(SOURCE, "some.py")
        except SystemError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.usefixtures("_restless")
def test_who_asks_nobody_parses_too():
    """The module traceback does, in any thread; here it comes in the middle of ours, as often as it takes."""
    disturbances = iter(range(200))

    def disturb(*_):
        if next(disturbances, None) is not None:
            with contextlib.suppress(SystemError):
                ast.parse("a + b")

    gc.callbacks.append(disturb)
    try:
        assert len(parse_module(SOURCE, "some.py").body) == 60
    finally:
        gc.callbacks.remove(disturb)


def test_what_the_parser_warns_of_is_not_the_users_matter(tmp_path):
    program = tmp_path / "pattern.py"
    program.write_text('def f(a: int) -> str:\n    return "\\d"\n')
    filters = list(warnings.filters)
    assert [entry.name for entry in script_image(program).manifest.entries] == ["f"]
    assert warnings.filters == filters


@pytest.mark.parametrize(
    "text", ["(", "\0", "-" * 100_000 + "1", "(" * 5000], ids=["open", "zero", "signs", "parentheses"]
)
def test_an_annotation_that_cannot_be_parsed_names_nothing(text):
    assert list(_heads(parse_expression(repr(text)))) == []
