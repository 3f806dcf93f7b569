"""Work that can wait: it comes once, after what waits, and no more often than it may."""

from __future__ import annotations

from runner.supervisor.loop import Loop, Soon


def test_what_is_asked_for_often_comes_once_and_never_in_the_turn_that_asks() -> None:
    loop, calls, turns = Loop(), [], []

    def ask_again() -> None:
        calls.append(len(turns))
        soon.ask()
        soon.ask()

    def turn() -> None:
        turns.append(None)
        if len(turns) == 5:
            loop.stop()
        loop.after(0.0, turn)

    soon = Soon(loop, ask_again)
    for _ in range(100):
        soon.ask()
    loop.after(0.0, turn)
    try:
        loop.run()
    finally:
        loop.close()
    assert calls == [0, 1, 2, 3, 4]


def test_what_rests_comes_after_what_waits() -> None:
    loop, order = Loop(), []

    def call() -> None:
        order.append("rested")
        loop.stop()

    soon = Soon(loop, call)
    soon.rest(0.1)
    soon.ask()
    loop.after(0.05, lambda: order.append("other"))
    try:
        loop.run()
    finally:
        loop.close()
    assert order == ["other", "rested"]


def test_rests_may_be_owed_until_they_add_up() -> None:
    loop, calls = Loop(), []

    def call() -> None:
        calls.append(None)
        soon.rest(1000)
        soon.ask()

    soon = Soon(loop, call, burst_s=2500)
    soon.ask()
    loop.after(0.2, loop.stop)
    try:
        loop.run()
    finally:
        loop.close()
    assert len(calls) == 3, "the fourth is to wait for the 500 s beyond the burst"
