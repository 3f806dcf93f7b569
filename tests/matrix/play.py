"""Plays variants of the matrix: once undisturbed, once dying again and again; and judges them.

The deaths of a variant are drawn from the moments that its undisturbed run told. One is of the last two
thirds of its steps. For each other the kind of moment is drawn first, so that rare ones come as often as
others; it may also die in the middle of a checkpoint, at the next beginning of a fit, and after its last.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.matrix.game import Game, HotGame
from tests.matrix.registry import Variant
from tests.training.harness import Attempt, Job
from tests.training.nursery import Nursery


@dataclass
class Verdict:
    """What became of one variant."""

    variant: Variant
    faults: list[str] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)  #: the moments at which it was killed
    resumed: list[int] = field(default_factory=list)  #: the steps that its fits went on from
    spares: list[str] = field(default_factory=list)  #: what took over
    reason: str = ""  #: what it was classified as

    @property
    def kind(self) -> str:
        """How it is exact, or that it is not."""
        if self.variant.inexact:
            return "not exact"
        return "by replay" if self.reason.startswith("by replay") else "exact"

    def __str__(self) -> str:
        deaths = f"{len(self.deaths)} kills: {', '.join(self.deaths)}"
        steps = ", ".join(map(str, self.resumed)) or "no step"
        spares = f"; spares: {', '.join(self.spares)}" if self.spares else ""
        line = f"{self.kind:9}  {self.variant.name:34} {deaths}; resumed at {steps}{spares}"
        return "\n".join(
            [f"{'FAILED' if self.faults else 'ok':6}  {line}", *(f"  {one}" for one in self.faults)]
        )


@dataclass(frozen=True)
class Rules:
    """How to play."""

    folder: Path
    seed: int
    kills: int = 3
    forgetful: bool = False  #: the negative control
    forked: bool = False  #: lives begin with TensorFlow imported already
    hot: bool = False  #: lives but the first are prepared by hot spares


def play(variants: list[Variant], rules: Rules, label: str) -> Iterator[Verdict]:
    """Play variants of one script in one job; where one fails, those behind it are played again."""
    left, turn = variants, 0
    nursery = Nursery(Job.environment({})) if rules.forked else None
    try:
        while left:
            verdicts = _play_once(left, rules, f"{label}-{turn}", nursery)
            failed = next((i for i, one in enumerate(verdicts) if one.faults), None)
            done = len(verdicts) if failed is None else failed + 1
            yield from verdicts[:done]
            left, turn = left[done:], turn + 1
    finally:
        if nursery is not None:
            nursery.close()


def _play_once(variants: list[Variant], rules: Rules, label: str, nursery: Nursery | None) -> list[Verdict]:
    """Return verdicts up to the first variant at which the script fails."""
    chance = random.Random(f"{rules.seed}/{[one.name for one in variants]}")
    calm = _game(f"{label}-undisturbed", variants, rules, nursery)
    lived = calm.live({}, every=("steps", 3))
    expected = _told(lived)
    plan = {name: _draw(one["moments"], rules, chance) for name, one in expected.items()}
    game = _game(f"{label}-killed", variants, rules, nursery)
    found: dict[str, Any] = {}
    if lived.code == 0:
        lived = game.live(plan, every=("steps", chance.choice([1, 1, 2, 3])))
        found = _told(lived)
    verdicts, lives = [], 1
    for one in variants:
        verdict = Verdict(one)
        if one.name not in found:
            verdict.faults.append(f"exit code {lived.code}, in {lived.job.folder}\n{lived.errors[-3000:]}")
            return [*verdicts, verdict]
        verdict.deaths = [death["kind"] for death in plan[one.name]][: game.deaths_of(one)]
        verdict.faults += _differences(one, expected[one.name], found[one.name])
        _judge(verdict, game, _fits(found, one.name), rules)
        if isinstance(game, HotGame):
            after = range(lives + 1, lives + 1 + len(verdict.deaths))
            lives += len(verdict.deaths)
            verdict.spares = [game.spare_of(number) for number in after if game.wants_spare(number)]
            verdict.faults += ["no hot spare took over"] if {*verdict.spares} - {"hot"} else []
        verdicts.append(verdict)
    if isinstance(game, HotGame) and lives != game.attempt:
        verdicts[-1].faults.append(f"{lives - 1} deaths, and {game.attempt} attempts")
    if not any(one.faults for one in verdicts):
        shutil.rmtree(calm.root)
        shutil.rmtree(game.root)
    return verdicts


def _game(label: str, variants: list[Variant], rules: Rules, nursery: Nursery | None) -> Game:
    """Make a job, of the kind that is asked for."""
    game = (
        HotGame(rules.folder / label, variants)
        if rules.hot
        else Game(rules.folder / label, variants, nursery)
    )
    if rules.forgetful:
        game.forget()
    return game


def _draw(moments: list[str], rules: Rules, chance: random.Random) -> list[dict[str, Any]]:
    """Draw deaths in the order in which they come; one of them so late that there is something to resume."""
    late = [i for i, moment in enumerate(moments) if moment == "train" and 3 * i >= len(moments)]
    deaths = [
        {"kind": "train", "at": chance.choice(late), "dying_s": 0.1, "saved": rules.forgetful},
    ]
    kinds = ["train"] if rules.forgetful or rules.hot else sorted({*moments, "save", "after"})
    for kind in chance.choices(kinds, k=rules.kills - 1):
        # It dies at the beginning of the next fit, be it one that is resumed.
        stands_for = {"save": ("train",), "start": moments}.get(kind, (kind,))
        places = [i for i, moment in enumerate(moments) if moment in stands_for]
        at = chance.choice(places) if places else len(moments)
        deaths.append({"kind": kind, "at": at, "dying_s": chance.choice([0.0, 0.1, 0.1])})
    return sorted(deaths, key=lambda death: death["at"])


def _told(attempt: Attempt) -> dict[str, Any]:
    """Return what each variant has told of itself at its end."""
    return {name: json.loads(told) for name, told in attempt.results.items()}


def _fits(found: dict[str, Any], name: str) -> range:
    """Return the numbers of a variant's fits."""
    before = 0
    for other, told in found.items():
        if other == name:
            return range(before, before + told["fits"])
        before += told["fits"]
    raise KeyError(name)


def _differences(variant: Variant, expected: dict[str, Any], found: dict[str, Any]) -> Iterable[str]:
    if variant.inexact or expected == found:
        return
    parts = [key for key in expected["parts"] if expected["parts"][key] != found["parts"][key]]
    for key in parts:
        yield f"{key} differ: {expected['parts'][key]} became {found['parts'][key]}"
    if expected["moments"] != found["moments"]:
        yield f"its moments differ: {' '.join(expected['moments'])} became {' '.join(found['moments'])}"


def _judge(verdict: Verdict, game: Game, fits: range, rules: Rules) -> None:
    """Add what is wrong with how a variant was classified and reported."""
    facts = [(fact["event"], fact) for fit, fact in game.facts_by_fit() if fit in fits]
    reasons = [fact["reason"] for event, fact in facts if event == "classified" and not fact["exact"]]
    verdict.reason = next(
        (fact["reason"] for event, fact in facts if event == "classified" and fact["reason"]), ""
    )
    verdict.resumed = [fact["step"] for event, fact in facts if event == "resumed"]
    variant, faults = verdict.variant, verdict.faults
    if variant.inexact and not any(variant.inexact in reason for reason in reasons):
        faults.append(f"not classified as not exact because {variant.inexact}: {reasons}")
    if not variant.inexact:
        reasons += [fact["reason"] for event, fact in facts if event == "resumed" and not fact["exact"]]
        faults += [f"classified or resumed as not exact: {reason}" for reason in dict.fromkeys(reasons)]
    warnings = [fact["message"] for event, fact in facts if event == "warning"]
    # These may be of a variant that comes after this one's last fit.
    warnings = [one for one in warnings if not one.startswith(("checkpoint.monitor", "the script trains in"))]
    if variant.warns and not any(variant.warns in message for message in warnings):
        faults.append(f"no warning of {variant.warns}")
    if not variant.warns:
        faults += [f"warning: {message}" for message in dict.fromkeys(warnings)]
    if len(verdict.deaths) < rules.kills:
        faults.append(f"died only {len(verdict.deaths)} times")
    lines = [(line["fit"], line["epoch"]) for line in game.metrics() if line["fit"] in fits]
    if len(lines) != len(set(lines)):
        faults.append("an epoch has several lines in metrics.jsonl")
    faults += [f"save failed: {fact}" for event, fact in facts if event == "save-failed"]
