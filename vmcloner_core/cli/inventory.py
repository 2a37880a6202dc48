"""``vmcloner inventory``."""

from __future__ import annotations

import argparse
import json

import attrs
import yaml

from vmcloner_core import ansible, ssh
from vmcloner_core.cli.base import Base, add_targets, chosen
from vmcloner_core.errors import PartialFailure
from vmcloner_core.model import Access
from vmcloner_core.units import counted


class Inventory(Base):
    """Print how to reach clones, as an Ansible inventory, an ssh configuration or JSON.

    Clones that can't be reached now are left out, with exit code 10.
    """

    example = (
        "vmcloner inventory web --format ansible > hosts.yml && ansible -i hosts.yml web -m ping"
    )

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
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Print it.

        :raises PartialFailure: some clones aren't in it.
        """
        clones = self.engine.list(*chosen(parsed_args, "inventory"))
        outcomes = self.engine.access(*parsed_args.targets)
        labels = {clone.name: clone.labels for clone in clones}
        reached = [outcome.unwrap() for outcome in outcomes if outcome.ok]
        if parsed_args.format == "ssh-config":
            text = ssh.config(reached)
        elif parsed_args.format == "json":
            text = json.dumps([_row(access) for access in reached], indent=2) + "\n"
        else:
            found = ansible.inventory([(labels[a.name], a) for a in reached if a.name in labels])
            text = yaml.safe_dump(found, sort_keys=False)
        self.app.stdout.write(text)
        failures = [(o.key, o.error) for o in outcomes if o.error is not None]
        if failures:
            raise PartialFailure(
                f"inventory: {len(failures)} of {counted(len(outcomes), 'clone')} left out: "
                f"{failures[0][1]}",
                failures=failures,
            )


def _row(access: Access) -> dict[str, object]:
    values = attrs.asdict(access)
    own = values.pop("keys")
    values["key"] = access.key or next(iter(own), None)
    return {key: None if value is None else _plain(value) for key, value in values.items()}


def _plain(value: object) -> object:
    return value if isinstance(value, int) else str(value)
