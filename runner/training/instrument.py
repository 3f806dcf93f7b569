"""Where Keras is taken hold of: after the script has imported it, once, and only if it looks as expected.

What is relied on (`places`) is that of Keras 3 on TensorFlow, 3.10 and later (`make versions`). It is checked
before anything is touched. With a Keras that looks different a fit is resumed at the beginning of an epoch
(`fallback`), and a warning says so. Another backend or the legacy Keras 2 is left alone: the script trains as
without the runner, and a warning says that it has no checkpoints.

Nothing that is put here shows in `history.params`, in the script's list of callbacks, or in what `fit`
returns.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from runner.training import imports, ownloops, places, raised
from runner.training.worker import Worker


def arrange(worker: Worker) -> None:
    """Instrument Keras when the script has imported it."""
    imports.after("keras", functools.partial(_on_keras, worker))
    imports.after("tf_keras", functools.partial(_on_legacy, worker))


def _on_legacy(worker: Worker, _module: ModuleType) -> None:
    _leave_alone(worker, "this is Keras 2 (tf_keras): no checkpoints; use Keras 3, or runner.attach")


def _leave_alone(worker: Worker, why: str) -> None:
    worker.facts.warn(why, unwatched=True)


def _on_keras(worker: Worker, keras: ModuleType) -> None:
    worker.phase("build", tell=True)
    backend = keras.config.backend()
    if backend != "tensorflow":
        _leave_alone(worker, f"Keras runs on {backend}: no checkpoints; they need its TensorFlow backend")
        return
    from runner.training import fallback  # it needs NumPy, which the script imports

    why = _hindrance(keras)
    if why and worker.launch.rehearse:
        _leave_alone(worker, f"{why}: a fit is resumed at the beginning of an epoch only")
        return
    if worker.hot is not None and worker.hot.waits:
        if why:
            worker.hot.give_up(why)
        worker.prepare_to_settle()
    else:
        worker.find_saved()
    if not why and fallback.has_begun(worker):
        why = "the job was begun with a Keras that resumes at the beginning of an epoch only"
    if why:
        fallback.arrange(worker, keras, why)
        return
    _patch_iterators(worker)
    _patch_arrays(worker)
    _patch_makers(worker)
    _patch_callbacks(worker)
    _patch_fit(worker)
    if worker.launch.rehearse:
        from runner.training import rehearsal

        rehearsal.install(worker, _wrap)
    else:
        ownloops.install(worker, _wrap)


def _hindrance(keras: ModuleType) -> str:
    """Say why this Keras cannot be resumed exactly; "" where it can."""
    missing = places.missing()
    version = getattr(keras, "__version__", "of unknown version")
    return f"Keras {version} lacks {', '.join(missing)}" if missing else ""


def _patch_iterators(worker: Worker) -> None:
    import tensorflow as tf
    from keras.src.backend.tensorflow.trainer import TFEpochIterator
    from keras.src.trainers.epoch_iterator import EpochIterator

    def init(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
        fit = worker.fit
        if fit is None or fit.iterator_in_the_making:
            # A generator is asked for its first batches in here, and may itself have a model predict.
            original(self, *args, **kwargs)
            _show_to_warmup(worker, self)
            return
        fit.iterator_in_the_making = True
        try:
            original(self, *args, **kwargs)
        finally:
            fit.iterator_in_the_making = False
        fit.adopt_iterator(self)

    def get_iterator(original: Callable[..., Any], self: Any) -> Any:
        dataset, fit = original(self), worker.fit
        if fit is None or not isinstance(dataset, tf.data.Dataset):
            return dataset
        if fit.iterator is self:
            return fit.position.counted(dataset)
        for validated in _validating(worker, self):
            dataset = validated.count_validation(self, dataset)
        return dataset

    def enumerate_iterator(original: Callable[[Any], Iterator[Any]], self: Any) -> Iterator[Any]:
        fit = worker.fit
        if fit is not None and fit.iterator is self:
            return fit.steps(original)
        for validated in _validating(worker, self):
            validated.validation.adopt(self)
        return _ticking(worker, original(self))

    _wrap(TFEpochIterator, "__init__", init)
    _wrap(TFEpochIterator, "_get_iterator", get_iterator)
    _wrap(EpochIterator, "_enumerate_iterator", enumerate_iterator)


def _show_to_warmup(worker: Worker, iterator: Any) -> None:
    if worker.hot is not None:
        worker.hot.warmup.saw(iterator)


def _patch_arrays(worker: Worker) -> None:
    import tensorflow as tf
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
    from tensorflow.python.eager import context

    def get_tf_dataset(original: Callable[[Any], Any], self: Any) -> Any:
        fit = worker.fit
        if fit is None or fit.iterator is not None or not self._shuffle or context.global_seed() is not None:
            return original(self)
        shuffle = tf.random.shuffle
        tf.random.shuffle = fit.shuffle_arrays(tf, within_batches=self._shuffle == "batch")
        try:
            return original(self)
        finally:
            tf.random.shuffle = shuffle

    _wrap(ArrayDataAdapter, "get_tf_dataset", get_tf_dataset)


def _ticking(worker: Worker, steps: Iterator[Any]) -> Iterator[Any]:
    """Show that evaluating, predicting and validating get on."""
    for item in steps:
        worker.progress.set()
        yield item


def _validating(worker: Worker, iterator: Any) -> list[Any]:
    """Return the fit that validates with an epoch iterator of Keras's, where one does."""
    fit = worker.fit
    mine = fit is not None and getattr(fit.model, "_eval_epoch_iterator", None) is iterator
    return [fit] if mine else []


def _patch_makers(worker: Worker) -> None:
    from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    def generator_init(original: Callable[..., None], self: Any, generator: Any) -> None:
        maker = _maker_of(worker, generator)
        if maker is None:
            return original(self, generator)
        with maker.peeking():
            original(self, maker.read_ahead(generator))
        self.generator = maker.watched(self.generator)
        return None

    def py_dataset_init(original: Callable[..., None], self: Any, x: Any, *args: Any, **kwargs: Any) -> None:
        original(self, x, *args, **kwargs)
        threaded = self.enqueuer is not None
        maker = _maker_of(worker, x, threaded=threaded)
        if maker is not None:
            self._get_iterator = maker.watched(self._get_iterator)

    _wrap(GeneratorDataAdapter, "__init__", generator_init)
    _wrap(PyDatasetAdapter, "__init__", py_dataset_init)


def _maker_of(worker: Worker, source: Any, *, threaded: bool = False) -> Any:
    fit = worker.fit
    if fit is None:
        return None
    return fit.makers.of(source, training=fit.iterator is not None, threaded=threaded)


def _patch_callbacks(worker: Worker) -> None:
    from keras.src.callbacks.callback_list import CallbackList

    def ours(listeners: Any) -> list[Any]:
        """Return the fit that these callbacks belong to, if it is the one that runs."""
        fit = worker.fit
        return [fit] if fit is not None and fit.listeners is listeners else []

    def before(notice: str) -> Callable[..., None]:
        def hook(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
            for fit in ours(self):
                getattr(fit, notice)(*args, **kwargs)
            original(self, *args, **kwargs)

        return hook

    def after(notice: str) -> Callable[..., None]:
        def hook(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            for fit in ours(self):
                getattr(fit, notice)(*args, **kwargs)

        return hook

    def train_batch_ended(original: Callable[..., None], self: Any, batch: int, logs: Any = None) -> None:
        fit = worker.fit
        if fit is not None and fit.listeners is self:
            fit.step_ended(logs)
        original(self, batch, logs)

    _wrap(CallbackList, "on_train_begin", functools.partial(_begin_training, worker))
    _wrap(CallbackList, "on_train_batch_end", train_batch_ended)
    _wrap(CallbackList, "on_epoch_begin", before("epoch_began"))
    _wrap(CallbackList, "on_epoch_end", after("epoch_ended"))
    _wrap(CallbackList, "on_test_begin", before("test_began"))
    _wrap(CallbackList, "on_test_end", after("test_ended"))


def _begin_training(worker: Worker, original: Callable[..., None], self: Any, logs: Any = None) -> None:
    fit = worker.fit
    if worker.hot is not None:
        worker.hot.warmup.leave()
    if fit is None or fit.listeners is not None or self._model is not fit.model:
        return original(self, logs)
    switched = fit.before_train_begin(self)
    original(self, logs)
    for callback in switched:
        callback.append = False
    return fit.after_train_begin()


def _patch_fit(worker: Worker) -> None:
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
    from keras.src.trainers.trainer import Trainer

    from runner.training import finished
    from runner.training.fitting import Fit

    signature = inspect.signature(TensorFlowTrainer.fit)

    def fit(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        if worker.fit is not None or worker.looping:
            return original(self, *args, **kwargs)  # a fit inside a fit or a loop belongs to the outer's step
        arguments = _arguments(signature, self, *args, **kwargs)
        if worker.hot is not None:
            worker.hot.stand_by(worker, functools.partial(worker.hot.warmup.run, original, self, arguments))
        number = worker.fits
        worker.fits += 1
        done = finished.load(worker, number)
        if done is not None and finished.still_holds(worker, number, done, arguments):
            worker.restoring = True
            try:
                return finished.restore(worker, self, number, done, arguments)
            finally:
                worker.restoring = False
        saved = worker.saved
        mine = saved is not None and saved.state.get("kind") == "fit" and saved.state["fit"] == number
        kind: Any = Fit
        if worker.launch.rehearse:
            from runner.training.rehearsal import Rehearsal as kind  # noqa: N813 - one of the two kinds
        running = kind(worker, self, number, saved if mine else None, arguments)
        worker.fit = running
        try:
            with raised.noticed(worker):
                history = original(self, *args, **kwargs)
                running.finish()
        finally:
            worker.fit = None
            running.close()
        return history

    def get_metrics_result_or_logs(original: Callable[..., Any], self: Any, logs: Any) -> Any:
        running = worker.fit
        if running is not None and running.model is self and running.end_logs is not None and logs == {}:
            logs = running.end_logs
        if running is not None and running.model is self:
            running.end_logs = None
        return original(self, logs)

    _wrap(TensorFlowTrainer, "fit", fit)
    _wrap(Trainer, "_get_metrics_result_or_logs", get_metrics_result_or_logs)


def _arguments(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return a call's arguments by name; a call that is wrong is left for Keras to refuse."""
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError:
        return {}


def _wrap(kind: type, name: str, around: Callable[..., Any]) -> None:
    """Put `around` over a method; it is given the original first, and looks like it from outside."""
    original = getattr(kind, name)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(kind, name, method)
