"""The web pages: a parking page, the page that shows the circles, and the two addresses that it asks.

    address                       answer
    /                             a page with a link to /circles
    /circles                      the page
    /start?width=700&height=500   sets the circles up on a field of that size; again with the same size: nothing more to do
    /calc?unique_id=…             moves each circle one step, and says in XML where it is; unique_id keeps browsers from remembering

What goes wrong is answered with a text that begins with the name of a canonical status code.
"""

import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from circle import Circle

from adyton import AdytonError, EnclaveClient

PARKING = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Parking page</title></head>
<body><h1>Parking page</h1><p><a href="/circles">Bouncing circles example</a></p></body></html>
"""
STATUS = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "NOT_FOUND": 404, "ALREADY_EXISTS": 409}


class Field:
    """The circles, each in an enclave of its own."""

    def __init__(self, enclaves: Sequence[EnclaveClient], circles: Sequence[Circle]) -> None:
        self._enclaves = list(zip(enclaves, circles, strict=True))
        self._lock = threading.Lock()  # one step of all at a time, however many browsers look
        self._size: tuple[int, int] | None = None

    def start(self, width: int, height: int) -> None:
        with self._lock:
            if self._size == (width, height):
                return
            for enclave, start in self._enclaves:
                enclave.call("setup", start, width, height)
            self._size = (width, height)

    def step(self) -> list[Mapping[str, Any]]:
        with self._lock:
            moving = [enclave.submit("update") for enclave, _ in self._enclaves]
            return [each.result() for each in moving]


def xml_of(shapes: Sequence[Mapping[str, Any]]) -> str:
    circles = "".join(
        f"<CIRCLE><X>{each['x']:d}</X><Y>{each['y']:d}</Y><RADIUS>{each['radius']:d}</RADIUS>"
        f"<FILL>{escape(each['fill'])}</FILL></CIRCLE>"
        for each in shapes
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><CIRCLES>{circles}</CIRCLES>'


class Server(ThreadingHTTPServer):
    """Listens from the start; `field` is set before it serves."""

    field: Field


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 60  # seconds for a browser's next words

    def do_GET(self) -> None:
        try:
            url = urlsplit(self.path)
            match url.path:
                case "/":
                    self._answer(200, "text/html", PARKING)
                case "/circles":
                    self._answer(200, "text/html", Path(__file__).with_name("circles.html").read_text("utf-8"))
                case "/start":
                    query = parse_qs(url.query)
                    self.server.field.start(_number(query, "width"), _number(query, "height"))
                    self._answer(200, "text/plain", "started\n")
                case "/calc":
                    self._answer(200, "application/xml", xml_of(self.server.field.step()))
                case _:
                    self._answer(404, "text/plain", f"NOT_FOUND: there is no page {url.path}; / is one\n")
        except ValueError as error:
            self._answer(400, "text/plain", f"INVALID_ARGUMENT: {error}\n")
        except AdytonError as error:
            text = str(error).removeprefix("CircleError: ")
            self._answer(STATUS.get(text.partition(":")[0], 500), "text/plain", f"{text}\n")

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True  # the browser went to another page

    def log_message(self, *_: object) -> None:
        """Sixty lines a second are of no use to anybody."""


def _number(query: dict[str, list[str]], name: str) -> int:
    text = query.get(name, [""])[0]
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError(
            f"/start wants width and height in pixels, such as /start?width=700&height=500; {name} is {text!r}"
        )
    return int(text)
