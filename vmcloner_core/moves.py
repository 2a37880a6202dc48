"""Marks of clones that are being moved to or from another host: a file of each on each host.

While a host has one, no run may change the clone there. The host that a clone leaves has its mark
before the other gets anything, and until nothing of the clone is left there; so a clone that is on
two hosts can't be started twice, whatever was killed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs

from vmcloner_core.errors import VmclonerError, WrongState
from vmcloner_core.model import MAX_DISKS, Moving
from vmcloner_core.names import split_clone
from vmcloner_core.os_errors import of_state
from vmcloner_core.trusted_files import exists, make_folder, read_file, replacing


@attrs.frozen
class Arrived:
    """How much of a disk is here. ``digest``: of the disk that is being sent."""

    digest: str
    octets: int


@attrs.frozen(kw_only=True)
class Mark:
    """What the file of a clone says. ``disks``: of an arriving clone, by number."""

    moving: Moving
    disks: Mapping[int, Arrived] = attrs.field(factory=dict)


class Moves:
    """The marks of one host. A clone's is changed by the holder of its fleet.

    :param folder: made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> dict[str, Moving]:
        """Return the moves of all clones that have a mark, by name.

        :raises WrongState: a mark is damaged.
        """
        found = {name: self.find(name) for name in self._names()}
        return {name: mark.moving for name, mark in found.items() if mark is not None}

    def _names(self) -> list[str]:
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise of_state(error, self.folder) from error
        return sorted(name for name in names if split_clone(name) is not None)

    def find(self, clone: str) -> Mark | None:
        """Return a clone's mark, None if it isn't being moved.

        :raises WrongState: it is damaged.
        """
        file = self.folder / clone
        try:
            text = read_file(file, trusted=True)
        except VmclonerError:
            if exists(file):
                raise
            return None
        try:
            return _read(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise WrongState(
                f"{file} is damaged: {clone} was being moved to or from another host",
                hint="if it is on this host only, remove that file",
            ) from error

    def note(self, clone: str, mark: Mark, *, lasting: bool = True) -> None:
        """Write a clone's mark. Idempotent.

        :param lasting: wait until it is on the disk.
        """
        file = self.folder / clone
        text = json.dumps(
            {
                **attrs.asdict(mark.moving),
                "disks": {number: attrs.asdict(disk) for number, disk in mark.disks.items()},
            },
            default=str,
        )
        try:
            make_folder(self.folder)
            with replacing(file, 0o600, lasting=lasting) as stream:
                stream.write(text.encode())
        except OSError as error:
            raise of_state(error, file) from error

    def remove(self, clone: str) -> None:
        """Remove a clone's mark, if it has one, and its disks that were made only to be sent."""
        try:
            (self.folder / clone).unlink(missing_ok=True)
            for number in range(MAX_DISKS):
                self.draft(clone, number).unlink(missing_ok=True)
        except OSError as error:
            raise of_state(error, self.folder) from error

    def draft(self, clone: str, disk: int) -> Path:
        """Return where a disk is written as a raw file, to be sent."""
        return self.folder / f".{clone}-{disk}.raw"


def _read(data: Mapping[str, Any]) -> Mark:
    moving = Moving(
        leaves=data["leaves"] is True,
        other=str(data["other"]),
        uuid=UUID(data["uuid"]),
        whole=data["whole"] is True,
        heir=str(data.get("heir") or ""),
        back=data.get("back") is True,
    )
    return Mark(
        moving=moving,
        disks={
            int(number): Arrived(_digest(disk["digest"]), int(disk["octets"]))
            for number, disk in data["disks"].items()
        },
    )


def _digest(value: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("no digest")
    return value
