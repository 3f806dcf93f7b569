"""The command line: one verb per file, loaded only when it is asked for.

What goes wrong is one line on stderr, `runner: ...`, with the exit code of the contract (errors.py); a
traceback is shown only for a bug of ours, and only with RUNNER_DEBUG=1.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

from runner.errors import RunnerError

if TYPE_CHECKING:
    import typer

#: Every verb, in the order of `runner --help`; `rm` lives in runner/cli/rm.py, and so on.
VERBS = (
    *("submit", "ls", "top", "status", "logs", "wait"),
    *("stop", "cancel", "pause", "resume", "priority", "retry", "rm"),
    *("checkpoints", "best", "export"),
    *("run", "supervise", "doctor", "drill", "version", "completion"),
)
COMPLETE_VAR = "_RUNNER_COMPLETE"
EXIT_BUG = 70  # EX_SOFTWARE
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    debug = bool(os.environ.get("RUNNER_DEBUG"))
    try:
        return _run(argv)
    except RunnerError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush to
        return 1
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
        return 1
    except Exception as error:  # the process's top
        if debug:
            raise
        kind = type(error).__name__
        complain(
            f"internal error: {kind}: {error}; please report it, with what RUNNER_DEBUG=1 adds "
            f"(training-runner {_version()})"
        )
        return EXIT_BUG


def _run(argv: list[str]) -> int:
    import typer

    completing = COMPLETE_VAR in os.environ
    command = typer.main.get_command(_app(argv, completing))
    try:
        code = command.main(args=argv, prog_name="runner", standalone_mode=False)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except Exception as error:
        # Usage errors are of classes that typer keeps to itself; all of them can format their message.
        if not hasattr(error, "format_message"):
            raise
        complain(f"{error.format_message()} See `runner {_verb(argv)}--help`.")
        return 2
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _app(argv: list[str], completing: bool) -> typer.Typer:
    """Build the command line; with the invoked verb only, where it is known."""
    import typer

    app = typer.Typer(add_completion=completing, no_args_is_help=True, rich_markup_mode=None)

    @app.callback()
    def runner() -> None:
        """Keep training jobs alive: submit a folder, and it trains to the end."""

    verb = argv[0] if argv else ""
    for name in (verb,) if verb in VERBS and not completing else VERBS:
        module = importlib.import_module(f"runner.cli.{name}")
        app.command(name, context_settings=getattr(module, "CONTEXT", None))(module.command)
    return app


def _verb(argv: list[str]) -> str:
    return f"{argv[0]} " if argv and argv[0] in VERBS else ""


def _version() -> str:
    from runner import __version__

    return __version__


def complain(text: str) -> None:
    """Print one line on stderr, whatever the text holds."""
    line = " ".join(text.split())
    sys.stdout.flush()
    print(f"runner: {line.encode(errors='backslashreplace').decode()}", file=sys.stderr)
