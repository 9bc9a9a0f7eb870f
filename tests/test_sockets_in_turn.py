"""Several threads or processes of an enclave that call something on one socket at once, of which the client has to be asked."""

import pytest
from enclave_sockets import EVERYWHERE, PATIENCE, enclave

pytestmark = pytest.mark.sandbox

AT_ONCE = """
def at_once(*calls):
    "What each of the calls came to, all begun in the same moment by threads of their own: its result, or the name of its errno."
    results, begun = [None] * len(calls), threading.Barrier(len(calls))
    def do(number, call):
        begun.wait()
        try:
            results[number] = call()
        except OSError as error:
            results[number] = errno.errorcode[error.errno]
    threads = [threading.Thread(target=do, args=each, daemon=True) for each in enumerate(calls)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(patience)
    return ["hangs" if thread.is_alive() else result for thread, result in zip(threads, results)]
"""


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    with enclave(tmp_path_factory.mktemp("sockets"), **EVERYWHERE) as found:
        yield found


def run(at_work, code):
    return at_work.run(f"patience = {PATIENCE}\n{AT_ONCE}\n{code}")


def test_threads_that_listen_with_one_socket_at_once_all_listen(at_work):
    code = """
found = []
for _ in range(20):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        found += at_once(*[lambda backlog=backlog: sock.listen(backlog) for backlog in (5, 100, 5, 100)])
        with socket.create_connection(sock.getsockname()):
            sock.accept()[0].close()
result = [each for each in found if each is not None]
"""
    assert run(at_work, code) == []


def test_processes_that_listen_with_one_socket_at_once_all_listen(at_work):
    """As servers' workers do that were forked with a bound socket."""
    code = """
result = []
for _ in range(5):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        begun, ready = os.pipe()
        children = []
        for _ in range(4):
            if not (child := os.fork()):
                signal.alarm(30)
                os.close(ready)
                os.read(begun, 1)
                try:
                    sock.listen(100)
                except OSError as error:
                    os._exit(error.errno)
                os._exit(0)
            children.append(child)
        os.close(ready)
        result += [os.waitpid(child, 0)[1] for child in children]
        os.close(begun)
"""
    assert run(at_work, code) == [0] * 20


def test_threads_that_send_to_new_peers_by_one_socket_at_once_reach_them_all(at_work):
    code = """
result = []
for _ in range(10):
    peers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for each in peers:
            each.bind(("127.0.0.1", 0))
        sent = at_once(*[lambda to=each.getsockname(): sock.sendto(b"%d" % to[1], to) for each in peers])
        for each, size in zip(peers, sent):
            result.append(size == 5 and each.recv(9) == b"%d" % each.getsockname()[1] or size)
            each.close()
"""
    assert run(at_work, code) == [True] * 40


def test_one_thread_of_several_binds_a_socket_and_the_others_are_told_so(at_work):
    code = """
result = []
for _ in range(10):
    with socket.socket() as sock:
        result.append(sorted(at_once(*[lambda: sock.bind(("127.0.0.1", 0))] * 3), key=str))
"""
    assert run(at_work, code) == [["EINVAL", "EINVAL", None]] * 10
