"""The broker's log: whatever is done to it is found, whatever a crash leaves is healed, and nothing is hidden by that."""

import datetime as dt
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thorough import part_of

from adyton.attestation.findings import Failure
from adyton.attestation.identity import EnclaveIdentity
from adyton.broker.audit import AuditLog, verify_log
from adyton.broker.records import Decided, Healed, Reader, Stopped, bounded, lines_of, record_line
from adyton.crypto.keys import SigningKey
from adyton.errors import IntegrityError, UsageError

KEY = SigningKey.generate()
DIGEST = "sha256:" + "7" * 64
IDENTITY = EnclaveIdentity("sim", DIGEST, DIGEST, 1, 2, debug=False, runtime=DIGEST, machine="")


def decided(name, decision="released"):
    def make(number, time, before):
        return Decided(
            number=number,
            time=time,
            before=before,
            decision=decision,
            peer="192.0.2.1:7",
            evidence=DIGEST,
            secret=name,
            identity=IDENTITY,
            findings=() if decision == "released" else (Failure("expectation", "debug", "false", "true"),),
        )

    return make


def opened(path):
    return AuditLog(str(path), KEY, begins=not path.exists())


def written(path, *names):
    """A log with a record for each name, and its lines."""
    log = opened(path)
    for name in names:
        log.append([decided(name)])
    log.close()
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "broker.log"


def heads(path):
    """The head's file, and what it had before and after the last of three records was written."""
    head = Path(f"{path}.head")
    audit = opened(path)
    found = []
    for name in "abc":
        audit.append([decided(name)])
        found.append(head.read_bytes())
    audit.close()
    return head, *found[1:]


def problems(path, known=None):
    return verify_log(str(path), KEY.public, known).problems


def test_a_log_that_nobody_touched_is_whole(log):
    written(log, "a", "b")
    audit = opened(log)
    audit.append([decided("c"), decided("d", "refused")])
    head = audit.head
    audit.close()
    report = verify_log(str(log), KEY.public)
    assert report.ok
    assert (report.released, report.refused, report.head) == (3, 1, head)
    assert verify_log(str(log), KEY.public, (head.number, head.digest)).ok


def test_each_changed_byte_is_found(log):
    written(log, "a", "b")
    whole = log.read_bytes()
    for position in part_of(range(len(whole)), 4):
        log.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert problems(log), position


@pytest.mark.parametrize("without", [0, 1, 2])
def test_a_deleted_line_is_found(log, without):
    lines = written(log, "a", "b", "c")
    log.write_bytes(b"".join(lines[:without] + lines[without + 1 :]))
    assert problems(log)


def test_moved_repeated_and_strange_lines_are_found(log, tmp_path):
    lines = written(log, "a", "b", "c")
    others = written(tmp_path / "other.log", "a", "x", "c")
    for wrong in (
        [lines[1], lines[0], lines[2]],
        [lines[0], lines[0], lines[1], lines[2]],
        [lines[0], others[1], lines[2]],
        [lines[0], b"\n", lines[1], lines[2]],
        [lines[0], lines[1].replace(b'"record"', b' "record"'), lines[2]],
    ):
        log.write_bytes(b"".join(wrong))
        assert problems(log), wrong


def test_a_record_of_another_key_is_found(log):
    lines = written(log, "a", "b")
    forged = record_line(
        decided("c")(2, dt.datetime.now(dt.UTC), Reader(KEY.public).place.digest), SigningKey.generate()
    )
    log.write_bytes(lines[0] + forged)
    assert problems(log)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_missing_last_lines_are_found_by_the_head(log, left):
    lines = written(log, "a", "b", "c")
    log.write_bytes(b"".join(lines[:left]))
    assert any("missing" in problem for problem in problems(log))
    with pytest.raises(IntegrityError, match="has been changed"):
        opened(log)


def test_an_older_log_with_its_own_head_is_found_by_a_head_that_was_kept_elsewhere(log, tmp_path):
    written(log, "a", "b")
    older, older_head = log.read_bytes(), Path(f"{log}.head").read_bytes()
    audit = opened(log)
    audit.append([decided("c")])
    kept = audit.head
    audit.close()
    log.write_bytes(older)
    Path(f"{log}.head").write_bytes(older_head)
    assert problems(log) == []  # as far as that can be had
    assert problems(log, (kept.number, kept.digest))


def test_a_thief_of_the_key_is_found_by_a_head_that_was_kept_elsewhere(log, tmp_path):
    written(log, "a", "b")
    kept = verify_log(str(log), KEY.public).head
    log.unlink()
    Path(f"{log}.head").unlink()
    written(log, "a", "x")
    assert problems(log) == []
    assert problems(log, (kept.number, kept.digest))


def test_without_a_head_nobody_can_say_that_nothing_is_missing(log):
    written(log, "a")
    Path(f"{log}.head").unlink()
    assert any("nobody can say" in problem for problem in problems(log))
    with pytest.raises(IntegrityError, match="head"):
        opened(log)


def test_a_log_of_another_key_is_not_gone_on_with(log):
    written(log, "a")
    with pytest.raises(IntegrityError):
        AuditLog(str(log), SigningKey.generate())


def test_a_log_is_one_brokers_at_a_time(log):
    first = opened(log)
    with pytest.raises(UsageError, match="another broker"):
        opened(log)
    first.close()
    opened(log).close()


def test_whatever_a_crash_leaves_of_a_record_is_healed(log):
    """The head is behind, as it is while a record is being written."""
    lines = written(log, "a", "b")
    head = Path(f"{log}.head").read_bytes()
    written(log, "c")
    last = log.read_bytes()[len(b"".join(lines)) :]
    sizes = range(len(last) + 1)
    for size in {*sizes[:2], *sizes[-3:], *part_of(sizes, 4)}:
        log.write_bytes(b"".join(lines) + last[:size])
        Path(f"{log}.head").write_bytes(head)
        assert problems(log) == []  # as it lies there
        opened(log).close()
        report = verify_log(str(log), KEY.public)
        assert report.problems == [], size
        assert report.cut == 0
        assert report.healed == (0 < size < len(last) - 1)  # without its end alone, a line is a record
        assert log.read_bytes().startswith(b"".join(lines) + last[:size])  # nothing is taken away


def test_a_crash_while_healing_is_healed(log):
    lines = written(log, "a")
    head = Path(f"{log}.head").read_bytes()
    with log.open("ab") as file:
        file.write(b'{"record":{"event":"deci')
    opened(log).close()
    healed = log.read_bytes()[len(lines[0]) :]
    for size in part_of(range(len(healed)), 4):
        log.write_bytes(lines[0] + healed[:size])
        Path(f"{log}.head").write_bytes(head)
        opened(log).close()
        assert problems(log) == [], size


def test_a_healed_gap_cannot_be_changed_or_taken_away(log):
    lines = written(log, "a")
    with log.open("ab") as file:
        file.write(b'{"record":{"event":"torn')
    opened(log).close()
    whole = log.read_bytes()
    assert problems(log) == []
    log.write_bytes(whole.replace(b"torn", b"born"))
    assert problems(log)
    log.write_bytes(lines[0] + whole[len(lines[0]) + len(b'{"record":{"event":"torn\n') :])
    assert problems(log)


@pytest.mark.parametrize(
    "edit",
    [
        lambda last: last,
        lambda last: last.replace(b'"number":2', b'"number":3'),
        lambda _: b"{}\n",
        lambda _: b"\n{",
        lambda _: b"x",
    ],
)
def test_lines_that_somebody_adds_are_found_also_when_a_broker_starts_behind_them(log, edit):
    lines = written(log, "a", "b")
    added = edit(lines[1])
    log.write_bytes(b"".join(lines) + added)
    assert "somebody has written it" in problems(log)[0]
    opened(log).close()
    assert "somebody has written it" in problems(log)[0]


def test_zeros_that_a_file_system_leaves_are_healed(log):
    written(log, "a")
    with log.open("ab") as file:
        file.write(bytes(300))
    assert problems(log) == []
    opened(log).close()
    assert problems(log) == []


def test_a_changed_record_is_never_healed(log):
    lines = written(log, "a", "b", "c")
    log.write_bytes(lines[0] + lines[1].replace(b'"b"', b'"x"') + lines[2])
    with_edit = log.read_bytes()
    opened(log).close()  # what is before the head's record is for `verify` to find
    assert log.read_bytes() == with_edit
    assert problems(log)


def test_a_half_written_head_is_no_loss(log):
    head, before, after = heads(log)
    newest = 0 if b'"number":3' in after[:1024] else 1
    for size in (0, 1, 100, 1023):
        slots = [before[:1024], before[1024:]]
        slots[newest] = after[newest * 1024 : newest * 1024 + size].ljust(1024, b"\0")
        head.write_bytes(b"".join(slots))
        assert problems(log) == []
    opened(log).close()
    assert problems(log) == []
    assert b'"number":3' in head.read_bytes()


def test_a_log_that_is_gone_with_its_head_is_missed(log):
    with pytest.raises(IntegrityError, match="is gone"):
        AuditLog(str(log), KEY)
    assert not log.exists()
    written(log, "a")
    for left in ((), (log,), (log, Path(f"{log}.head"))):
        log.unlink(missing_ok=True)
        Path(f"{log}.head").unlink(missing_ok=True)
        for each in left:
            each.touch()
        with pytest.raises(IntegrityError, match="--new-log"):
            AuditLog(str(log), KEY)
    AuditLog(str(log), KEY, begins=True).close()
    AuditLog(str(log), KEY).close()  # empty, and whole: its head says so


def test_the_files_hold_no_older_head_with_which_the_log_could_end_earlier(log):
    lines = written(log, "a", "b", "c")
    head = Path(f"{log}.head")
    newest = head.read_bytes()
    for slots in (newest[1024:] * 2, newest[:1024] * 2, bytes(1024) + newest[1024:], newest[:1024] + bytes(1024)):
        for left in (2, 1):
            log.write_bytes(b"".join(lines[:left]))
            head.write_bytes(slots)
            assert problems(log)
            with pytest.raises(IntegrityError):
                opened(log)


def test_an_older_head_that_a_crash_has_left_is_gone_once_the_log_is_opened(log):
    head, before, after = heads(log)
    both = [
        max(before[at : at + 1024], after[at : at + 1024]) for at in (0, 1024)
    ]  # the crash came before it was overwritten
    assert all(b"number" in slot for slot in both)
    head.write_bytes(b"".join(both))
    opened(log).close()
    assert head.read_bytes().count(b'"number"') == 1
    assert problems(log) == []


def test_a_log_that_somebody_cuts_while_it_is_open_takes_no_more(log):
    audit = opened(log)
    audit.append([decided("a")])
    os.truncate(log, 10)
    for _ in range(2):
        with pytest.raises(OSError, match="log"):
            audit.append([decided("b")])
    audit.close()


def test_a_full_disk_takes_no_more_and_leaves_a_log_that_heals(log):
    audit = opened(log)
    audit.append([decided("a")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 100, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            audit.append([decided("b")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(OSError, match="before"):
        audit.append([decided("b")])
    audit.close()
    opened(log).close()
    report = verify_log(str(log), KEY.public)
    assert (report.problems, report.healed, report.released) == ([], 1, 1)


KILLED = """
import sys
from adyton.broker.audit import AuditLog
from adyton.crypto.keys import SigningKey
sys.path.insert(0, {tests!r})
import test_broker_log as t
log = AuditLog({log!r}, SigningKey.load({key!r}), begins=True)
number = 0
while True:
    log.append([t.decided(f"s{{number + each}}") for each in range(3)])
    number += 3
    print(log.head.number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_all_that_it_had_said_was_written(log, tmp_path):
    key = tmp_path / "log.key"
    KEY.save(key)
    program = KILLED.format(tests=str(Path(__file__).parent), log=str(log), key=str(key))
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as writer:
            said = [int(writer.stdout.readline()) for _ in range(5)]
            writer.kill()
            said += [int(line) for line in writer.stdout.read().split(b"\n") if line.isdigit()]
        report = verify_log(str(log), KEY.public)
        assert report.problems == []
        assert report.head.number >= said[-1]


@given(st.lists(st.binary(max_size=200)), st.integers(1, 50))
def test_only_records_come_of_bytes(parts, size):
    reader = Reader(KEY.public)
    data = b"\n".join(parts)
    lines = list(lines_of(data[start : start + size] for start in range(0, len(data), size)))
    assert b"".join(lines) == data
    assert [record for line in lines if (record := reader.read(line)) is not None] == []
    assert reader.gap.size == len(data)


@settings(max_examples=200)
@given(st.data())
def test_any_change_of_some_lines_is_found(data):
    lines, before = [], ""
    for number in range(1, 5):
        line = record_line(Stopped(number=number, time=dt.datetime.now(dt.UTC), before=before), KEY)
        lines.append(line)
        reader = Reader(KEY.public)
        for each in lines:
            reader.read(each)
        before = reader.place.digest
    changed = data.draw(st.permutations([*lines, *data.draw(st.lists(st.sampled_from(lines), max_size=2))]))
    changed = changed[: data.draw(st.integers(0, len(changed)))]
    reader = Reader(KEY.public)
    for each in changed:
        reader.read(each)
    good = changed == lines[: len(changed)]
    assert good == (not reader.problems and not reader.gap.size)


def test_what_strangers_write_is_bounded():
    findings = bounded([Failure("expectation", "x" * 10, "y" * 10_000, "z" * 10_000)] * 1000)
    line = record_line(
        Decided(
            number=1,
            time=dt.datetime.now(dt.UTC),
            before="",
            decision="refused",
            peer="",
            evidence=DIGEST,
            findings=findings,
        ),
        KEY,
    )
    assert len(line) < 1 << 17
    assert isinstance(Reader(KEY.public).read(line), Decided)


def test_a_record_that_heals_nothing_is_found():
    line = record_line(Healed(number=1, time=dt.datetime.now(dt.UTC), before="", bytes=4, digest=DIGEST), KEY)
    reader = Reader(KEY.public)
    reader.read(line)
    assert reader.problems


def test_a_log_whose_head_cannot_be_written_is_a_usage_error(log, monkeypatch):
    written(log, "a")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UsageError, match="No space"):
        opened(log)
