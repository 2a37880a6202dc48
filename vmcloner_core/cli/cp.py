"""``vmcloner cp``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmcloner_core.cli.base import Table, add_fanout, note, size
from vmcloner_core.errors import PartialFailure, UsageError
from vmcloner_core.names import fold, split_clone
from vmcloner_core.transfers import MAX_SIZE, TIMEOUT, Copied, split
from vmcloner_core.units import counted, format_size

COLUMNS = ("name", "status", "files", "size", "path", "error")


class Cp(Table):
    """Copy files to or from many clones at once, by scp.

    Files of this host go to all the clones: cp FILE... TARGET:PATH. Files of clones come to a
    folder of this host, those of each clone in a folder of its own, LOCAL/CLONE: cp TARGET:PATH...
    LOCAL. Where TARGET is one clone (web-3), they come to LOCAL itself, as with scp.

    What is there is replaced. Nothing that a guest sends is written elsewhere. Exit code 10 if
    some clones failed; nothing of their files is kept then.
    """

    example = "vmcloner cp -r site web:/var/www && vmcloner cp 'web:/var/log/*.log' logs/"
    columns = COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.usage = f"{prog_name} [options] FILE... TARGET:PATH | TARGET:PATH... LOCAL"
        parser.add_argument(
            "words",
            nargs="+",
            metavar="FROM... TO",
            help="Files, and where to. TARGET is a fleet (web), a clone or a node set. A file "
            "whose name has a colon is written ./a:b.",
        )
        parser.add_argument("-r", "--recursive", action="store_true", help="Copy folders.")
        parser.add_argument(
            "--max-size",
            type=size,
            default=MAX_SIZE,
            metavar="SIZE",
            help=f"Take less than this from each clone (default {format_size(MAX_SIZE)}).",
        )
        add_fanout(parser, timeout=TIMEOUT)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Copy; returns columns and rows.

        :raises UsageError: not exactly one side is in clones.
        """
        *sources, to = (split(word) for word in parsed_args.words)
        options = {name: getattr(parsed_args, name) for name in ("recursive", "timeout", "jobs")}
        targets = {target for target, _ in sources}
        paths = [path for _, path in sources]
        if sources and to[0] is not None and targets == {None}:
            files = [Path(path) for path in paths]
            self._done = self.engine.put(to[0], files=files, to=to[1], **options)
        elif len(targets) == 1 and to[0] is None and (target := targets.pop()) is not None:
            folder, rename = _place(target, to[1], several=len(paths) > 1)
            options["max_size"] = parsed_args.max_size
            self._done = self.engine.get(
                target, paths=paths, folder=folder, rename=rename, **options
            )
        else:
            raise UsageError(
                "cp needs files of this host and a TARGET:PATH, in one of the two orders",
                hint=f"like {self.example}",
            )
        shown = [each for each in self._done if each.error or not self.for_people(parsed_args)]
        return COLUMNS, [_row(each) for each in shown]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, and how much was copied.

        :raises PartialFailure: some clones failed.
        """
        rows = list(data)
        if rows or not self.for_people(parsed_args):
            super().produce_output(parsed_args, column_names, rows)
        failed = [each for each in self._done if each.error is not None]
        if failed:
            raise PartialFailure(
                f"cp: {len(failed)} of {counted(len(self._done), 'clone')} failed: "
                f"{fold([each.name for each in failed])}",
                failures=[(each.name, each.error) for each in failed if each.error],
            )
        files = sum(each.files for each in self._done)
        copied = format_size(sum(each.size for each in self._done))
        many = counted(len(self._done), "clone")
        note(self.app, f"{many}: {counted(files, 'file')}, {copied} copied")
        return 0


def _place(target: str, local: str, *, several: bool) -> tuple[Path, str | None]:
    """Return the folder for what comes from clones, and a single file's name, as for ``get``."""
    if split_clone(target) is None:
        return Path(local), None
    path = Path(local)
    if several or local.endswith("/") or path.is_dir() or not path.name:
        return path, ""
    return path.parent, path.name


def _row(copied: Copied) -> tuple[object, ...]:
    error = copied.error
    return (
        copied.name,
        "ok" if error is None else "failed",
        copied.files,
        copied.size,
        copied.path or None,
        str(error).removeprefix(f"{copied.name}: ") if error is not None else None,
    )
