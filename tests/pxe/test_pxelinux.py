"""PXELINUX's configurations: what they mean, and that nothing in them can hurt."""

import time
import uuid
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_pxe.errors import NetbootError
from vmcloner_pxe.pxelinux import ConfigError, Kernel, LocalBoot, choose, parse, search_names


def none(name: str) -> bytes:
    raise ConfigError(f"included {name}")


def chosen(text: str, include=none):
    return choose(parse(text.encode(), include))


def test_searches_in_the_order_of_the_manual():
    machine = uuid.UUID("B8945908-D6A6-41A9-611D-74A6AB80B83D")
    names = search_names("AA:00:86:E2:35:72", IPv4Address("134.226.53.114"), machine)
    assert names[0] == "pxelinux.cfg/b8945908-d6a6-41a9-611d-74a6ab80b83d"
    assert names[1] == "pxelinux.cfg/01-aa-00-86-e2-35-72"
    assert names[2:10] == tuple(f"pxelinux.cfg/{'86E23572'[:n]}" for n in range(8, 0, -1))
    assert names[10:] == ("pxelinux.cfg/default",)


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
    ("append", "arguments"), [("", "global"), ("APPEND -", ""), ("APPEND own", "own")]
)
def test_a_labels_append_replaces_the_global_one(append, arguments):
    text = f"APPEND global\nDEFAULT a\nLABEL a\nLINUX k\n{append}\n"
    assert chosen(text).arguments == arguments


def test_default_without_such_a_label_is_a_kernel():
    found = chosen("DEFAULT vmlinuz initrd=i root=x\nLABEL other\nKERNEL o\n")
    assert (found.kernel, found.initrds, found.arguments) == ("vmlinuz", ("i",), "root=x")


@pytest.mark.parametrize("menu", ["DEFAULT menu", "DEFAULT x/vesamenu.c32", "UI menu.c32", ""])
@pytest.mark.parametrize(
    ("more", "kernel"),
    [("ONTIMEOUT c", "3"), ("ONTIMEOUT c\nLABEL d\nMENU DEFAULT\nKERNEL 4", "3"), ("", "1"),
     ("LABEL d\nMENU DEFAULT\nKERNEL 4", "4")],
)  # fmt: skip
def test_a_menu_nobody_sits_at_goes_on_by_itself(menu, more, kernel):
    text = f"{menu}\nLABEL a\nKERNEL 1\nLABEL c\nKERNEL 3\n{more}\n"
    assert chosen(text).kernel == kernel


@pytest.mark.parametrize(
    "entry",
    ["LOCALBOOT 0", "LOCALBOOT -1", "KERNEL chain.c32\nAPPEND hd0",
     "COM32 boot/chain.c32\nAPPEND hd0 1"],
)  # fmt: skip
def test_local_boot(entry):
    assert chosen(f"DEFAULT a\nLABEL a\n{entry}\n") == LocalBoot(label="a")


@pytest.mark.parametrize(
    "kernel",
    ["pxelinux.0", "memtest.bin", "x/reboot.c32", "dos.img", "CHAIN.C32"],
)
def test_other_programs_are_refused_by_name(kernel):
    with pytest.raises(ConfigError, match=rf"label a: {kernel} is no Linux kernel"):
        chosen(f"DEFAULT a\nLABEL a\nKERNEL {kernel}\nAPPEND somewhere\n")


def test_includes_files_wherever_it_is_asked_to():
    files = {"one": b"MENU INCLUDE two tag\n", "two": b"LABEL a\nKERNEL k\n"}
    assert chosen("DEFAULT a\nINCLUDE one\n", lambda name: files[name]).kernel == "k"


def test_includes_that_go_round_in_a_circle_are_an_error():
    with pytest.raises(ConfigError, match="circle"):
        chosen("INCLUDE x\n", lambda _name: b"INCLUDE x\nINCLUDE x\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "nothing to boot"),
        (b"# only\n", "nothing to boot"),
        (b"DEFAULT a\0\n", "NUL"),
        (b"DEFAULT a\n" + b"x" * 5000, r"configuration:2: a line of 5000 bytes"),
        (b"DEFAULT \x1b[2J\n", "control character"),
        (b"x\n" * 600_000, "more than 1048576 bytes"),
        (b"DEFAULT a\nLABEL a\n", "label a: no KERNEL"),
        (b"DEFAULT menu\n", "no LABEL to boot"),
        (b"LABEL a\nKERNEL k\nSYSAPPEND x\n", "not a number"),
        (b"DEFAULT k initrd=" + b",".join([b"i"] * 17), "17 initrds"),
    ],
)
def test_what_makes_no_sense_is_said(text, message):
    with pytest.raises(ConfigError, match=message):
        choose(parse(text, none))


def test_unknown_keywords_warn():
    assert parse(b"FROBNICATE 1\nDEFAULT k\n", none).warnings == [
        "configuration:1: unknown keyword 'frobnicate'"
    ]


WORDS = st.sampled_from(
    ["default", "label", "kernel", "append", "initrd", "include", "menu", "menu include",
     "menu default", "localboot", "ipappend", "text help", "endtext", "ui", "ontimeout", "a", "-",
     "menu.c32", "chain.c32", "hd0", "initrd=", "::", "\t", "3", "\x07", "\u00e9", "../../x"]
)  # fmt: skip
LINES = st.lists(st.lists(WORDS, max_size=5).map(" ".join), max_size=12).map("\n".join)


@given(st.one_of(LINES.map(str.encode), st.binary(max_size=400)), LINES)
def test_any_text_is_a_choice_or_an_error(text, included):
    try:
        found = choose(parse(text, lambda _name: included.encode()))
    except NetbootError as error:
        assert str(error).isprintable()
        return
    assert isinstance(found, Kernel | LocalBoot)


def test_a_long_configuration_takes_no_long_time():
    text = b"".join(b"LABEL l%d\nKERNEL k\nAPPEND %s\n" % (n, b"a " * 500) for n in range(1000))
    began = time.process_time()
    assert choose(parse(text, none)).label == "l0"
    assert time.process_time() - began < 30  # linear takes a fraction of a second
