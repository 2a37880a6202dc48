"""What GRUB would boot from a disk: its configuration is found, and its script carried out.

Its manual: https://www.gnu.org/software/grub/manual/grub/grub.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from vmcloner_boot.choice import Choice
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.dissected import ROOTS
from vmcloner_boot.grub_commands import Booted, Loaded, Machine
from vmcloner_boot.trees import Tree

GRUB_FOLDERS = ("/boot/grub", "/boot/grub2", "/grub", "/grub2")


@attrs.frozen
class _Configuration:
    """A ``grub.cfg``.

    :param tree: the file system as GRUB sees it, ``path`` the path there.
    """

    tree: Tree
    path: str
    text: str
    platform: str = "pc"

    @property
    def source(self) -> str:
        """What messages call it."""
        return f"{self.path} on {self.tree.place}"


def grub_menu(trees: Sequence[Tree], budget: Budget) -> Choice | None:
    """Return what GRUB chooses on a disk with these file systems, None where there is no GRUB.

    :raises Unreadable: its configuration can't be carried out, or boots no kernel of Linux.
    """
    empty = None
    for configuration in _configurations(trees):
        try:
            choice = _choice(configuration, trees, budget)
        except Unreadable as error:
            message = f"{configuration.source}: {error.message}"
            raise Unreadable(message, hint=error.hint) from error
        if choice is not None:
            return choice
        empty = empty or configuration
    if empty is not None:
        raise Unreadable(f"{empty.source}: it has no entry")
    return None


def _configurations(trees: Sequence[Tree]) -> Iterator[_Configuration]:
    """Yield what GRUB may begin with; those of an EFI system partition come last."""
    for tree in trees:
        for folder in GRUB_FOLDERS:
            path = f"{folder}/grub.cfg"
            text = tree.text(path)
            if text is not None:
                _check_only(tree, trees)
                yield _seen_by_grub(tree, path, text, trees)
    for tree in trees:
        vendors = [name for name in tree.names("/EFI") if name.upper() != "BOOT"]
        for name in (*sorted(vendors), "BOOT"):
            path = f"/EFI/{name}/grub.cfg"
            text = tree.text(path)
            if text is not None:
                yield _Configuration(tree, path, text, "efi")


def _check_only(tree: Tree, trees: Sequence[Tree]) -> None:
    """Refuse a subvolume whose menu is one of several, where nothing says which GRUB reads.

    :raises Unreadable: so it is.
    """
    if not tree.subvolume or tree.default or tree.subvolume in ROOTS:
        return
    depth = tree.subvolume.count("/")
    for other in trees:
        beside = other.partition == tree.partition and other.subvolume not in ("", tree.subvolume)
        if not beside or other.subvolume.count("/") != depth:
            continue
        if any(other.file(f"{folder}/grub.cfg") is not None for folder in GRUB_FOLDERS):
            raise Unreadable(f"{tree.place} and {other.subvolume} both have a menu of GRUB's")


def _seen_by_grub(tree: Tree, path: str, text: str, trees: Sequence[Tree]) -> _Configuration:
    """Return a configuration on a subvolume with the path that it has from the top level."""
    if not tree.subvolume or (tree.default and "btrfs_relative_path" in text):
        return _Configuration(tree, path, text)
    top = next(t for t in trees if t.partition == tree.partition and not t.subvolume)
    return _Configuration(top, f"/{tree.subvolume}{path}", text)


def _choice(configuration: _Configuration, trees: Sequence[Tree], budget: Budget) -> Choice | None:
    """Carry a configuration out; None where it has no entry and boots nothing."""
    path = configuration.path
    machine = Machine(
        trees, configuration.tree, path.rpartition("/")[0], budget, configuration.platform
    )
    if configuration.tree.subvolume:
        machine.environment.put("btrfs_relative_path", "y")
        machine.environment.export("btrfs_relative_path")
    try:
        machine.configure(configuration.text, path, path)
        if not machine.menus.current:
            if machine.problem:
                raise Unreadable(machine.problem)
            return None
        machine.show_menu()
    except Booted:
        pass
    if machine.loaded is None:
        return None
    return _booted(machine.loaded, machine, configuration.source)


def _booted(loaded: Loaded, machine: Machine, source: str) -> Choice:
    title = machine.booted_entry
    if loaded.kernel is None:
        raise Unreadable(f"its entry {title!r} starts {loaded.other}")
    remark = machine.remark
    if loaded.missing:
        remark += f", without its initrd: {loaded.missing[0]} isn't there"
    return Choice(
        kernel=loaded.kernel,
        initrds=loaded.initrds,
        cmdline=loaded.cmdline,
        source=(f"entry {title!r} of {source}" if title else source) + remark,
    )
