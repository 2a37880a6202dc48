"""``vmcloner viewer`` and ``vmcloner screenshot``."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from vmcloner_core.cli.base import Base
from vmcloner_core.errors import BackendError


class Viewer(Base):
    """Print where a clone's screen can be seen (VNC or SPICE), or open it.

    The template must ask for a screen: graphics = "vnc" in [domain]. It listens on this host's
    loopback address only; from another machine, forward its port by ssh.
    """

    example = "vmcloner viewer web-3 --open"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("clone", metavar="CLONE", help="Name of a clone.")
        parser.add_argument("--open", action="store_true", help="Open it by remote-viewer.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Print the address, or run a viewer.

        :raises BackendError: there is no viewer.
        """
        address = self.engine.display(parsed_args.clone)
        if not parsed_args.open:
            print(address, file=self.app.stdout)
            return
        viewer = shutil.which("remote-viewer")
        if viewer is None:
            raise BackendError(f"{address}: no viewer", hint="apt-get install virt-viewer")
        subprocess.run([viewer, address], check=False)


class Screenshot(Base):
    """Write a picture of a clone's screen to a PNG file."""

    example = "vmcloner screenshot web-3 web-3.png"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("clone", metavar="CLONE", help="Name of a clone.")
        parser.add_argument("file", metavar="FILE", type=Path, help="Where to write it.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Take it and write it."""
        picture = self.engine.screenshot(parsed_args.clone)
        parsed_args.file.write_bytes(picture)
