"""Not there (see `tests.environ`)."""

raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
