"""bouncing_circles: the rules of its circles, its addresses, and what a browser shows of it."""

from __future__ import annotations

import dataclasses
import http.client
import importlib.util
import re
import signal
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from browser import CHROMIUM, browser
from command import ROOT
from hypothesis import given
from hypothesis import strategies as st
from sandbox import children, wait_until_ended

from adyton import EnclaveLoadConfig, EnclaveManager, EnclaveManagerOptions, FakeEnclaveLoader
from adyton.errors import EnclaveError, EnclaveTypeError

FOLDER = ROOT / "examples" / "bouncing_circles"
COLOURS = {"blue": (66, 133, 244), "red": (219, 68, 55), "yellow": (244, 180, 0), "green": (15, 157, 88)}


@pytest.fixture(scope="module")
def program():
    """The module circle.py."""
    spec = importlib.util.spec_from_file_location("circle", FOLDER / "circle.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["circle"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["circle"]


# -- the rules ---------------------------------------------------------------------------------------------------------


def test_the_first_steps_are_as_the_table_says(program):
    circle = program.BouncingCircle()
    circle.setup(program.Circle(-200, -100, 5, 5, 10, "rgb(219,68,55)"), 700, 500)
    steps = [dataclasses.astuple(circle.update())[:3] for _ in range(12)]
    assert steps[:2] == [(505, 405, 12), (510, 410, 14)]
    assert steps[8:11] == [(545, 445, 28), (550, 450, 30), (555, 445, 32)]  # 450 is 90 % of the height


@given(
    x=st.integers(-300, 300),
    y=st.integers(-300, 300),
    speed=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    radius=st.integers(0, 60),
    size=st.tuples(st.integers(301, 900), st.integers(200, 300)),
)
def test_circles_stay_between_their_walls_and_pulse(program, x, y, speed, radius, size):
    circle = program.BouncingCircle()
    circle.setup(program.Circle(x, y, *speed, radius, "red"), *size)
    shapes = [circle.update() for _ in range(500)][300:]  # however far outside it began
    for shape in shapes:
        for position, step, length in zip((shape.x, shape.y), speed, size, strict=True):
            assert length * 0.1 - step <= position <= length * 0.9 + step
        assert 8 < shape.radius < 52
    assert {shape.radius for shape in shapes} >= set(range(12 + radius % 2, 50, 2))
    assert len({shape.x for shape in shapes}) > 1


def test_setup_and_update_are_refused_as_in_the_original(program):
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(program.BouncingCircle())))
    try:
        start = program.Circle(100, 200, 5, 3, 5, "blue")
        with EnclaveManager.instance().load_enclave(EnclaveLoadConfig(name="circle")) as circle:
            with pytest.raises(EnclaveError, match="NOT_FOUND: there is no circle before setup"):
                circle.call("update")
            for width, height in ((500, 500), (500, 700), (5, 0), (-3, -5)):
                with pytest.raises(EnclaveError, match="FAILED_PRECONDITION: a field of"):
                    circle.call("setup", start, width, height)
            for arguments in ((), (start,), ({}, 700, 500), (start, "700", 500)):
                with pytest.raises(EnclaveTypeError) as wrong:
                    circle.call("setup", *arguments)
                assert wrong.value.code == "INVALID_ARGUMENT"
            circle.call("setup", start, 700, 500)
            with pytest.raises(EnclaveError, match="ALREADY_EXISTS: the circle moves already"):
                circle.call("setup", start, 700, 500)
            assert circle.call("update") == {"x": 105, "y": 203, "radius": 7, "fill": "blue"}
    finally:
        EnclaveManager.configure(EnclaveManagerOptions())


# -- the web server ----------------------------------------------------------------------------------------------------


@contextmanager
def web(*arguments: str, end: int = signal.SIGTERM, status: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The example's address and process; ended by a signal, and its exit code checked."""
    process = subprocess.Popen(
        [sys.executable, str(FOLDER / "run.py"), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        match = re.fullmatch(r"bouncing_circles listening on (http://127\.0\.0\.1:\d+)/\n", line)
        assert match, line + process.stderr.read()
        yield match[1], process
        process.send_signal(end)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        assert set(errors.splitlines()) == {"adyton: simulated enclave: NOT CONFIDENTIAL"}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def address(server) -> Iterator[str]:
    """The example's address; its enclaves are on a provision server, and nothing has been set up by the first test."""
    with web("--on", server, "--allow-sim") as (url, _):
        yield url


@pytest.mark.sandbox
def test_the_pages_and_their_addresses(server):
    with web("--on", server, "--allow-sim") as (url, _):
        status, page = get(f"{url}/")
        assert status == 200
        assert "Parking page" in page
        assert '<a href="/circles">Bouncing circles example</a>' in page
        status, page = get(f"{url}/circles")
        assert status == 200
        assert "<title>Bouncing Circles</title>" in page
        assert "TPS: 0 Elapsed: 0 sec" in page
        assert get(f"{url}/nothing") == (404, "NOT_FOUND: there is no page /nothing; / is one\n")
        assert get(f"{url}/calc?unique_id=1") == (404, "NOT_FOUND: there is no circle before setup\n")
        for query in ("", "?width=700", "?width=x&height=500", "?width=-700&height=500", "?width=7e9&height=1"):
            status, text = get(f"{url}/start{query}")
            assert status == 400
            assert text.startswith("INVALID_ARGUMENT: /start wants width and height in pixels")
        with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
            connection.putrequest("GET", "http://[/", skip_host=True)  # no address at all
            connection.endheaders()
            answer = connection.getresponse()
            assert (answer.status, answer.read().partition(b":")[0]) == (400, b"INVALID_ARGUMENT")
        assert get(f"{url}/start?width=500&height=500") == (
            400,
            "FAILED_PRECONDITION: a field of 500 by 500 is not wider than it is high\n",
        )
        assert get(f"{url}/start?width=700&height=500") == (200, "started\n")
        assert get(f"{url}/start?width=700&height=500") == (200, "started\n")
        status, text = get(f"{url}/start?width=800&height=500")
        assert (status, text.partition(":")[0]) == (409, "ALREADY_EXISTS")
        status, text = get(f"{url}/calc?unique_id=0.5")
        assert status == 200
        assert text == (
            '<?xml version="1.0" encoding="UTF-8"?><CIRCLES>'
            "<CIRCLE><X>105</X><Y>203</Y><RADIUS>7</RADIUS><FILL>rgb(66,133,244)</FILL></CIRCLE>"
            "<CIRCLE><X>505</X><Y>405</Y><RADIUS>12</RADIUS><FILL>rgb(219,68,55)</FILL></CIRCLE>"
            "<CIRCLE><X>603</X><Y>205</Y><RADIUS>22</RADIUS><FILL>rgb(244,180,0)</FILL></CIRCLE>"
            "<CIRCLE><X>203</X><Y>403</Y><RADIUS>17</RADIUS><FILL>rgb(15,157,88)</FILL></CIRCLE></CIRCLES>"
        )


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it ended meanwhile


@pytest.mark.sandbox
@pytest.mark.parametrize(("end", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["term", "int"])
def test_its_own_provision_server_ends_with_it(end, status):
    with web(end=end, status=status) as (_, process):
        started = children(process.pid)
        assert any(b"\0serve\0" in _command(each) for each in started)
    assert wait_until_ended(started) == set()


def test_what_cannot_be_listened_at_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, text in (
            (["--port", str(port)], f"127.0.0.1:{port}: Address already in use; choose another with --port"),
            (["--port", "65536"], "choose another with --port"),
            (["--port", "0", "--on", "grpc://127.0.0.1:1"], "cannot reach 127.0.0.1:1"),
        ):
            refused = subprocess.run(
                [sys.executable, str(FOLDER / "run.py"), *arguments],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (refused.returncode, refused.stdout) == (10 if "--on" in arguments else 2, "")
            assert refused.stderr.startswith("bouncing_circles: ")
            assert text in refused.stderr
            assert refused.stderr.count("\n") == 1


# -- the browser -------------------------------------------------------------------------------------------------------


def pixels(png: bytes) -> Iterator[list[bytes]]:
    """The rows of a PNG (8 bits, RGB or RGBA, not interlaced), each as a list of three-byte colours; PNG specification, 9.2."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    position, data = 8, b""
    width = channels = 0
    while position < len(png):
        size, kind = struct.unpack_from(">I4s", png, position)
        body = png[position + 8 : position + 8 + size]
        if kind == b"IHDR":
            width, _, depth, colour, *rest = struct.unpack(">IIBBBBB", body)
            assert (depth, rest) == (8, [0, 0, 0])
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            data += body
        position += size + 12
    raw, stride = zlib.decompress(data), width * channels
    above = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        method, line = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for index in range(stride if method else 0):
            left = line[index - channels] if index >= channels else 0
            corner = above[index - channels] if index >= channels else 0
            line[index] = line[index] + _predicted(method, left, above[index], corner) & 0xFF
        yield [bytes(line[at : at + 3]) for at in range(0, stride, channels)]
        above = line


def _predicted(method: int, left: int, above: int, corner: int) -> int:
    if method == 4:
        estimate = left + above - corner
        return min((left, above, corner), key=lambda value: abs(estimate - value))
    return (0, left, above, (left + above) // 2)[method]


Point = tuple[int, int]


@pytest.mark.sandbox
@pytest.mark.skipif(
    CHROMIUM is None, reason="NO CHROMIUM HERE: what a browser shows of bouncing_circles was not looked at"
)
def test_a_browser_shows_four_circles_that_move(address, tmp_path):
    places: list[dict[str, tuple[Point, Point]]] = []
    wanted = {bytes(colour): name for name, colour in COLOURS.items()}
    with browser(tmp_path) as page:
        page.open(f"{address}/circles")
        steps = 0
        for _ in range(50):  # one may be behind another for a while
            page.wait_until(f"steps > {steps}")
            seen: dict[str, list[Point]] = {name: [] for name in COLOURS}
            for y, row in enumerate(pixels(page.picture())):
                for x, colour in enumerate(row):
                    if colour in wanted:
                        seen[wanted[colour]].append((x, y))
            if all(len(points) > 60 for points in seen.values()):  # one of radius 5 has 78
                places.append({name: (min(points), max(points)) for name, points in seen.items()})
            if len(places) == 2:
                break
            steps = page.evaluate("steps")
        assert len(places) == 2, (
            f"no picture of all: the last has { ({name: len(points) for name, points in seen.items()}) }"
        )
        for name in COLOURS:
            assert places[0][name] != places[1][name], f"the {name} circle did not move"

        assert page.evaluate("document.querySelectorAll('circle').length") == 4
        numbers = page.evaluate("document.getElementById('numbers').textContent")
        assert re.fullmatch(r"TPS: \d+ Elapsed: \d+ sec", numbers)
        assert page.evaluate("document.getElementById('message').textContent") == ""
