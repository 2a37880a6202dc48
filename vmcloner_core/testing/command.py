"""Conformance suite for commands: plugins of the group ``vmcloner.cli``.

Example::

    from vmcloner_core.testing.command import CommandConformance

    class TestHello(CommandConformance):
        name = "hello"             # as the user writes it

        @pytest.fixture
        def command(self):
            return Hello           # the class that the entry point names

The suite reads the command's options and help, and doesn't run it.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from vmcloner_core.cli.app import Shell, split_guest_words
from vmcloner_core.cli.base import Base
from vmcloner_core.errors import UsageError, VmclonerError
from vmcloner_core.testing.suite import Suite

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine

GLOBAL = {"--debug", "--config", "--version", "--verbose", "--quiet", "--log-file"}
"""Options of vmcloner itself: they stand before the command."""

SHELL = {"&&", "||", "|", ">", ">>", "<", ";"}


class _Shell(Shell):
    """The shell, before a command is run: that is when ``--help`` is printed."""

    @property
    def engine(self) -> Engine:
        """The engine, which isn't there yet."""
        raise AssertionError("a command's parser used the engine: --help needs none")


class CommandConformance(Suite):
    """What every command must do. Define the fixture :meth:`command`, and its ``name``."""

    made_by = "command"
    name: ClassVar[str] = ""
    """The command as the user writes it, like ``host prepare lvm``."""

    @pytest.fixture
    def command(self) -> type[Base]:
        """Return the command's class."""
        raise NotImplementedError("define a fixture command")

    def wrong_with(self, made: object) -> str | None:
        """Return why vmcloner wouldn't use the command, None if it would."""
        if not (isinstance(made, type) and issubclass(made, Base)):
            return f"{made!r} is no class derived from vmcloner_core.cli.base.Base"
        return None if self.name else f"say the command's name: {type(self).__name__}.name"

    @pytest.fixture
    def parser(self, command: type[Base]) -> argparse.ArgumentParser:
        """Return the command's parser."""
        return parser_of(command, self.name)

    def test_its_first_line_says_what_it_does(self, command: type[Base]) -> None:
        """The docstring begins with one sentence: ``vmcloner --help`` shows it."""
        first = (command.__doc__ or "").partition("\n")[0].strip()
        assert first.endswith("."), f"not one sentence: {first!r}"
        assert len(first) <= 100
        assert first[0].isupper()

    def test_it_has_an_example(self, command: type[Base], parser: argparse.ArgumentParser) -> None:
        """The example is of this command, and its options are those that it has."""
        assert command.example.startswith(f"vmcloner {self.name}"), "example is of something else"
        # Up to where a shell would go on to another program.
        typed = itertools.takewhile(lambda word: word not in SHELL, shlex.split(command.example))
        ours, _of_the_guest = split_guest_words(list(typed)[1:])
        words = ours[len(self.name.split()) :]
        try:
            parser.parse_args(words)
        except (UsageError, SystemExit) as error:
            pytest.fail(f"the example isn't understood: {error}")

    def test_its_help_can_be_shown(self, parser: argparse.ArgumentParser) -> None:
        """Each option and argument has a text, without placeholders that argparse can't fill."""
        assert self.name in parser.format_help()
        for action in _own(parser):
            assert action.help, f"{action.option_strings or action.dest} has no help"

    def test_its_options_are_long(self, parser: argparse.ArgumentParser) -> None:
        """Each option has a long form, in lower case, which is none of vmcloner's own."""
        for action in _own(parser):
            long = [word for word in action.option_strings if word.startswith("--")]
            assert long or not action.option_strings, f"{action.option_strings} has no long form"
            for word in long:
                assert word == word.lower().replace("_", "-"), word
                assert word not in GLOBAL, f"{word} is an option of vmcloner itself"

    def test_wrong_usage_is_refused(self, parser: argparse.ArgumentParser) -> None:
        """An option that isn't there ends with exit code 2, as everywhere."""
        with pytest.raises((UsageError, SystemExit)) as caught:
            parser.parse_args(["--no-such-option-of-anybody"])
        code = caught.value.code if isinstance(caught.value, SystemExit) else None
        if isinstance(caught.value, VmclonerError):
            code = caught.value.exit_code
        assert code == 2


def parser_of(command: type[Base], name: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    return command(_Shell(), argparse.Namespace(), cmd_name=name).get_parser(f"vmcloner {name}")


def _own(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yield the parser's options and arguments."""
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            yield action
