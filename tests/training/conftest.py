"""What the tests of the training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.training.harness import Job
from tests.training.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Gives birth to processes that have imported TensorFlow: for tests of many lives."""
    nursery = Nursery(Job.environment({}))
    yield nursery
    nursery.close()
