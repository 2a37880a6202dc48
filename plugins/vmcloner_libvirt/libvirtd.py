"""Provide a running libvirtd, with or without systemd.

    libvirtd.py start           start a libvirtd unless one is running; it runs until "stop"
    libvirtd.py stop            stop the libvirtd that this program started; guests keep running
    libvirtd.py status          report whether a libvirtd is running, and who started it
    libvirtd.py run -- COMMAND  run COMMAND with a libvirtd; stop the libvirtd afterwards if
                                it was started for COMMAND

With systemd, its service is started if needed, and left running. Without systemd, a supervisor
starts virtlogd and libvirtd and stays their parent. When libvirtd ends, the guests' QEMU processes
become children of the supervisor (PR_SET_CHILD_SUBREAPER, prctl(2)), which reaps them: libvirt
waits until a destroyed QEMU has vanished, and in containers the first process may be slow to reap
it (1.9 s per guest instead of 0.2 s).

The supervisor receives no commands; it watches two files. It keeps libvirtd running while the file
"keep" exists (created by "start") or the file "users" is locked (by each "run"). Otherwise it stops
libvirtd, and exits after the last guest has ended. So a killed "run" leaves no daemon behind.

Needs only Python's own library and virsh, and root for everything but "status": ``host setup`` runs
it as a program, and so does contrib/setup before anything else is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

URI = "qemu:///system"
STATE = Path("/run/vmcloner-libvirtd")
KEEP = STATE / "keep"
TPM_KEYS = Path("/var/lib/swtpm-localca")
USERS = STATE / "users"
"""Locked, shared, by each "run"."""
SUPERVISOR = STATE / "supervisor"
"""Locked by the supervisor while it runs."""
LOG = STATE / "log"

FIRST_ANSWER = 180.0
"""Seconds: the very first connection waits until libvirt has probed each QEMU."""
STOPS_WITHIN = 30.0
POLL = 0.5
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def say(text: str) -> None:
    """Print a message immediately."""
    sys.stderr.write(f"libvirtd: {text}\n")
    sys.stderr.flush()


def virsh(command: str) -> bool:
    """Run a virsh command; return whether it succeeded in time."""
    argv = ["virsh", "-q", "-c", URI, command]
    try:
        done = subprocess.run(argv, check=False, capture_output=True, timeout=FIRST_ANSWER)
    except FileNotFoundError:
        raise SystemExit(
            "libvirtd: virsh isn't installed: apt-get install libvirt-clients"
        ) from None
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def answers() -> bool:
    """Return whether a libvirt daemon for QEMU responds."""
    return virsh("uri")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for ``condition``; return whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def locked(path: Path, how: int, patience: float = 0.0) -> Iterator[bool]:
    """Lock a file (flock(2)); yield False if it is still locked after ``patience`` seconds."""
    with path.open("a") as stream:

        def took() -> bool:
            try:
                fcntl.flock(stream, how | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield wait_until(took, patience)


def is_locked(path: Path) -> bool:
    """Return whether a file is locked. Takes the lock briefly to find out."""
    if not path.exists():
        return False
    with locked(path, fcntl.LOCK_EX) as got:
        return not got


# --- the supervisor -----------------------------------------------------------------------------


class Supervisor:
    """Parent of virtlogd and libvirtd, and of guests that outlive libvirtd."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}
        self._started = 0.0

    def run(self) -> None:
        """Follow the two files until neither libvirtd nor a guest is left."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        while True:
            wanted = KEEP.exists() or is_locked(USERS)
            if wanted and "libvirtd" not in self._pids:
                if time.monotonic() - self._started < 2:
                    say("libvirtd exited right after it was started")
                    break
                self._start()
            elif not wanted and "libvirtd" in self._pids:
                os.kill(self._pids["libvirtd"], signal.SIGTERM)
            elif not wanted and self._children() <= {self._pids.get("virtlogd")}:
                break
            # Reap a child immediately: libvirt waits for it.
            signal.sigtimedwait({signal.SIGCHLD}, POLL)
            self._reap()
        if "virtlogd" in self._pids:
            os.kill(self._pids["virtlogd"], signal.SIGTERM)

    def _start(self) -> None:
        self._started = time.monotonic()
        # If a virtlogd is already running, ours exits, and libvirtd uses the other.
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
    """Become the supervisor, unless there already is one."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
    with locked(SUPERVISOR, fcntl.LOCK_EX, patience=1.0) as got:
        if got:
            Supervisor().run()
    return 0


# --- the commands -------------------------------------------------------------------------------


def open_kvm() -> None:
    """Set the group of ``/dev/kvm``, as udev does if it is running (50-udev-default.rules).

    If root can open it but libvirt's user for QEMU cannot, libvirt considers its cached QEMU
    capabilities outdated each time and probes again: ten seconds for every domain definition.
    """
    kvm = Path("/dev/kvm")
    if not kvm.exists() or Path("/run/udev/control").exists() or kvm.stat().st_gid != 0:
        return
    with contextlib.suppress(LookupError):  # the group does not exist
        shutil.chown(kvm, group="kvm")
        kvm.chmod(0o660)
        say("set the group of /dev/kvm to kvm, as udev would")


def open_tpm_keys() -> None:
    """Give the keys that sign emulated TPMs to the user that swtpm runs as.

    A libvirtd that was started before swtpm was installed found no such user and ran swtpm as
    root. The keys that this made cannot be used after libvirtd's next start, and no guest with a
    TPM starts then. The folder is writable by that user, so no link in it is followed.
    """
    if not TPM_KEYS.is_dir():
        return
    user = TPM_KEYS.stat().st_uid
    for file in TPM_KEYS.iterdir():
        with contextlib.suppress(OSError), _opened(file) as descriptor:
            entry = os.fstat(descriptor)
            # Of the open file: that user can put another one under its name meanwhile.
            if entry.st_uid != user and stat.S_ISREG(entry.st_mode) and entry.st_nlink == 1:
                os.fchown(descriptor, user, -1)
                say(f"gave {file} to the user of swtpm, as a new libvirtd needs it")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def ensure() -> None:
    """Return once a libvirtd responds and has probed QEMU; start one if necessary."""
    open_kvm()
    open_tpm_keys()
    if not answers():
        begin()
    virsh("domcapabilities")


def begin_supervising() -> None:
    """Start a supervisor; return when it holds its lock, or has ended."""
    with LOG.open("w") as log:
        supervisor = subprocess.Popen(
            # -P: the modules beside this one have names of the library's.
            [sys.executable, "-P", __file__, "supervise"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    wait_until(lambda: is_locked(SUPERVISOR) or supervisor.poll() is not None, STOPS_WITHIN)


def begin() -> None:
    """Start a libvirtd and return when it responds."""
    if Path("/run/systemd/system").is_dir():
        say("starting the system's service; stop it with: systemctl stop libvirtd")
        subprocess.run(["systemctl", "start", "libvirtd"], check=True)  # noqa: S607 - of the PATH
        if not wait_until(answers, FIRST_ANSWER):
            raise SystemExit("libvirtd: no response; see: journalctl -u libvirtd")
        return
    say("starting libvirtd (the first start probes each QEMU: about 12 s)")
    deadline = time.monotonic() + FIRST_ANSWER
    for _ in range(2):  # the existing supervisor may be about to end
        if not is_locked(SUPERVISOR):
            begin_supervising()
        time.sleep(POLL)
        while is_locked(SUPERVISOR) and time.monotonic() < deadline:
            if answers():
                return
            time.sleep(POLL)
    sys.stderr.writelines(LOG.read_text(errors="replace").splitlines(keepends=True)[-10:])
    raise SystemExit(f"libvirtd: no response; the end of its log is above, all of it in {LOG}")


def start() -> int:
    """Start a libvirtd that keeps running."""
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
        say("in use; it stops when its last user exits")
        return 0
    if not is_locked(SUPERVISOR):
        return status()
    wait_until(lambda: not answers(), STOPS_WITHIN)
    if not wait_until(lambda: not is_locked(SUPERVISOR), 4 * POLL):
        say("stopped; guests are still running, and their supervisor stays until they end")
    else:
        say("stopped")
    return 0


def status() -> int:
    """Report whether a libvirtd responds; return 1 if not."""
    if not answers():
        say("not running")
        return 1
    if KEEP.exists() and is_locked(SUPERVISOR):
        say(f"running, and stays running; stop it with: {sys.executable} {sys.argv[0]} stop")
    else:
        say("running")
    return 0


def run(argv: list[str]) -> int:
    """Run a command with a libvirtd; return its exit status."""
    STATE.mkdir(mode=0o755, exist_ok=True)
    with locked(USERS, fcntl.LOCK_SH, patience=10.0) as got:
        if not got:
            raise SystemExit(f"libvirtd: cannot lock {USERS}")
        ensure()
        try:
            process = subprocess.Popen(argv)
        except OSError as error:
            raise SystemExit(f"libvirtd: {argv[0]}: {error.strerror}") from error
        # Ctrl-C reaches the command too, which handles it; we wait for the command.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
    if is_locked(SUPERVISOR) and not KEEP.exists() and not is_locked(USERS):
        stop()
    return code if code >= 0 else 128 - code


def main(argv: list[str]) -> int:
    """Run the command named on the command line."""
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
