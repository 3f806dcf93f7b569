"""The state of a fit's callbacks: their attributes, and what the script's code in them can reach.

Captured are all attributes of each callback (History among them), the closure cells and the globals that the
script's own callback functions use, and how far their files are (`outputs`). All is put back in place, so
that the script's other names for the same list or dict keep seeing it.

Limits: a global array above 1 MiB is taken for data and not captured. What cannot be captured (an open file,
a lock, a thread) is named in `missed`, and stays as the script made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from runner.training import outputs, reach
from runner.training.codec import SKIP, Encoder, Node, encode_members
from runner.training.decode import Decoder

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
        callbacks: all of the fit's, in order.
        given_up: names of what could not be captured before and is not tried again; grows.
    """
    missed: list[str] = []
    states = []
    for callback in callbacks:
        doubtful: dict[str, str] = {}
        nodes, failed = encode_members(encoder, _members(callback), doubtful)
        states.append({"class": type(callback).__name__, "members": nodes, "file": outputs.place(callback)})
        missed += [
            f"{type(callback).__name__}.{name} ({why})" for name, why in {**failed, **doubtful}.items()
        ]
    reached = list(reach.reached(reach.functions_of(callbacks)))
    wanted = [(str(i), place.value) for i, place in enumerate(reached) if place.name not in given_up]
    doubtful = {}
    nodes, failed = encode_members(encoder, wanted, doubtful)
    given_up.update(reached[int(i)].name for i in failed)
    missed += [f"{reached[int(i)].name} ({why})" for i, why in failed.items() if reached[int(i)].is_cell]
    missed += [f"{reached[int(i)].name} ({why})" for i, why in doubtful.items()]
    names = [place.name for place in reached]
    return {"callbacks": states, "reached": nodes, "names": names}, missed


def restore(decoder: Decoder, callbacks: Sequence[Any], state: dict[str, Node]) -> list[str]:
    """Put callbacks and what their code reaches back, in place; return what could not be put back.

    Raises:
        ValueError: the callbacks are not those that were captured.
    """
    saved = state["callbacks"]
    present = [type(callback).__name__ for callback in callbacks]
    if present != [one["class"] for one in saved]:
        raise ValueError(
            f"the script's callbacks are {', '.join(present)}; the checkpoint's {_names_of(saved)}"
        )
    lost: list[str] = []
    for callback, one in zip(callbacks, saved, strict=True):
        never = _never(callback)
        for name, node in one["members"].items():
            value = decoder.merge(getattr(callback, name, None), node)
            if value is not SKIP and name not in never:
                setattr(callback, name, value)
            lost += _lost(decoder, f"{one['class']}.{name}")
    reached = list(reach.reached(reach.functions_of(callbacks)))
    if [place.name for place in reached] != state["names"]:
        raise ValueError("the functions of the script's callbacks use other names than in the checkpoint")
    for index, node in state["reached"].items():
        place = reached[int(index)]
        value = decoder.merge(place.value, node)
        if value is not SKIP:
            place.put(value)
        lost += _lost(decoder, place.name)
    return lost


def _lost(decoder: Decoder, name: str) -> list[str]:
    """Return what the decoder could not put back of one named value, and let it forget that."""
    lost, decoder.lost = decoder.lost, []
    return [f"{name} ({', '.join(dict.fromkeys(lost))})"] if lost else []


def _names_of(saved: Iterable[dict[str, Any]]) -> str:
    return ", ".join(one["class"] for one in saved)


def _never(callback: Any) -> set[str]:
    return _NEVER.union(*(_NEVER_OF.get(kind.__name__, ()) for kind in type(callback).__mro__))


def _members(callback: Any) -> Iterator[tuple[str, Any]]:
    if type(callback).__name__ == "ProgbarLogger":
        return
    never = _never(callback)
    for name, value in list(vars(callback).items()):
        if name not in never:
            yield name, value
