"""What GRUB Legacy chooses in its menu.lst."""

from collections.abc import Mapping

import pytest

from tests.boot.memory import tree
from vmcloner_boot.choice import Choice
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.loaders import choose
from vmcloner_boot.trees import Tree

UUID = "21111111-2222-4333-8444-555555555555"


def disk(text: str, path: str = "boot/grub/menu.lst", **more: str) -> list[Tree]:
    files: dict[str, object] = {"boot/k1": "1", "boot/i1": "i", path: text, **more}
    return [
        tree({"swap": ""}, 1, "msdos"),
        tree(files, 2, "msdos"),
        tree({"k2": "2", "i2": ""}, 5, "msdos", UUID),
    ]


def menu(text: str, path: str = "boot/grub/menu.lst") -> Choice:
    return choose(disk(text, path), Budget())


ENTRY = "title One\nroot (hd0,1)\nkernel /boot/k1 root=/dev/xvda2 ro\ninitrd /boot/i1\n"
OTHER = "title Two\nroot (hd0,4)\nkernel /k2 two\n"


@pytest.mark.parametrize(
    "path",
    ["boot/grub/menu.lst", "boot/grub/grub.conf", "grub/menu.lst", "grub/grub.conf"],
)
def test_where_it_is(path: str) -> None:
    choice = menu(f"# a comment\ndefault=0\ntimeout=5\nhiddenmenu\n\n{ENTRY}", path)
    assert str(choice.kernel) == "/boot/k1 on partition 2"
    assert [found.path for found in choice.initrds] == ["/boot/i1"]
    assert choice.cmdline == "root=/dev/xvda2 ro"
    assert choice.source == f"entry 'One' of /{path} on partition 2"


@pytest.mark.parametrize(
    ("head", "kernel"),
    [
        ("default 1", "/k2"), ("default\t1", "/k2"), ("default = 1  # the second", "/k2"),
        ("fallback 1 # if 0 fails", "/boot/k1"),
        ("default 9", "/boot/k1"),
        ("", "/boot/k1"), ("default saved", "/boot/k1"), ("fallback 1", "/boot/k1"),
    ],
)  # fmt: skip
def test_the_default(head: str, kernel: str) -> None:
    assert menu(f"{head}\n{ENTRY}{OTHER}").kernel.path == kernel


def test_the_default_that_was_saved() -> None:
    files = {"boot/grub/default": "1\n#\n#\n"}
    choice = choose(disk(f"default saved\n{ENTRY}{OTHER}savedefault\n", **files), Budget())
    assert choice.kernel.path == "/k2"


@pytest.mark.parametrize(
    ("lines", "kernel"),
    [
        ("kernel (hd0,1)/boot/k1", "/boot/k1"),
        ("kernel --no-mem-option --type=linux /boot/k1 x", "/boot/k1"),
        (f"uuid {UUID}\nkernel /k2\nquiet\nboot", "/k2"),
        ("find --set-root /k2\nkernel /k2", "/k2"),
        ("rootnoverify (hd0,4)\nkernel /k2", "/k2"),
        ("root (hd0,4)\nkernel /k2\nboot\nchainloader +1", "/k2"),
    ],
)  # fmt: skip
def test_entries(lines: str, kernel: str) -> None:
    assert menu(f"title X\n{lines}\n").kernel.path == kernel


def test_a_line_that_goes_on() -> None:
    choice = menu("title X\nkernel /boot/k1 a \\\n  b \\\n\tc\ninitrd /boot/i1\n")
    assert choice.cmdline == "a b c"


def test_another_menu() -> None:
    files = {"boot/other.lst": f"default 1\n{ENTRY}{OTHER}"}
    assert choose(disk("title X\nconfigfile /boot/other.lst\n", **files), Budget()).cmdline == "two"
    with pytest.raises(Unreadable, match="more than 8 menus lead from one to another"):
        menu("title X\nconfigfile /boot/grub/menu.lst\n")


def test_fallback() -> None:
    choice = menu(f"default 0\nfallback 1 2\ntitle A\nkernel /gone\ntitle B\nroot (hd9)\n{OTHER}")
    assert choice.kernel.path == "/k2"
    assert "for its entry 'A': /gone isn't a file on partition 2" in choice.source


def test_a_disk_without_partitions() -> None:
    files: Mapping[str, object] = {"boot/grub/menu.lst": ENTRY, "boot/k1": "", "boot/i1": ""}
    assert choose([tree(files)], Budget()).kernel.path == "/boot/k1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("default 0\n", "it has no entry"),
        ("title A\nkernel /gone\n", "/gone isn't a file on partition 2"),
        ("title A\nkernel /boot/k1\ninitrd /gone\n", "/gone isn't a file"),
        ("title A\nroot (hd1,0)\nkernel /boot/k1\n", "isn't on its disk or can't be read"),
        ("title A\nkernel /boot/xen.gz\nmodule /boot/k1\n", "/boot/xen.gz isn't a file"),
        ("title A\nkernel /boot/k1\nmodule /boot/k1\n", "has module, and isn't Linux alone"),
        ("title W\nrootnoverify (hd0,0)\nchainloader +1\n", "has chainloader"),
        ("title A\nfrobnicate\n", "/boot/grub/menu.lst:2: its command 'frobnicate'"),
        ("title A\nkernel --type=netbsd /boot/k1\n", "kernel --type=netbsd"),
        ("default x\ntitle A\n", "'x' isn't the number of an entry"),
        ("title A\ncolor x\n", "it names no kernel"),
        ("title A\n" * 1001, "more than 1000 entries"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        menu(text)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("/boot/grub/menu.lst on partition 2: ")
