"""What a disk's own boot loader would boot: GRUB's menu, systemd-boot's entries, or extlinux's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmcloner_boot.bls import bls_menu
from vmcloner_boot.choice import Choice, Found
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.extlinux import extlinux_menu
from vmcloner_boot.grub import GRUB_FOLDERS, grub_menu
from vmcloner_boot.menu_lst import legacy_menu
from vmcloner_boot.trees import Tree

LINKS = (
    ("/vmlinuz", "/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd"),
)
GRUB_FILES = tuple(
    f"{folder}/{name}" for folder in GRUB_FOLDERS for name in ("grubenv", "i386-pc", "x86_64-efi")
)
"""What GRUB has beside its menu."""
OTHER_FILES = (
    "/boot/boot.scr", "/boot/burg/burg.cfg", "/boot/lilo.conf", "/boot/limine.cfg",
    "/boot/limine.conf", "/boot/limine/limine.conf", "/boot/refind_linux.conf", "/boot.scr",
    "/EFI/Linux", "/EFI/refind/refind.conf", "/etc/elilo.conf", "/etc/lilo.conf",
    "/etc/zipl.conf", "/isolinux/isolinux.cfg", "/limine.cfg", "/limine.conf",
    "/loader/loader.conf", "/refind_linux.conf",
)  # fmt: skip
"""Menus of boot loaders that aren't read here."""
_HINT = "boot = 'disk' lets the guest's firmware look"


def choose(trees: Sequence[Tree], budget: Budget) -> Choice:
    """Return what a disk with these file systems boots.

    The first kind of menu that there is counts; one that is broken isn't passed over. Where there
    is no menu of any kind, links to a kernel count, and the choice says so.

    :param budget: what bounds the time that scripts may take.
    :raises Unreadable: there is none, it is broken, or a file that it names isn't there.
    :raises DeadlineExceeded: that takes too long.
    """
    choice = grub_menu(trees, budget)
    if choice is not None:
        return choice
    # A default subvolume or one named as a root file system is looked into, too.
    for look in (legacy_menu, _entries, extlinux_menu):
        for tree in trees:
            choice = look(tree, trees, budget)
            if choice is not None:
                return choice
    _check_without(trees, (*GRUB_FILES, *OTHER_FILES), "its disk has")
    for tree in trees:
        choice = _links(tree, trees)
        if choice is not None:
            return choice
    places = ", ".join(f"{tree.place} ({tree.system.kind})" for tree in trees) or "nothing readable"
    raise Unreadable(f"no boot menu and no kernel on its disk (looked at {places})", hint=_HINT)


def _entries(tree: Tree, trees: Sequence[Tree], _budget: Budget) -> Choice | None:
    """Return what systemd-boot chooses; with GRUB, its menu would have to say how they count."""
    choice = bls_menu(tree)
    if choice is not None:
        _check_without(trees, GRUB_FILES, "entries of the Boot Loader Specification, but")
    return choice


def _check_without(trees: Sequence[Tree], paths: Sequence[str], what: str) -> None:
    """Refuse a disk with these files of a boot loader, whose menu isn't there or isn't read.

    :param what: what there is instead.
    :raises Unreadable: there is one.
    """
    for tree in trees:
        for path in paths:
            if tree.find(path) is not None:
                raise Unreadable(
                    f"{what} no boot menu that can be read; {path} on {tree.place} belongs to a "
                    "boot loader that has one",
                    hint=_HINT,
                )


def _links(tree: Tree, trees: Sequence[Tree]) -> Choice | None:
    for kernel_path, initrd_path in LINKS:
        kernel = _linked(tree, kernel_path, trees)
        if kernel is None:
            continue
        initrd = _linked(tree, initrd_path, trees)
        if tree.folder("/etc") is None or not tree.system.uuid:
            raise Unreadable(
                f"no boot menu on its disk: nothing says which command line {kernel} needs",
                hint=_HINT,
            )
        return Choice(
            kernel=kernel,
            initrds=() if initrd is None else (initrd,),
            cmdline=f"root=UUID={tree.system.uuid} ro",
            source=f"{kernel}, for there is no boot menu",
        )
    return None


def _linked(tree: Tree, path: str, trees: Sequence[Tree]) -> Found | None:
    """Return the file that a path leads to, into a ``/boot`` of its own too."""
    node = tree.file(path)
    if node is not None:
        return Found(tree, node, path)
    target = tree.target(path)
    under = (target or "").lstrip("/")
    if under.startswith("boot/"):
        for other in _others(tree, trees):
            node = other.file(under.removeprefix("boot"))
            if node is not None:
                return Found(other, node, under.removeprefix("boot"))
    return None


def _others(tree: Tree, trees: Sequence[Tree]) -> Iterator[Tree]:
    return (other for other in trees if other is not tree)
