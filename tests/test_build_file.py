"""Images of one .py file: entries, requirements, and the cache that is keyed by content."""

import os
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.crypto.keys import debug_key
from adyton.errors import UsageError
from adyton.image import archive
from adyton.image.build import build_file, script_image
from adyton.image.oci import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(text, name="pay.py"):
    Path(name).write_text(textwrap.dedent(text))
    return name


def test_a_plain_function_becomes_an_image(workplace):
    source = "def mean_pay(path: str) -> float:\n    return 1.0\n"
    image = script_image(script(source))
    assert (image.manifest.name, image.manifest.entry) == ("pay", "pay:")
    assert [str(each) for each in image.manifest.entries] == ["mean_pay(path: str) -> float"]
    assert [(each.signer, each.debug, each.valid) for each in image.signatures] == [(debug_key().signer, True, True)]
    data = image.layers()[0]
    assert [(each.path, data[each.offset :][: each.size]) for each in archive.unpack(data)] == [
        ("pay.py", source.encode())
    ]


def test_the_example_s_two_forms_are_images():
    plain, enclave = script_image(EXAMPLES / "pay" / "pay.py"), script_image(EXAMPLES / "pay" / "pay_enclave.py")
    assert (plain.manifest.entry, enclave.manifest.entry) == ("pay:", "pay_enclave:enclave")
    assert str(plain.manifest.entries[0]) == str(enclave.manifest.entries[0]) == "mean_pay(path: str) -> float"
    assert enclave.manifest.name == "pay"


def test_an_enclave_in_the_file_hides_its_plain_functions(workplace):
    source = """
        from adyton import trusted
        pay = trusted.Enclave("payroll")
        def helper(x: int) -> int: ...
        @pay.entry
        def total(x: int) -> int: ...
        class Unused(trusted.TrustedApplication): ...
    """
    manifest = script_image(script(source)).manifest
    assert (manifest.name, manifest.entry) == ("payroll", "pay:pay")
    assert [each.name for each in manifest.entries] == ["total"]


def test_a_class_in_the_file_is_the_program(workplace):
    source = "from adyton import trusted\nclass Demo(trusted.TrustedApplication):\n    def run(self, i): ...\n"
    assert script_image(script(source)).manifest.entry == "pay:Demo"


def test_of_several_enclaves_one_must_be_meant(workplace):
    name = script("from adyton import trusted\na = trusted.Enclave('one')\nb = trusted.Enclave('two')\n")
    with pytest.raises(UsageError, match=r"more than one program \(a, b\)"):
        script_image(name)
    assert script_image(name, "two").manifest.entry == "pay:b"
    assert script_image(name, "a").manifest.entry == "pay:a"
    with pytest.raises(UsageError, match="it has: one, two"):
        script_image(name, "three")


def test_nothing_of_the_file_runs(workplace):
    script_image(script("open('ran', 'w').close()\ndef f(x: int) -> int: ...\nraise SystemExit\n"))
    assert not os.path.exists("ran")


@pytest.mark.parametrize(
    ("name", "source", "match"),
    [
        ("pay.py", "x = 1\n", "has no entry"),
        ("pay.py", "def main(): ...\n", "has no entry"),
        ("pay.py", "def f(:\n", "line 1"),
        ("pay.py", "def f(x: int): ...\n\0", "pay.py"),
        ("json.py", "def f(x: int): ...\n", "module json of its own"),
        ("adyton.py", "def f(x: int): ...\n", "runtime's own adyton"),
        ("a.b.py", "def f(x: int): ...\n", "cannot be a program"),
        ("1st.py", "def f(x: int): ...\n", "cannot be a program"),
    ],
)
def test_files_that_cannot_be_loaded_say_why(workplace, name, source, match):
    with pytest.raises(UsageError, match=match):
        script_image(script(source, name))


def test_a_missing_file_is_said(workplace):
    with pytest.raises(UsageError, match="No such file"):
        build_file("none.py")


# -- PEP 723 -----------------------------------------------------------------------------------------------------------------

FUNCTION = "def f(x: int) -> int: ...\n"


def block(content):
    lines = ["# " + line if line else "#" for line in content.splitlines()]
    return "\n".join(["#!/usr/bin/env python", "# /// script", *lines, "# ///", "", FUNCTION])


def test_requirements_of_the_block_are_read(workplace):
    source = block('requires-python = ">=3.12"\n\ndependencies = [\n  "cryptography>=40",\n]\n[tool.uv]\nx = 1')
    assert script_image(script(source)).manifest.python == ">=3.12"
    assert script_image(script(source.replace("\n", "\r\n"))).manifest.python == ">=3.12"
    assert script_image(script(FUNCTION)).manifest.python == ">=3.11"
    assert (
        script_image(script(block('requires-python = ">=3.13"').replace("script", "other"))).manifest.python == ">=3.11"
    )


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('dependencies = ["cryptography<1"]', "conflicts"),
        ("dependencies = 1", "list of texts"),
        ("dependencies = [1]", "list of texts"),
        ('requires-python = "<3.11"', "3.11 or newer"),
        ("requires-python = 3.12", "a text"),
        ('dependancies = ["x"]', r"'dependancies'.*nearest: dependencies"),
        ("dependencies = [", "not valid TOML"),
        ("[tool.adyton]\nx = 1", r"\[tool\.adyton\]"),
    ],
)
def test_blocks_that_cannot_be_fulfilled_are_refused(workplace, content, match):
    with pytest.raises(UsageError, match=match):
        script_image(script(block(content)))


def test_two_blocks_are_refused(workplace):
    with pytest.raises(UsageError, match="more than one"):
        script_image(script(block("dependencies = []") + block("dependencies = []")))


@given(st.text(max_size=200), st.booleans())
def test_only_usage_errors_leave_the_reader_of_scripts(tmp_path_factory, text, in_block):
    path = tmp_path_factory.mktemp("script") / "pay.py"
    path.write_bytes((block(text) if in_block else text).encode("utf-8", "surrogatepass"))
    try:
        script_image(path)
    except UsageError:
        pass


# -- the cache ---------------------------------------------------------------------------------------------------------------


def test_the_cache_is_keyed_by_content(workplace):
    name = script(FUNCTION)
    first = build_file(name)
    before = first.stat()
    assert str(first).startswith(os.environ["XDG_CACHE_HOME"])
    assert build_file(name) == first
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    script(FUNCTION + "# changed\n")
    assert build_file(name) != first
    os.mkdir("elsewhere")
    assert build_file(script(FUNCTION, "elsewhere/pay.py")) == first
    assert build_file(script(FUNCTION, "other.py")) != first


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_cache_is_built_anew(workplace, damage):
    name = script(FUNCTION)
    path = build_file(name)
    if damage is None:
        Image.create(script_image(name).manifest, {"pay.py": b"evil"}).save(path)
    else:
        path.write_bytes(damage)
    assert Image.open(build_file(name)).measurement == script_image(name).measurement


def test_a_cache_that_cannot_be_written_is_said(workplace, monkeypatch):
    Path("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.abspath("file"))
    with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
        build_file(script(FUNCTION))


def test_building_a_file_imports_neither_grpc_nor_a_compiler(workplace):
    import subprocess

    script(FUNCTION)
    program = "import sys; from adyton.image.build import build_file; build_file('pay.py'); print([m for m in sys.modules if 'grpc' in m])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
