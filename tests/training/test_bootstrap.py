"""A script cannot tell the bootstrap from `python train.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.harness import Job

SCRIPTS = {
    "the main module": """
        import sys
        main = sys.modules["__main__"]
        print(sorted(vars(main)), main.__file__, main.__name__, main.__spec__, type(main.__loader__))
        print(sys.argv, main.__builtins__, main.__package__, main.__doc__, main.__cached__)
        print(sys.path, __file__, sys.flags)
    """,
    "an exception": """
        def inner():
            raise ValueError("no")
        try:
            inner()
        except ValueError as error:
            raise KeyError("really no") from error
    """,
    "a syntax error": "def f(:\n",
    "a missing module": "import there_is_no_such_module\n",
    "an exit code": "import sys; sys.exit(7)\n",
    "an exit message": "import sys; sys.exit('that is it')\n",
    "an exit from below": "raise SystemExit\n",
    "an interrupt": "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n",
    "an own excepthook": "import sys\nsys.excepthook = lambda *e: print('mine', e[0])\nraise ValueError\n",
    "exit handlers and threads": """
        import atexit, threading
        atexit.register(print, "at exit")
        threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
        print("main")
    """,
    "warnings": """
        import warnings
        warnings.warn("old", DeprecationWarning)
        print(warnings.filters)
    """,
    "pickling": """
        import pickle
        class Thing:
            pass
        print(type(pickle.loads(pickle.dumps(Thing()))) is Thing, pickle.dumps(Thing())[:40])
    """,
    "child processes": """
        import multiprocessing, sys
        def double(n):
            return 2 * n
        if __name__ == "__main__":
            for method in ("spawn", "fork"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    print(pool.map(double, [1, 2, 3]))
    """,
    "nothing imported behind its back": """
        import sys
        print([name for name in ("numpy", "h5py", "keras", "tensorflow", "pydantic") if name in sys.modules])
    """,
    "its own neighbour": "import neighbour\nprint(neighbour.__name__)\n",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_like_plain_python(tmp_path: Path, name: str) -> None:
    import textwrap

    job = Job(tmp_path, "train.py", text=textwrap.dedent(SCRIPTS[name]))
    (job.folder / "neighbour.py").touch()
    plain, ours = job.plain("--some", "args"), job.run(args=["--some", "args"])
    assert (ours.code, ours.output, ours.errors) == (plain.code, plain.output, plain.errors)


def test_the_package_is_there_without_being_installed(tmp_path: Path) -> None:
    text = "import runner, sys\nprint(runner.__version__, runner.attach().step, sys.path[0])\n"
    attempt = Job(tmp_path, "train.py", text=text).run()
    assert attempt.output.split()[1:] == ["0", str(tmp_path / "jobs" / "j")], attempt.errors


def test_nothing_is_collected_while_a_large_package_is_imported(tmp_path: Path) -> None:
    """And all is as the script had it afterwards: on, off, with what it has frozen; also where it fails."""
    text = """
import gc, importlib, sys

def imported():
    sys.modules.pop("tensorflow", None)
    try:
        import tensorflow
    except ValueError:
        return "fails", gc.isenabled(), gc.get_freeze_count()
    old = any(one is tensorflow.made for one in gc.get_objects(generation=2))
    return tensorflow.collected, old, gc.isenabled(), gc.get_freeze_count()

print(imported())
gc.disable()
print(imported())
gc.enable()
sys.fails = True
print(imported())
del sys.fails
gc.freeze()
frozen = gc.get_freeze_count()
found = imported()
print(found[:3], found[3] == frozen)
"""
    package = """
import gc, sys
made, before = [], gc.get_stats()[0]["collections"]
if hasattr(sys, "fails"):
    raise ValueError
many = [[] for _ in range(100_000)]
collected = gc.get_stats()[0]["collections"] > before
"""
    job = Job(tmp_path, "train.py", text=text)
    (job.folder / "tensorflow.py").write_text(package)
    ours = job.run()
    assert ours.output.splitlines() == [
        "(False, True, True, 0)",
        "(False, False, False, 0)",
        "('fails', True, 0)",
        "(False, False, True) True",
    ], ours.errors


def test_unseeded_chance_comes_from_the_seed_of_the_job(tmp_path: Path) -> None:
    text = (
        "import random, json, numpy as np\n"
        "print(json.dumps([random.random(), np.random.rand(), np.random.default_rng().random(),"
        " np.random.default_rng().random(), np.random.RandomState().rand(),"
        " np.random.Generator(np.random.PCG64()).random(), np.random.default_rng(3).random()]))\n"
    )
    job = Job(tmp_path, "train.py", text=text)
    first, again = job.run(), job.run()
    other = job.run(seed=99)
    assert first.output == again.output
    numbers, others = json.loads(first.output), json.loads(other.output)
    assert len(set(numbers)) == len(numbers)
    assert [a == b for a, b in zip(numbers, others, strict=True)] == [False] * 6 + [True]
