"""GRUB's script language, read into statements.

Language: the GRUB manual, chapter "Writing full configuration files directly". What GRUB's own
parser refuses is refused here, too. Depth and the number of words are bounded.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator

import attrs

from vmcloner_boot.disk_image import Unreadable

MAX_NESTING = 64
MAX_WORDS = 100_000
"""Words of one script, with all files that it consists of."""


class Broken(Unreadable):
    """A script can't be parsed; the message has its name and line."""


# --- words and statements -----------------------------------------------------------------------


class Kind(enum.Enum):
    """How a part of a word is to be read."""

    BARE = "bare"
    QUOTED = "quoted"
    VARIABLE = "variable"
    QUOTED_VARIABLE = "variable within double quotes"


@attrs.frozen
class Piece:
    """A part of a word: its text, or a variable's name."""

    kind: Kind
    text: str


@attrs.frozen
class Word:
    """One word, before its variables are filled in."""

    pieces: tuple[Piece, ...]


@attrs.frozen
class Command:
    """A command with its words, and the block that follows it (of a menu entry)."""

    line: int
    words: tuple[Word, ...]
    block: tuple[Statement, ...] | None = None


@attrs.frozen
class If:
    """Conditions, each with what is done where it is the first that holds; else ``otherwise``."""

    branches: tuple[tuple[tuple[Statement, ...], tuple[Statement, ...]], ...]
    otherwise: tuple[Statement, ...] = ()


@attrs.frozen
class For:
    """A loop over words."""

    name: str
    words: tuple[Word, ...]
    body: tuple[Statement, ...]


@attrs.frozen
class While:
    """A loop as long as a condition holds, or with ``until``, as long as it doesn't."""

    condition: tuple[Statement, ...]
    body: tuple[Statement, ...]
    until: bool = False


@attrs.frozen
class Function:
    """A function's definition."""

    name: str
    body: tuple[Statement, ...]


Statement = Command | If | For | While | Function

# --- tokens -------------------------------------------------------------------------------------

_VARIABLE = re.compile(
    r"\$(?:([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?#*@])|\{([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?#*@])\})"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_BARE = re.compile(r"[^{}|&$;<> \t\n'\"\\]+")
_IN_DOUBLE_QUOTES = re.compile(r'[^"\\$]+')
_KEYWORDS = frozenset(
    ("case", "do", "done", "elif", "else", "esac", "fi", "for", "if", "in", "select", "then",
     "until", "while", "function")
)  # fmt: skip


@attrs.frozen
class _Token:
    line: int
    kind: str
    """``word``, ``name`` (a word that may be one), a keyword, or one of ``; { }`` and a new line"""
    word: Word = Word(())
    text: str = ""


class _Lexer:
    def __init__(self, text: str, name: str) -> None:
        self._text = text.replace("\r", "")
        self._name = name
        self._at = 0
        self._line = 1

    def tokens(self) -> Iterator[_Token]:
        text = self._text
        while self._at < len(text):
            char = text[self._at]
            if char in " \t":
                self._at += 1
            elif char == "#":
                self._comment()
            elif char in ";{}\n":
                yield _Token(self._line, char)
                self._at += 1
                self._line += char == "\n"
            else:
                yield self._word()

    def _broken(self, why: str) -> Broken:
        return Broken(f"{self._name}:{self._line}: {why}")

    def _comment(self) -> None:
        end = self._text.find("\n", self._at)
        end = len(self._text) if end < 0 else end
        comment = self._text[self._at : end]
        # To GRUB, the comment's first word may go on in the next line.
        first = re.split(r"[ \t]", comment, maxsplit=1)[0]
        if "'" in first or '"' in first or comment.endswith("\\"):
            self._check_comment(comment)
        self._at = end

    def _check_comment(self, comment: str) -> None:
        """Refuse a comment that GRUB's lexer takes for the beginning of a longer word."""
        end = re.match(r"""(?:[^{}|&$;<> \t'"\\]|\\.|'[^']*'|"(?:\\.|[^\\"])*"|\$\w)*""", comment)
        rest = comment[end.end() if end else 0 :]
        if rest == "\\" or rest.startswith(("'", '"', '$"', "$'")):
            raise self._broken("a comment isn't closed: GRUB reads its quote or backslash")

    def _word(self) -> _Token:
        line, start = self._line, self._at
        pieces: list[Piece] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in "{};| &<>\t\n":
                break
            if char == "'":
                self._single(pieces)
            elif char == '"':
                self._double(pieces)
            elif char == "\\":
                self._escaped(pieces)
            elif self._text.startswith('$"', self._at):
                self._at += 1  # a text that may be translated, which isn't done
                self._double(pieces)
            elif char == "$":
                self._variable(pieces, Kind.VARIABLE)
            else:
                end = self._end(_BARE)
                pieces.append(Piece(Kind.BARE, self._text[self._at : end]))
                self._at = end
        if self._at == start:
            raise self._broken(f"{self._text[self._at]!r} isn't understood")
        raw = self._text[start : self._at]
        if raw in ("[[", "]]"):
            raise self._broken(f"{raw!r} isn't understood")
        kind = raw if raw in _KEYWORDS else "name" if _NAME.match(raw) else "word"
        self._line += raw.count("\n")
        return _Token(line, kind, Word(tuple(pieces)), raw if kind == "name" else "")

    def _end(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self._broken(f"{self._text[self._at]!r} isn't understood")
        return match.end()

    def _single(self, pieces: list[Piece]) -> None:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise self._broken("a quote isn't closed")
        pieces.append(Piece(Kind.QUOTED, self._text[self._at + 1 : end]))
        self._at = end + 1

    def _escaped(self, pieces: list[Piece]) -> None:
        char = self._text[self._at + 1 : self._at + 2]
        if self._at + 2 >= len(self._text) and char in ("", "\n"):
            raise self._broken("it ends with a backslash")
        if char != "\n":
            pieces.append(Piece(Kind.QUOTED, char))
        self._at += 2

    def _variable(self, pieces: list[Piece], kind: Kind) -> None:
        match = _VARIABLE.match(self._text, self._at)
        if match is None:
            raise self._broken("a $ without a variable's name")
        pieces.append(Piece(kind, match[1] or match[2]))
        self._at = match.end()

    def _double(self, pieces: list[Piece]) -> None:
        self._at += 1
        pieces.append(Piece(Kind.QUOTED, ""))  # even an empty one is a word
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == '"':
                self._at += 1
                return
            if char == "$":
                self._variable(pieces, Kind.QUOTED_VARIABLE)
            elif char == "\\":
                after = self._text[self._at + 1 : self._at + 2]
                if after != "\n":
                    plain = after if after and after in '"$\\' else char + after
                    pieces.append(Piece(Kind.QUOTED, plain))
                self._at += 2
            else:
                end = self._end(_IN_DOUBLE_QUOTES)
                pieces.append(Piece(Kind.QUOTED, self._text[self._at : end]))
                self._at = end
        raise self._broken("a quote isn't closed")


# --- parser -------------------------------------------------------------------------------------

_END = "end of file"


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._tokens: list[_Token] = []
        for token in _Lexer(text, name).tokens():
            self._tokens.append(token)
            if len(self._tokens) > MAX_WORDS:
                raise Broken(f"{name}: it has more than {MAX_WORDS} words")
        last = self._tokens[-1].line if self._tokens else 1
        self._tokens += [_Token(last, "\n"), _Token(last, _END)]
        self._at = 0
        self._depth = 0

    # --- tokens ---

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at += token.kind != _END
        return token

    def _accept(self, *kinds: str) -> bool:
        found = self._next.kind in kinds
        self._at += found
        return found

    def _expect(self, *kinds: str) -> _Token:
        if self._next.kind not in kinds:
            raise self._broken(f"{' or '.join(map(_shown, kinds))} is missing")
        return self._take()

    def _broken(self, why: str, line: int = 0) -> Broken:
        return Broken(f"{self._name}:{line or self._next.line}: {why}")

    def _newlines(self) -> None:
        while self._accept("\n"):
            pass

    # --- statements ---

    def script(self) -> tuple[Statement, ...]:
        found: list[Statement] = []
        self._newlines()
        while self._next.kind != _END:
            found.append(self._function() if self._next.kind == "function" else self._command())
            self._expect(";", "\n")
            self._newlines()
        return tuple(found)

    def _commands(self, *ends: str, opened: _Token | None = None) -> tuple[Statement, ...]:
        """Parse commands up to one of the tokens ``ends``, which is left. There must be one."""
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._broken(f"nested more than {MAX_NESTING} times")
        found: list[Statement] = []
        while not found or self._accept(";", "\n"):
            self._newlines()
            if found and self._next.kind in ends:
                break
            if self._next.kind == _END and opened is not None:
                raise self._broken("what begins here with { isn't closed", opened.line)
            if self._next.kind == _END:
                raise self._broken(f"{' or '.join(map(_shown, ends))} is missing")
            found.append(self._command())
        self._depth -= 1
        return tuple(found)

    def _command(self) -> Statement:
        token = self._next
        if token.kind == "if":
            return self._if()
        if token.kind == "for":
            return self._for()
        if token.kind in ("while", "until"):
            self._take()
            condition = self._commands("do")
            return While(condition, self._body(), until=token.kind == "until")
        if token.kind not in ("word", "name"):
            raise self._broken(f"a command is missing before {_shown(token.kind)}")
        words = self._words()
        block = self._block() if self._next.kind == "{" else None
        return Command(token.line, words, block)

    def _words(self) -> tuple[Word, ...]:
        found: list[Word] = []
        while self._next.kind in ("word", "name") or self._next.kind in _KEYWORDS:
            found.append(self._take().word)
        return tuple(found)

    def _block(self) -> tuple[Statement, ...]:
        opened = self._expect("{")
        body = self._commands("}", opened=opened)
        self._expect("}")
        return body

    def _closed(self, *ends: str) -> tuple[Statement, ...]:
        """Parse commands, of which the last must be ended, up to one of the tokens ``ends``."""
        body = self._commands(*ends)
        if self._tokens[self._at - 1].kind not in (";", "\n"):
            raise self._broken("the end of a command is missing")
        return body

    def _if(self) -> If:
        branches = []
        word = self._expect("if").kind
        while word in ("if", "elif"):
            condition = self._closed("then")
            self._expect("then")
            branches.append((condition, self._closed("elif", "else", "fi")))
            word = self._expect("elif", "else", "fi").kind
        otherwise: tuple[Statement, ...] = ()
        if word == "else":
            otherwise = self._closed("fi")
            self._expect("fi")
        return If(tuple(branches), otherwise)

    def _body(self) -> tuple[Statement, ...]:
        if self._tokens[self._at - 1].kind not in (";", "\n"):
            raise self._broken("the end of a command is missing")
        self._expect("do")
        body = self._closed("done")
        self._expect("done")
        return body

    def _for(self) -> For:
        self._expect("for")
        name = self._expect("name").text
        self._expect("in")
        words = self._words()
        self._expect(";", "\n")
        self._newlines()
        return For(name, words, self._body())

    def _function(self) -> Function:
        self._expect("function")
        name = self._expect("name").text
        self._newlines()
        opened = self._expect("{")
        body = self._commands("}", opened=opened)
        if self._tokens[self._at - 1].kind not in (";", "\n"):
            raise self._broken("the end of a command is missing")
        self._expect("}")
        return Function(name, body)


def _shown(kind: str) -> str:
    return {"\n": "the end of a line", "name": "a name", "word": "a word"}.get(kind, kind)


def parse(text: str, name: str) -> tuple[Statement, ...]:
    """Parse a script.

    :param name: what it is called in messages.
    :raises Broken: it isn't one.
    """
    return _Parser(text, name).script()
