"""Whether a fit can be resumed exactly from the middle of its data, and how: decided before it trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runner.core.exactness import Kind
from runner.training.datasets import (
    PYTHON_OPS,
    begins_anew,
    captured_variables,
    has_cache,
    is_distributed,
    is_unordered,
    operations,
    reshuffles,
    reshuffles_late,
    walk,
)
from runner.training.maker import Maker

_RANDOM_OPS = {
    "RandomUniform",
    "RandomUniformInt",
    "RandomStandardNormal",
    "TruncatedNormal",
    "ParameterizedTruncatedNormal",
    "RandomShuffle",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    "Multinomial",
    "RandomCrop",
    "SampleDistortedBoundingBox",
    "SampleDistortedBoundingBoxV2",
}
_NESTED_SHUFFLES = ("ShuffleDataset", "ShuffleAndRepeatDataset", "RandomDataset")


@dataclass(frozen=True)
class Exactness:
    """Whether a fit can be resumed exactly at any step, and why (not)."""

    exact: bool
    reason: str
    #: "skip" within TensorFlow, "pull" the present iterator batch by batch, "replay" all the iterators there
    #: were, or "epoch": only at an epoch's start.
    method: str

    @property
    def kind(self) -> Kind:
        """The same in a word."""
        if not self.exact:
            return Kind.NOT_EXACT
        return Kind.EXACT if self.method == "skip" else Kind.BY_REPLAY


def classify(adapter: Any, dataset: Any, distributed: bool, maker: Maker | None, flaw: str) -> Exactness:
    """Tell how exactly a fit over this data can be resumed.

    Args:
        adapter: Keras's data adapter of the fit.
        dataset: the dataset that Keras made of it.
        distributed: whether the model was made under a tf.distribute strategy.
        maker: what stands before the Python code that makes the data, where it does.
        flaw: why a place in the data cannot be reached again, whatever they are made of; "" where it can.
    """
    found = _classify_source(adapter, dataset, distributed, maker)
    return Exactness(False, flaw, "epoch") if flaw and found.exact else found


def _classify_source(adapter: Any, dataset: Any, distributed: bool, maker: Maker | None) -> Exactness:
    """Classify the data as if nobody else read them."""
    if distributed or is_distributed(dataset):
        return Exactness(False, "tf.distribute: resumed at the epoch's start", "epoch")
    kind = type(adapter).__name__
    if kind == "ArrayDataAdapter":
        return Exactness(True, "", "skip")
    if kind == "TFDatasetAdapter":
        return classify_dataset(dataset, maker)
    if maker is not None:
        return _classify_made(adapter)
    return Exactness(False, f"the data come from a {kind}: resumed at the epoch's start", "epoch")


def _classify_made(adapter: Any) -> Exactness:
    """Classify data that Python code makes."""
    if type(adapter).__name__ == "GeneratorDataAdapter":
        return Exactness(True, "by replay: a Python generator makes the data", "replay")
    if adapter.enqueuer is None or adapter.num_batches is not None:
        return Exactness(True, "by replay of the epoch: a PyDataset makes the data", "pull")
    reason = "the data come from an endless PyDataset with workers, which are ahead by chance"
    return Exactness(False, f"{reason}: resumed at the epoch's start", "epoch")


def classify_dataset(dataset: Any, maker: Maker | None = None) -> Exactness:
    """Tell how exactly a position in a tf.data dataset can be reached again."""
    found = [(one, op) for one in walk(dataset) for op in operations(one)]
    for one, op in found:
        refusal = _refusal(one, op)
        if refusal:
            return Exactness(False, f"{refusal}: resumed at the epoch's start", "epoch")
    if maker is None and any(op.op in PYTHON_OPS for _, op in found):
        return Exactness(False, "the dataset runs Python code: resumed at the epoch's start", "epoch")
    if not _is_deterministic(dataset):
        return Exactness(False, "the dataset's option deterministic is off", "epoch")
    unordered = next(filter(is_unordered, walk(dataset)), None)
    if unordered is not None:
        reason = "a map, batch or interleave of the dataset is given deterministic=False"
        return Exactness(False, f"{reason}: resumed at the epoch's start", "epoch")
    if reshuffles_late(dataset):
        # One iterator draws several orders, each when it gets there: those before the present are not known.
        reason = "by replay: a shuffle is begun anew within an epoch, by repeat or concatenate"
        return Exactness(True, reason, "replay")
    if maker is not None:
        return _classify_code(dataset, maker)
    if any(op.op in _RANDOM_OPS for _, op in found) or captured_variables(dataset):
        return Exactness(True, "by replay: the dataset draws random numbers", "pull")
    return Exactness(True, "", "skip")


def _classify_code(dataset: Any, maker: Maker) -> Exactness:
    """Classify a dataset that runs Python code."""
    if maker.opaque:
        reason = f"by replay: the dataset runs Python code whose state is hidden ({maker.opaque})"
        return Exactness(True, reason, "replay")
    if has_cache(dataset):
        return Exactness(True, "by replay: the dataset caches what Python code makes", "replay")
    return Exactness(True, "by replay of the epoch: the dataset runs Python code", "pull")


def flaw_of_step(operations: Iterable[Any]) -> str:
    """Say why a training step that Keras has traced is not the same after a resume; "" where it is.

    Operations like `tf.random.normal` keep a counter of their own, which nobody can read or set; Keras's
    layers use others.

    Args:
        operations: of the step.
    """
    drawn = next((op.op for op in operations if op.op in _RANDOM_OPS), None)
    return "" if drawn is None else f"the training step draws from {drawn}, whose state TensorFlow hides"


def flaw_of_validation(iterator: Any, maker: Maker | None) -> str:
    """Say why validation is not the same after a resume as without; "" where it is.

    Args:
        iterator: Keras's over the validation data; each validation opens a new one on the dataset.
        maker: as for `classify`.
    """
    kind, dataset = type(iterator.data_adapter).__name__, iterator._distributed_dataset
    if kind == "ArrayDataAdapter":
        return ""
    if kind in {"GeneratorDataAdapter", "PyDatasetAdapter"} and maker is not None:
        return ""
    if kind != "TFDatasetAdapter":
        return f"the validation data come from a {kind}, which may keep a state"
    return _flaw_of_dataset(dataset, iterator.steps_per_epoch, maker)


def _flaw_of_dataset(dataset: Any, steps: int | None, maker: Maker | None) -> str:
    exactness = classify_dataset(dataset, maker)
    if not exactness.exact:
        return f"the validation data: {exactness.reason}"
    if maker is not None and maker.opaque:
        return f"the validation data run Python code whose state is hidden ({maker.opaque})"
    if maker is not None and reshuffles_late(dataset):
        return "the validation data run Python code, and a shuffle is begun anew while they are read"
    if not steps or steps == int(dataset.cardinality()):
        return ""
    if any(map(begins_anew, walk(dataset))):
        return "the validation data are shuffled, then repeated: TensorFlow shuffles as it reads ahead"
    if maker is not None:
        return "the validation data run Python code, which TensorFlow reads ahead of what is asked for"
    cached = (one for one in walk(dataset) if "Cache" in type(one).__name__)
    if any(map(reshuffles, cached)):
        return "the validation data are shuffled, then cached, and validation does not read all of them"
    return ""


def _refusal(dataset: Any, op: Any) -> str | None:
    """Say why an operation inside a dataset's function cannot be resumed exactly."""
    parallel = "Parallel" in type(dataset).__name__ or "MapAndBatch" in type(dataset).__name__
    if op.op in _RANDOM_OPS:
        if op.attr["seed"].i == 0 and op.attr["seed2"].i == 0:
            return f"{op.op} in the dataset has no seed"
        if parallel:
            return f"{op.op} in a parallel map is not reproducible, even undisturbed"
    if parallel and op.op in {"RngReadAndSkip", "StatefulUniform", "StatefulStandardNormalV2"}:
        return "a random generator in a parallel map is not reproducible, even undisturbed"
    if parallel and op.op.startswith("Assign") and op.op.endswith("VariableOp"):
        return (
            "a variable (a layer's seed, say) changes in a parallel map: not reproducible, even undisturbed"
        )
    if op.op.startswith(_NESTED_SHUFFLES):
        return "a shuffle inside a dataset's function"
    return None


def _is_deterministic(dataset: Any) -> bool:
    options = dataset.options()
    return options.deterministic is not False
