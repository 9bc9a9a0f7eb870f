def mean_pay(path: str) -> float:
    rows = [float(line) for line in open(path)]
    return sum(rows) / len(rows)
