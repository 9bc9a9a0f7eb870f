from itertools import pairwise


def longest_pause(path: str) -> float:
    """The longest time between two heartbeats; `path`: a file with the time of one heartbeat on each line. All in seconds."""
    times = [float(line) for line in open(path)]
    return round(max(later - earlier for earlier, later in pairwise(times)), 3)
