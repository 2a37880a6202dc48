"""What a disk's own boot loader would boot: BLS entries, GRUB's menu, extlinux's, or links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmcloner_boot.choice import Choice, Found
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.extlinux import extlinux_menu
from vmcloner_boot.grub import bls_menu, grub_menu
from vmcloner_boot.trees import Tree

LINKS = (
    ("/vmlinuz", "/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd"),
)


def choose(trees: Sequence[Tree], budget: Budget) -> Choice:
    """Return what a disk with these file systems boots.

    The first kind of menu that there is counts; one that is broken isn't passed over.

    :param budget: what bounds the time that scripts may take.
    :raises Unreadable: there is none, it is broken, or a file that it names isn't there.
    :raises DeadlineExceeded: that takes too long.
    """
    for look in (bls_menu, grub_menu, extlinux_menu, _links):
        for tree in trees:
            choice = look(tree, trees, budget)
            if choice is not None:
                return choice
    places = ", ".join(f"{tree.place} ({tree.system.kind})" for tree in trees) or "nothing readable"
    raise Unreadable(
        f"no boot menu and no kernel on its disk (looked at {places})",
        hint="boot = 'disk' lets the guest's firmware look",
    )


def _links(tree: Tree, trees: Sequence[Tree], _budget: Budget) -> Choice | None:
    for kernel_path, initrd_path in LINKS:
        kernel = _linked(tree, kernel_path, trees)
        if kernel is None:
            continue
        initrd = _linked(tree, initrd_path, trees)
        is_root = tree.folder("/etc") is not None and tree.system.uuid
        return Choice(
            kernel=kernel,
            initrds=() if initrd is None else (initrd,),
            cmdline=f"root=UUID={tree.system.uuid} ro" if is_root else "",
            source=str(kernel),
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
