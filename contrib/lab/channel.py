"""Run commands inside a lab, by ssh."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from contrib.lab.errors import LabError, TimeUp
from contrib.lab.image import Image
from contrib.lab.proc import dies_with_us

CONNECTION_LOST = 255
"""Exit code of ssh if it did not get an exit status from the command."""
_GRACE = 15.0
"""Seconds for a command inside to end after its time limit."""


class Channel:
    """The connection to a lab.

    :param folder: the lab's folder, with the socket of the connection that all commands share.
    """

    def __init__(self, image: Image, folder: Path, port: int) -> None:
        self._folder = folder
        self._ssh = [
            *("ssh", "-q", "-F", "none", "-i", str(image.key), "-p", str(port), "-l", "root"),
            *("-o", f"UserKnownHostsFile={image.known_hosts}", "-o", "HostKeyAlias=lab"),
            *("-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
            *("-o", "ConnectTimeout=60", "-o", "ServerAliveInterval=20"),
            *("-o", "ServerAliveCountMax=9", "-o", "Compression=no"),
            # Relative to the folder, because the length of a socket's path is limited.
            *("-o", "ControlMaster=auto", "-o", "ControlPath=./ssh", "-o", "ControlPersist=60"),
        ]

    def call(self, script: str, content: bytes = b"", timeout: float = 120.0) -> bytes:
        """Run a shell command line inside and return its output.

        :raises LabError: it failed; the message has its last lines.
        """
        argv = dies_with_us([*self._ssh, "127.0.0.1", f"set -e; {script}"])
        with subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
        ) as process:
            try:
                stdout, stderr = process.communicate(content, timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise TimeUp(f"inside the lab: no end after {timeout:.0f} s: {script}") from None
        if process.returncode != 0:
            words = (stderr or stdout).decode(errors="replace").strip().splitlines()[-10:]
            raise LabError("\n".join([f"inside the lab: failed: {script}", *words]))
        return stdout

    def run(
        self,
        argv: Sequence[str],
        seconds: float,
        folder: str = "/root",
        variables: Sequence[str] = (),
    ) -> int:
        """Run a command inside on our standard input, output and error; return its exit code.

        The command is ended with this process, and at its time limit.

        :param variables: ``NAME=VALUE``, set in its environment.
        :raises TimeUp: it took longer than ``seconds``.
        """
        mark = f"/run/lab-{secrets.token_hex(6)}"
        # sshd makes the shell a session leader; its PID identifies all processes of the session.
        script = f"echo $$ >{mark}; cd {folder}; exec {shlex.join(['env', *variables, *argv])}"
        with self._ended(mark):
            process = subprocess.Popen(
                dies_with_us([*self._ssh, "127.0.0.1", script]), cwd=self._folder
            )
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise TimeUp(f"{argv[0]}: no end after {seconds:.0f} s") from None
            finally:
                process.kill()

    def start(self, argv: Sequence[str], folder: str = "/root") -> subprocess.Popen[bytes]:
        """Start a command inside whose output the caller reads. It ends with this process."""
        script = f"cd {folder}; exec {shlex.join(argv)}"
        return subprocess.Popen(
            dies_with_us([*self._ssh, "127.0.0.1", script]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=self._folder,
        )

    @contextlib.contextmanager
    def _ended(self, mark: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(LabError):
                self.call(
                    f"sid=$(cat {mark}); pkill -TERM -s $sid; sleep 1; pkill -KILL -s $sid || :",
                    timeout=_GRACE,
                )
            raise

    def shell(self) -> int:
        """Start an interactive shell inside; return its exit code."""
        return subprocess.call([*self._ssh, "-t", "127.0.0.1"], cwd=self._folder)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*self._ssh, "-O", "exit", "127.0.0.1"],
                cwd=self._folder,
                check=False,
                capture_output=True,
                timeout=10,
            )
