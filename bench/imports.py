"""`python bench/imports.py` (after `make wheels`): what it costs to import pandas from an image, beside the same packages under plain CPython.

On one server: the first enclave, which imports from source, and later ones, which import the bytecode that the server has made. Seconds
of the processor and of the clock, medians of rounds in turn. Prints a table, and writes bench/results/imports.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import adyton
from adyton.image.build import built_image
from adyton.image.layers import unpack_layer
from adyton.image.oci import Image

ROUNDS = 5
GOAL = 1.3  # times plain CPython

PROGRAM = f"""
# /// script
# requires-python = "=={sys.version_info.major}.{sys.version_info.minor}.*"
# dependencies = ["numpy", "pandas", "pyarrow"]
# ///
import time

_clock, _processor = time.perf_counter(), time.process_time()
import numpy
import pandas
import pyarrow.parquet

TOOK = [time.process_time() - _processor, time.perf_counter() - _clock]


def took() -> list[float]:
    return TOOK


def compiled() -> bool:
    import os

    return os.path.exists(pyarrow.parquet.__cached__)
"""


def main() -> None:
    wheels = Path(sys.prefix) / "wheels"
    os.environ |= {"UV_FIND_LINKS": str(wheels), "UV_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="adyton-bench-") as folder, server() as url:
        program = Path(folder) / "imports.py"
        program.write_text(PROGRAM)
        image = built_image(program)
        first = enclave(image, url)
        packages = plain_packages(image, folder)
        wait_until_compiled(image, url)
        rounds = [(enclave(image, url), plain(program, packages)) for _ in range(ROUNDS)]
    rows = {"first enclave": first}
    for name, samples in zip(("later enclaves", "plain CPython"), zip(*rounds, strict=True), strict=True):
        rows[name] = [statistics.median(each) for each in zip(*samples, strict=True)]
    print(f"{'import numpy, pandas, pyarrow':32}{'processor':>12}{'clock':>10}")
    for name, (processor, clock) in rows.items():
        print(f"{name:32}{processor:10.2f} s{clock:8.2f} s")
    times = [one / other for one, other in zip(rows["later enclaves"], rows["plain CPython"], strict=True)]
    print(f"{'later enclaves / plain':32}{times[0]:11.2f}x{times[1]:9.2f}x   (goal: at most {GOAL})")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "imports.json").write_text(json.dumps({"seconds": rows, "times": times}))


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of a provision server."""
    command = [sys.executable, "-m", "adyton.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield "grpc://" + process.stdout.readline().rpartition(" ")[2].strip()
        finally:
            process.terminate()


def enclave(image: Image, url: str) -> list[float]:
    with quiet(), adyton.load(image, on=url, allow_sim=True) as loaded:
        took: list[float] = loaded.call("took")
    return took


def plain_packages(image: Image, folder: str) -> str:
    """The image's packages in a folder, compiled as pip does it."""
    packages = os.path.join(folder, "packages")
    os.mkdir(packages)
    unpack_layer(image.layers()[1], packages)
    subprocess.run([sys.executable, "-m", "compileall", "-q", packages], stdout=subprocess.DEVNULL, check=False)
    return packages


def plain(program: Path, packages: str) -> list[float]:
    code = f"exec(open({str(program)!r}).read()); print(*TOOK)"
    environment = {**os.environ, "PYTHONPATH": packages}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return [float(each) for each in done.stdout.split()]


def wait_until_compiled(image: Image, url: str) -> None:
    """The server goes by the names of modules: pyarrow's are among the last."""
    while True:
        with quiet(), adyton.load(image, on=url, allow_sim=True) as loaded:
            if loaded.call("compiled"):
                return
        time.sleep(1)


def quiet() -> contextlib.AbstractContextManager[object]:
    """What a load says of the simulation is known here."""
    return contextlib.redirect_stderr(io.StringIO())


if __name__ == "__main__":
    main()
