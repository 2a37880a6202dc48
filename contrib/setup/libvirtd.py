#!/usr/bin/env python3
"""Have a libvirtd, on machines without systemd too.

    libvirtd.py start           start one unless one answers; it stays until "stop"
    libvirtd.py stop            stop the one that this program started; guests go on running
    libvirtd.py status          tell whether one answers, and whose it is
    libvirtd.py run -- COMMAND  run COMMAND with a libvirtd, and stop it afterwards if it was
                                started for that

Where systemd runs, starting and stopping is its business: its service is started if need be, and
left. Elsewhere a supervisor starts virtlogd and libvirtd, and stays their parent. It is also what
the guests' QEMUs fall to when libvirtd lets go of them (PR_SET_CHILD_SUBREAPER, prctl(2)): libvirt
waits for a QEMU that it destroyed to vanish, and in containers the first process may be slow to
reap it (1.9 s a guest against 0.2 s).

The supervisor is told nothing; it looks at two files. While "keep" exists, as "start" leaves it,
or somebody holds a lock on "users", as each "run" does, it keeps libvirtd running. Otherwise it
stops it, and ends itself with the last guest. So a "run" that is killed leaves no daemon behind.

Needs nothing but Python and virsh; and root, except for "status".
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

URI = "qemu:///system"
STATE = Path("/run/vmcloner-libvirtd")
KEEP = STATE / "keep"
USERS = STATE / "users"
"""Locked, shared, by each "run"."""
SUPERVISOR = STATE / "supervisor"
"""Locked by the supervisor as long as it lives."""
LOG = STATE / "log"

FIRST_ANSWER = 180.0
"""Seconds: the first connection ever waits until each QEMU was asked what it can do."""
STOPS_WITHIN = 30.0
POLL = 0.5
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def say(text: str) -> None:
    """Tell the user, at once."""
    print(f"libvirtd: {text}", file=sys.stderr, flush=True)


def virsh(command: str) -> bool:
    """Run one of virsh's commands; tell whether it succeeded in time."""
    argv = ["virsh", "-q", "-c", URI, command]
    try:
        done = subprocess.run(argv, check=False, capture_output=True, timeout=FIRST_ANSWER)
    except FileNotFoundError:
        raise SystemExit("libvirtd: virsh isn't installed: run make setup") from None
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def answers() -> bool:
    """Tell whether a libvirt daemon for QEMU answers."""
    return virsh("uri")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether ``condition`` came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def locked(path: Path, how: int, patience: float = 0.0) -> Iterator[bool]:
    """Hold a lock (flock(2)) on a file; False if another's is in the way beyond ``patience``."""
    with path.open("a") as stream:

        def took() -> bool:
            try:
                fcntl.flock(stream, how | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield wait_until(took, patience)


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds a lock on a file. It takes it for a moment to find out."""
    if not path.exists():
        return False
    with locked(path, fcntl.LOCK_EX) as got:
        return not got


# --- the supervisor -----------------------------------------------------------------------------


class Supervisor:
    """Parent of virtlogd and libvirtd, and of the guests that libvirtd lets go of."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}
        self._started = 0.0

    def run(self) -> None:
        """Do as the files say, until neither libvirtd nor a guest is left."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        while True:
            wanted = KEEP.exists() or is_locked(USERS)
            if wanted and "libvirtd" not in self._pids:
                if time.monotonic() - self._started < 2:
                    say("it ended as soon as it had begun")
                    break
                self._start()
            elif not wanted and "libvirtd" in self._pids:
                os.kill(self._pids["libvirtd"], signal.SIGTERM)
            elif not wanted and self._children() <= {self._pids.get("virtlogd")}:
                break
            # A child's end is dealt with at once: libvirt waits for it.
            signal.sigtimedwait({signal.SIGCHLD}, POLL)
            self._reap()
        if "virtlogd" in self._pids:
            os.kill(self._pids["virtlogd"], signal.SIGTERM)

    def _start(self) -> None:
        self._started = time.monotonic()
        # Where a virtlogd runs already, ours ends at once, and libvirtd uses the other.
        for name in ("virtlogd", "libvirtd"):
            if name not in self._pids:
                self._pids[name] = os.posix_spawnp(name, [name], os.environ, setsigmask=[])

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._pids = {name: pid for name, pid in self._pids.items() if pid != ended}

    def _children(self) -> set[int | None]:
        pid = os.getpid()
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def supervise() -> int:
    """Be the supervisor, unless there is one."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
    with locked(SUPERVISOR, fcntl.LOCK_EX, patience=1.0) as got:
        if got:
            Supervisor().run()
    return 0


# --- the commands -------------------------------------------------------------------------------


def open_kvm() -> None:
    """Give ``/dev/kvm`` to its group, as udev does where it runs (50-udev-default.rules).

    While root can open it and libvirt's user for QEMU can't, libvirt finds what it knows of QEMU
    out of date at every turn, and asks it again: ten seconds for every domain that is defined.
    """
    kvm = Path("/dev/kvm")
    if not kvm.exists() or Path("/run/udev/control").exists() or kvm.stat().st_gid != 0:
        return
    with contextlib.suppress(LookupError):  # there is no such group
        shutil.chown(kvm, group="kvm")
        kvm.chmod(0o660)
        say("gave /dev/kvm to the group kvm, as udev would")


def ensure() -> None:
    """Return when a libvirtd answers, and knows what QEMU can do; start one if none does."""
    open_kvm()
    if not answers():
        begin()
    virsh("domcapabilities")


def begin_supervising() -> None:
    """Start a supervisor; return when it has its lock, or has ended."""
    with LOG.open("w") as log:
        supervisor = subprocess.Popen(
            [sys.executable, __file__, "supervise"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    wait_until(lambda: is_locked(SUPERVISOR) or supervisor.poll() is not None, STOPS_WITHIN)


def begin() -> None:
    """Start a libvirtd and return when it answers."""
    if Path("/run/systemd/system").is_dir():
        say("starting the system's service; stop it by: systemctl stop libvirtd")
        subprocess.run(["systemctl", "start", "libvirtd"], check=True)
        if not wait_until(answers, FIRST_ANSWER):
            raise SystemExit("libvirtd: no answer; see: journalctl -u libvirtd")
        return
    say("starting one (the first time, it asks each QEMU what it can do: about 12 s)")
    deadline = time.monotonic() + FIRST_ANSWER
    for _ in range(2):  # the supervisor that there is may be just about to end
        if not is_locked(SUPERVISOR):
            begin_supervising()
        time.sleep(POLL)
        while is_locked(SUPERVISOR) and time.monotonic() < deadline:
            if answers():
                return
            time.sleep(POLL)
    sys.stderr.writelines(LOG.read_text(errors="replace").splitlines(keepends=True)[-10:])
    raise SystemExit(f"libvirtd: no answer; its last lines are above, all of them in {LOG}")


def start() -> int:
    """Have a libvirtd that stays."""
    STATE.mkdir(mode=0o755, exist_ok=True)
    if is_locked(SUPERVISOR) or not answers():
        KEEP.touch()
    try:
        ensure()
    except SystemExit:
        KEEP.unlink(missing_ok=True)
        raise
    return status()


def stop() -> int:
    """Stop the libvirtd that this program started."""
    KEEP.unlink(missing_ok=True)
    if is_locked(USERS):
        say("in use; it stops when its last user ends")
        return 0
    if not is_locked(SUPERVISOR):
        return status()
    wait_until(lambda: not answers(), STOPS_WITHIN)
    if not wait_until(lambda: not is_locked(SUPERVISOR), 4 * POLL):
        say("stopped; guests still run, and their supervisor stays until they end")
    else:
        say("stopped")
    return 0


def status() -> int:
    """Tell whether one answers; 1 if none does."""
    if not answers():
        say("none answers")
        return 1
    if KEEP.exists() and is_locked(SUPERVISOR):
        say("running, and left running; stop it by: make stop")
    else:
        say("running")
    return 0


def run(argv: list[str]) -> int:
    """Run a command with a libvirtd; return its exit status."""
    STATE.mkdir(mode=0o755, exist_ok=True)
    with locked(USERS, fcntl.LOCK_SH, patience=10.0) as got:
        if not got:
            raise SystemExit(f"libvirtd: can't lock {USERS}")
        ensure()
        try:
            process = subprocess.Popen(argv)
        except OSError as error:
            raise SystemExit(f"libvirtd: {argv[0]}: {error.strerror}") from error
        # Ctrl-C reaches the command too, and is its to deal with: we wait for it.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
    if is_locked(SUPERVISOR) and not KEEP.exists() and not is_locked(USERS):
        stop()
    return code if code >= 0 else 128 - code


def main(argv: list[str]) -> int:
    """Do what the command line says."""
    commands = {"start": start, "stop": stop, "status": status, "supervise": supervise}
    if len(argv) > 2 and argv[:2] == ["run", "--"]:
        return run(argv[2:])
    if len(argv) != 1 or argv[0] not in commands:
        raise SystemExit(__doc__)
    if argv[0] != "status" and os.geteuid() != 0:
        raise SystemExit(f"libvirtd: {argv[0]} needs root")
    return commands[argv[0]]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
