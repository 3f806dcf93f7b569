"""Mirrors with real daemons, real workers and real servers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest

from runner.core.job import State
from tests.mirror.conftest import Home
from tests.mirror.servers import Place, SftpServer
from tests.system.conftest import assert_events_in_order
from tests.waiting import wait_for

Homes = Callable[[str], Home]


def local_files(home: Home, name: str) -> dict[str, bytes]:
    """What a job has of its own, but for what belongs to no mirror."""
    dir = home.home.job(name).dir
    paths = [*dir.glob("checkpoints/*"), *dir.glob("best/*")]
    return {path.relative_to(dir).as_posix(): path.read_bytes() for path in paths}


def test_checkpoints_are_copied_pruned_and_restored_in_an_empty_home(homes: Homes, place: Place) -> None:
    first = homes("first")
    first.start()
    first.pace("pace", place.url, 12, 0.1)
    first.wait("pace", State.SUCCEEDED)
    first.wait_mirrored("pace")
    there = place.files("pace")
    assert json.loads(there.pop("identity.json"))["seed"] == first.job_of("pace").seed
    assert there == local_files(first, "pace")
    assert sum(name.startswith("checkpoints/step-") for name in there) == 2
    event = first.event("pace", "mirrored")
    assert event["size_bytes"] > 4096
    assert_events_in_order(first.events("pace"))

    second = homes("second")
    second.start()
    second.pace("pace", place.url, 12, 0.1)
    job = second.wait("pace", State.SUCCEEDED)
    restored = second.event("pace", "restored")
    assert (restored["step"], restored["files"]) == (12, 3), (
        "the newest checkpoint, the best model, its record"
    )
    assert [start[1:] for start in second.starts("pace")] == [[first.job_of("pace").seed, 12]]
    assert job.seed == first.job_of("pace").seed
    assert job.best is not None
    assert (job.best.step, job.best.path) == (12, "best/b.weights.h5")
    told = [*first.events("pace"), *second.events("pace")]
    assert [event["reason"] for event in told if event["event"] == "mirror-failed"] == []
    assert_events_in_order(second.events("pace"))


def test_a_mirror_that_goes_away_is_said_once_and_made_good_later(homes: Homes, sftp: SftpServer) -> None:
    home = homes("home")
    home.start()
    home.pace("pace", sftp.url, 5000, 0.1)
    home.event("pace", "mirrored")
    sftp.down()
    failed = home.event("pace", "mirror-failed")
    assert f"sftp://medium{sftp.root}" in failed["reason"] or "sftp://medium" in failed["reason"]
    assert home.status("pace").error
    step = home.job_of("pace").durable_step
    wait_for(lambda: home.job_of("pace").durable_step >= step + 5, "the training to go on")
    os.kill(home.copier(), signal.SIGKILL)  # the next one knows that it was said already
    home.copier()
    sftp.up()
    home.event("pace", "mirror-recovered")
    home.ask("stop", "pace")
    home.wait("pace", State.CANCELLED)
    home.wait_mirrored("pace")
    assert home.kinds("pace").count("mirror-failed") == 1
    assert home.status("pace").error == ""
    assert home.job_of("pace").attempt == 1


@pytest.mark.parametrize("place", ["file", "s3"], indirect=True)
def test_a_job_waits_for_a_mirror_that_cannot_be_reached(homes: Homes, place: Place) -> None:
    """Training anew would put the old checkpoints at risk; nothing is charged to the job."""
    first = homes("first")
    first.start()
    first.pace("pace", place.url, 4)
    first.wait("pace", State.SUCCEEDED)
    first.wait_mirrored("pace")
    first.close()
    place.down()

    second = homes("second")
    second.start()
    second.pace("pace", place.url, 4)
    if place.kind == "s3":  # a server that is silent, which is found out after a while
        wait_for(lambda: second.job("pace") and second.job_of("pace").state is State.RUNNING, "the fetch")
        second.submit("other", "5")
        second.wait("other", State.SUCCEEDED)
        second.ask("pause", "pace")
        job = second.wait("pace", State.PAUSED)
        place.up()
        second.ask("resume", "pace")
    else:
        second.event("pace", "mirror-failed")
        reason = second.event("pace", "backoff")["reason"]  # the state itself is soon over
        job = second.job_of("pace")
        assert "preempted (its mirror cannot be read: " in reason
        assert place.url.partition("/medium")[0] in reason
        place.up()
    assert job.charged == 0
    assert not second.has_started("pace")
    second.wait("pace", State.SUCCEEDED)
    assert [start[2] for start in second.starts("pace")] == [4]
    assert second.kinds("pace").count("mirror-failed") == (0 if place.kind == "s3" else 1)


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(homes: Homes, folder: Place) -> None:
    first = homes("first")
    first.start()
    first.pace("pace", folder.url, 9)
    first.wait("pace", State.SUCCEEDED)
    first.wait_mirrored("pace")
    first.close()
    newest = "checkpoints/step-000000000009.weights.h5"
    data = bytearray(folder.files("pace")[newest])
    data[len(data) // 2] ^= 1
    folder.write(f"pace/{newest}", bytes(data))
    folder.write("pace/best/b.weights.h5", b"not a model")

    second = homes("second")
    second.start()
    second.pace("pace", folder.url, 9)
    second.wait("pace", State.SUCCEEDED)
    warnings = [event["message"] for event in second.events("pace") if event["event"] == "warning"]
    assert len(warnings) == 2
    assert f"{newest} is passed over" in warnings[1]
    assert "bytes do not match its digest" in warnings[1]
    assert second.starts("pace")[0][2] == 8
    second.wait_mirrored("pace")
    assert folder.files("pace")[newest] == local_files(second, "pace")[newest], "the good one took its place"


def test_what_the_mirror_lost_is_noticed_and_copied_again(homes: Homes, folder: Place) -> None:
    home = homes("home")
    home.start()
    home.pace("pace", folder.url, 5000, 0.1)
    wait_for(lambda: "best/best.json" in home.status("pace").files, "the best model")

    def noticed() -> bool:
        folder.write("pace/best/best.json", b"{")  # again, where the next best model has just replaced it
        return "mirror-damaged" in home.kinds("pace")

    wait_for(noticed, "the damage to be noticed")
    event = home.event("pace", "mirror-damaged")
    assert event["path"] == "best/best.json"
    assert " bytes, not " in event["reason"]  # one byte, or none where it was being written just then
    home.ask("stop", "pace")
    home.wait("pace", State.CANCELLED)
    home.wait_mirrored("pace")
    assert folder.files("pace")["best/best.json"] == local_files(home, "pace")["best/best.json"]


def test_another_jobs_mirror_is_refused_and_left_alone(homes: Homes, folder: Place) -> None:
    first = homes("first")
    first.start()
    first.pace("pace", folder.url, 4)
    first.wait("pace", State.SUCCEEDED)
    first.wait_mirrored("pace")
    before = folder.files("pace")

    second = homes("second")
    second.start()
    second.pace("pace", folder.url, 5)  # other arguments: other work
    job = second.wait("pace", State.FAILED)
    assert "it is another job's" in job.reason
    assert f"{folder.url}/pace" in job.reason
    assert job.attempt == 1
    assert not second.has_started("pace")
    assert folder.files("pace") == before

    folder.delete("pace/identity.json")  # as the message says
    second.ask("retry", "pace")
    second.wait("pace", State.SUCCEEDED)
    assert second.starts("pace")[0][2] == 4


def test_a_home_that_was_left_behind_keeps_off(homes: Homes, folder: Place) -> None:
    first = homes("first")
    first.start()
    first.pace("pace", folder.url, 5000, 0.1)
    first.wait_held("pace")
    second = homes("second")
    second.start()
    second.pace("pace", folder.url, 5000, 0.1)
    taken = second.event("pace", "restored")["step"]
    assert taken > 0
    failed = first.event("pace", "mirror-failed")
    assert "another home has taken it over" in failed["reason"]
    second.wait_held("pace", taken + 1)
    step = first.job_of("pace").durable_step
    wait_for(lambda: first.job_of("pace").durable_step >= step + 3, "the first to train on")
    assert "mirror-failed" not in second.kinds("pace")


def test_a_pinned_checkpoint_stays_on_the_mirror(homes: Homes, folder: Place) -> None:
    home = homes("home")
    home.start()
    home.pace("pace", folder.url, 5000, 0.1)
    home.wait_held("pace")
    worker = home.identity("pace", "worker").pid
    os.kill(worker, signal.SIGSTOP)  # so that what is here stays here: the pacer keeps two
    home.wait_mirrored("pace")
    step = home.wait_held("pace")
    paths = home.home.job("pace")
    paths.pin(step).touch()
    pin = f"checkpoints/{paths.pin(step).name}"
    wait_for(lambda: pin in folder.files("pace"), "the mark")
    os.kill(worker, signal.SIGCONT)
    wait_for(lambda: home.job_of("pace").durable_step > step + 3, "newer checkpoints")
    assert f"checkpoints/{paths.checkpoint(step).name}" in folder.files("pace")
    paths.pin(step).unlink()
    wait_for(lambda: f"checkpoints/{paths.checkpoint(step).name}" not in folder.files("pace"), "it to go")
    assert pin not in folder.files("pace")


def test_the_process_that_copies_outlives_the_supervisor_but_not_an_upgrade(
    homes: Homes, folder: Place
) -> None:
    home = homes("home")
    daemon = home.start()
    home.pace("pace", folder.url, 5000, 0.05)
    home.wait_held("pace")
    before = home.copier()
    daemon.send_signal(signal.SIGHUP)  # the daemon that it becomes starts its own
    copier = wait_for(lambda: (found := home.copier()) != before and found, "another process that copies")
    assert not os.path.exists(f"/proc/{before}")  # noqa: PTH110
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    home.wait_mirrored("pace")
    wait_for(lambda: not os.path.exists(f"/proc/{copier}"), "the process that copies to end")  # noqa: PTH110
    assert folder.files("pace").keys() - {"identity.json"} == local_files(home, "pace").keys()


def test_the_daemon_itself_may_be_killed(homes: Homes, folder: Place) -> None:
    home = homes("home")
    home.start().kill()
    home.daemons[-1].wait()
    home.start()
    home.pace("pace", folder.url, 40, 0.1)
    home.wait_held("pace")
    home.daemons[-1].kill()
    home.daemons[-1].wait()
    home.start()
    home.wait("pace", State.SUCCEEDED)
    home.wait_mirrored("pace")
    wait_for(lambda: "mirrored" in home.kinds("pace"), "the facts")
    told = [
        event["path"]
        for event in home.events("pace")
        if event["event"] == "mirrored" and "best" not in event["path"]
    ]
    assert len(told) == len(set(told)), "each told once"
    assert_events_in_order(home.events("pace"))
