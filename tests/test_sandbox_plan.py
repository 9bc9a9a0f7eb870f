"""What a zygote's file tree is planned from: this Python and the runtime's packages; and which user ids there are to give."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import ImageError, PlatformError
from adyton.runtime.process import root, zygote
from adyton.runtime.process.namespaces import UID_BASE, UID_COUNT, maps_enclave_ids


def test_the_plan_names_what_is_there(tmp_path):
    plan = root.plan(str(tmp_path), "module:run", {"extra.py": __file__})
    assert plan.store == os.path.realpath(tmp_path)
    assert plan.interpreter == f"bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    assert plan.interpreter in plan.python
    for source in [*plan.python.values(), *plan.libraries.values(), *plan.supervisor_libraries.values()]:
        assert os.path.isabs(source)
        assert os.path.exists(source)
    assert {"adyton", "msgspec", "cryptography", "google/protobuf", "extra.py"} <= set(plan.libraries)
    assert "OpenSSL" in plan.supervisor_libraries
    assert not {"grpc", "click", "OpenSSL"} & set(plan.libraries)
    assert root.from_json(root.to_json(plan)) == plan


def test_the_standard_library_is_planned_and_its_packages_are_masked():
    plan = root.plan("/", "module:run", {})
    standard_library = os.path.dirname(os.path.realpath(os.__file__))
    assert any(
        standard_library == source or standard_library.startswith(f"{source}/") for source in plan.python.values()
    )
    prefix = os.path.realpath(sys.base_prefix)
    for masked in plan.mask:
        assert Path(prefix, masked).is_dir()
        assert masked.endswith("-packages")
    if Path(standard_library, "site-packages").is_dir():
        assert os.path.relpath(f"{standard_library}/site-packages", prefix) in plan.mask


VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def python_at(monkeypatch):
    """python_at(prefix, standard library): make this Python one that is installed there."""

    def python_at(prefix, standard_library):
        monkeypatch.setattr(sys, "base_prefix", str(prefix))
        monkeypatch.setattr(sys, "_base_executable", f"{prefix}/bin/{VERSION}")
        monkeypatch.setattr(root.sysconfig, "get_path", lambda _name, **_: str(standard_library))
        return root._plan_python()

    return python_at


def test_of_a_distributions_python_no_more_than_its_own_is_shown(python_at):
    python, interpreter, _ = python_at("/usr", f"/usr/lib/{VERSION}")
    assert interpreter == f"bin/{VERSION}"
    libraries = {f"lib/{name}" for name in os.listdir("/usr/lib") if name.startswith("libpython") and ".so" in name}
    assert set(python) == {interpreter, f"lib/{VERSION}"} | libraries
    assert python[f"lib/{VERSION}"] == f"/usr/lib/{VERSION}"


@pytest.mark.parametrize("lib", [True, False], ids=["lib", "no-lib"])
def test_a_standard_library_in_lib64_is_found(python_at, tmp_path, lib):
    (tmp_path / "lib64" / VERSION / "site-packages").mkdir(parents=True)
    if lib:
        (tmp_path / "lib").mkdir()
    python, interpreter, mask = python_at(tmp_path, tmp_path / "lib64" / VERSION)
    expected = {interpreter: f"{tmp_path}/bin/{VERSION}", f"lib64/{VERSION}": f"{tmp_path}/lib64/{VERSION}"}
    assert python == expected | ({"lib": f"{tmp_path}/lib"} if lib else {})
    assert mask == [f"lib64/{VERSION}/site-packages"]


def test_a_pythons_own_prefix_is_shown_as_it_is(python_at, tmp_path):
    (tmp_path / "lib" / VERSION / "dist-packages").mkdir(parents=True)
    python, interpreter, mask = python_at(tmp_path, tmp_path / "lib" / VERSION)
    assert python == {interpreter: f"{tmp_path}/bin/{VERSION}", "lib": f"{tmp_path}/lib"}
    assert mask == [f"lib/{VERSION}/dist-packages"]


def test_the_loader_is_found_where_programs_look_for_it(monkeypatch, tmp_path):
    """Debian on arm64: a program's header says /lib/ld-linux-aarch64.so.1."""
    for name in ("aarch64-linux-gnu", "python3.11", "locale"):
        (tmp_path / name).mkdir()
    (tmp_path / "aarch64-linux-gnu/ld-linux-aarch64.so.1").touch()
    (tmp_path / "ld-linux-aarch64.so.1").symlink_to("aarch64-linux-gnu/ld-linux-aarch64.so.1")
    (tmp_path / "libpython3.so").symlink_to("elsewhere")
    (tmp_path / "ld-old.so").touch()
    links = {"ld-linux-aarch64.so.1": "aarch64-linux-gnu/ld-linux-aarch64.so.1"}
    assert root.loader_links(str(tmp_path)) == links
    monkeypatch.setattr(root.sysconfig, "get_config_var", lambda _name: os.path.relpath(tmp_path, "/usr/lib"))
    monkeypatch.setattr(root, "loader_links", lambda _folder: links)
    found = root._system().links
    assert found["/system/usr/lib/ld-linux-aarch64.so.1"] == "aarch64-linux-gnu/ld-linux-aarch64.so.1"


def test_libraries_that_a_wheel_brings_along_go_with_it(monkeypatch, tmp_path):
    (tmp_path / "boxed").mkdir()
    (tmp_path / "boxed/__init__.py").touch()
    (tmp_path / "boxed.libs").mkdir()
    (tmp_path / "single.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert root._plan_libraries([("boxed", True), ("single", True), ("none_such", False)]) == {
        "boxed": f"{tmp_path}/boxed",
        "boxed.libs": f"{tmp_path}/boxed.libs",
        "single.py": f"{tmp_path}/single.py",
    }


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(root, "SUPERVISOR_PACKAGES", (("no_such_package", True),))
    with pytest.raises(PlatformError, match="no_such_package is not installed"):
        root.plan("/", "module:run", {})
    monkeypatch.setattr(root, "SUPERVISOR_PACKAGES", (("no_such_package.part", False),))
    assert root.plan("/", "module:run", {}).supervisor_libraries == {}


@pytest.mark.parametrize(
    ("uid_map", "enough"),
    [
        ("         0          0 4294967295\n", True),
        ("         0     100000      65536\n", False),
        ("      1000       1000          1\n", False),
        (f"0 0 1000\n{UID_BASE} {UID_BASE} {UID_COUNT}\n", True),
        (f"0 0 1000\n{UID_BASE} {UID_BASE} {UID_COUNT - 1}\n", False),
        ("", False),
    ],
)
def test_ids_are_given_where_all_are_mapped(uid_map, enough):
    assert maps_enclave_ids(uid_map) is enough


@given(first=st.integers(0, 1 << 32), count=st.integers(1, 1 << 32))
def test_one_range_of_ids_is_enough_exactly_when_it_holds_them_all(first, count):
    holds = first <= UID_BASE and first + count >= UID_BASE + UID_COUNT
    assert maps_enclave_ids(f"{first} {first} {count}\n") is holds


@given(text=st.text(max_size=6000))
def test_failures_fit_into_one_message(text):
    message = zygote.failure(ImageError(text))
    assert message.startswith(b"failed:ImageError\n")
    assert len(message) < 5000
    assert zygote.failure(ValueError("x")) == b"failed:PlatformError\nx"
