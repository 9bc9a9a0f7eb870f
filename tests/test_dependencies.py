"""Dependencies of images: resolved against the runtime's ABI, locked by hash, laid out the same way anywhere. No network is used."""

import importlib.util
import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_wheels import Wheels

from adyton.errors import ImageError, UsageError
from adyton.image import archive
from adyton.image.build import build_file, script_image
from adyton.image.lock import Locked, Wheel, format_lock, parse_lock
from adyton.image.manifest import RUNTIME_PACKAGES
from adyton.image.oci import APPLICATION_LAYER, DEPENDENCY_LAYER, Image

pytestmark = pytest.mark.usefixtures("here")
PROGRAM = "def f() -> int:\n    return 1\n"


def packages(image):
    """Files of the layer of dependencies by path."""
    assert [each.media_type for each in image.layer_descriptors] == [APPLICATION_LAYER, DEPENDENCY_LAYER]
    data = image.layers()[1]
    return {each.path: data[each.offset : each.offset + each.size] for each in archive.unpack(data)}


def lock(folder):
    (found,) = tomllib.loads((folder / "adyton.lock").read_text())["enclave"]["app"]
    return found


# -- resolving -------------------------------------------------------------------------------------------------------------


def test_what_a_package_needs_comes_along(wheels, build):
    wheels.add("alpha", "1.0", requires=["beta>=1", "msgspec", "adyton"])
    wheels.add("beta", "1.5")
    wheels.add("beta", "2.0")
    wheels.add("msgspec", RUNTIME_PACKAGES["msgspec"])
    found = packages(build("alpha"))
    assert {path for path in found if "/" not in path} == {"alpha.py", "beta.py"}
    assert found["beta.py"] == b"VERSION = '2.0'\n"


def test_the_runtimes_own_packages_are_never_in_a_layer(wheels, build):
    wheels.add("alpha", "1.0", requires=["cryptography>=46", "cffi"])
    for name in ("cryptography", "cffi"):
        wheels.add(name, RUNTIME_PACKAGES[name])
        wheels.add(name, "999.0")
    assert {path.partition("/")[0] for path in packages(build("alpha"))} == {"alpha.py", "alpha-1.0.dist-info"}


def test_an_image_of_the_runtimes_own_packages_needs_no_resolver(monkeypatch, build, workplace):
    monkeypatch.setattr("adyton.image.resolver._find_uv", lambda: pytest.fail("uv was looked for"))
    image = build("cryptography>=46", "adyton", "protobuf")
    assert [each.media_type for each in image.layer_descriptors] == [APPLICATION_LAYER]
    assert not (workplace / "adyton.lock").exists()


def test_extras_of_the_runtimes_packages_are_fulfilled(wheels, build):
    version = RUNTIME_PACKAGES["msgspec"]
    wheels.add("msgspec", version, requires=['yaml-thing; extra == "yaml"'], extras=["yaml"])
    wheels.add("yaml-thing", "1.0")
    assert "yaml_thing.py" in packages(build("msgspec[yaml]"))


def test_a_conflict_with_the_abi_is_an_error_that_names_it(wheels, build):
    wheels.add("alpha", "1.0", requires=["protobuf<5"])
    wheels.add("protobuf", "4.0")
    wheels.add("protobuf", RUNTIME_PACKAGES["protobuf"])
    with pytest.raises(UsageError, match=rf"(?s)ABI adyton-1.*protobuf=={RUNTIME_PACKAGES['protobuf']}"):
        build("alpha")


@pytest.mark.parametrize(
    ("dependency", "match"),
    [
        ("nothere", "no such package"),
        ("alpha>=2", "no such package or version"),
        ("source", "wheels only"),
        ("elsewhere", "wheels only"),
        ("newer", "(?i)python"),
        ("alpha @ https://example.invalid/alpha.whl", "names an address"),
        ("alpha @ file:///tmp/alpha.whl", "names an address"),
        ("alpha ==", "is not a requirement"),
        ("two words", "is not a requirement"),
        ("alpha; python_version >", "is not a requirement"),
        ("-r requirements.txt", "is not a requirement"),
        ("--index-url=x", "is not a requirement"),
        ("alpha\n--index-url x", "is not a requirement"),
    ],
)
def test_what_cannot_be_had_is_said(wheels, build, workplace, dependency, match):
    wheels.add("alpha", "1.0")
    (wheels.folder / "source-1.0.tar.gz").write_bytes(b"")
    wheels.add("elsewhere", "1.0", tag="cp311-cp311-win_amd64")
    wheels.add("newer", "1.0", python=">=3.12")
    with pytest.raises(UsageError, match=match) as raised:
        build(dependency)
    assert raised.value.exit_code == 2
    assert "app" in str(raised.value)
    assert not (workplace / "adyton.lock").exists()


def test_an_index_that_cannot_be_reached_is_said(wheels, build, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(UsageError, match="index cannot be reached"):
        build("alpha")


def test_without_the_resolver_the_extra_is_named(wheels, build, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'adyton\[build\]'"):
        build("alpha")
    monkeypatch.undo()
    monkeypatch.setattr("adyton.image.resolver.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("adyton.image.resolver.shutil.which", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'adyton\[build\]'"):
        build("alpha")


def test_of_several_wheels_the_one_that_fits_best_is_taken(wheels, build, tmp_path, monkeypatch):
    wheels.add("alpha", "1.0")
    other = Wheels(tmp_path / "more")
    other.add("alpha", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    other.add("alpha", "1.0", tag="py3-none-any")
    monkeypatch.setenv("UV_FIND_LINKS", f"{wheels.folder},{other.folder}")
    assert build("alpha").manifest.python == "3.11"


# -- python and platform ---------------------------------------------------------------------------------------------------


def test_pure_packages_bind_neither_python_nor_platform(wheels, build):
    wheels.add("alpha", "1.0")
    manifest = build("alpha").manifest
    assert (manifest.python, manifest.platforms) == (">=3.11", ["any"])


def test_compiled_packages_bind_both(wheels, build):
    wheels.add("alpha", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    wheels.add("alpha", "1.0", tag="cp314-cp314-manylinux_2_17_x86_64")
    wheels.add("alpha", "1.0", tag="cp314-cp314-manylinux_2_28_aarch64")
    manifest = build("alpha").manifest
    assert (manifest.python, manifest.platforms) == ("3.11", ["manylinux_2_28_x86_64"])
    manifest = build("alpha", more='python = "3.14"').manifest
    assert (manifest.python, manifest.platforms) == ("3.14", ["manylinux_2_28_x86_64"])
    manifest = build("alpha", more='python = ">=3.14"\nplatform = "manylinux_2_28_aarch64"').manifest
    assert (manifest.python, manifest.platforms) == ("3.14", ["manylinux_2_28_aarch64"])


def test_the_stable_abi_binds_the_platform_only(wheels, build):
    wheels.add("alpha", "1.0", tag="cp39-abi3-manylinux_2_17_x86_64")
    manifest = build("alpha").manifest
    assert (manifest.python, manifest.platforms) == (">=3.11", ["manylinux_2_28_x86_64"])


@pytest.mark.parametrize(
    ("metadata", "python"),
    [
        ({"python": ">=3.8,<3.14"}, ">=3.11,<3.14"),
        ({"python": ">=3.8,<3.12"}, "3.11"),
        ({"requires": ['beta; python_version >= "3.13"']}, ">=3.11,<3.13"),
        ({"requires": ['beta; python_version < "3.12"']}, ">=3.11"),
        ({"requires": ['beta; extra == "x" and python_version >= "3.12"'], "extras": ["x"]}, "3.11"),
        ({"requires": ['beta; extra == "x"', 'beta; sys_platform == "win32"'], "extras": ["x"]}, ">=3.11"),
    ],
)
def test_an_image_runs_on_the_pythons_for_which_its_packages_are_complete(wheels, build, metadata, python):
    wheels.add("alpha", "1.0", **metadata)
    wheels.add("beta", "1.0")
    assert build("alpha").manifest.python == python


def test_an_unknown_platform_is_refused(build):
    with pytest.raises(UsageError, match="'riscv' is no platform such as manylinux_2_28_x86_64"):
        build(more='platform = "riscv"')


# -- the lock --------------------------------------------------------------------------------------------------------------


def test_the_lock_names_wheels_by_hash_and_no_address(wheels, build, workplace):
    wheels.add("alpha", "1.0", requires=["beta"])
    wheels.add("beta", "2.0")
    image = build("alpha")
    text = (workplace / "adyton.lock").read_text()
    assert "://" not in text
    assert str(wheels.folder) not in text
    locked = lock(workplace)
    assert [(each["name"], each["version"]) for each in locked["wheel"]] == [("alpha", "1.0"), ("beta", "2.0")]
    assert locked["layer"] == image.layer_descriptors[1].digest


def test_what_is_locked_is_built_again_and_not_resolved(wheels, build, workplace, forget):
    wheels.add("alpha", "1.0", requires=["beta"])
    wheels.add("beta", "2.0")
    first, text = build("alpha"), (workplace / "adyton.lock").read_text()
    wheels.add("beta", "3.0")
    assert build("alpha").measurement == first.measurement
    forget()
    assert build("alpha").measurement == first.measurement
    assert (workplace / "adyton.lock").read_text() == text
    (workplace / "adyton.lock").unlink()
    assert packages(build("alpha"))["beta.py"] == b"VERSION = '3.0'\n"


def test_what_was_built_here_once_needs_no_index(wheels, build, monkeypatch):
    wheels.add("alpha", "1.0")
    first = build("alpha")
    monkeypatch.setattr("adyton.image.resolver._find_uv", lambda: pytest.fail("uv was looked for"))
    assert build("alpha").measurement == first.measurement


def test_another_requirement_leaves_the_other_versions_as_they_were(wheels, build, workplace):
    wheels.add("alpha", "1.0")
    build("alpha")
    wheels.add("alpha", "1.1")
    wheels.add("beta", "2.0")
    build("alpha", "beta")
    assert [each["version"] for each in lock(workplace)["wheel"]] == ["1.0", "2.0"]
    build("alpha>=1.1", "beta")
    assert [each["version"] for each in lock(workplace)["wheel"]] == ["1.1", "2.0"]


def test_a_wheel_that_is_not_the_locked_one_is_refused(wheels, build, forget):
    wheels.add("alpha", "1.0")
    build("alpha")
    forget()
    shutil.rmtree(wheels.folder / "uv-cache")
    wheels.add("alpha", "1.0", {"alpha.py": b"evil = 1\n"})
    with pytest.raises(ImageError, match=r"not the one that adyton\.lock names") as raised:
        build("alpha")
    assert raised.value.exit_code == 40


def test_a_layer_in_the_cache_that_was_changed_is_made_again(wheels, build, tmp_path):
    wheels.add("alpha", "1.0")
    first = build("alpha")
    (layer,) = (tmp_path / "cache/adyton/layers").iterdir()
    layer.write_bytes(layer.read_bytes().replace(b"VERSION = '1.0'", b"VERSION = '6.6'"))
    assert build("alpha").measurement == first.measurement


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "[",
        lambda text: text.replace("version = 2\n", "version = 1\n"),
        lambda text: text.replace('resolved_for = "3.11"', 'resolved_for = "--help"'),
        lambda text: text.replace('resolved_for = "3.11"', 'resolved_for = "3.10"'),
        lambda text: text.replace('runs_on_python = ">=3.11"', 'runs_on_python = "3.x"'),
        lambda text: text.replace('runs_on_python = ">=3.11"', 'runs_on_python = "3.12"'),
        lambda text: text.replace('\npython = ">=3.11"', '\npython = ">=3.12"'),
        lambda text: text.replace("sha256:", "md5:"),
        lambda text: text.replace('name = "alpha"', 'name = "alpha --index-url x"'),
        lambda text: text.replace("platform", "plattform"),
        lambda text: text.replace("version = 2\n", ""),
    ],
)
def test_a_lock_that_cannot_be_read_is_said(wheels, build, workplace, change):
    wheels.add("alpha", "1.0")
    build("alpha")
    path = workplace / "adyton.lock"
    path.write_text(change(path.read_text()))
    with pytest.raises(UsageError, match=r"adyton\.lock is"):
        build("alpha")


def test_a_lock_that_promises_another_layer_is_refused(wheels, build, workplace, forget):
    wheels.add("alpha", "1.0")
    digest = build("alpha").layer_descriptors[1].digest
    path = workplace / "adyton.lock"
    path.write_text(path.read_text().replace(digest, "sha256:" + "0" * 64))
    with pytest.raises(ImageError, match=f"(?s){digest}.*{'0' * 64}"):
        build("alpha")


def test_the_cache_is_bounded_and_keeps_what_was_used_last(wheels, workplace, tmp_path, monkeypatch):
    wheels.add("alpha", "1.0")
    images, layers = (tmp_path / "cache/adyton" / name for name in ("images", "layers"))
    first = build_file(script(workplace, "alpha"))
    monkeypatch.setattr("adyton.image.cache.MAX_CACHE", int(2.5 * first.stat().st_size))
    os.utime(first, (1, 1))
    second = build_file(script(workplace, "alpha", python=">=3.12"))
    os.utime(second, (2, 2))
    assert build_file(script(workplace, "alpha")) == first
    third = build_file(script(workplace, "alpha", python=">=3.13"))
    assert set(images.iterdir()) == {first, third}
    assert len(list(layers.iterdir())) == 1


def test_what_a_killed_build_left_goes(wheels, build, tmp_path):
    wheels.add("alpha", "1.0")
    for name in (".installing-old", ".installing-new"):
        (tmp_path / "cache/adyton/layers" / name).mkdir(parents=True)
    os.utime(tmp_path / "cache/adyton/layers/.installing-old", (1, 1))
    build("alpha")
    assert len(list((tmp_path / "cache/adyton/layers").glob(".installing-*"))) == 1


def test_extras_that_bring_nothing_are_no_error(wheels, build):
    wheels.add("cffi", RUNTIME_PACKAGES["cffi"], extras=["x"])
    assert packages(build("cffi[x]")) == {}


@given(
    st.dictionaries(
        st.text(st.sampled_from("ab.+-_09"), min_size=1),
        st.lists(
            st.builds(
                Locked,
                abi=st.text(),
                requirements=st.lists(st.text()),
                python=st.sampled_from(["<3.13", ">=3.11"]),
                platform=st.text(),
                resolved_for=st.sampled_from(["3.11", "3.12"]),
                runs_on_python=st.sampled_from([">=3.11,<3.14", ">=3.11"]),
                runs_on_platforms=st.lists(st.text()),
                layer=st.just("sha256:" + "0" * 64),
                wheel=st.lists(st.just(Wheel("a", "1!2+x", "a-1-py3-none-any.whl", "sha256:" + "f" * 64)), max_size=2),
            ),
            min_size=1,
            max_size=2,
        ),
    )
)
def test_a_lock_reads_back_as_it_was_written(enclaves):
    assert parse_lock(format_lock(enclaves).encode()) == enclaves


@given(st.binary())
def test_nothing_but_a_usage_error_leaves_the_reader_of_locks(data):
    try:
        parse_lock(data)
    except UsageError:
        pass


# -- the layer -------------------------------------------------------------------------------------------------------------


def test_a_layer_has_no_trace_of_what_installed_it(wheels, build):
    wheels.add(
        "alpha",
        "1.0",
        {
            "alpha/__init__.py": b"",
            "alpha/__pycache__/__init__.cpython-311.pyc": b"x",
            "alpha-1.0.data/scripts/tool": b"#!python\n",
            "alpha-1.0.data/data/share/alpha/table": b"1",
            "alpha-1.0.data/purelib/alpha_more.py": b"",
            "alpha-1.0.dist-info/entry_points.txt": b"[console_scripts]\nalpha = alpha:main\n",
        },
    )
    found = packages(build("alpha"))
    assert set(found) == {
        *("alpha/__init__.py", "alpha_more.py", "share/alpha/table"),
        *(f"alpha-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")),
    }
    listed = [line.partition(b",")[0].decode() for line in found["alpha-1.0.dist-info/RECORD"].splitlines()]
    assert listed == sorted(found)


def test_two_packages_with_one_file_are_refused_unless_it_is_the_same(wheels, build):
    wheels.add("alpha", "1.0", {"shared/__init__.py": b"", "shared/a.py": b"1"})
    wheels.add("beta", "1.0", {"shared/__init__.py": b"", "shared/b.py": b"2"})
    assert {"shared/a.py", "shared/b.py"} < set(packages(build("alpha", "beta")))
    wheels.add("gamma", "1.0", {"shared/a.py": b"3"})
    wheels.add("delta", "1.0", {"LICENSE": b"1", "delta.py": b""})
    wheels.add("epsilon", "1.0", {"LICENSE": b"2", "epsilon.py": b""})
    found = packages(build("delta", "epsilon"))
    assert {"delta.py", "epsilon.py"} < set(found)
    assert "LICENSE" not in found
    assert b"LICENSE" not in found["delta-1.0.dist-info/RECORD"]
    with pytest.raises(UsageError, match=r"alpha.*gamma.*both have a file shared/a\.py"):
        build("alpha", "gamma")


@pytest.mark.parametrize("path", ["adyton/__init__.py", "google/protobuf/x.py", "_cffi_backend.py", "msgspec.py"])
def test_a_package_may_not_take_the_place_of_the_runtimes(wheels, build, path):
    wheels.add("alpha", "1.0", {path: b""})
    with pytest.raises(UsageError, match="take the place"):
        build("alpha")


def test_a_file_that_the_record_does_not_vouch_for_is_refused(wheels, build):
    wheels.add("alpha", "1.0", {"alpha.py": b"1"}, record="alpha.py,sha256=AAAA,1\nalpha-1.0.dist-info/RECORD,,\n")
    with pytest.raises(ImageError, match=r"of alpha-1\.0\.dist-info is not what the package's RECORD says"):
        build("alpha")


@pytest.mark.parametrize(
    "record",
    [
        "../../../../etc/passwd,sha256=AAAA,1\n",
        "alpha/../../../../../../etc/passwd,sha256=AAAA,1\n",
        "/etc/passwd,sha256=AAAA,1\n",
        "alpha.py,md5=AAAA,1\n",
        "alpha.py,,\n",
    ],
)
def test_a_record_that_names_what_is_not_the_packages_brings_nothing(wheels, build, record):
    wheels.add("alpha", "1.0", {"alpha.py": b"1"}, record=record)
    try:
        found = packages(build("alpha"))
    except (ImageError, UsageError):
        return
    assert not any("passwd" in path or path == "alpha.py" for path in found)


def test_an_application_may_not_lie_where_the_dependencies_do(wheels, build, workplace):
    (workplace / "site-packages").mkdir()
    (workplace / "site-packages/x.py").write_text("")
    with pytest.raises(UsageError, match="another name"):
        build(more='sources = ["app.py", "site-packages"]')


# -- single files (PEP 723) ------------------------------------------------------------------------------------------------


def script(folder: Path, *dependencies: str, python: str = ">=3.11") -> Path:
    path = folder / "prog.py"
    path.write_text(
        f'# /// script\n# requires-python = "{python}"\n# dependencies = {list(dependencies)!r}\n# ///\n{PROGRAM}'
    )
    return path


def test_a_single_file_brings_the_packages_of_its_block(wheels, workplace):
    wheels.add("alpha", "1.0", tag="cp312-cp312-manylinux_2_17_x86_64")
    image = script_image(script(workplace, "alpha", "adyton", python=">=3.12"))
    assert "alpha.py" in packages(image)
    assert image.manifest.python == "3.12"
    assert not (workplace / "adyton.lock").exists()


def test_a_single_file_is_resolved_once(wheels, workplace, monkeypatch):
    wheels.add("alpha", "1.0")
    first = build_file(script(workplace, "alpha"))
    wheels.add("alpha", "2.0")
    monkeypatch.setattr("adyton.image.resolver._find_uv", lambda: pytest.fail("uv was looked for"))
    path = script(workplace, "alpha")
    assert build_file(path) == first
    path.write_text(path.read_text() + "\n# another comment\n")
    assert Image.open(build_file(path)).layer_descriptors[1] == Image.open(first).layer_descriptors[1]


def test_what_a_single_file_cannot_have_is_said(wheels, workplace):
    with pytest.raises(UsageError, match=re.escape("prog.py: dependencies: ")):
        script_image(script(workplace, "nothere"))
