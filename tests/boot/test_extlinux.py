"""extlinux's menus on a disk: its files, its includes, and what is refused."""

from pathlib import Path

import pytest

from tests.boot.memory import tree
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.extlinux import extlinux_menu
from vmcloner_boot.loaders import choose

KERNELS = {"boot/extlinux/a": "A", "boot/extlinux/b": "B", "boot/extlinux/i": "I"}
LINK = {"boot/vmlinuz-9": "K", "vmlinuz": Path("boot/vmlinuz-9")}


def chosen(text: str, **files: str):
    more = {f"boot/extlinux/{name}": content for name, content in files.items()}
    disk = tree({"boot/extlinux/extlinux.conf": text, **KERNELS, **LINK, **more}, 1)
    return choose([disk], Budget())


def test_includes_are_found_beside_the_configuration():
    included = "LABEL l0\n LINUX a\n APPEND root=/dev/vda1 ro\n INITRD i\n"
    for line in ("INCLUDE linux", "MENU INCLUDE linux", "INCLUDE /boot/extlinux/linux"):
        found = chosen(f"DEFAULT l0\n{line}\n", linux=included)
        assert found.kernel.path == "/boot/extlinux/a"
        assert [part.path for part in found.initrds] == ["/boot/extlinux/i"]
        assert found.cmdline == "root=/dev/vda1 ro"
    assert chosen("INCLUDE gone\nDEFAULT a\nLABEL a\nLINUX a\n").kernel.path == "/boot/extlinux/a"


@pytest.mark.parametrize(
    "text",
    [
        "DEFAULT a\nLABEL a\nLINUX a\nLABEL b\nLINUX b\nDEFAULT b\n",
        "DEFAULT menu.c32\nTIMEOUT 50\nONTIMEOUT b\nLABEL a\nLINUX a\nLABEL b\nLINUX b\n",
        "DEFAULT b\nLABEL b\nLINUX b\nTEXT HELP\nAppend nothing\nLinux of today\nENDTEXT\n",
        "DEFAULT b\n",
    ],
)
def test_the_rules_of_syslinux_hold(text):
    found = chosen(text)
    assert (found.kernel.path, found.cmdline) == ("/boot/extlinux/b", "")


def test_names_lead_through_folders():
    found = chosen("DEFAULT k\nLABEL k\nLINUX ../vmlinuz-9\nINITRD /boot/extlinux/i\n")
    assert (found.kernel.node.size, found.initrds[0].node.size) == (1, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names nothing to boot"),
        ("LABEL a\nLINUX a\n", "names nothing to boot"),
        ("DEFAULT a\nLABEL a\nLOCALBOOT 0x80\n", "starts another boot loader"),
        ("DEFAULT a\nLABEL a\nCOM32 chain.c32\nAPPEND hd1\n", "starts another boot loader"),
        ("DEFAULT gone\n", "/boot/extlinux/gone isn't a file on partition 1"),
        ("INCLUDE extlinux.conf\n", "circle"),
        ("DEFAULT a\0\n", "NUL"),
    ],
)
def test_a_menu_that_boots_nothing_isnt_passed_over(text, reason):
    with pytest.raises(Unreadable, match=rf"extlinux.conf on partition 1: .*{reason}"):
        chosen(text)


def test_where_configurations_lie():
    for folder in ("boot/extlinux", "boot/syslinux", "boot", "extlinux", "syslinux", ""):
        for name in ("extlinux.conf", "syslinux.cfg"):
            path = f"{folder}/{name}".lstrip("/")
            disk = tree({path: "DEFAULT k\n", f"{folder}/k": "K"}, 1)
            found = extlinux_menu(disk, [disk], Budget())
            assert found is not None
            assert found.kernel.path == f"/{folder}/k".replace("//", "/")
    assert extlinux_menu(tree({"etc/x": ""}), [], Budget()) is None
