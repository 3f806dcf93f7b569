import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.core.spec import (
    CadenceUnit,
    CheckpointSpec,
    Every,
    JobSpec,
    LimitsSpec,
    Mode,
    ResourcesSpec,
    RestartSpec,
    Spare,
)
from runner.errors import BadJobError
from runner.settings import envfile, load_spec
from runner.settings.text import key_lines
from runner.settings.values import parse_duration, parse_size

TIMES = '"30s" or "1h30m"'

BAD = [
    # the text itself
    ("= 1", "job.toml:1: is not valid TOML: Invalid statement"),
    ("entry = \n", "job.toml:1: is not valid TOML: Invalid value"),
    ("\n\nargs = [1,\n", "job.toml:3: is not valid TOML"),
    ("keep = 1\nkeep = 2\n", "job.toml:2: is not valid TOML: Cannot overwrite a value"),
    ('entry = "train.py', "job.toml:1: is not valid TOML: "),
    ("a = 2020-13-45\n", "job.toml:1: is not valid TOML: "),
    ("priority = " + "9" * 5000, "job.toml:1: is not valid TOML: Exceeds the limit"),
    ("a = " + "[" * 100_000, "job.toml: is nested too deeply"),
    (".".join("a" * 200_000) + " = 1", "job.toml:1: a key has more than 32 parts"),
    ("[" + ".".join("a" * 200_000) + "]", "job.toml:1: a key has more than 32 parts"),
    ("# " + "x" * 2_000_000, "job.toml: is larger than 1 MiB; a job's settings are a few lines"),
    ("a\0b = 1", "job.toml:1: is not text (it holds a NUL byte)"),
    # unknown keys
    (
        '[checkpoint]\nevry = "1s"',
        "job.toml:2: unknown key checkpoint.evry; did you mean checkpoint.every?",
    ),
    ("\n\npriorty = 1", "job.toml:3: unknown key priorty; did you mean priority?"),
    ('every = "30s"', "job.toml:1: unknown key every; did you mean checkpoint.every?"),
    ("[checkpont]\nkeep = 3", "job.toml:1: unknown key checkpont; did you mean checkpoint?"),
    ("checkpoint.kep = 3", "job.toml:1: unknown key checkpoint.kep; did you mean checkpoint.keep?"),
    ("checkpoint = { kep = 3 }", "job.toml:1: unknown key checkpoint.kep; did you mean checkpoint.keep?"),
    (
        "[limits]\nqqqqqq = 1",
        "job.toml:2: unknown key limits.qqqqqq; [limits] takes hang, startup, grace, wall, memory, pids, log",
    ),
    ("[[checkpoint]]\nkeep = 1", "job.toml:1: checkpoint must be a table, [checkpoint]"),
    ("seed = 7", "job.toml:1: seed must be a table, [seed]"),
    ('"en\\ntry" = 1', r"job.toml:1: unknown key en\ntry; did you mean entry?"),
    ("[entry]\nx = 1", "job.toml:1: entry must be the path of a script"),
    # the program
    (
        "entry = 5",
        'job.toml:1: entry must be the path of a script in the job\'s folder, such as "train.py", not 5',
    ),
    ('entry = ""', "job.toml:1: entry must be the path of a script"),
    ('entry = "missing.py"', 'job.toml:1: entry names "missing.py": No such file or directory'),
    ('entry = "../train.py"', "job.toml:1: entry must stay inside the job's folder"),
    ('entry = "/etc/passwd"', "job.toml:1: entry must stay inside the job's folder"),
    ('entry = "out.py"', "job.toml:1: entry must stay inside the job's folder"),
    ('entry = "loop.py"', "job.toml:1: entry must stay inside the job's folder"),
    ('entry = "folder"', 'job.toml:1: entry names "folder", which is not a regular file'),
    ('entry = "fifo"', 'job.toml:1: entry names "fifo", which is not a regular file'),
    (f'entry = "{"x" * 300}"', "job.toml:1: entry names"),
    (
        'command = "ls -l"',
        'job.toml:1: command must be a list of strings such as ["--epochs", "50"], not "ls -l"',
    ),
    ("command = []", "job.toml:1: command must name a program"),
    ('command = [""]', "job.toml:1: command must name a program"),
    ('command = ["sh", 5]', "job.toml:1: command must hold strings only, not 5; quote it"),
    (
        'command = ["./train.py"]',
        'job.toml:1: command names "./train.py", which is not executable; chmod +x it',
    ),
    ('command = ["./no.sh"]', 'job.toml:1: command names "./no.sh": No such file or directory'),
    (
        'command = ["no-such-program-here"]',
        'job.toml:1: command names "no-such-program-here", which is not in PATH',
    ),
    ('command = ["./folder"]', 'job.toml:1: command names "./folder", which is not a regular file'),
    (
        'entry = "train.py"\ncommand = ["sh"]',
        "job.toml:1: entry has no meaning beside command; keep one of the two",
    ),
    (
        'command = ["sh"]\nargs = ["x"]',
        "job.toml:2: args has no meaning beside command; append them to command",
    ),
    ('command = ["sh"]\npython = "auto"', "job.toml:2: python has no meaning beside command"),
    ('args = "--epochs 5"', "job.toml:1: args must be a list of strings"),
    ('args = ["--epochs", 5]', "job.toml:1: args must hold strings only, not 5; quote it"),
    ('args = ["a\\u0000b"]', "job.toml:1: args must not hold a NUL character"),
    (f'args = ["{"x" * 131072}"]', "job.toml:1: args holds a string of 128 KiB or more"),
    ('python = "python3"', 'job.toml:1: python must be "auto" or the path of an interpreter'),
    ('python = "/no/such/python"', 'job.toml:1: python names "/no/such/python": No such file or directory'),
    ('python = "./train.py"', 'job.toml:1: python names "./train.py", which is not executable'),
    # numbers
    ("priority = 1.5", "job.toml:1: priority must be a whole number from -1000 to 1000, not 1.5"),
    (
        'after = "prepare"',
        'job.toml:1: after must be a list of names of jobs, like ["prepare"], not "prepare"',
    ),
    ('after = ["a/b"]', 'job.toml:1: after must be a list of names of jobs, like ["prepare"], not a list'),
    ("after = [1]", 'job.toml:1: after must be a list of names of jobs, like ["prepare"], not a list'),
    ("priority = true", "job.toml:1: priority must be a whole number from -1000 to 1000, not true"),
    ("priority = 100000", "job.toml:1: priority must be a whole number from -1000 to 1000, not 100000"),
    ("[checkpoint]\nkeep = 0", "job.toml:2: checkpoint.keep must be a whole number from 1 to 10000, not 0"),
    ("[checkpoint]\nkeep = -1", "job.toml:2: checkpoint.keep must be a whole number from 1 to 10000, not -1"),
    ("[restart]\nbudget = -1", "job.toml:2: restart.budget must be a whole number"),
    ('[restart]\nspare = "cold"', 'job.toml:2: restart.spare must be "none", "warm" or "hot", not "cold"'),
    ("[restart]\nspare = true", 'job.toml:2: restart.spare must be "none", "warm" or "hot", not true'),
    (
        'command = ["/bin/sh"]\n[restart]\nspare = "warm"',
        "job.toml:3: restart.spare is for a Python script; name it as entry, not in command",
    ),
    (
        '[restart]\nspare = "hot"\n[isolation]\nwrite = []',
        "job.toml:2: restart.spare has no effect beside isolation.write, which only a new process can have",
    ),
    ("[resources]\ncpus = nan", "job.toml:2: resources.cpus must be a number from 0 to 4096, not nan"),
    ("[resources]\ngpus = inf", "job.toml:2: resources.gpus must be a number from 0 to 1024, not inf"),
    ("[resources]\ngpus = -0.5", "job.toml:2: resources.gpus must be a number from 0 to 1024, not -0.5"),
    (
        "[resources]\ngpus = 1.5",
        "job.toml:2: resources.gpus must be a share of one, such as 0.5, or a whole number, not 1.5",
    ),
    ('[resources]\nmemory = "lots"', 'job.toml:2: resources.memory must be a size such as "8GiB"'),
    ("[resources]\npreemptible = 1", "job.toml:2: resources.preemptible must be true or false, not 1"),
    ('[resources]\ncpus = "2"', 'job.toml:2: resources.cpus must be a number from 0 to 4096, not "2"'),
    ("[seed]\nvalue = -7", "job.toml:2: seed.value must be a whole number from 0 to 4294967295, not -7"),
    ("[seed]\nvalue = 4294967296", "job.toml:2: seed.value must be a whole number"),
    # times and sizes
    (
        '[limits]\nhang = "soon"',
        f'job.toml:2: limits.hang must be a duration such as {TIMES} or "auto" or "none", not "soon"',
    ),
    ("[limits]\nhang = nan", "job.toml:2: limits.hang must be a duration"),
    ("[limits]\ngrace = inf", f"job.toml:2: limits.grace must be a duration such as {TIMES}, not inf"),
    ("[limits]\ngrace = -1", "job.toml:2: limits.grace must be a duration"),
    ("[limits]\ngrace = true", "job.toml:2: limits.grace must be a duration"),
    ('[limits]\nstartup = "none"', "job.toml:2: limits.startup must be a duration"),
    ('[limits]\nstartup = "0s"', 'job.toml:2: limits.startup must be more than zero, not "0s"'),
    ('[limits]\nwall = "1 fortnight"', "job.toml:2: limits.wall must be a duration"),
    ('[limits]\nwall = "99999999d"', "job.toml:2: limits.wall must be a duration"),
    (
        '[limits]\nmemory = "lots"',
        'job.toml:2: limits.memory must be a size such as "8GiB" or "512MB", or "none", not "lots"',
    ),
    ('[limits]\nmemory = "12B"', 'job.toml:2: limits.memory must be at least 1MiB, not "12B"'),
    ("[limits]\nmemory = 1.5", "job.toml:2: limits.memory must be a size"),
    ('[limits]\nlog = "1MiB"', 'job.toml:2: limits.log must be at least 4MiB, not "1MiB"'),
    ("[limits]\npids = 2", "job.toml:2: limits.pids must be a whole number from 8 to"),
    ('[isolation]\nwrite = ["out"]', 'isolation.write must hold absolute paths only, not "out"'),
    (
        '[isolation]\nwrite = ["/no/such"]',
        'isolation.write names "/no/such", which is not there; make it first',
    ),
    ('env_file = "../x.env"', "job.toml:1: env_file must stay inside the job's folder, or be absolute"),
    ('env_file = "gone.env"', "job.toml:1: env_file cannot be taken: gone.env: No such file or directory"),
    ("[limits]\nmemory = -1", "job.toml:2: limits.memory must be a size"),
    ("[checkpoint]\nevery = 500", 'job.toml:2: checkpoint.every must be "auto", or a time, steps or epochs'),
    ('[checkpoint]\nevery = "0 steps"', 'job.toml:2: checkpoint.every must be "auto", or a time'),
    ('[checkpoint]\nevery = "0s"', 'job.toml:2: checkpoint.every must be "auto", or a time'),
    ('[checkpoint]\nevery = "5 parsecs"', 'job.toml:2: checkpoint.every must be "auto", or a time'),
    ('[checkpoint]\nevery = ""', 'job.toml:2: checkpoint.every must be "auto", or a time'),
    ("[checkpoint]\nmirror = 5", 'job.toml:2: checkpoint.mirror must be a URL such as "s3://BUCKET/FOLDER"'),
    ('[checkpoint]\nmirror = "ftp://host/a"', "job.toml:2: checkpoint.mirror must be a URL such as"),
    ('[checkpoint]\nmirror = "/mnt/disk"', "job.toml:2: checkpoint.mirror must be a URL such as"),
    ('[checkpoint]\nmirror = "sftp://host:x/a"', "job.toml:2: checkpoint.mirror must be a URL such as"),
    (
        '[checkpoint]\nmirror = "file://mnt/disk"',
        'job.toml:2: checkpoint.mirror must have three slashes after file: "file://mnt/disk"; expected a URL',
    ),
    ('[checkpoint]\nmirror = "file:///"', 'job.toml:2: checkpoint.mirror names no folder: "file:///"'),
    ('[checkpoint]\nmirror = "file:///a/../b"', "job.toml:2: checkpoint.mirror must not lead upward with .."),
    ('[checkpoint]\nmirror = "sftp:///a"', "job.toml:2: checkpoint.mirror names no host"),
    ('[checkpoint]\nmirror = "sftp://host"', "job.toml:2: checkpoint.mirror names no folder"),
    ('[checkpoint]\nmirror = "s3://"', "job.toml:2: checkpoint.mirror names no bucket"),
    ('[checkpoint]\nmirror = "s3://My_Bucket/a"', "job.toml:2: checkpoint.mirror is no name of a bucket"),
    ('[checkpoint]\nmirror = "s3://bucket/a?b"', "job.toml:2: checkpoint.mirror takes no ? and no #"),
    (
        '[checkpoint]\nmirror = "sftp://user:word@host/a"',
        "job.toml:2: checkpoint.mirror must not hold a password or a secret key; give it in the daemon's",
    ),
    (
        "[restart]\nbackoff = 5",
        'job.toml:2: restart.backoff must be a range of times such as "1s..60s", not 5',
    ),
    (
        '[restart]\nbackoff = "60s..1s"',
        "job.toml:2: restart.backoff must be a range from a shorter to a longer time",
    ),
    ('[restart]\nbackoff = "0s..1s"', "job.toml:2: restart.backoff must be a range"),
    ('[restart]\nbackoff = "1s.."', "job.toml:2: restart.backoff must be a range of times"),
    (
        "[restart]\nfatal_exit_codes = 3",
        "job.toml:2: restart.fatal_exit_codes must be a list of exit codes from 1 to 255, not 3",
    ),
    (
        "[restart]\nfatal_exit_codes = [3, 300]",
        "job.toml:2: restart.fatal_exit_codes must be a list of exit codes from 1 to 255, not 300",
    ),
    (
        "[restart]\nfatal_exit_codes = [3, 9]\nretry_exit_codes = [9]",
        "job.toml:3: restart.retry_exit_codes and restart.fatal_exit_codes both hold 9",
    ),
    ("[restart]\nfatal_exit_codes = [true]", "job.toml:2: restart.fatal_exit_codes must be a list"),
    # what is best
    (
        '[checkpoint]\nmode = "maximum"',
        'job.toml:2: checkpoint.mode must be "auto", "min" or "max", not "maximum"',
    ),
    ("[checkpoint]\nmode = []", 'job.toml:2: checkpoint.mode must be "auto", "min" or "max", not a list'),
    ('[checkpoint]\nmonitor = ""', "job.toml:2: checkpoint.monitor must be the name of a metric"),
    ("[checkpoint]\nmonitor = 1", "job.toml:2: checkpoint.monitor must be the name of a metric, not 1"),
    (
        '[checkpoint]\nbest = "best.h5"',
        "job.toml:2: checkpoint.best must be a file name that ends in .weights.h5 or .keras",
    ),
    (
        '[checkpoint]\nbest = "../best.keras"',
        "job.toml:2: checkpoint.best must be a file name without folders",
    ),
    (
        '[checkpoint]\nbest = "/tmp/best.keras"',
        "job.toml:2: checkpoint.best must be a file name without folders",
    ),
    (
        "[checkpoint]\nbest_keep = 3",
        'job.toml:2: checkpoint.best_keep is for a series of files, such as best = "best-{epoch:03d}',
    ),
    (
        '[checkpoint]\nbest = "b-{epoch}.keras"\nbest_keep = 0',
        "job.toml:3: checkpoint.best_keep must be a whole number from 1 to 10000",
    ),
    (
        '[checkpoint]\narchive = "auto"',
        'job.toml:2: checkpoint.archive must be "none", or a time, steps or epochs such as',
    ),
    ('[checkpoint]\nbest = ".keras"', "job.toml:2: checkpoint.best must be a file name without folders"),
    ('[checkpoint]\nbest = "b-{epoch.keras"', "job.toml:2: checkpoint.best is not a valid template"),
    (
        '[checkpoint]\nbest = "b-{}.keras"',
        "job.toml:2: checkpoint.best is not a valid template ({} is not epoch, step",
    ),
    ('[checkpoint]\nbest = "{epoch.__class__}.keras"', "job.toml:2: checkpoint.best is not a valid template"),
    ('[checkpoint]\nbest = "{epoch!r}.keras"', "job.toml:2: checkpoint.best is not a valid template"),
    (
        '[checkpoint]\nbest = "{epoch:999999999d}.keras"',
        "job.toml:2: checkpoint.best is not a valid template",
    ),
    ('[checkpoint]\nbest = "{epoch:{step}}.keras"', "job.toml:2: checkpoint.best is not a valid template"),
    ('[checkpoint]\nbest = "{val_loss:02d}.keras"', "job.toml:2: checkpoint.best is not a valid template"),
    (
        f'[checkpoint]\nbest = "{"x" * 300}.keras"',
        "job.toml:2: checkpoint.best is too long for a file's name",
    ),
    # environment
    ("[env]\nSEED = 7", 'job.toml:2: env.SEED must be a string; quote it: SEED = "7"'),
    ('[env]\n"A=B" = "1"', "job.toml:2: env.A=B is not a name that an environment variable may have"),
    ('[env]\n"" = "1"', "is not a name that an environment variable may have"),
    ('[env]\nA = "a\\u0000b"', "job.toml:2: env.A must not hold a NUL character"),
    (
        '[env]\nRUNNER_JOB = "x"',
        "job.toml:2: env.RUNNER_JOB is set by the runner itself; choose another name",
    ),
    ('[env]\nRUNNER_SPARE = "5"', "job.toml:2: env.RUNNER_SPARE is set by the runner itself"),
    ('[env]\nRUNNER_KEEPER = "5"', "job.toml:2: env.RUNNER_KEEPER is set by the runner itself"),
    ("[env]\nA = { b = 1 }", "job.toml:2: env.A must be a string"),
    ("env = 5", "job.toml:1: env must be a table, [env]"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "digits"
    folder.mkdir()
    (folder / "train.py").write_text("print('hello')\n")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder.parent / "outside.py").write_text("")
    (folder / "out.py").symlink_to("../outside.py")
    (folder / "loop.py").symlink_to("loop.py")
    return folder


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "train.py").write_text("")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(BadJobError) as caught:
        load_spec(folder)
    message = str(caught.value)
    assert message.isprintable(), "one line"
    assert len(message) <= 500
    return message


@pytest.mark.parametrize(("toml", "expected"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_a_bad_setting_gives_one_clear_line(shared, toml, expected):
    (shared / "job.toml").write_text(toml)
    started = time.process_time()
    assert expected in refusal(shared)
    assert time.process_time() - started < 2, "a hostile file must not hold up the supervisor"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"# caf\xe9\nx = 1\n", "job.toml:1: is not UTF-8 text (byte 0xe9)"),
        (b"a = 1\n\xff\xfe\x00", "job.toml:2: is not UTF-8 text (byte 0xff)"),
        (b"\x7fELF\x02\x01\x01\0", "job.toml:1: is not text (it holds a NUL byte)"),
        ("entry = 'train.py'".encode("utf-16"), "job.toml:1: is not UTF-8 text"),
        (random.Random(1).randbytes(5000).replace(b"\0", b"\xff"), "job.toml:"),
    ],
)
def test_bytes_that_are_no_text(folder, data, expected):
    (folder / "job.toml").write_bytes(data)
    assert expected in refusal(folder)


def test_a_byte_order_mark_is_taken(folder):
    (folder / "job.toml").write_bytes(b"\xef\xbb\xbfpriority = 3\r\n")
    assert load_spec(folder).priority == 3


def test_job_toml_is_a_directory(folder):
    (folder / "job.toml").mkdir()
    assert refusal(folder) == "job.toml: must be a regular file"


@pytest.mark.timeout(10)
def test_job_toml_is_a_fifo_and_nothing_blocks(folder):
    os.mkfifo(folder / "job.toml")
    assert refusal(folder) == "job.toml: must be a regular file"


def test_job_toml_leads_out_of_the_folder(folder):
    (folder / "job.toml").symlink_to("/etc/hostname")
    assert "leads out of the job's folder" in refusal(folder)


def test_job_toml_is_a_broken_link(folder):
    (folder / "job.toml").symlink_to("nowhere.toml")
    assert refusal(folder) == "job.toml: cannot be read: No such file or directory"


def _refusal_without_privileges(folder):
    """What is refused to a user who has no rights but those of all: root reads everything."""
    code = "import sys, tests.test_settings as t, pathlib; print(t.refusal(pathlib.Path(sys.argv[1])))"
    words = [sys.executable, "-c", code, str(folder)]
    if os.geteuid() == 0:
        none = "-dac_override,-dac_read_search"
        words = ["setpriv", "--bounding-set", none, "--inh-caps", none, *words]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_files_that_may_not_be_read(folder):
    (folder / "train.py").chmod(0)
    assert "may not be read" in _refusal_without_privileges(folder)
    (folder / "job.toml").write_text("")
    (folder / "job.toml").chmod(0)
    assert _refusal_without_privileges(folder) == "job.toml: cannot be read: Permission denied"


def test_a_folder_without_anything(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    assert refusal(folder) == "empty: there is no train.py, and no job.toml that names an entry or a command"
    (folder / "job.toml").write_text("priority = 1")
    assert refusal(folder) == "empty: there is no train.py, and no job.toml that names an entry or a command"
    (folder / "train.py").mkdir()
    assert refusal(folder) == 'empty: the entry train.py names "train.py", which is not a regular file'


def test_no_folder_at_all(tmp_path):
    assert refusal(tmp_path / "no\nwhere").endswith(r"no\nwhere: no such folder")


def test_a_folder_with_only_a_script_has_every_default(folder):
    assert load_spec(folder) == JobSpec()


def test_a_folder_of_any_name(tmp_path):
    folder = tmp_path / os.fsdecode(b"--caf\xe9 \n")
    folder.mkdir()
    assert refusal(folder).startswith(r"--caf\udce9 \n: there is no train.py")
    (folder / "train.py").write_text("")
    assert load_spec(folder) == JobSpec()


def test_every_key_of_the_contract(folder):
    (folder / "job.toml").write_text(
        """
        entry = "train.py"
        python = "/bin/sh"
        args = ["--epochs", "50"]
        priority = -3
        after = ["prepare", "other.job", "prepare"]
        [env]
        SEED = "7"
        EMPTY = ""
        [checkpoint]
        every = "500 steps"
        keep = 5
        monitor = "val_accuracy"
        mode = "max"
        best = "weights-improvement-{epoch:02d}-{val_accuracy:.2f}.weights.h5"
        best_keep = 4
        archive = "10 epochs"
        [restart]
        budget = 9
        backoff = "500ms..2m"
        fatal_exit_codes = [2, 3]
        spare = "none"
        [limits]
        hang = "none"
        startup = 90
        grace = "1h30m"
        wall = "1d"
        memory = "8GiB"
        pids = 100
        log = "8MiB"
        [isolation]
        write = ["/"]
        [resources]
        cpus = 1.5
        gpus = 1
        memory = "2GiB"
        preemptible = false
        [seed]
        value = 7
        """
    )
    spec = load_spec(folder)
    assert spec.python == "/bin/sh"
    assert spec.args == ("--epochs", "50")
    assert spec.priority == -3
    assert spec.after == ("prepare", "other.job")
    assert spec.env == {"SEED": "7", "EMPTY": ""}
    assert spec.checkpoint == CheckpointSpec(
        Every(CadenceUnit.STEPS, 500),
        5,
        "val_accuracy",
        Mode.MAX,
        "weights-improvement-{epoch:02d}-{val_accuracy:.2f}.weights.h5",
        best_keep=4,
        archive=Every(CadenceUnit.EPOCHS, 10),
    )
    assert spec.restart == RestartSpec(9, 0.5, 120.0, (2, 3))
    assert spec.limits == LimitsSpec(
        math.inf, 90.0, 5400.0, 86400.0, 8 * 1024**3, pids=100, log_bytes=8 * 1024**2
    )
    assert spec.isolation.write == ("/",)
    assert spec.resources == ResourcesSpec(1.5, 1.0, 2 * 1024**3, preemptible=False)
    assert spec.seed == 7


def test_the_words_auto_and_none(folder):
    (folder / "job.toml").write_text(
        'python = "auto"\n[checkpoint]\nevery = "auto"\nmode = "auto"\nbest_keep = "all"\narchive = "none"\n'
        '[limits]\nhang = "auto"\nwall = "none"\nmemory = "none"\n[restart]\nbackoff = "5s"\n'
    )
    assert load_spec(folder) == JobSpec(restart=RestartSpec(backoff_min_s=5, backoff_max_s=5))
    (folder / "job.toml").write_text('[resources]\nmemory = "none"\ngpus = 0.5')
    assert load_spec(folder).resources == ResourcesSpec(gpus=0.5, memory_bytes=0)


def test_a_job_may_have_a_spare(folder):
    for kind in Spare:
        (folder / "job.toml").write_text(f'[restart]\nspare = "{kind.value}"\n[env]\nA = "1"\n')
        assert load_spec(folder).restart.spare is kind


def test_words_for_no_limit(folder):
    (folder / "job.toml").write_text('[limits]\npids = "none"\nlog = "none"\n')
    limits = load_spec(folder).limits
    assert (limits.pids, limits.log_bytes) == (None, None)


SECRETS = b"""# comment
A=1
export B = 'two words'
C="a=b"
D='
EMPTY=
"""


def test_secrets_are_read_as_written(tmp_path):
    path = tmp_path / "secrets.env"
    path.touch(mode=0o600)
    path.write_bytes(SECRETS)
    expected = {"A": "1", "B": "two words", "C": "a=b", "D": "'", "EMPTY": ""}
    assert envfile.read(str(path), "secrets.env") == expected


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        (b"A=1\nhunter2\n", 0o600, "secrets.env:2: expected KEY=VALUE"),
        (b"2A=hunter2\n", 0o600, "secrets.env:1: expected KEY=VALUE"),
        (b"RUNNER_STATE=hunter2\n", 0o600, "secrets.env:1: RUNNER_STATE is set by the runner itself"),
        (b"A=\xffhunter2\n", 0o600, "secrets.env:1: not UTF-8"),
        (b"A=hunter2\n" * 200_000, 0o600, "larger than 1 MiB"),
        (b"A=hunter2\n", 0o640, "others may use it (mode 640); chmod 600 secrets.env"),
        (b"A=hunter2\n", 0o602, "others may use it (mode 602)"),
        (None, 0o600, "not a regular file"),
    ],
)
def test_what_is_no_file_of_secrets_gives_one_line_without_them(tmp_path, content, mode, expected):
    path = tmp_path / "secrets.env"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(envfile.SecretsError) as told:
        envfile.read(str(path), "secrets.env")
    assert expected in str(told.value)
    assert "hunter2" not in str(told.value)


def test_a_command_takes_the_place_of_the_entry(folder):
    (folder / "job.toml").write_text('command = ["sh", "-c", "exit 0"]')
    spec = load_spec(folder)
    assert (spec.entry, spec.command) == (None, ("sh", "-c", "exit 0"))


def test_a_link_within_the_folder_is_fine(folder):
    (folder / "main.py").symlink_to("train.py")
    (folder / "job.toml").write_text('entry = "main.py"')
    assert load_spec(folder).entry == "main.py"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30s", 30),
        ("10m", 600),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (2, 2),
        (0.25, 0.25),
        ("1d", 86400),
    ],
)
def test_durations(value, seconds):
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value", ["", "s", "1", "1x", "-1s", "1s ", "1 s", True, None, math.nan, -1, 10**400, "٣s"]
)
def test_what_is_no_duration(value):
    with pytest.raises(ValueError, match=r".*"):
        parse_duration(value)


def test_sizes():
    assert [parse_size(text) for text in ("8GiB", "512MB", "1.5 KiB", "7B", 99)] == [
        8 * 2**30,
        512 * 10**6,
        1536,
        7,
        99,
    ]


def test_lines_of_keys():
    text = 'a = """\n[b]\nc = 1\n"""\n[ b . "c d" ]  # [x]\ne.f = [\n  1, # ]\n  2,\n]\n'
    text += "g = '''\n'''\n[[h]]\ni = {j = 1}\n"
    assert key_lines(text) == {
        ("a",): 1,
        ("b", "c d"): 5,
        ("b", "c d", "e", "f"): 6,
        ("b", "c d", "g"): 10,
        ("h",): 12,
        ("h", "i"): 13,
    }


WORDS = """ [ ] { } = . , ' " # \\ a ''' entry checkpoint every limits hang env nan -1 1e999 true "30s" é"""
words = st.sampled_from([*WORDS.split(), " ", "\n", '"""', "\x1b", "\u2028"])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400) | st.lists(words, max_size=60).map(lambda w: "".join(w).encode()))
def test_any_bytes_give_a_spec_or_one_line(folder, data):
    (folder / "job.toml").write_bytes(data)
    try:
        message = repr(load_spec(folder))
    except BadJobError as error:
        message = str(error)
    assert message.isprintable()


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("file:///mnt/disk/", "file:///mnt/disk"),
        ("sftp://user@host:2222/a%20b", "sftp://user@host:2222/a%20b"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_a_mirror(url: str, kept: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "job.toml").write_text(f'[checkpoint]\nmirror = "{url}"\n')
    assert load_spec(tmp_path).checkpoint.mirror == kept


def test_a_mirror_whose_library_is_missing_names_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "job.toml").write_text('[checkpoint]\nmirror = "sftp://host/folder"\n')
    code = (
        "import sys; sys.modules['paramiko'] = None\n"
        "from pathlib import Path; from runner.settings import load_spec; load_spec(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=False, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "job.toml:2: checkpoint.mirror needs paramiko for sftp://" in last
    assert "pip install 'training-runner[mirror]'" in last
