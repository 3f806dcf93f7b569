"""Runs a job's script as `python SCRIPT` would, with the runner around it.

Started as `PYTHON .../runner/training/bootstrap.py` by the job's own interpreter, which need not have this
package installed: it is found by this file's own place, without a change of `sys.path`. The script becomes
the real `__main__` module. Differences that remain: our frames lie below the script's on the stack (they are
taken out of printed tracebacks), and this file stands in `sys.orig_argv`.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import itertools
import os
import signal
import sys
import types
from pathlib import Path
from typing import NoReturn

_PACKAGE = Path(__file__).resolve().parent.parent


def register_package() -> None:
    """Make `import runner` find this very package."""
    if "runner" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "runner", _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["runner"] = module
    spec.loader.exec_module(module)


def main() -> NoReturn:
    """Run the script that launch.json names; ends the process as the script would have."""
    from runner.training import imports, instrument, launch, spare, steady, worker

    steady.steady_output()
    stood = spare.stand_by()
    hot = stood.hot if stood is not None else None
    orders = launch.load() if hot is None else hot.orders()
    os.environ.pop(launch.KEEPER, None)
    os.chdir(orders.cwd)
    imports.install()
    here = worker.start(orders, imported=stood.imported if stood is not None else None, hot=hot)
    instrument.arrange(here)
    _watch_exit()
    assert orders.entry is not None
    if hot is None:
        run_script(orders.entry, orders.args)
    else:
        hot.run(lambda: run_script(str(orders.entry), orders.args))
    raise SystemExit(0)


def run_script(entry: str, args: tuple[str, ...]) -> None:
    """Run a script as `__main__`."""
    path = str(Path.cwd() / entry)
    sys.argv = [entry, *args]
    sys.path[0] = str(Path(path).resolve().parent)
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(
        __file__=path,
        __builtins__=__builtins__,
        __loader__=importlib.machinery.SourceFileLoader("__main__", path),
        __annotations__={},
        __cached__=None,
    )
    # The module that this file was run as lives on: its globals are in use.
    sys.modules["runner.training.bootstrap"] = sys.modules["__main__"]
    sys.modules["__main__"] = main_module
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a missing file reads as it does in plain Python
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, main_module.__dict__)
    except SystemExit as error:
        if error.code:
            _tell(error)
            raise
        _end_as_asked()
        raise
    except BaseException as error:  # noqa: BLE001 - the script's top: whatever ends it is reported
        _end_with(error)
    _end_as_asked()


def _end_as_asked() -> None:
    """End a script that a handler of its own has ended on SIGTERM, with 0, as one that has stopped."""
    if code := _asked_code():
        raise SystemExit(code)


def _asked_code() -> int:
    """Return, and say, the exit code of a script that ends with 0: another one where its handler ends it."""
    from runner.training import stopping, worker

    here = worker.current()
    if here is None or not here.stop.left_to_script:
        return 0
    here.say("runner: the script's own handler has ended it on SIGTERM: it has stopped (75), not succeeded")
    return stopping.STOPPED


def _watch_exit() -> None:
    """Hold `os._exit(0)` to the same; not in the children of this process."""
    leave, here = os._exit, os.getpid()

    @functools.wraps(leave)
    def _exit(status: int) -> NoReturn:
        leave(_asked_code() if status == 0 and os.getpid() == here else status)

    os._exit = _exit


def _end_with(error: BaseException) -> NoReturn:
    """Report an uncaught exception as the interpreter would, and end."""
    _strip(error, set())
    _tell(error)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    sys.excepthook(type(error), error, error.__traceback__)
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    raise SystemExit(1)


def _tell(error: BaseException) -> None:
    from runner.training import worker

    here = worker.current()
    if here is not None:
        here.vigil.tell_raised(error)


def _strip(error: BaseException | None, seen: set[int]) -> None:
    """Take our frames out of an exception's traceback, and of those it came from."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = _without_ours(error.__traceback__)
    _strip(error.__cause__, seen)
    _strip(error.__context__, seen)


def _without_ours(entry: types.TracebackType | None) -> types.TracebackType | None:
    ours = str(_PACKAGE / "training")
    kept = []
    while entry is not None:
        if not entry.tb_frame.f_code.co_filename.startswith(ours):
            kept.append(entry)
        entry = entry.tb_next
    for one, following in itertools.pairwise([*kept, None]):
        assert one is not None
        one.tb_next = following
    return kept[0] if kept else None


if __name__ == "__main__":
    register_package()
    main()
