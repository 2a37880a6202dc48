"""``pypxeboot``: a bootloader for libxl that does a PXE client's work on the host."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import attrs

from vmcloner_core.errors import UsageError, VmclonerError
from vmcloner_core.units import parse_size
from vmcloner_pxe import libxl, worker
from vmcloner_pxe.cache import Cache
from vmcloner_pxe.errors import NetbootError, reason, shown
from vmcloner_pxe.fetching import MAX_SIZE, Fetcher
from vmcloner_pxe.link import attached
from vmcloner_pxe.reach import Reach
from vmcloner_pxe.resolver import Guest, Resolver
from vmcloner_pxe.worker import Answer, Order

DEADLINE = 110.0
"""Seconds: libxl, where it restricts bootloaders, ends them after 120."""
CACHE = Path("/var/cache/vmcloner/pxe")
_DESCRIPTION = """\
Boot a Xen PV or PVH guest from the network: get an address for the guest's network card by DHCP,
read PXELINUX's configuration or a simple iPXE script, fetch kernel and initrds by TFTP or http,
and hand them to libxl. Where the configuration says LOCALBOOT, pygrub goes on with the disk.
"""
_EPILOG = """\
in xl.cfg:
  bootloader = "/usr/local/bin/pypxeboot"
  bootloader_args = ["--mac=00:16:3e:00:00:01", "--interface=xenbr0"]
by hand, to see what a guest would boot:
  pypxeboot --dry-run --mac=00:16:3e:00:00:01 --interface=xenbr0
"""


class Stopped(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="pypxeboot --help")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = _Parser(
        prog="pypxeboot",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("words", nargs="*", metavar="VIF | DISK", help="mac=…,bridge=… as in vif; the guest's disk")
    guest = made.add_argument_group("the guest")
    guest.add_argument("--mac", help="address of its network card")
    guest.add_argument("--interface", metavar="NAME", help="bridge (or interface) that it is on")
    guest.add_argument("--uuid", type=uuid.UUID, help="its UUID, for servers that go by it")
    network = made.add_argument_group("the network")
    network.add_argument(
        "--mode",
        choices=("auto", "raw", "port", "netns"),
        default="auto",
        help="DHCP through a port of the bridge, or raw on the interface (default: a port where"
        " the bridge takes one); netns: fetch with the guest's own address too",
    )
    network.add_argument(
        "--release",
        action=argparse.BooleanOptionalAction,
        help="give the lease back (default: where the guest boots its own disk)",
    )
    network.add_argument(
        "--timeout", type=float, default=DEADLINE, metavar="S", help=f"seconds, {DEADLINE:g}"
    )
    network.add_argument(
        "--max-size", default=str(MAX_SIZE), help="of one file, and of all initrds together"
    )
    network.add_argument("--cache", type=Path, metavar="DIR", help=f"of fetched files, {CACHE}")
    network.add_argument("--no-cache", action="store_true", help="fetch anew each time")
    add("--dry-run", action="store_true", help="print what would be booted as JSON; keep no lease")
    add("--pygrub", metavar="PROGRAM", help="what boots the guest's own disk")
    host = made.add_argument_group("what libxl adds")
    host.add_argument("--output", type=Path, metavar="FILE")
    host.add_argument("--output-format", choices=libxl.FORMATS, default="simple0")
    host.add_argument("--output-directory", type=Path, metavar="DIR")
    host.add_argument(
        "--kernel", metavar="NAME", help="file of the boot server, for its own choice"
    )
    host.add_argument("--ramdisk", metavar="NAME", help="likewise, with --kernel")
    host.add_argument("--args", default="", help="added to the kernel's command line")
    host.add_argument("--runas", metavar="USER", help="who reads the network's answers (nobody)")
    host.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    return made


@attrs.frozen(kw_only=True)
class Invocation:
    """A command line, checked. ``ids`` are the user and group that read the network's answers."""

    options: argparse.Namespace
    guest: Guest
    interface: str
    disk: str | None
    max_size: int
    ids: tuple[int, int]


def parse(argv: Sequence[str]) -> Invocation:
    """Return what a command line asks for.

    :raises UsageError: it can't be understood, or lacks something; names it.
    """
    options = parser().parse_intermixed_args(libxl.split_arguments(argv))
    vif_words = [word for word in options.words if "=" in word and not word.startswith("/")]
    vif = libxl.read_vif(vif_words)
    disks = [word for word in options.words if word not in vif_words]
    mac = libxl.checked_mac(options.mac) if options.mac else vif.get("mac")
    interface = options.interface or vif.get("interface")
    if mac is None or not interface:
        raise UsageError(
            "the guest's MAC address and its bridge are needed",
            hint="--mac=00:16:3e:00:00:01 --interface=xenbr0",
        )
    if len(disks) > 1:
        raise UsageError(f"unexpected argument {shown(disks[0])!r}", hint="pypxeboot --help")
    if not options.dry_run and options.output_directory is None:
        raise UsageError("--output-directory is needed", hint="or --dry-run, to see what there is")
    if not 0 < options.timeout <= 86400:
        raise UsageError("--timeout must be seconds, more than none")
    if options.ramdisk is not None and options.kernel is None:
        raise UsageError("--ramdisk without --kernel")
    return Invocation(
        options=options,
        guest=Guest(mac=mac, machine=options.uuid),
        interface=interface,
        disk=disks[0] if disks else None,
        max_size=parse_size(options.max_size),
        ids=worker.uid_of(options.runas or "nobody"),
    )


def main() -> None:
    """Run the command; the process ends with 0, 1 (failed), 2 (usage) or 128 + a signal."""
    heed_signals()
    status = 1
    try:
        status = run(sys.argv[1:])
    except Stopped as stopped:
        _say(f"ended by {signal.Signals(stopped.number).name}")
        status = 128 + stopped.number
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # The terminal may be gone: nothing that the interpreter does at its end may change the status.
    os._exit(status)


def heed_signals() -> None:
    """Have the first signal that asks this process to end raise :class:`Stopped`.

    Those that follow are ignored, for what is done about the first mustn't be left half done.
    """
    for number in worker.SIGNALS:
        signal.signal(number, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    for each in worker.SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def run(argv: Sequence[str]) -> int:
    """Do what a command line says; return the exit status, or become pygrub."""
    try:
        asked = parse(argv)
    except SystemExit as error:  # --help
        return int(error.code or 0)
    except VmclonerError as error:
        _say(str(error))
        return 2
    try:
        local = boot(asked)
        if local:
            _become_pygrub(asked)
    except VmclonerError as error:
        _say(f"{asked.guest.mac} on {shown(asked.interface)}: {error}")
        return 1
    return 0


def boot(asked: Invocation) -> bool:
    """Resolve and hand over; return whether the guest is to boot its own disk instead.

    :raises NetbootError: it can't be booted; then no file is left.
    """
    options = asked.options
    order = Order(
        kernel=options.kernel,
        ramdisk=options.ramdisk,
        fetch=not options.dry_run,
        release=options.release,
        configure=options.mode == "netns",
    )
    # The same address may be another server in another guest's network: no cache for those.
    uncached = options.no_cache or options.mode == "netns"
    resolver = Resolver(
        fetcher=Fetcher(
            deadline=time.monotonic() + options.timeout,
            reach=Reach(interface=asked.interface),
            cache=None if uncached else cache(options.cache, asked.ids),
            max_size=asked.max_size,
        )
    )
    with contextlib.ExitStack() as stack:
        handover = None
        if not options.dry_run:
            handover = stack.enter_context(
                libxl.Handover(
                    options.output, options.output_directory, options.output_format, asked.max_size
                )
            )
        taken: list[Answer] = []

        def take(answer: Answer) -> bool:
            if answer.error is not None:
                raise NetbootError(answer.error)
            if handover is None:
                sys.stdout.write(json.dumps(described(answer), indent=2) + "\n")
            elif not answer.local:
                _hand_over(handover, answer, options.args)
            taken.append(answer)
            return True

        netns = options.mode == "netns"
        mode, mac = ("port", asked.guest.mac) if netns else (options.mode, None)
        with attached(asked.interface, 1, mode=mode, mac=mac) as link:
            worker.serve(resolver, order, [asked.guest], link, asked.ids, take)
        [answer] = taken
        if not options.quiet:
            _describe(answer)
        return answer.local and handover is not None


def _hand_over(handover: libxl.Handover, answer: Answer, arguments: str) -> None:
    kernel, *initrds = answer.files
    handover.write(
        handover.add("kernel", [kernel]),
        handover.add("ramdisk", initrds) if initrds else None,
        " ".join(filter(None, [answer.arguments, arguments])),
    )


def cache(folder: Path | None, ids: tuple[int, int]) -> Cache | None:
    """Return the cache of a user, its folder made if need be; None where there can't be one.

    Each user has one of its own: who can write into it decides what others boot.

    :raises NetbootError: the folder that was asked for can't be made.
    """
    root = os.geteuid() == 0
    if folder is None and not root:
        return None
    uid, gid = ids if root else (os.geteuid(), os.getegid())
    path = (folder or CACHE) / f"uid-{uid}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            os.chown(path, uid, gid, follow_symlinks=False)  # it may be a link by now
        status = path.lstat()
    except OSError as error:
        raise NetbootError(f"cache {path}: {reason(error)}", hint="--no-cache") from error
    if not path.is_dir() or path.is_symlink() or status.st_uid != uid:
        raise NetbootError(f"cache {path}: isn't a folder of user {uid}", hint="--no-cache")
    return Cache(folder=path)


def described(answer: Answer) -> dict[str, object]:
    """Return an answer as it is printed: without the files."""
    fields = attrs.asdict(answer, filter=lambda field, _value: field.name not in ("files", "index"))
    return {**fields, "local": answer.local}


def _describe(answer: Answer) -> None:
    for warning in answer.warnings:
        _say(f"warning: {shown(warning)}")
    what = "its own disk" if answer.local else shown(answer.kernel)
    _say(
        f"{shown(answer.address)} from {shown(answer.server)}: {shown(answer.config)}"
        f" ({shown(answer.label)}): {what}"
    )


def _become_pygrub(asked: Invocation) -> None:
    options = asked.options
    if asked.disk is None:
        raise NetbootError("the guest is to boot its own disk, and no disk was named")
    program = options.pygrub or libxl.find_pygrub()
    argv = [program]
    if options.args:
        argv.append(f"--args={options.args}")
    if options.runas:
        argv.append(f"--runas={options.runas}")
    if options.quiet:
        argv.append("--quiet")
    if options.output is not None:
        argv.append(f"--output={options.output}")
    argv += [
        f"--output-format={options.output_format}",
        f"--output-directory={options.output_directory}",
        asked.disk,
    ]
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    try:
        os.execv(program, argv)  # noqa: S606 - an argv list, no shell
    except OSError as error:
        raise NetbootError(f"{program}: {reason(error)}") from error


def _say(text: str) -> None:
    """Tell people. The console may be gone by now."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"pypxeboot: {text}\n")
        sys.stderr.flush()
