"""GRUB's language: words, conditions, loops and functions; the real GRUB beside it."""

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.boot.memory import tree
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.grub_commands import Machine
from vmcloner_boot.grub_interpreter import Call
from vmcloner_boot.grub_parser import parse


def run(script: str, files: dict[str, object] | None = None) -> list[str]:
    """Run a script; returns what it says by ``echo``."""
    disk = tree(files or {}, 1, "gpt", "11111111-2222-4333-8444-555555555555")
    machine = Machine([disk], disk, "/boot/grub", Budget())
    said: list[str] = []

    def echo(call: Call) -> int:
        said.append(" ".join(call.arguments))
        return 0

    machine.interpreter._commands["echo"] = echo
    machine.configure(script, "/boot/grub/grub.cfg", "grub.cfg")
    return said


@pytest.mark.parametrize(
    ("script", "said"),
    [
        # break and continue
        ("for i in 1 2 3; do if [ $i = 2 ]; then break; fi; echo $i; done", ["1"]),
        ("for i in 1 2 3; do if [ $i = 2 ]; then continue; fi; echo $i; done", ["1", "3"]),
        ("for i in 1 2; do for j in a b; do break 2; done; echo no; done; echo $i$j", ["1a"]),
        ("while true; do set n=x$n; if [ $n = xxx ]; then break; fi; done; echo $n", ["xxx"]),
        ("until [ \"$n\" = xx ]; do set n=x$n; done; echo $n", ["xx"]),
        # functions
        ("function f { echo $# $1 $2; shift; echo $1; }\nf a 'b c'", ["2 a b c", "b c"]),
        ('function f { for x in "$@"; do echo $x; done; }\nf a "b c"', ["a", "b c"]),
        ("function f { return 3; echo no; }\nf; echo $?", ["3"]),
        ("function f { return; }\nfalse; f; echo $?", ["1"]),
        ("function f { [ $1 = a ]; }\nif f a; then echo 1; fi; if f b; then echo 2; fi", ["1"]),
        ("function f { setparams x y; echo $2; }\nf", ["y"]),
        ("function f { break; echo still; }\nfor i in 1 2; do f; done", ["still", "still"]),
        # return values
        ("false; echo $?; true; echo $?; ! true; echo $?", ["1", "0", "1"]),
        ("if [ a = b ]; then echo 1; elif ! false; then echo 2; else echo 3; fi", ["2"]),
        # eval and assignments
        ("set v=w\neval \"set $v=1\"\necho $w", ["1"]),
        ("set A_OK=1\nfor s in A; do eval \"ok=\\$${s}_OK\"; done; echo $ok", ["1"]),
        ("set a=1 b=2\necho $a$b.", ["1."]),
        ("x=1; unset x; echo .$x.", [".."]),
        # words
        ("set v='a  b'\necho $v; echo \"$v\"", ["a b", "a  b"]),
        ("echo '$v' \\$v \"\\$v\"", ["$v $v $v"]),
        ("set v=1\necho a${v}b a\"$v\"b a'$v'b", ["a1b a1b a$vb"]),
        ("echo a\\\n  b \"c\\\nd\"", ["a b cd"]),
        ("set v=1\necho $\"a $v\\\" b\"", ['a 1" b']),
        # numbers and texts
        ("if [ 0x10 -eq 16 -a 010 -eq 8 -a 9 -lt 10 ]; then echo ok; fi", ["ok"]),
        ("if [ k-6.9 -plt k-6.10 -a k-6.10 -pgt k-6.9 ]; then echo ok; fi", ["ok"]),
        ("if [ a '<' b -a b '>=' b ]; then echo ok; fi", ["ok"]),
        ("if [ ( a = b ) -o ( -n x -a -z '' ) ]; then echo ok; fi", ["ok"]),
        ("if test ! -e /none; then echo ok; fi", ["ok"]),
        ("increment n; increment n; decrement n; echo $n", ["1"]),
        # regular expressions
        ("regexp --set 2:n '^([a-z]+)([0-9]+)$' hd12; echo $n", ["12"]),
        ("if regexp 'b+' aaa; then echo no; else echo $?; fi", ["1"]),
        ("regexp -s d '(.*),' hd0,gpt1; echo $d", ["hd0"]),
    ],
)  # fmt: skip
def test_scripts(script: str, said: list[str]) -> None:
    assert run(script) == said


FILES: dict[str, object] = {
    "empty": "", "full": "x", "folder/inner": "", "link": Path("folder"), "dangling": Path("none"),
    "boot/vmlinuz-1": "1", "boot/vmlinuz-2": "2", "boot/a b": "", "x/1/k": "", "x/2/other": "",
    "boot/grub/part.cfg": "echo $config_directory; set part=1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("test", "holds"),
    [
        ("-f /empty", True), ("-e /empty", True), ("-s /empty", False), ("-s /full", True),
        ("-d /empty", False), ("-e /folder", True), ("-d /folder", True), ("-d /folder/", True),
        ("-f /folder", False), ("-s /folder", False), ("-e /none", False), ("-f /none/x", False),
        ("-f ($root)/full", True), ("-f (hd0,gpt1)/full", True), ("-f (hd0,msdos1)/full", False),
        ("-e (hd1,1)/full", False), ("-d (hd0,1)/", True), ("-d /link", False),
        ("-e /link/inner", True), ("-e /dangling", True), ("-f full", True),
    ],
)  # fmt: skip
def test_files(test: str, holds: bool) -> None:
    assert run(f"if [ {test} ]; then echo yes; fi", FILES) == ["yes"] * holds


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/boot/vmlinuz-*", {"/boot/vmlinuz-1", "/boot/vmlinuz-2"}),
        ("/boot/vmlinuz-?", {"/boot/vmlinuz-1", "/boot/vmlinuz-2"}),
        ("($root)/x/*/k", {"(hd0,gpt1)/x/1/k"}),
        ("/boot/nothing*", {"/boot/nothing*"}),
        ("'/boot/vmlinuz-*'", {"/boot/vmlinuz-*"}),
        ("/boot/vmlinuz-\\*", {"/boot/vmlinuz-*"}),
        ("/boot/a*", {"/boot/a b"}),
        ("boot/*", {"boot/*"}),
        ("(hd0,*)", {"(hd0,gpt1)"}),
        ("(*)/full", {"(hd0,gpt1)/full"}),
    ],
)  # fmt: skip
def test_patterns(pattern: str, found: set[str]) -> None:
    assert set(run(f'for f in {pattern}; do echo "$f"; done', FILES)) == found
    if "'" not in pattern and "\\" not in pattern:
        assert set(run(f'set p="{pattern}"\nfor f in $p; do echo "$f"; done', FILES)) == found


def test_what_is_exported_is_seen_in_other_contexts() -> None:
    files = {"c.cfg": "echo $a.$b.$c; set a=9", "d.cfg": "echo $a.$b; set a=2"}
    script = "set a=1\nset b=1\nexport b\nconfigfile /c.cfg\necho $a\nsource /d.cfg\necho $a"
    assert run(script, files) == [".1.", "1", "1.1", "2"]


def test_config_directory() -> None:
    script = "echo $config_directory\nsource $prefix/part.cfg\necho $part"
    assert run(script, FILES) == ["(hd0,gpt1)/boot/grub"] * 2 + ["1"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("foobar /x", "grub.cfg:1: its command 'foobar' isn't understood here"),
        ("true\nif loopback loop /x.iso; then true; fi", "grub.cfg:2: its command 'loopback'"),
        ("read answer", "its command 'read'"),
        ("smbios --type 1 --set x", "its command 'smbios'"),
        ("[ a -nt b ]", "its test '-nt'"),
        ("[ 9999999999999 -eq 1 ]", "the number '9999999999999'"),
        ("regexp '[[.x.]]' x", "the regular expression"),
        ("regexp 'a" + "*" * 200 + "' a", "repeats more than 20 times"),
        ("regexp '(a*)*(a*)*(a*)*b' " + "a" * 60, "takes too long to match"),
        ("true { echo; }", "'true' with a block"),
        ("halt", "its script ends with halt"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(script: str, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        run(script)
    assert reason in str(caught.value)


def test_what_is_not_reached_is_no_matter() -> None:
    assert run("if false; then foobar; fi\nmenuentry a { foobar; }\necho ok") == ["ok"]


# --- beside the real GRUB -----------------------------------------------------------------------

SYNTAX = st.lists(
    st.sampled_from(
        ["if", "then", "fi", "else", "elif", "while", "until", "do", "done", "for", "in", "{", "}",
         "menuentry", "function", ";", "\n", " ", " ", "a", "'", '"', "$a", "${b}", "$", "[[", "]",
         "#", "\\", "\\\n", "x=1", "&", "!", '"$a"', "'q'", '"a\\"b"', '$"t"', "a;", "true\n",
         "a#b",
         "if a; then b; fi", "for x in a b; do c; done", "menuentry x { a; }", "${1a}", "$@",
         "function f { a; }\n", "while a; do b; done"]
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(SYNTAX.map("".join) | SYNTAX.map(" ".join))
def test_what_grub_script_check_refuses_is_refused(text: str) -> None:
    script = f"{text}\ntrue\n"  # GRUB's checker wants a command
    checked = subprocess.run(
        ["grub-script-check"], input=script.encode(), capture_output=True, check=False, timeout=20
    )
    try:
        parse(script, "x")
    except Unreadable:
        return
    assert checked.returncode == 0, checked.stderr


def emulated(script: str, folder: Path, *, ends: bool = True) -> str:
    """Run a script in GRUB's emulator; returns what it says, without blanks.

    :param ends: whether it ends by itself; else there is a menu.
    """
    folder.mkdir(exist_ok=True)
    end = "echo @@@\nexit\n" if ends else ""
    (folder / "grub.cfg").write_text(f"set timeout=0\necho @@@\n{script}\n{end}")
    done = subprocess.run(
        ["grub-emu", "-d", folder, "-r", "host"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
        env={"TERM": "dumb"},
    )
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", done.stdout.decode(errors="replace"))
    said = text.split("@@@")[1].split("\n")
    return "".join(
        "".join(line.split())
        for line in said
        if not line.strip().startswith(("error:", "Booting `", "Falling back to `"))
    )


MENU = """
menuentry 'A a' --id ida { echo 1 $chosen; exit; }
menuentry B --id idb { echo 2 $chosen; exit; }
submenu 'S>T' --id 'i>s' {
menuentry X --id x { echo 3 $chosen $v $w; exit; }
menuentry Y { echo 4 $chosen $default; exit; }
}
menuentry Bad { false; }
set v=1; set w=2; export w
"""


@pytest.mark.parametrize(
    ("default", "fallback"),
    [
        *((default, "") for default in (
            "", "1", "0x1", "01", " 1", "1 2", "9", "A a", "idb", "B", "none", "2", "2>1", "2>9",
            "S>>T>Y", "i>>s>x", "S>>T", "i>>s>Y>z", "1>0",
        )),
        ("3", "1"), ("3", "3 2"), ("Bad", "2"),
    ],
)  # fmt: skip
def test_the_default_is_that_of_grub_emu(default: str, fallback: str, tmp_path: Path) -> None:
    script = f"set default='{default}'\nset fallback='{fallback}'\n{MENU}"
    disk = tree({}, 1, "gpt")
    machine = Machine([disk], disk, "/boot/grub", Budget())
    said: list[str] = []

    def echo(call: Call) -> int:
        said.extend(call.arguments)
        return 0

    machine.interpreter._commands["echo"] = echo
    machine.configure(script, "/boot/grub/grub.cfg", "grub.cfg")
    with pytest.raises(Unreadable, match="ends with exit"):
        machine.show_menu()
    assert emulated(script, tmp_path / "emu", ends=False) == "".join("".join(said).split())


WORD = st.sampled_from(
    ["x", "y z", "$a", "$b", '"$a"', '"$a $b"', "'$a'", "$1", '"$@"', "$*", "$#", "$?", "a\\ b",
     "x$a", "${b}y", "''", "1", "2", "10", "0x10", "07", "-3", "foo2", "foo10", "a$1b", "=", "!"]
)  # fmt: skip
WORDS = st.lists(WORD, max_size=3).map(" ".join)
COMPARISON = st.sampled_from(
    ["=", "!=", "<", ">=", "-eq", "-ne", "-lt", "-gt", "-le", "-ge", "-pgt", "-plt"]
)
TEST = st.one_of(
    st.tuples(WORD, COMPARISON, WORD).map(lambda t: f"{t[0]} '{t[1]}' {t[2]}"),
    st.tuples(st.sampled_from(["-n", "-z", "!", ""]), WORD).map(" ".join),
)
TESTS = st.lists(TEST, min_size=1, max_size=3).flatmap(
    lambda tests: st.sampled_from([" -a ", " -o "]).map(lambda by: by.join(tests))
)
SIMPLE = st.one_of(
    WORDS.map(lambda w: f"echo {w} ."),
    st.tuples(st.sampled_from(["set a=", "b=", "set b="]), WORD).map("".join),
    TESTS.map(lambda t: f"[ {t} ]"),
    WORDS.map(lambda w: f"f {w}"),
    WORDS.map(lambda w: f"eval echo {w}"),
    st.sampled_from(
        ["true", "false", "! true", "! f", "unset a", "shift", "break", "continue", "break 2",
         "echo $?", "regexp --set=a 'o(.)' foo10", "setparams 1 2"]
    ),
)  # fmt: skip


def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, min_size=1, max_size=3).map("; ".join)
    return st.one_of(
        several,
        st.tuples(inner, several, several).map(
            lambda t: f"if {t[0]}; then {t[1]}; else {t[2]}; fi"
        ),
        st.tuples(WORDS, several).map(lambda t: f"for a in {t[0]}; do {t[1]}; done"),
    )


FUNCTION = st.sampled_from(
    ["set a=q", "return 2", "shift; echo $1", "if [ $# = 2 ]; then return 1; fi",
     "for b in 1 2; do return; done", "true"]
).map(lambda line: f"function f {{ echo f $# $* .; {line}; echo end $1 $?; }}\n")  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(FUNCTION, st.recursive(SIMPLE, compound, max_leaves=12))
def test_scripts_say_what_they_say_in_grub_emu(
    tmp_path_factory: pytest.TempPathFactory, function: str, script: str
) -> None:
    try:
        said = run(function + script)
    except Unreadable:
        return  # it may be no script, by the words that variables are put for
    assert emulated(function + script, tmp_path_factory.getbasetemp() / "emu") == "".join(
        "".join(line.split()) for line in said
    )
