"""``vmcloner host``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmcloner_core.cli.base import Record, Table, note
from vmcloner_core.cli.usage import agrees
from vmcloner_core.errors import (
    Interrupted,
    InvalidRequest,
    PartialFailure,
    UsageError,
    VmclonerError,
)
from vmcloner_core.model import Check, NetworkChange, NetworkRequest, Status
from vmcloner_core.names import fold
from vmcloner_core.process import LocalRunner
from vmcloner_core.units import counted

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine
    from vmcloner_core.hosts.controller import Controller
    from vmcloner_core.hosts.draining import Emptied

FOLDER = "/opt/vmcloner"
CHECK_COLUMNS = ("backend", "check", "status", "detail", "fix")


def check_row(check: Check) -> tuple[str | None, ...]:
    """Return a check as a row of :data:`CHECK_COLUMNS`."""
    return check.backend, check.name, check.status.value, check.detail, check.fix or None


def judged(checks: Sequence[Check]) -> int:
    """Return the exit code for checks: that of the first that failed."""
    return next((check.exit_code for check in checks if check.status is Status.FAILED), 0)


def next_command(engine: Engine, checks: Sequence[Check]) -> str:
    """Return the command that takes a newcomer on from what ``host check`` found."""
    failed = [check for check in checks if check.status is Status.FAILED]
    if any(check.setup for check in failed):
        return f"{'' if os.geteuid() == 0 else 'sudo '}vmcloner host setup"
    if failed:
        return failed[0].fix or f"vmcloner host check {failed[0].backend}"
    try:
        if engine.fleets():
            return "vmcloner list"
        images = [origin.template for origin in engine.origins()]
    except VmclonerError:  # of a backend that has no check for it
        return "vmcloner list"
    if not images and LocalRunner().which("apt-get") is None:
        return "vmcloner template pull debian-13"
    # tiny is made of the packages of the machine's own distribution, with apt.
    return f"vmcloner create web -t {(images or ['tiny'])[0]} -n 3 --start --wait"


class HostCheck(Table):
    """Check what each backend needs on this host, and say how to fix what is wrong.

    On a terminal, ends with the command to type next. Exit code 8 if something needed is missing.
    """

    example = "vmcloner host check kvm"
    columns = CHECK_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "backends", nargs="*", metavar="BACKEND", help="From the settings (default all)."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        self.checks = tuple(self.engine.check_host(*parsed_args.backends))
        return CHECK_COLUMNS, [check_row(check) for check in self.checks]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, and for people what to do next."""
        code = super().produce_output(parsed_args, column_names, data)
        if sys.stdout.isatty() and self.for_people(parsed_args):
            note(self.app, f"next: {next_command(self.engine, self.checks)}")
        return code

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Check; fails where a check does."""
        return super().run(parsed_args) or judged(self.checks)


class HostAdd(Record):
    """Install this vmcloner on another machine over ssh, and add the machine to the settings.

    Sends what is installed here, so the machine needs no way out to the network; it needs python3
    with venv, of the same version as here. Run it again after an upgrade.
    """

    example = "vmcloner host add lab1 root@lab1.example"
    columns = ("host", "ssh", "python", "settings")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("host", metavar="HOST", help="Its name in the settings.")
        parser.add_argument(
            "ssh",
            nargs="?",
            metavar="DESTINATION",
            help="Where ssh finds it, like root@lab1.example; not needed again.",
        )
        parser.add_argument(
            "--folder", default=FOLDER, metavar="PATH", help=f"Where to install (default {FOLDER})."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return keys and values."""
        from vmcloner_core.hosts.adding import add

        added, file = add(
            self.app.options.config, parsed_args.host, parsed_args.ssh, parsed_args.folder
        )
        note(self.app, f"vmcloner --host {added.name} host check says what it lacks")
        return self.columns, (added.name, added.ssh, added.python, str(file))


class HostList(Table):
    """List the hosts in the settings: whether they can be reached, and what they can take.

    Exit code 10 if one can't be used.
    """

    example = "vmcloner host list"
    columns = (
        *("host", "state", "version", "clones", "memory_free", "memory_total", "problem"),
        "drained",
    )
    short = ("host", "state", "drained", "clones", "memory_free", "problem")
    nothing = "the settings name no other hosts: this machine is the only one"

    def take_action(self, _parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        from vmcloner_core.hosts.controller import Controller

        engine: object = self.engine
        if not isinstance(engine, Controller):
            return self.columns, []
        rows: list[tuple[Any, ...]] = []
        drained = {name: why.value for name, why in engine.drained.read().items()}
        for name, found in engine.hosts().items():
            why = drained.get(name)
            if isinstance(found, VmclonerError):
                rows.append((name, "unreachable", None, None, None, None, str(found), why))
                continue
            room = (found.memory_free, found.memory_total)
            state, problem = "incomplete" if found.problem else "ok", found.problem or None
            rows.append((name, state, found.version, found.clones, *room, problem, why))
        self._bad = [row[0] for row in rows if row[1] != "ok"]
        return self.columns, rows

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows. :raises PartialFailure: a host can't be used."""
        code = super().produce_output(parsed_args, column_names, data)
        if self._bad:
            raise PartialFailure(
                f"{counted(len(self._bad), 'host')} can't be used: {', '.join(self._bad)}",
                hint="--without HOSTS leaves them out",
            )
        return code

    _bad: Sequence[str] = ()


def _controller(app: Any) -> Controller:
    """Return the controller of several hosts. :raises InvalidRequest: there is only this host."""
    from vmcloner_core.hosts.controller import Controller

    engine: object = app.engine
    if not isinstance(engine, Controller):
        raise InvalidRequest("the settings name no other hosts", hint="vmcloner host add")
    return engine


class HostDrain(Table):
    """Place no new clones on a host; with --move or --delete, empty it of its stopped ones.

    This is remembered on this machine until "host undrain". Clones that run are named, and left;
    exit code 10 if --move or --delete had to leave any.
    """

    example = "vmcloner host drain lab1 --move"
    columns = ("clone", "state", "action", "target", "error")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("host", metavar="HOST", help="Its name in the settings.")
        way = parser.add_mutually_exclusive_group()
        way.add_argument("--delete", action="store_true", help="Delete its stopped clones.")
        way.add_argument(
            "--move", action="store_true", help="Move its stopped clones to the other hosts."
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would be done; change nothing."
        )
        parser.add_argument("-y", "--yes", action="store_true", help="Don't ask before deleting.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        from vmcloner_core.hosts.draining import drain

        sure = parsed_args.yes or parsed_args.dry_run or not parsed_args.delete
        if not (sure or sys.stdin.isatty()):
            raise UsageError("drain --delete needs a terminal to ask", hint="or use --yes")

        def ask(found: Sequence[Emptied]) -> None:
            gone = [each.clone for each in found if each.action == "delete"]
            if gone and not sure and not agrees(f"Delete {fold(gone)}?"):
                raise Interrupted("nothing was deleted")

        emptied = drain(
            _controller(self.app),
            parsed_args.host,
            delete=parsed_args.delete,
            move=parsed_args.move,
            dry_run=parsed_args.dry_run,
            on_found=ask,
        )
        self._left = [each for each in emptied if each.failed]
        if not parsed_args.dry_run:
            note(self.app, f"host {parsed_args.host} gets no new clones; host undrain undoes that")
        columns = [name for name in self.columns if name != "target" or parsed_args.move]
        return columns, [
            (
                *(each.clone, each.state.value, each.action),
                *([each.target or None] if parsed_args.move else []),
                str(each.error or each.why) or None,
            )
            for each in emptied
        ]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows. :raises PartialFailure: clones were left that should not be there."""
        code = super().produce_output(parsed_args, column_names, data)
        if self._left:
            raise PartialFailure(
                f"{fold([each.clone for each in self._left])}: still on {parsed_args.host}",
                hint="stop them, then run the same command again",
            )
        return code

    _left: Sequence[Emptied] = ()


class HostUndrain(Record):
    """Place new clones on a host again, after "host drain" or a loss."""

    example = "vmcloner host undrain lab1"
    columns = ("host", "changed")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("host", metavar="HOST", help="Its name in the settings.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return keys and values."""
        from vmcloner_core.hosts.draining import check_known

        controller = _controller(self.app)
        check_known(controller, parsed_args.host)
        return self.columns, (parsed_args.host, controller.drained.remove(parsed_args.host))


class _Network(Record):
    """What making and removing a network have in common."""

    columns = ("name", "address", "addresses", "active", "steps", "dry_run")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        default = NetworkRequest().name
        parser.add_argument(
            "--name",
            dest="network",
            metavar="NAME",
            default=default,
            help=f"The network's name (default {default}).",
        )
        parser.add_argument(
            "--bridge",
            action="store_true",
            help="A bridge on the host with NAT by nftables and DHCP by dnsmasq, instead of a "
            "libvirt network; it lasts until the host reboots.",
        )
        parser.add_argument(
            "-e",
            "--hypervisor",
            metavar="NAME",
            help="Hypervisor from the settings, like kvm or xen.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would change; change nothing."
        )
        return parser

    def _change(
        self, change: NetworkChange, parsed_args: argparse.Namespace
    ) -> tuple[Sequence[str], Sequence[Any]]:
        """Return a change as keys and values."""
        network = change.network
        if not change.steps:
            note(self.app, f"network {network.name}: no change")
        shown = {
            "name": network.name,
            "address": network.address,
            "addresses": network.addresses,
            "active": network.active,
            "steps": list(change.steps),
            "dry_run": parsed_args.dry_run,
        }
        return tuple(shown), tuple(shown.values())


class HostPrepareNetwork(_Network):
    """Make a network for clones: NAT, and DHCP addresses for --count guests.

    Starts a network that exists, or enlarges its range while no guest is on it. Networks that
    vmcloner didn't make are never changed.
    """

    example = "vmcloner host prepare network --count 1000 --dry-run"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        default = NetworkRequest().count
        parser.add_argument(
            "-n",
            "--count",
            type=int,
            metavar="N",
            default=default,
            help=f"Addresses for guests (default {default}).",
        )
        parser.add_argument(
            "--subnet", metavar="ADDRESS/PREFIX", help="IPv4 (default one that is free here)."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return keys and values."""
        if parsed_args.count < 1:
            raise InvalidRequest(f"count must be at least 1, not {parsed_args.count}")
        request = NetworkRequest(
            name=parsed_args.network,
            count=parsed_args.count,
            subnet=parsed_args.subnet,
            bridge=parsed_args.bridge,
            dry_run=parsed_args.dry_run,
        )
        change = self.engine.prepare_network(request, hypervisor=parsed_args.hypervisor)
        return self._change(change, parsed_args)


class HostRemoveNetwork(_Network):
    """Remove a network that "host prepare network" made, if no clone is on it.

    Networks that vmcloner didn't make are never changed.
    """

    example = "vmcloner host remove network --name vmcloner"

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return keys and values."""
        request = NetworkRequest(
            name=parsed_args.network, bridge=parsed_args.bridge, dry_run=parsed_args.dry_run
        )
        change = self.engine.remove_network(request, hypervisor=parsed_args.hypervisor)
        return self._change(change, parsed_args)
