"""Published packages in images, built from a program's own requirements and not changed: they do in an enclave what they do anywhere."""

from __future__ import annotations

import csv
import os
import platform

import pytest
from published import script

import adyton

pytestmark = [
    pytest.mark.sandbox,
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
