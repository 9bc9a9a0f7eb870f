def mean_pay(path: str) -> float:
    rows = [float(line) for line in open(path)]  # noqa: SIM115 - as short as it can be
    return sum(rows) / len(rows)
