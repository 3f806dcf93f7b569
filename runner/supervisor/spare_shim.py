"""The shim that waits, with a worker that imports meanwhile, to be told which attempt it is the shim of.

Run as `python -I -S spare_shim.py FOLDER` with a socket to the supervisor as descriptor 5; the folder holds
a launch.json as an attempt's does. What its worker says is passed on: it is ready, or why it never will be.
Once it is, a keeper waits, too.

- One message from the supervisor, `{"folder": DIR}`, brings the job's lock and the memory for snapshots: from
  then on this is that attempt's shim and no other (`shim.run`). The lock travels in the message: whoever dies
  on the way, it is held as long as the attempt may come to life.
- Until then nothing is held here. The socket's other end closed (the supervisor is dead, or does not want us
  any more), the worker gone, a signal: the worker is killed with all that it has started, and this ends.
- A worker that is ready does so at once; one that is not has as long again as it has had, for what is left
  to it is less than a start. Who takes longer, or is gone, is replaced by one that is just started.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

CHANNEL_FD = 5
MEMORY_FD = 4
#: In the environment of the worker: the descriptor of its socket to us.
SPARE = "RUNNER_SPARE"
#: For a worker that is ready to take its orders: less than what a new one takes for the imports.
ANSWER_S = 3.0
MESSAGE_BYTES = 65536
#: What a worker says that has taken its orders (`training.spare`).
TAKEN = b"{}"
#: Of what the worker has printed while it waited, that much goes into the attempt's log.
OUTPUT_BYTES = 65536
#: What is different for each attempt; the worker is told.
FOR_EACH = ("RUNNER_ATTEMPT", "RUNNER_RESUME")


def load_shim() -> Any:
    """Load the shim's own code: it lies beside this file, and is no part of any package here."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim.py")
    spec = importlib.util.spec_from_file_location("shim", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shim: Any = load_shim()


def open_log(folder: str) -> int:
    """Open the log of an attempt, to be handed to a process; return the descriptor."""
    return os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


class Waiting:
    """The worker that waits, and who waits for it."""

    def __init__(self, folder: str, wake: int, libc: Any):
        self.folder = folder
        self.began_s = time.monotonic()
        self.ready = False
        self.wake = wake
        self.libc = libc
        self.supervisor = socket.socket(fileno=CHANNEL_FD)
        for fd in (shim.LOCK_FD, MEMORY_FD, CHANNEL_FD):  # the first two are kept free for what comes
            os.set_inheritable(fd, False)
        self.pending: list[int] = []  # signals that came while a message did
        self.log = open(os.path.join(folder, "log"), "rb")  # noqa: SIM115 - the next spare has another one
        with open(os.path.join(folder, "launch.json"), "rb") as file:
            launch = json.load(file)
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.launch = launch
        self.worker: int = self.start_waiting(launch["argv"], theirs, lambda: None)
        self.keeper = 0  # not started yet
        self.to_keeper: socket.socket | None = None
        self.tell()

    def start_waiting(self, argv: list[str], channel: socket.socket, settle: Callable[[], None]) -> int:
        """Start a process that waits at its end of a socket; return its pid."""
        with channel:
            channel.set_inheritable(True)
            env = {**self.launch["env"], SPARE: str(channel.fileno())}
            pid: int = shim.birth.start_process(
                argv, {**self.launch, "env": env}, self.folder, self.libc, (), settle
            )
        return pid

    def start_keeper(self) -> None:
        """Have a keeper ready, too: what it imports would take the worker's time."""
        if self.launch.get("keeper") and not self.keeper:
            self.to_keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with contextlib.suppress(OSError):
                self.keeper = self.start_waiting(self.launch["keeper"], theirs, shim.birth.stand_back)

    def tell(self) -> None:
        """Write down who we are, and whether the worker is ready."""
        about = {
            "version": 1,
            "shim": shim.lineage.identity(os.getpid()),
            "worker": shim.lineage.identity(self.worker),
            "keeper": shim.lineage.identity(self.keeper) if self.keeper else None,
            "ready": self.ready,
        }
        with contextlib.suppress(OSError):
            shim.jsonfile.write_json(os.path.join(self.folder, "shim.json"), about)

    def wait(self) -> str:
        """Wait until an attempt is handed over; return its folder. Ends the process where none is."""
        while True:
            watched: list[Any] = [self.supervisor, self.channel, self.wake]
            found = select.select(watched, [], [])[0]
            if self.wake in found:
                self.pending += [n for n in os.read(self.wake, 512) if n != signal.SIGCHLD]
            if self.supervisor in found or self.pending or (self.channel in found and not self.pass_on()):
                with contextlib.suppress(OSError):  # what is handed over from now on is refused
                    self.supervisor.shutdown(socket.SHUT_RD)
                return self.taken()

    def pass_on(self) -> bool:
        """Tell the supervisor what the worker says; False where it is gone, or that is no word of it."""
        message = self.heard()
        word = says_ready(message)
        if word is None:
            return False
        self.ready = word
        with contextlib.suppress(OSError):
            self.supervisor.send(message)
        if self.ready:
            self.start_keeper()
        self.tell()
        return True

    def heard(self) -> bytes:
        """Return the worker's message; nothing once it is gone."""
        try:
            return self.channel.recv(MESSAGE_BYTES)
        except OSError:
            return b""

    def taken(self) -> str:
        """Take what the supervisor hands over, the lock, the memory, the attempt; end where it does not."""
        try:
            message, fds, _, _ = socket.recv_fds(self.supervisor, MESSAGE_BYTES, 2)
        except OSError:
            message, fds = b"", []
        if not message:
            self.end()
        self.supervisor.close()
        for number, fd in zip((shim.LOCK_FD, MEMORY_FD), fds, strict=False):
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        for number in self.pending:
            os.kill(os.getpid(), number)  # once more, for who looks now
        folder: str = json.loads(message)["folder"]
        self.withdraw()
        return folder

    def start(
        self,
        argv: list[str],
        launch: dict[str, Any],
        folder: str,
        libc: Any,
        handed: tuple[int, ...],
        confine: Callable[[], None],
    ) -> int:
        """Let the worker go on as the attempt's; return its pid, or that of another in its stead."""
        log = open_log(folder)
        try:
            for number in (1, 2):
                os.dup2(log, number)
            self.copy_output(log)
            orders = {"environ": {name: launch["env"][name] for name in FOR_EACH}}
            if self.answers(json.dumps(orders).encode(), [log, *handed]):
                self.copy_output(log)  # since then
                return self.worker
        finally:
            os.close(log)
            self.log.close()
            self.channel.close()
        sys.stderr.write("shim: the spare does not answer: a new process is started\n")
        with contextlib.suppress(ProcessLookupError):  # it alone: the keeper is our child by now
            os.kill(self.worker, signal.SIGKILL)
        os.waitpid(self.worker, 0)
        self.worker = shim.birth.start_process(argv, launch, folder, libc, handed, confine)
        return self.worker

    def beside(
        self,
        argv: list[str],
        launch: dict[str, Any],
        folder: str,
        libc: Any,
        handed: tuple[int, ...],
        settle: Callable[[], None],
    ) -> int:
        """Let the keeper that waits be the attempt's; return its pid, or that of another in its stead."""
        channel, self.to_keeper = self.to_keeper, None
        if channel is not None and self.keeper:
            log = open_log(folder)
            orders = {"environ": {name: launch["env"][name] for name in FOR_EACH}}
            try:
                with channel:
                    socket.send_fds(channel, [json.dumps(orders).encode()], [log, *handed])
                return self.keeper
            except OSError:
                sys.stderr.write("shim: the keeper that waited has ended: another one is started\n")
            finally:
                os.close(log)
        pid: int = shim.birth.start_process(argv, launch, folder, libc, handed, settle)
        return pid

    def answers(self, orders: bytes, fds: list[int]) -> bool:
        """Send the worker its orders, and tell whether it has taken them; or is to end, as it is."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.channel, [orders], fds)
            if not self.ready:
                hurry(self.worker)
            until_s = time.monotonic() + (ANSWER_S if self.ready else time.monotonic() - self.began_s)
            watched: list[Any] = [self.channel, self.wake]
            while found := select.select(watched, [], [], max(0.0, until_s - time.monotonic()))[0]:
                if self.channel in found:
                    message = self.heard()
                    if not says_ready(message):
                        return message == TAKEN
                    until_s = time.monotonic() + ANSWER_S  # it is ready now, and takes them next
                elif numbers := [n for n in os.read(self.wake, 512) if n != signal.SIGCHLD]:
                    for number in numbers:
                        os.kill(os.getpid(), number)  # once more, for who looks now
                    return True
        return False

    def copy_output(self, log: int) -> None:
        """Put what the worker has printed while it waited into the attempt's log."""
        with contextlib.suppress(OSError):
            os.write(log, self.log.read(OUTPUT_BYTES))
            self.log.seek(0, os.SEEK_END)

    def clear(self) -> None:
        """Kill the worker and all that it has started."""
        while left := [*shim.lineage.descendants()]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

    def end(self) -> NoReturn:
        """End: nobody wants us."""
        self.clear()
        self.withdraw()
        os._exit(0)

    def withdraw(self) -> None:
        """Let nobody find us in the folder of spares, where another one may be by now."""
        path = os.path.join(self.folder, "shim.json")
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(path, "rb") as file:
                about = json.load(file)
            if about["shim"] == shim.lineage.identity(os.getpid()):
                os.unlink(path)


def hurry(pid: int) -> None:
    """Give a process that stands back the priority that we have."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # it alone has; or it keeps its own
                os.setpriority(os.PRIO_PROCESS, int(thread), ours)


def says_ready(message: bytes) -> bool | None:
    """Tell whether a worker's message says that it is ready, or never will be; None where it says neither."""
    try:
        return bool(json.loads(message)["ready"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def main() -> None:
    """Wait for an attempt, and run it to its end."""
    wake = shim.watch_signals()
    waiting = Waiting(sys.argv[1], wake, shim.become_subreaper())
    shim.run(waiting.wait(), waiting.libc, wake, waiting.start, waiting.beside)


if __name__ == "__main__":
    os.chdir("/")
    main()
    os._exit(0)
