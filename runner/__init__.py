"""Keeps training jobs alive, and resumes unmodified Keras scripts exactly.

`import runner` is cheap and harmless in any script: names are loaded on first use, and nothing of the
supervisor or of the command line comes with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.training.api import Run, attach

__all__ = ["Run", "__version__", "attach"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the training API on first use (PEP 562), so that the daemon never pays for it."""
    if name in {"attach", "Run"}:
        from runner.training import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
