"""The quickstart sends its message to no enclave but the one that the policy wants, and says in a sentence what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command import ROOT, adyton

pytestmark = [pytest.mark.sandbox, pytest.mark.each_variant]
QUICKSTART = ROOT / "examples" / "quickstart"
OTHER = "sha256:" + "2" * 64


@pytest.fixture(scope="module")
def image() -> tuple[str, str]:
    """Its measurement, and who signed it."""
    built = adyton("build", cwd=QUICKSTART)
    path, measurement = built.stdout.split()[-2:]
    shown = adyton("inspect", path, cwd=QUICKSTART).stdout
    (signer,) = re.findall(r"signed by +(sha256:\w+)", shown)
    return measurement, signer


@pytest.mark.parametrize(
    ("expect", "wrong", "advice"),
    [
        (
            'signer = ["{other}"]\nproduct_id = 0\ndebug = true',
            "signer: expected {other}",
            "change [expect] in the policy",
        ),
        ('measurement = ["{other}"]\ndebug = true', "measurement: expected {other}", "change [expect] in the policy"),
        (
            'signer = ["{signer}"]\nproduct_id = 0\nmin_version = 7\ndebug = true',
            "expected 7 or later, got 0",
            "lower min_version",
        ),
        ('measurement = ["{measurement}"]', "debug: expected false, got true", "signed for release"),
        (
            'measurement = ["{measurement}"]\ndebug = true\nplatforms = ["tdx"]',
            "got sim (a simulated enclave",
            "--allow-sim",
        ),
    ],
)
def test_the_message_is_sent_to_no_other_enclave(tmp_path: Path, image, expect, wrong, advice):
    measurement, signer = image
    names = {"other": OTHER, "measurement": measurement, "signer": signer}
    policy = tmp_path / "policy.toml"
    platforms = "" if "platforms" in expect else 'platforms = ["sim"]\n'
    policy.write_text(f"[expect]\n{platforms}{expect.format(**names)}\n")
    ran = adyton("run", "quickstart", "--", "--message", "hush", cwd=QUICKSTART, ADYTON_POLICY=str(policy))
    assert ran.returncode == 24, ran.stderr
    assert "Encrypted" not in ran.stdout
    assert wrong.format(**names) in ran.stderr
    assert advice in ran.stderr
    assert "Traceback" not in ran.stderr


def test_it_is_sent_to_the_one_that_is_wanted(tmp_path: Path, image):
    measurement, _ = image
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[expect]\nplatforms = ["sim"]\nmeasurement = ["{measurement}"]\ndebug = true\n')
    ran = adyton("run", "quickstart", "--", "--message", "hush", cwd=QUICKSTART, ADYTON_POLICY=str(policy))
    assert ran.returncode == 0, ran.stderr
    assert "Encrypted message:" in ran.stdout
