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

from collections.abc import Iterable, Sequence, Set
from typing import Any

from runner.training import outputs, reach
from runner.training.codec import SKIP, Encoder, Node, encode_members
from runner.training.decode import Decoder
from runner.training.holders import Holder

#: What the script or Keras makes anew for each fit.
_NEVER = {"model", "_model", "params", "_params", "validation_data"}
_NEVER_OF = {
    "CSVLogger": {"csv_file", "writer", "append", "append_header"},
    "TensorBoard": {"_writers", "_prev_summary_state", "_summary_module", "_batch_trace_context"},
}


class Listener(Holder):
    """A callback."""

    def __init__(self, value: Any):
        super().__init__(value)
        self._never = _NEVER.union(*(_NEVER_OF.get(kind.__name__, ()) for kind in type(value).__mro__))

    def members(self) -> Iterable[tuple[str, Any]]:
        """Return the attributes that are captured, by name."""
        if self.name == "ProgbarLogger":
            return []
        return [(name, value) for name, value in vars(self.value).items() if name not in self._never]

    def place(self) -> Node:
        """Return how far its files are; None where it has none."""
        return outputs.place(self.value)

    def _put(self, name: str, value: Any) -> None:
        if name not in self._never:
            setattr(self.value, name, value)


def capture(
    encoder: Encoder, holders: Sequence[Holder], given_up: set[str]
) -> tuple[dict[str, Node], list[str]]:
    """Return the state of the callbacks and of what their code reaches; and what could not be captured.

    Args:
        encoder: takes the arrays.
        holders: all of the fit's callbacks, in order, and the owners of Python code in its step.
        given_up: names of what could not be captured before and is not tried again; grows.
    """
    missed: list[str] = []
    states = []
    for holder in holders:
        doubtful: dict[str, str] = {}
        nodes, failed = encode_members(encoder, holder.members(), doubtful)
        states.append(
            {"class": holder.name, "members": nodes, "file": holder.place(), "of_step": holder.of_step}
        )
        missed += [f"{holder.name}.{name} ({why})" for name, why in {**failed, **doubtful}.items()]
    reached = _reached(holders)
    wanted = {name: place.value for name, place in reached.items()}
    absent = [name for name, value in wanted.items() if value is reach.ABSENT]
    left_out, doubtful = {*given_up, *absent}, {}
    tried = [(name, value) for name, value in wanted.items() if name not in left_out]
    nodes, failed = encode_members(encoder, tried, doubtful)
    given_up.update(failed)
    missed += [f"{name} ({why})" for name, why in failed.items() if reach.is_state(reached[name])]
    missed += [f"{name} ({why})" for name, why in doubtful.items()]
    indexed = {str(index): nodes[name] for index, name in enumerate(reached) if name in nodes}
    return {"callbacks": states, "reached": indexed, "names": list(reached), "absent": absent}, missed


def values(holders: Sequence[Holder]) -> dict[str, Any]:
    """Return all that is captured, but for files, by the names that `restore` knows it by."""
    members = {
        _name_of(index, holder, name): value
        for index, holder in enumerate(holders)
        for name, value in holder.members()
    }
    return members | {name: place.value for name, place in _reached(holders).items()}


def _name_of(index: int, holder: Holder, member: str) -> str:
    return f"{holder.name}.{member} (callback {index})"


def restore(
    decoder: Decoder, holders: Sequence[Holder], state: dict[str, Node], leave: Set[str] = frozenset()
) -> list[str]:
    """Put callbacks and what their code reaches back, in place; return what could not be put back.

    Args:
        decoder: of the arrays.
        holders: as they were given to `capture`.
        state: from there.
        leave: names, as `values` has them, of what is left as it is.

    Raises:
        ValueError: the callbacks are not those that were captured.
    """
    saved, left_out = state["callbacks"], []
    steps_own = [one["class"] for one in saved if one.get("of_step")]
    if steps_own != [one.name for one in holders if one.of_step]:
        # The step has not run yet, or runs otherwise.
        left_out = [f"{name} (its code does not run in the step now)" for name in steps_own]
        saved = [one for one in saved if not one.get("of_step")]
        holders = [one for one in holders if not one.of_step]
    before, present = [one["class"] for one in saved], [one.name for one in holders]
    if present != before:
        raise ValueError(
            f"the script's callbacks are {', '.join(present)}; the checkpoint's {', '.join(before)}"
        )
    lost: list[str] = []
    for index, (holder, one) in enumerate(zip(holders, saved, strict=True)):
        members = dict(holder.members())
        for name, node in one["members"].items():
            if _name_of(index, holder, name) in leave:
                continue
            value = decoder.merge(members.get(name), node)
            if value is not SKIP:
                holder.put(name, value)
            lost += _lost(decoder, f"{holder.name}.{name}")
    return lost + left_out + _restore_reached(decoder, holders, state, leave)


def _restore_reached(
    decoder: Decoder, holders: Sequence[Holder], state: dict[str, Node], leave: Set[str]
) -> list[str]:
    """Put back what the callbacks' code reaches; what is put back may let it reach more."""
    lost: list[str] = []
    names = reach.each_once(state["names"])
    left = {names[int(index)]: node for index, node in state["reached"].items()}
    left = {name: node for name, node in left.items() if name not in leave}
    while True:
        places = _reached(holders)
        found = [name for name in left if name in places]
        if not found:
            break
        for name in found:
            value = decoder.merge(places[name].value, left.pop(name))
            lost += _lost(decoder, name)
            if value is not SKIP:
                try:
                    places[name].put(value)
                except (AttributeError, TypeError) as reason:  # a class may refuse it
                    lost.append(f"{name} ({reason})")
    for name in state.get("absent", ()):
        if name in places and name not in leave:
            places[name].clear()
    lost += [f"{name} (the script does not use it now)" for name in left]
    known = {*names, *leave}
    new = [name for name in places if name not in known and places[name].value is not reach.ABSENT]
    return lost + [f"{name} (the checkpoint does not have it)" for name in new]


def _reached(holders: Iterable[Holder]) -> dict[str, reach.Place]:
    """Return the places that the code of these can change by their names."""
    functions = [function for one in holders for function in one.functions()]
    classes = [kind for one in holders for kind in one.classes()]
    return reach.by_name(reach.reached(functions, classes))


def _lost(decoder: Decoder, name: str) -> list[str]:
    """Return what the decoder could not put back of one named value, and let it forget that."""
    lost = list(dict.fromkeys(decoder.lost))
    decoder.lost.clear()
    return [f"{name} ({', '.join(lost)})"] if lost else []
