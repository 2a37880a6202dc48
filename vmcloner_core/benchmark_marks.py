"""Marks of benchmarks' fleets, so that ``gc`` finds what killed benchmarks left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.names import check_fleet
from vmcloner_core.os_errors import of_state
from vmcloner_core.trusted_files import make_folder

PREFIX = "benchmark-x"
"""What names of benchmarks' fleets begin with."""


class BenchmarkMarks:
    """The marks in one state folder: an empty file for each fleet.

    :param hold_free: holds those locks that nobody holds; yields their names.
    """

    def __init__(
        self,
        folder: Path,
        hold_free: Callable[[Collection[str]], AbstractContextManager[frozenset[str]]],
    ) -> None:
        self._folder = folder
        self._hold_free = hold_free

    def mark(self, fleet: str) -> None:
        """Mark a fleet, whose lock ``benchmark/FLEET`` the caller holds."""
        try:
            make_folder(self._folder)
            (self._folder / fleet).touch(0o600)
        except OSError as error:
            raise of_state(error, self._folder) from error

    def forget(self, fleets: Iterable[str]) -> None:
        """Remove the marks of fleets that are gone, and the folder if it is empty."""
        with contextlib.suppress(OSError):  # gc tries again
            for fleet in fleets:
                (self._folder / fleet).unlink(missing_ok=True)
            self._folder.rmdir()

    def abandoned(self) -> frozenset[str]:
        """Return the marked fleets whose benchmarks have ended, but didn't remove them."""
        try:
            names = [name for name in os.listdir(self._folder) if _is_fleet(name)]  # noqa: PTH208
        except OSError:
            return frozenset()
        if not names:
            return frozenset()
        with self._hold_free([f"benchmark/{name}" for name in names]) as free:
            return frozenset(name for name in names if f"benchmark/{name}" in free)


def _is_fleet(name: str) -> bool:
    with contextlib.suppress(InvalidRequest):
        check_fleet(name)
        return True
    return False
