"""``vmcloner template``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import attrs

from vmcloner_core.cli.base import Base, Record, Table, add_copying, note
from vmcloner_core.cli.host import CHECK_COLUMNS, check_row, judged
from vmcloner_core.cli.usage import agrees
from vmcloner_core.errors import (
    Interrupted,
    PartialFailure,
    UsageError,
)
from vmcloner_core.model import Copying, ImageFormat, Outcome, Template
from vmcloner_core.template_leftovers import TemplateLeftover, named
from vmcloner_core.units import format_size
from vmcloner_core.warm_origins import WarmOrigin

LIST_COLUMNS = ("name", "description", "imported", "file", "host", "error")
PULL_COLUMNS = ("template", "url", "file", "size", "checksum", "sha256", "changed")
IMPORT_COLUMNS = ("template", "storage", "size", "allocated", "extents", "digest", "changed")


class TemplateList(Table):
    """List templates, the pools that hold their images, and what no template names any more."""

    example = "vmcloner template list"
    columns = LIST_COLUMNS
    short: Sequence[str] = ("name", "imported", "description", "error")
    nothing = "there are no templates (docs/templates.md says how to write one)"

    def take_action(self, _parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        found = self.engine.template_rows()
        if len({row.host for row in found}) > 1:
            self.short = ("host", *self.short)
        return LIST_COLUMNS, [
            (
                *(row.name, row.description, ",".join(row.pools) or None),
                *(row.file and str(row.file), row.host, row.error),
            )
            for row in found
        ]


class _Named(Base):
    """A command about one template."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("template", metavar="NAME", help="Name of a template.")
        return parser


class TemplateShow(_Named, Record):
    """Show one template, including what it inherits."""

    example = "vmcloner template show tiny"

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return keys and values."""
        template = self.engine.template(parsed_args.template)
        origins = self.engine.origins(template.name)
        warm = self.engine.warm_origins(template.name)
        captured = template.image.captured
        values: dict[str, Any] = {
            "name": template.name,
            "description": template.description,
            "file": str(template.origin_file),
            "hypervisors": list(template.hypervisors),
            "boot": template.boot,
            "memory": template.memory,
            "vcpus": template.vcpus,
            "image": _source(template),
            "checksums": template.image.checksums,
            "signature": template.image.signature,
            "keyring": str(template.image.keyring) if template.image.keyring else None,
            "captured": _plain(captured) if captured is not None else None,
            "disk_size": template.disk_size,
            "nics": [f"{nic.kind}:{nic.source or ''}".rstrip(":") for nic in template.nics],
            "kernel": str(template.kernel.path)
            if template.kernel is not None and template.kernel.path is not None
            else None,
            "cmdline": template.kernel.cmdline if template.kernel is not None else None,
            "ready": template.readiness,
            "imported": [origin.pool for origin in origins],
            "warm": [warm_row(origin) for origin in warm],
            "swap": template.swap,
            "disks": [attrs.asdict(disk) for disk in template.disks],
            "identity": _plain(template.identity),
            "seal": _plain(template.seal),
            "ssh": _plain(template.ssh),
            "domain": _plain(template.domain),
            "image_options": dict(template.image.options),
            "values": dict(template.values),
        }
        if self.for_people(parsed_args):
            values |= _worded(template, values)
        return tuple(values), tuple(values.values())


def _plain(table: Any) -> dict[str, Any]:
    """Return a table of a template as values that every format has."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in attrs.asdict(table).items()
    }


def _worded(template: Template, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values that people read in another form: with units, and a line for each key."""
    sizes = {
        key: format_size(values[key]) if values[key] is not None else None
        for key in ("memory", "disk_size", "swap")
    }
    tables = {
        key: "\n".join(
            f"{name}: {_words(value)}"
            for name, value in values[key].items()
            if value not in (None, ())
        )
        for key in ("identity", "seal", "ssh", "domain", "image_options", "values")
    }
    disks = "\n".join(f"{format_size(disk.size)}, {disk.content}" for disk in template.disks)
    if values["captured"] is not None:
        tables["captured"] = "\n".join(f"{k}: {_words(v)}" for k, v in values["captured"].items())
    warm = "\n".join(_warm_words(row) for row in values["warm"])
    return {**sizes, **tables, "disks": disks, "warm": warm}


def warm_row(origin: WarmOrigin) -> dict[str, Any]:
    """Return a warm origin as values that every format has."""
    return {
        "pool": origin.pool,
        "hypervisor": origin.hypervisor,
        "key": origin.key,
        "made": origin.made,
        "size": origin.size,
        "depends": dict(origin.depends),
    }


def _warm_words(row: Mapping[str, Any]) -> str:
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["made"]))
    parts = ", ".join(f"{subject} {text}" for subject, text in sorted(row["depends"].items()))
    return f"{made}, pool {row['pool']}, {format_size(row['size'])} beside its disk: {parts}"


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _source(template: Template) -> str:
    image = template.image
    if image.captured is not None:
        how = "sealed" if image.captured.sealed else "NOT sealed"
        return f"captured from {image.captured.clone} at {image.captured.at}, {how}"
    return f"builder {image.builder}" if image.builder else str(image.path or image.url)


class TemplateImport(_Named, Record):
    """Import a template's image into a pool, unless it is already there.

    create does this by itself the first time. Import again when the image has changed.
    """

    example = "vmcloner template import debian-12 --image ./debian-12.qcow2"
    columns = IMPORT_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--storage", metavar="NAME", help="Storage pool from the settings.")
        parser.add_argument(
            "--image", metavar="FILE_OR_URL", help="Image to use instead of the template's own."
        )
        parser.add_argument("--sha256", metavar="HEX", help="Of --image; required for a URL.")
        parser.add_argument(
            "--image-format",
            choices=get_args(ImageFormat),
            help="Of the image, unpacked. Default: what its name says, else the template.",
        )
        add_copying(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Import; returns keys and values of the image in the pool."""
        outcome = self.engine.import_template(
            parsed_args.template,
            storage=parsed_args.storage,
            image=parsed_args.image,
            sha256=parsed_args.sha256,
            format=parsed_args.image_format,
            copying=Copying(bandwidth=parsed_args.bwlimit, verify=parsed_args.verify),
        )
        origin = outcome.unwrap()
        what = "imported" if outcome.changed else "already there"
        note(self.app, f"{origin.template}: {format_size(origin.size)}, {what}")
        sizes: tuple[object, ...] = (origin.size, origin.allocated)
        if self.for_people(parsed_args):
            sizes = (format_size(origin.size), format_size(origin.allocated))
        return IMPORT_COLUMNS, (
            origin.template,
            origin.pool,
            *sizes,
            origin.extents,
            origin.digest,
            outcome.changed,
        )


class TemplatePull(_Named, Record):
    """Download a template's image from its publisher, and check it.

    Goes on where an earlier download stopped. Downloads again what the publisher has replaced.
    The image is kept for all pools; what they have imported, and clones, stay as they are.
    """

    example = "vmcloner template pull debian-13"
    columns = PULL_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--mirror",
            metavar="URL",
            help="Fetch from there: it replaces https://HOST in the template's URLs.",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Pull; returns keys and values of the image."""
        name = parsed_args.template
        outcome = self.engine.pull_template(name, mirror=parsed_args.mirror)
        image = outcome.unwrap()
        what = "downloaded" if outcome.changed else "already here"
        note(self.app, f"{name}: {format_size(image.size)}, {what}")
        if image.signature:
            note(self.app, f"{name}: signature of its checksum: {image.signature}")
        for origin in self.engine.origins(name):
            if origin.digest != f"sha256:{image.sha256}":
                note(
                    self.app,
                    f"pool {origin.pool} has another image of it, which new clones get until: "
                    f"vmcloner template import {name} --storage {origin.pool}",
                )
        size = format_size(image.size) if self.for_people(parsed_args) else image.size
        return PULL_COLUMNS, (
            *(name, image.url, str(image.path), size),
            *(str(image.checksum), image.sha256, outcome.changed),
        )


class TemplateDelete(_Named):
    """Remove a template's image from a pool, its warm origins, and what its builder made.

    Its TOML file stays.
    """

    example = "vmcloner template delete tiny"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--storage", metavar="NAME", help="Storage pool from the settings.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Remove it."""
        name = parsed_args.template
        outcome = self.engine.delete_template(name, storage=parsed_args.storage)
        note(self.app, f"{name}: image {'removed' if outcome.changed else 'was not there'}")
        for origin in self.engine.origins(name):
            note(
                self.app,
                f"pool {origin.pool} still has an image of it: "
                f"vmcloner template delete {name} --storage {origin.pool}",
            )


class TemplatePrune(Table):
    """Remove images, in pools and in the state folder, that no template names any more.

    What clones were made from is kept. Templates in the folder templates of other working
    directories aren't seen: run it where yours are.
    """

    example = "vmcloner template prune --dry-run"
    nothing = "nothing to remove"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--dry-run", action="store_true", help="Show what would be removed.")
        parser.add_argument("-y", "--yes", action="store_true", help="Don't ask first.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        left = self.engine.leftovers()
        if parsed_args.dry_run:
            outcomes = [Outcome(key=each.template, value=each, changed=False) for each in left]
        else:
            self._confirm(left, parsed_args)
            outcomes = list(self.engine.prune_templates(left))
        self.failed = [o for o in outcomes if o.error is not None]
        rows = []
        for each, outcome in zip(left, outcomes, strict=True):
            result = "removed" if outcome.changed else "would be removed"
            if outcome.error is not None:
                result = str(outcome.error)
            elif not outcome.changed and not parsed_args.dry_run:
                result = "already gone"
            size = format_size(each.size) if self.for_people(parsed_args) else each.size
            rows.append((each.template, each.pool, each.folder and str(each.folder), size, result))
        return ("template", "storage", "folder", "size", "result"), rows

    def _confirm(self, left: Sequence[TemplateLeftover], parsed_args: argparse.Namespace) -> None:
        """Ask before anything is removed.

        :raises Interrupted: the user said no. :raises UsageError: there is nobody to ask.
        """
        if parsed_args.yes or not left:
            return
        if not sys.stdin.isatty():
            raise UsageError("template prune needs a terminal to ask", hint="or use --yes")
        size = format_size(sum(each.size for each in left))
        names = ", ".join(named(left))
        if not agrees(f"Remove {size} of {names}?"):
            raise Interrupted("nothing was removed")

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Prune; fails if something is kept because clones use it."""
        return super().run(parsed_args) or (PartialFailure.exit_code if self.failed else 0)


class TemplateCheck(_Named, Table):
    """Check a template without making a clone.

    Shows everything that is wrong at once. The exit code is what create would have: 3 if the file
    has wrong keys or values, 4 if something that it names isn't there, 8 if the host lacks a
    program.
    """

    example = "vmcloner template check tiny"
    columns = (*CHECK_COLUMNS, "template")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        self.checks = self.engine.check_template(parsed_args.template)
        people = self.for_people(parsed_args) and "backend" not in parsed_args.columns
        columns = ("template", *CHECK_COLUMNS[1:]) if people else CHECK_COLUMNS
        return columns, [check_row(check) for check in self.checks]

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Check; fails where a check does."""
        return super().run(parsed_args) or judged(self.checks)
