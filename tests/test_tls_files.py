"""Files of TLS and tokens that are not what they should be: refused with exit 2, before anything is dialled or listened at."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from adyton.errors import UsageError
from adyton.provision.client import RemoteProvision
from adyton.remote.address import TLS
from adyton.remote.bearer import check_token, read_token
from adyton.remote.certificates import Shown, of_client, of_server

PUBLIC = "/etc/ssl/certs/ca-certificates.crt"  # Debian's
NOWHERE = "grpcs://127.0.0.1:1"  # nothing may be sent there: the exit code would be 10


AUTHORITY = [
    ("none.pem", "cannot read the {} none.pem: No such file or directory"),
    ("directory", "cannot read the {} directory: Is a directory"),
    ("empty.pem", "the {} empty.pem is empty: it must be in PEM"),
    ("text.pem", "the {} text.pem holds no certificate in PEM\n"),
    ("damaged.pem", "the {} damaged.pem is damaged: it holds a certificate in PEM that cannot be read"),
    ("client.key", "the {} client.key holds no certificate in PEM, but a private key: are the two files exchanged?"),
    ("client.der", "the {} client.der holds no certificate in PEM; if it is DER: openssl x509 -inform DER"),
    ("/dev/zero", "the {} /dev/zero is larger than 1 MiB: is it the right file?"),
    ("ca-expired.pem", "the {} ca-expired.pem expired on 2024-01-01 00:00 UTC (the clock here says "),
    ("", "the name of the {} is empty: give the path of a PEM file, or leave the option out"),
]
PAIR = [  # certificate, key, text; OURS and KEY are the options' names
    ("client.pem", None, "needs its private key: give both OURS and KEY (KEY is missing)"),
    (None, "client.key", "a private key needs its certificate: give both OURS and KEY (OURS is missing)"),
    ("none.pem", "client.key", "cannot read the certificate none.pem: No such file or directory"),
    ("directory", "client.key", "cannot read the certificate directory: Is a directory"),
    ("empty.pem", "client.key", "the certificate empty.pem is empty"),
    ("text.pem", "client.key", "the certificate text.pem holds no certificate in PEM"),
    ("client.key", "client.pem", "but a private key: are the two files exchanged?"),
    ("client.pem", "none.key", "cannot read the key none.key: No such file or directory"),
    ("client.pem", "directory", "cannot read the key directory: Is a directory"),
    ("client.pem", "empty.pem", "the key empty.pem is empty"),
    ("client.pem", "text.pem", "the key text.pem holds no private key in PEM\n"),
    ("client.pem", "client.pem", "holds no private key in PEM, but a certificate: are the two files exchanged?"),
    ("client.pem", "server.key", "server.key is not the key of the certificate client.pem"),
    ("client.pem", "client-encrypted.key", "the key client-encrypted.key is encrypted"),
    ("ed25519.pem", "ed25519.key", "is of a kind that gRPC's TLS does not take: make one for ECDSA P-256, or RSA"),
    ("client-expired.pem", "client-expired.key", "the certificate client-expired.pem expired on 2024-01-01 00:00 UTC"),
    ("client-early.pem", "client-early.key", "client-early.pem is not valid before 2090-01-01 00:00 UTC"),
]


def one_line(result: tuple[int, str, str], text: str) -> None:
    status, out, err = result
    assert (status, out) == (2, "")
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("file", "text"), AUTHORITY, ids=[file.rpartition("/")[2] or "-" for file, _ in AUTHORITY])
def test_a_ca_that_is_none(tls_cli, file, text):
    one_line(tls_cli("call", "prog.py", "f", "--on", NOWHERE, "--ca", file), text.format("CA certificate"))
    served = "--ssl_cert", "server.pem", "--ssl_key", "server.key", "--client-ca", file
    for command in (("serve", "--port", "0"), ("proxy",)):
        one_line(tls_cli(*command, *served), text.format("client CA"))


@pytest.mark.parametrize(("cert", "key", "text"), PAIR, ids=range(len(PAIR)))
def test_a_certificate_and_a_key_that_do_not_serve(tls_cli, cert, key, text):
    for command, options in (
        (("call", "prog.py", "f", "--on", NOWHERE), ("--cert", "--key")),
        (("serve", "--port", "0"), ("--ssl_cert", "--ssl_key")),
        (("proxy", "--listen", "127.0.0.1:0"), ("--ssl_cert", "--ssl_key")),
    ):
        files = [part for option, file in zip(options, (cert, key), strict=True) if file for part in (option, file)]
        one_line(tls_cli(*command, *files), text.replace("OURS", options[0]).replace("KEY", options[1]))


def test_a_file_that_may_not_be_read(pems, tmp_path):
    shutil.copy(pems / "client.key", tmp_path / "secret.key")
    os.chmod(tmp_path / "secret.key", 0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(UsageError, match=r"cannot read the CA certificate .*: Permission denied"):
            of_client(TLS(ca=str(tmp_path / "secret.key")))
    finally:
        if root:
            os.seteuid(0)


def test_of_several_cas_one_that_holds_is_enough(pems, tmp_path):
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes((pems / "ca-expired.pem").read_bytes() + (pems / "ca.pem").read_bytes())
    assert of_client(TLS(ca=str(bundle))).authorities == bundle.read_bytes()

    bundle.write_bytes("# Tanúsítvány\n".encode() + (pems / "ca.pem").read_bytes())
    assert of_client(TLS(ca=str(bundle))).authorities == bundle.read_bytes()
    bundle.write_bytes((pems / "ca.pem").read_bytes() + (pems / "damaged.pem").read_bytes())
    with pytest.raises(UsageError, match="is damaged"):
        of_client(TLS(ca=str(bundle)))
    bundle.write_bytes((pems / "ca.pem").read_bytes()[:300])
    with pytest.raises(UsageError, match="is damaged"):
        of_client(TLS(ca=str(bundle)))


@pytest.mark.skipif(not Path(PUBLIC).exists(), reason=f"NO PUBLIC CAS HERE ({PUBLIC})")
def test_the_public_cas_as_a_file(tls_cli):
    """Some of them break rules that a stricter parser knows, and no word of that is for the user."""
    status, _, err = tls_cli("call", "prog.py", "f", "--on", NOWHERE, "--ca", PUBLIC)
    assert (status, len(err.splitlines())) == (10, 1), err


def test_dates_are_judged_by_the_moment(pems):
    tls = TLS(cert=str(pems / "client-expired.pem"), key=str(pems / "client-expired.key"))
    files = of_client(tls, dt.datetime(2023, 6, 1, tzinfo=dt.UTC))
    assert files.chain == (pems / "client-expired.pem").read_bytes()
    with pytest.raises(UsageError, match="is not valid before 2023-01-01"):
        of_server(tls, dt.datetime(2022, 6, 1, tzinfo=dt.UTC))


def test_what_no_option_can_say_but_a_program():
    with pytest.raises(UsageError, match="it is no path"):
        of_client(TLS(ca="a\0b"))
    assert Shown.read(b"nothing of the kind") is None


def test_a_client_ca_alone_is_no_tls(tls_cli):
    one_line(tls_cli("serve", "--client-ca", "ca.pem"), "TLS needs both --ssl_cert and --ssl_key")
    assert of_server(None) is None
    assert of_server(TLS()) is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot read the token file t: No such file or directory"),
        (b"", "the token file t is empty"),
        (b" \n", "the token file t is empty"),
        (b"\xff\xfe", "the token file t is not text"),
        (b"one\ntwo\n", "the token file t has several lines"),
        ("schlüssel".encode(), "the token in t has characters that no HTTP header takes"),
        (b"a\tb", "the token in t has characters that no HTTP header takes"),
        (b"x" * 4097, "the token file t is larger than 4096 bytes"),
    ],
    ids=["none", "empty", "blank", "bytes", "lines", "umlaut", "tab", "long"],
)
def test_a_token_file_that_holds_none(tls_cli, pems, monkeypatch, content, text):
    (pems / "t").unlink(missing_ok=True)
    if content is not None:
        (pems / "t").write_bytes(content)
    for command in (("call", "prog.py", "f", "--on", NOWHERE), ("serve", "--port", "0"), ("proxy",)):
        result = tls_cli(*command, "--token-file", "t")
        one_line(result, text)
        assert "schlüssel" not in result[2]
    monkeypatch.setenv("ADYTON_TOKEN_FILE", "t")
    with pytest.raises(UsageError) as refused:
        RemoteProvision.instantiate(NOWHERE)
    assert text in str(refused.value)


def test_a_token_in_a_file_ends_before_its_newline(tmp_path):
    (tmp_path / "t").write_bytes(b"  a secret\r\n")
    assert read_token(str(tmp_path / "t")) == "a secret"
    assert read_token(None) == ""
    with pytest.raises(UsageError, match="the token file is empty"):
        read_token("")
    for wrong in ("", "a\nb", "ü", "x" * 4097):
        with pytest.raises(UsageError):
            check_token(wrong)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="NO OPENSSL COMMAND HERE")
def test_what_the_openssl_command_makes_by_default(tmp_path):
    """The commands of docs/security.md."""
    text = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    commands = text.partition("```sh\n")[2].partition("```")[0].replace("tee.example", "localhost")
    subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path, check=True, capture_output=True)
    files = of_server(TLS(*(str(tmp_path / name) for name in ("ca.pem", "server.pem", "server.key"))))
    assert files is not None
    of_client(TLS(*(str(tmp_path / name) for name in ("ca.pem", "client.pem", "client.key"))))
