"""At boot: what a record means beside what is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runner.core.events import Ended, Event, Sight, StartFailed
from runner.core.job import ACTIVE, State
from runner.core.recovery import Adopt, Found, Launch, Recovered, Resume, recover
from runner.core.table import decide
from tests.core.life import KILLED, OK, at, in_state

GONE = Ended(reason="its shim was gone; nobody saw the end")
REBOOTED = Ended(rebooted=True, reason="the machine went down")
NOTHING_THERE = Found(locked=False, started=False)


UNBORN = Ended(exit_code=75, asked=True, reason="it was asked to end before it had started")


@pytest.mark.parametrize(
    ("state", "found", "expected"),
    [
        (State.RUNNING, Found(locked=False, ended=OK), OK),
        (State.RUNNING, Found(locked=True, ended=KILLED), KILLED),
        (State.RUNNING, Found(locked=False, ended=StartFailed("no")), StartFailed("no")),
        (State.RUNNING, Found(locked=True), Adopt()),
        (State.RUNNING, Found(locked=True, started=False), Adopt()),
        (State.RUNNING, NOTHING_THERE, Launch()),
        (State.RUNNING, Found(locked=False), GONE),
        (State.RUNNING, Found(locked=False, rebooted=True), REBOOTED),
        (State.RUNNING, Found(locked=False, started=False, rebooted=True), REBOOTED),
        (State.RUNNING, Found(locked=False, ended=OK, rebooted=True), OK),
        (State.STOPPING, Found(locked=False, started=False, rebooted=True), REBOOTED),
        (State.STOPPING, Found(locked=False, ended=OK), OK),
        (State.STOPPING, Found(locked=True), Adopt()),
        (State.STOPPING, Found(locked=False), GONE),
        (State.STOPPING, Found(locked=False, rebooted=True), REBOOTED),
        (State.STOPPING, NOTHING_THERE, UNBORN),
    ],
)
def test_an_active_record(state: State, found: Found, expected: Recovered) -> None:
    assert recover(in_state(state).job, found) == expected


def test_a_backoff_is_waited_out_again() -> None:
    job = in_state(State.BACKOFF).job
    assert recover(job, NOTHING_THERE) == Resume(job.backoff_s)


def test_a_backoff_of_nothing_is_over() -> None:
    job = replace(in_state(State.BACKOFF).job, backoff_s=0.0)
    assert recover(job, NOTHING_THERE) == Event(Sight.BACKOFF_OVER)


@pytest.mark.parametrize("state", sorted(set(State) - ACTIVE - {State.BACKOFF}))
@pytest.mark.parametrize("found", [NOTHING_THERE, Found(locked=True, ended=OK, rebooted=True)], ids=str)
def test_every_other_record_stands_whatever_lies_beside_it(state: State, found: Found) -> None:
    assert recover(in_state(state).job, found) is None


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("rebooted", [True, False])
@pytest.mark.parametrize("ended", [None, OK, KILLED, StartFailed("no")], ids=str)
def test_what_is_recovered_can_be_decided(
    state: State, locked: bool, started: bool, rebooted: bool, ended: Ended | StartFailed | None
) -> None:
    job = in_state(state).job
    recovered = recover(job, Found(locked, started, ended, rebooted))
    if isinstance(recovered, Ended | StartFailed | Event):
        assert decide(job, recovered, at(50)).refusal == ""
    if isinstance(recovered, Launch):
        assert job.state is State.RUNNING, "nothing starts that was asked to stop"
