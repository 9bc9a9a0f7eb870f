"""Which machines an image with packages is built for: the same, whoever builds it."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.usefixtures("here")
X86_64, ARM64 = "manylinux_2_28_x86_64", "manylinux_2_28_aarch64"


@pytest.fixture
def compiled(wheels):
    for machine in ("x86_64", "aarch64"):
        wheels.add("alpha", "1.0", tag=f"cp311-abi3-manylinux_2_17_{machine}")
    return wheels


def test_compiled_packages_are_for_one_platform_unless_the_table_names_another(compiled, build):
    assert build("alpha").manifest.platforms == [X86_64]
    assert build("alpha", more=f'platform = "{ARM64}"').manifest.platforms == [ARM64]


def test_pure_packages_that_want_another_on_the_other_machine_bind_the_platform(compiled, build):
    compiled.add("beta", "1.0", requires=['alpha; platform_machine == "aarch64"'])
    assert build("beta").manifest.platforms == [X86_64]
