"""`runner drill`: a job twice, undisturbed and under faults, to see whether both end the same."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from runner import __version__
from runner.cli import facts, output, sameness
from runner.cli.display import Display, open_display
from runner.cli.faults import FAULTS, Hit, NotStruckError, strike
from runner.cli.lab import Lab
from runner.cli.options import JsonOption
from runner.cli.submit import DirArgument, check_folder
from runner.cli.watching import Watch
from runner.core.job import State
from runner.errors import UsageError
from runner.settings import load_spec

_POLL_S = 0.05
CALM, ROUGH = "undisturbed", "disturbed"


@dataclass(frozen=True)
class Missed:
    """A fault that did not happen."""

    fault: str
    why: str


@dataclass
class Course:
    """How one of the two runs went."""

    job: dict[str, Any]
    duration_s: float
    hits: list[Hit] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    too_short: bool = False  #: it ended before all faults had their turn


def command(
    folder: DirArgument,
    kills: Annotated[
        int | None,
        typer.Option("--kills", metavar="N", min=1, max=100, help="Only kill the worker, N times."),
    ] = None,
    faults: Annotated[
        str | None, typer.Option("--faults", metavar="LIST", help=f"Some of: {','.join(FAULTS)}.")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", metavar="DIR", help="Where the drill makes its folder; else $TMPDIR or /tmp."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.md", help="Write a report, and FILE.json beside it."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder in which it was done.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a job undisturbed and under faults, and compare.

    Exits with 0 only if every fault was got over and both ended the same, bit for bit. A fault that cannot
    be made to happen to this job is said so, and fails the drill if it was named.
    """
    check_folder(folder)
    if report is not None and (report.suffix == ".json" or not report.parent.is_dir()):
        raise UsageError(f"--report {report}: expected a file such as report.md, in a folder that is there")
    if home is not None and not home.is_dir():
        raise UsageError(f"--home {home}: no such folder")
    load_spec(folder)
    chosen = _choose(kills, faults)
    lab = Lab(folder, home, hangs="hang" in chosen, spoils="nan" in chosen, clock="clock" in chosen)
    held = False
    try:
        lab.start()
        with _quiet() if json else open_display() as display:
            calm = _course(lab, CALM, display)
            rough = _course(lab, ROUGH, display, chosen, calm)
        verdict = sameness.compare(lab.home, CALM, ROUGH)
        held = _all_held(calm, rough, verdict, named=kills is not None or faults is not None)
        (_print_json if json else _print)(calm, rough, verdict, held=held)
        if report is not None:
            _write_report(report, folder, calm, rough, verdict, held=held)
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
        number = 1 + len(course.hits) + len(course.missed)
        if pending and calm and _is_due(job, calm, number, len(faults or [])):
            came_of = _strike(pending[0], lab, name, course)
            if came_of:
                pending.pop(0)
                display.say(f"*** {came_of}")
        time.sleep(_POLL_S)
    course.job, course.duration_s, course.too_short = job, time.monotonic() - began, bool(pending)
    course.missed += [Missed(fault, "the job had ended before") for fault in pending]
    return course


def _strike(fault: str, lab: Lab, name: str, course: Course) -> str:
    """Let `fault` strike; return what came of it, "" where the job is not there to be struck."""
    try:
        hit = strike(fault, lab, name)
    except NotStruckError as error:
        course.missed.append(Missed(fault, str(error)))
        return f"{fault}: did not happen: {error}"
    if hit is None:
        return ""
    course.hits.append(hit)
    return _came_of(hit)


def _is_due(job: dict[str, Any], calm: Course, number: int, count: int) -> bool:
    """Tell whether fault `number` of `count` is due: by steps, or by time where none are reported."""
    if job["state"] != State.RUNNING:
        return False
    share = number / (count + 1)
    if calm.job["step"]:
        return bool(job["step"] >= share * calm.job["step"])
    return bool(job["goodput"]["useful_s"] + job["goodput"]["lost_s"] >= share * calm.duration_s)


def _all_held(calm: Course, rough: Course, verdict: sameness.Verdict, *, named: bool) -> bool:
    """Tell whether the drill is passed; a fault that was asked for by name has to happen."""
    ended = calm.job["state"] == rough.job["state"] == State.SUCCEEDED
    tried = not rough.too_short and not (named and rough.missed)
    return ended and verdict.same and tried and all(hit.held for hit in rough.hits)


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


def _as_json(calm: Course, rough: Course, verdict: sameness.Verdict, *, held: bool) -> dict[str, Any]:
    return {
        "held": held,
        **{name: _summary(course) for name, course in ((CALM, calm), (ROUGH, rough))},
        "faults": [asdict(hit) for hit in rough.hits],
        "missed": [asdict(missed) for missed in rough.missed],
        "same": asdict(verdict),
    }


def _print_json(calm: Course, rough: Course, verdict: sameness.Verdict, *, held: bool) -> None:
    output.print_json(_as_json(calm, rough, verdict, held=held))


def _write_report(
    path: Path, folder: Path, calm: Course, rough: Course, verdict: sameness.Verdict, *, held: bool
) -> None:
    """Write what a colleague would be shown, and the same for programs beside it."""
    hits = [
        [f"{number}. {hit.what}", str(hit.step), _came_of(hit), "yes" if hit.held else "**no**"]
        for number, hit in enumerate(rough.hits, 1)
    ]
    lines = [
        f"# {folder.resolve().name}: {'all of it held' if held else 'NOT all of it held'}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, training-runner {__version__}. The job ran twice:"
        f" undisturbed, and under the faults below. {verdict.text}.",
        "",
        *_table(["", CALM, ROUGH], [[row, _cell(row, calm), _cell(row, rough)] for row in _ROWS]),
        "",
        *_table(["fault", "at step", "what came of it", "got over"], hits),
        "",
        *(f"- {missed.fault}: did not happen: {missed.why}" for missed in rough.missed),
    ]
    path.write_text("\n".join(lines).rstrip() + "\n")
    told = output.json_text(_as_json(calm, rough, verdict, held=held))
    path.with_suffix(".json").write_text(told + "\n")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Write a Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells]]


def _print(calm: Course, rough: Course, verdict: sameness.Verdict, *, held: bool) -> None:
    print()
    rows = [(label, *(_cell(label, course) for course in (calm, rough))) for label in _ROWS]
    digests = [verdict.digests.get(name, "none")[:16] for name in (CALM, ROUGH)]
    output.print_table(("", CALM, ROUGH), [*rows, ("final digest", *digests)])
    print()
    for hit in rough.hits:
        print(_account(hit))
    for missed in rough.missed:
        print(f"{missed.fault}: did not happen: {missed.why}")
    print(verdict.text)
    what = "all that happened" if rough.missed else "all of it"
    print(f"{what} held" if held else "NOT all of it held")


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
