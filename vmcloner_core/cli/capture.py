"""``vmcloner template capture`` and ``vmcloner template export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmcloner_core.cli.base import Record, add_copying, note
from vmcloner_core.model import Copying
from vmcloner_core.units import format_size

CAPTURE_COLUMNS = (
    *("template", "clone", "extends", "storage", "size", "sealed", "left_out", "file", "changed"),
)
EXPORT_COLUMNS = ("template", "storage", "file", "format", "size", "written", "beside", "changed")


class TemplateCapture(Record):
    """Make a template of a clone: its first disk becomes an image, without the clone's identity.

    What makes the clone the machine that it is is removed from the image: machine-id, host keys,
    cloud-init's state, logs, leases, swap contents, and what the template's table [seal] adds. The
    clone stays as it is. The new template extends the clone's, and is one of your own templates.
    """

    example = "vmcloner template capture web-1 web-ready --description 'web, with nginx'"
    columns = CAPTURE_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("clone", metavar="CLONE", help="Name of the clone.")
        parser.add_argument("template", metavar="NAME", help="Name of the new template.")
        parser.add_argument("--description", metavar="TEXT", default="", help="Of the template.")
        parser.add_argument(
            "--live",
            action="store_true",
            help="Take the disk of a running clone, whose guest agent freezes it meanwhile.",
        )
        parser.add_argument(
            "--compact",
            action="store_true",
            help="Give back the space that the disk's file systems don't use.",
        )
        parser.add_argument(
            "--no-seal",
            action="store_true",
            help="Keep the clone's identity in the image: all clones of it will have the same.",
        )
        parser.add_argument("--dry-run", action="store_true", help="Show what would be done.")
        add_copying(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Capture; returns keys and values of the template."""
        name = parsed_args.template
        outcome = self.engine.capture_template(
            parsed_args.clone,
            name,
            description=parsed_args.description,
            live=parsed_args.live,
            compact=parsed_args.compact,
            seal=not parsed_args.no_seal,
            copying=Copying(bandwidth=parsed_args.bwlimit, verify=parsed_args.verify),
            dry_run=parsed_args.dry_run,
        )
        done = outcome.unwrap()
        what = "captured" if outcome.changed else "captured before"
        if parsed_args.dry_run and not done.done:
            what = f"would be captured; its image takes up to {format_size(done.need)}"
        note(self.app, f"{name}: {format_size(done.size)}, {what}")
        if not done.sealed:
            note(self.app, f"{name}: NOT sealed: all of its clones will be {done.clone}")
        for each in done.left_out:
            note(self.app, each)
        size = format_size(done.size) if self.for_people(parsed_args) else done.size
        return CAPTURE_COLUMNS, (
            *(done.template, done.clone, done.parent, done.pool, size, done.sealed),
            *(list(done.left_out), str(done.file), outcome.changed),
        )


class TemplateExport(Record):
    """Write a template's image to a file, to be imported elsewhere.

    FILE is *.qcow2 or *.raw. For a captured template, FILE's TOML file and the kernel that its
    clones boot are written beside: put all of them into a folder of templates there.
    """

    example = "vmcloner template export web-ready /srv/images/web-ready.qcow2 --compress"
    columns = EXPORT_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("template", metavar="NAME", help="Name of the template.")
        parser.add_argument("file", metavar="FILE", type=Path, help="The file to write.")
        parser.add_argument("--storage", metavar="NAME", help="Storage pool from the settings.")
        parser.add_argument("--compress", action="store_true", help="Compress the qcow2 image.")
        parser.add_argument("--overwrite", action="store_true", help="Replace files of that name.")
        parser.add_argument("--dry-run", action="store_true", help="Show what would be done.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Export; returns keys and values of the file."""
        name = parsed_args.template
        outcome = self.engine.export_template(
            name,
            parsed_args.file,
            storage=parsed_args.storage,
            compressed=parsed_args.compress,
            overwrite=parsed_args.overwrite,
            dry_run=parsed_args.dry_run,
        )
        done = outcome.unwrap()
        note(
            self.app, f"{name}: {done.file}, {'written' if outcome.changed else 'would be written'}"
        )
        sizes: list[Any] = [done.size, done.written]
        if self.for_people(parsed_args):
            sizes = [size if size is None else format_size(size) for size in sizes]
        return EXPORT_COLUMNS, (
            *(name, done.pool, str(done.file), done.format, *sizes),
            *([str(path) for path in done.beside], outcome.changed),
        )
