"""The house rules that a program can check: layers, sizes, words, and who may touch what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from runner.core.diagram import mermaid

ROOT = Path(__file__).parents[1]

FILE_LINES_MAX = 400
#: Files that may be longer, each with the reason.
LONGER: dict[str, str] = {}
FUNCTION_LINES_MAX = 50

#: Who may import what of ours; a name stands for all below it.
LAYERS: dict[str, set[str]] = {
    "core": {"core"},
    "storage": {"storage", "core", "errors"},
    "supervisor": {"supervisor", "core", "storage", "settings", "errors"},
    "training": {"training", "core", "storage", "errors"},
    "mirror": {"mirror", "core", "storage", "errors"},
    "settings": {"settings", "core.spec", "core.best", "errors"},
    "errors": set(),
    "cli": {"cli", "supervisor", "training", "settings", "storage", "core", "errors"},
}
#: What the pure core may import of the standard library: values, no clock, no disk, no chance.
#: Of `signal` that is names and numbers.
VALUES = {
    *("__future__", "collections", "dataclasses", "datetime", "enum", "functools", "itertools", "json"),
    *("math", "re", "signal", "string", "typing"),
}
#: The core's one program prints its diagram.
PROGRAMS = {"runner/core/diagram.py": {"sys"}}
#: The worker runs in the job's own environment: it can count on no more than this.
WORKERS = {"numpy", "h5py", "keras", "tensorflow"}
#: What it uses where it is there; a test shows that it does without.
WELCOME = {"runner/storage/digests.py": {"xxhash"}}
#: Tops of processes: where everything that is left over is caught, told and turned into an exit code.
TOPS = {
    "runner/supervisor/__main__.py",
    "runner/mirror/__main__.py",
    "runner/supervisor/birth.py",
    "runner/training/bootstrap.py",
    "runner/cli/__init__.py",
}
#: In the job's own process a failure of ours must not end the training: it is caught there, and told.
GUESTS = {
    "runner/training/ahead.py",
    "runner/training/aside.py",
    "runner/training/epochwise.py",
    "runner/training/fallback.py",
    "runner/training/finished.py",
    "runner/training/fitlog.py",
    "runner/training/hot.py",
    "runner/training/saver.py",
    "runner/training/sharing.py",
    "runner/training/spare.py",
    "runner/training/stopping.py",
}
#: The only places that rename or sync.
DURABLE = {"runner/storage/durable.py", "runner/supervisor/jsonfile.py"}


@dataclass(frozen=True)
class Module:
    """One of our files, parsed."""

    path: Path

    @property
    def place(self) -> str:
        return self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else self.path.name

    @property
    def layer(self) -> str:
        """The part it belongs to; "" for the package's own __init__."""
        name = self.path.relative_to(ROOT / "runner").parts[0].removesuffix(".py")
        return "" if name == "__init__" else name

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.place)

    def imports(self, *, at_import_only: bool = False) -> Iterator[str]:
        """Yield the dotted names it imports; `from a import b` gives `a.b`."""
        for node in statements(self.tree) if at_import_only else ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.place}:{node.lineno}: a relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def imports_of_ours(self) -> set[str]:
        return {name.removeprefix("runner.") for name in self.imports() if name.startswith("runner.")}


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield what runs when the module is imported: no bodies of functions, nothing for type checkers."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        stack += ast.iter_child_nodes(node)


MODULES = [Module(path) for path in sorted((ROOT / "runner").rglob("*.py"))]
BY_PLACE = {module.place: module for module in MODULES}


def third_party(names: Iterator[str]) -> set[str]:
    roots = {name.split(".")[0] for name in names}
    return roots - set(sys.stdlib_module_names) - {"runner"}


each = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.place)


# --- layers -----------------------------------------------------------------------------------------------


def test_every_part_has_its_layer() -> None:
    assert {module.layer for module in MODULES} - {""} == set(LAYERS)


@each
def test_layers(module: Module) -> None:
    if module.layer == "":
        return
    allowed = LAYERS[module.layer]
    ours = module.imports_of_ours() - {"__version__"}
    wrong = {n for n in ours if not any(n == a or n.startswith(f"{a}.") for a in allowed)}
    assert not wrong, f"{module.layer} -> {', '.join(sorted(allowed)) or 'nothing'} only"


@each
def test_the_core_is_pure(module: Module) -> None:
    if module.layer == "core":
        roots = {name.split(".")[0] for name in module.imports()} - {"runner"}
        assert roots <= VALUES | PROGRAMS.get(module.place, set())
        assert not re.search(r"\b(open|input|print)\(|\.now\(|utcnow|today\(", module.text)


@each
def test_the_worker_counts_on_nothing_but_the_jobs_environment(module: Module) -> None:
    if module.layer == "training":
        assert third_party(module.imports()) <= WORKERS
        for name in module.imports_of_ours():
            for place in (f"runner/{name.replace('.', '/')}.py", f"runner/{name.rpartition('.')[0]}.py"):
                if place in BY_PLACE:
                    wanted = third_party(BY_PLACE[place].imports(at_import_only=True))
                    assert wanted <= WORKERS | WELCOME.get(place, set()), place


def test_the_shim_needs_only_the_standard_library() -> None:
    shim = BY_PLACE["runner/supervisor/shim.py"]
    # What lies beside it is imported, or run, by its place.
    beside = {"attemptgroup", "birth", "jsonfile", "landlock", "lineage", "logcap"}
    programs = {"evidence", "vacated"}
    files = [shim, *(BY_PLACE[f"runner/supervisor/{name}.py"] for name in beside | programs)]
    for file in (*files, BY_PLACE["runner/settings/envfile.py"]):
        roots = {name.split(".")[0] for name in file.imports() if not name.startswith("runner.")}
        assert roots <= set(sys.stdlib_module_names) | beside | {"envfile"}, file.place
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import runpy, sys; runpy.run_path(sys.argv[1])", str(shim.path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_nobody_imports_the_programs_that_others_start_by_their_path() -> None:
    for module in MODULES:
        for name in ("evidence", "shim", "vacated"):
            assert f"supervisor.{name}" not in module.imports_of_ours(), module.place
        if module.layer != "training":
            assert "training.bootstrap" not in module.imports_of_ours(), module.place


def test_the_daemon_loads_nothing_heavy() -> None:
    code = (
        "import sys; from runner.supervisor import __main__; from runner.storage import records; "
        "records._jobs(); print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()
    assert "runner.supervisor.supervisor" in loaded
    heavy = {"tensorflow", "keras", "h5py", "numpy", "typer", "click", "rich", "sklearn"}
    heavy |= {"fsspec", "s3fs", "paramiko", "botocore"}
    assert not heavy & set(loaded)
    assert not [
        name for name in loaded if name.startswith(("runner.training", "runner.cli", "runner.mirror"))
    ]


# --- who may touch what -----------------------------------------------------------------------------------


@each
def test_nothing_unpickles(module: Module) -> None:
    banned = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    assert not {name.split(".")[0] for name in module.imports()} & banned
    assert "allow_pickle=True" not in module.text


def renames_or_syncs(node: ast.AST) -> bool:
    """Tell whether `node` calls what only durable.py may: os.fsync, os.rename, Path.rename and the like."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    name, owner = node.func.attr, ast.unparse(node.func.value)
    if owner == "os":
        return name in {"fsync", "fdatasync", "sync", "rename", "renames", "replace"}
    if owner == "shutil":
        return name == "move"
    one_path = len(node.args) == 1 and not node.keywords  # str.replace takes two, dataclasses' takes names
    return one_path and name in {"rename", "replace"} and owner != "durable"


@each
def test_only_durable_renames_and_syncs(module: Module) -> None:
    if module.place not in DURABLE and module.place != "runner/storage/eventlog.py":
        lines = [node.lineno for node in ast.walk(module.tree) if renames_or_syncs(node)]
        assert not lines, f"{module.place}: use storage.durable in lines {lines}"


def test_the_event_log_syncs_what_it_appends_and_renames_nothing() -> None:
    calls = [n for n in ast.walk(BY_PLACE["runner/storage/eventlog.py"].tree) if renames_or_syncs(n)]
    assert [ast.unparse(call) for call in calls] == ["os.fdatasync(fd)"]


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Tell whether it catches everything and keeps it: to clean up and raise again is fine."""
    if isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None:
        return False
    kinds = "BaseException" if handler.type is None else ast.unparse(handler.type)
    return bool(re.search(r"\b(Base)?Exception\b", kinds))


def tells(handler: ast.ExceptHandler) -> bool:
    """Tell whether it passes on what it caught."""
    uses = (n for part in handler.body for n in ast.walk(part) if isinstance(n, ast.Name))
    return handler.name is not None and any(n.id == handler.name for n in uses)


@each
def test_only_the_tops_of_processes_catch_everything(module: Module) -> None:
    if module.place not in TOPS:
        found = [n for n in ast.walk(module.tree) if isinstance(n, ast.ExceptHandler) and is_broad(n)]
        if module.place in GUESTS:
            found = [handler for handler in found if not tells(handler)]
        assert not [handler.lineno for handler in found], module.place
        suppressed = re.findall(r"suppress\((?:Base)?Exception\)", module.text)
        assert not suppressed or module.place in GUESTS, module.place


# --- sizes and words --------------------------------------------------------------------------------------


@each
def test_files_can_be_read_at_one_sitting(module: Module) -> None:
    lines = module.text.count("\n")
    if module.place in LONGER:
        assert lines > FILE_LINES_MAX, f"{module.place} is short enough now: strike it off the list"
    else:
        assert lines <= FILE_LINES_MAX


@each
def test_functions_can_be_read_at_a_glance(module: Module) -> None:
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert not long


@each
def test_names_say_what_things_are(module: Module) -> None:
    vague = re.compile(r"manager|helper|util|common|misc|task", re.IGNORECASE)
    names = [node.name for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    assert not [name for name in [module.path.stem, *names] if vague.search(name)]


@each
def test_nothing_knows_this_machine(module: Module) -> None:
    assert not re.search(r"/(home|work|Users)/\w", module.text)


def test_the_life_of_a_job_in_the_documents_is_that_of_the_table() -> None:
    assert f"```mermaid\n{mermaid()}```\n" in (ROOT / "ARCHITECTURE.md").read_text()


# --- the rules themselves ---------------------------------------------------------------------------------


def parsed(tmp_path: Path, text: str) -> Module:
    path = tmp_path / "module.py"
    path.write_text(text)
    return Module(path)


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("os.fsync(fd)", True),
        ("os.replace(a, b)", True),
        ("path.rename(target)", True),
        ("path.replace(target)", True),
        ("shutil.move(a, b)", True),
        ("text.replace('a', 'b')", False),
        ("replace(job, state=s)", False),
        ("now.replace(tzinfo=UTC)", False),
        ("durable.replace(x)", False),
    ],
)
def test_control_renames_are_seen(line: str, caught: bool, tmp_path: Path) -> None:
    assert any(map(renames_or_syncs, ast.walk(parsed(tmp_path, line).tree))) == caught


@pytest.mark.parametrize(
    ("handler", "caught"),
    [
        ("except Exception:\n    pass", True),
        ("except (OSError, Exception) as e:\n    log(e)", True),
        ("except:\n    pass", True),
        ("except BaseException:\n    clean()\n    raise", False),
        ("except OSError:\n    pass", False),
        ("except MyException:\n    pass", False),
    ],
)
def test_control_broad_handlers_are_seen(handler: str, caught: bool, tmp_path: Path) -> None:
    tree = parsed(tmp_path, f"try:\n    x()\n{handler}\n").tree
    assert any(isinstance(n, ast.ExceptHandler) and is_broad(n) for n in ast.walk(tree)) == caught


def test_control_imports_are_seen(tmp_path: Path) -> None:
    text = "import a.b\nfrom c import d\ndef f():\n    import e\nif TYPE_CHECKING:\n    import g\n"
    module = parsed(tmp_path, text)
    assert set(module.imports()) == {"a.b", "c.d", "e", "g"}
    assert set(module.imports(at_import_only=True)) == {"a.b", "c.d"}
