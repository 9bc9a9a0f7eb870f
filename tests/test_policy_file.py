"""The policy file: read strictly, and added to by arguments and environment."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.attestation.expectation import Expectation
from adyton.config import AllowSettings, Mount, Policy
from adyton.errors import UsageError
from adyton.hostcall.client.policy import Grant

DIGEST = "sha256:" + "ab" * 32
WHOLE = f"""
[expect]
platforms = ["tdx", "sev-snp"]
measurement = ["{DIGEST}"]
signer = ["{DIGEST}"]
product_id = 7
min_version = 2
debug = false
runtime = ["{DIGEST}"]
tcb = ["UpToDate"]
machines = []
[allow]
read = ["./data"]
write = []
net = ["db.example:5432", "10.0.0.0/8:443", "[::1]:80"]
listen = ["127.0.0.1:8080"]
env = ["TZ"]
call = ["lookup"]
[[mount]]
path = "./data"
coherence = "close-to-open"
[sealed]
path = "./sealed"
memory = "required"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, beside the folder that policies are in."""
    here = Path(os.path.realpath(tmp_path)) / "here"
    here.mkdir()
    (here.parent / "etc").mkdir()
    monkeypatch.chdir(here)
    for name in list(os.environ):
        if name.startswith("ADYTON_"):
            monkeypatch.delenv(name)
    return here


def parse(text):
    return Policy.parse(text, name="policy.toml", base="/srv/app")


def test_every_key_of_the_interface_is_read():
    policy = parse(WHOLE)
    assert policy.expect is not None
    assert (policy.expect.product_id, policy.expect.min_version, policy.expect.debug) == (7, 2, False)
    assert list(policy.expect.platforms) == ["tdx", "sev-snp"]
    assert list(policy.expect.measurement) == list(policy.expect.signer) == list(policy.expect.runtime) == [DIGEST]
    policy.expect.check()
    assert policy.allow.read == ("/srv/app/./data",)
    assert policy.allow.net == ("db.example:5432", "10.0.0.0/8:443", "[::1]:80")
    assert (policy.allow.listen, policy.allow.env, policy.allow.call) == (("127.0.0.1:8080",), ("TZ",), ("lookup",))
    assert policy.mounts == (Mount("/srv/app/./data", "close-to-open"),)
    assert policy.sealed == "/srv/app/./sealed"
    assert policy.memory == policy.extended().memory == "required"
    assert policy.host_calls("/srv").grants() == [Grant("/srv/app/data", "read")]


def test_an_empty_file_says_nothing():
    assert parse("") == Policy() == Policy.read(None)
    assert parse("[allow]\n") == Policy()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[expct]\n", "expect"),
        ("[alow]\n", "allow"),
        ("[[mounts]]\npath='x'\n", "mount"),
        ("[allow]\nraed = []\n", "allow.raed.*read"),
        ("[allow]\nREAD = []\n", "allow.READ"),
        ("[expect]\nmeasurment = []\n", "expect.measurment.*measurement"),
        ("[expect]\nmin-version = 1\n", "min_version"),
        ("[[mount]]\npath = 'x'\ncoherense = 'strict'\n", "mount.coherense.*coherence"),
        ("[sealed]\npth = 'x'\n", "sealed.pth.*path"),
        ("[sealed]\nmemory = 'requird'\n", "sealed.memory.*required"),
        ("zzz = 1\n", "known are expect, allow, mount, sealed"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(text, hint):
    with pytest.raises(UsageError, match=hint) as caught:
        parse(text)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("policy.toml: ")


@pytest.mark.parametrize(
    "text",
    [
        "[allow",
        "allow = 1",
        "allow = [1]",
        "[[allow]]",
        "expect = []",
        "[allow]\nread = 'data'",
        "[allow]\nread = [1]",
        "[allow]\nread = ['']",
        "[allow]\nenv = [true]",
        "[expect]",
        "[expect]\nplatforms = 'sim'",
        "[expect]\nplatforms = ['simulated']",
        "[expect]\nplatforms = [['sim']]",
        "[expect]\nmeasurement = ['sha256:12']",
        f"[expect]\nmeasurement = ['{DIGEST.upper()}']",
        "[expect]\nsigner = [7]",
        "[expect]\nproduct_id = '7'",
        "[expect]\nproduct_id = -1",
        "[expect]\nmin_version = 1.5",
        "[expect]\ndebug = 1",
        "[expect]\ndebug = 'false'",
        "mount = 1",
        "mount = [1]",
        "[mount]\npath = 'x'",
        "[[mount]]\ncoherence = 'close-to-open'",
        "[[mount]]\npath = 'x'\ncoherence = 'lax'",
        "[[mount]]\npath = 'x'\ncoherence = []",
        "[[mount]]\npath = ''",
        "sealed = 'x'",
        "[[sealed]]\npath = 'x'",
        "[sealed]",
        "[sealed]\npath = 1",
        "[sealed]\npath = ''",
        "[allow]\nread = []\nread = []",
    ],
)
def test_malformed_values_are_refused(text):
    with pytest.raises(UsageError, match=r"policy\.toml") as caught:
        parse(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("coherence", ["strict", "close-to-open", "exclusive"])
def test_a_mount_says_how_coherent_a_path_is(coherence):
    parsed = parse(f"[[mount]]\npath = 'x'\ncoherence = '{coherence}'")
    assert parsed.mounts == (Mount("/srv/app/x", coherence),)


def test_a_mount_is_close_to_open_if_nothing_is_said():
    assert parse("[[mount]]\npath = 'x'").mounts == (Mount("/srv/app/x", "close-to-open"),)


def test_paths_in_a_file_are_relative_to_it_and_others_to_the_working_directory(folder):
    file = folder.parent / "etc/policy.toml"
    file.write_text("[allow]\nread = ['data', '../here/x', '/srv/y']\n")
    policy = Policy.read("../etc/policy.toml").extended(read=["data", Path("deep/er")])
    assert {grant.path for grant in policy.host_calls().grants()} == {
        f"{folder.parent}/etc/data",
        f"{folder}/x",
        "/srv/y",
        f"{folder}/data",
        f"{folder}/deep/er",
    }
    assert policy.host_calls().working_directory == str(folder)


@pytest.mark.parametrize("name", ["none.toml", "."])
def test_a_file_that_cannot_be_read_is_the_users_mistake(folder, name):
    with pytest.raises(UsageError, match="cannot be read"):
        Policy.read(name)


def test_a_file_that_is_not_utf8(folder):
    (folder / "policy.toml").write_bytes(b"# \xff\n")
    with pytest.raises(UsageError, match="UTF-8"):
        Policy.read("policy.toml")


class TestAdding:
    def test_arguments_add_to_the_files_lists(self, folder):
        policy = parse("[allow]\nread = ['a']\nenv = ['TZ']\n").extended(read=["b"], call=["lookup"], environment={})
        assert policy.allow == AllowSettings(read=("/srv/app/a", f"{folder}/b"), env=("TZ",), call=("lookup",))

    def test_the_environment_adds_where_the_argument_is_not_given(self, folder):
        environment = {
            "ADYTON_ALLOW_READ": "/srv/a:b::",
            "ADYTON_ALLOW_NET": " db:1  [::1]:2 ",
            "ADYTON_ALLOW_ENV": "TZ LANG",
        }
        policy = Policy().extended(environment=environment)
        assert policy.allow == AllowSettings(
            read=("/srv/a", f"{folder}/b"), net=("db:1", "[::1]:2"), env=("TZ", "LANG")
        )
        policy = parse("[allow]\nread = ['x']\n").extended(read=["c"], environment=environment)
        assert policy.allow.read == ("/srv/app/x", f"{folder}/c")
        assert policy.allow.env == ("TZ", "LANG")

    def test_the_environment_is_the_processes_own_if_none_is_given(self, folder, monkeypatch):
        monkeypatch.setenv("ADYTON_ALLOW_CALL", "lookup")
        assert Policy().extended().allow.call == ("lookup",)

    def test_nothing_is_listed_twice(self, folder):
        assert parse("[allow]\nenv = ['TZ']").extended(env=["TZ", "LANG"], environment={}).allow.env == ("TZ", "LANG")

    def test_lists_of_an_expectation_are_added_and_values_replaced(self):
        other = "sha256:" + "cd" * 32
        policy = parse(WHOLE).extended(
            expect={"platforms": ["sim", "tdx"], "measurement": [other], "debug": True}, environment={}
        )
        assert policy.expect is not None
        assert list(policy.expect.platforms) == ["tdx", "sev-snp", "sim"]
        assert list(policy.expect.measurement) == [DIGEST, other]
        assert (policy.expect.debug, policy.expect.product_id) == (True, 7)

    def test_an_expectation_alone(self):
        policy = Policy().extended(expect={"platforms": ("sim",)}, environment={})
        assert policy.expect is not None
        assert list(policy.expect.platforms) == ["sim"]
        for wrong in ({}, {"platform": ["sim"]}, {"platforms": "sim"}, {"debug": 1}, "sim"):
            with pytest.raises(UsageError):
                Policy().extended(expect=wrong, environment={})

    def test_the_place_of_sealed_files_is_the_arguments_or_the_environments_or_the_files(self, folder):
        policy, environment = parse("[sealed]\npath = 'x'\n"), {"ADYTON_SEALED": "e"}
        assert policy.extended(environment={}).sealed == "/srv/app/x"
        assert policy.extended(environment=environment).sealed == f"{folder}/e"
        assert policy.extended(sealed="a", environment=environment).sealed == f"{folder}/a"

    def test_what_was_put_together_in_python_leaves_the_rest_of_a_policy_as_it_is(self):
        policy = parse(WHOLE)
        must = policy.expect
        assert policy.extended(expect=must, environment={}) == dataclasses.replace(policy, acl=must)

    def test_a_text_in_place_of_a_list_is_refused(self):
        for name in ("read", "write", "net", "listen", "env", "call"):
            with pytest.raises(UsageError, match=f"allow_{name}"):
                Policy().extended(**{name: "lookup"}, environment={})

    def test_tables_given_in_python(self, folder):
        policy = Policy.from_tables({"platforms": ["sim"], "debug": True}, {"read": ["x"]})
        assert policy.expect is not None
        assert policy.allow.read == (f"{folder}/x",)
        assert Policy.from_tables(None, None) == Policy()
        with pytest.raises(UsageError, match="read"):
            Policy.from_tables(None, {"reed": []})

    def test_a_policy_is_its_own_source(self):
        policy = parse(WHOLE)
        assert Policy.read(policy) is policy


def test_what_no_policy_can_allow_is_refused_when_it_is_used(folder):
    for lists in (
        {"read": ["/usr/lib"]},
        {"write": ["/etc"]},
        {"net": ["a:b"]},
        {"env": ["LD_PRELOAD"]},
        {"call": ["a b"]},
    ):
        with pytest.raises(UsageError):
            Policy().extended(**lists, environment={}).host_calls()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "coherence", "read", "x"]), inner)
    ),
    max_leaves=5,
)
KEYS = st.sampled_from([*(each for each in Expectation.__struct_fields__), "zzz"])


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_table_is_an_expectation_or_the_users_mistake(table):
    try:
        found = Policy.from_tables(table, None).expect
    except UsageError:
        return
    assert isinstance(found, Expectation)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_the_users_mistake(text):
    try:
        parse(text)
    except UsageError:
        return
    tomllib.loads(text)
