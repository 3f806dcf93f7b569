"""Values that are held for another thread to copy: nothing that training does meanwhile changes them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runner.training import held, reach
from runner.training.aside import Aside
from runner.training.capture import Camera
from runner.training.entropy import Entropy
from runner.training.held import Values
from runner.training.variables import Reader, all_variables

ROWS = 1000


def dense(tf: Any, variable: Any) -> None:
    variable.assign_add(tf.ones_like(variable))


def sparse(tf: Any, variable: Any) -> None:
    variable.scatter_add(tf.IndexedSlices(tf.ones((1, 4)), tf.constant([3])))


def compiled(tf: Any, variable: Any) -> None:
    tf.function(lambda: variable.assign_sub(tf.ones_like(variable)))()


def by_xla(tf: Any, variable: Any) -> None:
    tf.function(lambda: variable.assign_add(tf.ones_like(variable)), jit_compile=True)()


def fused(tf: Any, variable: Any) -> None:
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=1.0, delta=tf.ones_like(variable))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("update", [dense, sparse, compiled, by_xla, fused])
def test_what_is_held_stays_as_it_was(update: Callable[[Any, Any], None], at_once: bool) -> None:
    import tensorflow as tf

    variables = [tf.Variable(np.full((ROWS, 4), number, np.float32)) for number in range(3)]
    for variable in variables:
        update(tf, variable)  # one that has been updated sparsely is read in another way from then on
    reader = Reader(variables)
    if not at_once:
        reader.hold._read = None
    before = [variable.numpy() for variable in variables]
    tensors = reader.hold()
    assert (reader.hold._read is not None) is at_once
    for _ in range(3):
        for variable in variables:
            update(tf, variable)
    assert all(map(np.array_equal, before, map(held.array_of, tensors)))
    assert not any(map(np.array_equal, before, (variable.numpy() for variable in variables)))


def test_without_that_operation_variables_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    variables = [tf.Variable(1.0), tf.Variable(2)]
    reader = Reader(variables)
    kinds = [variable.dtype.base_dtype for variable in variables]
    with monkeypatch.context() as patch:
        patch.setattr(held, "_NAME", b"_NoSuchOp")
        assert [float(tensor) for tensor in reader.hold()] == [1.0, 2.0]
    assert reader.hold._read is None
    assert [tensor.dtype for tensor in reader.hold()] == kinds


def test_variables_that_one_operation_cannot_read_are_read_one_by_one() -> None:
    import tensorflow as tf

    variables = [tf.Variable(1.0), tf.Variable(2)]
    reader = Reader(variables)
    reader.hold._handles = [(variables[0], variables[0].handle), (variables[1], None)]
    reader.hold._read = held._operation(reader.hold._handles)
    assert reader.hold._read is None
    assert [float(tensor) for tensor in reader.hold()] == [1.0, 2.0]


class Scene:
    """A model that is trained, and its camera."""

    def __init__(self) -> None:
        import keras

        self.model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        self.model.compile("adam", "mse")
        self.model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        self.camera = Camera(self.model, Entropy(1))

    def take(self, values: Values) -> Any:
        return self.camera.take(step=1, epoch=0, callbacks=[], logs=None, state={}, values=values)


def test_what_was_held_is_developed_to_what_was_copied() -> None:
    scene = Scene()
    copied, held_one = scene.take(Values.COPIED), scene.take(Values.HELD)
    scene.model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert scene.camera.develop(held_one)
    assert list(held_one.arrays) == list(copied.arrays)
    for name, array in copied.arrays.items():
        assert isinstance(held_one.arrays[name], np.ndarray)
        assert array.dtype == held_one.arrays[name].dtype
        assert array.tobytes() == held_one.arrays[name].tobytes()
    assert (held_one.state, held_one.links, held_one.attributes) == (
        copied.state,
        copied.links,
        copied.attributes,
    )


def test_variables_that_came_meanwhile_are_noticed_before_anything_is_kept() -> None:
    import tensorflow as tf

    scene = Scene()
    scene.take(Values.HELD)
    scene.model.layers[0].more = tf.Variable(5.0)
    late = scene.take(Values.HELD)
    assert not scene.camera.develop(late), "a variable is missing in it"
    again = scene.take(Values.HELD)
    assert scene.camera.develop(again)
    assert (
        len(again.state["variables"]) == len(all_variables(scene.model)) == len(late.state["variables"]) + 1
    )


def test_variables_that_were_found_meanwhile_are_no_part_of_what_is_held() -> None:
    import tensorflow as tf

    scene = Scene()
    scene.take(Values.HELD)
    late = scene.take(Values.HELD)
    scene.model.layers[0].more = tf.Variable(5.0)
    scene.camera.portrait(step=1, epoch=0, lend=lambda _: None)
    assert not scene.camera.develop(late)
    assert scene.camera.develop(scene.take(Values.HELD))


def test_a_function_that_a_class_is_given_later_is_seen() -> None:
    class Plain:
        pass

    Plain.__qualname__ = "Plain_of_this_test"
    globals()[Plain.__qualname__] = Plain  # it lives as long as its module, as most do
    one = Plain()
    assert list(reach.functions_of([one])) == []
    assert Plain in reach._looked_at
    Plain.later = lambda self: self  # type: ignore[attr-defined]
    assert list(reach.functions_of([one])) == [vars(Plain)["later"]]
    Plain.later = lambda self: (self, self)  # type: ignore[attr-defined]
    assert list(reach.functions_of([one])) == [vars(Plain)["later"]]


def test_a_class_that_ends_is_not_kept_by_having_been_looked_at() -> None:
    import gc
    import weakref

    class Passing:
        def method(self) -> None:
            pass

    assert Passing.method in reach.functions_of([Passing()])
    gone = weakref.ref(Passing)
    del Passing
    gc.collect()
    assert gone() is None


def test_one_thing_is_done_at_a_time() -> None:
    aside, go, done = Aside("test", print), threading.Event(), []
    aside.begin(lambda: go.wait() and done.append(1))
    assert aside.busy
    go.set()
    aside.begin(lambda: done.append(2))
    aside.settle()
    assert done == [1, 2]
    assert not aside.busy


def test_what_fails_aside_is_told_and_the_next_is_done() -> None:
    failures: list[Exception] = []
    aside, done = Aside("test", failures.append), []
    aside.begin(lambda: 1 / 0)
    aside.begin(lambda: done.append(1))
    aside.settle()
    assert done == [1]
    assert [type(error) for error in failures] == [ZeroDivisionError]


def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not() -> None:
    aside, go = Aside("test", print), threading.Event()
    aside.begin(go.wait)
    pid = os.fork()
    if pid == 0:
        aside.settle()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert aside.busy
    go.set()
    aside.settle()
