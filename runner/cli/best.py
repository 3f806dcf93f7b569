"""`runner best`: the best model so far."""

from __future__ import annotations

from pathlib import Path

from runner.cli import facts, output
from runner.cli.options import HomeOption, JsonOption, NameArgument, existing, open_home
from runner.errors import RefusedError
from runner.storage.layout import Home


def command(name: NameArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Show the best model so far."""
    where = open_home(home)
    name = existing(where, name)
    best = facts.gather(where, name)["best"]
    kept = series(where, name)
    if json:
        output.print_json({"best": best, "kept": [str(path) for path in kept]})
        return
    if best is None:
        raise RefusedError(f"{name}: no best model yet; it is kept once the monitored metric is reported")
    output.print_pairs(
        [
            (best["metric"], output.metric(best["value"])),
            ("epoch", str(best["epoch"] + 1)),
            ("step", str(best["step"])),
            ("file", best["path"]),
            *([("kept", f"{len(kept)} files in {where.job(name).best}")] if len(kept) > 1 else []),
        ]
    )


def series(home: Home, name: str) -> list[Path]:
    """List the best models that are kept, by name."""
    folder = home.job(name).best
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix in {".h5", ".keras"} and path.name[0] != "."
    )
