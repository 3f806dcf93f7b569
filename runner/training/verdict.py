"""How one fit can be resumed: the verdict on its data, its step and its validation, and each later doubt.

A verdict is told once (`Worker.classify`). It only ever becomes worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.core.exactness import Kind
from runner.storage.checkpoint import Snapshot
from runner.training import fingerprint
from runner.training.classify import Exactness, classify, flaw_of_validation
from runner.training.maker import Maker
from runner.training.makers import Makers
from runner.training.worker import Worker


class Verdict:
    """On one call of `fit`."""

    def __init__(self, worker: Worker, number: int):
        """Begin without one.

        Args:
            worker: this process's.
            number: which call of `fit`, from 0.
        """
        self._worker = worker
        self._number = number
        self._exactness: Exactness | None = None
        self.flaw: str | None = None  #: of validation, once it is known; "" where there is none

    @property
    def method(self) -> str:
        """How the data are skipped at a resume; "epoch" where nobody knows yet."""
        return self._exactness.method if self._exactness is not None else "epoch"

    @property
    def by_replay(self) -> bool:
        """Whether a resume reads data again."""
        return self._exactness is not None and self._exactness.kind is Kind.BY_REPLAY

    @property
    def within_epochs(self) -> bool:
        """Whether the fit can be resumed within an epoch."""
        return self.method != "epoch"

    def examine(self, model: Any, iterator: Any, makers: Makers) -> Exactness:
        """Return what the verdict will be, by the training data; nothing is settled yet."""
        distributed = getattr(model, "_distribute_strategy", None) is not None
        maker = makers.look_into(iterator, training=True)
        dataset, flaw = iterator._distributed_dataset, makers.flaw()
        return classify(iterator.data_adapter, dataset, distributed, maker, flaw)

    def settle(self, exactness: Exactness) -> None:
        """Tell how the fit can be resumed, from now on."""
        self._exactness = exactness
        self._worker.classify(self._number, exactness.kind, exactness.reason)

    def settle_unseen(self) -> None:
        """Settle what is not yet: the data could not be looked at."""
        if self._exactness is None:
            self.settle(Exactness(False, "its data could not be looked at", "epoch"))

    def doubt(self, reason: str, method: str | None = None) -> None:
        """Note that the fit cannot be resumed exactly, where `reason` says why.

        Args:
            reason: in words; "" where there is none.
            method: how to skip from now on; None: as before.
        """
        if reason and self._exactness is not None and self._exactness.exact:
            self.settle(Exactness(False, reason, method or self._exactness.method))

    def look_again(self, makers: Makers) -> None:
        """Notice that the data are not what they were taken for."""
        if self._exactness is not None and self._exactness.exact:
            self.doubt(makers.flaw(), "epoch")
        self.doubt("; ".join(self._worker.tell_lost(self._number, makers.lost())))

    def judge_validation(self, iterator: Any, maker: Maker | None) -> None:
        """Say where a resume is not exact because of the validation data."""
        if self.flaw is None:
            self.flaw = flaw_of_validation(iterator, maker)
            if self.flaw:
                self._worker.classify(self._number, Kind.NOT_EXACT, self.flaw)

    def reasons(self, saved: Snapshot, present: Mapping[str, Any], lost: Sequence[str]) -> list[str]:
        """Return why the resume that has just been made is not exact, if it is not.

        Args:
            saved: what was resumed from.
            present: the fingerprint of the script and its data now.
            lost: what could not be put back.
        """
        reasons = fingerprint.differences(saved.state["fingerprint"], present)
        if self._exactness is not None and not self._exactness.exact:
            reasons.append(self._exactness.reason)
        self.flaw = saved.state.get("validation_flaw")
        if self.flaw and saved.state["cursor"]["validation_iterators"]:
            reasons.append(self.flaw)
        return reasons + self._worker.tell_lost(self._number, lost)
