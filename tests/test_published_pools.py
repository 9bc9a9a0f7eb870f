"""Thread pools and multiprocessing in an enclave, unchanged, at work on files of the client."""

from __future__ import annotations

import json
import random

import pytest
from published import project

import adyton

pytestmark = pytest.mark.sandbox

THREADS = '''
import json
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.pool import ThreadPool
from pathlib import Path

WORKERS = 8
meeting = threading.Barrier(WORKERS, timeout=60)


def meet():
    """No worker begins before all of them are there."""
    meeting.wait()


def count(path):
    words = len(Path(path).read_text().split())
    Path(path).with_suffix(".count").write_text(str(words))
    return words


def main():
    paths = sorted(str(path) for path in Path("texts").glob("*.txt"))
    with ThreadPoolExecutor(WORKERS, initializer=meet) as pool:
        waiting = {pool.submit(count, path): path for path in paths}
        completed = {waiting[each]: each.result() for each in as_completed(waiting)}
    with ThreadPool(WORKERS, initializer=meet) as pool:
        mapped = dict(zip(paths, pool.map(count, paths)))
    Path("found.json").write_text(json.dumps([completed, mapped]))


if __name__ == "__main__":
    main()
'''

PROCESSES = """
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.managers import SharedMemoryManager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path


def count(path):
    return len(Path(path).read_text().split())


def count_into(totals, lock, path):
    with lock:
        totals[path] = count(path)
        totals["all"] = totals.get("all", 0) + totals[path]


def count_at(name, index, path):
    memory = SharedMemory(name)
    with memory.buf.cast("Q") as numbers:
        numbers[index] = count(path)
    memory.close()


def count_from(paths, counts, started):
    started.wait()
    for path in iter(paths.get, None):
        counts.send((path, count(path)))
    counts.close()


def by_pool(context, paths):
    with context.Pool(2) as pool:
        return dict(zip(paths, pool.imap(count, paths, chunksize=3)))


def by_executor(context, paths):
    with ProcessPoolExecutor(2, context) as pool:
        return dict(zip(paths, pool.map(count, paths)))


def by_manager(context, paths):
    with context.Manager() as manager:
        totals, lock = manager.dict(), manager.Lock()
        with context.Pool(2) as pool:
            pool.starmap(count_into, [(totals, lock, path) for path in paths])
        found = dict(totals)
    assert found.pop("all") == sum(found.values())
    return found


def by_shared_memory(context, paths):
    with SharedMemoryManager(ctx=context) as manager:
        memory = manager.SharedMemory(8 * len(paths))
        with context.Pool(2) as pool:
            pool.starmap(count_at, [(memory.name, index, path) for index, path in enumerate(paths)])
        with memory.buf.cast("Q") as numbers:
            return dict(zip(paths, numbers))


def by_queue(context, paths):
    queue, started = context.Queue(), context.Event()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=count_from, args=(queue, sender, started))
    process.start()
    sender.close()
    for path in [*paths, None]:
        queue.put(path)
    started.set()
    found = {}
    while len(found) < len(paths):
        path, words = receiver.recv()
        found[path] = words
    process.join()
    assert process.exitcode == 0
    return found


def main():
    context = multiprocessing.get_context(sys.argv[1])
    paths = sorted(str(path) for path in Path("texts").glob("*.txt"))
    ways = [by_pool, by_executor, by_manager, by_shared_memory, by_queue]
    Path("found.json").write_text(json.dumps({way.__name__: way(context, paths) for way in ways}))


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def texts(workplace, on_the_server):
    """Numbers of words of 24 files of the client, by path."""
    draw, found = random.Random(5), {}
    (workplace / "texts").mkdir()
    for number in range(24):
        path = f"texts/{number:02}.txt"
        found[path] = draw.randrange(3000)
        (workplace / path).write_text("word " * found[path])
    return found


def test_thread_pools_work_on_files_of_the_client(workplace, texts):
    with adyton.load(project(workplace, {"threads.py": THREADS}), allow_write=["texts", "found.json"]) as words:
        words.call("python_m", "threads", [])
    assert json.loads((workplace / "found.json").read_text()) == [texts, texts]
    assert {path: int((workplace / path).with_suffix(".count").read_text()) for path in texts} == texts


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_share_work_whichever_way_they_are_started(workplace, texts, capfd, method):
    image = project(workplace, {"processes.py": PROCESSES})
    with adyton.load(image, allow_read=["texts"], allow_write=["found.json"]) as words:
        words.call("python_m", "processes", [method])
    ways = ["by_pool", "by_executor", "by_manager", "by_shared_memory", "by_queue"]
    assert json.loads((workplace / "found.json").read_text()) == dict.fromkeys(ways, texts)
    assert "Traceback" not in capfd.readouterr().err  # of a process beside
