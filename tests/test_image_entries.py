"""Entries are found by what their decorators stand for, however they are spelt, and nothing of the source runs."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import UsageError
from adyton.image.entries import find_applications, plain_functions, read_entries
from adyton.image.names import Program
from adyton.image.versions import PythonRange, PythonRangeError, VersionError, VersionRange, parse_python, parse_release


def program(**modules):
    """Modules by name with __ for /, such as pkg__mod; pkg__package is the package itself."""
    paths = {name: name.replace("__", "/").replace("/package", "/__init__") + ".py" for name in modules}
    return Program({paths[name]: textwrap.dedent(text).encode() for name, text in modules.items()})


def signatures(entry, **modules):
    return [str(each) for each in read_entries(program(**modules), entry)]


IMPORTS = [
    ("from adyton import trusted", "trusted"),
    ("import adyton.trusted as trusted", "trusted"),
    ("import adyton.trusted as t", "t"),
    ("from adyton import trusted as t", "t"),
    ("import adyton.trusted", "adyton.trusted"),
    ("import adyton", "adyton.trusted"),
    ("import adyton as a", "a.trusted"),
    ("try:\n    from adyton import trusted\nexcept ImportError:\n    raise", "trusted"),
]


@pytest.mark.parametrize(("imports", "spelling"), IMPORTS)
def test_an_enclave_is_found_however_it_is_imported(imports, spelling):
    source = f"{imports}\nenclave = {spelling}.Enclave('pay')\n@enclave.entry\ndef f(x: int) -> str: ...\ndef g(x: int) -> int: ...\n"
    assert signatures("m:enclave", m=source) == ["f(x: int) -> str"]


@pytest.mark.parametrize(("imports", "spelling"), IMPORTS)
def test_a_class_is_found_however_it_is_imported(imports, spelling):
    source = f"""{imports}
class Demo({spelling}.TrustedApplication):
    @{spelling}.entry
    def f(self, x: int) -> str: ...
    def g(self, x: int) -> str: ...
"""
    assert signatures("m:Demo", m=source) == ["f(x: int) -> str"]


@pytest.mark.parametrize(
    "imports",
    [
        "from adyton.trusted import Enclave as E, entry as e, TrustedApplication as T",
        "from adyton.trusted.application import Enclave as E, entry as e, TrustedApplication as T",
        "from adyton.trusted import *\nE, e, T = 0, 0, 0\nE = Enclave\ne = entry\nT = TrustedApplication",
        "from adyton import trusted\nE = trusted.Enclave\ne = trusted.entry\nT = trusted.TrustedApplication",
    ],
)
def test_names_may_be_imported_and_renamed(imports):
    source = imports + "\nx = E(name='x')\n@x.entry\ndef f(): ...\nclass D(T):\n    @e\n    def g(self): ...\n"
    assert signatures("m:x", m=source) == ["f()"]
    assert signatures("m:D", m=source) == ["g()"]


def test_decorators_of_other_things_are_not_taken_for_entries():
    source = """
        from adyton import trusted
        from elsewhere import entry, Enclave
        enclave, other = trusted.Enclave("a"), 1
        enclave = trusted.Enclave("a")
        other = trusted.Enclave("b")
        @other.entry
        def of_other(): ...
        @entry
        def of_elsewhere(): ...
        @enclave.on_initialize
        def start(config): ...
        @enclave.entry
        def mine(): ...
    """
    assert signatures("m:enclave", m=source) == ["mine()"]


def test_entries_in_other_modules_of_a_package_belong_to_the_enclave_that_they_name():
    found = signatures(
        "app:enclave",
        app__package="from .core import enclave as enclave\nfrom . import more, other\n",
        app__core="from adyton import trusted\nenclave = trusted.Enclave('app')\n@enclave.entry\ndef first(): ...\n",
        app__more="from app import enclave\n@enclave.entry\ndef second(x: int): ...\n",
        app__other="import app.core\n@app.core.enclave.entry\nasync def third(*rows: int, deep: bool = True) -> None: ...\n",
        app__stranger="from app.elsewhere import enclave\n@enclave.entry\ndef fourth(): ...\n",
    )
    assert found == ["first()", "second(x: int)", "third(*rows: int, deep: bool = …) -> None"]


def test_methods_of_base_classes_are_entries_unless_overridden_without_the_mark():
    found = signatures(
        "m:Demo",
        m="""
            from base import Base
            from adyton.trusted import entry
            class Demo(Base):
                def b(self): ...
                @entry
                def c(self, x): ...
        """,
        base="""
            from adyton import trusted
            class Base(trusted.TrustedApplication):
                @trusted.entry
                def a(self): ...
                @trusted.entry
                def b(self): ...
                @staticmethod
                @trusted.entry
                def s(x: int): ...
        """,
    )
    assert found == ["c(x)", "a()", "s(x: int)"]


def test_a_function_may_be_registered_by_a_call():
    source = "from adyton import trusted\ne = trusted.Enclave('e')\ndef f(x: int): ...\ne.entry(f)\nprint(f)\n"
    assert signatures("m:e", m=source) == ["f(x: int)"]


def test_what_does_not_run_on_import_is_left_out():
    source = """
        from typing import TYPE_CHECKING
        from adyton import trusted
        e = trusted.Enclave("e")
        if TYPE_CHECKING:
            @e.entry
            def a(): ...
        if __name__ == "__main__":
            @e.entry
            def b(): ...
        if True:
            @e.entry
            def c(): ...
    """
    assert signatures("m:e", m=source) == ["c()"]


@pytest.mark.parametrize(
    ("entry", "source"),
    [
        ("m:missing", ""),
        ("n:x", ""),
        ("m:x", "x = 1"),
        ("m:x", "x = print()"),
        ("m:f", "def f(): ..."),
        ("m:C", "class C: ..."),
        ("m:x", "from elsewhere import x"),
        ("m:x", "from m import x"),
    ],
)
def test_an_entry_point_that_is_none_is_the_writer_s_mistake(entry, source):
    with pytest.raises(UsageError, match="entry = "):
        signatures(entry, m=source)


def test_two_entries_of_one_name_are_refused():
    source = "from adyton import trusted\ne = trusted.Enclave('e')\n@e.entry\ndef f(): ...\n@e.entry\ndef f(): ...\n"
    with pytest.raises(UsageError, match="two entries"):
        signatures("m:e", m=source)


def test_broken_source_is_named_with_its_line():
    with pytest.raises(UsageError, match=r"m\.py, line 2"):
        program(m="x = 1\ndef f(:\n")
    with pytest.raises(UsageError, match=r"m\.py"):
        Program({"m.py": b"\xff\xfe"})


def test_nothing_is_executed(tmp_path):
    marker = tmp_path / "ran"
    source = f"open({str(marker)!r}, 'w')\nfrom adyton import trusted\ne = trusted.Enclave('e')\n@e.entry\ndef f(x: exec('1') = 1): ...\n"
    assert signatures("m:e", m=source) == ["f(x: exec('1') = …)"]
    assert not marker.exists()


# -- parameters and results ------------------------------------------------------------------------------------------------


def one(source):
    return plain_functions(program(m=source), "m")[0]


def test_parameters_are_read_with_types_defaults_and_kinds():
    entry = one(
        "def f(a: int, /, b: 'list[str]', c: dict[str, int] | None = None, *r: bytes, k: bool, o: float = 1.0, **w: str) -> 'int': ..."
    )
    assert [(each.name, each.type, each.required, each.kind) for each in entry.parameters] == [
        ("a", "int", True, "positional"),
        ("b", "list[str]", True, "positional"),
        ("c", "dict[str, int] | None", False, "positional"),
        ("r", "bytes", False, "rest"),
        ("k", "bool", True, "keyword"),
        ("o", "float", False, "keyword"),
        ("w", "str", False, "keywords"),
    ]
    assert entry.returns == "int"


@pytest.mark.parametrize(
    ("source", "stream"),
    [
        ("def f(x: int) -> list[int]: ...", False),
        ("def f(x: int) -> Iterator[int]: ...", True),
        ("def f(x: int) -> 'collections.abc.AsyncIterator[int]': ...", True),
        ("def f(x: int) -> typing.Generator: ...", True),
        ("def f(x: int):\n    for i in range(x):\n        yield i", True),
        ("def f(x: int) -> int:\n    def g():\n        yield 1\n    return sum(g())", False),
        ("def f(x: int) -> list[Iterator]: ...", False),
        ("def f(x: int) -> 'not a type at all': ...", False),
    ],
)
def test_streams_are_told_from_results(source, stream):
    assert one(source).stream is stream


def test_public_annotated_functions_are_the_entries_of_a_plain_module():
    source = """
        import functools
        from os.path import join
        from adyton.trusted import host_function
        def entry(x: int) -> int: ...
        def no_result(x: int): ...
        def no_parameters() -> int: ...
        @functools.lru_cache(maxsize=None)
        def cached(x: str) -> str: ...
        async def later(x: bytes) -> bytes: ...
        def main(): ...
        def partly(x: int, y): ...
        def _private(x: int) -> int: ...
        @host_function
        def lookup(word: str) -> str: ...
        class C:
            def method(self) -> int: ...
        def entry(x: int, y: int) -> int: ...
    """
    assert [each.name for each in plain_functions(program(m=source), "m")] == [
        "entry",
        "no_result",
        "no_parameters",
        "cached",
        "later",
    ]
    assert str(one(source)) == "entry(x: int, y: int) -> int"


def test_programs_in_a_module_are_found_with_their_names():
    source = """
        from adyton import trusted
        enclave = trusted.Enclave("pay")
        other: trusted.Enclave = trusted.Enclave(name="second")
        computed = trusted.Enclave(str(1))
        class Demo(trusted.TrustedApplication): ...
        class More(Demo): ...
        class Plain: ...
    """
    found = find_applications(program(m=source), "m")
    assert [each[1:] for each in found] == [
        ("enclave", "pay"),
        ("other", "second"),
        ("computed", "computed"),
        ("Demo", "Demo"),
        ("More", "More"),
    ]


@given(
    st.lists(
        st.sampled_from(
            ["from m import {a} as {b}", "{a} = {b}", "import m as {a}", "from . import {a}", "from m import *"]
        ),
        max_size=8,
    ),
    st.data(),
)
def test_bindings_that_go_in_circles_end(lines, data):
    names = st.sampled_from("xyz")
    source = "\n".join(line.format(a=data.draw(names), b=data.draw(names)) for line in lines)
    with pytest.raises(UsageError):
        signatures("m:x", m=source)


# -- versions --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("3.12", [(3, 12)], [(3, 11), (3, 13)]),
        (">=3.11", [(3, 11), (3, 20)], [(3, 10)]),
        (">=3.8", [(3, 11)], [(3, 10), (3, 8)]),
        (">=3.11.4,<3.14", [(3, 11), (3, 13)], [(3, 14)]),
        ("~=3.12", [(3, 12), (3, 13)], [(3, 11), (4, 0)]),
        ("~=3.12.0", [(3, 12)], [(3, 13)]),
        ("==3.12.*", [(3, 12)], [(3, 13)]),
        (">3.11,!=3.13.*", [(3, 11), (3, 12), (3, 14)], [(3, 13)]),
        ("== 3.12.4", [(3, 12)], [(3, 11)]),
    ],
)
def test_python_ranges_hold_what_pep_440_says(text, inside, outside):
    found = PythonRange.parse(text)
    assert all(version in found for version in inside)
    assert not any(version in found for version in outside)


@pytest.mark.parametrize(
    "text",
    ["", "3", "3.9", "<3.11", "2.7", "latest", ">=3.11;", "===3.12", ">=3.12a1", "~=3", ">=3.*", "3.12.1", ">=3.11,"],
)
def test_other_python_ranges_are_refused(text):
    with pytest.raises(PythonRangeError):
        PythonRange.parse(text)


@given(st.text(max_size=20))
def test_only_version_errors_leave_the_parsers_of_versions(text):
    for parse in (VersionRange.parse, PythonRange.parse, parse_release, parse_python):
        try:
            parse(text)
        except VersionError:
            pass
