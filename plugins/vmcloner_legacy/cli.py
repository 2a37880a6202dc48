"""``vmcloner template import-legacy`` and ``vmcloner settings import-legacy``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcloner_core.cli.base import Table, note
from vmcloner_core.errors import Conflict, HostCommandError
from vmcloner_core.units import counted

if TYPE_CHECKING:
    from vmcloner_legacy.xl_cfg import Note

COLUMNS = ("file", "line", "text", "reason")


class _Import(Table):
    """What the two have in common: a file that is written, a table of what isn't in it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--dry-run", action="store_true", help="Print it; write nothing.")
        parser.add_argument("--force", action="store_true", help="Replace the file if it is there.")
        return parser

    def written(self, text: str, path: Path, parsed_args: argparse.Namespace) -> None:
        """Write a file, or print it; what is there stays as it is until the new one is whole.

        :raises Conflict: it is there. :raises HostCommandError: it can't be written.
        """
        if parsed_args.dry_run:
            print(text, file=sys.stderr if parsed_args.formatter != "table" else None)
            return
        data = text.encode()
        draft = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            if parsed_args.force:
                draft.replace(path)
            else:
                os.link(draft, path)
        except FileExistsError as error:
            raise Conflict(
                f"{path} exists", hint="--force replaces it, --dry-run prints"
            ) from error
        except OSError as error:
            raise HostCommandError(f"can't write {path}: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()
        note(self.app, f"wrote {path}")

    def rows(self, notes: Sequence[Note]) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows of what couldn't be carried over."""
        note(self.app, f"{counted(len(notes), 'line')} could not be carried over as written")
        return COLUMNS, [(n.file, n.line or None, n.text or None, n.reason) for n in notes]


class TemplateImportLegacy(_Import):
    """Make a template of an xl.cfg file, or of a token template and its conf file.

    Each line that can't be carried over as it is is named, with the reason. Nothing in these files
    is run.
    """

    example = "vmcloner template import-legacy etc/precise.template etc/precise.conf"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("file", type=Path, help="An xl.cfg file or a template of one.")
        parser.add_argument("conf", type=Path, nargs="?", help="The values of a template's tokens.")
        parser.add_argument("--name", help="The template's name (default: the machine's).")
        parser.add_argument(
            "--folder",
            type=Path,
            default=Path("templates"),
            help="Folder to write NAME.toml to (default: ./templates).",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Import; returns columns and rows."""
        from vmcloner_legacy import templates
        from vmcloner_legacy.toml import dumps

        paths = [path for path in (parsed_args.file, parsed_args.conf) if path is not None]
        xl, conf = templates.files(paths)
        made = templates.convert(xl, conf, parsed_args.name)
        text = dumps(made.table, f"Made of {' and '.join(made.sources)}.")
        self.written(text, parsed_args.folder / f"{made.name}.toml", parsed_args)
        return self.rows(made.notes)


class SettingsImportLegacy(_Import):
    """Make settings of an old vmcloner.conf."""

    example = "vmcloner settings import-legacy etc/vmcloner.conf --output vmcloner.toml"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("file", type=Path, help="A vmcloner.conf.")
        parser.add_argument(
            "--output",
            type=Path,
            default=Path("vmcloner.toml"),
            help="File to write (default: ./vmcloner.toml).",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Import; returns columns and rows."""
        from vmcloner_legacy import settings
        from vmcloner_legacy.toml import dumps

        table, notes = settings.convert(parsed_args.file)
        self.written(dumps(table, f"Made of {parsed_args.file}."), parsed_args.output, parsed_args)
        return self.rows(notes)
