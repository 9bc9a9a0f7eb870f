"""`make conformance` itself: what it sees of tests that fail, hang or crash, and how its list is held to; and two of CPython's modules in an enclave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import conformance_run as conformance
import pytest
from expected_list import Expected, Rule
from thorough import part_of

ROOT = Path(__file__).parent.parent

TESTS = """
import os, signal, threading, time, unittest

class Some(unittest.TestCase):
    def test_a_passes(self): pass
    def test_b_fails(self): self.assertEqual(1, 2)
    def test_c_skips(self): self.skipTest("not today")
    def test_d_hangs(self): threading.Event().wait()
    def test_e_crashes(self): os.kill(os.getpid(), signal.SIGKILL)
    def test_f_is_the_main_thread(self):
        signal.signal(signal.SIGUSR1, lambda *_: None)
        print("said")
    def test_g_fails_in_parts(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertNotEqual(number, 1)
    def test_h_forks_and_comes_back(self):
        pid = os.fork()
        if pid == 0:
            return
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 99)
    @unittest.expectedFailure
    def test_i_is_expected_to_fail(self): self.fail()

class NeverSetUp(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise OSError("no")
    def test_it(self): pass
"""
RUN = "import sys, runner; runner.run_module(sys.argv[1], sys.argv[2], print, seconds=3)"


def outcomes(tmp_path, text: str) -> dict[str, tuple[str, str]]:
    (tmp_path / "some_tests.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", RUN, "some_tests", str(tmp_path)],
        env={"PYTHONPATH": f"{ROOT / 'conformance'}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({each["test"] for each in said}) == len(said)
    return {each["test"]: (each["outcome"], each["text"]) for each in said}


def test_each_test_has_an_outcome_whatever_it_does(tmp_path):
    found = outcomes(tmp_path, TESTS)
    assert {test.rpartition("test_")[2]: outcome for test, (outcome, _) in found.items() if "Some" in test} == {
        "a_passes": "passed",
        "b_fails": "failed",
        "c_skips": "skipped",
        "d_hangs": "hung",
        "e_crashes": "crashed",
        "f_is_the_main_thread": "passed",
        "g_fails_in_parts": "failed",
        "h_forks_and_comes_back": "passed",
        "i_is_expected_to_fail": "passed",
    }
    assert found["some_tests.Some.test_c_skips"][1] == "not today"
    assert "number=1" in found["some_tests.Some.test_g_fails_in_parts"][1]
    outcome, text = found["setUpClass (some_tests.NeverSetUp)"]
    assert (outcome, "OSError: no" in text) == ("failed", True)
    assert "said" in (tmp_path / "output").read_text()


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("import nothing_of_that_name", "failed"),
        ("raise PermissionError('no')", "failed"),
        ("import unittest; raise unittest.SkipTest('not here')", "skipped"),
        ("import os; os._exit(3)", "crashed"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_test(tmp_path, text, outcome):
    found = outcomes(tmp_path, text)
    assert [(test, said[0]) for test, said in found.items()] == [("some_tests (import)", outcome)]


def test_what_differs_is_what_passes_plainly_only():
    def said(**tests: str) -> dict[str, dict[str, str]]:
        return {test: {"outcome": outcome, "text": "a\nlast"} for test, outcome in tests.items()}

    plain = said(a="passed", b="passed", c="failed", d="skipped", e="passed", f="passed")
    enclave = said(a="passed", b="failed", c="failed", d="failed", e="skipped", g="failed")
    found = {each.test: each.outcome for each in conformance.differences(plain, enclave)}
    assert found == {"b": "failed", "e": "skipped", "f": "missing", "g": "failed"}


def test_differences_are_told_by_what_they_have_in_common():
    text = "Traceback …\nPermissionError: [Errno 13] Permission denied: '{}'"
    found = [conformance.Difference(f"test.t{each}", "failed", text.format(each)) for each in range(4)]
    other = conformance.Difference("test.other", "failed", "AssertionError: 420 != 438")
    assert conformance.grouped([other, *found]) == [
        "    4 failed: PermissionError: [Errno 13] Permission denied: …\n      t0, t1, t2, …",
        "    1 failed: AssertionError: # != #\n      other",
    ]


def test_a_rule_is_stale_once_one_of_its_patterns_has_nothing_that_fails():
    expected = Expected([Rule(["t.A.*", "t.B.test_[x]"], "why"), Rule(["other.*"], "why")])
    assert expected.rule_of("t.A.test_1") is expected.rules[0]
    assert expected.rule_of("t.B.test_[x]") is expected.rules[0]
    assert expected.rule_of("t.B.test_x") is None
    ran = ["t.A.test_1", "t.A.test_2", "t.B.test_[x]"]
    assert expected.stale(["t.A.test_2", "t.B.test_[x]"], ran) == []
    assert expected.stale(["t.A.test_2"], ran) == [Rule(["t.B.test_[x]"], "why")]
    assert expected.stale([], ["somewhere.else"]) == []


def test_a_rule_for_what_differs_sometimes_is_never_stale():
    assert Expected([Rule(["t.A.*"], "why", sometimes=True)]).stale([], ["t.A.test_1"]) == []


@pytest.mark.parametrize(
    "text",
    [
        "[[expected]]\ntests = []\nreason = 'x'\n",
        "[[expected]]\ntests = ['t']\nreason = ' '\n",
        "[[expected]]\ntests = ['t']\n",
        "[[excepted]]\n",
        "[[expected]]\ntests = ['t']\nreason = 'x'\npyhton = ['3.11']\n",
        "[",
    ],
)
def test_a_list_with_a_mistake_is_refused(tmp_path, text):
    (tmp_path / "list.toml").write_text(text)
    with pytest.raises(ValueError, match=r"list\.toml"):
        Expected.read(tmp_path / "list.toml", ("3", "11"))


def test_a_rule_may_be_for_some_versions_only(tmp_path):
    (tmp_path / "list.toml").write_text("[[expected]]\ntests = ['t']\nreason = 'x'\npython = ['3.11']\n")
    assert Expected.read(tmp_path / "list.toml", ("3", "11")).rule_of("t")
    assert Expected.read(tmp_path / "list.toml", ("3", "12")).rule_of("t") is None


def test_the_committed_list_can_be_read():
    assert Expected.read(ROOT / "conformance" / "expected.toml", ("3", "11")) is not None


@pytest.mark.long
@pytest.mark.sandbox
def test_the_quick_modules_of_cpython_pass_in_an_enclave_but_for_what_is_listed(monkeypatch, tmp_path):
    if conformance.missing():
        pytest.skip(f"NOTHING TO RUN: {conformance.missing()}")
    monkeypatch.setattr(conformance, "RESULTS", tmp_path / "results")
    expected = Expected.read(ROOT / "conformance" / "expected.toml", conformance.platform.python_version_tuple()[:2])
    modules = part_of(["test_fileio", "test_mmap", "test_file", "test_fcntl"], 2)
    assert conformance.run_modules(modules, expected) == ([], [])
