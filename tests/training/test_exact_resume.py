"""Killed anywhere, a training ends as it would have undisturbed: to the bit.

Each script does many small trainings, one after another, and dies in every one of them: what is behind it
is restored, what is ahead is trained. The lives of one script take about four seconds each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.harness import Job
from tests.training.nursery import Nursery


def lost_or_gained(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    return [name for name in {*expected, *found} if expected.get(name) != found.get(name)]


@pytest.mark.parametrize(
    ("fits", "kill"),
    [
        (
            "shuffled in-order batches class-weight sample-weight several-steps",
            "batches/end:1 sample-weight/begin:2 several-steps/test:2",
        ),
        (
            "callbacks two-inputs again-the-same-model noisy-trace",
            "callbacks/train:20 callbacks/end:3 again-the-same-model/start:1 noisy-trace/test:1"
            " noisy-trace/train:9",
        ),
    ],
    ids=["options", "callbacks and models"],
)
def test_unseeded_arrays(tmp_path: Path, nursery: Nursery, fits: str, kill: str) -> None:
    names = fits.split()
    undisturbed = Job(tmp_path / "undisturbed", "arrays.py", nursery=nursery).run_through(*names).results
    assert len(undisturbed) == len(names)
    job = Job(tmp_path / "killed", "arrays.py", nursery=nursery)
    assert lost_or_gained(undisturbed, job.run_through(*names, kill=kill).results) == []
    assert all(fact["exact"] for fact in job.facts_of("resumed"))
    assert [f["message"] for f in job.facts_of("warning") if "cannot be captured" in f["message"]] == []
    lines = [(line["fit"], line["epoch"]) for line in job.metrics()]
    assert len(lines) == len(set(lines)), "each epoch has one line, also after a resume"
    assert not job.facts_of("save-failed")


def test_seeded_arrays_are_as_in_plain_python(tmp_path: Path) -> None:
    """Here, and in the tests under a supervisor, all lives begin as users' do: with the first import."""
    plain = Job(tmp_path / "plain", "arrays.py").plain("--seeded").results
    assert len(plain) == 10
    job = Job(tmp_path / "killed", "arrays.py")
    kill = "shuffled/train:7 callbacks/end:3"
    assert lost_or_gained(plain, job.run_through("--seeded", kill=kill).results) == []


def test_a_fit_that_was_killed_before_its_first_checkpoint_tells_its_epochs_once(
    tmp_path: Path, nursery: Nursery
) -> None:
    job = Job(tmp_path, "epochs.py", nursery=nursery)
    job.run_through(kill="second/train:6", every=("steps", 1000))
    expected = [(0, epoch) for epoch in range(5)] + [(1, epoch) for epoch in range(4)]
    assert [(line["fit"], line["epoch"]) for line in job.metrics()] == expected
    assert not job.facts_of("resumed")


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> dict[str, str]:
    results = Job(tmp_path_factory.mktemp("undisturbed"), "streams.py", nursery=nursery).run().results
    assert len(results) == 7
    return results


def test_streams(tmp_path: Path, nursery: Nursery, streams: dict[str, str]) -> None:
    job = Job(tmp_path / "killed", "streams.py", nursery=nursery)
    kill = (
        "shuffled/train:8 endless/test:3 endless/train:13 unknown-size/train:9 cached-shuffle/train:10"
        " augmented/train:14"
    )
    assert lost_or_gained(streams, job.run_through(kill=kill).results) == []
    assert all(fact["exact"] for fact in job.facts_of("resumed"))


def test_streams_killed_where_an_epoch_ends_or_validates(
    tmp_path: Path, nursery: Nursery, streams: dict[str, str]
) -> None:
    """Each life resumes from the very checkpoint that is named: an epoch's last step, or its first."""
    job = Job(tmp_path / "killed", "streams.py", nursery=nursery)
    kill = (
        "shuffled/train:7@6 endless/train:6@17 endless/train:7@18 endless/train:10@21"
        " endless/test:3@22 cached-shuffle/train:7@60"
        " cached-shuffle/train:8@61 several-steps/train:6@75 augmented/end:2@105"
    )
    assert lost_or_gained(streams, job.run_through(kill=kill, every=("steps", 1)).results) == []
    resumed = job.facts_of("resumed")
    assert [fact["step"] for fact in resumed] == [6, 17, 18, 21, 22, 60, 61, 75, 105]
    assert all(fact["exact"] for fact in resumed)


def test_streams_that_are_not_reproducible_are_not_called_exact(tmp_path: Path, nursery: Nursery) -> None:
    job = Job(tmp_path, "inexact_streams.py", nursery=nursery)
    assert job.run().code == 0
    found = [(fact["fit"], fact["exact"], fact["reason"]) for fact in job.facts_of("classified")]
    told = [(fit, reason.split(",")[0].split(" (")[0]) for fit, exact, reason in found if not exact]
    assert told == [
        (3, "the validation data are shuffled"),
        (4, "the validation data are shuffled"),
        (6, "the validation data come from a PyDatasetAdapter"),
        (7, "Python code in a parallel map draws random numbers: not reproducible"),
        (8, "the validation data run Python code whose state is hidden"),
    ]


def test_a_resume_that_forgets_its_place_in_the_data_is_noticed(tmp_path: Path, nursery: Nursery) -> None:
    """The negative control: without it, equal digests would prove nothing."""
    fits = "--seeded", "shuffled", "same-order"
    undisturbed = Job(tmp_path / "undisturbed", "streams.py", nursery=nursery).run_through(*fits).results
    job = Job(tmp_path / "killed", "streams.py", nursery=nursery)
    bootstrap = tmp_path / "forgetful.py"
    bootstrap.write_text(
        "from pathlib import Path\n"
        "source = Path(BOOTSTRAP).read_text().replace('    main()\\n', '')\n"
        "__file__ = BOOTSTRAP\n"
        "exec(compile(source, BOOTSTRAP, 'exec'))\n"
        "from runner.training import position\n"
        "original = position.Position.go_to\n"
        "position.Position.go_to = lambda self, iterators, drawn, states: original(self, 1, 0, states)\n"
        "main()\n".replace("BOOTSTRAP", repr(str(job.bootstrap)))
    )
    job.bootstrap = bootstrap
    killed = job.run_through(*fits, kill="shuffled/train:5", saved=True).results
    assert "shuffled" in lost_or_gained(undisturbed, killed)
