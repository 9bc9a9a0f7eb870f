"""Published servers in enclaves, unchanged: they listen on a port of the client's machine, and ordinary clients there call them."""

from __future__ import annotations

import http.client
import json
import platform
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import grpc
import pytest
from grpc_tools import protoc
from published import project, serving

pytestmark = pytest.mark.sandbox
wheels_for_this_machine = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="NOT X86-64: projects have wheels for that machine by default"
)
PATIENCE = 60  # seconds until a test gives up on something that takes milliseconds


ECHO = """
import asyncio
import sys


async def handle(reader, writer):
    peer = writer.get_extra_info("peername")
    writer.write(f"hello {peer[0]}:{peer[1]}\\n".encode())
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", int(sys.argv[1]))
    print("Serving on", server.sockets[0].getsockname())
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
"""


def test_an_asyncio_server_has_many_connections_at_once(workplace):
    with serving(project(workplace, {"echo.py": ECHO}), "echo", "0") as port:
        connections = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(20)]
        for number, connection in enumerate(connections):
            connection.sendall(b"line %d\n" % number * 1000)
            connection.shutdown(socket.SHUT_WR)
        for number, connection in reversed(list(enumerate(connections))):
            with connection, connection.makefile("rb") as answer:
                host, name = connection.getsockname()
                assert answer.readline() == f"hello {host}:{name}\n".encode()
                assert answer.read() == b"LINE %d\n" % number * 1000


SHOP = '''
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

stock: dict[str, float] = {}


@asynccontextmanager
async def lifespan(app: FastAPI):
    stock["tea"] = 2.5
    yield
    stock.clear()


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    name: str
    price: float = Field(gt=0)
    tags: list[str] = []


async def visitor(x_token: str = Header()) -> str:
    if x_token != "secret":
        raise HTTPException(status_code=401, detail="who are you?")
    return x_token


@app.get("/")
async def root():
    return {"items": sorted(stock)}


@app.get("/items/{name}")
def price(name: str, amount: int = 1):
    """No coroutine: it runs in a thread."""
    if name not in stock:
        raise HTTPException(status_code=404, detail=f"no {name}")
    return {"name": name, "price": stock[name] * amount}


@app.put("/items", dependencies=[Depends(visitor)])
async def put(item: Item) -> Item:
    stock[item.name] = item.price
    return item


@app.get("/numbers")
async def numbers(count: int):
    async def lines():
        for number in range(count):
            yield f"{number}\\n"

    return StreamingResponse(lines(), media_type="text/plain")
'''


@wheels_for_this_machine
def test_fastapi_is_served_by_uvicorn(published_wheels, workplace):
    image = project(workplace, {"shop.py": SHOP}, "fastapi", "uvicorn")
    with serving(image, "uvicorn", "shop:app", "--port", "0") as port:

        def ask(method, path, body=None, **headers):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            return answer.status, json.loads(text) if answer.headers["Content-Type"] == "application/json" else text

        item = {"name": "salt", "price": 1.5, "tags": ["white"]}
        assert ask("GET", "/") == (200, {"items": ["tea"]})
        assert ask("PUT", "/items", item, **{"X-Token": "guess"}) == (401, {"detail": "who are you?"})
        assert ask("PUT", "/items", item, **{"X-Token": "secret"}) == (200, item)
        assert ask("PUT", "/items", {**item, "price": 0}, **{"X-Token": "secret"})[0] == 422
        assert ask("GET", "/items/gold") == (404, {"detail": "no gold"})
        with ThreadPoolExecutor(10) as clients:
            answers = clients.map(lambda amount: ask("GET", f"/items/salt?amount={amount}"), range(50))
        assert [answer["price"] for _, answer in answers] == [amount * 1.5 for amount in range(50)]
        assert ask("GET", "/numbers?count=20000") == (200, "".join(f"{number}\n" for number in range(20_000)))
        assert "Swagger" in ask("GET", "/docs")[1]


GREETER_PROTO = """
syntax = "proto3";

package published;

service Greeter {
  rpc Hello(Request) returns (Reply);
  rpc HelloToAll(stream Request) returns (stream Reply);
}

message Request {
  string name = 1;
}

message Reply {
  string message = 1;
}
"""

GREETER = """
import sys
from concurrent import futures

import greeter_pb2
import greeter_pb2_grpc
import grpc


class Greeter(greeter_pb2_grpc.GreeterServicer):
    def Hello(self, request, context):
        if not request.name:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "nobody to greet")
        return greeter_pb2.Reply(message=f"Hello, {request.name}!")

    def HelloToAll(self, requests, context):
        for request in requests:
            yield self.Hello(request, context)


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=10))
    greeter_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    got = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print(f"Server started, listening on 127.0.0.1:{got}")
    server.wait_for_termination()


if __name__ == "__main__":
    serve(sys.argv[1])
"""


def generated(folder: Path) -> str:
    """greeter_pb2_grpc.py, which programs are published with."""
    (folder / "greeter.proto").write_text(GREETER_PROTO)
    includes = [f"-I{folder}", f"-I{files('grpc_tools') / '_proto'}"]
    assert protoc.main(["", *includes, f"--grpc_python_out={folder}", "greeter.proto"]) == 0
    return (folder / "greeter_pb2_grpc.py").read_text()


def text(value: str) -> bytes:
    """A message whose field 1 is this text, of less than 128 bytes."""
    return b"\x0a" + bytes([len(value)]) + value.encode()


@wheels_for_this_machine
def test_a_grpc_server_answers_calls_and_streams(published_wheels, workplace):
    sources = {"greeter.py": GREETER, "greeter.proto": GREETER_PROTO, "greeter_pb2_grpc.py": generated(workplace)}
    with (
        serving(project(workplace, sources, "grpcio"), "greeter", "0") as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        hello = channel.unary_unary("/published.Greeter/Hello")
        assert hello(text("World"), timeout=PATIENCE) == text("Hello, World!")
        under_way = [hello.future(text(str(number)), timeout=PATIENCE) for number in range(50)]
        assert [each.result() for each in under_way] == [text(f"Hello, {number}!") for number in range(50)]
        with pytest.raises(grpc.RpcError) as caught:
            hello(b"", timeout=PATIENCE)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "nobody to greet")

        answered = threading.Semaphore(1)

        def names():
            for number in range(200):
                assert answered.acquire(timeout=PATIENCE)  # the answer to the one before
                yield text(str(number))

        got = []
        for reply in channel.stream_stream("/published.Greeter/HelloToAll")(names(), timeout=PATIENCE):
            got.append(reply)
            answered.release()
        assert got == [text(f"Hello, {number}!") for number in range(200)]
