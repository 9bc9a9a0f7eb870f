"""The translator example: a gRPC server in an enclave, reached from this machine, with grpcio's published wheel in its image."""

import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="NOT X86-64: an image is for that machine by default"),
]
METHOD = "/examples.grpc_server.Translator/GetTranslation"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The example. Its image locks the wheels that there are."""
    folder = tmp_path_factory.mktemp("translator") / "project"
    shutil.copytree(
        ROOT / "examples/translator", folder, ignore=shutil.ignore_patterns("build", "__pycache__", "adyton.lock")
    )
    return folder


@pytest.fixture(scope="module")
def port(project, environment_of_wheels, cache_of_tests):
    command = [sys.executable, "run.py", "--port", "0"]
    environment = {**os.environ, **environment_of_wheels, "XDG_CACHE_HOME": str(cache_of_tests)}
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True, process_group=0
    ) as running:
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
