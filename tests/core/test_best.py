"""What is best, as tables."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.best import (
    Best,
    Monitor,
    Refusal,
    announcement,
    choose,
    direction,
    file_name,
    improves,
    template_problem,
)
from runner.core.spec import Mode

LOSS, ACCURACY = Monitor("val_loss", Mode.MIN), Monitor("val_accuracy", Mode.MAX)


def best(value: float, monitor: Monitor = LOSS) -> Best:
    return Best(monitor.metric, monitor.mode, value, 1, 10, "best.weights.h5")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("loss", "min"),
        ("val_loss", "min"),
        ("head_a_loss", "min"),
        ("accuracy_loss", "min"),
        ("acc", "max"),
        ("val_acc", "max"),
        ("val_accuracy", "max"),
        ("val_sparse_top_k_categorical_accuracy", "max"),
        ("auc", "max"),
        ("val_auc_1", "max"),
        ("AUC", "max"),
        ("precision_2", "max"),
        ("recall", "max"),
        ("f1", "max"),
        ("f1_score", "max"),
        ("F1Score", "max"),
        ("fbeta_score", "max"),
        ("r2_score", "max"),
        ("mean_io_u", "max"),
        ("MeanIoU", "max"),
        ("dice_coef", "max"),
        ("bleu", "max"),
        ("true_positives", "max"),
        ("cosine_similarity", "max"),
        ("mae", "min"),
        ("val_mse", "min"),
        ("mean_squared_error", "min"),
        ("root_mean_squared_error", "min"),
        ("binary_crossentropy", "min"),
        ("false_negatives", "min"),
        ("kl_divergence", "min"),
        ("perplexity", "min"),
        ("learning_rate", None),
        ("score", None),
        ("my_metric", None),
        ("", None),
        ("lossless_ratio", None),
    ],
)
def test_the_direction_shows_in_the_name_or_is_not_guessed(name: str, mode: str | None) -> None:
    assert direction(name) == mode


@pytest.mark.parametrize(
    ("monitor", "mode", "reported", "expected"),
    [
        (None, "auto", ["loss"], Monitor("loss", Mode.MIN)),
        (None, "auto", ["loss", "val_loss", "val_accuracy"], LOSS),
        (None, "auto", [], None),
        ("val_accuracy", "auto", ["loss", "val_accuracy"], ACCURACY),
        ("val_accuracy", "min", ["val_accuracy"], Monitor("val_accuracy", Mode.MIN)),
        ("score", "max", ["score"], Monitor("score", Mode.MAX)),
    ],
)
def test_what_is_monitored(monitor: str | None, mode: str, reported: list[str], expected: object) -> None:
    assert choose(monitor, Mode(mode), reported) == expected


def test_a_monitor_that_is_not_reported_is_refused_with_what_is() -> None:
    refusal = choose("val_acuracy", Mode.AUTO, ["val_accuracy", "loss"])
    assert refusal == Refusal(
        "checkpoint.monitor = 'val_acuracy' is not reported; reported: loss, val_accuracy"
    )


def test_an_unknown_direction_is_refused_with_the_remedy() -> None:
    refusal = choose("score", Mode.AUTO, ["score"])
    assert isinstance(refusal, Refusal)
    assert 'set checkpoint.mode to "min" or "max"' in refusal.reason


def test_an_epoch_without_validation_is_not_judged_once_val_loss_is_known() -> None:
    assert choose(None, Mode.AUTO, ["loss"], best(0.5)) is None
    assert choose(None, Mode.AUTO, ["loss"], best(0.5, Monitor("loss", Mode.MIN))) is not None


@pytest.mark.parametrize(
    ("monitor", "value", "so_far", "expected"),
    [
        (LOSS, 0.5, None, True),
        (LOSS, 0.4, 0.5, True),
        (LOSS, 0.5, 0.5, False),
        (LOSS, 0.6, 0.5, False),
        (ACCURACY, 0.6, 0.5, True),
        (ACCURACY, 0.5, 0.5, False),
        (LOSS, math.nan, None, False),  # Keras would keep a first NaN for ever
        (LOSS, math.nan, 0.5, False),
        (LOSS, -math.inf, 0.5, False),
        (ACCURACY, math.inf, None, False),
        (LOSS, 0.5, math.nan, True),
    ],
)
def test_only_a_strict_and_finite_improvement_counts(
    monitor: Monitor, value: float, so_far: float | None, expected: bool
) -> None:
    assert improves(monitor, value, None if so_far is None else best(so_far, monitor)) is expected


def test_by_another_monitor_the_count_begins_anew() -> None:
    assert improves(ACCURACY, 0.1, best(0.01, LOSS))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True)), st.sampled_from([LOSS, ACCURACY]))
def test_the_best_of_a_series_is_its_first_extreme(values: list[float], monitor: Monitor) -> None:
    so_far: Best | None = None
    for value in values:
        if improves(monitor, value, so_far):
            so_far = best(value, monitor)
    finite = [value for value in values if math.isfinite(value)]
    extreme = max if monitor.mode is Mode.MAX else min
    assert (so_far.value if so_far else None) == (extreme(finite) if finite else None)


LOGS = {"val_accuracy": 0.83858, "loss": 0.25, "top-5": 0.9}


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("best.weights.h5", "best.weights.h5"),
        ("model.keras", "model.keras"),
        (
            "weights-improvement-{epoch:02d}-{val_accuracy:.2f}.weights.h5",
            "weights-improvement-05-0.84.weights.h5",
        ),
        ("{step:06d}-{loss}.keras", "001230-0.25.keras"),
        ("{{x}}-{top-5:.1f}.keras", "{x}-0.9.keras"),
    ],
)
def test_files_are_named_as_in_the_tutorials(template: str, name: str) -> None:
    assert file_name(template, 4, 1230, LOGS) == name


@pytest.mark.parametrize(
    "template",
    [
        "best.h5",
        "best",
        "../best.keras",
        "/tmp/best.keras",
        "a/best.keras",
        "a\\best.keras",
        ".best.keras",
        "b\0.keras",
        "{epoch.__class__}.keras",
        "{epoch[0]}.keras",
        "{0}.keras",
        "{}.keras",
        "{epoch!r}.keras",
        "{epoch:09999999d}.keras",  # would fill the memory
        "{epoch:.{step}f}.keras",
        "{epoch.keras",
        "epoch}.keras",
        "a\nb.keras",
        "x" * 300 + ".keras",
        "{loss:02d}.keras",
    ],
)
def test_a_template_that_cannot_work_or_leaves_its_folder_is_refused(template: str) -> None:
    problem = template_problem(template)
    assert problem is not None
    assert "\n" not in problem
    assert file_name(template, 0, 0, LOGS) == Refusal(f"checkpoint.best = {template!r} {problem}")


def test_a_template_of_an_unknown_metric_is_refused_with_those_known() -> None:
    refusal = file_name("{val_acc:.2f}.keras", 0, 0, LOGS)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == (
        "checkpoint.best = '{val_acc:.2f}.keras': {val_acc} is not reported; "
        "known: epoch, loss, step, top-5, val_accuracy"
    )


@pytest.mark.parametrize("template", ["{loss:d}.keras", "{loss:x}.keras"])
def test_a_format_that_does_not_fit_the_value_is_refused(template: str) -> None:
    assert isinstance(file_name(template, 0, 0, LOGS), Refusal)


@given(st.text(max_size=40), st.dictionaries(st.text(max_size=5), st.floats(), max_size=3))
def test_no_template_ever_raises_or_leaves_its_folder(text: str, logs: dict[str, Any]) -> None:
    for template in (text + ".keras", "{" + text + "}.weights.h5"):
        name = file_name(template, 3, 7, logs)
        if isinstance(name, str):
            assert "/" not in name
            assert not name.startswith(".")


def test_the_announcement_is_the_one_known_from_keras() -> None:
    assert announcement(ACCURACY, 0.83858, best(0.83465, ACCURACY), 4, "best/b.keras") == (
        "Epoch 5: val_accuracy improved from 0.83465 to 0.83858, saving model to best/b.keras"
    )
    assert "improved from None to" in announcement(ACCURACY, 0.5, best(0.1, LOSS), 0, "b")
