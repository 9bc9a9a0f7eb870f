"""With and without TLS as --security_type and addresses say it, and nothing of ours in clear on a network."""

from __future__ import annotations

import pytest
from command import adyton

from adyton.errors import UsageError
from adyton.provision.client import RemoteProvision
from adyton.remote.address import TLS, Address, is_loopback, security_type_of

NETWORK = "192.0.2.1"  # of nobody (RFC 5737): were anything dialled, the test would take long


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.255.0.1", True),
        ("[::1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("[::ffff:192.0.2.1]", False),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("127.0.0.1.example", False),
    ],
)
def test_what_is_this_machine(host, loopback):
    assert is_loopback(host) is loopback


def refused(result: tuple[int, str, str], text: str) -> None:
    status, out, err = result
    assert (status, out) == (2, "")
    assert text in err


@pytest.mark.parametrize(
    ("text", "kind", "secure"),
    [
        ("h:1", "ssl", True),
        ("127.0.0.1:1", "ssl", True),
        ("localhost:1", "ssl", True),
        ("grpcs://127.0.0.1:1", "ssl", True),
        ("127.0.0.1:1", "local", False),
        ("[::1]:1", "local", False),
        ("grpc://localhost:1", "local", False),
        ("unix:/s", "local", False),
    ],
)
def test_the_security_type_decides_about_tls(text, kind, secure):
    assert Address.parse(text, kind).secure is secure


@pytest.mark.parametrize(
    ("text", "kind", "error"),
    [
        ("grpc://127.0.0.1:1", "ssl", "is without TLS, and security type ssl asks for it: write grpcs://127.0.0.1:1"),
        ("grpc://h", "ssl", "write grpcs://h:4321"),
        ("unix:/s", "ssl", "unix:/s is reached without TLS"),
        ("grpcs://127.0.0.1:1", "local", "is with TLS, and security type local is without"),
        ("grpcs://h:1", "local", "is with TLS"),
        ("h:1", "local", "is for servers of this machine, and h is none"),
        ("grpc://h:1", "local", "is for servers of this machine"),
    ],
)
def test_addresses_that_contradict_the_security_type(tls_cli, text, kind, error):
    with pytest.raises(UsageError) as raised:
        Address.parse(text, kind)
    assert error in str(raised.value)
    for spelling in (f"--security_type={kind.upper()}", f"--security-type={kind.title()}"):
        refused(tls_cli("call", "prog.py", "f", "--on", text, spelling), error)


def test_the_security_type_from_the_environment(tls_cli, monkeypatch):
    monkeypatch.setenv("ADYTON_SECURITY_TYPE", "SSL")
    refused(tls_cli("call", "prog.py", "f", "--on", "grpc://127.0.0.1:1"), "security type ssl")
    with pytest.raises(UsageError, match="security type ssl asks"):
        RemoteProvision.instantiate("grpc://127.0.0.1:1")
    with pytest.raises(UsageError, match="none is named: give --on"):
        RemoteProvision.instantiate()
    RemoteProvision.instantiate("grpc://127.0.0.1:1", security_type="local").finalize()  # an argument beats it
    status, _, err = tls_cli("call", "prog.py", "f", "--on", "grpc://127.0.0.1:1", "--security_type", "local")
    assert (status, "nothing listens there" in err) == (10, True)
    monkeypatch.setenv("ADYTON_SECURITY_TYPE", "tls")
    refused(tls_cli("call", "prog.py", "f", "--on", "127.0.0.1:1"), "ssl")
    with pytest.raises(UsageError, match="'tls' is unknown: it is ssl or local"):
        RemoteProvision.instantiate("127.0.0.1:1")
    assert [security_type_of(each) for each in (None, "", "Local", "SsL")] == [None, None, "local", "ssl"]


def test_tls_files_are_not_for_plaintext(tls_cli):
    for options in (["--security_type", "local"], []):
        for files in (["--ca", "ca.pem"], ["--ssl_cert", "client.pem"], ["--key", "client.key"]):
            result = tls_cli("call", "prog.py", "f", "--on", "127.0.0.1:1", *options, *files)
            refused(result, "is reached without TLS, but TLS files were given: write grpcs://127.0.0.1:1")


def test_the_originals_names_of_a_clients_files(tls_cli, pems, monkeypatch):
    on = "call", "prog.py", "f", "--on", "grpcs://127.0.0.1:1"
    refused(
        tls_cli(*on, "--ssl_cert", "client.pem", "--ssl-key", "server.key"),
        "is not the key of the certificate",
    )
    refused(
        tls_cli(*on, "--cert", "client.pem", "--ssl_cert", "server.pem"),
        "--cert and --ssl_cert mean the same",
    )
    refused(
        tls_cli(*on, "--key", "client.key", "--ssl_key", "server.key"),
        "--key and --ssl_key mean the same",
    )
    files = "--ssl_cert", "client.pem", "--ssl_key", "client.key"
    status, _, err = tls_cli(*on, *files, "--cert", str(pems / "client.pem"), "--key", "./client.key")
    assert status == 10, err
    for name in ("CERT", "KEY"):
        monkeypatch.setenv(f"ADYTON_SSL_{name}", "none")
    refused(tls_cli(*on), "cannot read the certificate none")
    assert (
        tls_cli(*on, "--cert", "client.pem", "--key", "client.key")[0] == 10
    )  # the command line beats the environment
    assert TLS.from_environment() == TLS(cert="none", key="none")
    monkeypatch.setenv("ADYTON_CERT", "other")
    refused(tls_cli(*on), "--cert and --ssl_cert mean the same, but name other and none: give one")
    with pytest.raises(UsageError, match="ADYTON_CERT and ADYTON_SSL_CERT mean the same"):
        TLS.from_environment()


def test_run_gives_its_driver_one_of_the_two_names(tmp_path, pems):
    (tmp_path / "pyproject.toml").write_text("[tool.adyton.loader.show]\ndriver = 'show.py'\n")
    (tmp_path / "show.py").write_text(
        "import os\nfor name in sorted(os.environ):\n"
        "    if name.startswith('ADYTON_'): print(name, os.path.basename(os.environ[name]))\n"
    )
    shown = adyton(
        *("run", "show", "--ssl_key", "client.key", "--cert", "client.pem", "--security_type", "SSL"),
        cwd=tmp_path,
        ADYTON_SSL_CERT="server.pem",
        ADYTON_ON="tee.example",
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        "ADYTON_CERT client.pem",
        "ADYTON_KEY client.key",
        "ADYTON_ON tee.example",
        "ADYTON_PLATFORM auto",
        "ADYTON_SECURITY_TYPE ssl",
    ]
    shown = adyton("run", "show", "--platform", "sim", cwd=tmp_path, ADYTON_CONFIG="sgx")
    assert shown.stdout.splitlines() == ["ADYTON_PLATFORM sim"], shown.stderr


@pytest.mark.parametrize("on", [f"grpc://{NETWORK}:1", "grpc://tee.example:1"])
def test_no_token_crosses_a_network_in_clear(tls_cli, pems, monkeypatch, on):
    target = on.removeprefix("grpc://")
    text = f"the token would cross the network to {target} in clear: write grpcs://{target}"
    result = tls_cli("call", "prog.py", "f", "--on", on, "--token-file", "token")
    refused(result, text)
    assert "a secret" not in result[2]
    monkeypatch.setenv("ADYTON_TOKEN_FILE", str(pems / "token"))
    with pytest.raises(UsageError, match="in clear"):
        RemoteProvision.instantiate(on)
    with pytest.raises(UsageError, match="in clear"):
        RemoteProvision.instantiate(on, token="a secret")
    for safe in (f"grpcs://{NETWORK}:1", "grpc://127.0.0.1:1", "grpc://[::1]:1", "unix:/nowhere"):
        RemoteProvision.instantiate(safe, token="a secret").finalize()


SERVERS = [(("serve", "--port", "0"), "--host", ""), (("proxy",), "--listen", ":0")]


@pytest.mark.parametrize(("command", "option", "port"), SERVERS, ids=["serve", "proxy"])
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", NETWORK, "tee.example"])
def test_a_network_is_served_to_known_clients_only(tls_cli, command, option, port, host):
    at = option, host + port
    tls = "--ssl_cert", "server.pem", "--ssl_key", "server.key"
    refused(
        tls_cli(*command, *at),
        "without TLS and client credentials would let anyone who reaches it run enclaves here",
    )
    refused(tls_cli(*command, *at, "--security_type", "local"), "or say --insecure")
    refused(
        tls_cli(*command, *at, "--token-file", "token"),
        "without TLS, to which the token would be sent in clear",
    )
    refused(tls_cli(*command, *at, *tls), "without client credentials")
    refused(
        tls_cli(*command, *at, "--security_type", "ssl"),
        "--security_type ssl needs --ssl_cert and --ssl_key",
    )
    refused(tls_cli(*command, *at, "--security_type", "local", *tls), "--security_type local is without TLS")


def test_no_host_at_all_is_every_address(tls_cli):
    refused(tls_cli("serve", "--host", ""), "serving all addresses without TLS and client credentials")


def test_a_unix_socket_is_served_without_tls(tls_cli):
    refused(
        tls_cli("proxy", "--listen", "unix:s", "--ssl_cert", "server.pem", "--ssl_key", "server.key"),
        "without TLS",
    )


@pytest.mark.sandbox
@pytest.mark.parametrize("credential", [("--client-ca", "ca.pem"), ("--token-file", "token"), ("--insecure",)])
def test_a_proxy_server_on_a_network_is_for_those_it_knows(tls_cli, pems, monkeypatch, credential):
    from command import start

    monkeypatch.chdir(pems)
    tls = () if credential == ("--insecure",) else ("--ssl_cert", "server.pem", "--ssl_key", "server.key")
    proxy = start("proxy", "--listen", "0.0.0.0:0", *tls, *credential)
    try:
        assert proxy.stdout is not None
        port = proxy.stdout.readline().rpartition(":")[2].strip()
        client = {
            "--client-ca": ("--ca", "ca.pem", "--cert", "client.pem", "--key", "client.key"),
            "--token-file": ("--ca", "ca.pem", "--token-file", "token"),
            "--insecure": (),
        }[credential[0]]
        kind = "ssl" if tls else "local"
        call = "call", "prog.py", "f", "--allow-sim", "--on", f"127.0.0.1:{port}", "--security_type", kind
        if credential != ("--insecure",):
            status, out, err = tls_cli(*call, "--ca", "ca.pem")
            assert (status, out) == (10, ""), err
        status, out, err = tls_cli(*call, *client)
        assert (status, out) == (0, "1\n"), err
        assert proxy.wait(80) == 0
    finally:
        proxy.kill()
        proxy.wait()
        proxy.stdout.close()
