"""What the command line says of mirrors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ENVIRON, Bench, runner
from tests.mirror.conftest import PACER
from tests.mirror.servers import Place, SftpServer
from tests.waiting import wait_for

__all__ = ["runner"]


@pytest.fixture
def job(runner: Bench) -> Path:
    folder = runner.folder("pace", command=[sys.executable, "pacer.py", "1", "0.0", "--size", "12000000"])
    shutil.copy(PACER, folder)
    return folder


def test_run_waits_for_the_mirror(
    runner: Bench, sftp: SftpServer, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRON, "HOME", str(Path("~").expanduser()))
    with (job / "job.toml").open("a") as toml:
        toml.write(f'[checkpoint]\nmirror = "{sftp.url}"\n')
    run = runner.start("run", str(job))
    assert run.stdout is not None
    # The checkpoint's: before the job has begun there was one of what a fetch has asked.
    wait_for(lambda: list(sftp.root.rglob(".step-*.tmp")) or run.poll() is not None, "a copy to begin")
    sessions = sftp.halt()
    said = f"pace: copying to {sftp.url}/pace (Ctrl-C: leave that to the background)"
    assert said in map(bytes.decode, map(bytes.strip, run.stdout))  # up to its end at most
    sftp.go_on(sessions)
    assert run.wait(120) == 0, (runner.root / "stderr").read_text()
    there = sftp.files("pace")
    assert len(there["checkpoints/step-000000000001.weights.h5"]) > 12_000_000
    assert runner.job("pace")["mirror"] == {
        "url": f"{sftp.url}/pace",
        "steps": [1],
        "best": [],
        "behind": [],
        "error": None,
        "failing_since": None,
    }
    assert f"mirror      steps 1, {sftp.url}/pace\n" in runner("status", "pace").out
    removed = runner("rm", "pace")
    assert (
        f"pace: {sftp.url}/pace is left: the same job, submitted again, would go on from there" in removed.out
    )


def test_run_does_not_wait_for_a_mirror_that_fails(runner: Bench, folder: Place, job: Path) -> None:
    with (job / "job.toml").open("a") as toml:
        toml.write(f'[checkpoint]\nmirror = "{folder.url}"\n')
    (folder.root / "pace").mkdir()
    (folder.root / "pace/checkpoints").write_text("no folder, and there will be none")
    runner.supervise()  # whose mirrors' process tries again and again
    answer = runner("run", str(job))
    assert answer.code == 0, answer.err
    assert (
        f"pace: 1 file(s) not on {folder.url}/pace yet (file://{folder.root}/pace/checkpoints" in answer.out
    )
    assert "1 file behind" in runner("status", "pace").out
    assert "; FAILS since 2" in runner("status", "pace").out
