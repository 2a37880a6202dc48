"""The program ``vmcloner``: global options, exit codes, one engine for all commands."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliff.app import App
from cliff.commandmanager import CommandManager
from cliff.help import HelpExit

from vmcloner_core import entry_points
from vmcloner_core.cli.help import Help, print_help
from vmcloner_core.cli.usage import descriptor, printable, refuse, say, written
from vmcloner_core.errors import BackendError, InvalidRequest, VmclonerError, said

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine
    from vmcloner_core.kept_code import KeptCode
    from vmcloner_core.survey import Unseen

NAME = "vmcloner"
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
DESCRIPTION = """Mass clones of virtual machines from templates.

  vmcloner create web -t tiny -n 20 --start --wait   make 20, wait until ready
  vmcloner list web                                  list them
  vmcloner delete web --yes                          delete them"""


class _Found:
    """A command as cliff expects it: what its entry point names, imported when it is used."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.entries: list[metadata.EntryPoint] = []

    @property
    def value(self) -> str:
        """What is imported."""
        return self.chosen.value

    @functools.cached_property
    def chosen(self) -> metadata.EntryPoint:
        """Its entry point, vmcloner's own if there is one; the others are named.

        :raises BackendError: several distributions bring it, and none of them is vmcloner.
        """
        if len(self.entries) == 1:
            return self.entries[0]
        return entry_points.chosen(f"command {self.words!r}", "vmcloner.cli", self.entries)

    def load(self) -> Any:
        """Return the command's class.

        :raises BackendError: its plugin can't be imported.
        """
        try:
            return self.chosen.load()
        except (VmclonerError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a plugin's import may raise anything, or end the process
            raise BackendError(
                f"command {self.words!r} is broken: {said(error)}", hint="vmcloner plugin list"
            ) from error


class Commands(CommandManager):
    """Finds commands by entry points; one that can't be imported is named and harms no other."""

    def load_commands(self, namespace: str) -> None:
        """Collect commands without importing any: help needs their names, not their modules."""
        self.group_list.append(namespace)
        found: dict[str, _Found] = {}
        for entry in sorted(entry_points.of_group(namespace), key=lambda e: e.name):
            words = entry.name.replace("_", " ")
            found.setdefault(words, _Found(words)).entries.append(entry)
        self.commands.update(found)  # type: ignore[arg-type]

    def find_command(self, argv: list[str]) -> tuple[Any, str, list[str]]:
        """Return a command, its name and the other words.

        cliff takes the beginning of a name for the name: ``delet`` would delete.

        :raises ValueError: the words are no command's whole name.
        """
        words = itertools.takewhile(lambda word: not word.startswith("-"), argv)
        names = list(itertools.accumulate(words, "{} {}".format))
        for name in reversed(names):
            if name in self.commands:
                return self.commands[name].load(), name, argv[len(name.split()) :]
        raise ValueError(f"unknown command {argv!r}")


VALUED = ("--config", "--events-fd", "--host", "--log-file", "--without")
"""Global options with a value."""


def split_guest_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line in two parts: ours, and what is meant for a guest.

    The second follows ``--``, or ``ssh CLONE``: its options aren't ours. Nor is the ``--host`` of
    ``inventory``: there Ansible gives it the name of a clone.
    """
    plain = 0
    for at, word in enumerate(words):
        if word == "--":
            return list(words[:at]), list(words[at:])
        if word.startswith("-") or (at and words[at - 1] in VALUED):
            continue
        if plain == 0 and word == "inventory" and (own := _host_of_inventory(words, at + 1)):
            return [*words[: own.start], *words[own.stop :]], list(words[own])
        if plain == 0 and word != "ssh":
            plain = -len(words)  # another command: only "--" splits its line
        plain += 1
        if plain == 2:
            return list(words[: at + 1]), list(words[at + 1 :])
    return list(words), []


def _host_of_inventory(words: Sequence[str], start: int) -> slice | None:
    """Return where ``--host NAME`` or ``--host=NAME`` is, None if it isn't."""
    for at, word in enumerate(words[start:], start):
        if word == "--host" or word.startswith("--host="):
            return slice(at, at + 1 + (word == "--host"))
    return None


class Shell(App):
    """vmcloner's shell. Also the interactive one, which keeps the engine open."""

    NAME = NAME
    CONSOLE_MESSAGE_FORMAT = f"{NAME}: %(message)s"

    def __init__(self, *, keeps_code: bool = False) -> None:
        super().__init__(
            description=DESCRIPTION,
            version=None,
            command_manager=Commands("vmcloner.cli"),
            deferred_help=True,
        )
        self.command_manager.add_command("help", Help)
        # Instead of cliff's, which knows no names; imported when it is used.
        self.command_manager.commands["complete"] = metadata.EntryPoint(
            "complete", "vmcloner_core.cli.complete:Complete", "vmcloner.cli"
        )
        self._keeps_code = keeps_code
        self._kept: KeptCode | None = None
        self._engine: Engine | None = None
        self._guest_words: list[str] = []

    def run(self, argv: list[str]) -> int:
        """Run a command line; returns the exit code."""
        ours, self._guest_words = split_guest_words(argv)
        code = int(super().run(ours))
        return code if self.interpreter is None else 0  # cliff returns 1 when its shell ends

    def build_option_parser(self, *args: Any, **kwargs: Any) -> Any:
        """Return the parser of the global options."""
        kwargs.setdefault("argparse_kwargs", {})
        kwargs["argparse_kwargs"]["prog"] = NAME
        # argparse looks for global options in the whole line: --log isn't short for --log-file.
        kwargs["argparse_kwargs"]["allow_abbrev"] = False
        kwargs["argparse_kwargs"]["formatter_class"] = argparse.RawDescriptionHelpFormatter
        parser = super().build_option_parser(*args, **kwargs)
        parser.error = functools.partial(refuse, parser)  # type: ignore[method-assign]
        (shown,) = (a for a in parser._actions if "--version" in a.option_strings)
        shown.__class__ = _Version  # cliff makes the option
        parser.add_argument("--config", metavar="FILE", type=Path, help="Settings file.")
        parser.add_argument("--host", metavar="NAME", help="Host from the settings to work on.")
        parser.add_argument(
            "--without",
            metavar="HOSTS",
            action="append",
            help="Leave these hosts out: names, node sets (lab[1-3]) or groups (@lab).",
        )
        parser.add_argument(
            "--events-fd",
            metavar="FD",
            type=descriptor,
            help="Write the events of runs as JSON lines to this file descriptor.",
        )
        parser.add_argument("--no-color", action="store_true", help="Same as NO_COLOR=1.")
        return parser

    def initialize_app(self, _argv: list[str]) -> None:
        """Prepare what all commands share."""
        if self.options.no_color:
            os.environ["NO_COLOR"] = "1"
        for handler in logging.getLogger().handlers:
            handler.addFilter(_spell_out)
        logging.getLogger("stevedore").setLevel(logging.WARNING)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # what it tries again is no news

    def print_help_if_requested(self) -> None:
        """Print the help that ``--help`` without a command asks for.

        :raises HelpExit: it was asked for.
        """
        if self.options.deferred_help:
            with written():
                print_help(self)
            raise HelpExit

    @property
    def engine(self) -> Engine:
        """The engine, opened when a command first needs it."""
        if self._engine is None:
            self._engine = self._opened()
        return self._engine

    def _opened(self) -> Engine:
        """Return the engine of this machine, or the controller of several hosts."""
        from vmcloner_core.settings import LOCAL, Settings

        options = self.options
        settings = Settings.load(options.config)
        others = settings.hosts.keys() - {LOCAL}
        if options.without or (options.host in others if options.host else others):
            from vmcloner_core.hosts.opening import open_hosts

            return open_hosts(  # type: ignore[return-value]  # what it lacks, it says
                config=options.config,
                host=options.host,
                without=options.without or (),
                plugins=self._observers(),
            )
        from vmcloner_core.engine import Engine

        return Engine.open(settings=settings, host=options.host, plugins=self._observers())

    def _observers(self) -> list[object]:
        """Return what shows progress, unless ``--quiet`` is given, and what writes events."""
        events = []
        if self.options.events_fd is not None:
            from vmcloner_core.cli.events_fd import EventsDescriptor

            events = [EventsDescriptor(self.options.events_fd)]
        return [*events, *self._progress()]

    def _progress(self) -> list[object]:
        if not self.options.verbose_level:
            return []
        if not sys.stderr.isatty():
            from vmcloner_core.cli.lines import Lines

            return [Lines()]
        from vmcloner_core.cli.progress import Progress

        return [Progress()]

    def _use_kept(self) -> None:
        """Have code that libraries write looked up among what earlier processes compiled."""
        from vmcloner_core.kept_code import KeptCode, own_folder

        with contextlib.suppress(InvalidRequest):  # this user has no home
            self._kept = KeptCode(own_folder())
            self._kept.begin()

    def run_subcommand(self, argv: list[str]) -> int:
        """Run one command; an error becomes one line and its exit code."""
        if self._keeps_code and self._kept is None:
            self._use_kept()  # the modules of commands make classes
        try:
            return self._run_found([*argv, *self._guest_words])
        except VmclonerError as error:
            return self.failed(error)

    def _run_found(self, argv: list[str]) -> int:
        said = self._unknown(argv)
        if said is None:
            return super().run_subcommand(argv)
        say(said)
        return EXIT_USAGE

    def _unknown(self, argv: list[str]) -> str | None:
        """Return an error if a command line's first words name no command, else None."""
        known = [name for name, _ in self.command_manager]
        if argv[0] == "help":
            named = argv[1:]  # the beginning of a name is enough; help refuses options itself
            if not named or named[0].startswith("-") or any(k.startswith(named[0]) for k in known):
                return None
        else:
            named = argv
            with contextlib.suppress(ValueError):
                self.command_manager.find_command(argv)
                return None
        if named[0].startswith("-"):
            return f"no option {named[0]} ({NAME} --help)"
        return _no_command(list(itertools.takewhile(lambda w: not w.startswith("-"), named)), known)

    def failed(self, error: VmclonerError) -> int:
        """Print an error as one line; returns its exit code."""
        if self.options.debug:
            logging.getLogger(NAME).error("", exc_info=error)
        say(str(error))
        return error.exit_code

    def interact(self) -> None:
        """Read commands from a terminal until the user quits.

        cliff's own interactive shell adds dozens of commands that have nothing to do with clones.
        """
        from vmcloner_core.cli.interactive import Prompt

        prompt = Prompt(self)
        self.interpreter = prompt  # type: ignore[assignment]
        prompt.cmdloop()

    def missed(self) -> tuple[Unseen, ...]:
        """Return which hosts a command could not ask."""
        return self._engine.missed() if self._engine is not None else ()

    def close(self) -> None:
        """Close the engine; keep what was compiled."""
        if self._engine is not None:
            self._engine.close()
        if self._kept is not None:
            self._kept.save()


class _Version(argparse._VersionAction):
    """``--version``. No other command needs it, and finding it takes as long as all options."""

    def __call__(self, *args: Any) -> None:
        """Print the version, and end."""
        self.version = f"{NAME} {metadata.version(NAME)}"
        with written():
            super().__call__(*args)


def _no_command(words: Sequence[str], known: Sequence[str]) -> str:
    """Return an error for words that begin with no command; suggests what they may have meant."""
    from difflib import get_close_matches

    group = [name.partition(" ")[2] for name in known if name.startswith(f"{words[0]} ")]
    first, names = (1, group) if group else (0, known)
    for count in (3, 2, 1):
        close = get_close_matches(" ".join(words[first : first + count]), names, n=1, cutoff=0.7)
        if close:
            typed = " ".join(words[: first + len(close[0].split())])
            meant = " ".join([*words[:first], close[0]])
            return f"no command {typed!r} (did you mean {meant!r}?)"
    hint = f"known: {words[0]} {', '.join(sorted(group))}" if group else f"{NAME} --help lists them"
    return f"no command {' '.join(words[: first + 1])!r} ({hint})"


def _spell_out(record: logging.LogRecord) -> bool:
    """Escape control characters in a log record: parts come from guests and servers."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def main(argv: Sequence[str] | None = None, *, keeps_code: bool = False) -> int:
    """Run the shell; returns the exit code.

    :param keeps_code: whether code that libraries write is kept for later processes.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    os.umask(os.umask(0o022) | 0o022)  # files of ours are writable only by the user
    if not words and not sys.stdin.isatty():
        words = ["--help"]
    shell = Shell(keeps_code=keeps_code)
    # All of them end a run as Ctrl-C does: cleanly, so that it can be continued.
    ending = _Ending()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) has it
            signal.signal(number, ending)
    try:
        return shell.run(words)
    except KeyboardInterrupt:
        say("stopped (run the same command again)")
        return EXIT_INTERRUPTED
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else EXIT_USAGE * bool(leave.code)
    finally:
        shell.close()


class _Ending:
    """What a signal does that asks the process to end.

    The first ends a run cleanly, the second gives up the calls in progress. If one of these keeps
    the process from ending, the third ends it at once.
    """

    SOON = 30.0
    """Seconds for which signals count as sent to the same run."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def __call__(self, *_: object) -> None:
        now = time.monotonic()
        self._times = [when for when in self._times if now - when < self.SOON] + [now]
        if len(self._times) > 2:
            os.write(2, b"\nvmcloner: ended at once (run the same command again)\n")
            os._exit(EXIT_INTERRUPTED)
        raise KeyboardInterrupt
