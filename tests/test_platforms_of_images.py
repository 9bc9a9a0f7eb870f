"""Which machines an image with packages is built for: those like the one that builds it, unless its table says; and the lock has both."""

from __future__ import annotations

import os
import tomllib

import pytest

from adyton.errors import UsageError
from adyton.image import platforms

pytestmark = pytest.mark.usefixtures("here")
X86_64, ARM64 = "manylinux_2_28_x86_64", "manylinux_2_28_aarch64"


@pytest.fixture
def compiled(wheels):
    for machine in ("x86_64", "aarch64"):
        wheels.add("alpha", "1.0", tag=f"cp311-abi3-manylinux_2_17_{machine}")
    return wheels


def locked(folder):
    return [each["platform"] for each in tomllib.loads((folder / "adyton.lock").read_text())["enclave"]["app"]]


@pytest.mark.parametrize(("machine", "platform"), [("x86_64", X86_64), ("aarch64", ARM64)])
def test_compiled_packages_are_for_machines_like_this_one(compiled, build, here, machine, platform):
    here(11, machine)
    assert build("alpha").manifest.platforms == [platform]


@pytest.mark.parametrize(
    ("system", "machine"), [("Darwin", "arm64"), ("Linux", "riscv64"), ("Linux", "i686"), ("Darwin", "x86_64")]
)
def test_where_no_enclave_can_run_they_are_for_x86_64(monkeypatch, system, machine):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((system, "here", "1", "#1", machine)))
    assert platforms.default_platform() == X86_64


def test_the_table_decides_for_every_builder(compiled, build, here):
    for machine in ("x86_64", "aarch64"):
        here(11, machine)
        assert build("alpha", more=f'platform = "{ARM64}"').manifest.platforms == [ARM64]


def test_one_lock_serves_builders_on_both_machines(compiled, build, here, workplace, forget):
    measured = {}
    for machine in ("x86_64", "aarch64"):
        here(11, machine)
        measured[machine] = build("alpha").measurement
    assert len(set(measured.values())) == 2
    assert locked(workplace) == [ARM64, X86_64]
    before = (workplace / "adyton.lock").read_text()
    forget()
    for machine in ("aarch64", "x86_64"):
        here(11, machine)
        assert build("alpha").measurement == measured[machine]
    assert (workplace / "adyton.lock").read_text() == before


def test_what_is_compiled_nowhere_is_locked_once_and_the_same_image(wheels, build, here, workplace, forget):
    wheels.add("alpha", "1.0")
    measured = set()
    for machine in ("aarch64", "x86_64"):
        here(11, machine)
        measured.add(build("alpha").measurement)
        forget()
    assert len(measured) == 1
    assert locked(workplace) == [ARM64]


def test_a_platform_that_the_table_names_takes_the_place_of_others(compiled, build, here, workplace):
    build("alpha")
    build("alpha", more=f'platform = "{ARM64}"')
    assert locked(workplace) == [ARM64]


def test_pure_packages_that_want_another_on_the_other_machine_bind_the_platform(compiled, build):
    compiled.add("beta", "1.0", requires=['alpha; platform_machine == "aarch64"'])
    assert build("beta").manifest.platforms == [X86_64]


def test_a_wheel_that_this_machine_has_not_is_an_error_that_says_what_to_do(wheels, build, here):
    wheels.add("alpha", "1.0", tag="cp311-abi3-manylinux_2_17_x86_64")
    here(11, "aarch64")
    with pytest.raises(
        UsageError,
        match=r"Python 3\.11 on manylinux_2_28_aarch64 could be had: .*another Python \(--python\) or platform",
    ):
        build("alpha")
