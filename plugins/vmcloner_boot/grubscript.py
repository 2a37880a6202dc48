"""GRUB's script language, as far as its menus use it: parsed into values, run without a machine.

Language: the GRUB manual, chapters "Writing your own configuration file" and "Environment". What
depends on real hardware succeeds and does nothing; nothing here reads a file but through the hooks
of :class:`World`. Steps, nesting and the size of texts are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from vmcloner_boot.disk_image import MIB, Budget, Unreadable

MAX_STEPS = 20_000
"""Commands, and turns of loops, that one script may run."""
MAX_NESTING = 64
MAX_WORDS = 16384
"""Characters of a command once its variables are filled in, and pieces of its words."""
MAX_TEST = 100
"""Words of one test."""
MAX_ENTRIES = 1000
"""Entries of one menu."""
MAX_VARIABLES = 1000
MAX_SOURCES = 2 * MIB
"""Characters of all files that a script consists of."""


class Broken(Unreadable):
    """A script can't be parsed; the message has its name and line."""


# --- words and commands -------------------------------------------------------------------------

Piece = tuple[str, bool, bool]
"""A part of a word: (text or name, whether it is a variable, whether it was quoted)."""


@attrs.frozen
class Word:
    """One word, before its variables are filled in."""

    pieces: tuple[Piece, ...]

    @property
    def plain(self) -> str | None:
        """Its text where it is a bare word: a keyword may be one."""
        if len(self.pieces) == 1 and not self.pieces[0][1] and not self.pieces[0][2]:
            return self.pieces[0][0]
        return None


@attrs.frozen
class Command:
    """A command with its words, and the block that follows it (of a menu entry)."""

    line: int
    words: tuple[Word, ...]
    block: tuple[Statement, ...] | None = None


@attrs.frozen
class If:
    """Conditions with what is done where one holds; the last may have none."""

    branches: tuple[tuple[tuple[Statement, ...], tuple[Statement, ...]], ...]
    otherwise: tuple[Statement, ...] = ()


@attrs.frozen
class Loop:
    """A ``for``, or a ``while`` or ``until`` with ``condition``."""

    body: tuple[Statement, ...]
    name: str = ""
    words: tuple[Word, ...] = ()
    condition: tuple[Statement, ...] = ()
    until: bool = False


@attrs.frozen
class Function:
    """A function's definition."""

    name: str
    body: tuple[Statement, ...]


Statement = Command | If | Loop | Function

# --- tokens -------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?@#*]")
_BLANK = " \t"
_END = ";\n"


@attrs.frozen
class _Token:
    line: int
    word: Word | None
    """None for the end of a command."""


def _tokens(text: str, name: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        char = text[at]
        if char in _BLANK:
            at += 1
        elif text.startswith("\\\n", at):
            at, line = at + 2, line + 1
        elif char == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif char in _END:
            yield _Token(line, None)
            line += char == "\n"
            at += 1
        elif char in "{}" and (at + 1 == len(text) or text[at + 1] in " \t\n;}"):
            yield _Token(line, Word(((char, False, False),)))
            at += 1
        else:
            word, end = _word(text, at, line, name)
            yield _Token(line, word)
            line += text.count("\n", at, end)
            at = end
    yield _Token(line, None)


def _word(text: str, at: int, line: int, name: str) -> tuple[Word, int]:
    pieces: list[Piece] = []
    while at < len(text):
        char = text[at]
        if char in " \t\n;" or (char in "|&<>" and not pieces):
            break
        if char == "'":
            at = _literal(text, at + 1, pieces, f"{name}:{line}")
        elif char == '"':
            at = _quoted(text, at + 1, pieces, f"{name}:{line}")
        elif char == "$":
            at = _variable(text, at, pieces, quoted=False)
        elif char == "}" and pieces:
            break
        else:
            at = _bare(text, at, pieces)
    if not pieces:
        raise Broken(f"{name}:{line}: {text[at]!r} isn't understood")
    return Word(tuple(pieces)), at


def _bare(text: str, at: int, pieces: list[Piece]) -> int:
    if text[at] == "\\":
        if text[at + 1 : at + 2] != "\n":
            pieces.append((text[at + 1 : at + 2], False, True))
        return at + 2
    end = at + 1
    while end < len(text) and text[end] not in " \t\n;'\"\\$}":
        end += 1
    pieces.append((text[at:end], False, False))
    return end


def _literal(text: str, at: int, pieces: list[Piece], where: str) -> int:
    end = text.find("'", at)
    if end < 0:
        raise Broken(f"{where}: a quote isn't closed")
    pieces.append((text[at:end], False, True))
    return end + 1


def _quoted(text: str, at: int, pieces: list[Piece], where: str) -> int:
    start = len(pieces)
    while at < len(text):
        char = text[at]
        if char == '"':
            if len(pieces) == start:
                pieces.append(("", False, True))
            return at + 1
        if char == "\\" and text[at + 1 : at + 2] in ('"', "$", "\\", "`"):
            pieces.append((text[at + 1], False, True))
            at += 2
        elif text.startswith("\\\n", at):
            at += 2
        elif char == "$":
            at = _variable(text, at, pieces, quoted=True)
        else:
            end = at + 1
            while end < len(text) and text[end] not in '"\\$':
                end += 1
            pieces.append((text[at:end], False, True))
            at = end
    raise Broken(f"{where}: a quote isn't closed")


def _variable(text: str, at: int, pieces: list[Piece], *, quoted: bool) -> int:
    braced = text.startswith("${", at)
    start = at + 1 + braced
    match = _NAME.match(text, start)
    if match is None or (braced and text[match.end() : match.end() + 1] != "}"):
        pieces.append(("$", False, True))
        return at + 1
    pieces.append((match[0], True, quoted))
    return match.end() + braced


# --- parser -------------------------------------------------------------------------------------


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self._tokens = list(_tokens(text, name))
        self._at = 0
        self._name = name
        self._depth = 0

    def script(self) -> tuple[Statement, ...]:
        found = self._statements(frozenset())
        token = self._peek()
        if token is not None:
            raise self._broken(token.line, f"{self._keyword(token)!r} has no beginning")
        return found

    def _peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _keyword(self, token: _Token | None) -> str | None:
        return token.word.plain if token is not None and token.word is not None else None

    def _broken(self, line: int, why: str) -> Broken:
        return Broken(f"{self._name}:{line}: {why}")

    def _statements(self, ends: frozenset[str]) -> tuple[Statement, ...]:
        """Parse up to one of the keywords ``ends``, which is left."""
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._broken(self._line(), f"nested more than {MAX_NESTING} times")
        found: list[Statement] = []
        while (token := self._peek()) is not None:
            if token.word is None:
                self._at += 1
                continue
            word = self._keyword(token)
            if word in ends or word in ("}", "then", "else", "elif", "fi", "do", "done"):
                break
            found.append(self._statement(token, word))
        self._depth -= 1
        return tuple(found)

    def _line(self) -> int:
        token = self._peek() or self._tokens[-1]
        return token.line

    def _statement(self, token: _Token, word: str | None) -> Statement:
        if word == "if":
            return self._if()
        if word in ("while", "until"):
            self._at += 1
            condition = self._statements(frozenset({"do"}))
            return Loop(self._body(), condition=condition, until=word == "until")
        if word == "for":
            return self._for()
        if word == "function":
            return self._function()
        if word == "{":
            self._at += 1
            body = self._closed(token.line)
            return If(branches=(((), body),))
        return self._command(token.line)

    def _expect(self, *words: str) -> str:
        while (token := self._peek()) is not None and token.word is None:
            self._at += 1
        word = self._keyword(token)
        if word not in words:
            raise self._broken(self._line(), f"{' or '.join(words)} is missing")
        self._at += 1
        return word

    def _if(self) -> If:
        branches = []
        word = self._expect("if")
        while word in ("if", "elif"):
            condition = self._statements(frozenset({"then"}))
            self._expect("then")
            branches.append((condition, self._statements(frozenset({"elif", "else", "fi"}))))
            word = self._expect("elif", "else", "fi")
        otherwise: tuple[Statement, ...] = ()
        if word == "else":
            otherwise = self._statements(frozenset({"fi"}))
            self._expect("fi")
        return If(tuple(branches), otherwise)

    def _body(self) -> tuple[Statement, ...]:
        self._expect("do")
        body = self._statements(frozenset({"done"}))
        self._expect("done")
        return body

    def _for(self) -> Loop:
        command = self._command(self._line())
        names = [word.plain for word in command.words[:3]]
        if len(names) < 3 or names[1] is None or names[2] != "in":
            raise self._broken(command.line, "a for needs a name and in")
        return Loop(self._body(), name=names[1], words=command.words[3:])

    def _function(self) -> Function:
        line = self._line()
        self._at += 1
        token = self._peek()
        name = self._keyword(token)
        if name is None:
            raise self._broken(line, "a function needs a name")
        self._at += 1
        self._expect("{")
        return Function(name, self._closed(line))

    def _closed(self, line: int) -> tuple[Statement, ...]:
        body = self._statements(frozenset({"}"}))
        token = self._peek()
        if self._keyword(token) != "}":
            raise self._broken(line, "what begins here with { isn't closed")
        self._at += 1
        return body

    def _command(self, line: int) -> Command:
        words: list[Word] = []
        while (token := self._peek()) is not None and token.word is not None:
            if self._keyword(token) == "{" and words:
                self._at += 1
                return Command(line, tuple(words), self._closed(line))
            if self._keyword(token) == "}":
                break
            words.append(token.word)
            self._at += 1
        if words and words[0].plain in ("menuentry", "submenu"):
            # Its block may begin on a line of its own.
            ahead = self._at
            while ahead < len(self._tokens) and self._tokens[ahead].word is None:
                ahead += 1
            if ahead < len(self._tokens) and self._keyword(self._tokens[ahead]) == "{":
                self._at = ahead + 1
                return Command(line, tuple(words), self._closed(line))
        return Command(line, tuple(words))


def parse(text: str, name: str) -> tuple[Statement, ...]:
    """Parse a script.

    :param name: what it is called in messages.
    :raises Broken: it isn't one.
    """
    return _Parser(text, name).script()


# --- running ------------------------------------------------------------------------------------


@attrs.frozen
class Entry:
    """An entry of a menu; a submenu has ``submenu``. ``body`` is run when it is chosen."""

    title: str
    identifier: str = ""
    body: tuple[Statement, ...] = ()
    submenu: bool = False
    arguments: tuple[str, ...] = ()


@attrs.define
class World:
    """What a script sees and makes.

    :param run: commands that the caller carries out: (name, arguments) to whether it succeeded;
        None for a name that isn't his.
    :param budget: what all that is read on behalf of the clone takes of; here it bounds the time.
    """

    run: Callable[[str, Sequence[str]], bool | None]
    budget: Budget = attrs.field(factory=Budget)
    variables: dict[str, str] = attrs.field(factory=dict)
    menu: list[Entry] = attrs.field(factory=list)
    functions: dict[str, tuple[Statement, ...]] = attrs.field(factory=dict)
    steps: int = 0
    depth: int = 0
    sources: int = 0

    def source(self, text: str, name: str) -> bool:
        """Run a script, or a further file of it; returns whether its last command succeeded.

        :param name: what it is called in messages.
        :raises Unreadable: it isn't one, or doesn't end within bounds.
        """
        self.sources += len(text)
        if self.sources > MAX_SOURCES:
            raise Unreadable(f"a GRUB script consists of more than {MAX_SOURCES} characters")
        return self.execute(parse(text, name))

    def execute(self, statements: Sequence[Statement]) -> bool:
        """Run statements; returns whether the last one succeeded.

        :raises Unreadable: they don't end within bounds.
        """
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise Unreadable(f"a GRUB script calls itself more than {MAX_NESTING} times")
        good = True
        for statement in statements:
            good = self._one(statement)
        self.depth -= 1
        return good

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Unreadable(f"a GRUB script doesn't end within {MAX_STEPS} steps")
        self.budget.spend(0)

    def _one(self, statement: Statement) -> bool:
        self._step()
        if isinstance(statement, Command):
            return self._command(statement)
        if isinstance(statement, Function):
            self.functions[statement.name] = statement.body
            return True
        if isinstance(statement, Loop):
            return self._loop(statement)
        for condition, body in statement.branches:
            if self.execute(condition):
                return self.execute(body)
        return self.execute(statement.otherwise)

    def _loop(self, loop: Loop) -> bool:
        if loop.name:
            for value in self.words(loop.words):
                self._step()
                self.put(loop.name, value)
                self.execute(loop.body)
            return True
        while self.execute(loop.condition) is not loop.until:
            self._step()
            self.execute(loop.body)
        return True

    def put(self, name: str, value: str) -> None:
        """Set a variable."""
        self.variables[name] = value
        if len(self.variables) > MAX_VARIABLES:
            raise Unreadable(f"a GRUB script sets more than {MAX_VARIABLES} variables")

    def words(self, words: Sequence[Word]) -> list[str]:
        """Return words with their variables filled in; a bare one may become several or none."""
        found: list[str] = []
        left = MAX_WORDS
        for word in words:
            parts, quoted, bare = [""], False, False
            for text, variable, in_quotes in word.pieces:
                value = self.variables.get(text, "") if variable else text
                quoted |= in_quotes or not variable
                if variable and not in_quotes:
                    first, *rest = value.split() or [""]
                    bare |= not value.strip()
                    parts[-1] += first
                    parts.extend(rest)
                else:
                    parts[-1] += value
                left -= len(value) + 1
                if left < 0:
                    raise Unreadable(f"a GRUB script makes a command longer than {MAX_WORDS}")
            if parts != [""] or quoted or not bare:
                found.extend(parts)
        return found

    def _command(self, command: Command) -> bool:
        words = self.words(command.words)
        if not words:
            return True
        name, arguments = words[0], words[1:]
        if name == "!":
            return not self._call(arguments[0], arguments[1:], command) if arguments else False
        return self._call(name, arguments, command)

    def _call(self, name: str, arguments: Sequence[str], command: Command) -> bool:
        if name in ("menuentry", "submenu"):
            self._entry(arguments, command, submenu=name == "submenu")
            return True
        if name in ("[", "test"):
            return _test(arguments[:-1] if name == "[" else arguments, self)
        if name == "set" or (not command.block and re.match(r"[A-Za-z_]\w*=", name)):
            for item in arguments if name == "set" else [name]:
                key, _, value = item.partition("=")
                self.put(key, value)
            return True
        if name == "unset":
            for key in arguments:
                self.variables.pop(key, None)
            return True
        if name in self.functions:
            return self.execute(self.functions[name])
        answer = self.run(name, arguments)
        # What isn't known here is about a screen, a disk or a module: it is there, and works.
        return name != "false" if answer is None else answer

    def _entry(self, arguments: Sequence[str], command: Command, *, submenu: bool) -> None:
        if len(self.menu) >= MAX_ENTRIES:
            raise Unreadable(f"a GRUB menu has more than {MAX_ENTRIES} entries")
        identifier, rest = "", []
        waiting = iter(arguments)
        for word in waiting:
            if word in ("--class", "--users", "--hotkey", "--source"):
                next(waiting, "")
            elif word == "--id":
                identifier = next(waiting, "")
            elif word.startswith("--id="):
                identifier = word.removeprefix("--id=")
            elif word.startswith("--"):
                continue
            else:
                rest.append(word)
        title = rest[0] if rest else ""
        body = command.block or ()
        self.menu.append(Entry(title, identifier, body, submenu, tuple(rest)))


def _test(words: Sequence[str], world: World) -> bool:
    """Evaluate ``test``: strings, numbers, files, ``!``, ``-a`` and ``-o``."""
    if len(words) > MAX_TEST:
        raise Unreadable(f"a GRUB script tests more than {MAX_TEST} words at once")
    for operator, combine in (("-o", any), ("-a", all)):
        if operator in words[1:-1]:
            at = list(words).index(operator, 1)
            return combine([_test(words[:at], world), _test(words[at + 1 :], world)])
    if words and words[0] == "!":
        return not _test(words[1:], world)
    if len(words) == 3:
        return _compared(*words)
    if len(words) == 2 and words[0] in ("-f", "-s", "-e", "-d"):
        return bool(world.run(f"test{words[0]}", words[1:]))
    if len(words) == 2:
        return bool(words[1]) if words[0] == "-n" else not words[1] and words[0] == "-z"
    return bool(words and words[0])


_COMPARE: Mapping[str, Callable[[int], bool]] = {
    "-eq": lambda d: d == 0,
    "-ne": lambda d: d != 0,
    "-lt": lambda d: d < 0,
    "-le": lambda d: d <= 0,
    "-gt": lambda d: d > 0,
    "-ge": lambda d: d >= 0,
}


def _compared(left: str, operator: str, right: str) -> bool:
    if operator in ("=", "=="):
        return left == right
    if operator == "!=":
        return left != right
    compare = _COMPARE.get(operator)
    if compare is None:
        return False
    return compare(_number(left) - _number(right))


def _number(text: str) -> int:
    match = re.match(r"\s*[+-]?\d{1,18}", text)
    return int(match[0]) if match else 0
