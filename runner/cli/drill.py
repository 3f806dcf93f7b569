"""`runner drill`: a job twice, undisturbed and under faults, to see whether both end the same."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer

from runner.cli import facts, output, sameness
from runner.cli.display import Display, open_display
from runner.cli.faults import FAULTS, Hit, strike
from runner.cli.lab import Lab
from runner.cli.options import JsonOption
from runner.cli.submit import DirArgument, check_folder
from runner.cli.watching import Watch
from runner.core.job import State
from runner.errors import UsageError
from runner.settings import load_spec

_POLL_S = 0.05
CALM, ROUGH = "undisturbed", "disturbed"


@dataclass
class Course:
    """How one of the two runs went."""

    job: dict[str, Any]
    duration_s: float
    hits: list[Hit] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)  #: faults for which it ended too early


def command(
    folder: DirArgument,
    kills: Annotated[
        int | None,
        typer.Option("--kills", metavar="N", min=1, max=100, help="Only kill the worker, N times."),
    ] = None,
    faults: Annotated[
        str | None, typer.Option("--faults", metavar="LIST", help=f"Some of: {','.join(FAULTS)}.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder in which it was done.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a job undisturbed and under faults, and compare.

    Exits with 0 only if every fault was got over and both ended the same, bit for bit.
    """
    check_folder(folder)
    load_spec(folder)
    chosen = _choose(kills, faults)
    lab = Lab(folder)
    held = False
    try:
        lab.start()
        with _quiet() if json else open_display() as display:
            calm = _course(lab, CALM, display)
            rough = _course(lab, ROUGH, display, chosen, calm)
        verdict = sameness.compare(lab.home, CALM, ROUGH)
        held = _all_held(calm, rough, verdict)
        report = {
            "held": held,
            **{name: _summary(course) for name, course in ((CALM, calm), (ROUGH, rough))},
            "faults": [asdict(hit) for hit in rough.hits],
            "missed": rough.missed,
            "same": asdict(verdict),
        }
        if json:
            output.print_json(report)
        else:
            _print(calm, rough, verdict, held=held)
    finally:
        lab.close(keep=keep or not held)
        if (keep or not held) and not json:
            print(f"kept for a look: {lab.root}")
    raise typer.Exit(0 if held else 1)


def _choose(kills: int | None, faults: str | None) -> list[str]:
    if kills is not None and faults is not None:
        raise UsageError("--kills and --faults exclude each other")
    if kills is not None:
        return ["worker"] * kills
    chosen = [name.strip() for name in faults.split(",")] if faults else list(FAULTS)
    for name in chosen:
        if name not in FAULTS:
            raise UsageError(f"--faults {name}: expected some of {','.join(FAULTS)}")
    return chosen


def _course(
    lab: Lab, name: str, display: Display, faults: list[str] | None = None, calm: Course | None = None
) -> Course:
    """Run the job to its end; let the faults strike, spread evenly over it."""
    display.say(f"--- {name}{': ' + ', '.join(faults) if faults else ''}")
    watch = Watch(lab.home, name, display, from_start=True, silent=frozenset({"best"}))
    lab.say, lab.idle = display.say, watch.look
    began = time.monotonic()
    lab.submit(name)
    course = Course({}, 0.0)
    pending = list(faults or [])
    while not facts.is_settled(job := watch.look()):
        if pending and calm and _is_due(job, calm, len(course.hits) + 1, len(faults or [])):
            hit = strike(pending[0], lab, name)
            if hit is not None:
                pending.pop(0)
                course.hits.append(hit)
                display.say(f"*** {_came_of(hit)}")
        time.sleep(_POLL_S)
    course.job, course.duration_s, course.missed = job, time.monotonic() - began, pending
    return course


def _is_due(job: dict[str, Any], calm: Course, number: int, count: int) -> bool:
    """Tell whether fault `number` of `count` is due: by steps, or by time where none are reported."""
    if job["state"] != State.RUNNING:
        return False
    share = number / (count + 1)
    if calm.job["step"]:
        return bool(job["step"] >= share * calm.job["step"])
    return bool(job["goodput"]["useful_s"] + job["goodput"]["lost_s"] >= share * calm.duration_s)


def _all_held(calm: Course, rough: Course, verdict: sameness.Verdict) -> bool:
    ended = calm.job["state"] == rough.job["state"] == State.SUCCEEDED
    return ended and verdict.same and not rough.missed and all(hit.held for hit in rough.hits)


def _account(hit: Hit) -> str:
    """Describe one fault and what came of it on one line."""
    where = f" at step {hit.step}, in epoch {hit.epoch + 1}" if hit.step else ""
    return f"{hit.what}{where}: {_came_of(hit)}"


def _came_of(hit: Hit) -> str:
    parts = []
    if hit.resumed_step is not None:
        new = "" if hit.restart_s is None else f"new worker after {output.duration(hit.restart_s)}, "
        parts.append(f"{new}training again after {output.duration(hit.recovery_s)}")
        if hit.step:
            parts.append(f"resumed from step {hit.resumed_step}, {hit.steps_lost} steps lost")
    parts += [hit.note] if hit.note else []
    parts += [] if hit.held else ["NOT got over"]
    return "; ".join(parts)


def _summary(course: Course) -> dict[str, Any]:
    keys = ("state", "reason", "step", "epoch", "restarts", "best", "metrics", "goodput")
    return {key: course.job[key] for key in keys} | {"duration_s": round(course.duration_s, 3)}


def _print(calm: Course, rough: Course, verdict: sameness.Verdict, *, held: bool) -> None:
    print()
    rows = [(label, *(_cell(label, course) for course in (calm, rough))) for label in _ROWS]
    digests = [verdict.digests.get(name, "none")[:16] for name in (CALM, ROUGH)]
    output.print_table(("", CALM, ROUGH), [*rows, ("final digest", *digests)])
    print()
    for hit in rough.hits:
        print(_account(hit))
    for name in rough.missed:
        print(f"{name}: not tried, the job had ended before")
    print(verdict.text)
    print("all of it held" if held else "NOT all of it held")


_ROWS = ("state", "duration", "steps", "restarts", "steps lost", "goodput", "best")


def _cell(label: str, course: Course) -> str:
    job = course.job
    best = job["best"]
    values: dict[str, str] = {
        "state": job["state"],
        "duration": output.duration(course.duration_s),
        "steps": str(job["step"]),
        "restarts": str(job["restarts"]),
        "steps lost": str(sum(hit.steps_lost for hit in course.hits)),
        "goodput": f"{100 * job['goodput']['ratio']:.1f} %",
        "best": f"{best['metric']} {output.metric(best['value'])}, epoch {best['epoch'] + 1}"
        if best
        else "none",
    }
    return values[label]


def _quiet() -> Display:
    return _Quiet()


class _Quiet:
    """Shows nothing: stdout is for the JSON."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, line: str) -> None:
        """Say nothing."""

    def update(self, job: dict[str, Any]) -> None:
        """Show nothing."""
