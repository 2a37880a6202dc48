"""``vmcloner ssh-config``."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from vmcloner_core.cli.base import Base, note
from vmcloner_core.errors import BackendError
from vmcloner_core.ssh_config import UserConfig


class SshConfig(Base):
    """Let plain ssh, scp, rsync and editors reach clones by name.

    --install adds an Include to ~/.ssh/config. ssh then asks vmcloner for the address, user, port,
    key and host key of a clone each time it connects. Other names are not affected.
    """

    example = "vmcloner ssh-config --install && ssh web-3"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--install", action="store_true", help="Add it, or update it.")
        what.add_argument("--remove", action="store_true", help="Remove all of it.")
        what.add_argument(
            "--refresh",
            dest="clone",
            metavar="CLONE",
            help="Write how a clone is reached now (ssh runs this).",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Install, remove, or write one clone's part.

        :raises BackendError: vmcloner's own program isn't found.
        """
        config = UserConfig.of_user()
        if parsed_args.clone is not None:
            access = self.engine.reach(self.engine.show(parsed_args.clone)).unwrap()
            config.refresh(access, self.engine.host.records)
        elif parsed_args.remove:
            note(self.app, "removed" if config.remove() else "it isn't installed")
        else:
            new = config.install(self._program(), self.engine.host.records)
            note(self.app, "installed: ssh reaches clones by name" if new else "already installed")

    def _program(self) -> list[str]:
        """Return the words that ssh puts before a clone's name: this program, with its settings."""
        beside = Path(sys.executable).with_name("vmcloner")
        program = str(beside) if beside.is_file() else shutil.which("vmcloner")
        if program is None:
            raise BackendError("the program vmcloner isn't in PATH", hint="add its folder to PATH")
        words, settings, host = [program], self.engine.settings.file, self.app.options.host
        if settings is not None:  # also ./vmcloner.toml: ssh runs this in any folder
            words += ["--config", str(settings)]
        if host is not None:
            words += ["--host", host]
        return [*words, "ssh-config", "--refresh"]
