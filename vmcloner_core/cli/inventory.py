"""``vmcloner inventory``."""

from __future__ import annotations

import argparse
import json

import attrs
import yaml

from vmcloner_core import ansible, ssh
from vmcloner_core.cli.base import Base, add_targets, chosen
from vmcloner_core.cli.usage import say
from vmcloner_core.errors import PartialFailure, UsageError
from vmcloner_core.model import Access
from vmcloner_core.units import counted


class Inventory(Base):
    """Print how to reach clones, as an Ansible inventory, an ssh configuration or JSON.

    Clones that can't be reached now are left out, with exit code 10. With --list or --host it is
    what Ansible expects of an inventory script; --list alone is of all clones, and exits with 0.
    """

    example = "vmcloner inventory web > web.yml && ansible -i web.yml web -m ping"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        parser.add_argument(
            "-f",
            "--format",
            choices=("ansible", "ssh-config", "json"),
            default="ansible",
            help="YAML for Ansible (default), ssh_config(5), or JSON.",
        )
        as_script = parser.add_mutually_exclusive_group()
        as_script.add_argument(
            "--list", action="store_true", help="JSON with groups and variables, for Ansible."
        )
        as_script.add_argument(
            "--host", dest="clone", metavar="CLONE", help="JSON with one clone's variables."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Print it.

        :raises PartialFailure: some clones aren't in it.
        """
        if parsed_args.clone is not None:
            self._print_host(parsed_args)
            return
        if parsed_args.list and not parsed_args.targets:
            parsed_args.all = True
        clones = self.engine.list(*chosen(parsed_args, "inventory"))
        clones = tuple(clone for clone in clones if parsed_args.targets or not clone.making)
        outcomes = [self.engine.reach(clone) for clone in clones]
        reached = [outcome.unwrap() for outcome in outcomes if outcome.ok]
        labels = {clone.name: clone.labels for clone in clones}
        pairs = [(labels[access.name], access) for access in reached]
        if parsed_args.list:
            text = json.dumps(ansible.script(pairs), indent=2) + "\n"
        elif parsed_args.format == "ssh-config":
            text = ssh.config(reached)
        elif parsed_args.format == "json":
            text = json.dumps([_row(access) for access in reached], indent=2) + "\n"
        else:
            text = yaml.safe_dump(ansible.inventory(pairs), sort_keys=False)
        self.app.stdout.write(text)
        failures = [(o.key, o.error) for o in outcomes if o.error is not None]
        if failures:
            partial = PartialFailure(
                f"inventory: {len(failures)} of {counted(len(outcomes), 'clone')} left out: "
                f"{failures[0][1]}",
                failures=failures,
            )
            if not parsed_args.list:
                raise partial
            say(str(partial))  # Ansible ignores all that a script printed if the script fails

    def _print_host(self, parsed_args: argparse.Namespace) -> None:
        if parsed_args.targets or parsed_args.all:
            raise UsageError("--host goes without targets")
        clone = self.engine.show(parsed_args.clone)
        found = ansible.variables(clone.labels, self.engine.reach(clone).unwrap())
        self.app.stdout.write(json.dumps(found, indent=2) + "\n")


def _row(access: Access) -> dict[str, object]:
    values = attrs.asdict(access)
    own = values.pop("keys")
    del values["refusal"]
    values["key"] = access.key or next(iter(own), None)
    return {key: None if value is None else _plain(value) for key, value in values.items()}


def _plain(value: object) -> object:
    return value if isinstance(value, int) else str(value)
