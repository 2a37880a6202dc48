"""Run a command regularly: by a timer of systemd, or by cron where systemd isn't running.

Files that are written have a label in their first line; others of these names are never changed.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import attrs

from vmcloner_core import user_folders
from vmcloner_core.errors import BackendError, Conflict, HostCommandError, InvalidRequest
from vmcloner_core.os_errors import of_state
from vmcloner_core.process import CommandRunner
from vmcloner_core.trusted_files import check_file, make_folder, read_file, replacing
from vmcloner_core.units import format_age

NAME = "vmcloner-gc"
TIMER = f"{NAME}.timer"
LABEL = '# Made by "vmcloner host prepare gc"; "vmcloner host remove gc" removes it.\n'
EVERY = 900
"""Seconds between two runs."""
MIN_EVERY, MAX_EVERY = 60, 86_400
SETTLED = {"UnitFileState=enabled", "ActiveState=active", "NeedDaemonReload=no"}
_PLAIN = re.compile(r"[A-Za-z0-9_./:@+=,-]+")


@attrs.frozen(kw_only=True)
class Places:
    """Where a host keeps what runs regularly.

    :param booted: a folder that is there if systemd runs; see sd_booted(3).
    :param cron: None where cron isn't used.
    """

    booted: Path = Path("/run/systemd/system")
    units: Path = Path("/etc/systemd/system")
    cron: Path | None = Path("/etc/cron.d")
    user: bool = False

    @classmethod
    def own(cls) -> Self:
        """Return the system's for root, else the user's own."""
        if os.geteuid() == 0:
            return cls()
        return cls(
            booted=Path(f"/run/user/{os.geteuid()}/systemd"),
            units=user_folders.home() / ".config/systemd/user",
            cron=None,
            user=True,
        )


@attrs.frozen(kw_only=True)
class ScheduleChange:
    """What runs regularly, and the steps to get there; none if nothing changes.

    :param by: ``systemd`` or ``cron``.
    """

    by: str
    files: tuple[Path, ...]
    steps: tuple[str, ...] = ()


def check_every(seconds: int) -> None:
    """Check how often something is to run.

    :raises InvalidRequest: it is out of range.
    """
    if not MIN_EVERY <= seconds <= MAX_EVERY:
        raise InvalidRequest(f"can't run every {seconds} s", hint="1 min to 24 h")


def own_command() -> tuple[str, ...]:
    """Return the command line of this vmcloner.

    :raises InvalidRequest: another user could have written its program.
    """
    script = Path(sys.executable).with_name("vmcloner")
    check_file(script)
    if os.access(script, os.X_OK):
        return (str(script),)
    return (sys.executable, "-m", "vmcloner_core.cli")


class Schedule:
    """Runs a command regularly on one host. One caller at a time."""

    def __init__(self, runner: CommandRunner, places: Places | None = None) -> None:
        self._runner = runner
        self._places = places or Places.own()

    def prepare(
        self, command: Sequence[str], every: int = EVERY, *, dry_run: bool = False
    ) -> ScheduleChange:
        """Run a command every so many seconds from now on. Idempotent.

        :raises Conflict: a file that isn't ours has a name that is needed; nothing was changed.
        :raises InvalidRequest: ``every`` is out of range, or cron can't express it.
        :raises BackendError: the host has neither systemd nor cron.
        """
        check_every(every)
        by = self._by()
        files = self._units(command, every) if by == "systemd" else self._table(command, every)
        old = [path for path in self._ours() if path not in files]
        new = {path: text for path, text in files.items() if self._text(path) != text}
        steps = [*(f"remove {path}" for path in old), *(f"write {path}" for path in new)]
        calls: list[tuple[str, ...]] = []
        if by == "systemd" and (new or not self._settled()):
            calls = [("daemon-reload",), ("enable", TIMER), ("restart", TIMER)]
        steps += [shlex.join(self._systemctl(*call)) for call in calls]
        if not dry_run:
            self._remove(old)
            for path, text in new.items():
                _write(path, text)
            self._call(calls)
        return ScheduleChange(by=by, files=tuple(files), steps=tuple(steps))

    def remove(self, *, dry_run: bool = False) -> ScheduleChange:
        """Undo :meth:`prepare`. Idempotent.

        :raises Conflict: a file of that name isn't ours; nothing was changed.
        """
        ours = self._ours()
        timed = any(path.name == TIMER for path in ours) and self._places.booted.is_dir()
        stop, reload = [("disable", "--now", TIMER)], [("daemon-reload",)]
        steps = [f"remove {path}" for path in ours]
        if timed:
            steps = [
                shlex.join(self._systemctl(*stop[0])),
                *steps,
                shlex.join(self._systemctl(*reload[0])),
            ]
        if not dry_run:
            self._call(stop if timed else [])
            self._remove(ours)
            self._call(reload if timed else [])
        by = "systemd" if self._places.booted.is_dir() else "cron"
        return ScheduleChange(by=by, files=tuple(ours), steps=tuple(steps))

    def _by(self) -> str:
        if self._places.booted.is_dir():
            return "systemd"
        if self._places.cron is None:
            raise BackendError(
                "systemd doesn't run for this user, so nothing can be started regularly",
                hint="run it as root, or put vmcloner gc --expired --yes into your crontab(1)",
            )
        if not self._places.cron.is_dir():
            raise BackendError(
                f"neither systemd nor cron is here ({self._places.cron} is missing)",
                hint="install cron",
            )
        return "cron"

    def _units(self, command: Sequence[str], every: int) -> Mapping[Path, str]:
        """Return the files of a service and its timer; the timer last, as it needs the other."""
        if not _PLAIN.fullmatch(command[0]):  # systemd refuses such names of programs
            command = ("/usr/bin/env", *command)
        line = " ".join(map(_unit_word, command))
        what = "Remove clones whose leases have ended, and what killed runs of vmcloner left"
        service = f"[Unit]\nDescription={what}\n\n[Service]\nType=oneshot\nExecStart={line}\n"
        timer = (
            f"[Unit]\nDescription=vmcloner gc every {format_age(every)}\n\n"
            f"[Timer]\nOnActiveSec={every}\nOnUnitInactiveSec={every}\n\n"
            "[Install]\nWantedBy=timers.target\n"
        )
        units = self._places.units
        return {units / f"{NAME}.service": LABEL + service, units / TIMER: LABEL + timer}

    def _table(self, command: Sequence[str], every: int) -> Mapping[Path, str]:
        assert self._places.cron is not None  # noqa: S101 - else this isn't called
        line = " ".join(map(_cron_word, command))
        return {self._places.cron / NAME: f"{LABEL}{_times(every)} root {line}\n"}

    def _ours(self) -> list[Path]:
        """Return the files that are there, the timer before its service.

        :raises Conflict: one isn't ours.
        """
        paths = [self._places.units / TIMER, self._places.units / f"{NAME}.service"]
        if self._places.cron is not None:
            paths.append(self._places.cron / NAME)
        return [path for path in paths if self._text(path) is not None]

    @staticmethod
    def _text(path: Path) -> str | None:
        """Return the text of one of our files, None if it isn't there."""
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise _foreign(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise of_state(error, path) from error
        text = read_file(path, trusted=False).decode(errors="replace")
        if text and not text.startswith(LABEL):
            raise _foreign(path)
        return text

    def _settled(self) -> bool:
        """Tell whether systemd knows the timer as it is, and runs it now and after a reboot."""
        asked = ("show", "-p", "UnitFileState,ActiveState,NeedDaemonReload", TIMER)
        try:
            answer = self._runner.run(self._systemctl(*asked)).stdout
        except HostCommandError:
            return False
        return set(answer.decode(errors="replace").split()) >= SETTLED

    def _systemctl(self, *words: str) -> tuple[str, ...]:
        return ("systemctl", *(["--user"] if self._places.user else []), *words)

    def _call(self, calls: Sequence[Sequence[str]]) -> None:
        for call in calls:
            self._runner.run(self._systemctl(*call))

    @staticmethod
    def _remove(paths: Sequence[Path]) -> None:
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise of_state(error, path) from error


def _foreign(path: Path) -> Conflict:
    return Conflict(f"{path} exists and isn't vmcloner's", hint="it was not changed")


def _write(path: Path, text: str) -> None:
    try:
        make_folder(path.parent)
        with replacing(path, 0o644) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise of_state(error, path) from error


def _check_word(word: str) -> None:
    if not word.isprintable():
        raise InvalidRequest(f"can't be written into a file of systemd or cron: {word!r}")


def _unit_word(word: str) -> str:
    """Return a word for a command line in systemd.service(5)."""
    _check_word(word)
    if _PLAIN.fullmatch(word):
        return word
    for special in ("\\", '"'):
        word = word.replace(special, f"\\{special}")
    return '"' + word.replace("%", "%%").replace("$", "$$") + '"'


def _cron_word(word: str) -> str:
    """Return a word for a command line in crontab(5): for the shell, and without line ends."""
    _check_word(word)
    return shlex.quote(word).replace("%", "\\%")


def _times(every: int) -> str:
    """Return the fields of crontab(5) for something that runs every so many seconds."""
    minutes, rest = divmod(every, 60)
    if not rest and minutes < 60 and 60 % minutes == 0:
        return f"*/{minutes} * * * *"
    hours, rest = divmod(every, 3600)
    if not rest and 24 % hours == 0:
        return f"0 */{hours} * * *" if hours < 24 else "0 0 * * *"
    raise InvalidRequest(
        f"cron can't run something every {every} s",
        hint="use minutes that divide an hour or hours that divide a day: 15min, 1h, 6h",
    )
