"""An image whose program executes what it is told, with limits."""

from __future__ import annotations

from pathlib import Path

import adyton
from adyton.image.project import build_project

PROGRAM = """
import errno, mmap, os, resource, signal, socket, subprocess, sys, threading, time
import adyton.trusted
enclave = adyton.trusted.Enclave("greedy")

@enclave.entry
def execute(code: str) -> object:
    scope = dict(globals())
    exec(code, scope)
    return scope.get("result")
"""
PROJECT = """
[tool.adyton.enclave.greedy]
entry = "greedy:enclave"
limits = {}
"""


def build(folder: Path, limits: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "greedy.py").write_text(PROGRAM)
    (folder / "pyproject.toml").write_text(PROJECT.format(limits))
    (built,) = build_project(folder)
    return built.path


def answers(client: adyton.EnclaveClient) -> bool:
    return client.call("execute", "result = sum(range(10))") == 45
