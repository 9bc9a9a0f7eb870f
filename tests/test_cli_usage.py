"""What a newcomer mistypes: each time a text that says what to do next, the exit code, and nothing on the wrong stream."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import trustme
from command import ROOT, adyton, start

from adyton.cli.root import root, run

# Executes its arguments without CAP_NET_BIND_SERVICE: PR_CAPBSET_DROP, which is refused to an ordinary user, who has it not.
WITHOUT_NET_BIND_SERVICE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 10); os.execv(sys.argv[1], sys.argv[1:])"
)
PROGRAM = """
def double(number: int) -> int:
    return 2 * number

def read_all() -> str:
    return input()

def pipe() -> None:
    raise BrokenPipeError(32, "gone")
"""


@pytest.fixture
def cli(capfd, workplace):
    """`adyton ARGUMENTS` in this process, in an empty folder that has prog.py: exit code, standard output, standard error."""
    Path("prog.py").write_text(PROGRAM)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(list(arguments))
        return (ended.value.code, *capfd.readouterr())

    return call


def test_a_python_file_can_be_inspected(cli):
    status, out, err = cli("inspect", "--json", "prog.py")
    assert (status, err) == (0, "")
    assert [each["name"] for each in json.loads(out)["entries"]] == ["double", "read_all", "pipe"]


# Their variables have another meaning for a load: what accepts an enclave, and the key of TLS.
WITHOUT_VARIABLE = {("inspect", "--policy"), ("broker verify", "--key")}


def every_command(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        yield f"{above}{name}", found
        if isinstance(found, click.Group):
            yield from every_command(found, f"{name} ")


def test_every_option_has_its_variable():
    missing = {
        (name, option.opts[0])
        for name, command in every_command(root)
        for option in command.params
        if isinstance(option, click.Option) and option.envvar is None
    }
    assert missing == WITHOUT_VARIABLE


def test_every_option_can_be_given_by_the_environment(cli, monkeypatch):
    assert cli("keygen", "k")[0] == 0
    Path("pyproject.toml").write_text('[tool.adyton.enclave.e]\nentry = "prog"\nsign = "none"\n')
    Path("prog.py").write_text("from adyton import trusted\nenclave = trusted.Enclave('e')\n")
    Path("pyproject.toml").write_text('[tool.adyton.enclave.e]\nentry = "prog:enclave"\nsign = "none"\n')
    assert cli("build")[0] == 0
    monkeypatch.setenv("ADYTON_OUTPUT", "signed.enclave")
    monkeypatch.setenv("ADYTON_DEBUG", "1")
    assert cli("sign", "build/e.enclave")[0] == 0
    (signature,) = json.loads(cli("inspect", "--json", "signed.enclave")[1])["signatures"]
    assert signature["debug"]
    assert cli("sign", "build/e.enclave", "--key", "k", "-o", "released.enclave")[0] == 0
    (signature,) = json.loads(cli("inspect", "--json", "released.enclave")[1])["signatures"]
    assert not signature["debug"]


def test_unknown_targets_are_answered_with_those_that_there_are(cli):
    Path("pyproject.toml").write_text('[tool.adyton.loader.quick]\ndriver = "d.py"\n')
    for command in ("run", "build"):
        status, _, err = cli(command, "nope")
        assert status == 2
        assert "it declares: quick" in err


def test_a_folder_that_images_cannot_be_kept_in(cli):
    status, out, err = cli("serve", "--port", "0", "--temporary-directory", "prog.py")
    assert (status, out) == (2, "")
    assert "images cannot be kept in prog.py" in err
    assert "Traceback" not in err


def test_a_folder_that_sealed_files_cannot_be_kept_in(cli):
    status, out, err = cli("serve", "--port", "0", "--sealed-directory", "prog.py")
    assert (status, out) == (2, "")
    assert "--sealed-directory prog.py cannot be made: File exists; name a folder of yours" in err


# -- listening ---------------------------------------------------------------------------------------------------------


@pytest.mark.sandbox
def test_an_address_that_cannot_be_listened_at_is_one_line(workplace):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments in (["serve", "--port", str(port)], ["proxy", "--listen", f"127.0.0.1:{port}"]):
            refused = adyton(*arguments)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert refused.stderr == (
                f"adyton: cannot listen at 127.0.0.1:{port}: the port is in use, or the address is not of this machine\n"
            )
    refused = adyton("proxy", "--listen", "unix:missing/proxy.sock")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "cannot listen at unix:missing/proxy.sock" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert adyton("proxy", "--listen", "unix:").returncode == 2
    assert "at most 107 bytes" in adyton("proxy", "--listen", "unix:" + 108 * "x").stderr


@pytest.mark.sandbox
@pytest.mark.parametrize(
    "command", [["serve", "--port", "1"], ["proxy", "--listen", "[::1]:1"]], ids=["serve", "proxy"]
)
def test_a_port_that_only_root_may_listen_at_is_told_from_one_in_use(workplace, command):
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("every user may listen at every port here")
    refused = subprocess.run(
        [sys.executable, "-c", WITHOUT_NET_BIND_SERVICE, sys.executable, "-m", "adyton.cli", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert ":1: so low a port is for root; take one above 1023" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.sandbox
def test_a_proxy_server_takes_no_socket_away_from_another(workplace):
    first = start("proxy", "--listen", "unix:proxy.sock")
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "adyton proxy listening on unix:proxy.sock\n"
        second = adyton("proxy", "--listen", "unix:proxy.sock")
        assert (second.returncode, second.stdout) == (2, "")
        assert "listens there already" in second.stderr
        assert Path("proxy.sock").exists()
    finally:
        first.terminate()
        assert first.wait(60) == 0
        first.stdout.close()
    assert not Path("proxy.sock").exists()


@pytest.mark.sandbox
@pytest.mark.parametrize("command", ["proxy", "serve"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_servers_end_at_a_signal_and_leave_nothing(tmp_path, command, number, status):
    arguments = {"proxy": [], "serve": ["--port", "0"]}[command]
    with subprocess.Popen(
        [sys.executable, "-m", "adyton.cli", command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
        finally:
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        assert " listening on 127.0.0.1:" in line, errors
        assert process.returncode == status, errors
    assert list(tmp_path.iterdir()) == []


# -- connecting --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """A folder: ca.pem, other.pem (another CA), server.pem/.key and client.pem/.key by the first, stranger.pem/.key by the other."""
    folder = tmp_path_factory.mktemp("certificates")
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    for name, authority, identity in (
        ("server", ca, "127.0.0.1"),
        ("client", ca, "client@example.org"),
        ("stranger", other, "client@example.org"),
    ):
        issued = authority.issue_cert(identity)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    (folder / "token").write_text("a secret\n")
    (folder / "guess").write_text("a guess\n")
    return folder


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"ca": "prog.py"}, "the CA certificate prog.py holds no certificate in PEM"),
        ({"cert": "prog.py", "key": "C/client.key"}, "the certificate prog.py holds no certificate in PEM"),
        ({"cert": "C/client.pem", "key": "prog.py"}, "prog.py holds no private key in PEM"),
        ({"cert": "C/client.pem", "key": "C/server.key"}, "is not the key of the certificate"),
        ({"cert": "C/client.pem"}, "give both --cert and --key"),
    ],
)
def test_tls_files_that_are_none_are_named(cli, certificates, files, text):
    options = [part for name, path in files.items() for part in (f"--{name}", path.replace("C", str(certificates), 1))]
    status, out, err = cli("call", "prog.py", "double", "1", "--on", "grpcs://127.0.0.1:1", *options)
    assert (status, out) == (2, "")
    assert text in err


def test_a_servers_tls_files_that_are_none_are_named(certificates, workplace):
    Path("none.pem").write_text("nothing")
    refused = adyton("serve", "--port", "0", "--ssl_cert", "none.pem", "--ssl_key", str(certificates / "server.key"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "none.pem holds no certificate" in refused.stderr


@pytest.mark.sandbox
def test_a_server_on_the_network_knows_its_clients(cli, certificates, monkeypatch, tmp_path):
    def path(name: str) -> str:
        return str(certificates / name)

    server = start(
        *(
            "serve",
            "--host",
            "0.0.0.0",
            "--port",
            "0",
            "--ssl_cert",
            path("server.pem"),
            "--ssl_key",
            path("server.key"),
        ),
        *("--client-ca", path("ca.pem"), "--token-file", path("token")),
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().rpartition(":")[2].strip()
        url = f"grpcs://127.0.0.1:{port}"
        good = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key", "token-file": "token"}

        def call(url: str, **files: str | None) -> tuple[int, str, str]:
            given = {**good, **files}
            options = [part for name, file in given.items() if file for part in (f"--{name}", path(file))]
            return cli("call", "prog.py", "double", "4", "--allow-sim", "--on", url, *options)

        assert call(url)[:2] == (0, "8\n")
        for wrong, text in (
            ({"ca": "other.pem"}, "not signed by the CA"),
            ({"cert": "stranger.pem", "key": "stranger.key"}, "client certificate"),
            ({"cert": None, "key": None}, "client certificate"),
            ({"token-file": "guess"}, "token"),
            ({"token-file": None}, "token"),
        ):
            status, out, err = call(url, **wrong)
            assert (status, out) == (10, ""), err
            assert text in err
            assert len(err.splitlines()) == 1
        status, _, err = call(url.replace("grpcs", "grpc"), ca=None, cert=None, key=None)
        assert status == 10
        assert "grpcs" in err

        for name, file in good.items():  # the same for the original's interface, by its driver
            monkeypatch.setenv("ADYTON_" + name.upper().replace("-", "_"), path(file))
        driver = tmp_path / "quickstart"  # a copy: other tests build in that folder meanwhile
        shutil.copytree(ROOT / "examples" / "quickstart", driver, ignore=shutil.ignore_patterns("build"))
        quickstart = adyton("run", "quickstart", "--on", url, "--allow-sim", "--", "--message", "hi", cwd=driver)
        assert quickstart.returncode == 0, quickstart.stderr
    finally:
        server.terminate()
        assert server.wait(60) == 0
        server.stdout.close()


@pytest.mark.sandbox
def test_an_image_that_a_server_has_not(cli, server):
    status, out, err = cli("call", "sha256:" + "0" * 64, "f", "--on", server, "--allow-sim")
    assert (status, out) == (1, "")
    assert "the server has no image sha256:0000" in err


# -- what the program raises -------------------------------------------------------------------------------------------


@pytest.mark.sandbox
def test_errors_of_the_program_that_click_would_take_for_its_own(cli, on_the_server):
    status, out, err = cli("call", "prog.py", "read_all")
    assert (status, out) == (50, "")
    assert "adyton: EOFError" in err
    status, out, err = cli("call", "prog.py", "pipe", "--json")
    assert status == 50
    assert json.loads(out)["error"]["message"] == "BrokenPipeError: [Errno 32] gone"


@pytest.mark.sandbox
def test_what_is_meant_for_servers_does_not_reach_a_local_proxy(cli, monkeypatch):
    for name in ("SSL_CERT", "CLIENT_CA", "HOST_ADDRESS", "SECURITY_TYPE"):
        monkeypatch.setenv(f"ADYTON_{name}", "local")
    assert cli("call", "prog.py", "double", "3")[:2] == (0, "6\n")


@pytest.mark.sandbox
def test_an_empty_option_beats_the_environment_too(cli, monkeypatch):
    monkeypatch.setenv("ADYTON_ON", "grpc://127.0.0.1:1")
    assert cli("call", "prog.py", "double", "3")[0] == 10
    assert cli("call", "prog.py", "double", "3", "--on", "")[:2] == (0, "6\n")
    Path("pyproject.toml").write_text("[tool.adyton.loader.show]\ndriver = 'show.py'\n")
    Path("show.py").write_text("import adyton\nwith adyton.load('prog.py') as here: print(here.call('double', 4))\n")
    shown = adyton("run", "show", "--on", "", ADYTON_ON="grpc://127.0.0.1:1")
    assert (shown.returncode, shown.stdout) == (0, "8\n"), shown.stderr


@pytest.mark.sandbox
def test_temporary_files_may_be_deep_down(workplace):
    deep = workplace / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    Path("prog.py").write_text(PROGRAM)
    call = adyton("call", "prog.py", "double", "3", TMPDIR=str(deep))
    assert (call.returncode, call.stdout) == (0, "6\n"), call.stderr
    assert list(deep.iterdir()) == []


@pytest.mark.sandbox
def test_an_interrupted_call_is_130_and_leaves_nothing(tmp_path):
    (tmp_path / "prog.py").write_text(
        "import time\ndef nap() -> None:\n    print('napping', flush=True)\n    time.sleep(60)\n"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "adyton.cli", "call", "prog.py", "nap"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(temporary), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    ) as process:
        assert process.stderr is not None
        while process.stderr.readline() != "napping\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "adyton: interrupted"
    assert list(temporary.iterdir()) == []


def test_both_spellings_of_help_hold_whoever_looked_at_the_command_before(capsys):
    from adyton.cli.root import root, run

    root.get_command(None, "syscalls").make_context("syscalls", [])  # keeps the help option that it made
    for spelling in ("-h", "--help"):
        with pytest.raises(SystemExit) as ended:
            run(["syscalls", spelling])
        assert ended.value.code == 0
        assert "Usage: adyton syscalls" in capsys.readouterr().out
