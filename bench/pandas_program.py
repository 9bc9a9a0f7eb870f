# /// script
# dependencies = ["pandas==3.1.1"]
# ///
"""The import of pandas, to the first answer: in an enclave from its image, and in a plain process."""

from __future__ import annotations

import time


def first_answer() -> tuple[float, float]:
    """The mean of three numbers, and the seconds until it is known."""
    start = time.perf_counter()
    import pandas as pd

    mean = float(pd.Series([1.0, 2.0, 6.0]).mean())
    return mean, time.perf_counter() - start


if __name__ == "__main__":
    print(first_answer()[1])
