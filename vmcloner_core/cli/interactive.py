"""The interactive shell, ``vmcloner`` without a command: a prompt, and completion by TAB."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from vmcloner_core.cli.completing import candidates
from vmcloner_core.cli.usage import say

if TYPE_CHECKING:
    from vmcloner_core.cli.app import Shell

PROMPT = "vmcloner> "
LEAVE = ("quit", "exit")


class Prompt:
    """Reads commands from a terminal and runs them, until the user quits."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._found: Sequence[str] = ()

    def cmdloop(self) -> None:
        """Greet, then read and run commands until ``quit``, ``exit`` or the end of the input."""
        version = metadata.version(self._shell.NAME)
        print(f"vmcloner {version}: help lists the commands, quit or Ctrl-D leaves", flush=True)
        with self._completion():
            while True:
                try:
                    words = shlex.split(input(PROMPT))
                except EOFError:
                    print()
                    return
                except KeyboardInterrupt:
                    print()
                    continue
                except ValueError as error:  # an open quote
                    say(str(error))
                    continue
                if words[:1] and words[0] in LEAVE:
                    return
                if words:
                    self._run(words)

    def _run(self, words: Sequence[str]) -> None:
        with contextlib.suppress(SystemExit):  # how argparse ends, after its message
            self._shell.run_subcommand(list(words))

    @contextlib.contextmanager
    def _completion(self) -> Iterator[None]:
        """Complete words by TAB during the block."""
        try:
            import readline
        except ImportError:  # a Python without it
            yield
            return
        before = readline.get_completer(), readline.get_completer_delims()
        readline.set_completer(self._complete)
        readline.set_completer_delims(" \t\n")
        readline.parse_and_bind("tab: complete")
        try:
            yield
        finally:
            readline.set_completer(before[0])
            readline.set_completer_delims(before[1])

    def _complete(self, text: str, number: int) -> str | None:
        """Return the word of a number that ``text`` may become, None after the last; readline's."""
        import readline

        if number == 0:
            before = readline.get_line_buffer()[: readline.get_begidx()].split()
            names = candidates(self._shell, [*before, text]) or ()
            leave = [word for word in LEAVE if not before and word.startswith(text)]
            self._found = [*names, *leave]
        return f"{self._found[number]} " if number < len(self._found) else None
