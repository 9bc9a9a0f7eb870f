import statistics

import adyton
from adyton import trusted

enclave = trusted.Enclave("pay")


@enclave.entry
def mean_pay(path: str) -> float:
    return statistics.mean(float(line) for line in open(path))  # the client's file, if the client allows


if __name__ == "__main__":
    with adyton.load(enclave, allow_read=["pay.csv"]) as pay:  # on= or ADYTON_ON picks a server
        print(pay.call(mean_pay, "pay.csv"))  # mean_pay("pay.csv") itself still runs here
