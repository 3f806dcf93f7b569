"""The best keeper: a worse model never replaces a better one, whatever was killed, lost or damaged."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.core.spec import CheckpointSpec, Mode
from runner.storage import checkpoint
from runner.storage.layout import JobPaths
from runner.training.best import RECORD, BestKeeper
from tests.storage.snapshots import CREATED, small

SERIES = "weights-improvement-{epoch:02d}-{val_accuracy:.2f}.weights.h5"
ACCURACY = {"monitor": "val_accuracy"}


def save_whole(path: Path) -> None:
    """Stands for Keras's `model.save`: a zip file of the same parts."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", "{}" * 1000)


class Bench:
    """A job's folder for best models, and what was reported."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.paths = JobPaths(folder)
        self.facts: list[dict[str, Any]] = []
        self.said: list[str | None] = []

    def keeper(self, **spec: Any) -> BestKeeper:
        return BestKeeper(self.paths, CheckpointSpec(**spec), self.facts.append)

    def train(
        self, keeper: BestKeeper, values: Iterable[float], metric: str = "val_loss", first: int = 0
    ) -> list[bool]:
        """Report a value an epoch (the step is ten times the epoch's number); tell which were the best."""
        said = [
            keeper.consider(n, 10 * n, {metric: value}, lambda n=n: small(10 * n, n), save_whole)  # type: ignore[misc]
            for n, value in enumerate(values, first)
        ]
        self.said += said
        return [line is not None for line in said]

    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.paths.best / RECORD).read_text()))

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [fact for fact in self.facts if fact["event"] == kind]

    def files(self) -> list[str]:
        return sorted(path.name for path in self.paths.best.iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "state")


def test_only_strict_improvements_are_saved_told_and_recorded(bench: Bench) -> None:
    best = bench.train(bench.keeper(), [0.5, 0.6, 0.4, 0.4, math.nan, 0.3])
    assert best == [True, False, True, False, False, True]
    assert (
        bench.said[2]
        == "Epoch 3: val_loss improved from 0.50000 to 0.40000, saving model to best/best.weights.h5"
    )
    told = [(fact["epoch"], fact["value"], fact["previous"]) for fact in bench.events("best")]
    assert told == [(0, 0.5, None), (2, 0.4, 0.5), (5, 0.3, 0.4)]
    assert {fact["path"] for fact in bench.facts} == {"best/best.weights.h5"}
    assert bench.files() == [RECORD, "best.weights.h5"]
    record = bench.record()
    assert (record["metric"], record["mode"], record["value"]) == ("val_loss", "min", 0.3)
    assert (record["epoch"], record["step"], record["file"]) == (5, 50, "best.weights.h5")


def test_the_best_is_a_checkpoint_that_names_itself(bench: Bench) -> None:
    bench.train(bench.keeper(), [0.5])
    path = bench.paths.best / "best.weights.h5"
    info = checkpoint.verify(path)
    assert (info.metric, info.mode, info.value) == ("val_loss", "min", 0.5)
    assert checkpoint.read(path).state["history"] == small().state["history"]


@pytest.mark.parametrize("name", ["best.weights.h5", "best.keras"])
def test_a_record_that_names_the_sha256_of_the_whole_file_is_taken_too(bench: Bench, name: str) -> None:
    """So were the records before the checkpoint's format 2."""
    bench.train(bench.keeper(best=name), [0.5])
    record, data = bench.record(), (bench.paths.best / name).read_bytes()
    del record["digest"]
    for content, kept in ((data, True), (data[:-1] + bytes([data[-1] ^ 1]), False)):
        (bench.paths.best / RECORD).write_text(
            json.dumps({**record, "sha256": hashlib.sha256(data).hexdigest()})
        )
        (bench.paths.best / name).write_bytes(content)
        found = bench.keeper(best=name)
        assert (found.best is not None) is kept


@pytest.mark.parametrize("name", ["best.weights.h5", "best.keras"])
@pytest.mark.parametrize("damage", [{"value": 0.05}, {"metric": "val_lnss"}, {"epoch": 3}, {"mode": "max"}])
def test_a_damaged_record_is_not_believed_where_the_model_says_otherwise(
    bench: Bench, name: str, damage: dict[str, Any]
) -> None:
    bench.train(bench.keeper(best=name), [0.5])
    (bench.paths.best / RECORD).write_text(json.dumps({**bench.record(), **damage}))
    keeper = bench.keeper(best=name)
    assert keeper.best is not None
    assert (keeper.best.metric, keeper.best.value, keeper.best.epoch) == ("val_loss", 0.5, 0)
    assert "the model is believed" in bench.events("quarantined")[0]["reason"]
    assert bench.record()["value"] == 0.5
    assert bench.train(keeper, [0.4], first=1) == [True]


def test_a_first_nan_is_never_best(bench: Bench) -> None:
    assert bench.train(bench.keeper(), [math.nan, math.inf, 0.9]) == [False, False, True]


def test_a_series_keeps_all(bench: Bench) -> None:
    bench.train(bench.keeper(best=SERIES, **ACCURACY), [0.5, 0.75, 0.6, 0.8], "val_accuracy")
    assert [name for name in bench.files() if name != RECORD] == [
        "weights-improvement-01-0.50.weights.h5",
        "weights-improvement-02-0.75.weights.h5",
        "weights-improvement-04-0.80.weights.h5",
    ]


def test_of_a_series_the_few_best_stay_whether_they_were_the_best_or_not(bench: Bench) -> None:
    spec = {"best": "w-{epoch:02d}.weights.h5", "best_keep": 3, **ACCURACY}
    keeper = bench.keeper(**spec)
    saved = bench.train(keeper, [0.5, 0.8, 0.6, 0.4, 0.7, 0.8, math.nan, 0.9], "val_accuracy")
    assert saved == [True, True, True, False, True, True, False, True]
    assert bench.files() == [RECORD, "w-02.weights.h5", "w-06.weights.h5", "w-08.weights.h5"]
    assert [fact["epoch"] for fact in bench.events("best")] == [0, 1, 7]
    assert [(fact["epoch"], fact["value"]) for fact in bench.events("runner-up")] == [
        (2, 0.6),
        (4, 0.7),
        (5, 0.8),
    ]
    assert bench.said[2] == "Epoch 3: val_accuracy is 0.60000, saving model to best/w-03.weights.h5"
    assert bench.record()["value"] == 0.9
    for name, value in (("w-02", 0.8), ("w-06", 0.8), ("w-08", 0.9)):
        assert checkpoint.verify(bench.paths.best / f"{name}.weights.h5").value == value
    # An older checkpoint is resumed, and the epochs after it run again: nothing changes.
    again = bench.keeper(**spec)
    assert bench.train(again, [0.6, 0.4, 0.7, 0.8], "val_accuracy", first=2) == [False] * 4
    assert bench.files() == [RECORD, "w-02.weights.h5", "w-06.weights.h5", "w-08.weights.h5"]


def test_the_best_model_is_never_thinned_out(bench: Bench) -> None:
    """Not even by one that claims to be better and was never recorded as the best."""
    spec = {"best": "w-{epoch:02d}.weights.h5", "best_keep": 1, **ACCURACY}
    keeper = bench.keeper(**spec)
    bench.train(keeper, [0.5], "val_accuracy")
    claims = {"metric": "val_accuracy", "mode": "max", "value": 0.95, "epoch": 7, "step": 70}
    state = {**small().state, "best": {**claims, "file": "other.weights.h5"}}
    path = bench.paths.best / "other.weights.h5"
    checkpoint.write(path, replace(small(70, 7), state=state), created=CREATED)
    assert bench.train(keeper, [0.6], "val_accuracy", first=1) == [True]
    assert "w-02.weights.h5" in bench.files()
    assert bench.record()["file"] == "w-02.weights.h5"


def test_a_runner_up_that_cannot_be_saved_is_told_and_ends_nothing(bench: Bench) -> None:
    keeper = bench.keeper(best="w-{epoch:02d}.weights.h5", best_keep=2, **ACCURACY)
    bench.train(keeper, [0.5], "val_accuracy")
    (bench.paths.best / "w-02.weights.h5").mkdir()
    assert bench.train(keeper, [0.4], "val_accuracy", first=1) == [False]
    assert [fact["path"] for fact in bench.events("save-failed")] == ["best/w-02.weights.h5"]


def test_a_resume_from_an_older_checkpoint_keeps_the_floor(bench: Bench) -> None:
    """The epochs after the checkpoint run again: neither the same values nor worse ones make a best."""
    values = [0.5, 0.4, 0.3, 0.35]
    bench.train(bench.keeper(), values)
    before = (bench.paths.best / "best.weights.h5").read_bytes()
    keeper = bench.keeper()
    assert keeper.best is not None
    assert keeper.best.value == 0.3
    assert bench.train(keeper, values[1:], first=1) == [False] * 3
    assert bench.train(keeper, [0.31, 0.29], first=4) == [False, True]
    assert (bench.paths.best / "best.weights.h5").read_bytes() != before
    assert len(bench.events("best")) == 4


@pytest.mark.parametrize("template", ["best.weights.h5", "best.keras", SERIES])
def test_killed_between_the_model_and_its_record(bench: Bench, template: str) -> None:
    """The model's file itself says what it is: it becomes the floor, and is told, once."""
    bench.train(bench.keeper(best=template, **ACCURACY), [0.5], "val_accuracy")
    old = (bench.paths.best / RECORD).read_bytes()
    bench.train(bench.keeper(best=template, **ACCURACY), [0.8], "val_accuracy", first=1)
    (bench.paths.best / RECORD).write_bytes(old)
    bench.facts.clear()

    keeper = bench.keeper(best=template, **ACCURACY)
    assert keeper.best is not None
    assert (keeper.best.value, keeper.best.step) == (0.8, 10)
    assert bench.record()["value"] == 0.8
    assert [fact["value"] for fact in bench.facts] == [0.8]
    assert bench.train(keeper, [0.8, 0.7], "val_accuracy", first=1) == [False, False]
    bench.keeper(best=template, **ACCURACY)
    assert len(bench.facts) == 1


def test_killed_before_the_first_record(bench: Bench) -> None:
    bench.train(bench.keeper(), [0.5])
    (bench.paths.best / RECORD).unlink()
    keeper = bench.keeper()
    assert keeper.best is not None
    assert keeper.best.value == bench.record()["value"] == 0.5


@pytest.mark.parametrize("template", ["best.weights.h5", "best.keras"])
def test_a_damaged_best_is_quarantined_and_no_longer_the_floor(bench: Bench, template: str) -> None:
    bench.train(bench.keeper(best=template), [0.1])
    path = bench.paths.best / template
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if template.endswith("h5") else 60] ^= 1
    path.write_bytes(data)
    keeper = bench.keeper(best=template)
    assert keeper.best is None
    assert len(bench.events("quarantined")) == 1
    assert not path.exists()
    assert bench.train(keeper, [0.9], first=1) == [True]


def test_a_best_that_is_gone_is_told_and_the_next_takes_its_place(bench: Bench) -> None:
    bench.train(bench.keeper(best=SERIES, **ACCURACY), [0.5, 0.7, 0.9], "val_accuracy")
    (bench.paths.best / "weights-improvement-03-0.90.weights.h5").unlink()
    keeper = bench.keeper(best=SERIES, **ACCURACY)
    assert keeper.best is not None
    assert keeper.best.value == 0.7
    assert "is gone" in bench.events("warning")[0]["message"]


def test_an_unreadable_record_is_quarantined_and_made_again(bench: Bench) -> None:
    bench.train(bench.keeper(), [0.5])
    for junk in (b"", b"[]", b"\xff", b'{"metric": "x"}', b"[" * 60_000):
        (bench.paths.best / RECORD).write_bytes(junk)
        keeper = bench.keeper()
        assert keeper.best is not None
        assert keeper.best.value == 0.5
        assert bench.record()["value"] == 0.5
    assert len(bench.events("quarantined")) == 5


def test_a_record_that_points_elsewhere_is_not_followed(bench: Bench) -> None:
    bench.train(bench.keeper(), [0.5])
    record = bench.record() | {"file": "../job.keras"}
    (bench.paths.best / RECORD).write_text(json.dumps(record))
    bench.keeper()
    assert bench.record()["file"] == "best.weights.h5"


def test_what_a_killed_writer_left_is_removed_and_nothing_else(bench: Bench) -> None:
    bench.train(bench.keeper(), [0.5])
    for name in (".best.keras.12-0a1b2c3d.tmp", "..best.keras.12-0a1b2c3d.tmp.4e5f6071.tmp"):
        (left := bench.paths.best / name).mkdir()
        (left / "model.keras").write_bytes(b"half")
    (bench.paths.best / ".best.weights.h5.12-0a1b2c3d.tmp").write_bytes(b"half")
    (bench.paths.best / "notes.txt").write_bytes(b"mine")
    bench.keeper()
    assert bench.files() == [RECORD, "best.weights.h5", "notes.txt"]


def test_a_whole_model_that_cannot_be_opened_again_is_not_emptied(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open

    def failing(path: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if mode == "r+b":
            raise OSError(28, "No space left on device")
        return real(path, mode, *more, **options)

    monkeypatch.setattr("io.open", failing)
    assert bench.train(bench.keeper(best="best.keras"), [0.5]) == [False]


def test_a_read_that_fails_for_a_moment_does_not_empty_a_whole_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = zipfile._EndRecData  # type: ignore[attr-defined]

    def failing(file: Any) -> Any:
        if file.mode == "rb+":
            raise OSError(5, "Input/output error")
        return really(file)

    keeper = bench.keeper(best="best.keras")
    bench.train(keeper, [0.5])
    with monkeypatch.context() as during:
        during.setattr(zipfile, "_EndRecData", failing)
        assert bench.train(keeper, [0.4], first=1) == [False]
    with zipfile.ZipFile(bench.paths.best / "best.keras") as archive:
        assert archive.namelist() == ["config.json", "metadata.json"]
    assert keeper.best is not None
    assert keeper.best.value == 0.5
    assert bench.train(keeper, [0.45], first=2) == [True]


def test_a_whole_model_is_verified_and_published_at_once(bench: Bench) -> None:
    assert bench.train(bench.keeper(best="best.keras"), [0.5, 0.4]) == [True, True]
    assert bench.files() == [RECORD, "best.keras"]
    with zipfile.ZipFile(bench.paths.best / "best.keras") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["config.json", "metadata.json"]


def refuse(path: Path) -> None:
    raise NotImplementedError("this layer has no get_config")


def half(path: Path) -> None:
    save_whole(path)
    with path.open("r+b") as file:
        file.truncate(100)


def nothing(path: Path) -> None:
    """Save nothing at all."""


def full(path: Path) -> None:
    path.write_bytes(b"x")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("save", [refuse, half, nothing, full])
def test_a_whole_model_that_fails_to_save_is_told_and_the_old_one_stays(bench: Bench, save: Any) -> None:
    keeper = bench.keeper(best="best.keras")
    bench.train(keeper, [0.5])
    before = (bench.paths.best / "best.keras").read_bytes()
    assert keeper.consider(1, 10, {"val_loss": 0.4}, small, save) is None
    assert bench.facts[-1]["event"] == "save-failed"
    assert (bench.paths.best / "best.keras").read_bytes() == before
    assert bench.files() == [RECORD, "best.keras"]
    assert keeper.best is not None
    assert keeper.best.value == 0.5
    assert bench.train(keeper, [0.45], first=2) == [True]


def test_a_record_that_cannot_be_written_is_written_at_the_next_epoch(bench: Bench) -> None:
    bench.paths.best.mkdir(parents=True)
    (bench.paths.best / RECORD).mkdir()  # the rename onto it fails
    keeper = bench.keeper()
    assert "cannot be read" in bench.facts.pop()["message"]
    assert bench.train(keeper, [0.5]) == [False]
    assert [fact["event"] for fact in bench.facts] == ["save-failed"]
    assert bench.train(keeper, [0.6], first=1) == [False]  # the floor holds already
    (bench.paths.best / RECORD).rmdir()
    assert bench.train(keeper, [0.7], first=2) == [False]
    assert bench.record()["value"] == 0.5
    assert [fact["event"] for fact in bench.facts] == ["save-failed", "best"]


def test_a_monitor_never_reported_gives_one_warning_that_lists_what_is(bench: Bench) -> None:
    keeper = bench.keeper(monitor="val_acuracy")
    bench.train(keeper, [0.5, 0.6, 0.7], "val_accuracy")
    (warning,) = bench.facts
    assert warning["event"] == "warning"
    assert warning["message"].endswith("'val_acuracy' is not reported; reported: val_accuracy")


def test_an_unknown_direction_and_an_unknown_field_are_told_once(bench: Bench) -> None:
    bench.train(bench.keeper(monitor="score"), [0.5, 0.6], "score")
    bench.train(bench.keeper(best="{val_f1:.2f}.keras"), [0.5, 0.4])
    assert [fact["event"] for fact in bench.facts] == ["warning", "warning"]
    assert bench.train(bench.keeper(monitor="score", mode=Mode.MAX), [0.5, 0.6], "score") == [True, True]


def test_without_a_monitor_val_loss_is_taken_and_else_loss(bench: Bench) -> None:
    keeper = bench.keeper()
    assert bench.train(keeper, [0.1], "loss") == [True]
    assert bench.train(keeper, [0.9], "val_loss", first=1) == [True]  # validation began: it decides
    assert bench.train(keeper, [0.0], "loss", first=2) == [False]  # an epoch without validation
    assert bench.train(keeper, [0.8], "val_loss", first=3) == [True]


def test_what_is_no_number_is_passed_over(bench: Bench) -> None:
    keeper = bench.keeper()
    assert keeper.consider(0, 1, {"val_loss": None, "x": "y", "loss": 0.5}, small, save_whole) is not None
    assert keeper.consider(1, 2, {}, small, save_whole) is None
    assert bench.record()["metric"] == "loss"


def test_keras_whole_model_is_loadable_and_compared_with_the_snapshot(bench: Bench) -> None:
    import keras
    import numpy as np

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    dense = {"w": np.asarray(model.layers[0].kernel), "b": np.asarray(model.layers[0].bias)}
    links = {"layers/dense/vars/0": "w", "layers/dense/vars/1": "b"}
    good = replace(small(), arrays=dense, links=links, attributes={})
    keeper = bench.keeper(best="best.keras")
    save = lambda path: model.save(str(path))  # noqa: E731
    assert keeper.consider(0, 1, {"loss": 0.5}, lambda: good, save) is not None
    loaded = keras.models.load_model(bench.paths.best / "best.keras")
    assert [a.tobytes() for a in loaded.get_weights()] == [dense["w"].tobytes(), dense["b"].tobytes()]

    other = replace(good, arrays={**dense, "w": dense["w"] + 1})
    assert keeper.consider(1, 2, {"loss": 0.4}, lambda: other, save) is None
    assert "'layers/dense/vars/0' is not what the model holds" in bench.facts[-1]["reason"]
