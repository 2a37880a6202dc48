"""``vmcloner show``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmcloner_core import ssh
from vmcloner_core.cli.base import Record
from vmcloner_core.cli.listing import KEYS, age, left_words, row
from vmcloner_core.cli.usage import printable
from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Clone
from vmcloner_core.units import format_age, format_size

if TYPE_CHECKING:
    from vmcloner_core.model import CloneSpec

MORE = (
    "uuid", "memory", "owner", "run", "expires", "disks", "macs", "console_log",
    "vcpus", "user", "port", "ssh", "uptime", "ready", "values", "lab", "lease_left", "snapshots",
)  # fmt: skip


class Show(Record):
    """Show one clone in detail."""

    example = "vmcloner show web-3"
    columns = (*KEYS, *MORE)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("clone", metavar="CLONE", help="Name of a clone.")
        form = parser.add_mutually_exclusive_group()
        form.add_argument(
            "--xml", action="store_true", help="Print its domain XML, as it would be defined now."
        )
        form.add_argument(
            "--show-xl", action="store_true", help="Print it in Xen's xl.cfg(5) format."
        )
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Show the clone, or its domain alone."""
        if parsed_args.show_xl:
            return self.guarded(lambda: self._print(self.engine.domain_native(parsed_args.clone)))
        if parsed_args.xml:
            return self.guarded(lambda: self._print(self.engine.domain_xml(parsed_args.clone)))
        return super().run(parsed_args)

    def _print(self, text: str) -> int:
        self.app.stdout.write(printable(text.rstrip()) + "\n")
        return 0

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return keys and values."""
        clone = self.engine.show(parsed_args.clone)
        values = dict(zip(KEYS, row(clone), strict=True)) | self._more(clone)
        if self.for_people(parsed_args):
            values |= self._worded(clone, values)
        return tuple(values), tuple(values.values())

    def _more(self, clone: Clone) -> dict[str, Any]:
        spec = self._spec(clone)
        domain = clone.domain
        started = self.engine.started(clone)
        (leased,) = self.engine.leases([clone])
        lease = leased.lease
        values = (
            str(domain.uuid) if domain is not None else None,
            domain.memory if domain is not None else None,
            clone.labels.owner,
            clone.labels.run,
            lease.expires if lease is not None else None,
            [
                {
                    "path": str(volume.path),
                    "size": volume.size,
                    "format": volume.format,
                    "pool": volume.pool,
                }
                for volume in clone.volumes
            ],
            list(domain.macs) if domain is not None else [],
            str(self.engine.console_log(clone) or ""),
            spec.vcpus if spec is not None else None,
            spec.template.ssh.user if spec is not None else None,
            spec.template.ssh.port if spec is not None else None,
            self._ssh(clone),
            datetime.now(UTC).timestamp() - started if started is not None else None,
            spec.template.readiness if spec is not None else None,
            dict(spec.values) if spec is not None else {},
            clone.labels.lab,
            leased.left,
            [
                {
                    "name": snapshot.name,
                    "taken": snapshot.taken,
                    "memory": snapshot.memory,
                    "complete": snapshot.complete,
                }
                for snapshot in clone.snapshots
            ],
        )
        return dict(zip(MORE, values, strict=True))

    def _spec(self, clone: Clone) -> CloneSpec | None:
        """Return what a clone is made from, None if that isn't known any more."""
        try:
            return self.engine.spec(clone)
        except VmclonerError:
            return None

    def _ssh(self, clone: Clone) -> str | None:
        """Return the command line that logs in to a clone, None if it can't be reached now."""
        outcome = self.engine.reach(clone)
        return shlex.join(ssh.command(outcome.unwrap())) if outcome.ok else None

    def _worded(self, clone: Clone, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those values that people read in another form."""
        disks = [
            f"{disk['path']} ({format_size(disk['size'])}, {disk['format']}, pool {disk['pool']})"
            for disk in values["disks"]
        ]
        memory, uptime, old = values["memory"], values["uptime"], age(clone, datetime.now(UTC))
        outcome = self.engine.reach(clone)
        return {
            "created": f"{values['created']} ({old} ago)" if old else values["created"],
            "memory": format_size(memory) if memory is not None else None,
            "volumes": "\n".join(values["volumes"]),
            "disks": "\n".join(disks),
            "ssh": values["ssh"] or f"not now: {outcome.error}",
            "uptime": format_age(uptime) if uptime is not None else None,
            "lease_left": left_words(values["lease_left"]),
            "snapshots": "\n".join(
                f"{each['name']} ({each['taken']}{', with memory' if each['memory'] else ''}"
                f"{'' if each['complete'] else ', incomplete'})"
                for each in values["snapshots"]
            ),
        }
