"""Following one job through its state folder: its facts, and its events as they come."""

from __future__ import annotations

from typing import Any

from runner.cli import facts, telling
from runner.cli.display import Display
from runner.storage import eventlog
from runner.storage.layout import Home

NONE: frozenset[str] = frozenset()


class Watch:
    """Looks at a job again and again; `look` shows what is new, kinds of events in `silent` left out."""

    def __init__(
        self,
        home: Home,
        name: str,
        display: Display,
        *,
        from_start: bool = False,
        silent: frozenset[str] = NONE,
    ) -> None:
        self.home = home
        self.name = name
        self._display = display
        self._silent = silent
        self._offset = 0
        if not from_start:
            self._news()

    def look(self) -> dict[str, Any]:
        """Show the events that came and the progress; return the facts."""
        for event in self._news():
            line = telling.tell(event)
            if line and event["event"] not in self._silent:
                self._display.say(f"{telling.at(event)} {self.name}: {line}")
        job = facts.gather(self.home, self.name)
        self._display.update(job)
        return job

    def _news(self) -> list[dict[str, Any]]:
        news: list[dict[str, Any]] = []
        while True:
            events, offset = eventlog.read_from(self.home.job(self.name).events, self._offset)
            if offset == self._offset:
                return news
            self._offset = offset
            news += events
