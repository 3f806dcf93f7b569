"""Which model is the best so far: what is monitored, which direction is better, and the name of its file.

The rules where Keras's own callback errs: NaN and infinities are never best and never replace one; only a
strict improvement counts; a direction that cannot be told from the name is refused, not guessed.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from runner.core.spec import Mode

#: Words of a metric's name, the last known one decides: "val_top_k_categorical_accuracy" -> accuracy -> max.
LARGER_IS_BETTER = frozenset({
    "acc", "accuracy", "auc", "auroc", "roc", "pr", "precision", "recall", "sensitivity", "specificity",
    "f1", "f1score", "f2", "fbeta", "iou", "meaniou", "io", "dice", "jaccard", "bleu", "rouge", "meteor",
    "cider", "r2", "r2score", "map", "ndcg", "mrr", "psnr", "ssim", "kappa", "mcc", "hits", "top",
    "similarity", "true", "reward",
})  # fmt: skip
SMALLER_IS_BETTER = frozenset({
    "loss", "error", "err", "mae", "mse", "rmse", "mape", "msle", "mad", "crossentropy", "entropy",
    "perplexity", "ppl", "wer", "cer", "divergence", "kld", "kl", "nll", "hinge", "poisson", "logcosh",
    "brier", "fid", "distance", "cost", "false",
})  # fmt: skip

#: A checkpoint of ours, or Keras's whole model.
SUFFIXES = (".weights.h5", ".keras")
#: The fields of a template that are not metrics.
COUNTERS = ("epoch", "step")

_NAME_BYTES_MAX = 200
_FORMAT_SPEC = re.compile(r"[<>=^]?[-+ ]?#?0?\d{0,2}[,_]?(\.\d{1,2})?[a-zA-Z%]?")
_WORD = re.compile(r"[a-z]+\d*|[A-Z]+(?![a-z])\d*|[A-Z][a-z]*\d*")


@dataclass(frozen=True)
class Refusal:
    """What was asked cannot be done; `reason` is one line for a person, with the remedy."""

    reason: str


@dataclass(frozen=True)
class Monitor:
    """A metric and its better direction, MIN or MAX."""

    metric: str
    mode: Mode


@dataclass(frozen=True)
class Best:
    """The identity of the best model so far."""

    metric: str
    mode: Mode
    value: float
    epoch: int  #: counted from 0, as Keras does inside
    step: int
    file: str  #: its name in the folder of the best models

    @property
    def monitor(self) -> Monitor:
        """What it is best by."""
        return Monitor(self.metric, self.mode)


def choose(
    monitor: str | None, mode: Mode, reported: Collection[str], best: Best | None = None
) -> Monitor | Refusal | None:
    """Choose what to monitor among the metrics `reported`; None where this epoch cannot be judged.

    The default is val_loss, else loss; once a best is by val_loss, an epoch without validation is not judged.
    """
    if not reported:
        return None
    if monitor is None and "val_loss" not in reported and best is not None and best.metric == "val_loss":
        return None
    default = "val_loss" if "val_loss" in reported else "loss"
    name = monitor if monitor is not None else default
    if name not in reported:
        return Refusal(f"checkpoint.monitor = {name!r} is not reported; reported: {listed(reported)}")
    found = direction(name) if mode is Mode.AUTO else mode
    if found is None:
        return Refusal(
            f"checkpoint.monitor = {name!r}: whether more or less is better cannot be told from the name; "
            'set checkpoint.mode to "min" or "max"'
        )
    return Monitor(name, found)


def direction(metric: str) -> Mode | None:
    """Tell the better direction from a metric's name; None where it does not show."""
    for word in reversed(_WORD.findall(metric)):
        for form in (word.lower(), word.lower().rstrip("0123456789")):
            if form in LARGER_IS_BETTER:
                return Mode.MAX
            if form in SMALLER_IS_BETTER:
                return Mode.MIN
    return None


def improves(monitor: Monitor, value: float, best: Best | None) -> bool:
    """Tell whether `value` is strictly better than the best so far; by another monitor, any finite one is."""
    if not math.isfinite(value):
        return False
    if best is None or best.monitor != monitor or not math.isfinite(best.value):
        return True
    return value > best.value if monitor.mode is Mode.MAX else value < best.value


def ranks(monitor: Monitor, value: float, others: Collection[Best], keep: int) -> bool:
    """Tell whether `value` is among the `keep` best: there are fewer others, or it is better than one."""
    if not math.isfinite(value):
        return False
    rivals = [other for other in others if other.monitor == monitor]
    return len(rivals) < keep or any(improves(monitor, value, rival) for rival in rivals)


def surplus(models: Collection[Best], keep: int) -> list[Best]:
    """List those that are not among the `keep` best of one metric; of equals the earlier stays."""
    ranked = sorted(models, key=lambda one: (-one.value if one.mode is Mode.MAX else one.value, one.step))
    return ranked[max(1, keep) :]


def fields(template: str) -> tuple[str, ...]:
    """List the fields of a template, in order; one that has any names a series of files.

    Raises:
        ValueError: its braces do not match.
    """
    return tuple(name for _, name, _, _ in string.Formatter().parse(template) if name is not None)


def template_problem(template: str) -> str | None:
    """Say, to go after its name, why `template` cannot name the best model's file; None when it can."""
    if not template.endswith(SUFFIXES):
        return f"must be a file name that ends in {' or '.join(SUFFIXES)}"
    if any(sign in template for sign in "/\\") or template.startswith(".") or not template.isprintable():
        return "must be a file name without folders (it lies in the job's best/) and without a leading dot"
    try:
        shown = "".join(literal + _sample(*field) for literal, *field in string.Formatter().parse(template))
    except ValueError as error:
        return f"is not a valid template ({error})"
    return "is too long for a file's name" if len(shown.encode()) > _NAME_BYTES_MAX else None


def _sample(name: str | None, spec: str | None, conversion: str | None) -> str:
    """Format a value for one field; raises ValueError where no value could be."""
    if name is None:
        return ""
    if not name or name.isdigit() or any(sign in name for sign in ".[]{}"):
        raise ValueError(f"{{{name}}} is not epoch, step or a metric's name")
    if conversion or not _FORMAT_SPEC.fullmatch(spec or ""):
        raise ValueError(f"{{{name}:{spec}}} is not a number's format such as {{{name}:.2f}}")
    return format(1 if name in COUNTERS else 0.5, spec or "")


def file_name(template: str, epoch: int, step: int, logs: Mapping[str, float]) -> str | Refusal:
    """Name the file of a best model, as the tutorials do: "w-{epoch:02d}-{val_accuracy:.2f}.weights.h5".

    Args:
        template: one that `template_problem` finds nothing in, else the problem is the refusal.
        epoch: counted from 0; the name shows it counted from 1, as Keras does.
        step: completed steps.
        logs: the metrics reported at the epoch's end.
    """
    problem = template_problem(template)
    if problem:
        return Refusal(f"checkpoint.best = {template!r} {problem}")
    values: dict[str, float] = {**logs, "epoch": epoch + 1, "step": step}
    missing = [name for name in fields(template) if name not in values]
    if missing:
        known = listed([*COUNTERS, *logs])
        return Refusal(f"checkpoint.best = {template!r}: {{{missing[0]}}} is not reported; known: {known}")
    try:
        name = template.format_map(values)
    except (ValueError, OverflowError) as error:
        return Refusal(f"checkpoint.best = {template!r}: {error}")
    if "/" in name or "\0" in name or len(name.encode()) > _NAME_BYTES_MAX:
        return Refusal(f"checkpoint.best = {template!r}: gives no usable file name")
    return name


def announcement(monitor: Monitor, value: float, previous: Best | None, epoch: int, path: str) -> str:
    """Say that a model is the best so far, in the line known from Keras's own callback."""
    before = "None" if previous is None or previous.monitor != monitor else f"{previous.value:.5f}"
    return (
        f"Epoch {epoch + 1}: {monitor.metric} improved from {before} to {value:.5f}, saving model to {path}"
    )


def runner_up(found: Best, path: str) -> str:
    """Say that a model is kept though it is not the best."""
    return f"Epoch {found.epoch + 1}: {found.metric} is {found.value:.5f}, saving model to {path}"


def listed(names: Collection[str]) -> str:
    """Enumerate the metrics that a script reports."""
    return ", ".join(sorted(names)) or "none"
