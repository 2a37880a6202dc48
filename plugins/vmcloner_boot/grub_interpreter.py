"""GRUB's script language carried out: words, conditions, loops and functions.

Rules: the GRUB manual, chapter "Shell-like scripting". A command returns 0 for success, 1 for
"false" and more for an error, as GRUB's own do; ``$?`` has it. What commands do is in the table
that an interpreter is given. A command that isn't known there is refused: GRUB would pass over one
that it doesn't know, but a command that only is missing here could change what is booted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from vmcloner_boot.disk_image import MIB, Budget, Unreadable
from vmcloner_boot.grub_environment import Environment
from vmcloner_boot.grub_parser import (
    MAX_WORDS,
    Command,
    For,
    Function,
    If,
    Kind,
    Piece,
    Statement,
    While,
    Word,
    parse,
)

MAX_STEPS = 20_000
"""Commands, and turns of loops, that one script may run."""
MAX_DEPTH = 64
"""Functions, files and blocks within one another."""
MAX_LENGTH = 16384
"""Characters of a command once its variables are filled in, and pieces of its words."""
MAX_SOURCES = 2 * MIB
"""Characters of all files that a script consists of."""

_WORD = re.compile(r"[^\s;{}]+|[;{}\n]")
"""What is a word at least; a quoted text may be several."""

SUCCESS, FALSE, NOT_FOUND, INVALID_COMMAND, BAD_ARGUMENT, NO_KERNEL = 0, 1, 5, 17, 18, 22
"""Numbers of GRUB's errors (include/grub/err.h)."""


@attrs.frozen
class Call:
    """A command with its arguments, its variables filled in."""

    name: str
    arguments: tuple[str, ...]
    block: tuple[Statement, ...] | None = None


Handler = Callable[[Call], int]


class Interpreter:
    """Runs scripts.

    :param commands: what carries out each command.
    :param expand: file names that a pattern stands for, in which ``*`` and ``?`` without a
        backslash are any characters; none where there is no such file.
    :param budget: what all that is read on behalf of the clone takes of; here it bounds the time.
    """

    def __init__(
        self,
        commands: Mapping[str, Handler],
        environment: Environment,
        budget: Budget,
        expand: Callable[[str], list[str]] = lambda _pattern: [],
    ) -> None:
        self._commands = {**self._own_commands(), **commands}
        self.environment = environment
        self.functions: dict[str, tuple[Statement, ...]] = {}
        self._budget = budget
        self._expand = expand
        self._place = ""
        self._steps = self._depth = self._sources = self._words = 0
        self._scopes: list[tuple[str, ...]] = []
        self._in_function = 0
        self._loops = self._breaks = 0
        self._continues = self._returns = False

    # --- scripts ---

    def run(self, text: str, name: str) -> int:
        """Run a script, or a further file of it.

        :param name: what it is called in messages.
        :raises Unreadable: it isn't one, uses what isn't known here, or doesn't end within bounds.
        """
        return self.execute(self.parsed(text, name), name)

    def parsed(self, text: str, name: str) -> tuple[Statement, ...]:
        """Return a script's statements, which are kept for later; all together are bounded."""
        self._sources += len(text)
        if self._sources > MAX_SOURCES:
            raise Unreadable(f"a GRUB script consists of more than {MAX_SOURCES} characters")
        self._words += sum(1 for _ in _WORD.finditer(text))
        if self._words > MAX_WORDS:
            raise Unreadable(f"a GRUB script consists of more than {MAX_WORDS} words")
        return parse(text, name)

    def execute(
        self, statements: Sequence[Statement], name: str, arguments: tuple[str, ...] | None = None
    ) -> int:
        """Run statements of the script ``name``; with ``arguments``, in a scope of their own."""
        before, self._place = self._place, name
        if arguments is not None:
            self._scopes.append(arguments)
        status = self._list(statements)
        if arguments is not None:
            self._scopes.pop()
        self._place = before
        return status

    def _list(self, statements: Sequence[Statement]) -> int:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable(f"a GRUB script calls itself more than {MAX_DEPTH} times")
        status = SUCCESS
        for statement in statements:
            if self._breaks or self._returns:
                break
            status = self._one(statement)
            self.environment.put("?", str(status))
        self._depth -= 1
        return status

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Unreadable(f"a GRUB script doesn't end within {MAX_STEPS} steps")
        self._budget.spend(0)

    def _one(self, statement: Statement) -> int:
        self._step()
        if isinstance(statement, Command):
            return self._command(statement)
        if isinstance(statement, Function):
            self.functions[statement.name] = statement.body
            return SUCCESS
        if isinstance(statement, If):
            return self._if(statement)
        self._loops += 1
        status = self._for(statement) if isinstance(statement, For) else self._while(statement)
        self._breaks -= self._breaks > 0
        self._loops -= 1
        return status

    def _if(self, statement: If) -> int:
        for condition, body in statement.branches:
            status = self._list(condition)
            if self._returns:
                return status
            if self.environment.get("?") == "0":
                return self._list(body)
        return self._list(statement.otherwise)

    def _for(self, loop: For) -> int:
        status = SUCCESS
        for value in self.words(loop.words):
            self._step()
            self.environment.put(loop.name, value)
            status = self._list(loop.body)
            if self._left():
                break
        return status

    def _while(self, loop: While) -> int:
        while True:
            self._step()
            status = self._list(loop.condition)
            if self._returns or (status == SUCCESS) is loop.until:
                return status
            status = self._list(loop.body)
            if self._left():
                return status

    def _left(self) -> bool:
        """Tell whether a loop whose body was run has been left."""
        if self._continues and self._breaks == 1:
            self._breaks = 0
        return self._returns or self._breaks > 0

    # --- commands ---

    def _command(self, command: Command) -> int:
        words = self.words(command.words)
        invert = words[:1] == ["!"]
        if invert:
            words = words[1:]
            if not words:
                return BAD_ARGUMENT
        if not words:
            return SUCCESS
        status = self._call(Call(words[0], tuple(words[1:]), command.block), command.line)
        # An error of what is inverted is reported, and then it is no failure.
        return (FALSE if status == SUCCESS else SUCCESS) if invert else status

    def _call(self, call: Call, line: int) -> int:
        if call.block is not None and call.name not in ("menuentry", "submenu"):
            raise self._refused(f"{call.name!r} with a block", line)
        if call.name in self._commands:
            return self._commands[call.name](call)
        if call.name in self.functions:
            return self._function(call)
        name, equals, value = call.name.partition("=")
        if equals:
            if name and name[0] not in "0123456789#*@":
                self.environment.put(name, value)
            return SUCCESS
        if call.name in WITHOUT_EFFECT:
            return SUCCESS
        raise self._refused(f"its command {call.name!r}", line)

    def refused(self, what: str) -> Unreadable:
        """Return the error that something in the script isn't understood."""
        return Unreadable(f"{self._place}: {what} isn't understood here")

    def _refused(self, what: str, line: int) -> Unreadable:
        return Unreadable(f"{self._place}:{line}: {what} isn't understood here")

    def _function(self, call: Call) -> int:
        loops, self._loops = self._loops, 0
        self._in_function += 1
        status = self.execute(self.functions[call.name], self._place, call.arguments)
        self._in_function -= 1
        self._returns = False
        self._loops = loops
        return status

    # --- words ---

    def words(self, words: Sequence[Word]) -> list[str]:
        """Return words with their variables filled in and their file names put for patterns."""
        found: list[str] = []
        left = MAX_LENGTH
        for word in words:
            for pattern in self._patterns(word):
                names = [] if pattern is None else self._names(pattern)
                left -= 1 + sum(len(name) + 1 for name in names)
                if left < 0:
                    raise Unreadable(f"a GRUB script makes a command longer than {MAX_LENGTH}")
                found.extend(names)
        return found

    def _names(self, pattern: str) -> list[str]:
        if pattern[:1] in ("/", "(", "*") and is_pattern(pattern):
            found = self._expand(pattern)
            if found:
                return found
        return [unescaped(pattern)]

    def _patterns(self, word: Word) -> list[str | None]:
        """Return what a word is as patterns: a bare variable may make it several, or none."""
        found: list[str | None] = [None]
        left = MAX_LENGTH
        for piece in word.pieces:
            for number, part in enumerate(self._parts(piece)):
                if number and found[-1] is not None:
                    found.append(None)
                found[-1] = (found[-1] or "") + part
                left -= len(part) + 1
                if left < 0:
                    raise Unreadable(f"a GRUB script makes a command longer than {MAX_LENGTH}")
        return found

    def _parts(self, piece: Piece) -> list[str]:
        if piece.kind is Kind.BARE:
            return [piece.text]
        if piece.kind is Kind.QUOTED:
            return [_escaped(piece.text)]
        quoted = piece.kind is Kind.QUOTED_VARIABLE
        values = self._values(piece.text, quoted=quoted)
        if quoted:
            return [_escaped(value) for value in values]
        # Asterisks of a bare variable stand for files, but for those behind a backslash.
        bare = [word for value in values for word in value.split()]
        return [re.sub(r"\\(?=[*?])", r"\\\\\\", re.sub(r"\\(?![*?])", r"\\\\", w)) for w in bare]

    def _values(self, name: str, *, quoted: bool) -> list[str]:
        arguments = self._scopes[-1] if self._scopes else ()
        if name == "@":
            return list(arguments)
        if name == "*":
            return [" ".join(arguments)] if quoted and arguments else list(arguments)
        if name == "#":
            return [str(len(arguments))] if self._scopes else []
        if name.isdigit():
            number = int(name[:9])
            return [arguments[number - 1]] if 0 < number <= len(arguments) else []
        value = self.environment.get(name)
        return [value] if value else []

    # --- commands about the script itself ---

    def _own_commands(self) -> dict[str, Handler]:
        return {
            "true": lambda _call: SUCCESS,
            "false": lambda _call: FALSE,
            "set": self._set,
            "unset": self._unset,
            "export": self._export,
            "eval": lambda call: self.run(" ".join(call.arguments), f"{self._place} (eval)"),
            "break": self._break,
            "continue": self._break,
            "return": self._return,
            "shift": self._shift,
            "setparams": self._setparams,
        }

    def _set(self, call: Call) -> int:
        if not call.arguments:
            return SUCCESS
        name, equals, value = call.arguments[0].partition("=")
        if not equals:
            return BAD_ARGUMENT
        self.environment.put(name, value)
        return SUCCESS

    def _unset(self, call: Call) -> int:
        if not call.arguments:
            return BAD_ARGUMENT
        self.environment.unset(call.arguments[0])
        return SUCCESS

    def _export(self, call: Call) -> int:
        for name in call.arguments:
            self.environment.export(name)
        return SUCCESS if call.arguments else BAD_ARGUMENT

    def _break(self, call: Call) -> int:
        count = 1
        if call.arguments:
            number = _count(call.arguments)
            if not number:
                return BAD_ARGUMENT
            count = number
        self._continues = call.name == "continue"
        self._breaks = min(count, self._loops)
        return SUCCESS

    def _return(self, call: Call) -> int:
        if not self._scopes:
            return BAD_ARGUMENT
        if not self._in_function:
            raise self.refused("'return' outside of a function")
        status = int(self.environment.get("?") or "0")
        if call.arguments:
            number = _count(call.arguments)
            if number is None:
                return BAD_ARGUMENT
            status = number
        self._returns = True
        return status

    def _shift(self, call: Call) -> int:
        if not self._scopes:
            return SUCCESS
        number = _count(call.arguments) if call.arguments else 1
        if number is None or number > len(self._scopes[-1]):
            return BAD_ARGUMENT
        self._scopes[-1] = self._scopes[-1][number:]
        return SUCCESS

    def _setparams(self, call: Call) -> int:
        if not self._scopes:
            return INVALID_COMMAND
        self._scopes[-1] = call.arguments
        return SUCCESS


WITHOUT_EFFECT = frozenset(
    (":", "background_color", "background_image", "badram", "bli", "clear", "cutmem", "date",
     "distrust", "echo", "gettext", "gfxmode", "help", "hexdump", "initrdfail", "insmod", "keymap",
     "list_env", "list_trusted", "load_video", "loadfont", "lsacpi", "lsapm", "lsefi",
     "lsefimmap", "lsefisystab", "lsfonts", "lsmmap", "lsmod", "lspci", "nativedisk", "password",
     "password_pbkdf2", "pcidump", "play", "recordfail", "rmmod", "save_env", "savedefault",
     "serial", "sleep", "terminal", "terminal_input", "terminal_output", "terminfo", "trust",
     "usb", "vbeinfo", "vbetest", "videoinfo", "videotest")
)  # fmt: skip
"""Commands about screens, keys, memory and modules. They don't change what is booted, or are
functions that some menus call without having them."""


def is_pattern(text: str) -> bool:
    """Tell whether a text has a ``*`` or ``?`` without a backslash."""
    return re.search(r"(?<!\\)(?:\\\\)*[*?]", text) is not None


def unescaped(pattern: str) -> str:
    """Return the text that a pattern stands for itself."""
    return re.sub(r"\\([\s\S])", r"\1", pattern)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*?])", r"\\\1", text)


def _count(arguments: Sequence[str]) -> int | None:
    """Return the one number that arguments must be."""
    if len(arguments) != 1 or not re.fullmatch(r"[0-9]{1,9}", arguments[0]):
        return None
    return int(arguments[0])


@attrs.frozen(kw_only=True)
class Option:
    """An option of a command: ``--long``, ``-short``, with a value that may be left out."""

    long: str
    short: str = ""
    value: bool = False
    optional: bool = False


@attrs.frozen
class Options:
    """What was given: options with their values, and the other arguments."""

    given: dict[str, list[str]]
    rest: list[str]

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def last(self, name: str) -> str:
        """Return an option's last value, "" where it has none."""
        return self.given.get(name, [""])[-1]


def options(
    arguments: Sequence[str], known: Sequence[Option], *, dashes: bool = False
) -> Options | None:
    """Read options as GRUB's commands do; None where one isn't known.

    :param dashes: arguments that begin with a dash and are no options are arguments.
    """
    result = Options({}, [])
    waiting = list(arguments)[::-1]
    while waiting:
        word = waiting.pop()
        if word == "--":
            result.rest.extend(waiting[::-1])
            break
        if len(word) < 2 or word[0] != "-":
            result.rest.append(word)
            continue
        read = list(_read(word, waiting, known))
        if any(option is None for option, _ in read):
            if not dashes:
                return None
            result.rest.append(word)
            continue
        for option, value in read:
            assert option is not None  # noqa: S101 - checked above
            if value is None and option.value and not option.optional:
                return None
            result.given.setdefault(option.long, []).append(value or "")
    return result


def _read(
    word: str, waiting: list[str], known: Sequence[Option]
) -> Iterator[tuple[Option | None, str | None]]:
    """Yield the options that a word consists of, each with its value."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        option = next((o for o in known if o.long == name), None)
        if option is None or (equals and not option.value):
            yield None, None
            return
        follows = not equals and option.value and waiting and not waiting[-1].startswith("-")
        yield option, waiting.pop() if follows else value if equals else None
        return
    shorts = [next((o for o in known if o.short == char), None) for char in word[1:]]
    if None in shorts:
        yield None, None
        return
    for option in shorts[:-1]:
        yield option, None
    last = shorts[-1]
    follows = last is not None and last.value and waiting
    if follows and last is not None and last.optional and re.match(r"-.", waiting[-1]):
        follows = False
    yield last, waiting.pop() if follows else None
