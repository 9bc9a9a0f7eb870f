"""The translator example: a gRPC server in an enclave, reached from this machine. grpcio's files are those of this environment."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import typing_extensions

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.sandbox
METHOD = "/examples.grpc_server.Translator/GetTranslation"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The example with grpcio among its sources, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("translator") / "project"
    shutil.copytree(ROOT / "examples/translator", folder, ignore=shutil.ignore_patterns("build", "__pycache__"))
    shutil.copytree(Path(grpc.__file__).parent, folder / "grpc", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(typing_extensions.__file__, folder / "typing_extensions.py")
    settings = (folder / "pyproject.toml").read_text()
    changed = settings.replace('dependencies = ["grpcio"]\n', "").replace(
        '"translator.proto"]', '"translator.proto", "grpc", "typing_extensions.py"]'
    )
    assert changed != settings
    (folder / "pyproject.toml").write_text(changed)
    return folder


@pytest.fixture(scope="module")
def port(project):
    command = [sys.executable, "run.py", "--port", "0"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True, process_group=0) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line.startswith("Server started on port "), line
        yield int(line.split()[-1])
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does


def ask(port, request):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return channel.unary_unary(METHOD)(request, timeout=60)


def field(text):
    return b"\x0a" + bytes([len(text)]) + text.encode()


@pytest.mark.parametrize(
    ("word", "translated"), [("asylo", "sanctuary"), ("Istio", "sail"), ("kubernetes", "helmsman")]
)
def test_words_are_translated(port, word, translated):
    assert ask(port, field(word)) == field(translated)


@pytest.mark.parametrize(
    ("request_", "message"),
    [(field("orkut"), 'No known translation for "orkut"'), (b"", "No input word given")],
)
def test_what_has_no_translation_is_an_error_of_the_caller(port, request_, message):
    with pytest.raises(grpc.RpcError) as caught:
        ask(port, request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == message
