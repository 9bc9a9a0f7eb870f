"""Two sessions, joined by pipes that cut bytes anywhere, do what a model of them says, whatever their owners do."""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adyton.communicator.frames import CHUNK
from adyton.communicator.session import Called, Cancelled, Closed, Disposed, Limits, Notified, Replied, Session, Side

CLIENT, ENCLAVE = 0, 1
LIMITS = Limits(message=6 * CHUNK, notification=2 * CHUNK, buffered=9 * CHUNK, pairs=3, nesting=5, in_flight=16)

ends = st.sampled_from([CLIENT, ENCLAVE])
sizes = st.sampled_from([0, 1, 100, CHUNK, CHUNK + 1, 3 * CHUNK, 6 * CHUNK])


class TwoEnds(RuleBasedStateMachine):
    """The model: for each pair the stack of its calls (who made it, number); who has the turn is whose message arrived last."""

    def __init__(self):
        super().__init__()
        self.sessions = (Session(Side.CLIENT, LIMITS), Session(Side.ENCLAVE, LIMITS))
        self.pipes = (bytearray(), bytearray())  # from each end
        self.stacks: dict[int, list[tuple[int, int]]] = {}
        self.turn: dict[int, int | None] = {}  # pair → who may speak; None while a message is under way
        self.in_flight: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})  # calls of each end → their body
        self.to_answer: tuple[dict[int, int], dict[int, int]] = ({}, {})  # at each end: the other's calls → pair
        self.answers: tuple[dict[int, tuple[bool, bytes]], dict[int, tuple[bool, bytes]]] = (
            {},
            {},
        )  # to each end's calls
        self.notified: tuple[deque, deque] = (deque(), deque())  # from each end, in order
        self.disposed: deque[int] = deque()
        self.counter = 0

    def body(self, size: int) -> bytes:
        self.counter += 1
        return (self.counter.to_bytes(4, "big") * (size // 4 + 1))[:size]

    def fits(self, end: int) -> bool:
        return len(self.in_flight[end]) < LIMITS.in_flight

    @rule(end=ends, size=sizes)
    def call_without_pair(self, end, size):
        if self.fits(end):
            body = self.body(size)
            self.in_flight[end][self.sessions[end].call(0, "m", body)] = body

    @rule(pair=st.integers(1, 3), size=sizes)
    def call_on_a_pair(self, pair, size):
        end = self.turn.get(pair, CLIENT)
        stack = self.stacks.setdefault(pair, [])
        if end is None or not self.fits(end) or len(stack) == LIMITS.nesting:
            return
        body = self.body(size)
        call = self.sessions[end].call(pair, "p", body)
        self.in_flight[end][call] = body
        stack.append((end, call))
        self.turn[pair] = None

    @rule(end=ends, ok=st.booleans(), size=sizes, data=st.data())
    def reply(self, end, ok, size, data):
        candidates = [
            call
            for call, pair in self.to_answer[end].items()
            if not pair or (self.turn[pair] == end and self.stacks[pair][-1] == (1 - end, call))
        ]
        if not candidates:
            return
        call = data.draw(st.sampled_from(candidates))
        pair = self.to_answer[end].pop(call)
        body = self.body(size)
        self.sessions[end].reply(call, ok, body)
        self.answers[1 - end][call] = ok, body
        if pair:
            self.stacks[pair].pop()
            self.turn[pair] = None

    @rule(end=ends, size=st.sampled_from([0, 50, CHUNK, 2 * CHUNK]))
    def notify(self, end, size):
        body = self.body(size)
        self.sessions[end].notify("n", body)
        self.notified[end].append(body)

    @rule(end=ends, data=st.data())
    def cancel(self, end, data):
        if self.in_flight[end]:
            self.sessions[end].cancel(data.draw(st.sampled_from(sorted(self.in_flight[end]))))

    @rule(pair=st.integers(1, 3))
    def dispose(self, pair):
        if self.sessions[CLIENT].idle(pair) and pair in self.turn:
            self.sessions[CLIENT].dispose(pair)
            self.disposed.append(pair)
            del self.turn[pair]
            del self.stacks[pair]

    @rule(end=ends, limit=st.integers(1, 6 * CHUNK))
    def send(self, end, limit):
        self.pipes[end].extend(self.sessions[end].data_to_send(limit))

    @precondition(lambda self: self.pipes[CLIENT] or self.pipes[ENCLAVE])
    @rule(end=ends, size=st.integers(1, 4 * CHUNK) | st.integers(1, 9))
    def arrive(self, end, size):
        data = bytes(self.pipes[end][:size])
        del self.pipes[end][:size]
        for event in self.sessions[1 - end].receive(data):
            self.arrived(end, event)

    @rule()
    def lose_the_connection(self):
        for pipe in self.pipes:
            pipe.clear()
        for end in (CLIENT, ENCLAVE):
            self.sessions[end].resume(self.sessions[1 - end].read)

    def arrived(self, end, event):
        """`end`: whose message it was."""
        match event:
            case Called(call, pair, method, body):
                assert self.in_flight[end][call] == body
                assert method == ("p" if pair else "m")
                assert call not in self.to_answer[1 - end]
                self.to_answer[1 - end][call] = pair
                if pair:
                    assert self.stacks[pair][-1] == (end, call)
                    self.turn[pair] = 1 - end
            case Replied(call, ok, body, pair):
                assert self.answers[1 - end].pop(call) == (ok, body)
                del self.in_flight[1 - end][call]
                if pair:
                    self.turn[pair] = 1 - end
            case Notified("n", body):
                assert self.notified[end].popleft() == body
            case Cancelled(call):
                assert call in self.to_answer[1 - end]
            case Disposed(pair):
                assert self.disposed.popleft() == pair
            case _:
                raise AssertionError(event)

    @invariant()
    def sizes_agree(self):
        for session in self.sessions:
            assert session.due or session.data_to_send() == b""

    def teardown(self):
        for _ in range(2):
            for end in (CLIENT, ENCLAVE):
                self.sessions[end].close("over")
        closed = set()
        while len(closed) < 2:
            for end in (CLIENT, ENCLAVE):
                data = bytes(self.pipes[end]) + self.sessions[end].data_to_send(CHUNK)
                self.pipes[end].clear()
                for event in self.sessions[1 - end].receive(data):
                    if isinstance(event, Closed):
                        closed.add(end)
                    else:
                        self.arrived(end, event)
        assert not any(session.due for session in self.sessions)
        assert not any(self.notified)
        assert not self.disposed
        assert not any(self.answers)
        assert {**self.in_flight[0]} == {call: self.in_flight[0][call] for call in self.to_answer[1]}
        assert {**self.in_flight[1]} == {call: self.in_flight[1][call] for call in self.to_answer[0]}


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
