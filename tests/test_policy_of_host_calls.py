"""What a policy allows, what it refuses to be made of, and how a denial reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import UsageError
from adyton.hostcall.client.policy import Denied, Endpoint, Grant, HostCallPolicy, Resolved, parse_listen, parse_net
from adyton.hostcall.own_paths import OWN_PATHS, own_path


@pytest.fixture
def home(tmp_path):
    home = Path(os.path.realpath(tmp_path)) / "home"
    (home / "data").mkdir(parents=True)
    return home


def policy(home, **lists):
    return HostCallPolicy.create(base=str(home), **lists)


def allowed(found):
    return isinstance(found, Resolved)


def test_an_empty_policy_allows_nothing(home):
    empty = policy(home)
    assert empty.grants() == []
    for path in ("/", "/tmp", "/srv/x", f"{home}/data"):
        assert empty.resolve(path, "read") == Denied("read", path)
        assert empty.resolve(path, "write") == Denied("write", path)
    assert empty.allows_call("lookup") == Denied("call", "lookup")
    assert empty.environment({"TZ": "UTC"}) == {}


def test_a_path_covers_what_is_under_it_and_no_name_that_only_begins_alike(home):
    made = policy(home, read=["data"])
    assert made.resolve(f"{home}/data", "read") == Resolved(f"{home}/data")
    assert made.resolve(f"{home}/data/a/b", "read") == Resolved(f"{home}/data/a/b")
    assert not allowed(made.resolve(f"{home}/data2", "read"))
    assert not allowed(made.resolve(f"{home}/dat", "read"))
    assert not allowed(made.resolve(str(home), "read"))


def test_write_implies_read_and_read_does_not_imply_write(home):
    made = policy(home, read=["r"], write=["w"])
    assert allowed(made.resolve(f"{home}/w/x", "read"))
    assert allowed(made.resolve(f"{home}/w/x", "write"))
    assert made.resolve(f"{home}/r/x", "write") == Denied("write", f"{home}/r/x")


@pytest.mark.parametrize("order", [("read", "write"), ("write", "read")])
def test_a_path_in_both_lists_may_be_written(home, order):
    made = policy(home, **{right: ["data"] for right in order})
    assert made.grants() == [Grant(f"{home}/data", "write")]


def test_paths_that_others_cover_are_not_sent_to_the_enclave(home):
    made = policy(home, write=["data", "data/sub"], read=["data/other", "x", "x/y"])
    assert made.grants() == [Grant(f"{home}/data", "write"), Grant(f"{home}/x", "read")]
    assert policy(home, read=["data"], write=["data/sub"]).grants() == [
        Grant(f"{home}/data", "read"),
        Grant(f"{home}/data/sub", "write"),
    ]


def test_more_paths_than_a_layout_takes_are_refused(home):
    assert len(policy(home, read=[f"{number}" for number in range(1024)]).grants()) == 1024
    with pytest.raises(UsageError, match="1024"):
        policy(home, read=[f"{number}" for number in range(1025)])


def test_a_smaller_right_below_does_not_take_the_greater_away(home):
    made = policy(home, write=["data"], read=["data/sub"])
    assert allowed(made.resolve(f"{home}/data/sub/x", "write"))


def test_every_spelling_of_a_link_is_allowed_and_resolved_once(home):
    (home / "second").symlink_to("data")
    (home / "first").symlink_to("second")
    made = policy(home, read=["first"])
    assert {grant.path for grant in made.grants()} == {f"{home}/{name}" for name in ("first", "second", "data")}
    for name in ("first", "second", "data"):
        assert made.resolve(f"{home}/{name}/x", "read") == Resolved(f"{home}/data/x")
    assert made.resolve(f"{home}/first", "read") == Resolved(f"{home}/first", f"{home}/data")
    (home / "second").unlink()
    (home / "second").symlink_to("/srv")
    assert made.resolve(f"{home}/first/x", "read") == Resolved(f"{home}/data/x")


def test_the_root_covers_all_but_the_enclaves_own(home):
    made = policy(home, write=["/"])
    assert made.resolve("/", "read") == Resolved("/")
    assert made.resolve("/srv/x", "write") == Resolved("/srv/x")
    for own in OWN_PATHS:
        for path in (own.replace("*", "64"), own.replace("*", "") + "/below"):
            assert made.resolve(path, "read") == Denied("read", path, own)
            assert made.enter(path) == Denied("read", path, own)


def test_directories_that_lead_to_a_path_or_the_working_directory_can_be_entered_not_read(home):
    made = HostCallPolicy.create(read=["/srv/a/b"], base=str(home))
    for path in ("/", "/srv", "/srv/a", str(home), str(home.parent)):
        assert made.enter(path) == Resolved(path)
        assert not allowed(made.resolve(path, "read"))
    assert allowed(made.enter("/srv/a/b/c"))
    assert not allowed(made.enter("/srv/c"))
    assert not allowed(made.enter(f"{home}/data"))


def test_the_working_directory_is_the_resolved_one(home):
    (home / "link").symlink_to("data")
    made = policy(home / "link", read=["x"])
    assert made.working_directory == f"{home}/data"
    assert allowed(made.enter(f"{home}/link"))
    assert {grant.path for grant in made.grants()} == {f"{home}/link/x", f"{home}/data/x"}
    assert HostCallPolicy.create(base=str(home), working_directory="/srv").working_directory == "/srv"


@pytest.mark.parametrize("right", ["read", "write"])
@pytest.mark.parametrize(
    "path", ["/usr", "/usr/lib/python3", "/enclave", "/enclave/x.py", "/lib64", "/opt/adyton/lib", "/proc/self", "/etc/passwd",
             "/dev/shm", "/sealed", "/bin/../usr", "/nowhere/../usr/x"]
)  # fmt: skip
def test_the_enclaves_own_paths_are_refused_by_name(home, right, path):
    with pytest.raises(UsageError) as caught:
        policy(home, **{right: [path]})
    assert caught.value.exit_code == 2
    assert path in str(caught.value)


def test_a_link_to_the_enclaves_own_is_refused(home):
    (home / "shortcut").symlink_to("/usr/share")
    with pytest.raises(UsageError, match=r"shortcut.*/usr"):
        policy(home, read=["shortcut"])


@pytest.mark.parametrize("path", ["", "a\0b", b"bytes", "\udcff", "x/" * 4096])
def test_what_is_no_path_is_refused(home, path):
    with pytest.raises(UsageError):
        policy(home, read=[path])


@pytest.mark.parametrize("name", ["read", "write", "net", "listen", "env", "call"])
def test_a_text_in_place_of_a_list_is_refused(home, name):
    with pytest.raises(UsageError, match=f"allow_{name}"):
        policy(home, **{name: "lookup"})


def test_path_objects_are_paths(home):
    assert allowed(policy(home, read=[home / "data"]).resolve(f"{home}/data", "read"))


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "LD_PRELOAD",
        "LD_",
        "PYTHONPATH",
        "PYTHONHOME",
        "GLIBC_TUNABLES",
        "OPENSSL_CONF",
        "GCONV_PATH",
        "MALLOC_CHECK_",
    ],
)
def test_variables_that_the_loader_obeys_are_refused(home, name):
    with pytest.raises(UsageError, match=name):
        policy(home, env=["TZ", name])


@pytest.mark.parametrize("name", ["", "A=B", "*", "1A", "A B", "A\n"])
def test_what_is_no_variable_is_refused(home, name):
    with pytest.raises(UsageError):
        policy(home, env=[name])


def test_only_variables_that_are_named_and_set_are_passed(home):
    made = policy(home, env=["TZ", "LANG", "PATHS"])
    assert made.environment({"TZ": "UTC", "HOME": "/root", "PATHS": "x"}) == {"TZ": "UTC", "PATHS": "x"}


@pytest.mark.parametrize("name", ["", "a b", "lookup()", "x\n"])
def test_what_is_no_function_is_refused(home, name):
    with pytest.raises(UsageError):
        policy(home, call=[name])


@pytest.mark.parametrize(
    ("entry", "host", "port", "network"),
    [
        ("db.example:5432", "db.example", 5432, None),
        ("DB.Example", "db.example", None, None),
        ("localhost:1", "localhost", 1, None),
        ("10.0.0.0/8:443", "10.0.0.0/8", 443, "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1", None, "10.0.0.1/32"),
        ("[::1]:80", "::1", 80, "::1/128"),
        ("[2001:DB8::/32]", "2001:db8::/32", None, "2001:db8::/32"),
    ],
)
def test_net_entries(entry, host, port, network):
    found = parse_net(entry)
    assert (found.host, found.port) == (host, port)
    assert str(found.network) == str(network)


@pytest.mark.parametrize(
    "entry",
    ["", ":80", "db:", "db:0", "db:65536", "db:-1", "db:http", "db:80:90", "::1", "::1:80", "[::1", "[::1]80", "[]:80", "[db]:1",
     "10.0.0.1/8", "10.0.0.0/33", "1.2.3", "127.1:80", "http://db", "*.example", "a b", "-a", "a..b", "dÿ", "db:٨", "[::1]:80\n",
     "db:80\n", "db\n", 7, None]
)  # fmt: skip
def test_malformed_net_entries_are_refused(entry):
    with pytest.raises(UsageError, match="allow_net"):
        parse_net(entry)


def test_listen_entries():
    assert parse_listen("localhost:0") == Endpoint("localhost", None, 0)
    assert parse_listen("127.0.0.1:8080").port == 8080
    for entry in ("127.0.0.1", "10.0.0.0/8:80", "[::/0]:80", ":80", "8080", "localhost:65536"):
        with pytest.raises(UsageError, match="allow_listen"):
            parse_listen(entry)


@given(st.text(max_size=40))
def test_no_text_breaks_the_parsers(entry):
    for parse in (parse_net, parse_listen):
        try:
            found = parse(entry)
        except UsageError:
            continue
        assert found.host


def test_a_denial_names_the_option_that_would_allow_it():
    assert (
        str(Denied("read", "/home/ann/.netrc")) == "denied: read /home/ann/.netrc (add --allow-read /home/ann/.netrc)"
    )
    assert str(Denied("call", "lookup")) == "denied: call lookup (add --allow-call lookup)"
    assert str(Denied("write", "/srv/my file")) == "denied: write /srv/my file (add --allow-write '/srv/my file')"
    assert "--allow" not in str(Denied("read", "/usr/x", "/usr"))


@given(st.text(min_size=1))
def test_a_denial_is_one_line_that_a_terminal_only_shows(path):
    assert str(Denied("read", f"/{path}")).isprintable()


NAMES = st.sampled_from(["a", "b", "usr", "etc", "lib64", "opt", "adyton"])
PATHS = st.lists(NAMES, max_size=5).map(lambda names: "/" + "/".join(names))


@settings(deadline=None)
@given(st.lists(PATHS, max_size=4), st.lists(PATHS, max_size=4), PATHS)
def test_decisions_follow_the_lists(read, write, path):
    read, write = ([f"/adyton-none{each}".rstrip("/") for each in paths] for paths in (read, write))
    path = f"/adyton-none{path}".rstrip("/")
    made = HostCallPolicy.create(read=read, write=write, base="/")

    def under(paths):
        return any(path == each or path.startswith(f"{each}/") for each in paths)

    assert allowed(made.resolve(path, "read")) == (under(read) or under(write))
    assert allowed(made.resolve(path, "write")) == under(write)
    leads = any(each.startswith(f"{path}/") for each in (*read, *write))
    assert allowed(made.enter(path)) == (leads or under(read) or under(write))


@settings(deadline=None)
@given(PATHS)
def test_nothing_makes_an_own_path_readable(path):
    found = HostCallPolicy.create(write=["/"], base="/").enter(path)
    assert allowed(found) == (own_path(path) is None)


@pytest.mark.parametrize("right", ["read", "write"])
@pytest.mark.parametrize("covering", ["/", ".", "data", "data/a.sealed", "link"])
def test_no_list_covers_the_container_of_the_enclaves_own_files(home, right, covering):
    os.symlink("data", home / "link")
    container = f"{home}/data/a.sealed"
    with pytest.raises(UsageError, match="covers the sealed files"):
        policy(home, container=container, **{right: [covering]})
    made = policy(home, container=container, **{right: ["data/a.sealed2", "data/other"]})
    assert made.resolve(container, "write") == Resolved(container)
    assert not allowed(made.resolve(f"{home}/data", "read"))
