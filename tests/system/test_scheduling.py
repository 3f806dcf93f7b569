"""Slots on a real machine: its cpus, and GPUs that a program in the place of nvidia-smi lists."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runner.cli import facts, status
from runner.core.admission import AGING_S
from runner.core.job import Job, Outcome, State
from runner.storage import records
from runner.supervisor import allotment
from runner.supervisor.gpus import FRESH_S
from tests.system.conftest import Site, assert_events_in_order
from tests.waiting import wait_for

CPUS = allotment.cpus()
#: Says what it sees, and ends when it is told to.
WATCH = ["sh", "-c", 'echo "${CUDA_VISIBLE_DEVICES-unset}" > seen; until [ -e done ]; do sleep 0.05; done']

#: A script that reports a checkpoint when it is told to; anybody may write facts.
SAVES = """
import json, os, pathlib, time
pathlib.Path("runs").touch()
while not os.path.exists("save"):
    time.sleep(0.02)
fact = {"event": "checkpoint", "path": "checkpoints/one", "step": 7, "epoch": 0}
attempt = int(os.environ["RUNNER_ATTEMPT"])
with open(f"{os.environ['RUNNER_STATE']}/attempts/{attempt:04d}/facts.jsonl", "a") as file:
    file.write(json.dumps(fact) + "\\n")
time.sleep(600)
"""


def test_a_job_of_lower_priority_makes_room_and_goes_on_where_it_was(site: Site) -> None:
    whole = f"[resources]\ncpus = {CPUS}\n"
    site.submit("low", "100000", "0.01", toml=whole + "preemptible = true\n")
    daemon = site.start()
    wait_for(lambda: site.count("low") >= 20, "progress")
    site.submit("high", "100000", "0.01", toml="priority = 5\n" + whole)
    site.wait("high", State.RUNNING)
    low = site.wait("low", State.QUEUED)
    stopped_at = low.durable_step
    assert stopped_at == site.count("low") >= 20
    assert (low.charged, low.attempts[0].outcome) == (0, Outcome.PREEMPTED)
    assert low.attempts[0].reason == "makes room for high"
    wait_for(lambda: (job := site.job("low")) and "makes room for high" in job.reason, "the reason")
    daemon.kill()
    daemon.wait()
    site.start()
    wait_for(lambda: "adopted" in site.kinds("high"), "the adoption")
    site.submit("equal", "5", "0.01", toml="priority = 5\n" + whole)
    wait_for(lambda: (job := site.job("equal")) and "free slot" in job.reason, "its reason")
    site.ask("cancel", "high")
    site.wait("equal", State.SUCCEEDED)
    wait_for(lambda: site.count("low") > stopped_at, "the job to go on")
    assert [start[2] for start in site.trace("low")] == [0, stopped_at]
    assert site.job("high").attempt == 1
    stopping = [event for event in site.events("low") if event["event"] == "stopping"]
    assert [event["reason"] for event in stopping] == ["makes room for high"]
    assert_events_in_order(site.events("low"))


def test_a_daemon_that_is_kept_to_one_processor_gives_out_one(site: Site) -> None:
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        site.start()
    finally:
        os.sched_setaffinity(0, usable)
    for name in ("first", "second"):
        site.submit(name, "100000", "0.01")
    wait_for(
        lambda: any("free slot" in job.reason for job in map(site.job, ("first", "second")) if job),
        "one to wait",
    )
    assert sorted(site.job(name).state for name in ("first", "second")) == [State.QUEUED, State.RUNNING]


def test_a_script_makes_room_as_soon_as_it_has_saved_something(site: Site) -> None:
    whole = f"[resources]\ncpus = {CPUS}\n"
    folder = site.home.folder("low")
    folder.mkdir()
    (folder / "train.py").write_text(SAVES)
    (folder / "job.toml").write_text(whole)
    (folder / ".submitted.json").write_text('{"version": 1, "source": null}')
    site.start()
    wait_for((folder / "runs").exists, "the script")
    site.submit("high", "5", "0.01", toml="priority = 5\n" + whole)
    wait_for(lambda: (job := site.job("high")) and "free slot" in job.reason, "its reason")
    (folder / "save").touch()
    site.wait("high", State.SUCCEEDED)
    low = site.job("low")
    assert low is not None
    assert low.attempts[0].outcome is Outcome.PREEMPTED


def test_what_cannot_delay_the_one_that_waits_passes_it(site: Site) -> None:
    site.submit("first", "100000", "0.01", toml="[resources]\ncpus = 0.5\n")
    site.start()
    site.wait("first", State.RUNNING)
    site.submit("big", "5", "0.01", toml=f"[resources]\ncpus = {CPUS}\n")
    wait_for(lambda: (job := site.job("big")) and job.reason == "waits for a free slot", "its reason")
    site.submit("long", "5", "0.01", toml="[resources]\ncpus = 0.5\n")
    site.submit("short", "5", "0.01", toml='[limits]\nwall = "1m"\n[resources]\ncpus = 0.5\n')
    site.submit("free", "5", "0.01", toml="[resources]\ncpus = 0\n")
    for name in ("short", "free"):
        site.wait(name, State.SUCCEEDED)
    assert [site.job(name).attempt for name in ("big", "long")] == [0, 0]
    site.ask("cancel", "first")
    for name in ("big", "long"):
        site.wait(name, State.SUCCEEDED)
    assert site.job("big").started_at <= site.job("long").started_at


def test_what_a_job_has_waited_counts_in_the_next_daemon_too(site: Site) -> None:
    whole = f"[resources]\ncpus = {CPUS}\n"
    site.submit("first", "100000", "0.01", toml=whole)
    daemon = site.start()
    site.wait("first", State.RUNNING)
    for name, priority in (("high", 1), ("low", 0)):
        site.submit(name, "5", "0.01", toml=f"priority = {priority}\n{whole}")
        waits(site, name, "free slot")
    daemon.kill()
    daemon.wait()
    record = site.home.job("low").record
    low = records.load_job(record)
    records.save_job(record, replace(low, ledger=replace(low.ledger, waiting_s=2 * AGING_S)))
    site.start()
    site.ask("cancel", "first")
    low, high = (site.wait(name, State.SUCCEEDED) for name in ("low", "high"))
    assert low.started_at < high.started_at


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What nvidia-smi says."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text('#!/bin/sh\nexec cat "$0.says"\n')
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    says = programs / "nvidia-smi.says"
    says.write_text("GPU-aa, 0\nGPU-bb, 0\n")
    return says


def watch(site: Site, name: str, gpus: float, env: str = "") -> None:
    site.submit(name, command=WATCH, toml=f"{env}[resources]\ncpus = 0.1\ngpus = {gpus}\n")


def seen(site: Site, name: str) -> str:
    path = site.home.folder(name) / "seen"
    wait_for(lambda: path.exists() and path.read_text(), f"what {name} sees")
    return path.read_text().strip()


def finish(site: Site, name: str) -> Job:
    (site.home.folder(name) / "done").touch()
    return site.wait(name, State.SUCCEEDED)


def waits(site: Site, name: str, why: str) -> None:
    wait_for(lambda: (job := site.job(name)) and why in job.reason, f"{name} to say why it waits")
    assert site.job(name).attempt == 0


@pytest.mark.usefixtures("listed")
def test_gpus_are_given_out_once_also_by_a_successor(site: Site) -> None:
    for name, gpus in (("half", 0.5), ("one", 1), ("other", 0.5), ("none", 0)):
        watch(site, name, gpus)
        if name == "half":
            daemon = site.start()
        assert seen(site, name) == {"one": "GPU-bb", "none": ""}.get(name, "GPU-aa")
    watch(site, "own", 0, '[env]\nCUDA_VISIBLE_DEVICES = "7"\n')
    assert seen(site, "own") == "7"
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    site.start()
    watch(site, "next", 1)
    waits(site, "next", "waits for a free slot")
    watch(site, "more", 0)
    assert seen(site, "more") == "", "it passes the one that waits for a GPU"
    shown = facts.gather(site.home, "half")["resources"]
    assert shown == {"cpus": 0.1, "gpus": 0.5, "memory_bytes": None, "devices": ["GPU-aa"]}
    assert status.resources(shown) == "0.1 cpus, 0.5 gpus (GPU-aa)"
    finish(site, "one")
    assert seen(site, "next") == "GPU-bb"
    for name in ("half", "other", "none", "own", "more", "next"):
        finish(site, name)
    assert facts.gather(site.home, "half")["resources"]["devices"] is None


def test_a_gpu_that_is_not_well_is_not_given_out(site: Site, listed: Path) -> None:
    listed.write_text("GPU-aa, 3\nGPU-bb, 0\n")
    site.start()
    watch(site, "one", 1)
    assert seen(site, "one") == "GPU-bb"
    looked_s = time.monotonic()  # or a moment before: the next look is for the next that is to have one
    watch(site, "two", 2)
    waits(site, "two", "this machine has 1 (GPU-aa has 3 uncorrectable memory errors)")
    assert "GPU-aa is not used: it has 3 uncorrectable memory errors" in site.log.read_text()
    finish(site, "one")
    listed.write_text("GPU-bb, 1\nGPU-aa, 0\n")
    wait_for(lambda: time.monotonic() > looked_s + FRESH_S, "the last look to be old")
    watch(site, "last", 1)
    assert seen(site, "last") == "GPU-aa", "looked at before it is given out"
    finish(site, "last")


@pytest.mark.parametrize("told", ["GPU-bb", "1", None])
@pytest.mark.usefixtures("listed")
def test_gpus_that_an_older_daemon_has_not_recorded_are_given_to_nobody_else(
    told: str | None, site: Site
) -> None:
    daemon = site.start()
    watch(site, "first", 1)
    assert seen(site, "first") == "GPU-aa"
    watch(site, "old", 1)
    assert seen(site, "old") == "GPU-bb"
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    # As that would have left it.
    paths = site.home.job("old")
    job = records.load_job(paths.record)
    assert job.current is not None
    records.save_job(paths.record, job.with_attempt(replace(job.current, gpus=None)))
    orders = records.load_json(paths.attempt(1).launch)
    del orders["env"]["CUDA_VISIBLE_DEVICES"]
    if told is not None:
        orders["env"]["CUDA_VISIBLE_DEVICES"] = told
    paths.attempt(1).launch.write_text(json.dumps(orders))
    site.start()
    watch(site, "next", 1)
    waits(site, "next", "waits for a free slot")
    assert site.job("old").current.gpus == (("GPU-aa", "GPU-bb") if told is None else ("GPU-bb",))
    finish(site, "first")
    if told is None:
        watch(site, "none", 0)
        seen(site, "none")  # all that came before has had its turn
        assert site.job("next").attempt == 0, "it may use either"
        finish(site, "old")
    assert seen(site, "next") == "GPU-aa"
