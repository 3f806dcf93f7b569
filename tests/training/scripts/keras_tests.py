"""Runs tests that Keras ships: `python keras_tests.py OUTCOMES TEST...`, a TEST as in Keras's sources.

Each test's outcome becomes a line in OUTCOMES as soon as it is known: what is left over from a process that
died tells how far it came. Some packages that the test files import at their top, to try them under other
backends, may be absent. Something stands in for them, so that the files can be imported: a test that really
uses it is skipped.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
import types
import unittest
from pathlib import Path

import keras
import pytest

OUTCOMES = Path(sys.argv[1]).resolve()
SITE = Path(keras.__file__).resolve().parents[1]
#: Big, and needed by a few of the tests only.
OPTIONAL = ("grain", "jax", "pandas", "torch")


class _Nothing(type):
    """The type of what an absent package holds: its attributes are alike, and calling it skips the test."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing(f"{cls.__name__}.{name}")

    def __call__(cls, *args, **kwargs):
        raise unittest.SkipTest(f"{cls.__name__} is not installed")


def _nothing(name):
    return _Nothing(name, (), {})


class _StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing(f"{self.__name__}.{name}")


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last finder: it gives stand-ins for absent packages and all below them."""

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] not in OPTIONAL:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=True)

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


class Recorder:
    """Notes the outcome of each test, the worst of its parts: with the exception's type, where it failed."""

    def __init__(self, file):
        self._file = file
        self._outcome = {}

    def _tell(self, test, outcome):
        self._file.write(json.dumps([test, outcome]) + "\n")
        self._file.flush()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        outcome = report.outcome
        if report.failed:
            outcome = f"{'failed' if call.when == 'call' else 'error'} {call.excinfo.typename}"
        elif hasattr(report, "wasxfail"):
            outcome = "xfailed" if report.skipped else "xpassed"
        before = self._outcome.get(item.nodeid, "passed")
        if before == "passed":
            self._outcome[item.nodeid] = outcome
        return report

    def pytest_runtest_logfinish(self, nodeid, location):
        self._tell(nodeid, self._outcome.pop(nodeid, "not run"))

    def pytest_collectreport(self, report):
        if report.failed:
            self._tell(report.nodeid, "error at import")
        elif report.skipped:
            self._tell(report.nodeid, "skipped")


def main():
    sys.meta_path.append(_Absent())
    # Keras's conftest.py is not in its wheel.
    conftest = sys.modules["conftest"] = types.ModuleType("conftest")
    conftest.skip_if_backend = lambda backend, reason: pytest.mark.skipif(
        keras.backend.backend() == backend, reason=reason
    )
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    settings = Path("pytest.ini").resolve()
    settings.write_text("[pytest]\n")
    options = ["-q", "-c", str(settings), f"--rootdir={SITE}", "--noconftest", "--assert=plain"]
    options += ["-p", "no:cacheprovider", "-W", "ignore", "--tb=short", "--durations=30"]
    options += ["--continue-on-collection-errors"]
    tests = [str(SITE / test) for test in sys.argv[2:]]
    with OUTCOMES.open("w") as file:
        status = pytest.main([*options, *tests], plugins=[Recorder(file)])
    # That tests fail is an outcome like any other; that pytest could not run them is not.
    sys.exit(0 if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) else int(status))


if __name__ == "__main__":
    main()
