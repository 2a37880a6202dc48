"""``vmcloner ssh``, ``vmcloner forward`` and ``vmcloner exec``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from vmcloner_core import ssh
from vmcloner_core.cli.base import Base, Table, add_fanout, add_targets, chosen, note
from vmcloner_core.cli.usage import folded, printable, say
from vmcloner_core.errors import (
    BackendError,
    HostCommandError,
    PartialFailure,
    UsageError,
)
from vmcloner_core.model import Access
from vmcloner_core.names import fold
from vmcloner_core.remote import Answer
from vmcloner_core.remote import fold as gathered
from vmcloner_core.units import counted

COLUMNS = ("name", "status", "code", "stdout", "stderr", "error")


class Ssh(Base):
    """Log in to a clone by ssh, or run a command on it.

    The clone must have the host key that it was created with. Your ssh configuration and
    known_hosts are neither read nor changed. Asks no questions. The exit code is ssh's.

    Options of ssh(1) follow the clone's name. A command for the guest's shell follows these, after
    -- if it begins with a dash.
    """

    example = "vmcloner ssh web-3 -A -L 8080:localhost:80 uptime"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("clone", metavar="CLONE", help="Name of a clone.")
        parser.usage = f"{prog_name} CLONE [SSH-OPTION ...] [--] [COMMAND ...]"
        _take_words(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Replace this process by ssh.

        :raises BackendError: it isn't installed.
        """
        own, words = ssh.split(parsed_args.words)
        access = _access(self, parsed_args.clone)
        if access.refusal and not ({"-i", "-o"} & {word[:2] for word in own}):
            note(self.app, f"{access.name} may refuse your keys: {access.refusal}")
        _become(self, ssh.command(access, *words, own=own))


class Forward(Base):
    """Forward ports of this host to a clone, or to what the clone can reach, by ssh.

    Listens on the loopback address until Ctrl-C. 8080:80 leads port 8080 of this host to port 80
    of the clone; 8080:HOST:80 to a port of HOST, as seen from the clone.
    """

    example = "vmcloner forward web-3 8080:80 5432"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("clone", metavar="CLONE", help="Name of a clone.")
        parser.add_argument(
            "ports",
            nargs="+",
            metavar="PORTS",
            help="[ADDRESS:]PORT:[HOST:]PORT as for ssh -L, or PORT for the same on both.",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Say what leads where, and replace this process by ssh.

        :raises BackendError: ssh isn't installed.
        """
        found = [ssh.forwarding(text) for text in parsed_args.ports]
        access = _access(self, parsed_args.clone)
        own = ["-N", "-T", *(word for argument, *_ in found for word in ("-L", argument))]
        for _, here, there in found:
            print(f"{here} -> {there} of {access.name}", file=self.app.stdout)
        note(self.app, "Ctrl-C ends it")
        keywords = {"ExitOnForwardFailure": "yes", "ServerAliveInterval": "15"}
        _become(self, ssh.command(access, own=own, **keywords))


def _access(command: Base, name: str) -> Access:
    """Return how to reach one clone; raises why it can't be reached."""
    return command.engine.reach(command.engine.show(name)).unwrap()


def _become(command: Base, argv: Sequence[str]) -> None:
    command.app.close()
    sys.stdout.flush()
    try:
        os.execvp(argv[0], list(argv))  # noqa: S606 - an argv list, no shell
    except OSError as error:
        raise BackendError(f"ssh: {error.strerror}", hint="install openssh-client") from error


def _take_words(parser: argparse.ArgumentParser) -> None:
    """Leave what follows the clone's name to ``words``: argparse would drop a ``--`` there."""
    parse = parser.parse_args

    def parse_args(words: Sequence[str], namespace: Any = None) -> argparse.Namespace:
        name = next((n for n, word in enumerate(words) if not word.startswith("-")), len(words))
        parsed: argparse.Namespace = parse(words[: name + 1], namespace)
        parsed.words = list(words[name + 1 :])
        return parsed

    parser.parse_args = parse_args  # type: ignore[method-assign,assignment]


def _take_command(parser: argparse.ArgumentParser) -> None:
    """Leave what follows ``--`` to ``command``: argparse would mix it with the targets."""
    parse = parser.parse_args

    def parse_args(words: Sequence[str], namespace: Any = None) -> argparse.Namespace:
        end = list(words).index("--") if "--" in words else len(words)
        parsed: argparse.Namespace = parse(words[:end], namespace)
        parsed.command = list(words[end + 1 :])
        return parsed

    parser.parse_args = parse_args  # type: ignore[method-assign,assignment]


class Exec(Table):
    """Run a command on many clones at once by ssh, and gather the output.

    Clones with the same output are shown together. Exit code 0 if the command succeeded on all of
    them, else 10.
    """

    _answers: tuple[Answer, ...] = ()
    example = "vmcloner exec 'web-[1-10]' -- systemctl is-system-running"
    columns = COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        add_fanout(parser)
        parser.usage = f"{prog_name} [options] TARGET [TARGET ...] -- COMMAND"
        _take_command(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Run it on the clones; returns columns and rows.

        :raises UsageError: there is no command.
        """
        if not parsed_args.command:
            raise UsageError("no command", hint=f"like {self.example}")
        self._answers = self.engine.execute(
            *chosen(parsed_args, "exec"),
            command=" ".join(parsed_args.command),
            timeout=parsed_args.timeout,
            jobs=parsed_args.jobs,
        )
        return COLUMNS, [_row(answer) for answer in self._answers]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the answers, then which clones failed.

        :raises PartialFailure: some did.
        """
        if parsed_args.formatter == "table":
            _show(self._answers)
        else:
            super().produce_output(parsed_args, column_names, data)
        failed = [answer for answer in self._answers if not answer.ok]
        if failed:
            raise PartialFailure(
                f"exec: {len(failed)} of {counted(len(self._answers), 'clone')} failed: "
                f"{fold([answer.name for answer in failed])}",
                failures=[(a.name, a.error or _ended(a)) for a in failed],
            )
        return 0


def _row(answer: Answer) -> tuple[object, ...]:
    return (
        answer.name,
        "ok" if answer.ok else "failed",
        answer.code,
        answer.stdout.decode(errors="replace"),
        answer.stderr.decode(errors="replace"),
        str(answer.error) if answer.error is not None else None,
    )


def _ended(answer: Answer) -> HostCommandError:
    return HostCommandError(f"{answer.name}: the command exited with {answer.code}")


def _show(answers: Sequence[Answer]) -> None:
    """Print the clones' output, the same output once; then which clones failed, and how."""
    for stream, output in ((sys.stdout, _stdout), (sys.stderr, _stderr)):
        for text, names in gathered(answers, output):
            rule = "-" * 15
            print(f"{rule}\n{names}{_count(names)}\n{rule}", file=stream)
            stream.flush()
            stream.buffer.write(_inert(text) if stream.isatty() else text)
            stream.buffer.write(b"\n")
            stream.flush()
    failures: list[tuple[str, str]] = []
    for answer in answers:
        if answer.error is not None:
            failures.append((answer.name, str(answer.error)))
        elif answer.code:
            failures.append((answer.name, f"exited with {answer.code}"))
        if answer.truncated:
            failures.append((answer.name, "output truncated"))
    for line in folded(failures):
        say(line)


def _inert(text: bytes) -> bytes:
    """Return a guest's words for a terminal, which acts on control characters."""
    return printable(text.decode(errors="replace")).encode(errors="replace")


def _stdout(answer: Answer) -> bytes:
    return answer.stdout


def _stderr(answer: Answer) -> bytes:
    return answer.stderr if answer.error is None else b""


def _count(names: str) -> str:
    from ClusterShell.NodeSet import NodeSet

    number = len(NodeSet(names, resolver=False))
    return f" ({number})" if number > 1 else ""
