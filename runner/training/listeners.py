"""The state of a fit's callbacks: their attributes, and what the script's code in them can reach.

Captured are all attributes of each callback (History among them), the closure cells and the globals that the
script's own callback functions use, and how far their files are (`outputs`). All is put back in place, so
that the script's other names for the same list or dict keep seeing it. Objects whose Python code runs in the
training step (`stepcode`) are looked at likewise, as if they were callbacks.

What is reached is known by its name: globals that were made while training are made again, and what has no
counterpart is named.

Limits: a global array above 1 MiB that no function binds is taken for data and not captured. What cannot be
captured (an open file, a lock, a thread) is named in `missed`, and stays as the script made it; of globals
that are only read, no more than iterators, containers, files and objects of the script's own.
"""

from __future__ import annotations

import collections
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from runner.training import outputs, reach
from runner.training.codec import SKIP, Encoder, Node, encode_members
from runner.training.decode import Decoder
from runner.training.stepcode import Owner

#: What the script or Keras makes anew for each fit.
_NEVER = {"model", "_model", "params", "_params", "validation_data"}
_NEVER_OF = {
    "CSVLogger": {"csv_file", "writer", "append", "append_header"},
    "TensorBoard": {"_writers", "_prev_summary_state", "_summary_module", "_batch_trace_context"},
}


def capture(
    encoder: Encoder, callbacks: Sequence[Any], given_up: set[str]
) -> tuple[dict[str, Node], list[str]]:
    """Return the state of the callbacks and of what their code reaches; and what could not be captured.

    Args:
        encoder: takes the arrays.
        callbacks: all of the fit's, in order, and the owners of Python code in its step.
        given_up: names of what could not be captured before and is not tried again; grows.
    """
    missed: list[str] = []
    states = []
    for callback in callbacks:
        doubtful: dict[str, str] = {}
        nodes, failed = encode_members(encoder, _members(callback), doubtful)
        kind = _class_of(callback)
        states.append({"class": kind, "members": nodes, "file": outputs.place(callback)})
        if isinstance(callback, Owner):
            states[-1]["owner"] = True
        missed += [f"{kind}.{name} ({why})" for name, why in {**failed, **doubtful}.items()]
    reached = reach.by_name(reach.reached(_functions_of(callbacks)))
    names = list(reached)
    wanted = {name: place.value for name, place in reached.items()}
    absent = [name for name, value in wanted.items() if value is reach.ABSENT]
    doubtful = {}
    nodes, failed = encode_members(
        encoder,
        [
            (name, value)
            for name, value in wanted.items()
            if name not in given_up and value is not reach.ABSENT
        ],
        doubtful,
    )
    given_up.update(failed)
    missed += [f"{name} ({why})" for name, why in failed.items() if _is_state(reached[name])]
    missed += [f"{name} ({why})" for name, why in doubtful.items()]
    indexed = {str(names.index(name)): node for name, node in nodes.items()}
    return {"callbacks": states, "reached": indexed, "names": names, "absent": absent}, missed


def restore(decoder: Decoder, callbacks: Sequence[Any], state: dict[str, Node]) -> list[str]:
    """Put callbacks and what their code reaches back, in place; return what could not be put back.

    Raises:
        ValueError: the callbacks are not those that were captured.
    """
    saved = state["callbacks"]
    owned = [one["class"] for one in saved if one.get("owner")]
    if owned != [one.name for one in callbacks if isinstance(one, Owner)]:
        # The step has not run yet, or runs otherwise: what its code had is named below.
        saved = [one for one in saved if not one.get("owner")]
        callbacks = [one for one in callbacks if not isinstance(one, Owner)]
    present = [_class_of(callback) for callback in callbacks]
    if present != [one["class"] for one in saved]:
        raise ValueError(
            f"the script's callbacks are {', '.join(present)}; the checkpoint's {_names_of(saved)}"
        )
    lost: list[str] = []
    for callback, one in zip(callbacks, saved, strict=True):
        never = _never(callback)
        for name, node in one["members"].items():
            value = decoder.merge(_present(callback, name), node)
            if value is not SKIP and name not in never and not _is_code(callback, name):
                _put(callback, name, value)
            lost += _lost(decoder, f"{one['class']}.{name}")
    if len(saved) < len(state["callbacks"]):
        lost += [
            f"{one['class']} (its code does not run in the step now)"
            for one in state["callbacks"][len(saved) :]
        ]
    return lost + _restore_reached(decoder, callbacks, state)


def _restore_reached(decoder: Decoder, callbacks: Sequence[Any], state: dict[str, Node]) -> list[str]:
    """Put back what the callbacks' code reaches; what is put back may let it reach more."""
    lost: list[str] = []
    names = reach.each_once(state["names"])
    left = {names[int(index)]: node for index, node in state["reached"].items()}
    while True:
        places = reach.by_name(reach.reached(_functions_of(callbacks)))
        found = [name for name in left if name in places]
        if not found:
            break
        for name in found:
            value = decoder.merge(places[name].value, left.pop(name))
            if value is not SKIP:
                places[name].put(value)
            lost += _lost(decoder, name)
    for name in state.get("absent", ()):
        if name in places:
            places[name].clear()
    lost += [f"{name} (the script does not use it now)" for name in left]
    new = [name for name in places if name not in names and places[name].value is not reach.ABSENT]
    return lost + [f"{name} (the checkpoint does not have it)" for name in new]


def _lost(decoder: Decoder, name: str) -> list[str]:
    """Return what the decoder could not put back of one named value, and let it forget that."""
    lost = list(dict.fromkeys(decoder.lost))
    decoder.lost.clear()
    return [f"{name} ({', '.join(lost)})"] if lost else []


def _names_of(saved: Iterable[dict[str, Any]]) -> str:
    return ", ".join(one["class"] for one in saved)


def _never(callback: Any) -> set[str]:
    if isinstance(callback, Owner):
        return set()
    return _NEVER.union(*(_NEVER_OF.get(kind.__name__, ()) for kind in type(callback).__mro__))


def _is_code(callback: Any, name: str) -> bool:
    """Tell whether an attribute is what runs, which no file may replace."""
    kind = type(callback.value if isinstance(callback, Owner) else callback)
    return name.startswith("__") or callable(getattr(kind, name, None))


def _class_of(callback: Any) -> str:
    return callback.name if isinstance(callback, Owner) else type(callback).__name__


def _functions_of(callbacks: Iterable[Any]) -> Iterator[Any]:
    for one in callbacks:
        yield from one.functions() if isinstance(one, Owner) else reach.functions_of([one])


def _present(callback: Any, name: str) -> Any:
    if isinstance(callback, Owner):
        return dict(callback.members()).get(name)
    return getattr(callback, name, None)


def _put(callback: Any, name: str, value: Any) -> None:
    if isinstance(callback, Owner):
        callback.put(name, value)
    else:
        setattr(callback, name, value)


def _members(callback: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(callback, Owner):
        yield from callback.members()
        return
    if type(callback).__name__ == "ProgbarLogger":
        return
    never = _never(callback)
    for name, value in list(vars(callback).items()):
        if name not in never:
            yield name, value


def _is_state(place: reach.Place) -> bool:
    """Tell whether code is likely to change what cannot be captured: not a lock, a logger, a parser."""
    value = place.value
    if isinstance(value, io.IOBase):
        return not value.closed and value.writable() and value not in (sys.__stdout__, sys.__stderr__)
    return (
        place.is_bound
        or isinstance(value, (Iterator, dict, list, set, collections.deque))
        or type(value).__module__.startswith(("keras.", "tensorflow."))
        or reach.is_of_script_class(value)
    )
