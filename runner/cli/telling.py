"""Events in people's words: one line each, or nothing where it would only be noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runner.cli import output
from runner.core.exactness import Kind

Event = dict[str, Any]


def tell(event: Event) -> str | None:
    """Return the event as a line without time and name; None where it is not worth one."""
    say = _WORDS.get(str(event.get("event")))
    return say(event) if say else None


def at(event: Event) -> str:
    """Return the event's time of day (UTC)."""
    return str(event.get("time", ""))[11:19]


def ended(event: Event) -> str:
    """Write how an attempt ended."""
    outcome = event.get("outcome")
    how = event.get("signal") or (f"exit code {event['exit_code']}" if event.get("exit_code") else "")
    lost = f"; {output.duration(event['lost_s'])} of work lost" if event.get("lost_s") else ""
    return f"attempt {event.get('attempt')} ended: {outcome}{f' ({how})' if how else ''}{lost}"


def resumed(event: Event) -> str:
    """Write from where training continues, and whether exactly."""
    exact = "" if event.get("exact", True) else f", not exactly: {event.get('reason') or 'unknown why'}"
    again = f"; {_again(event)}" if _again(event) else ""
    exact += "" if event.get("path", "") is not None else ", from memory: the disk does not have it"
    return f"resumed from step {event.get('step')} (epoch {int(event.get('epoch') or 0) + 1}){exact}{again}"


def _again(event: Event) -> str:
    seconds = event.get("replay_s")
    return f"data were read again in {output.duration(seconds)}" if isinstance(seconds, int | float) else ""


def _running(event: Event) -> str:
    step, gpus = event.get("step"), event.get("gpus")
    where = f", on GPU {', '.join(gpus)}" if gpus else ", without a GPU: resources.gpus is 0"
    started = f"attempt {event.get('attempt')} starts" + (f", from step {step}" if step else "")
    return started + (where if gpus is not None else "")


def _best(event: Event) -> str:
    value, before, path = output.metric(event.get("value")), event.get("previous"), event.get("path")
    how = "is" if before is None else f"improved from {output.metric(before)} to"
    return f"{event.get('metric')} {how} {value}, saving model to {path}"


def _classified(event: Event) -> str | None:
    if not event.get("exact"):
        return f"a resume will not be exact: {event.get('reason')}"
    return f"resumes are exact {event.get('reason')}" if event.get("kind") == Kind.BY_REPLAY else None


def _restored(event: Event) -> str:
    size = output.size(event.get("size_bytes") or 0)
    what = f"step {event['step']}" if event.get("step") is not None else "no checkpoint"
    return f"fetched from {event.get('mirror')}: {what}, {event.get('files')} files, {size}"


def _raised(event: Event) -> str:
    where = f" in {event['where'][-1]}" if event.get("where") else ""
    return f"the script ended with {event.get('kind')}: {event.get('message')}{where}"


def _reason(words: str) -> Callable[[Event], str]:
    return lambda event: f"{words}: {event['reason']}" if event.get("reason") else words


_WORDS: dict[str, Callable[[Event], str | None]] = {
    "running": _running,
    "ended": ended,
    "resumed": resumed,
    "replayed": lambda event: _again(event) or None,
    "best": _best,
    "classified": _classified,
    "backoff": _reason("waits"),
    "stopping": lambda event: event.get("reason"),
    "rejected": _reason("rejected"),
    "failed": _reason("failed"),
    "cancelled": _reason("cancelled"),
    "hung": _reason("hangs"),
    "stuck": _reason("cannot go on"),
    "wall-over": _reason("over its time limit"),
    "memory-over": _reason("over its memory limit"),
    "save-failed": _reason("a checkpoint could not be saved"),
    "facts-dropping": _reason("what it reports is not recorded for a while"),
    "facts-dropped": lambda event: f"{event.get('count')} facts were not recorded",
    "restored": _restored,
    "mirror-failed": _reason("the mirror fails"),
    "mirror-recovered": lambda _: "the mirror works again",
    "mirror-damaged": _reason("the mirror has lost something"),
    "pruned": lambda event: f"checkpoints of steps {event.get('steps')} removed: {event.get('reason')}",
    "quarantined": lambda event: f"{event.get('path')} is put aside: {event.get('reason')}",
    "raised": _raised,
    "retreat": _reason("the next attempt goes back further"),
    "refused": lambda event: f"{event.get('verb')} refused: {event.get('reason')}",
    "adopted": lambda event: f"a new supervisor took over attempt {event.get('attempt')}, which runs on",
    "warning": lambda event: f"warning: {event.get('message')}",
}
