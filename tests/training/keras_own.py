"""Keras's own tests with the instrumentation and without it: what passes and what fails must be the same.

`python -m tests.training.keras_own` runs the tests that Keras ships, of the parts that the instrumentation
takes hold of, once plainly and once as the script of a real worker, each time in one process; `--short` runs
a few of them. Test by test the outcomes are compared, of a failure the exception's type too. Tests for
packages that are not installed are skipped or fail, both times.

What differs is run again. A test that has different outcomes plainly is flaky by itself, and told as such;
any other difference ends with exit status 1. So does a fit in which taking checkpoints failed, and so does a
test in `BY_NATURE` that does not differ.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.training.harness import BOOTSTRAP, Job

FOLDERS = ("keras/src/trainers", "keras/src/callbacks", "keras/src/models", "keras/src/saving")
#: What the suite runs each time.
SHORT = (
    "keras/src/trainers/epoch_iterator_test.py",
    "keras/src/trainers/data_adapters/tf_dataset_adapter_test.py",
    "keras/src/callbacks/csv_logger_test.py",
    "keras/src/callbacks/early_stopping_test.py",
)
#: Tests that look at what cannot be the same, each with the reason.
BY_NATURE: dict[str, str] = {}

#: How often a differing test is run again plainly: one that is flaky shall have the chance to show it.
_AGAIN = 2
_TIMEOUT_S = 3000.0
#: Often enough that most fits take checkpoints while they run; seldom enough that writing is not the cost.
_EVERY = ("steps", 5.0)

#: Test -> outcome.
Outcomes = dict[str, str]


@dataclass(frozen=True)
class Run:
    """One process over some test files."""

    outcomes: Outcomes
    facts: list[dict[str, Any]]  #: of the worker

    def count(self, event: str) -> int:
        """Return how many facts of this kind there are."""
        return sum(fact["event"] == event for fact in self.facts)

    @property
    def broken(self) -> list[str]:
        """What failed in the instrumentation, without the script noticing."""
        warnings = [str(fact.get("message")) for fact in self.facts if fact["event"] == "warning"]
        failed = [str(fact.get("reason")) for fact in self.facts if fact["event"] == "save-failed"]
        return [message for message in warnings if "something failed" in message] + failed


@dataclass
class Comparison:
    """What came out both ways."""

    plain: Run
    ours: Run
    different: dict[str, str] = field(default_factory=dict)  #: test -> in what
    flaky: dict[str, str] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """Say all that must not be."""
        by_nature = {test: why for test, why in BY_NATURE.items() if test in self.plain.outcomes}
        found = [f"{test}: {what}" for test, what in self.different.items() if test not in by_nature]
        found += [
            f"{test}: is listed as different by nature ({why}), but is the same"
            for test, why in by_nature.items()
            if test not in self.different and test not in self.flaky
        ]
        if not self.ours.count("fit-started"):
            found.append("no fit was instrumented")
        return found + self.ours.broken

    def summary(self) -> str:
        """Tell the figures, the flaky tests, and what is different by nature."""
        counts = Counter(outcome.split(" ")[0] for outcome in self.plain.outcomes.values())
        figures = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        facts = self.ours
        return "\n".join(
            [
                f"{len(self.plain.outcomes)} tests plainly: {figures}",
                f"{len(self.ours.outcomes)} tests instrumented, {facts.count('fit-finished')} of"
                f" {facts.count('fit-started')} fits finished, {facts.count('checkpoint')} checkpoints",
                f"different: {len(self.different)}, flaky by themselves: {len(self.flaky)}",
                *(f"flaky: {test}: {what}" for test, what in self.flaky.items()),
                *(f"by nature: {t}: {BY_NATURE[t]}" for t in self.different if t in BY_NATURE),
            ]
        )


def files(folders: Sequence[str] = FOLDERS) -> list[str]:
    """List the installed test files, as they are named from the folder that holds Keras."""
    spec = importlib.util.find_spec("keras")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parents[1]
    return sorted(str(path.relative_to(site)) for one in folders for path in (site / one).rglob("*_test.py"))


def run(root: Path, tests: Sequence[str], *, instrumented: bool) -> Run:
    """Run test files in one process, in a folder of its own.

    Raises:
        RuntimeError: it did not get through them.
    """
    root.mkdir(parents=True)
    (root / "tmp").mkdir()
    job, outcomes = Job(root, "keras_tests.py"), root / "outcomes.jsonl"
    words = [str(outcomes), *tests]
    environ = {"TMPDIR": str(root / "tmp")}
    if instrumented:
        environ.update(job.prepare(*words, every=_EVERY))
    command = [str(BOOTSTRAP)] if instrumented else [job.script, *words]
    with (root / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=job.folder,
            env=job.environment(environ),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: Any = process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = f"still running after {_TIMEOUT_S:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it left, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status != 0:
        tail = (root / "output.txt").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"exit status {status} of pytest over {len(tests)} files:\n{tail}")
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    return Run(dict(lines), job.facts())


def compare(root: Path, tests: Sequence[str]) -> Comparison:
    """Run test files both ways, and again what differs."""
    comparison = Comparison(
        run(root / "plain", tests, instrumented=False), run(root / "ours", tests, instrumented=True)
    )
    suspects = differing(comparison.plain.outcomes, comparison.ours.outcomes)
    if suspects:
        again = sorted({test.partition("::")[0] for test in suspects})
        plain = [run(root / f"plain-{n}", again, instrumented=False).outcomes for n in range(_AGAIN)]
        ours = run(root / "ours-again", again, instrumented=True).outcomes
        runs = comparison.plain.outcomes, *plain
        judge(comparison, suspects, runs, (comparison.ours.outcomes, ours))
    return comparison


def differing(plain: Outcomes, ours: Outcomes) -> list[str]:
    """Name the tests whose outcomes differ, and those that ran one way only."""
    return [test for test in {**plain, **ours} if plain.get(test) != ours.get(test)]


def judge(
    comparison: Comparison, suspects: Sequence[str], plain: Sequence[Outcomes], ours: Sequence[Outcomes]
) -> None:
    """Sort tests that differed once: flaky is what differs between the plain runs."""
    for test in suspects:
        before, after = ([run.get(test, "not run") for run in runs] for runs in (plain, ours))
        what = f"plainly {', '.join(before)}; instrumented {', '.join(after)}"
        (comparison.flaky if len(set(before)) > 1 else comparison.different)[test] = what


def main() -> int:
    """Compare, and tell."""
    parser = argparse.ArgumentParser(description="Keras's own tests, with the instrumentation and without")
    parser.add_argument("files", nargs="*", help="as keras/src/trainers/trainer_test.py; default: all")
    parser.add_argument("--short", action="store_true", help="a few files only")
    parser.add_argument("--keep", type=Path, help="a folder to keep what was run in")
    options = parser.parse_args()
    tests = options.files or (list(SHORT) if options.short else files())
    with tempfile.TemporaryDirectory() as scratch:
        comparison = compare(options.keep or Path(scratch), tests)
    lines = [comparison.summary(), *(f"WRONG: {line}" for line in comparison.wrong)]
    print("\n".join(lines))  # noqa: T201 - a command's report
    return 1 if comparison.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
