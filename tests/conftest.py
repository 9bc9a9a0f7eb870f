"""Fixtures that start what tests need, and stop it; and loud reasons where this machine cannot run a test."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certificates
import pytest
from hypothesis import HealthCheck, settings
from little_wheels import Wheels
from thorough import THOROUGH, half_of_variants

if TYPE_CHECKING:
    from adyton.image.oci import Image

# A loaded machine is no failure: no deadlines, which are about time passing.
settings.register_profile("adyton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("adyton")

# Whoever runs the tests in the background ignores it; what they start, and interrupt, must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As adyton.remote does it, but before any test module imports grpc.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

ROOT = Path(__file__).parent.parent
_STATES = itertools.count()


@functools.cache
def sandbox_missing() -> str:
    """Why the process runtime cannot run here; "" if it can."""
    from adyton.runtime.process.doctor import findings

    return "; ".join(f"{each.name}: {each.detail}" for each in findings() if each.needed and not each.ok)


def long_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """In the order given, but the modules with long tests first in what each worker begins with.

    Each has the next part of all items, as many as any other, and takes from the end of another's when it has done its own
    (pytest-xdist, --dist worksteal). So none is at a long one when all others have ended.
    """
    modules = [list(each) for _, each in itertools.groupby(items, key=lambda item: item.path)]
    long = [each for each in modules if any(item.get_closest_marker("long") for item in each)]
    others = itertools.chain.from_iterable(each for each in modules if each not in long)
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        ordered += itertools.chain.from_iterable(long[worker::workers])
        ordered += itertools.islice(others, max(0, len(items) * (worker + 1) // workers - len(ordered)))
    return [*ordered, *others]


@pytest.hookimpl(trylast=True)
def _is_halved(config: pytest.Config) -> bool:
    """Whether all tests are to run, and not what somebody names; then of variants every other one, see `thorough`."""
    told: bool | None = getattr(config, "workerinput", {}).get("halved")
    return not THOROUGH and config.args_source is pytest.Config.ArgsSource.TESTPATHS if told is None else told


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Before a worker of pytest-xdist is started."""
    node.workerinput["halved"] = _is_halved(node.config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _is_halved(config):
        items[:], left_out = half_of_variants(items, int(config.getoption("randomly_seed", 0)))
        config.hook.pytest_deselected(items=left_out)
    if workers := getattr(config, "workerinput", {}).get("workercount"):
        items[:] = long_first(items, workers)
    for item in items:
        if item.get_closest_marker("sandbox") and sandbox_missing():
            item.add_marker(pytest.mark.skip(reason=f"NO SANDBOX HERE: {sandbox_missing()}"))
        if item.get_closest_marker("netns") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="NOT ROOT: network namespaces cannot be made"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What this machine could not show: a line for each reason, however many tests have it; and what was left for another run."""
    if _is_halved(terminalreporter.config):
        terminalreporter.line("Of tests that start enclaves, every other variant was run; THOROUGH=1 runs all of them")
    skipped = [report.longrepr for report in terminalreporter.getreports("skipped")]
    reasons = Counter(each[2].removeprefix("Skipped: ") for each in skipped if isinstance(each, tuple))
    if reasons:
        terminalreporter.section("NOT RUN HERE", yellow=True, bold=True)
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count} tests: {reason}" if count > 1 else f"1 test: {reason}", yellow=True)


@pytest.fixture(scope="session")
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this run's tests have their built images; not kept, since some are large."""
    yield (folder := tmp_path_factory.getbasetemp() / "cache")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, cache_of_tests: Path) -> None:
    """No test sees the user's built images, what he or another test remembers of servers, or the user's ADYTON_ and OTEL_ variables."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_of_tests))
    monkeypatch.setenv("XDG_STATE_HOME", str(cache_of_tests / "state" / str(next(_STATES))))
    for name in list(os.environ):
        if name.startswith(("ADYTON_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def own_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A TMPDIR that any user can read: short, since sockets lie there; and other tests' files do not."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield directory


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a provision server on loopback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("adyton provision server listening on "), line
    yield "grpc://" + line.rpartition(" ")[2].strip()
    process.terminate()
    assert process.wait(80) == 0  # of which enclaves may have 30, when a test has left them
    process.stdout.close()


@pytest.fixture
def on_the_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads that do not say where go to the tests' provision server, which has started all that an enclave needs before.

    For tests that load often, of what is the same wherever the proxy server was started.
    """
    monkeypatch.setenv("ADYTON_ON", server)
    monkeypatch.setenv("ADYTON_ALLOW_SIM", "1")


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `certificates.write`, and a program."""
    folder = tmp_path_factory.mktemp("certificates")
    certificates.write(folder)
    (folder / "prog.py").write_text("def f() -> int:\n    return 1\n")
    return folder


@pytest.fixture
def tls_cli(
    capfd: pytest.CaptureFixture[str], pems: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """`adyton ARGUMENTS` in this process, in the folder of certificates: exit code, standard output, standard error."""
    monkeypatch.chdir(pems)

    def call(*arguments: str) -> tuple[int, str, str]:
        from adyton.cli.root import run

        with pytest.raises(SystemExit) as ended:
            run(list(arguments))
        return (int(str(ended.value.code)), *capfd.readouterr())

    return call


def waiting_address(kind: str, directory: str) -> str:
    """Where a client waits in dial-back: "ipv4", "ipv6", "any" or "unix" (a socket in `directory`)."""
    if kind in ("ipv6", "any"):
        try:
            with socket.socket(socket.AF_INET6) as sock:
                sock.bind(("::1", 0))
        except OSError:
            pytest.skip("NO IPV6 HERE: ::1 cannot be bound")
    return {"ipv4": "127.0.0.1:0", "ipv6": "[::1]:0", "any": "[::]:0", "unix": f"unix:{directory}/client.sock"}[kind]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wheels]:
    """A folder for wheels that the test makes, where packages come from, and a cache of the test's own."""
    found = Wheels(tmp_path / "wheels")
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield found
    for folder in (found.folder, tmp_path / "cache", tmp_path / "work/build"):
        shutil.rmtree(folder, ignore_errors=True)  # some are large


@pytest.fixture
def build(workplace: Path) -> Callable[..., Image]:
    """Build a project whose one image, `app`, depends on that, with more lines of its table; the image."""

    from adyton.image.oci import Image
    from adyton.image.project import build_project

    def run(*dependencies: str, more: str = "", python: str = "") -> Image:
        (workplace / "app.py").write_text("from adyton import trusted\napp = trusted.Enclave('app')\n")
        (workplace / "pyproject.toml").write_text(
            f'[tool.adyton.enclave.app]\nentry = "app:app"\ndependencies = {list(dependencies)!r}\n{more}\n'
        )
        (built,) = build_project(workplace, python=python)
        return Image.open(built.path)

    return run


@pytest.fixture
def forget(tmp_path: Path) -> Callable[[], None]:
    """Forget what was built of `wheels`, as on another machine."""
    return lambda: shutil.rmtree(tmp_path / "cache")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """For who builds images, this machine has Python 3.11, until the test says another (its minor version)."""

    def have(minor: int) -> None:
        monkeypatch.setattr("adyton.image.dependencies.this_python", lambda: (3, minor))

    have(11)
    return have


@pytest.fixture(scope="session")
def environment_of_wheels() -> dict[str, str]:
    """What has uv look for packages in the folder of wheels of tests/wheels.txt, and nowhere else."""
    folder = Path(sys.prefix) / "wheels"
    if not (folder / "ready").exists():
        pytest.skip("NO WHEELS HERE: make wheels fetches them")
    index = Path(sys.prefix) / "empty-index"
    index.mkdir(exist_ok=True)
    cache = Path(sys.prefix) / "uv-cache"
    return {"UV_FIND_LINKS": str(folder), "UV_DEFAULT_INDEX": index.as_uri(), "UV_CACHE_DIR": str(cache)}


@pytest.fixture
def published_wheels(monkeypatch: pytest.MonkeyPatch, environment_of_wheels: dict[str, str]) -> None:
    """This process, and what it starts, has its packages from tests/wheels.txt."""
    for name, value in environment_of_wheels.items():
        monkeypatch.setenv(name, value)


DIRECTIONS = ["dialled", "ipv4", "ipv6", "unix"]


@contextlib.contextmanager
def dialling(direction: str, directory: str) -> Iterator[None]:
    """Who dials, for every RemoteProvision that is made within: the client ("dialled"), or the proxy server, over each family.

    `directory`: for sockets; its name must be short.
    """
    if direction == "dialled":
        yield
        return
    from adyton.provision.client import RemoteProvision

    address = waiting_address(direction, directory)
    numbers = itertools.count()
    real = RemoteProvision.instantiate
    with pytest.MonkeyPatch.context() as monkeypatch:

        def instantiate(*arguments: Any, **keywords: Any) -> RemoteProvision:
            number = next(numbers)
            return real(*arguments, **keywords).dialled_back(address.replace("client", f"client{number}"))

        monkeypatch.setattr(RemoteProvision, "instantiate", staticmethod(instantiate))
        yield


@pytest.fixture(params=DIRECTIONS)
def direction(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test in each direction of `dialling`."""
    with tempfile.TemporaryDirectory(prefix="a", dir="/tmp") as directory, dialling(request.param, directory):
        yield request.param
