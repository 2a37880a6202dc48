"""Run LVM's commands for one volume group, and parse their output."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.errors import BackendError, HostCommandError, NotFound, WrongState
from vmcloner_core.os_errors import translated
from vmcloner_core.process import CommandRunner
from vmcloner_core.trusted_files import check_folder, make_folder
from vmcloner_lvm.metadata import write
from vmcloner_lvm.volumegroup import VolumeGroup

TIMEOUT = 300.0
# This process holds their lock, and lvcreate does not support --nolocking for thin volumes: so
# they use another folder for locks.
OWN_LOCKS = Path("/run/lock/vmcloner/lvm")
_QUIET = {"LVM_SUPPRESS_FD_WARNINGS": "1"}
_FACTS = "vg_mda_size,vg_free,vg_exported,vg_partial,vg_shared"
_LOCKING = "/run/lock/lvm"


@attrs.frozen(kw_only=True)
class GroupFacts:
    """Facts of a volume group that are not in its metadata text. Sizes in bytes.

    :param area: size of one metadata area.
    :param shared: managed by lvmlockd for several hosts.
    """

    area: int
    free: int
    exported: bool
    partial: bool
    shared: bool


def bound(argv: Sequence[str]) -> list[str]:
    """Return a command line that is killed when this process dies: it may rely on our lock.

    The runner alone has it end by SIGTERM, which LVM's commands put off.
    """
    return ["setpriv", "--pdeathsig", "KILL", *argv]


def _held() -> tuple[str, str]:
    """Return the options of a command that must not take the group's lock.

    :raises InvalidRequest: another user made the folder that it uses instead, as ``/run/lock`` is
        often open to all. LVM follows links in it, and would make files anywhere.
    """
    if os.geteuid() == 0:  # LVM works for nobody else
        with translated(OWN_LOCKS):
            make_folder(OWN_LOCKS)
        check_folder(OWN_LOCKS)
    return "--config", f'global/locking_dir="{OWN_LOCKS}"'


@attrs.frozen
class Lvm:
    """LVM's commands for one volume group. Thread-safe."""

    group: str
    runner: CommandRunner

    def run(self, command: str, *words: str, held: bool = False, timeout: float = TIMEOUT) -> bytes:
        """Run a command; returns its output.

        :param held: this process holds the group's lock, so the command must not take it.
        :raises BackendError: LVM is not installed.
        :raises HostCommandError: the command failed.
        """
        if self.runner.which(command) is None:
            raise BackendError(f"{command}: lvm2 is not installed", hint="apt-get install lvm2")
        argv = bound([command, *(_held() if held else ()), *words])
        try:
            return self.runner.run(argv, timeout=timeout, env=_QUIET).stdout
        except HostCommandError as error:
            raise HostCommandError(error.message.replace("setpriv", command, 1)) from error

    def read(self, *, held: bool = False) -> VolumeGroup:
        """Return the group's metadata.

        :raises NotFound: there is no such group.
        :raises WrongState: it is exported.
        """
        with tempfile.TemporaryDirectory(prefix="vmcloner-lvm-") as folder:
            path = Path(folder) / "metadata"
            try:
                self.run("vgcfgbackup", "-f", str(path), self.group, held=held)
                text = path.read_text()
            except (HostCommandError, OSError) as error:
                self._explain(held=held)
                raise HostCommandError(
                    f"volume group {self.group}: cannot read its metadata: {error}"
                ) from error
        return VolumeGroup.parse(text, self.group)

    def restore(self, group: VolumeGroup) -> None:
        """Write the group's metadata; this process holds the group's lock."""
        with tempfile.TemporaryDirectory(prefix="vmcloner-lvm-") as folder:
            path = Path(folder) / "metadata"
            path.write_text(write(group.tree))
            self.run("vgcfgrestore", "--force", "-y", "-f", str(path), self.group, held=True)

    def facts(self, *, held: bool = False) -> GroupFacts:
        """Return facts of the group that are not in its metadata.

        :raises NotFound: there is no such group.
        """
        rows = self.report("vgs", _FACTS, "--select", f"vg_name={self.group}", held=held)
        if not rows:
            names = [str(row["vg_name"]) for row in self.report("vgs", "vg_name", held=held)]
            hint = f"known: {', '.join(names)}" if names else "vmcloner host prepare lvm --help"
            raise NotFound(f"no volume group {self.group}", hint=hint)
        row = rows[0]
        return GroupFacts(
            area=int(row["vg_mda_size"]),
            free=int(row["vg_free"]),
            exported=bool(row["vg_exported"]),
            partial=bool(row["vg_partial"]),
            shared=bool(row["vg_shared"]),
        )

    def report(
        self, command: str, fields: str, *words: str, held: bool = False
    ) -> Sequence[dict[str, Any]]:
        """Return the rows of a reporting command (vgs, lvs, pvs), sizes as numbers of bytes."""
        output = self.run(
            command, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, *words,
            held=held,
        )  # fmt: skip
        try:
            [report] = json.loads(output)["report"]
            rows: list[dict[str, Any]] = next(iter(report.values()))
        except (ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
            raise HostCommandError(f"{command}: cannot parse its report") from error
        return rows

    def locking_folder(self) -> Path:
        """Return where LVM keeps its locks: its setting ``global/locking_dir``."""
        output = self.run("lvmconfig", "--type", "full", "global/locking_dir").decode().strip()
        return Path(output.partition("=")[2].strip('"') or _LOCKING)

    def _explain(self, *, held: bool) -> None:
        """Raise an error that says why the group's metadata is not readable, if that is known."""
        if self.facts(held=held).exported:
            raise WrongState(
                f"volume group {self.group} is exported", hint=f"vgimport {self.group}"
            )
