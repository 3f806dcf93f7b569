"""Broken supervisors: the campaign must find each of them out, or it proves nothing.

`python -m tests.chaos.controls` is a supervisor that writes behind, for part 2.
"""

from __future__ import annotations

import sys

from runner.core.actions import Remove
from runner.core.events import AnyEvent
from runner.core.job import Job
from runner.core.table import Decision, decide
from runner.storage.layout import Home
from runner.supervisor import __main__ as program
from runner.supervisor.book import moment
from runner.supervisor.supervisor import Config, Supervisor

#: What a record waits for its writing.
BEHIND_S = 0.5


class ActsFirst(Supervisor):
    """Acts before the record is durable."""

    def handle(self, name: str, event: AnyEvent) -> Decision | None:
        decision = decide(self.book.jobs[name], event, moment())
        for action in decision.actions:
            if not isinstance(action, Remove):
                self._apply(decision.job, action)
        return super().handle(name, event)


class WritesBehind(Supervisor):
    """Keeps its records in memory, and writes them now and then."""

    def __init__(self, home: Home, config: Config) -> None:
        super().__init__(home, config)
        commit = self.book.commit
        late: set[str] = set()

        def keep(job: Job) -> bool:
            if job.name not in self.book.jobs:
                return commit(job)
            late.add(job.name)
            self.book.jobs[job.name] = job
            return True

        def write() -> None:
            while late:
                name = late.pop()
                if name in self.book.jobs:
                    commit(self.book.jobs[name])

        self.book.commit = keep  # type: ignore[method-assign]
        self.loop.every(BEHIND_S, write)


if __name__ == "__main__":
    program.Supervisor = WritesBehind  # type: ignore[misc]
    sys.exit(program.main(sys.argv[1:]))
