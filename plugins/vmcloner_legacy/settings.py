"""``vmcloner.conf`` as settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmcloner_legacy.xl_cfg import Assignment, Note, read_conf

_WHY = {
    "sourcelv": "a template's image.path names what is cloned",
    "defaultbridge": "a template's [[nics]] name the bridge",
    "vmimagepath": "the pool has one folder, that of imagepath",
    "logpath": "logs are in the state folder: runs/ and console/",
    "binpath": "there are no programs beside vmcloner",
    "domainpath": "domains are libvirt's: nothing is kept in files",
    "templatepath": "templates are found in ./templates, ~/.config/vmcloner/templates and "
    "/etc/vmcloner/templates",
    "forks": "each backend says how much it does at once; --jobs lowers that",
}


def convert(path: Path) -> tuple[dict[str, Any], list[Note]]:
    """Return the settings that an old ``vmcloner.conf`` stands for, and what isn't carried over."""
    pairs, notes = read_conf(path)
    said = {assignment.key: assignment for assignment in pairs}
    storage: dict[str, Any] = {}
    group, images = said.pop("sourcevg", None), said.pop("imagepath", None)
    if group is not None:
        storage["lvm-thin"] = {"vg": str(group.value)}
    if images is not None:
        folder = Path(str(images.value))
        if folder.is_absolute():
            storage["files"] = {"path": str(folder)}
        else:
            notes.append(_lost(images, "a pool needs an absolute path"))
    notes += [_lost(item, _WHY.get(key, "isn't known")) for key, item in said.items()]
    table: dict[str, Any] = {"defaults": {"hypervisor": "xen"}}
    if storage:
        table["defaults"]["storage"] = next(iter(storage))
    table["hosts"] = {"local": {"hypervisor": {"xen": {"uri": "xen:///system"}}}}
    if storage:
        table["hosts"]["local"]["storage"] = storage
    return table, sorted(notes, key=lambda note: note.line)


def _lost(assignment: Assignment, reason: str) -> Note:
    return assignment.note(reason)
