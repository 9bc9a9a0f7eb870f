"""Fuzz target of policy files."""

from __future__ import annotations

from adyton.config import Policy


def policy(data: bytes) -> None:
    """A policy file, up to the rules that are made of it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # refused where the file is read
    read = Policy.parse(text, name="p.toml", base="/work")
    read.extended(environment={})
    if read.expect is not None:
        read.expect.check()
    read.host_calls("/work")
