"""The lower bound of what processes have of memory together: it is never more than that, and enough to see what is new."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from adyton.runtime.process.supervisor.memory_least import Least, Size

PROCESS, COUNT = st.integers(0, 5), st.integers(1, 20)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["takes", "gives back", "writes to what it shares", "maps", "unmaps"]), PROCESS, COUNT),
    st.tuples(st.sampled_from(["forks", "executes", "ends"]), PROCESS, st.just(0)),
    st.tuples(st.sampled_from(["look", "exact look"]), st.just(0), st.just(0)),
)


class Machine:
    """Processes, by number, with the pages that each has: of its own or its parents', and shared ones, which are numbered from 0."""

    def __init__(self):
        self.fresh, self.numbers = itertools.count(1000), itertools.count(1)
        self.own, self.shared = {0: set(self.take(10))}, {0: set()}

    def take(self, count):
        return itertools.islice(self.fresh, count)

    def step(self, kind, process, count):
        number = sorted(self.own)[process % len(self.own)]
        own, shared = self.own[number], self.shared[number]
        if kind == "takes":
            own.update(self.take(count))
        elif kind == "gives back":
            own.difference_update(sorted(own)[:count])
        elif kind == "writes to what it shares":
            others = set().union(*(pages for other, pages in self.own.items() if other != number))
            copied = sorted(own & others)[:count]
            own.difference_update(copied)
            own.update(self.take(len(copied)))
        elif kind == "maps":
            shared.update(range(count))
        elif kind == "unmaps":
            shared.difference_update(range(count))
        elif kind == "forks":
            child = next(self.numbers)
            self.own[child], self.shared[child] = set(own), set(shared)
        elif kind == "executes":
            self.own[number], self.shared[number] = set(self.take(3)), set()
        elif len(self.own) > 1:
            del self.own[number], self.shared[number]

    def sizes(self):
        return {str(each): Size(len(own) + len(self.shared[each]), len(own)) for each, own in self.own.items()}

    def together(self):
        return len(set().union(*self.own.values())) + len(set().union(*self.shared.values()))


@given(st.lists(STEPS, max_size=60))
def test_processes_have_at_least_so_much_whatever_they_do(steps):
    machine, least = Machine(), Least()
    for kind, process, count in steps:
        if kind == "look":
            assert least.look(machine.sizes()) <= machine.together()
        elif kind == "exact look":
            least.exactly(machine.together(), machine.sizes())
        else:
            machine.step(kind, process, count)
    assert least.look(machine.sizes()) <= machine.together()


def test_what_forked_processes_take_is_seen_whole():
    machine, least = Machine(), Least()
    for _ in range(5):
        machine.step("forks", 0, 0)
    least.exactly(machine.together(), machine.sizes())
    for process in range(6):
        machine.step("takes", process, 100)
    assert least.look(machine.sizes()) == machine.together() == 610


def test_without_an_exact_look_it_is_what_the_largest_has_and_what_came_since():
    machine, least = Machine(), Least()
    machine.step("forks", 0, 0)
    assert least.look(machine.sizes()) == 10
    machine.step("takes", 1, 7)
    assert least.look(machine.sizes()) == 17
