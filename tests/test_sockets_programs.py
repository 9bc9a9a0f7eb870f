"""What programs do with sockets, from the standard library, unchanged in an enclave."""

import asyncio
import http.server
import socket
import ssl
import threading
import urllib.request

import pytest
import trustme
from enclave_sockets import EVERYWHERE, PATIENCE, echo, enclave, server

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    with enclave(tmp_path_factory.mktemp("programs"), **EVERYWHERE) as found:
        yield found


def port_of(at_work):
    """The port that a program in the background writes down."""
    return at_work.run("""
        while not os.path.exists("/dev/shm/port"):
            time.sleep(0.002)
        with open("/dev/shm/port") as file:
            result = int(file.read())
        os.unlink("/dev/shm/port")
    """)


WRITE_PORT = """
def write_port(port):
    with open("/dev/shm/port.new", "w") as file:
        file.write(str(port))
    os.rename("/dev/shm/port.new", "/dev/shm/port")
"""


def test_an_asyncio_server(at_work):
    code = (
        WRITE_PORT
        + """
async def main():
    served = 0
    done = asyncio.Event()

    async def serve(reader, writer):
        nonlocal served
        while data := await reader.read(1 << 16):
            writer.write(data.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        served += 1
        if served == 10:
            done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    write_port(server.sockets[0].getsockname()[1])
    await done.wait()
    server.close()
    await server.wait_closed()
    return served

result = asyncio.run(main())
"""
    )
    serving = at_work.start(code)
    port = port_of(at_work)

    async def talk(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        text = f"hello {number} ".encode() * 5000
        writer.write(text)
        writer.write_eof()
        assert await reader.read() == text.upper()
        writer.close()
        await writer.wait_closed()

    async def main():
        await asyncio.gather(*map(talk, range(10)))

    asyncio.run(main())
    assert serving.result(PATIENCE) == 10


def test_asyncio_clients_of_both_kinds(at_work):
    code = """
async def stream(number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%d" % number * 1000)
    await writer.drain()
    writer.write_eof()
    data = await reader.read()
    writer.close()
    return data == b"%d" % number * 1000 and writer.get_extra_info("peername") == ("127.0.0.1", port)

class Datagrams(asyncio.DatagramProtocol):
    def __init__(self):
        self.got = asyncio.get_running_loop().create_future()
    def datagram_received(self, data, peer):
        self.got.set_result((data, peer))

async def refused():
    try:
        await asyncio.open_connection("127.0.0.1", 1)
    except ConnectionRefusedError:
        return True

async def main():
    results = await asyncio.gather(*map(stream, range(20)))
    loop = asyncio.get_running_loop()
    taker, protocol = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
    sender, _ = await loop.create_datagram_endpoint(Datagrams, remote_addr=taker.get_extra_info("sockname"))
    sender.sendto(b"datagram")
    data, peer = await protocol.got
    results.append(data == b"datagram" and peer == sender.get_extra_info("sockname"))
    results.append(await refused())
    taker.close()
    sender.close()
    return results

result = asyncio.run(main())
"""
    with server(echo) as port:
        assert at_work.run(code, port=port) == [True] * 22


def test_an_http_server_of_the_standard_library(at_work):
    code = (
        WRITE_PORT
        + """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[::-1])
    def log_message(self, *arguments):
        pass
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
    write_port(served.server_port)
    for _ in range(5):
        served.handle_request()
"""
    )
    serving = at_work.start(code)
    port = port_of(at_work)
    for number in range(5):
        body = bytes(range(256)) * (100 * number + 1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", body, timeout=PATIENCE) as answer:
            assert answer.read() == body[::-1]
    serving.result(PATIENCE)


def test_https_to_a_server_on_the_clients_machine(at_work):
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"secret " * 20_000)

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.socket = context.wrap_socket(served.socket, server_side=True)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    code = """
        import ssl, urllib.request
        context = ssl.create_default_context(cadata=ca)
        with urllib.request.urlopen(f"https://localhost:{port}/", context=context) as answer:
            result = [answer.status, len(answer.read())]
        try:
            urllib.request.urlopen(f"https://localhost:{port}/")
        except urllib.error.URLError as error:
            result.append(type(error.reason).__name__)
    """
    try:
        found = at_work.run(code, port=served.server_port, ca=authority.cert_pem.bytes().decode())
    finally:
        served.shutdown()
        served.server_close()
    assert found == [200, 140_000, "SSLCertVerificationError"]


def test_selectors_with_many_connections(at_work):
    code = """
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
        found = {}
        for kind in (selectors.SelectSelector, selectors.PollSelector, selectors.EpollSelector):
            with kind() as selector:
                for number, each in enumerate(sockets):
                    selector.register(each, selectors.EVENT_READ, number)
                    each.sendall(b"%d" % number)
                ready = {}
                while len(ready) < 30:
                    for key, _ in selector.select():
                        ready[key.data] = key.fileobj.recv(10)
                found[kind.__name__] = all(data == b"%d" % number for number, data in ready.items())
        result = found
        for each in sockets:
            each.close()
    """
    with server(echo) as port:
        assert set(at_work.run(code, port=port).values()) == {True}


def test_a_manager_of_multiprocessing_in_the_enclave(at_work):
    """Its connections are unix sockets of the enclave's own, and descriptors pass through them."""
    code = """
        import multiprocessing.connection as connection
        with connection.Listener("/dev/shm/listener", "AF_UNIX") as listener:
            pid = os.fork()
            if pid == 0:
                with connection.Client("/dev/shm/listener") as client:
                    client.send(["from", "the", "child"])
                os._exit(0)
            with listener.accept() as accepted:
                result = accepted.recv()
            os.waitpid(pid, 0)
    """
    assert at_work.run(code) == ["from", "the", "child"]


def test_bytes_are_no_round_trips(at_work):
    with server(echo) as port:
        at_work.run(
            "import builtins; builtins.sock = socket.create_connection(('127.0.0.1', port)); result = None", port=port
        )
        before = at_work.client.stats()["round_trips"]
        code = """
            for _ in range(50):
                sock.sendall(b"x" * 1000)
                got = 0
                while got < 1000:
                    got += len(sock.recv(1000))
            sock.close()
        """
        at_work.run(code)
        assert at_work.client.stats()["round_trips"] == before


def test_a_process_of_the_clients_machine_meets_a_program_with_socketserver(at_work):
    code = (
        WRITE_PORT
        + """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())
with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as served:
    write_port(served.server_address[1])
    served.handle_request()
"""
    )
    serving = at_work.start(code)
    with socket.create_connection(("127.0.0.1", port_of(at_work)), PATIENCE) as sock:
        sock.sendall(b"line\nrest")
        assert sock.makefile("rb").readline() == b"LINE\n"
    serving.result(PATIENCE)
