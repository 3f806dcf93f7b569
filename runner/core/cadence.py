"""When to save: a cadence and the facts of the moment give yes or no.

AUTO finds the interval at which saving and what failures cost are least together: sqrt(2 C M), C being what
a save costs training, as measured, and M the mean time between failures, as observed (J. W. Young, "A first
order approximation to the optimum checkpoint interval", CACM 17(9), 1974). It spends at most a five-hundredth
of the training time: a save that costs 20 ms is due every 10 s at most. It is due at most every second, at
least every five minutes, and for the first time after one second, so that an early kill loses little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from runner.core.spec import CadenceUnit, Every

#: Share of the training time that AUTO may spend on saving.
SHARE = 0.002
INTERVAL_S_MIN = 1.0
INTERVAL_S_MAX = 300.0
#: The first save of AUTO, when nothing is known of its cost.
FIRST_S = 1.0
FIRST_COST_S_MAX = 0.05
#: Delays after a first and a second failed save, and so on, doubling.
RETRY_S_MIN = 1.0
RETRY_S_MAX = 300.0
#: A job that has not lived yet is taken to fail once in this time.
TRUST_S = 600.0


@dataclass(frozen=True)
class Past:
    """What a job's attempts have lived through."""

    lived_s: float = 0.0
    deaths: int = 0  #: those that ended otherwise than as asked

    def lived(self, more_s: float) -> Past:
        """Return it with so much more of life."""
        return Past(self.lived_s + more_s, self.deaths)


NO_PAST = Past()


@dataclass(frozen=True)
class Moment:
    """Where training is; `now_s` is any monotonic clock."""

    step: int  #: completed steps
    now_s: float
    epoch_ended: bool = False  #: this step was its epoch's last, and validation and callbacks are done


@dataclass(frozen=True)
class Saved:
    """The last save, or where training began when there is none yet."""

    step: int
    at_s: float
    epochs_since: int = 0  #: epochs that ended after it, the present one included


def due(every: Every, moment: Moment, saved: Saved, interval_s: float, steps_per_epoch: int | None) -> bool:
    """Tell whether to save now.

    Args:
        every: the cadence asked for.
        moment: now.
        saved: the last save.
        interval_s: seconds from one AUTO save to the next.
        steps_per_epoch: None while unknown; needed for a part of an epoch only.
    """
    match every.unit:
        case CadenceUnit.AUTO:
            return moment.step > saved.step and moment.now_s - saved.at_s >= interval_s
        case CadenceUnit.SECONDS:
            return moment.step > saved.step and moment.now_s - saved.at_s >= every.count
        case CadenceUnit.STEPS:
            return _crossed(moment.step, saved.step, every.count)
        case CadenceUnit.EPOCHS:
            if every.count < 1 and steps_per_epoch:
                return _crossed(moment.step, saved.step, every.count * steps_per_epoch)
            return moment.epoch_ended and saved.epochs_since >= every.count


def quiet_until(
    every: Every, saved: Saved, interval_s: float, steps_per_epoch: int | None
) -> tuple[float, float]:
    """Return a step and a time: nothing is due as long as both lie ahead and no epoch ends.

    To be asked when nothing was due; the arguments are those of `due`, and the interval is not to get
    shorter meanwhile.
    """
    match every.unit:
        case CadenceUnit.STEPS:
            return _next_multiple(saved.step, every.count), math.inf
        case CadenceUnit.EPOCHS if every.count < 1 and steps_per_epoch:
            return _next_multiple(saved.step, every.count * steps_per_epoch), math.inf
        case CadenceUnit.EPOCHS:
            return math.inf, math.inf
        case CadenceUnit.SECONDS:
            return math.inf, saved.at_s + every.count
        case CadenceUnit.AUTO:
            return math.inf, saved.at_s + interval_s


def interval_s(cost_s: float | None, mtbf_s: float) -> float:
    """Seconds from one AUTO save to the next.

    Args:
        cost_s: what a save costs training; None before the first.
        mtbf_s: mean time between failures.
    """
    if cost_s is None:
        return FIRST_S
    return min(INTERVAL_S_MAX, max(INTERVAL_S_MIN, cost_s / SHARE, math.sqrt(2 * cost_s * mtbf_s)))


def mtbf_s(past: Past) -> float:
    """Return the mean time between failures; a job that has lived long is trusted more."""
    return (TRUST_S + past.lived_s) / (1 + past.deaths)


def cost_s(stall_s: float, write_cpu_s: float) -> float:
    """Add up what a save takes from training: its pause, and the writing thread's processor time.

    All of the latter, however many cores there are: a training with short steps waits for the interpreter's
    lock while the writer holds it.
    """
    return stall_s + write_cpu_s


def settled_s(known_s: float | None, measured_s: float) -> float:
    """Take a new measurement of the cost into the known one: one slow moment shall not last.

    The first has in it what is done only once: the next save, which tells more, is not to wait for minutes.
    """
    if known_s is None:
        return min(measured_s, FIRST_COST_S_MAX)
    return min(measured_s, (known_s + measured_s) / 2)


def retry_s(failures: int) -> float:
    """Seconds to wait after the last of so many failed saves in a row."""
    return min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** (min(failures, 30) - 1)) if failures else 0.0


def _crossed(step: int, saved_step: int, count: float) -> bool:
    """Tell whether a multiple of `count` lies in (saved_step, step]: steps may come several at a time."""
    return step >= _next_multiple(saved_step, count)


def _next_multiple(step: int, count: float) -> float:
    """Return the first multiple of `count` after `step`."""
    size = max(1.0, count)
    return (step // size + 1) * size
