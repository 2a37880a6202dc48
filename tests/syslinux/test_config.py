"""Configurations of PXELINUX and extlinux: what they boot, as PXELINUX 6.04 does.

Every answer here that isn't an error was given by PXELINUX 6.04 in QEMU; where it waits for a key
for ever, what Enter would do is the answer.
"""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core.errors import VmclonerError
from vmcloner_syslinux.choice import Kernel, LocalBoot, choose
from vmcloner_syslinux.config import ConfigError, parse

A = "LABEL a\nKERNEL k1\nAPPEND which=a\n"
B = "LABEL b\nKERNEL k2\nAPPEND which=b\n"
LOCAL = "LABEL local\nLOCALBOOT 0\n"
MENU = "UI menu.c32\nTIMEOUT 5\n"


def chosen(text: str | bytes, **files: str):
    def read(name: str) -> bytes | None:
        return files[name].encode() if name in files else None

    return choose(parse(text.encode() if isinstance(text, str) else text, read))


def which(text: str | bytes, **files: str) -> str:
    """Return kernel and command line, "local" for the disk."""
    found = chosen(text, **files)
    if isinstance(found, LocalBoot):
        return "local"
    return f"{found.kernel} {found.arguments}".strip()


def test_reads_a_label():
    found = chosen(
        """
        # a comment
        default Linux extra=1
        append global
        label Linux
          menu label ^Linux
          text help
             kernel not-this
          endtext
          KERNEL images/vmlinuz
          APPEND root=/dev/ram0 initrd=a.gz,b.gz quiet
          IPAPPEND 3
        """
    )
    assert found == Kernel(
        label="Linux",
        kernel="images/vmlinuz",
        arguments="root=/dev/ram0 quiet extra=1",
        initrds=("a.gz", "b.gz"),
        sysappend=3,
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("DEFAULT a\n" + A + B + "DEFAULT b\n", "k2 which=b"),  # the last DEFAULT counts
        ("DEFAULT a\n" + A + "LABEL a\nKERNEL k2\n", "k1 which=a"),  # the first of two labels
        ("DEFAULT a y=2\nLABEL a\nKERNEL k1 x=1\nAPPEND z\n", "k1 x=1 z y=2"),
        ("DEFAULT os two\nLABEL os one\nKERNEL k1\nLABEL os two\nKERNEL k2\n", "k1 two"),
        ("DEFAULT k1\nLABEL k1\nAPPEND x\n", "k1 x"),  # a label is its own kernel
        ("APPEND glob\nDEFAULT k1 x=1\n" + B, "k1 x=1"),  # nothing is added to a bare kernel
        ("DEFAULT a\nLABEL a\nKERNEL b\n" + B, "b"),  # KERNEL never names a label
        ("DEFAULT A\n" + A, "A"),  # labels have a case
        ("default a\nlAbEl a\nkernel k1\nappend x\n", "k1 x"),  # keywords have none
        ("DEFAULT a\n" + A + "MENU DISABLE\n", "a"),  # no label then
        ("DEFAULT a\n" + A + "MENU HIDE\n", "k1 which=a"),
        ("DEFAULT a\nLABEL a\nLOCALBOOT 0\nKERNEL k1\n", "k1"),  # the last of its kind counts
        ("DEFAULT a\nLABEL a\nKERNEL k1\nLOCALBOOT 0\n", "local"),
        ("DEFAULT a\nLABEL\nKERNEL k2\nLABEL a\nKERNEL k1\n", "k1"),
        ("DEFAULT a\nKERNEL k2\n" + A + "MENU SEPARATOR\nKERNEL k2\n", "k1 which=a"),
        ('DEFAULT a\nLABEL a\nKERNEL k1\nAPPEND a="b  c"  d\t e\n', 'k1 a="b  c"  d  e'),
        ("DEFAULT a\nLABEL a\nCOM32 linux.c32\nAPPEND k1 q=1\n", "k1 q=1"),
    ],
)
def test_labels(text, answer):
    assert which(text) == answer


@pytest.mark.parametrize(
    ("append", "arguments"),
    [("", "global"), ("APPEND -", ""), ("APPEND", ""), ("APPEND own", "own")],
)
def test_a_labels_append_replaces_the_global_one(append, arguments):
    text = f"APPEND global\nDEFAULT a\nLABEL a\nLINUX k\n{append}\n"
    assert chosen(text).arguments == arguments


@pytest.mark.parametrize("ends", ["MENU SEPARATOR", "MENU BEGIN x", "MENU END"])
def test_no_label_is_open_behind(ends):
    text = f"DEFAULT a\nIPAPPEND 2\n{A}{ends}\nAPPEND no\nINITRD no\nIPAPPEND 0\nMENU DEFAULT\n"
    found = chosen(text)
    assert (found.arguments, found.initrds, found.sysappend) == ("which=a", (), 2)


def test_what_is_global_counts_for_the_labels_that_end_behind_it():
    text = "DEFAULT b\nLABEL a\nKERNEL k1\nMENU SEPARATOR\nAPPEND late\nSYSAPPEND 2\n"
    assert chosen(text.replace("DEFAULT b", "DEFAULT a")).arguments == ""
    found = chosen(text + "LABEL b\nKERNEL k2\n")
    assert (found.arguments, found.sysappend) == ("late", 2)


@pytest.mark.parametrize(
    ("text", "initrds"),
    [
        ("KERNEL k1\nAPPEND x initrd=i1,i2 y\n", ("i1", "i2")),
        ("KERNEL k1\nINITRD i1\nAPPEND x\n", ("i1",)),
        ("KERNEL k1\nINITRD i1\nINITRD i2\n", ("i2",)),
        ("KERNEL k1\nINITRD i1\nAPPEND x initrd=i2\n", ("i2",)),  # the first on the line
        ("KERNEL k1\nAPPEND initrd=i1 x initrd=i2,i3\n", ("i1",)),
    ],
)
def test_initrds(text, initrds):
    found = chosen(f"INITRD no\nDEFAULT a\nLABEL a\n{text}")
    assert found.initrds == initrds
    assert "initrd" not in found.arguments


@pytest.mark.parametrize(
    ("value", "bits"), [("3", 3), ("0x3", 3), ("03", 3), ("x", 0), ("", 0), ("2 and more", 2)]
)
def test_sysappend(value, bits):
    assert chosen(f"DEFAULT a\n{A}SYSAPPEND {value}\n").sysappend == bits
    assert chosen(f"SYSAPPEND {value}\nDEFAULT k1\n").sysappend == bits


# --- who is asked, and who answers --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("PROMPT 1\nTIMEOUT 5\nDEFAULT a\nONTIMEOUT local\n" + A + LOCAL, "local"),
        ("PROMPT 1\nTIMEOUT 5\nDEFAULT a\n" + A + LOCAL, "k1 which=a"),
        ("PROMPT 0\nTIMEOUT 5\nDEFAULT a\nONTIMEOUT local\n" + A + LOCAL, "k1 which=a"),
        ("PROMPT 1\nNOESCAPE 1\nTIMEOUT 5\nDEFAULT a\nONTIMEOUT local\n" + A + LOCAL, "k1 which=a"),
        ("TIMEOUT 5\nONTIMEOUT b\n" + A + B, "k2 which=b"),
        (MENU + "ONTIMEOUT b more\n" + A + B, "k2 which=b more"),
        (MENU + "PROMPT 1\n" + A + B, "k1 which=a"),  # UI doesn't prompt
        ("DEFAULT menu.c32\nTIMEOUT 5\nONTIMEOUT b\n" + A + B, "k2 which=b"),
        ("DEFAULT menu\n" + A + B, "k1 which=a"),
        ("DEFAULT vesamenu\n" + A + B, "k1 which=a"),
        ("DEFAULT a\nUI menu.c32\nDEFAULT b x\n" + A + B, "k2 which=b"),  # UI wins; no arguments
        (MENU + "DEFAULT b\n" + A + "MENU DEFAULT\n" + B, "k2 which=b"),
        ("DEFAULT m\nLABEL m\nKERNEL menu.c32\n" + A + B + "MENU DEFAULT\n", "k2 which=b"),
        ("DEFAULT m\nLABEL m\nCOM32 menu\n" + A + "MENU DEFAULT\n", "k1 which=a"),
        ("ALLOWOPTIONS 0\nDEFAULT a x=1\n" + A, "k1 which=a x=1"),
    ],
)
def test_prompts_and_menus(text, answer):
    assert which(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (A + "MENU DEFAULT\n" + B + "MENU DEFAULT\n", "k2 which=b"),
        (A + "MENU HIDE\n" + B, "k2 which=b"),
        (A + "MENU HIDE\nMENU DEFAULT\n" + B, "k2 which=b"),
        (A + "MENU DISABLE\n" + B, "k2 which=b"),
        (A + B + "MENU DISABLE\nMENU DEFAULT\n", "k1 which=a"),
        ("MENU SEPARATOR\n" + A + B, "k1 which=a"),
        ("MENU SEPARATOR\n" + A + B + "MENU DEFAULT\n", "k2 which=b"),
        (LOCAL + "MENU BEGIN x\n" + A + "MENU DEFAULT\nMENU END\n", "local"),
        ("MENU BEGIN x\n" + A + "MENU END\n" + B + "MENU DEFAULT\n", "k2 which=b"),
        (A + "MENU BEGIN x\nMENU START\n" + B + "MENU END\n", "k2 which=b"),
        (A + "MENU BEGIN x\n" + B + "MENU END\nDEFAULT b\n", "k2 which=b"),
        ("MENU END\nMENU END\n" + A, "k1 which=a"),
        ("MENU BEGIN x\nONTIMEOUT b\nMENU END\n" + A + B, "k2 which=b"),  # for the whole file
        ("MENU HIDDEN\n" + A + B + "MENU DEFAULT\n", "k2 which=b"),
    ],
)
def test_menus(text, answer):
    assert which(MENU + text) == answer


@pytest.mark.parametrize(
    "first",
    ["MENU BEGIN x\n" + A + "MENU END\n", "LABEL q\nMENU QUIT\n", "LABEL g\nMENU GOTO x\n"],
)
def test_a_menu_that_leads_on_boots_nothing(first):
    with pytest.raises(ConfigError, match=r"leads (to|out)"):
        chosen(MENU + first + B)
    with pytest.raises(ConfigError, match="leads to a submenu"):
        chosen(MENU + A + "MENU BEGIN x\nMENU DEFAULT\n" + B + "MENU END\n")


@pytest.mark.parametrize(
    "entry",
    ["LOCALBOOT 0", "LOCALBOOT -1", "LOCALBOOT", "KERNEL chain.c32\nAPPEND hd0",
     "COM32 boot/chain.c32\nAPPEND hd0 1"],
)  # fmt: skip
def test_local_boot(entry):
    assert chosen(f"DEFAULT a\nLABEL a\n{entry}\n") == LocalBoot(label="a")


@pytest.mark.parametrize(
    "kernel",
    ["pxelinux.0", "memtest.bin", "x/reboot.c32", "dos.img", "chain.c32"],
)
def test_other_programs_are_refused_by_name(kernel):
    with pytest.raises(ConfigError, match=rf"label a: {kernel} is no Linux kernel"):
        chosen(f"DEFAULT a\nLABEL a\nKERNEL {kernel}\nAPPEND somewhere\n")


# --- files that name others ---------------------------------------------------------------------


def test_includes_are_read_in_their_place():
    assert which("DEFAULT a\nINCLUDE one\n", one="MENU INCLUDE two\n", two=A) == "k1 which=a"
    assert which("INCLUDE one\nDEFAULT a\nLABEL a\nKERNEL k1\n", one="APPEND x\n") == "k1 x"
    assert which("DEFAULT a\nLABEL a\nKERNEL k1\nINCLUDE one\n", one="APPEND x\n") == "k1 x"
    assert which("INCLUDE no\nMENU INCLUDE neither x\nDEFAULT a\n" + A) == "k1 which=a"


@pytest.mark.parametrize("keyword", ["INCLUDE", "MENU INCLUDE"])
def test_an_include_with_a_title_is_a_submenu(keyword):
    text = f"{MENU}{B}{keyword} one titled so\nMENU DEFAULT\n"
    assert which(text, one=A + "MENU DEFAULT\n") == "k2 which=b"
    text = f"{MENU}{B}{keyword} one\nMENU SEPARATOR\n"
    assert which(text, one=A + "MENU DEFAULT\n") == "k1 which=a"
    assert which(f"{MENU}{B}{keyword} one\nMENU DEFAULT\n{A}", one="\n") == "k2 which=b"


def test_a_menu_that_an_include_leaves_open():
    text = f"{MENU}{B}INCLUDE one\nLABEL c\nKERNEL k3\nMENU DEFAULT\n"
    assert which(text, one="MENU BEGIN x\n" + A) == "k2 which=b"


def test_a_menu_of_another_file():
    assert which("UI menu.c32 other\n" + A, other=B) == "k2 which=b"
    assert which("UI menu.c32 ~\n" + A + B + "MENU DEFAULT\n") == "k2 which=b"
    text = "DEFAULT m\nLABEL m\nKERNEL menu.c32\nAPPEND other\n" + A
    assert which(text, other=B) == "k2 which=b"
    mine = "APPEND x\nSYSAPPEND 2\nONTIMEOUT a\n"  # and nothing of it counts there
    found = chosen(mine + text, other="DEFAULT a\nLABEL b\nKERNEL k2\n" + A)
    assert found == Kernel(label="b", kernel="k2")


def test_another_configuration_and_its_folder():
    text = "DEFAULT m\nLABEL m\nCONFIG other\n" + A
    assert which(text, other="DEFAULT b\n" + B) == "k2 which=b"
    files = {"other": "INCLUDE i\nDEFAULT b\n", "d/i": "LABEL b\nKERNEL k2\nINITRD i\n"}
    text = "DEFAULT m\nLABEL m\nCONFIG other\nAPPEND d/\n"
    assert chosen(text, **files) == Kernel(label="b", kernel="d/k2", initrds=("d/i",))
    with pytest.raises(ConfigError, match="no configuration other"):
        chosen(text)


@pytest.mark.parametrize(
    "text",
    ["INCLUDE x\nINCLUDE x\n", "DEFAULT a\nLABEL a\nCONFIG x\n", "DEFAULT menu.c32 x\n",
     "DEFAULT a\nLABEL a\nKERNEL menu.c32\n", "MENU INCLUDE x y\n"],
)  # fmt: skip
def test_what_goes_round_in_a_circle_is_an_error(text):
    with pytest.raises(ConfigError):
        chosen(text, x=text)


# --- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (b"menu title \x07Installer\nDEFAULT a\nLABEL a\nKERNEL k1\n", "k1"),
        (b"DEFAULT a\x07\nLABEL a\x07b\nKERNEL k1\x07\n", "k1"),
        (b"DEFAULT a\n\x07DEFAULT b\nLABEL a\nKERNEL k1\n", "k1"),
        (b"DEFAULT a\rjunk\r\nLABEL a\r\nKERNEL k1\r\n", "k1"),
        (b"DEFAULT a\nLABEL a\nKERNEL k1\nTEXT HELP\nAppend no\nENDTEXT\nAPPEND x\n", "k1 x"),
        (b"DEFAULT a\nLABEL a\nKERNEL k1\nTEXT foo\nAPPEND no\nendtext\nAPPEND x\n", "k1 x"),
        (b"DEFAULT a\nLABEL a\nKERNEL k1\nTEXT HELP\nLABEL b\n", "k1"),
    ],
)
def test_control_characters_and_help_are_passed_over(text, answer):
    assert which(text) == answer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "nothing to boot"),
        (A.encode(), "nothing to boot"),
        (b"DEFAULT a\0\n", "NUL"),
        (b"DEFAULT a\n" + b"x" * 5000, r"configuration:2: a line of 5000 bytes"),
        (b"DEFAULT k1 a\x1b[2J\n", "control character"),
        (b"DEFAULT k1 \xff\n", "control character"),
        (b"x\n" * 600_000, "more than 1048576 bytes"),
        (b"IMPLICIT 0\nDEFAULT k1\n", "k1: no such label"),
        (b"DEFAULT menu\n", "no LABEL to boot"),
        (b"NOESCAPE 1\nONTIMEOUT k1\n", "nothing to boot"),
        (b"DEFAULT k initrd=" + b",".join([b"i"] * 17), "17 initrds"),
        (b"DEFAULT k initrd=i,\n", "initrd without a name"),
    ],
)
def test_what_makes_no_sense_is_said(text, message):
    with pytest.raises(ConfigError, match=message):
        chosen(text)


def test_unknown_keywords_warn():
    config = parse(b"FROBNICATE 1\nDEFAULT k\nF1 help.txt\nTIMEOUT 5\n", lambda _name: None)
    assert config.warnings == ["configuration:1: unknown keyword 'frobnicate'"]


WORDS = st.sampled_from(
    ["default", "label", "kernel", "append", "initrd", "include", "menu", "menu include", "config",
     "menu default", "localboot", "ipappend", "text help", "endtext", "ui", "ontimeout", "a", "-",
     "menu.c32", "chain.c32", "hd0", "initrd=", "::", "\t", "3", "\x07", "\u00e9", "../../x",
     "menu begin", "menu end", "menu hide", "menu separator", "menu goto", "prompt 1", "com32"]
)  # fmt: skip
LINES = st.lists(st.lists(WORDS, max_size=5).map(" ".join), max_size=12).map("\n".join)


@given(st.one_of(LINES.map(str.encode), st.binary(max_size=400)), LINES)
def test_any_text_is_a_choice_or_an_error(text, included):
    try:
        found = choose(parse(text, lambda _name: included.encode()))
    except VmclonerError as error:
        assert str(error).isprintable()
        return
    assert isinstance(found, Kernel | LocalBoot)


@pytest.mark.parametrize(
    "lines",
    ["LABEL l%d\nKERNEL k\nAPPEND " + "a " * 500, "LABEL l\nLABEL l\nLABEL l%d\nKERNEL k\n",
     "MENU BEGIN\nMENU DEFAULT\nMENU SEPARATOR\nLABEL l%d\nKERNEL k\n"],
)  # fmt: skip
def test_a_long_configuration_takes_no_long_time(lines):
    text = "DEFAULT l0\n" + "\n".join(lines % n for n in range(900_000 // len(lines)))
    began = time.process_time()
    assert choose(parse(text.encode(), lambda _name: None)).label == "l0"
    assert time.process_time() - began < 30  # linear takes a fraction of a second
