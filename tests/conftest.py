"""What holds for the whole suite."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

from tests import environ

# A shell has its background jobs ignore SIGINT, and so would whatever the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

environ.leave_out()

# An example takes as long as a busy machine and its disk make it.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")

#: Folders whose files take minutes: begun first, so that no worker is left alone with one at the end
#: (`--no-loadscope-reorder` leaves the order to this).
LONG = ("training", "system", "systemd", "cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; the order within is kept."""
    items.sort(key=lambda item: not set(LONG) & set(item.path.parts))
