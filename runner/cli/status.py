"""`runner status`: one job, all of it."""

from __future__ import annotations

from typing import Any

from runner.cli import daemon, facts, output
from runner.cli.options import HomeOption, JsonOption, NameArgument, existing, open_home
from runner.core.exactness import text
from runner.core.job import SETTLED, State

_ATTEMPTS_SHOWN = 10


def command(name: NameArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Show where a job stands."""
    where = open_home(home)
    name = existing(where, name)
    job = facts.gather(where, name)
    if json:
        output.print_json(job)
        return
    output.print_pairs(_lines(job))
    for attempt in job["attempts"][-_ATTEMPTS_SHOWN:]:
        print(_attempt(attempt))
    if job["state"] not in SETTLED | {State.PAUSED} and not daemon.serves(where, name):
        print("no supervisor runs here: runner supervise")


def _lines(job: dict[str, Any]) -> list[tuple[str, str]]:
    """Describe the job, a labelled line for each thing that is known."""
    pid = f", worker {job['pid']}" if job["pid"] else ""
    lines = [
        ("job", job["name"]),
        ("state", job["state"] + (f": {job['reason']}" if job["reason"] else "")),
        ("set", ", ".join(f"{key} = {value}" for key, value in job["set"].items())),
        ("priority", str(job["priority"]) if job["priority"] else ""),
        ("resources", resources(job["resources"])),
        ("attempt", f"{job['attempt']} ({restarts(job)}){pid}" if job["attempt"] else ""),
        ("progress", progress(job) if job["step"] else ""),
        ("metrics", metrics(job["metrics"])),
        ("checkpoint", "step {step}, {path}".format(**job["checkpoint"]) if job["checkpoint"] else ""),
        ("saving", saving(job["saving"]) if job["saving"] else ""),
        ("disk", job["disk"] or ""),
        ("stuck", job["stuck"] or ""),
        ("best", best(job["best"]) if job["best"] else ""),
        ("mirror", mirror(job["mirror"]) if job["mirror"] else ""),
        ("exactness", exactness(job["exactness"]) if job["exactness"] else ""),
        ("not kept", ", ".join(job["exactness"]["missed"]) if job["exactness"] else ""),
        ("from", job["source"]),
        ("goodput", goodput(job["goodput"]) if job["attempt"] else ""),
        ("submitted", job["submitted_at"]),
        ("started", job["started_at"]),
        ("finished", job["finished_at"]),
    ]
    return [(label, text) for label, text in lines if text]


def resources(found: dict[str, Any]) -> str:
    """Write what the job occupies, and on which GPUs, where that is more than the one cpu of any job."""
    parts = [f"{found['cpus']:g} cpus"] if found["cpus"] not in {None, 1.0} else []
    parts += [f"{output.size(found['memory_bytes'])} of memory"] if found["memory_bytes"] else []
    if found["gpus"]:
        on = f" ({', '.join(found['devices'])})" if found["devices"] else ""
        parts.append(f"{found['gpus']:g} gpus{on}")
    elif found["devices"] is not None:
        parts.append("no gpu, and it sees none (resources.gpus)")
    return ", ".join(parts)


def mirror(found: dict[str, Any]) -> str:
    """Write what the mirror holds, how far it is behind, and what is wrong with it."""
    steps, behind = found["steps"], found["behind"]
    held = f"steps {', '.join(str(step) for step in steps)}" if steps else "no checkpoint yet"
    held += ", the best model" if found["best"] else ""
    held += f", {len(behind)} {'file' if len(behind) == 1 else 'files'} behind" if behind else ""
    failing = f"; FAILS since {found['failing_since']}: {found['error']}" if found["error"] else ""
    return f"{held}, {found['url']}{failing}"


def exactness(found: dict[str, Any]) -> str:
    """Write how exact a resume of the newest fit is, and what reading data again took at the last one."""
    which = f"fit {found['fit']}: " if found["fit"] else ""
    again = f"; read again in {output.duration(found['replay_s'])}" if found["replay_s"] is not None else ""
    return f"{which}{text(found['kind'], found['reason'])}{again}"


def goodput(spent: dict[str, float]) -> str:
    """Write the share of useful time, and where the rest went."""
    parts = ", ".join(f"{key[:-2]} {output.duration(spent[key])}" for key in spent if key != "ratio")
    return f"{100 * spent['ratio']:.1f} % ({parts})"


def restarts(job: dict[str, Any]) -> str:
    """Write how often the job was restarted, and after what."""
    return f"{job['restarts']} restarts{': ' if job['restarts_by_cause'] else ''}{by_cause(job)}"


def by_cause(job: dict[str, Any]) -> str:
    """Write how many restarts followed each kind of end."""
    return ", ".join(f"{cause} {count}" for cause, count in job["restarts_by_cause"].items())


def progress(job: dict[str, Any]) -> str:
    """Write step, epoch, phase and rate."""
    parts = [f"step {job['step']}"]
    if job["epochs"]:
        parts.append(f"epoch {min(job['epoch'] + 1, job['epochs'])} of {job['epochs']}")
    if job["phase"]:
        parts.append(job["phase"])
    if job["steps_per_s"]:
        parts.append(f"{job['steps_per_s']:.0f} steps/s")
    return ", ".join(parts)


def metrics(values: dict[str, Any]) -> str:
    """Write metrics on one line."""
    return ", ".join(f"{name} {output.metric(value)}" for name, value in values.items())


def saving(found: dict[str, Any]) -> str:
    """Write what checkpoints cost, or why they fail."""
    if found["reason"]:
        again = f"; tried again within {output.duration(found['retry_s'] or 0)}"
        return f"fails since {found['since']}: {found['reason']}{again}"
    every = f"every {output.duration(found['interval_s'])}: " if found["interval_s"] is not None else ""
    costs = f"{output.size(found['size_bytes'] or 0)}, written in {output.moment(found['save_s'] or 0)}"
    pause = f"training paused {output.moment(found['stall_s'] or 0)}"
    held = output.size(found["memory_bytes"]) if found["memory_bytes"] else ""
    return f"{every}{costs}, {pause}" + (f"; snapshots take {held} of memory" if held else "")


def best(found: dict[str, Any]) -> str:
    """Write the best model: what it reached, when, and where it lies."""
    return f"{found['metric']} {output.metric(found['value'])} in epoch {found['epoch'] + 1}, {found['path']}"


def _attempt(attempt: dict[str, Any]) -> str:
    ended = attempt.get("outcome") or "runs"
    how = attempt.get("signal") or (f"exit code {attempt['exit_code']}" if attempt.get("exit_code") else "")
    failure = attempt.get("failure") or {}
    raised = f"{failure['kind']}: {failure['message']}" if failure else ""
    detail = ", ".join(part for part in (how, raised, attempt.get("reason") or "") if part)
    text = f"  attempt {attempt['number']}: from step {attempt.get('start_step', 0)}, {ended}"
    return f"{text} ({detail})" if detail else text
