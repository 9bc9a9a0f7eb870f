"""The lower bound of what processes have of memory together: it is never more than that, and enough to see what is new."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from adyton.runtime.process.supervisor.memory_least import Least, Size

PROCESS, COUNT = st.integers(0, 5), st.integers(1, 20)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["takes", "gives back", "writes to what it shares", "maps", "unmaps"]), PROCESS, COUNT),
    st.tuples(st.sampled_from(["forks", "starts another", "executes", "ends"]), PROCESS, st.just(0)),
    st.tuples(st.sampled_from(["look", "exact look", "begins to look", "reads", "has looked"]), st.just(0), st.just(0)),
)
# What a server does that forks for each request, and who hides what six have: seldom looked at exactly while nothing happens.
OF_SERVERS = st.one_of(
    st.tuples(st.just("forks"), st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["writes to what it shares", "takes"]), PROCESS.map(lambda each: each + 1), st.just(1)),
    st.tuples(st.just("ends"), st.integers(1, 40), st.just(0)),
    st.tuples(st.sampled_from(["look", "begins to look", *["reads"] * 9, "has looked"]), st.just(0), st.just(0)),
)
OF_THOSE_WHO_HIDE = st.one_of(
    st.tuples(st.sampled_from(["takes", "forks"]), PROCESS, st.integers(1, 10)),
    st.tuples(st.just("ends"), st.integers(6, 60), st.just(0)),
    st.tuples(st.sampled_from(["look", "begins to look", *["reads"] * 9, "has looked"]), st.just(0), st.just(0)),
)


class Machine:
    """Processes, by number, with the pages that each has: of its own or its parents', and shared ones, which are numbered from 0."""

    def __init__(self, pages=10):
        self.fresh, self.numbers = itertools.count(1000), itertools.count(1)
        self.own, self.shared = {0: set(self.take(pages))}, {0: set()}
        self.lender: dict[int, int] = {}

    def take(self, count):
        return itertools.islice(self.fresh, count)

    def step(self, kind, process, count):
        number = sorted(self.own)[process % len(self.own)]
        own, shared = self.own[number], self.shared[number]
        if kind in ("executes", "ends") and number in map(self.lender.get, map(int, self.borrowers())):
            return  # it waits; if it is killed, those that it started are seen as any others with memory of their own
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
        elif kind == "starts another":  # by vfork: both have the same pages until it executes, or ends
            child = next(self.numbers)
            self.own[child], self.shared[child], self.lender[child] = own, shared, number
        elif kind == "executes":
            self.own[number], self.shared[number] = set(self.take(3)), set()
        elif len(self.own) > 1:
            del self.own[number], self.shared[number]

    def sizes(self):
        return {str(each): Size(len(own) + len(self.shared[each]), len(own)) for each, own in self.own.items()}

    def borrowers(self):
        lent = ((child, lender) for child, lender in self.lender.items() if child in self.own)
        return {str(child) for child, lender in lent if self.own[child] is self.own.get(lender)}

    def proportional(self, process):
        each = {id(own): [*own, *self.shared[number]] for number, own in self.own.items()}
        owners = Counter(itertools.chain(*each.values()))
        return sum(Fraction(1, owners[page]) for page in itertools.chain(self.own[process], self.shared[process]))

    def together(self):
        return len(set().union(*self.own.values())) + len(set().union(*self.shared.values()))


class Watch:
    """Who looks at a machine, exactly too, one process after the other while they run: `memory_watch` does it so."""

    def __init__(self, machine):
        self.machine, self.least, self.grown = machine, Least(), Least()
        self.begins_to_look()

    def step(self, kind, process=0, count=0):
        """What an exact look has found, if one has ended."""
        if kind == "look":
            self.look()
        elif kind == "exact look":
            self.begins_to_look()
            return self.has_looked()
        elif kind == "begins to look":
            self.begins_to_look()
        elif kind == "reads":
            self.reads()
        elif kind == "has looked":
            return self.has_looked()
        elif not (kind == "maps" and self.found):
            # What one maps that another had alone when that was read counts for both, until the next exact look.
            self.machine.step(kind, process, count)
        return 0

    def look(self):
        sizes = self.machine.sizes()
        least = max(self.least.look(sizes), self.grown.look(sizes))
        borrow = self.machine.borrowers()
        without = max(self.least.without(borrow), self.grown.without(borrow))
        assert without <= self.machine.together()
        assert without == least or borrow
        return least

    def begins_to_look(self):
        self.there = set(self.machine.own)
        self.unread, self.found = sorted(self.there), {}

    def reads(self):
        if self.unread and (process := self.unread.pop(0)) in self.machine.own:
            self.found[process] = self.machine.proportional(process), self.machine.sizes()[str(process)]

    def has_looked(self):
        while self.unread:
            self.reads()
        still = self.found.keys() & self.machine.own.keys() - set(map(int, self.machine.borrowers()))
        memory = int(sum(self.found[process][0] for process in still))
        sizes = {str(process): self.found[process][1] for process in still}
        self.least.exactly(memory, sizes, same=self.there == set(self.machine.own))
        self.begins_to_look()
        return memory


@given(st.lists(STEPS, max_size=60))
def test_processes_have_at_least_so_much_whatever_they_do(steps):
    watch = Watch(Machine())
    for step in steps:
        watch.step(*step)
    watch.look()


@given(st.lists(OF_SERVERS, max_size=200))
def test_who_forks_all_the_time_is_not_said_to_have_more_than_it_has(steps):
    machine = Machine(200)
    watch = Watch(machine)
    for kind, process, count in steps:
        if not (kind == "forks" and len(machine.own) > 40) and not (process and process % len(machine.own) == 0):
            assert watch.step(kind, process, count) <= machine.together() + len(machine.own)
    watch.look()


@given(st.lists(OF_THOSE_WHO_HIDE, max_size=200))
def test_who_is_forked_for_a_moment_hides_nothing_of_what_others_have_taken(steps):
    machine = Machine()
    watch = Watch(machine)
    for _ in range(5):
        machine.step("forks", 0, 0)
    watch.look()
    for kind, process, count in steps:
        if kind != "ends" or process < len(machine.own):
            watch.step(kind, process, count)
    for process in range(6):
        machine.step("takes", process, 100)
    assert watch.look() >= 600


@given(st.lists(OF_THOSE_WHO_HIDE, max_size=100))
def test_what_an_exact_look_has_found_no_other_takes_back_while_processes_come_and_go(steps):
    machine = Machine()
    watch = Watch(machine)
    for _ in range(5):
        machine.step("forks", 0, 0)
    for process in range(6):
        machine.step("takes", process, 100)  # before anyone has looked
    watch.step("exact look")
    comes = itertools.count()
    for kind, process, count in steps:
        machine.step("forks", next(comes) % 6, 0)  # nobody sees the same processes twice
        if kind != "ends" or process < len(machine.own):
            watch.step(kind, process, count)
    assert watch.look() >= 600


def test_what_forked_processes_take_is_seen_whole():
    machine, least = Machine(), Least()
    for _ in range(5):
        machine.step("forks", 0, 0)
    least.exactly(machine.together(), machine.sizes(), same=True)
    for process in range(6):
        machine.step("takes", process, 100)
    assert least.look(machine.sizes()) == machine.together() == 610


def test_without_an_exact_look_it_is_what_the_largest_has_and_what_came_since():
    machine, least = Machine(), Least()
    machine.step("forks", 0, 0)
    assert least.look(machine.sizes()) == 10
    machine.step("takes", 1, 7)
    assert least.look(machine.sizes()) == 17
