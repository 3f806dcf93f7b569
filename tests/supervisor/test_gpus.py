"""Finding GPUs: a real process in the place of nvidia-smi, and a real loop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.core.inventory import Device
from runner.supervisor.gpus import Gpus, listed_by_driver, parse, visible
from runner.supervisor.loop import Loop

WELL = "GPU-aa, 0\nGPU-bb, [N/A]\n"


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the nvidia-smi that is found in PATH run this."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(script: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    write(f"printf '{WELL}'")
    return write


def look(found: Gpus, loop: Loop) -> tuple[Device, ...]:
    """Look once, and let the loop take turns until that has ended."""
    seen: list[bool] = []
    found._on_look = lambda: (seen.append(True), loop.stop())
    loop._stopped = False
    found.look()
    while not seen:
        loop.run()
    return found.devices


@pytest.mark.usefixtures("program")
def test_what_nvidia_smi_lists_is_there(loop: Loop) -> None:
    found = Gpus(loop, lambda: None)
    assert (found.known, found.fresh) == (False, False)
    assert look(found, loop) == (Device("GPU-aa"), Device("GPU-bb"))
    assert (found.known, found.fresh) == (True, True)


def test_what_is_listed_no_more_is_not_well_until_it_is_again(
    program: Callable[[str], None], loop: Loop
) -> None:
    found = Gpus(loop, lambda: None)
    look(found, loop)
    program("echo 'Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.'; exit 15")
    assert [device.fault for device in look(found, loop)] == ["is listed no more"] * 2
    program("echo 'GPU-bb, 2'")
    assert look(found, loop) == (
        Device("GPU-aa", "is listed no more"),
        Device("GPU-bb", "has 2 uncorrectable memory errors"),
    )
    program(f"printf '{WELL}'")
    assert look(found, loop) == (Device("GPU-aa"), Device("GPU-bb"))


def test_one_that_never_answers_holds_up_nothing_and_is_killed(
    program: Callable[[str], None], loop: Loop, tmp_path: Path
) -> None:
    found, pid = Gpus(loop, lambda: None), tmp_path / "pid"
    look(found, loop)
    program(f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600")
    found.look()
    while not pid.exists():  # the loop goes on meanwhile
        loop.after(0.01, lambda: None)
        loop._turn()
    deadline = found._deadline
    assert deadline is not None
    assert deadline.when_s > time.monotonic()
    assert deadline.callback is not None
    deadline.callback()
    assert all("did not answer" in device.fault for device in found.devices)
    program(f"printf '{WELL}'")
    while found._pidfd >= 0:  # until the killed one is reaped
        loop._turn()
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert look(found, loop) == (Device("GPU-aa"), Device("GPU-bb"))


def test_without_the_program_the_drivers_list_stands(tmp_path: Path) -> None:
    for number, uuid in enumerate(("GPU-aa", "GPU-??????", "GPU-cc")):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        about = f"Model: \t\t NVIDIA H100\nIRQ:   \t\t 42\nGPU UUID: \t {uuid}\nDevice Minor: \t {number}\n"
        (tmp_path / f"0000:0{number}:00.0" / "information").write_text(about)
    assert listed_by_driver(tmp_path) == [Device("GPU-aa"), Device("GPU-cc")]
    assert listed_by_driver(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", []),
        ("GPU-aa, 0", [Device("GPU-aa")]),
        ("GPU-aa, [Not Supported]\n", [Device("GPU-aa")]),
        ("GPU-aa", [Device("GPU-aa")]),
        ("GPU-aa, [GPU is lost]", [Device("GPU-aa", "says [GPU is lost]")]),
        ("[GPU is lost], [GPU is lost]\nGPU-bb, 0", [Device("GPU-bb")]),
        ("GPU-aa, [Unknown Error]", [Device("GPU-aa", "says [Unknown Error]")]),
        ("GPU-aa, 17", [Device("GPU-aa", "has 17 uncorrectable memory errors")]),
        ("\x00\x01, ,\nGPU-aa, -1, x", [Device("GPU-aa")]),
    ],
)
def test_an_answer_is_read(text: str, expected: list[Device]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, "abc"),
        ("", ""),
        ("1", "b"),
        ("2,0", "ac"),
        ("GPU-b", "b"),
        ("GPU-a,2", "ac"),
        ("NoDevFiles", ""),
    ],
)
def test_a_session_that_sees_a_part_gives_out_that_part(setting: str | None, expected: str) -> None:
    devices = [Device(f"GPU-{letter}") for letter in "abc"]
    assert "".join(device.uuid[-1] for device in visible(devices, setting)) == expected
