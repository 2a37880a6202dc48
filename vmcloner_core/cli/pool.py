"""``vmcloner pool``."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from vmcloner_core.cli.base import Table, add_identical, note
from vmcloner_core.cli.listing import left_words
from vmcloner_core.pool_calls import PoolMember
from vmcloner_core.pools import Pool, PoolReset
from vmcloner_core.units import parse_duration

COLUMNS = ("pool", "name", "state", "who", "left", "address")


class PoolList(Table):
    """Show the clones of pools of machines, who has taken them, and for how long.

    What is "used" will be reset, or isn't ready yet.
    """

    example = "vmcloner pool list tests"
    columns: Sequence[str] = COLUMNS
    nothing = "there are no pools (vmcloner pool fill tests -t tiny -n 4)"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("pool", nargs="?", metavar="POOL", help="One pool (default: all).")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        name = parsed_args.pool
        pools = self.engine.pools() if name is None else (self.engine.pool(name),)
        members = [
            (pool.name, each) for pool in pools for each in self.engine.pool_members(pool.name)
        ]
        return COLUMNS, self.rows(members, parsed_args)

    def rows(
        self, members: Iterable[tuple[str, PoolMember]], parsed_args: argparse.Namespace
    ) -> list[Any]:
        """Return the rows of clones with their pools' names."""
        words = left_words if self.for_people(parsed_args) else lambda left: left
        return [
            (pool, each.name, each.state, each.who or None, words(each.left), each.address)
            for pool, each in members
        ]


class _Change(PoolList):
    """What filling and emptying have in common."""

    nothing = ""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        (name,) = (action for action in parser._actions if action.dest == "pool")
        name.nargs, name.required, name.help = None, True, "The pool: the name of its fleet."
        return parser

    @abstractmethod
    def change(self, parsed_args: argparse.Namespace) -> Sequence[PoolMember]:
        """Change the pool; returns its clones."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Change the pool; returns columns and rows."""
        self._members = self.change(parsed_args)
        return COLUMNS, self.rows([(parsed_args.pool, m) for m in self._members], parsed_args)

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, then a summary."""
        super().produce_output(parsed_args, column_names, data)
        states = [each.state for each in self._members]
        known = [f"{states.count(s)} {s}" for s in ("ready", "taken", "used") if s in states]
        said = ", ".join(known) or "empty"
        note(self.app, f"pool {parsed_args.pool}: {said}")
        return 0


class PoolFill(_Change):
    """Bring a pool of machines to its size: make what is missing, reset what was used.

    Clones that are taken aren't touched. A pool that exists keeps what isn't given.
    """

    example = "vmcloner pool fill tests -t tiny -n 4 --reset on-failure"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("-t", "--template", help="The template, for a new pool.")
        parser.add_argument(
            "-n",
            "--count",
            type=int,
            dest="size",
            metavar="N",
            help="How many clones (default: 4).",
        )
        parser.add_argument(
            "--reset",
            choices=[each.value for each in PoolReset],
            help="When a clone that is given back is reset (default: always).",
        )
        parser.add_argument(
            "--memory",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="Keep the memory of when a clone got ready, so that a reset needs no boot.",
        )
        parser.add_argument(
            "--warm",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="Fork clones from a guest that has booted once (template warm), also after a use.",
        )
        add_identical(parser, default=None)
        parser.add_argument(
            "--ready", metavar="WHAT", help="What to wait for (default: as the template says)."
        )
        parser.add_argument(
            "--ttl",
            type=parse_duration,
            metavar="TIME",
            help="When gc --expired may remove clones that nobody uses (default: 15min).",
        )
        return parser

    def change(self, parsed_args: argparse.Namespace) -> Sequence[PoolMember]:
        """See :meth:`Engine.fill_pool`."""
        keys = ("template", "size", "reset", "memory", "warm", "identical", "ready", "ttl")
        given = {k: v for k in keys if (v := getattr(parsed_args, k)) is not None}
        if "template" in given and parsed_args.pool not in {p.name for p in self.engine.pools()}:
            return self.engine.fill_pool(Pool(name=parsed_args.pool, **given))
        pool = self.engine.pool(parsed_args.pool)
        return self.engine.fill_pool(attrs.evolve(pool, **given))


class PoolEmpty(_Change):
    """Delete the clones of a pool that nobody uses. The last takes the pool along."""

    example = "vmcloner pool empty tests"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--force", action="store_true", help="Also the clones that somebody has taken."
        )
        return parser

    def change(self, parsed_args: argparse.Namespace) -> Sequence[PoolMember]:
        """See :meth:`Engine.empty_pool`."""
        return self.engine.empty_pool(parsed_args.pool, force=parsed_args.force)
