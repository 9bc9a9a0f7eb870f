"""Images of programs as they were published: their files unchanged, with one more that starts them, as `python -m` does."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from command import start

from adyton.image.project import build_project

STARTER = '''
"""python -m MODULE ARGUMENTS"""
import runpy
import sys

import adyton.trusted

enclave = adyton.trusted.Enclave("published")


@enclave.entry
def python_m(module: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
'''

PROJECT = """
[tool.adyton.enclave.published]
entry = "starter:enclave"
sources = {sources}
dependencies = {dependencies}
"""


def script(folder: Path, text: str, *requirements: str) -> Path:
    """A program of one file, with its requirements in it."""
    path = folder / "program.py"
    head = f"# /// script\n# dependencies = {list(requirements)!r}\n# ///\n"
    path.write_text(head + text)
    return path


def project(folder: Path, files: Mapping[str, str], *requirements: str) -> str:
    """The image, made in `folder`, of these files: text by name. Its entry is `python_m`."""
    for name, text in {**files, "starter.py": STARTER}.items():
        (folder / name).write_text(text)
    sources = ["starter.py", *files]
    table = PROJECT.format(sources=sources, dependencies=list(requirements))
    (folder / "pyproject.toml").write_text(table)
    (built,) = build_project(folder)
    return str(built.path)


@contextmanager
def serving(image: str, module: str, *arguments: str) -> Iterator[int]:
    """The port on 127.0.0.1 of a server in an enclave of the image, as soon as it has said that it listens. Interrupted at the end."""
    call = ["call", image, "python_m", module, msgspec.json.encode(arguments).decode()]
    running = start(*call, "--allow-listen", "127.0.0.1:0", stderr=subprocess.PIPE, process_group=0)
    with running:
        assert running.stderr is not None
        said = []
        for line in running.stderr:
            said.append(line)
            if found := re.search(r"127\.0\.0\.1'?[:,] ?(\d+)", line):
                break
        else:
            raise AssertionError("".join(said))
        try:
            yield int(found[1])
        finally:
            running.send_signal(signal.SIGINT)
            running.stderr.read()  # to its end: nothing keeps a server's log waiting
            assert running.wait(60) == 130
