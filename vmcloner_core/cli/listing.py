"""``vmcloner list`` and ``vmcloner show``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vmcloner_core.cli.base import Record, Table, add_targets, note
from vmcloner_core.cli.usage import say
from vmcloner_core.errors import PartialFailure
from vmcloner_core.model import Clone

COLUMNS = (
    "name", "fleet", "index", "state", "template", "hypervisor",
    "storage", "host", "mac", "ip", "created", "volumes", "reason",
)  # fmt: skip


def _row(clone: Clone) -> tuple[Any, ...]:
    labels = clone.labels
    return (
        clone.name,
        clone.fleet,
        clone.index,
        clone.state.value,
        clone.template,
        labels.hypervisor,
        labels.storage,
        clone.host,
        clone.mac,
        clone.ip,
        labels.created,
        [volume.name for volume in clone.volumes],
        clone.reason,
    )


class List(Table):
    """List clones."""

    example = "vmcloner list web-[1-10] -f json"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=False)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows of what could be read."""
        self._found = self.engine.survey(*parsed_args.targets)
        return COLUMNS, [_row(clone) for clone in self._found.clones]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, then what could not be read.

        :raises PartialFailure: something couldn't.
        """
        super().produce_output(parsed_args, column_names, data)
        if self._found.others is not None:
            note(self.app, self._found.others)
        unseen = self._found.unseen
        for each in unseen[:-1]:
            say(f"{each} ({each.hint})")
        if unseen:
            raise PartialFailure(str(unseen[-1]), hint=unseen[-1].hint)
        return 0


class Show(Record):
    """Show one clone in detail."""

    example = "vmcloner show web-3"

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
        self.app.stdout.write(text.rstrip() + "\n")
        return 0

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return keys and values."""
        clone = self.engine.show(parsed_args.clone)
        more = {
            "uuid": str(clone.domain.uuid) if clone.domain is not None else None,
            "memory": clone.domain.memory if clone.domain is not None else None,
            "owner": clone.labels.owner,
            "run": clone.labels.run,
            "expires": clone.labels.expires,
            "disks": [
                {
                    "path": str(volume.path),
                    "size": volume.size,
                    "format": volume.format,
                    "pool": volume.pool,
                }
                for volume in clone.volumes
            ],
            "macs": list(clone.domain.macs) if clone.domain is not None else [],
            "console_log": str(self.engine.console_log(clone) or ""),
        }
        return (*COLUMNS, *more), (*_row(clone), *more.values())
