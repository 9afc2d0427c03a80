"""Runs one program that nobody has read, after locking itself in. Started by eval/sandbox.py as a script of its own.

Owns: locking in, and telling what became of the program. Never: an import beyond the standard library; going on where a
lock does not close (it says which, and ends).

What it is told lies in its standard input, as JSON: the program, the limits, the filter of system calls. What became of
the program goes to the descriptor that it is told: a line once it is locked in, and a line at its end.

The order matters: limits, then namespaces, then files (Landlock), then system calls (seccomp); after the last nothing
here can be undone, by anyone.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CLONE_NEWNET, _CLONE_NEWUSER, _CLONE_NEWIPC, _CLONE_NEWUTS = 0x40000000, 0x10000000, 0x08000000, 0x04000000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every machine
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG = 1, 2, 4, 8, 1 << 5, 1 << 8
_TRUNCATE = 1 << 14
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # Landlock's version -> rights that it knows; 16 from the fifth on

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


class NoLockError(Exception):
    """A lock does not close: the program must not run."""


def main() -> None:
    with os.fdopen(0, "rb", closefd=False) as file:
        told = json.load(file)
    report, write, leave = told["report"], os.write, os._exit
    try:
        lock(told)
    except NoLockError as error:
        write(report, json.dumps({"refused": str(error)}).encode())
        leave(1)
    write(report, b'{"locked": true}\n')
    passed, reason = execute(told["program"])
    write(report, json.dumps({"passed": passed, "reason": reason, "nonce": told["nonce"]}).encode())
    leave(0)


def execute(program: str) -> tuple[bool, str]:
    """Whether the program ran to its end, and in one line why not."""
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})  # noqa: S102 - what all this is for
    except SystemExit:
        return False, "it ended itself before its tests were through"
    except BaseException as error:
        try:
            text = str(error)
        except BaseException:
            text = ""
        first = (text.strip().splitlines() or [""])[0][:200]
        return False, f"{type(error).__name__}: {first}" if first else type(error).__name__
    return True, ""


def lock(told: dict) -> None:  # type: ignore[type-arg]
    """Close every lock. Raises NoLockError naming the one that does not close."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0, name="the parent's death signal")
    if os.getppid() != told["parent"]:
        raise NoLockError("the parent is gone")
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.umask(0o077)
    for name, value in told["limits"].items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value + (name == "RLIMIT_CPU")))
        except (OSError, ValueError) as error:
            raise NoLockError(f"the limit {name} cannot be set ({error})") from error
    # A second wall around the network and around root's rights; seccomp alone holds where this is not permitted.
    _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, name="no_new_privs")
    _drop_capabilities()
    _lock_files(told["folder"])
    _lock_calls(bytes.fromhex(told["filter"]))


def _call(function: str, *arguments: int, name: str) -> None:
    if getattr(_libc, function)(*map(ctypes.c_ulong, arguments)) != 0:
        raise NoLockError(f"{name} cannot be set ({os.strerror(ctypes.get_errno())})")


def _syscall(number: int, *arguments: object) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *arguments))


def _drop_capabilities() -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    if _libc.capset(header, struct.pack("6I", 0, 0, 0, 0, 0, 0)) != 0:
        raise NoLockError(f"capabilities cannot be dropped ({os.strerror(ctypes.get_errno())})")


def _lock_files(folder: str) -> None:
    """Read Python's own library, write the private folder (flat: no folders in it), and nothing else."""
    version = _syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < 1:
        raise NoLockError("Landlock is not there, which keeps a program to its own files")
    rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    ruled = struct.pack("QQQ", rights, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _syscall(_LANDLOCK_CREATE, ruled, ctypes.c_size_t(len(ruled)), ctypes.c_uint(0))
    if ruleset < 0:
        raise NoLockError(f"Landlock makes no rules ({os.strerror(ctypes.get_errno())})")
    readable = {os.path.realpath(path) for path in (*sys.path, *_LIBRARIES) if os.path.exists(path)}  # noqa: PTH110 - pathlib costs 10 ms
    for path in readable:
        inside = _READ_FILE | _READ_DIR | _EXECUTE if os.path.isdir(path) else _READ_FILE  # noqa: PTH112
        _allow(ruleset, path, inside & rights)
    for path in filter(os.path.exists, _DEVICES):
        _allow(ruleset, path, (_READ_FILE | _WRITE_FILE) & rights)
    own = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _REMOVE_FILE | _MAKE_REG
    _allow(ruleset, folder, own & rights)
    if _syscall(_LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0)) != 0:
        raise NoLockError(f"Landlock does not close ({os.strerror(ctypes.get_errno())})")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, descriptor)
    failed = _syscall(_LANDLOCK_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
    os.close(descriptor)
    if failed:
        raise NoLockError(f"Landlock refuses the rule for {path} ({os.strerror(ctypes.get_errno())})")


def _lock_calls(program: bytes) -> None:
    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    found = Filter(len(program) // 8, program)
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(found), 0, 0) != 0:
        raise NoLockError(f"seccomp takes no filter ({os.strerror(ctypes.get_errno())})")


if __name__ == "__main__":
    main()
