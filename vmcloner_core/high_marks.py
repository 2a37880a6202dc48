"""The highest index that a fleet has had, over all hosts: a file of each fleet on each host.

A controller that leaves a host out can't see the clones there. It must not give their names again,
nor can it ask for their indices; so all hosts know the highest.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Host
from vmcloner_core.names import MAX_INDEX, check_fleet
from vmcloner_core.os_errors import of_state
from vmcloner_core.trusted_files import make_folder, read_file, replacing


class HighMarks:
    """What a host knows of fleets' highest indices; the fleets are held."""

    def __init__(self, host: Host) -> None:
        self._folder = host.high_marks

    def read(self, fleet: str) -> int:
        """Return the highest index; 0 if none is known."""
        with contextlib.suppress(VmclonerError, ValueError):
            index = int(read_file(self._file(fleet), trusted=False).decode("ascii"))
            return min(max(index, 0), MAX_INDEX)
        return 0

    def write(self, fleet: str, index: int) -> None:
        """Note the highest index; 0 for a fleet that is gone. Idempotent.

        :raises HostCommandError: the file can't be written.
        """
        file = self._file(fleet)
        try:
            if index == 0:
                file.unlink(missing_ok=True)
                return
            make_folder(self._folder)
            with replacing(file, 0o600) as stream:
                stream.write(f"{index}\n".encode())
        except OSError as error:
            raise of_state(error, self._folder) from error

    def _file(self, fleet: str) -> Path:
        return self._folder / check_fleet(fleet)
