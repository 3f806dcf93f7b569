"""Runs a deed in a forked child, stopped at each of its system calls: to count, kill, fail or shorten them.

strace attaches in some 50 ms, lies where a short write is wanted (it changes what is returned, not what is
written), and can do nothing of its own between two calls, such as cutting the power. This does all of it, in
a millisecond or two, with ptrace(2).

Limits: x86-64, one thread in the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

#: <asm/unistd_64.h>; others are named by their number.
NAMES = {
    0: "read", 1: "write", 2: "open", 3: "close", 4: "stat", 5: "fstat", 6: "lstat", 8: "lseek", 9: "mmap",
    10: "mprotect", 11: "munmap", 12: "brk", 13: "rt_sigaction", 14: "rt_sigprocmask", 16: "ioctl",
    17: "pread64", 18: "pwrite64", 19: "readv", 20: "writev", 21: "access", 24: "sched_yield", 25: "mremap",
    28: "madvise", 32: "dup", 33: "dup2", 39: "getpid", 40: "sendfile", 44: "sendto", 45: "recvfrom",
    46: "sendmsg", 47: "recvmsg",
    48: "shutdown", 51: "getsockname", 52: "getpeername", 54: "setsockopt", 55: "getsockopt", 56: "clone",
    72: "fcntl", 73: "flock",
    74: "fsync", 75: "fdatasync", 76: "truncate", 77: "ftruncate", 78: "getdents", 79: "getcwd",
    82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink", 88: "symlink",
    89: "readlink", 90: "chmod", 91: "fchmod", 96: "gettimeofday", 98: "getrusage",
    107: "geteuid", 124: "getsid",
    137: "statfs", 138: "fstatfs", 202: "futex", 217: "getdents64", 228: "clock_gettime", 257: "openat",
    258: "mkdirat", 262: "newfstatat", 263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat",
    267: "readlinkat", 268: "fchmodat", 269: "faccessat", 280: "utimensat", 285: "fallocate",
    295: "preadv", 296: "pwritev", 316: "renameat2", 318: "getrandom", 326: "copy_file_range",
    327: "preadv2", 328: "pwritev2", 332: "statx", 334: "rseq", 435: "clone3", 439: "faccessat2",
}  # fmt: skip
#: Calls that a disk, or what stands for one, may fail.
FILE = frozenset(
    {"read", "write", "open", "close", "stat", "fstat", "lstat", "lseek", "pread64", "pwrite64", "readv"}
    | {"writev", "access", "fcntl", "flock", "fsync", "fdatasync", "truncate", "ftruncate", "getdents64"}
    | {"rename", "mkdir", "rmdir", "creat", "link", "unlink", "symlink", "readlink", "statfs", "fstatfs"}
    | {"openat", "mkdirat", "newfstatat", "unlinkat", "renameat", "linkat", "symlinkat", "readlinkat"}
    | {"faccessat", "utimensat", "fallocate", "preadv", "pwritev", "renameat2", "copy_file_range", "statx"}
    | {"preadv2", "pwritev2", "faccessat2", "chmod", "fchmod", "fchmodat", "sendfile"}
)
WRITES = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2"})
READS = frozenset({"read", "pread64", "readv", "preadv", "preadv2"})
_VECTORS = frozenset({"readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2"})
#: The child makes this call where its deed is done: nothing is injected from there on.
_END = "getsid"

_TRACEME, _CONT, _SYSCALL, _GETREGS, _SETREGS, _DETACH = 0, 7, 24, 12, 13, 17
_SETOPTIONS, _GET_SYSCALL_INFO = 0x4200, 0x420E
_TRACESYSGOOD, _TRACEEXEC, _EXITKILL = 0x1, 0x10, 0x100000
_WALL = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_INFO = struct.Struct("=BxxxIQQ7Q")  # of an entry: op, architecture, two pointers, the number, six arguments
_RESULT = struct.Struct("=BxxxIQQqB")
_IOVEC = struct.Struct("=QQ")
_PATIENCE_S = 60

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


#: struct user_regs_struct of <sys/user.h>.
_REGISTERS = """
    r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base
    ds es fs gs
"""


class _Registers(ctypes.Structure):
    """A child's registers."""

    _fields_ = [(name, ctypes.c_uint64) for name in _REGISTERS.split()]


class Call(NamedTuple):
    """A system call that is about to be made."""

    name: str
    when: int  #: counted from 1 among the child's calls of this name
    arguments: tuple[int, ...]
    pid: int

    @property
    def point(self) -> Point:
        return Point(self.name, self.when)

    @property
    def length(self) -> int:
        """How many bytes are asked for; of a vector, its first part."""
        if self.name in _VECTORS:
            return _IOVEC.unpack(_peek(self.pid, self.arguments[1], _IOVEC.size))[1]
        return self.arguments[2]

    @property
    def file(self) -> str:
        """What its first argument, a descriptor, stands for."""
        return str(Path(f"/proc/{self.pid}/fd/{self.arguments[0]}").readlink())


class Point(NamedTuple):
    """A moment in the life of a child."""

    name: str
    when: int

    def __str__(self) -> str:
        return f"{self.name} #{self.when}"


@dataclass(frozen=True)
class Kill:
    """The child dies before the call is made."""


@dataclass(frozen=True)
class Fail:
    """The call is not made and fails; a close is made all the same, as it is by the kernel."""

    errno: int


@dataclass(frozen=True)
class Short:
    """The call is made for fewer bytes."""

    length: int


@dataclass(frozen=True)
class Leave:
    """The child goes on unwatched."""


Act = Kill | Fail | Short | Leave | None


@dataclass
class Ending:
    """How a child ended, and what became of its calls."""

    code: int = 0  #: exit code, or minus the signal
    calls: list[Point] = field(default_factory=list)  #: up to the end of the deed, or until it was left
    acted: Counter[str] = field(default_factory=Counter)  #: what was done to calls of each name
    short: int = 0  #: writes that wrote less than they were asked to


def run(deed: Callable[[], int], hook: Callable[[Call], Act] | None = None) -> Ending:
    """Run `deed` in a child; `hook` says of each call what is done to it. Without one, nothing is watched."""
    if platform.machine() != "x86_64":
        raise NotImplementedError("the fault campaign knows the registers of x86-64 only")
    pid = os.fork()
    if pid == 0:
        _be_child(deed, traced=hook is not None)
    if hook is None:
        return Ending(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return _Watch(pid, hook).to_the_end()


def start(deed: Callable[[], int]) -> int:
    """Run `deed` in a child that nobody watches; return its pid."""
    pid = os.fork()
    if pid == 0:
        _be_child(deed, traced=False)
    return pid


def _be_child(deed: Callable[[], int], *, traced: bool) -> None:
    code = 70
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        if not os.environ.get("FAULTS_LOUD"):
            for stream in (1, 2):
                os.dup2(devnull, stream)  # HDF5 tells of ignored errors there
        signal.alarm(_PATIENCE_S)
        if traced:
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        code = deed()
        os.getsid(0)
    finally:
        os._exit(code)


class _Watch:
    """One child, from stop to stop."""

    def __init__(self, pid: int, hook: Callable[[Call], Act]) -> None:
        self._pid = pid
        self._hook = hook
        self._ending = Ending()
        self._seen: Counter[str] = Counter()
        self._call: Call | None = None
        self._act: Act = None
        self._before: tuple[_Registers, bytes] | None = None
        self._info = ctypes.create_string_buffer(_INFO.size)

    def to_the_end(self) -> Ending:
        pid = self._pid
        _, status = os.waitpid(pid, _WALL)
        assert os.WIFSTOPPED(status), "the child did not stop"
        _ptrace(_SETOPTIONS, pid, _TRACESYSGOOD | _TRACEEXEC | _EXITKILL)
        how, passed_on = _SYSCALL, 0
        while True:
            with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
                _ptrace(how, pid, passed_on)
            _, status = os.waitpid(pid, _WALL)
            if not os.WIFSTOPPED(status):
                self._ending.code = os.waitstatus_to_exitcode(status)
                return self._ending
            passed_on = 0
            if status >> 16:
                continue  # it is another program now
            if os.WSTOPSIG(status) != _SYSCALL_STOP:
                passed_on = os.WSTOPSIG(status)
            elif how == _SYSCALL and not self._stopped():
                how = _CONT

    def _stopped(self) -> bool:
        """Deal with a stop at a call's entry or exit; False where the child is to go on unwatched."""
        info = self._info
        got = _ptrace(_GET_SYSCALL_INFO, self._pid, ctypes.addressof(info), address=_INFO.size)
        if info.raw[0] == 1:
            assert got >= _INFO.size - 1
            return self._entered(_INFO.unpack(info.raw))
        self._left(_RESULT.unpack_from(info.raw)[4])
        return not isinstance(self._act, Leave)

    def _entered(self, info: tuple[int, ...]) -> bool:
        name = NAMES.get(info[4], f"call_{info[4]}")
        if name == _END:
            return False
        self._seen[name] += 1
        call = self._call = Call(name, self._seen[name], info[5:], self._pid)
        self._ending.calls.append(call.point)
        act = self._act = self._hook(call)
        if act is not None and not isinstance(act, Leave):
            self._ending.acted[name] += 1
        if isinstance(act, Kill):
            os.kill(self._pid, signal.SIGKILL)
        elif isinstance(act, Fail) and name != "close":
            registers = self._registers()
            registers.orig_rax = 0xFFFFFFFFFFFFFFFF  # no such call: it is skipped
            self._set(registers)
        elif isinstance(act, Short):
            self._shorten(call, act.length)
        return not isinstance(act, Leave)

    def _shorten(self, call: Call, length: int) -> None:
        registers, vector = self._registers(), b""
        assert 0 < length < call.length
        if call.name in _VECTORS:
            vector = _peek(self._pid, call.arguments[1], _IOVEC.size)
            _poke(self._pid, call.arguments[1], _IOVEC.pack(_IOVEC.unpack(vector)[0], length))
        self._before = registers, vector
        changed = _Registers.from_buffer_copy(registers)
        changed.rdx = 1 if vector else length
        self._set(changed)

    def _left(self, result: int) -> None:
        call, act = self._call, self._act
        if call is None:
            return
        if isinstance(act, Fail):
            registers = self._registers()
            registers.rax = (1 << 64) - act.errno
            self._set(registers)
        if self._before is not None:
            before, vector = self._before
            registers = self._registers()
            registers.rdx = before.rdx
            self._set(registers)
            if vector:
                _poke(self._pid, call.arguments[1], vector)
            self._before = None
        if call.name in WRITES and 0 < result < call.length:
            self._ending.short += 1

    def _registers(self) -> _Registers:
        registers = _Registers()
        _ptrace(_GETREGS, self._pid, ctypes.addressof(registers))
        return registers

    def _set(self, registers: _Registers) -> None:
        _ptrace(_SETREGS, self._pid, ctypes.addressof(registers))


def _ptrace(request: int, pid: int, data: int = 0, *, address: int = 0) -> int:
    result: int = _libc.ptrace(request, pid, address, data)
    if result < 0:
        problem = ctypes.get_errno()
        raise OSError(problem, f"ptrace({request}): {os.strerror(problem)}")
    return result


def _peek(pid: int, address: int, size: int) -> bytes:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return os.pread(fd, size, address)
    finally:
        os.close(fd)


def _poke(pid: int, address: int, data: bytes) -> None:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        os.pwrite(fd, data, address)
    finally:
        os.close(fd)
