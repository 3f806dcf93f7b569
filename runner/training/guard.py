"""Running a script beside the attempt that trains: what it reads is noted, what it would do is refused.

Between `enter` and `leave` this process must change nothing in the world. Python tells of most deeds before
they are done (sys.addaudithook); what is known not to be told is looked after at its function. A file can
only grow where `refuse` has been called before: the kernel allows none to (RLIMIT_FSIZE).

What the script reads, lists or asks about is noted as it is then: `changed` tells what is different now.

Limits: code in C that makes, empties, removes or renames a file by itself is not noticed, but for h5py's and
TensorFlow's own; nor is what such code reads, nor that time passes between what the script does and its fit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import resource
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: What may be opened to be written, and what is not worth a note: the kernel's.
_HARMLESS = ("/dev/null", "/dev/tty")
_UNNOTED = ("/proc/", "/sys/", "/dev/")
#: Events of Python's that are a deed.
_DEEDS = frozenset(
    {
        *("os.chflags", "os.chmod", "os.chown", "os.link", "os.lockf", "os.remove", "os.removexattr"),
        *("os.rename", "os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "os.utime"),
        *("os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.spawn"),
        *("os.startfile", "os.system", "pty.spawn", "subprocess.Popen", "signal.pthread_kill"),
        *("fcntl.fcntl", "fcntl.flock", "fcntl.lockf", "sqlite3.connect", "syslog.syslog"),
        *("socket.bind", "socket.connect", "socket.sendmsg", "socket.sendto", "webbrowser.open"),
    }
)
#: Where it lies, its name, and which argument is the path it changes: deeds that Python does not tell of.
_UNTOLD = (
    ("_posixsubprocess", "fork_exec", 0),
    ("_posixshmem", "shm_open", 0),
    ("os", "mkfifo", 0),
    ("os", "mknod", 0),
    ("h5py.h5f", "create", 0),
    ("tensorflow.python.ops.gen_io_ops", "write_file", 0),
    ("tensorflow.python.ops.gen_summary_ops", "create_summary_file_writer", 1),
    ("tensorflow.python.ops.gen_summary_ops", "create_summary_db_writer", 1),
    *(
        ("tensorflow.python.lib.io._pywrap_file_io", name, 0)
        for name in ("CopyFile", "CreateDir", "DeleteFile", "DeleteRecursively", "RecursivelyCreateDir")
    ),
    ("tensorflow.python.lib.io._pywrap_file_io", "RenameFile", 0),
    ("tensorflow.python.lib.io._pywrap_file_io", "WritableFile", 0),
)
#: The same for what is read or asked about.
_UNTOLD_READS = (
    ("os", "stat"),
    ("os", "lstat"),
    ("os", "access"),
    ("tensorflow.python.lib.io._pywrap_file_io", "BufferedInputStream"),
    ("tensorflow.python.lib.io._pywrap_file_io", "FileExists"),
    ("tensorflow.python.lib.io._pywrap_file_io", "GetChildren"),
    ("tensorflow.python.lib.io._pywrap_file_io", "GetMatchingFiles"),
    ("tensorflow.python.lib.io._pywrap_file_io", "Stat"),
)
#: What may do as it does: TensorFlow puts code that it has generated into a file of its own, and loads it.
_FREE = (("tensorflow.python.autograph.pyct.loader", "load_source"),)
#: Functions that want to know of a path whether, and as what, it is there.
_ASKING = frozenset({"exists", "isdir", "isfile", "islink", "is_dir", "is_file", "is_symlink", "lexists"})
_Seen = tuple[int, ...] | None
_real_stat = os.stat


class Guard:
    """One time of running something beside."""

    def __init__(self, refuse: Callable[[str], Any]):
        """Begin.

        Args:
            refuse: called before a deed is done, in any thread, with what it is; must not return.
        """
        self._refuse = refuse
        self._on = False
        self._noting = threading.local()
        self._seen: dict[tuple[str, bool], _Seen] = {}
        self._kept: list[tuple[Any, str, Any]] = []
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def enter(self) -> None:
        """Refuse and note from now on; in the main thread."""
        for module in ("_posixsubprocess", "_posixshmem"):  # to be stood before, they must be there
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        self._on = True
        sys.addaudithook(self._hook)
        signal.signal(signal.SIGXFSZ, self._on_growth)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))
        for module, name, place in _UNTOLD:
            self._stand_before(module, name, functools.partial(self._before_deed, name, place))
        for module, name in _UNTOLD_READS:
            self._stand_before(module, name, self._before_read)
        for module, name in _FREE:
            self._stand_aside(module, name)
        self._stand_before("h5py.h5f", "open", self._before_hdf5)

    def rest(self) -> None:
        """Neither note nor refuse any more; files still cannot grow."""
        self._on = False
        for module, name, original in self._kept:
            setattr(module, name, original)
        self._kept.clear()

    def leave(self) -> None:
        """Be as any process again; in the main thread, where it is one that goes on."""
        self.rest()
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def changed(self) -> str:
        """Return the path of something that is no longer as the script has found it; "" where all is."""
        for (path, whole), seen in self._seen.items():
            if _look(path, whole=whole) != seen:
                return path
        return ""

    # -- what is told ---------------------------------------------------------------------------------------

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on or getattr(self._noting, "now", False):
            return
        if event == "open":
            self._on_open(*args)
        elif event in {"os.listdir", "os.scandir"}:
            if not _is_import():
                self._note(args[0] if args[0] is not None else ".", whole=True)
        elif event == "os.mkdir":
            if _look(os.fspath(args[0]), whole=False) is None:
                self._refuse(f"os.mkdir {os.fspath(args[0])!r}")
            self._note(args[0], whole=False)  # it is there: this fails, or is content with it
        elif event in _DEEDS and not (event == "fcntl.fcntl" and not _locks(args)):
            self._refuse(f"{event} {_text(args)}".rstrip())

    def _on_open(self, path: Any, _mode: Any, flags: Any) -> None:
        if isinstance(path, int):
            return
        if isinstance(flags, int) and flags & _WRITING:
            # A file without a name; `open` tells of the folder first, its opener then of the file.
            nameless = flags & os.O_TMPFILE == os.O_TMPFILE or _is_folder(path)
            if not nameless and os.fsdecode(path) not in _HARMLESS:
                self._refuse(f"it opens {os.fsdecode(path)} to write")
            return
        self._note(path, whole=True)

    def _on_growth(self, _number: int, _frame: Any) -> None:
        if resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 0:
            self._refuse("it writes to a file")

    # -- what is not told -----------------------------------------------------------------------------------

    def _stand_before(self, module: str, name: str, before: Callable[..., None]) -> None:
        """Have `before` called with the arguments of each call of a function that is there."""
        there = sys.modules.get(module)
        original = getattr(there, name, None)
        if there is None or original is None:
            return

        @functools.wraps(original, updated=())
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if self._on and not getattr(self._noting, "now", False):
                before(*args, **kwargs)
            return original(*args, **kwargs)

        self._kept.append((there, name, original))
        setattr(there, name, stand_in)

    def _stand_aside(self, module: str, name: str) -> None:
        """Let a function do what it does."""
        there = sys.modules.get(module)
        original = getattr(there, name, None)
        if there is None or original is None:
            return

        @functools.wraps(original)
        def freed(*args: Any, **kwargs: Any) -> Any:
            if not self._on:
                return original(*args, **kwargs)
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
            try:
                with self._unnoted():
                    return original(*args, **kwargs)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))

        self._kept.append((there, name, original))
        setattr(there, name, freed)

    def _before_deed(self, name: str, place: int, *args: Any, **_kwargs: Any) -> None:
        self._refuse(f"{name} {_text(args[place : place + 1])}".rstrip())

    def _before_hdf5(self, name: Any, flags: Any = 0, *_args: Any, **_kwargs: Any) -> None:
        if flags:  # H5F_ACC_RDWR
            self._refuse(f"it opens {os.fsdecode(name)} to write")
        self._note(name, whole=True)

    def _before_read(self, path: Any, *_args: Any, **_kwargs: Any) -> None:
        caller = sys._getframe(2)
        callers = {caller.f_code.co_name, caller.f_back.f_code.co_name if caller.f_back else ""}
        # What a folder holds is told where it is listed.
        self._note(path, whole=_ASKING.isdisjoint(callers) and not _is_folder(path))

    def _note(self, path: Any, *, whole: bool) -> None:
        """Note how a path is before it is read; whole: with what is in it."""
        if isinstance(path, int):
            return
        text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - links stay what they are
        if not text.startswith(_UNNOTED):
            with self._unnoted():
                self._seen.setdefault((text, whole), _look(text, whole=whole))

    @contextlib.contextmanager
    def _unnoted(self) -> Iterator[None]:
        self._noting.now = True
        try:
            yield
        finally:
            self._noting.now = False


def _look(path: str, *, whole: bool) -> _Seen:
    """Return what tells whether a path has changed; None where nothing is there."""
    try:
        found = _real_stat(path)
    except (OSError, ValueError):
        return None
    kind = stat.S_IFMT(found.st_mode)
    return (kind, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if whole else (kind,)


def _is_folder(path: Any) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return stat.S_ISDIR(_real_stat(path).st_mode)
    return False


def _is_import() -> bool:
    """Tell whether it is Python's import system that asks; modules are looked after elsewhere."""
    return sys._getframe(2).f_code.co_filename.startswith("<frozen importlib")


def _locks(args: tuple[Any, ...]) -> bool:
    """Tell whether a fcntl changes more than this process."""
    import fcntl

    return len(args) > 1 and args[1] in {fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_SETLEASE}


def _text(args: tuple[Any, ...]) -> str:
    return repr(args[0])[:200] if args else ""
