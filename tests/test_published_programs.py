"""Published packages in images, built from a program's own requirements and not changed: they do in an enclave what they do anywhere."""

from __future__ import annotations

import csv
import http.server
import json
import os
import platform
import ssl
import threading

import pytest
import trustme
from published import script

import adyton

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.usefixtures("on_the_server"),
    pytest.mark.skipif(
        platform.machine() != "x86_64", reason="NOT X86-64: single files have wheels for that machine only"
    ),
]

FRAMES = """
import threading
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow.parquet as pq


def totals(path: str, key: str, value: str) -> dict[str, float]:
    frame = pd.read_parquet(path) if path.endswith(".parquet") else pd.read_csv(path)
    return {str(name): float(total) for name, total in frame.groupby(key)[value].sum().items()}


def to_parquet(source: str, target: str) -> int:
    frame = pd.read_csv(source, parse_dates=["day"])
    frame.to_parquet(target, compression="zstd")
    return len(frame)


def schema(path: str) -> list[str]:
    return [f"{field.name}: {field.type}" for field in pq.read_schema(path)]


def product(size: int) -> list[float]:
    left = np.arange(size * size, dtype=np.float64).reshape(size, size)
    result = left @ np.eye(size)
    return [float(np.abs(result - left).max()), len(np.linalg.eigvalsh(left + left.T))]
"""


@pytest.fixture
def sales(workplace):
    """A table of the client's: 5,000 rows of a day, a shop and an amount; what each shop has sold."""
    sums: dict[str, float] = {}
    with open(workplace / "sales.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("day", "shop", "amount"))
        for number in range(5000):
            shop, amount = f"shop{number % 7}", number % 100 + 0.5
            writer.writerow((f"2026-{number % 12 + 1:02}-{number % 28 + 1:02}", shop, amount))
            sums[shop] = sums.get(shop, 0.0) + amount
    return sums


def test_numpy_and_pandas_work_on_csv_and_parquet_of_the_client(published_wheels, workplace, sales):
    program = script(workplace, FRAMES, "numpy", "pandas", "pyarrow")
    with adyton.load(program, allow_read=["sales.csv"], allow_write=["sales.parquet"]) as frames:
        assert frames.call("totals", "sales.csv", "shop", "amount") == sales
        assert frames.call("to_parquet", "sales.csv", "sales.parquet") == 5000
        assert (workplace / "sales.parquet").read_bytes()[:4] == b"PAR1"
        assert frames.call("totals", "sales.parquet", "shop", "amount") == sales
        names = [line.partition(":")[0] for line in frames.call("schema", "sales.parquet")]
        assert names == ["day", "shop", "amount"]
        assert frames.call("product", 300) == [0.0, 300]  # OpenBLAS, on threads of its own
        with pytest.raises(PermissionError):
            frames.call("totals", os.path.abspath("other.csv"), "shop", "amount")


MODEL = """
import importlib
import ssl

import pydantic


class Order(pydantic.BaseModel):
    item: str
    amount: int = pydantic.Field(gt=0)


def total(orders: list[dict[str, str]]) -> int:
    return sum(Order.model_validate(order).amount for order in orders)


def versions(names: list[str]) -> list[str]:
    return [importlib.import_module(name).__name__ for name in names]


def certificates() -> int:
    import certifi

    return len(ssl.create_default_context(cafile=certifi.where()).get_ca_certs())
"""


def test_web_frameworks_and_their_compiled_parts_import_and_work(published_wheels, workplace):
    program = script(workplace, MODEL, "fastapi", "grpcio", "httpx", "requests", "uvicorn")
    names = ["fastapi", "grpc", "httpx", "pydantic_core", "requests", "starlette.applications", "uvicorn"]
    with adyton.load(program) as model:
        assert model.call("versions", names) == names
        assert model.call("total", [{"item": "a", "amount": "2"}, {"item": "b", "amount": "3"}]) == 5
        assert model.call("certificates") > 50
        with pytest.raises(adyton.errors.EnclaveError, match="greater than 0"):
            model.call("total", [{"item": "a", "amount": "-1"}])


CLIENTS = """
import asyncio
import ssl

import httpx
import requests


def with_requests(url: str, authority: str) -> list[object]:
    with requests.Session() as session:
        session.verify = authority
        found = session.get(f"{url}/search", params={"q": "two words"}, headers={"X-Asked": "yes"}, timeout=60)
        found.raise_for_status()
        made = session.post(f"{url}/orders", json={"item": "tea"}, timeout=60)
        sent = session.put(f"{url}/upload", data=bytes(300_000), timeout=60)
        missing = session.get(f"{url}/missing", timeout=60)
        with session.get(f"{url}/large", stream=True, timeout=60) as answer:
            size = sum(map(len, answer.iter_content(10_000)))
    return [found.json(), made.json(), sent.json(), missing.status_code, size]


def with_httpx(url: str, authority: str) -> list[object]:
    context = ssl.create_default_context(cafile=authority)
    with httpx.Client(base_url=url, verify=context, timeout=60) as client:
        found = client.get("/search", params={"q": "two words"}, headers={"X-Asked": "yes"}).raise_for_status()
        made = client.post("/orders", json={"item": "tea"})
        sent = client.put("/upload", content=bytes(300_000))
        missing = client.get("/missing")
        with client.stream("GET", "/large") as answer:
            size = sum(map(len, answer.iter_bytes()))
    return [found.json(), made.json(), sent.json(), missing.status_code, size]


async def together(url: str, authority: str, count: int) -> list[str]:
    context = ssl.create_default_context(cafile=authority)
    async with httpx.AsyncClient(base_url=url, verify=context, timeout=60) as client:
        answers = await asyncio.gather(*(client.get(f"/{number}") for number in range(count)))
    return [answer.json()["path"] for answer in answers]


def attempt(library: str, url: str) -> str:
    try:
        (requests if library == "requests" else httpx).get(url, timeout=60)
    except (requests.RequestException, httpx.HTTPError) as error:
        return f"{type(error).__name__}: {error}"
    return "answered"
"""


class Mirror(http.server.BaseHTTPRequestHandler):
    """Says what it was asked, in JSON."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = {"path": self.path, "asked": self.headers.get("X-Asked"), "body": len(body)}
        if self.headers.get("Content-Type", "").startswith("application/json"):
            said["body"] = json.loads(body)
        data = bytes(1_000_000) if self.path == "/large" else json.dumps(said).encode()
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def https(workplace):
    """The port of a server on this machine; authority.pem is whom to trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path("authority.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


def test_requests_and_httpx_talk_tls_to_a_server_on_the_clients_machine(published_wheels, workplace, https, capfd):
    url = f"https://localhost:{https}"
    program = script(workplace, CLIENTS, "requests", "httpx")
    with adyton.load(program, allow_net=[f"localhost:{https}"], allow_read=["authority.pem"]) as clients:
        for library in ("requests", "httpx"):
            found, made, sent, missing, size = clients.call(f"with_{library}", url, "authority.pem")
            assert found["asked"] == "yes"
            assert found["path"] in ("/search?q=two+words", "/search?q=two%20words")
            assert made == {"path": "/orders", "asked": None, "body": {"item": "tea"}}
            assert (sent["body"], missing, size) == (300_000, 404, 1_000_000)
            assert "CERTIFICATE_VERIFY_FAILED" in clients.call("attempt", library, url)  # without authority.pem
            assert clients.call("attempt", library, "https://127.0.0.2:1").startswith("Connect")
        assert clients.call("together", url, "authority.pem", 20) == [f"/{number}" for number in range(20)]
    assert "denied: net 127.0.0.2:1 (add --allow-net 127.0.0.2:1)" in capfd.readouterr().err
