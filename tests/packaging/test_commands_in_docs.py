"""Every command line of vmcloner in the documentation is one that its parser takes."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator

import pytest

from contrib.docs import build
from vmcloner_core.cli.app import Shell, split_guest_words

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "contrib/**/README.md")
    for page in build.ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"  # which tells of commands as they were
)
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```|^((?:    [^\n]*\n)+)", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:sudo )?vmcloner [^`\n]+)`(?!`)")
ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "<", ")"}
"""What ends a command in a shell's line."""


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each command line of vmcloner in a page: in blocks and in sentences."""
    for block in BLOCK.finditer(text):
        for line in (block[1] or block[2]).replace("\\\n", " ").splitlines():
            yield from _of_line(line)
    for inline in INLINE.finditer(BLOCK.sub("", text)):
        yield from _of_line(inline[1])


def _of_line(line: str) -> Iterator[list[str]]:
    if "vmcloner " not in line:
        return
    lexer = shlex.shlex(line.replace("<TAB>", "…"), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return  # a sentence with an apostrophe, not a command
    starts = [at for at, word in enumerate(words) if _begins(words, at, word)]
    for start in starts:
        rest = words[start + 1 :]
        end = next((at for at, word in enumerate(rest) if word in ENDS), len(rest))
        yield rest[:end]


def _begins(words: list[str], at: int, word: str) -> bool:
    """Tell whether a word is the command, not an argument: the line's first, or after a prompt."""
    before = words[at - 1] if at else "$"
    return word == "vmcloner" and (
        before in ENDS | {"$", "#", "-", "sudo", "exec", "(", "if", "!", "then", "'"}
        or "=" in before
    )


def refused(words: list[str]) -> str | None:
    """Return why the parser refuses a command line, None if it takes it."""
    if "…" in words:
        return None  # the rest is left out
    shell = Shell()
    said = io.StringIO()
    ours, guests = split_guest_words(words)
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            _, rest = shell.build_option_parser("", "").parse_known_args(ours)
            if not rest:
                return None
            command, name, arguments = shell.command_manager.find_command([*rest, *guests])
            if not arguments:
                return None  # a sentence names the command
            command(shell, None, cmd_name=name).get_parser(f"vmcloner {name}").parse_args(arguments)
        except ValueError as error:
            return str(error)
        except SystemExit as error:
            return said.getvalue() if error.code else None
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(build.ROOT)))
def test_the_parser_takes_all_command_lines(page):
    wrong = {shlex.join(words): refused(words) for words in command_lines(page.read_text())}
    assert {line: why for line, why in wrong.items() if why} == {}


def test_command_lines_are_found():
    text = (
        "Type `vmcloner list web`, or\n\n    sudo vmcloner gc --yes && vmcloner top | head\n\n"
        "```console\n$ vmcloner show web-1   # a comment\nvmcloner: no\n```\n\n"
        "```yaml\n- vmcloner create web -t tiny\n- id=$(vmcloner list -f value)\n```\n"
        "    vmcloner exec web -- 'uname; ls'\n"
    )
    assert [" ".join(words) for words in command_lines(text)] == [
        "gc --yes", "top", "show web-1", "create web -t tiny", "list -f value",
        "exec web -- uname; ls", "list web",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["creat web -t tiny", "create web -t tiny --cuont 3", "create web -t tiny -n many",
     "stop web --quickly", "list web --sort", "--hots lab1 list"],
)  # fmt: skip
def test_a_wrong_command_line_is_refused(line):
    assert refused(line.split())
