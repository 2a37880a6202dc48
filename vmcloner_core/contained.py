"""Run a program that reads hostile files so that it can open nothing else.

Run as a script, this file limits its own process and then becomes the program: no network (a
namespace of its own), no capabilities but those to read and write its files, limits on memory,
time and the size of what it writes, and, where the kernel has Landlock, no file but the named ones
and the system's programs and libraries. It uses only the standard library, and imports nothing of
vmcloner: it is started for each image, in isolated mode.

See unshare(2), prctl(2), landlock(7), setrlimit(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

MEMORY = 4 * 1024**3
"""Bytes of address space: qemu-img takes a few hundred MiB of it."""
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store",
           "/etc/ld.so.cache", "/etc/ssl", "/etc/gnutls", "/dev/urandom")  # fmt: skip
_NEWNS, _NEWUSER, _NEWIPC, _NEWNET = 0x00020000, 0x10000000, 0x08000000, 0x40000000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_DAC = {1, 2}  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_EXECUTE, _WRITE, _READ, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14


def command(
    argv: Sequence[str], *, read: Sequence[Path], write: Sequence[Path], size: int, seconds: float
) -> list[str]:
    """Return the command line that runs ``argv`` contained.

    :param read, write: the files that it may open, absolute. :param size: bytes that it may write
        to one file. :param seconds: of processor time.
    """
    return [
        sys.executable,
        "-I",
        "-S",
        __file__,
        *(f"--read={path}" for path in read),
        *(f"--write={path}" for path in write),
        f"--size={size}",
        f"--seconds={int(seconds) + 1}",
        "--",
        *argv,
    ]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _limit(size: int, seconds: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))


def _leave_network(libc: ctypes.CDLL) -> None:
    """Enter namespaces without a network; a user who isn't root needs one of users for that."""
    if os.geteuid() == 0:
        libc.unshare(_NEWNET | _NEWIPC)
        return
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEWUSER | _NEWNET | _NEWIPC) == 0:
        with contextlib.suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    for number in range(64):
        if number not in _DAC:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _restrict_files(
    libc: ctypes.CDLL, program: str, read: Sequence[str], write: Sequence[str]
) -> None:
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return  # the kernel has no Landlock, or it isn't enabled
    handled = (1 << 13) - 1
    handled |= (1 << 13) if version >= 2 else 0
    handled |= _TRUNCATE if version >= 3 else 0
    attributes = ctypes.create_string_buffer(struct.pack("=Q", handled))
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return
    everything = _EXECUTE | _READ | _READ_DIR
    rules = [(path, everything) for path in (*_SYSTEM, str(Path(program).resolve().parent))]
    rules += [(path, _READ) for path in read]
    rules += [(path, _READ | _WRITE | _TRUNCATE) for path in (*write, "/dev/null")]
    for path, access in rules:
        _allow(libc, ruleset, path, access & handled)
    if libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "can't be contained")
    os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it isn't there
    try:
        if not os.path.isdir(path):  # noqa: PTH112
            access &= ~_READ_DIR
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor))
        if libc.syscall(_ADD_RULE, ruleset, 1, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), f"{path}: can't be allowed")
    finally:
        os.close(descriptor)


def main(words: list[str]) -> None:
    """Limit this process by the options in ``words``, and become the program after ``--``."""
    end = words.index("--")
    options, argv = words[:end], words[end + 1 :]
    given: dict[str, list[str]] = {"read": [], "write": [], "size": [], "seconds": []}
    for option in options:
        key, _, value = option.removeprefix("--").partition("=")
        given[key].append(value)
    program = next(
        (
            file
            for folder in os.get_exec_path()
            if os.access(file := f"{folder}/{argv[0]}", os.X_OK)
        ),
        None,
    )
    if program is None:
        sys.exit(f"{argv[0]}: not installed")
    libc = _libc()
    _limit(int(given["size"][0]), int(given["seconds"][0]))
    _leave_network(libc)
    _drop_capabilities(libc)
    try:
        _restrict_files(libc, program, given["read"], given["write"])
        os.execv(program, argv)  # noqa: S606 - a list of words, no shell
    except OSError as error:
        sys.exit(f"{argv[0]}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
