"""The command line of the lab: see README.md in this folder."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from contrib.lab import labs, progress, tree
from contrib.lab.errors import LabError, LabLost, TimeUp
from contrib.lab.image import image
from contrib.lab.machine import MODES
from contrib.lab.proc import say
from contrib.lab.states import state
from contrib.lab.supplies import TOP, supplies

FAILED = 125
"""Exit code if the lab itself fails, as with docker and timeout; otherwise it is the command's."""
TIME_UP = 124
INTERRUPTED = 130
PYTEST = ("pytest", "-p", "no:cacheprovider", "-p", progress.__name__, "--junitxml=junit.xml")
COVERAGE = ("coverage", "run", "--data-file=coverage", f"--include=/{tree.SITE}/vmcloner_*/*", "-m")
RUN_SECONDS = 1800.0
UP_SECONDS = 4 * 3600.0
LABS = 2
"""How many labs tests are given, if labs are lost under them. A QEMU that emulates a processor with
SVM hangs once in many hours, and takes its lab with it."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``lab``'s arguments."""
    top = argparse.ArgumentParser(
        prog="lab",
        description="A KVM host with device-mapper, or a Xen host, as a virtual machine.",
        epilog="example: lab kvm run -- lvs",
    )
    modes = top.add_subparsers(dest="mode", required=True, metavar="kvm|xen|build|status")
    modes.add_parser("build", help="build everything that is missing in the cache")
    modes.add_parser("status", help="list running labs")
    for name in MODES:
        mode = modes.add_parser(name, help=f"a {name} host")
        verbs = mode.add_subparsers(dest="verb", required=True)
        _add_verbs(verbs)
    return top


def _add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    limit = argparse.ArgumentParser(add_help=False)
    limit.add_argument(
        "--seconds", type=float, help="time limit (%(default)s)", default=RUN_SECONDS
    )
    limit.add_argument(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set an environment variable for the command",
    )
    run = verbs.add_parser("run", parents=[limit], help="run a command inside, as root")
    run.add_argument("command", nargs=argparse.REMAINDER)
    test = verbs.add_parser("test", parents=[limit], help="run this checkout's tests inside")
    test.add_argument("--junit", type=Path, help="file for the report (build/lab-MODE.xml)")
    test.add_argument(
        "--coverage", type=Path, metavar="FILE", help="measure coverage, and save it here"
    )
    test.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments for pytest")
    verbs.add_parser("shell", help="start a shell inside")
    up = verbs.add_parser("up", help="start a lab that keeps running, for run, test and shell")
    up.add_argument("--seconds", type=float, default=UP_SECONDS, help="time limit (%(default)s)")
    verbs.add_parser("down", help="stop the lab that up started")
    verbs.add_parser("status", help="list running labs")
    verbs.add_parser("build", help="build everything that is missing in the cache")


def _variable(text: str) -> str:
    name, given, _ = text.partition("=")
    if not given or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} isn't NAME=VALUE")
    return text


def build(names: list[str]) -> int:
    """Build what is missing in the cache."""
    for name in names:
        say(f"{name}: {state(MODES[name], image()).folder}")
        supplies(guest=MODES[name].has_guest)
    tree.vmcloner()
    return 0


def run(options: argparse.Namespace) -> int:
    """Run a command inside."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise LabError("run what? For example: lab kvm run -- lvs")
    with labs.lab(MODES[options.mode], options.seconds + 120) as lab:
        return lab.run(command, options.seconds, variables=options.env)


def test(options: argparse.Namespace) -> int:
    """Run tests inside; save their report and their coverage.

    If the lab is lost, those that hadn't passed are run in a new one; the report is theirs.
    """
    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    left, done = LABS, list[str]()
    while True:
        try:
            return _test(options, arguments, done)
        except LabLost as error:
            left -= 1
            if not left or error.console is None:
                raise
            passed = progress.passed(error.console)
            say(f"{error}\ntests that passed in it: {len(passed)}; the others are run in a new one")
            done += passed


def _test(options: argparse.Namespace, arguments: Sequence[str], done: Sequence[str]) -> int:
    report = options.junit or TOP / "build" / f"lab-{options.mode}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    for stale in (report, options.coverage):
        if stale is not None:
            stale.unlink(missing_ok=True)
    with labs.lab(MODES[options.mode], options.seconds + 120) as lab:
        folder = lab.channel.call("mktemp -d /root/tests-XXXXXX").decode().strip()
        lab.channel.call(f"tar -x -C {folder} -f -", tree.tests())
        lab.channel.call(f"cat >{folder}/{progress.DONE}", "\n".join(done).encode())
        command = ["python3", "-m", *(COVERAGE if options.coverage else ()), *PYTEST, *arguments]
        ci = [f"CI={os.environ['CI']}"] if os.environ.get("CI") else []  # what is missing fails
        code = lab.run(command, options.seconds, folder, [*ci, *options.env])
        content = lab.channel.call(f"cat {folder}/junit.xml 2>/dev/null || :")
        if options.coverage:
            measured = lab.channel.call(f"cat {folder}/coverage 2>/dev/null || :")
            if measured:
                tree.keep_coverage(measured, options.coverage)
        lab.channel.call(f"rm -rf {folder}")
    if content:
        report.write_bytes(content)
    say(f"report: {report}" if content else "pytest ended without a report")
    return code


def shell(options: argparse.Namespace) -> int:
    """Start a shell inside."""
    with labs.lab(MODES[options.mode], UP_SECONDS) as lab:
        return lab.channel.shell()


def dispatch(options: argparse.Namespace) -> int:
    """Run the command given by the arguments; return the exit code."""
    verb = getattr(options, "verb", options.mode)
    if verb == "build":
        return build(list(MODES) if options.mode == "build" else [options.mode])
    if verb == "up":
        labs.up(MODES[options.mode], options.seconds)
    elif verb == "down":
        labs.down(MODES[options.mode])
    if verb in {"up", "down", "status"}:
        labs.status()
        return 0
    return {"run": run, "test": test, "shell": shell}[verb](options)


def main() -> int:
    """Entry point of ``lab``."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return dispatch(parser().parse_args())
    except TimeUp as error:
        say(str(error))
        return TIME_UP
    except LabError as error:
        say(str(error))
        return FAILED
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
