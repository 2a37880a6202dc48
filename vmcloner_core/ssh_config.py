"""The user's ssh configuration: plain ``ssh CLONE``, scp, rsync and editors reach clones.

``~/.ssh/config`` includes a file of ours. For a name that has a record in the state folder, that
file lets ssh run vmcloner, which writes how the clone is reached now, and includes what it wrote.
ssh_config(5): ``Match exec``, ``Include``; a line of a ``Match`` is evaluated when it is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from vmcloner_core import ssh, user_folders
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import Access
from vmcloner_core.trusted_files import replacing

_MARK = '# "vmcloner ssh-config --remove" removes this line and the next.'
_BLOCK = re.compile(rb"^" + re.escape(_MARK.encode()) + rb"\nInclude [^\n]*\n\n?", re.MULTILINE)
_TEXT = """\
# Written by "vmcloner ssh-config --install"; "vmcloner ssh-config --remove" removes it.
Match originalhost "*-*,!*'*" exec "test -e {records}/'%n' && cd / && exec {program} '%n'"
    Include "{clones}/*"
"""
_UNQUOTABLE = re.compile(r"""["'*?\[\]\\\x00-\x1f\x7f]|\$\{""")


@attrs.frozen
class UserConfig:
    """The ssh configuration of one user.

    :param home: the home folder. :param folder: ours in it, for our files only.
    """

    home: Path
    folder: Path

    @classmethod
    def of_user(cls) -> UserConfig:
        """Return that of the user who runs this process."""
        home = user_folders.home()
        configs = os.environ.get("XDG_CONFIG_HOME", "")
        base = Path(configs) if configs.startswith("/") else home / ".config"
        return cls(home, base / "vmcloner" / "ssh")

    def install(self, program: Sequence[str], records: Path) -> bool:
        """Let ssh ask ``program NAME`` about the names in ``records``; returns whether this is new.

        Idempotent. :raises InvalidRequest: a path has characters that ssh can't be given.
        """
        for text in (*program, str(records), str(self.folder)):
            if _UNQUOTABLE.search(text):
                raise InvalidRequest(f"ssh can't be given the path {text!r}: it would change it")
        text = _TEXT.format(
            records=_for_shell(str(records)),
            program=" ".join(map(_for_shell, program)),
            clones=str(self._clones).replace("%", "%%"),
        )
        with self._locked():
            wrote = _write(self.folder / "config", text.encode())
            return self._include(f'{_MARK}\nInclude "{self.folder}/config"\n\n'.encode()) or wrote

    def remove(self) -> bool:
        """Undo :meth:`install`; returns whether there was anything. Idempotent."""
        there = self._include(b"")
        with contextlib.suppress(FileNotFoundError), self._locked(make=False):
            there = True
            for file in (*self._clones.iterdir(), self.folder / "config"):
                file.unlink(missing_ok=True)
            self._clones.rmdir()
            self.folder.rmdir()
        return there

    def refresh(self, access: Access, records: Path) -> None:
        """Write how a clone is reached, and forget clones without a record. Idempotent."""
        with self._locked():
            for file in self._clones.iterdir():
                if not os.path.lexists(records / file.name):
                    file.unlink()
            _write(self._clones / access.name, ssh.config([access]).encode())

    @property
    def _clones(self) -> Path:
        return self.folder / "clones"

    @contextlib.contextmanager
    def _locked(self, *, make: bool = True) -> Iterator[None]:
        """Keep other processes from changing our files meanwhile."""
        if make:
            self._clones.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._clones, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _include(self, block: bytes) -> bool:
        """Give the user's file this block of ours, first of all: ssh takes the first value."""
        file = self.home / ".ssh" / "config"
        try:
            found = file.read_bytes()
        except FileNotFoundError:
            found = b""
        wanted = block + _BLOCK.sub(b"", found)
        if wanted == found:
            return False
        file.parent.mkdir(mode=0o700, exist_ok=True)
        if wanted:
            _write(file.resolve(), wanted)  # many users' file is a link to a repository's
        else:
            file.unlink()
        return True


def _for_shell(text: str) -> str:
    return shlex.quote(text).replace("%", "%%")


def _write(file: Path, content: bytes) -> bool:
    """Replace a file at once, keeping its mode; returns whether it is new."""
    mode = 0o600
    with contextlib.suppress(FileNotFoundError):
        if file.read_bytes() == content:
            return False
        mode = file.stat().st_mode & 0o777
    with replacing(file, mode) as stream:
        stream.write(content)
    return True
