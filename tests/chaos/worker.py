"""The program of the campaign's jobs: does deeds, and keeps a ledger of its life outside the state folder.

Usage: python -I -S worker.py LEDGER DEED..., a deed being NAME[:ARGUMENT...], done in order; see DEEDS.

The ledger knows better than any supervisor what ran: each line is one write, `start ATTEMPT PID`,
`end ATTEMPT CODE`, and `double ...` where another worker of the job lives or had the same attempt. A lock
beside it is held for as long as the worker lives.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable

LEDGER = sys.argv[1]
STATE, ATTEMPT = os.environ["RUNNER_STATE"], int(os.environ["RUNNER_ATTEMPT"])
JOB, HOME = os.environ["RUNNER_JOB"], os.environ["RUNNER_HOME"]
#: Of struct task_struct: the process is on its way out (Linux, field 9 of /proc/PID/stat).
PF_EXITING = 0x4
EXIT_AGAIN = 75
SAVE_EVERY = 10


class Asked:
    """Whether SIGTERM has come."""

    to_stop = False


def note(line: str) -> None:
    """Append a line to the ledger."""
    fd = os.open(LEDGER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


def lines(kind: str) -> list[list[str]]:
    """Return what the ledger says of one kind."""
    with open(LEDGER, encoding="ascii") as file:
        return [line.split()[1:] for line in file if line.split()[0] == kind]


def report(**fact: object) -> None:
    """Tell the supervisor a fact, in one write."""
    path = os.path.join(STATE, "attempts", f"{ATTEMPT:04d}", "facts.jsonl")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, json.dumps(fact).encode() + b"\n")
    os.close(fd)


def leave(code: int) -> None:
    """End, with a line in the ledger."""
    note(f"end {ATTEMPT} {code}")
    os._exit(code)


def leave_if_asked() -> None:
    if Asked.to_stop:
        leave(EXIT_AGAIN)


def is_on_its_way_out(pid: str) -> bool:
    """Tell whether a process no longer runs any of its program."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & PF_EXITING)


def supervisor_pid() -> int | None:
    """Return the living supervisor's pid; the jobs have no other way to know it."""
    try:
        with open(os.path.join(HOME, "state", "supervisor.json")) as file:
            identity = json.load(file)["identity"]
        with open(f"/proc/{identity['pid']}/stat", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return int(identity["pid"]) if int(fields[19]) == identity["start"] and fields[0] not in "ZX" else None


def enter() -> None:
    """Take the lock and the attempt's mark; where another has either, say so."""
    fd = os.open(f"{LEDGER}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not is_on_its_way_out(holder := lines("start")[-1][1]):
                note(f"double {ATTEMPT} beside {holder}")
                os._exit(99)
    try:
        os.close(os.open(f"{LEDGER}.{ATTEMPT}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        note(f"double {ATTEMPT} again")
    note(f"start {ATTEMPT} {os.getpid()}")


def once(name: str) -> bool:
    """Tell whether this is the first time that the job does something."""
    try:
        os.close(os.open(f"{LEDGER}.{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < until:
        leave_if_asked()
        time.sleep(0.002)


# --- deeds ------------------------------------------------------------------------------------------------


def do_facts(number: str) -> None:
    """Report so many facts."""
    for step in range(1, int(number) + 1):
        report(event="checkpoint", path="checkpoints/none", step=step, epoch=0, stall_s=0.0)


def do_exit(code: str) -> None:
    leave(int(code))


def do_flaky(times: str, code: str) -> None:
    """Exit so, as many times as the ledger does not say that it has been done."""
    if sum(line[1] == code for line in lines("end")) < int(times):
        leave(int(code))


def do_ask(verb: str, name: str) -> None:
    """Leave a request, as the command line does; once."""
    if once(f"asked-{verb}"):
        folder = os.path.join(HOME, "jobs", ".requests")
        path = os.path.join(folder, f"{time.time_ns():020d}-{os.getpid()}.json")
        with open(f"{path}.tmp", "w") as file:
            json.dump({"version": 1, "verb": verb, "name": name, "args": {}}, file)
        os.rename(f"{path}.tmp", path)


def do_await_term(limit_s: str) -> None:
    """Wait to be asked to stop, in the first attempt."""
    if len(lines("start")) == 1:
        wait_until(lambda: False, float(limit_s))


def do_ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def do_await_state(name: str, state: str, limit_s: str) -> None:
    """Wait until another job's record says so."""
    path = os.path.join(HOME, "state", name, "job.json")

    def reached() -> bool:
        try:
            with open(path, encoding="utf-8") as file:
                return bool(json.load(file)["state"] == state)
        except FileNotFoundError:
            return False

    wait_until(reached, float(limit_s))


def do_await_begun(name: str, limit_s: str) -> None:
    """Wait until another job has begun."""
    wait_until(lambda: os.path.exists(os.path.join(os.path.dirname(LEDGER), name)), float(limit_s))


def do_await_spare(limit_s: str) -> None:
    """Wait until the next attempt has a spare that is ready, in the first attempt."""

    def ready() -> bool:
        try:
            with open(os.path.join(STATE, "spare", "shim.json")) as file:
                return bool(json.load(file)["ready"])
        except OSError:
            return False

    if len(lines("start")) == 1:
        wait_until(ready, float(limit_s))


def do_await_orphaned(limit_s: str) -> None:
    """Wait until no supervisor lives that has said who it is, in the first attempt."""
    if len(lines("start")) == 1:
        wait_until(lambda: supervisor_pid() is None, float(limit_s))


def do_await_adopted(limit_s: str) -> None:
    """Wait until a supervisor that has not started this attempt has said so."""
    path = os.path.join(STATE, "events.jsonl")

    def adopted() -> bool:
        with open(path, encoding="utf-8") as file:
            return '"adopted"' in file.read()

    wait_until(adopted, float(limit_s))


def do_end_supervisor() -> None:
    """Ask the supervisor to end, as systemd does; once."""
    pid = supervisor_pid()
    if pid is not None and once("ended-supervisor"):
        os.kill(pid, signal.SIGTERM)


def do_child() -> None:
    """Leave a child in a session of its own that goes on for ever."""
    if os.fork() == 0:
        os.setsid()
        os.execv("/bin/sleep", ["sleep", "600"])


def do_count(target: str, pause_s: str) -> None:
    """Count from where the last attempt has saved; each step changes a digest, which is saved with it."""
    count, digest = saved()
    if count:
        report(event="resumed", path="checkpoints/none", step=count, epoch=0, exact=True)
    while count < int(target):
        if Asked.to_stop:
            save(count, digest)
            leave(EXIT_AGAIN)
        time.sleep(float(pause_s))
        count, digest = count + 1, chained(count + 1, digest)
        if count % SAVE_EVERY == 0 or count == int(target):
            save(count, digest)


def chained(count: int, digest: str) -> str:
    return hashlib.sha256(f"{digest}{count}".encode()).hexdigest()


def saved() -> tuple[int, str]:
    try:
        with open(f"{LEDGER}.saved") as file:
            count, _, digest = file.read().partition(" ")  # before the first step there is no digest yet
    except FileNotFoundError:
        return 0, ""
    return int(count), digest


def save(count: int, digest: str) -> None:
    with open(f"{LEDGER}.saved.tmp", "w") as file:
        file.write(f"{count} {digest}")
    os.rename(f"{LEDGER}.saved.tmp", f"{LEDGER}.saved")
    report(event="checkpoint", path="checkpoints/none", step=count, epoch=0, stall_s=0.0)


DEEDS: dict[str, Callable[..., None]] = {
    name.removeprefix("do_").replace("_", "-"): deed
    for name, deed in list(globals().items())
    if name.startswith("do_")
}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: setattr(Asked, "to_stop", True))
    enter()
    for deed in sys.argv[2:]:
        name, *arguments = deed.split(":")
        DEEDS[name](*arguments)
    leave(0)


if __name__ == "__main__":
    main()
