"""``vmcloner image``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from vmcloner_core.cli.base import Record, note
from vmcloner_core.cli.lines import Building
from vmcloner_core.units import format_size, parse_size

if TYPE_CHECKING:
    from vmcloner_core.drivers import ImageFile
    from vmcloner_core.model import Template


class ImageBuild(Record):
    """Build a template's image on this machine, unless it is up to date.

    With --suite, --packages, --size, --mirror or --revision, NAME becomes a template of your own,
    once its image is built: debian-12-built with these options. Needs root.
    """

    example = "vmcloner image build ci --suite bookworm --packages git,make --size 4GiB"
    columns = ("template", "file", "image", "format", "size", "digest")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("template", metavar="NAME", help="Name of the template.")
        parser.add_argument("--suite", metavar="SUITE", help="Debian's release: bookworm, trixie.")
        parser.add_argument("--packages", metavar="P,Q", help="Additional packages.")
        parser.add_argument("--size", metavar="SIZE", help="Size of the disk (default 2GiB).")
        parser.add_argument("--mirror", metavar="URL", help="Archive to use instead of Debian's.")
        parser.add_argument(
            "--revision", metavar="TEXT", help="Any text; a new one rebuilds the image."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Build; returns keys and values of the image."""
        packages, size = parsed_args.packages, parsed_args.size
        options = {
            "suite": parsed_args.suite,
            "packages": packages and [name for name in packages.split(",") if name],
            "size": size and parse_size(size),
            "mirror": parsed_args.mirror,
            "revision": parsed_args.revision,
        }
        given = {key: value for key, value in options.items() if value is not None}
        template, image = self._built(parsed_args.template, given)
        note(self.app, f"{template.name}: {format_size(image.size)}, made")
        shown = {
            "template": template.name,
            "file": str(template.origin_file),
            "image": str(image.path),
            "format": image.format,
            "size": format_size(image.size) if self.for_people(parsed_args) else image.size,
            "digest": image.digest,
        }
        return tuple(shown), tuple(shown.values())

    def _built(self, name: str, options: Mapping[str, Any]) -> tuple[Template, ImageFile]:
        if not self.app.options.verbose_level:
            return self.engine.build_image(name, options)
        with Building(name) as building, ExitStack() as stack:
            stack.callback(self.engine.plugins.watch(building))
            return self.engine.build_image(name, options)
