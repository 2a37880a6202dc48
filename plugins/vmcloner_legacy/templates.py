"""An xl.cfg file, or a token template with its values, as a template."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.model import Template
from vmcloner_core.names import check_template
from vmcloner_core.tomlfile import structure
from vmcloner_legacy.reading import Assignment, Note, Value, is_xl, read_conf, read_xl

# Tokens of a template, and the keys of its conf file that stand for them.
TOKENS = {
    "KERNEL": "kernel",
    "INITRD": "initrd",
    "LOADER": "loader",
    "CPU": "cpu",
    "MEM": "mem",
}
_CONF = {
    *TOKENS.values(), "vmname", "swap", "sourcevg", "targetvg", "source", "imagepath", "imagefile",
    "thinpool",
}  # fmt: skip
_TAKEN = {"vmname", "swap", "source", "thinpool", "targetvg"}
# Keys that say what is so anyway, and those that every clone has of its own.
_AS_IT_IS = {"on_poweroff": {"destroy"}, "on_reboot": {"restart"}, "dhcp": {"dhcp", "off", ""}}
_OWN = {"name", "uuid"}


@attrs.define
class Made:
    """A template as it comes about: its keys, and what couldn't be carried over."""

    name: str = ""
    table: dict[str, Any] = attrs.field(factory=dict)
    notes: list[Note] = attrs.field(factory=list)
    sources: list[str] = attrs.field(factory=list)

    def put(self, path: str, value: object) -> None:
        """Set ``kernel.cmdline`` and the like."""
        *tables, key = path.split(".")
        table = self.table
        for name in tables:
            table = table.setdefault(name, {})
        table[key] = value


def convert(xl: Path, conf: Path | None, name: str | None = None) -> Made:
    """Return the template that an xl.cfg file, or a token template with its conf file, describes.

    :param name: the template's name; None for the machine's.
    :raises InvalidRequest: it describes no machine, or what it says makes no template.
    """
    assignments, notes = read_xl(xl)
    pairs, repeated = read_conf(conf) if conf is not None else ([], [])
    values = {a.key: a for a in pairs}
    made = Made(
        notes=notes + repeated, sources=[str(xl), *([str(conf)] if conf is not None else [])]
    )
    tokens = _tokens(values)
    keys = {a.key: attrs.evolve(a, value=_filled(a.value, tokens)) for a in assignments}
    if not keys:
        raise InvalidRequest(f"{xl}: no assignment in it", hint="is it an xl.cfg file?")
    made.name = check_template(name or _text(keys, "name") or xl.stem)
    made.put("description", f"Imported from {xl.name}")
    made.put("hypervisors", ["xen"])
    _boot(keys, made)
    for key, convert_key in _KEYS.items():
        if key in keys:
            _each(keys.pop(key), made, convert_key)
    for assignment in keys.values():
        _rest(assignment, made)
    _conf(values, _used(assignments, tokens), made)
    made.notes.sort(key=lambda note: (made.sources.index(note.file), note.line))
    _check(made, xl)
    return made


def _check(made: Made, xl: Path) -> None:
    """Check that what was made can be read back as a template."""
    if "image" not in made.table:
        made.put("image.path", f"{made.name}.raw")
        made.notes.append(Note(str(xl), 0, "", f"no disk: put the image at {made.name}.raw"))
    try:
        structure({**made.table, "name": made.name}, Template, where=str(xl))
    except VmclonerError as error:
        raise InvalidRequest(error.message, hint="mend that line, and import it again") from error


# --- tokens -------------------------------------------------------------------------------------


def _tokens(values: Mapping[str, Assignment]) -> dict[str, str]:
    """Return what a template's words in capitals stand for."""
    said = {key: str(a.value) for key, a in values.items()}
    tokens = {token: said[key] for token, key in TOKENS.items() if key in said}
    tokens |= {key.upper(): value for key, value in said.items() if re.fullmatch(r"bridge\d+", key)}
    if "vmname" in said:
        tokens["VMNAME"] = said["vmname"]
    if said.get("source", "lvm") == "lvm" and "sourcevg" in said:
        tokens["PATH"] = f"/dev/{said['sourcevg']}"
    elif "imagepath" in said:
        tokens["PATH"] = said["imagepath"]
    return tokens


def _filled(value: Value, tokens: Mapping[str, str]) -> Value:
    if isinstance(value, list):
        return [_filled(item, tokens) for item in value]
    if isinstance(value, str) and tokens:
        pattern = "|".join(sorted(map(re.escape, tokens), key=len, reverse=True))
        return re.sub(rf"(?<![A-Za-z0-9])({pattern})(?![A-Za-z0-9])", lambda m: tokens[m[1]], value)
    return value


def _used(assignments: Sequence[Assignment], tokens: Mapping[str, str]) -> set[str]:
    """Return the keys of the conf file whose tokens the template has."""
    text = " ".join(str(assignment.value) for assignment in assignments)
    used = {
        token for token in tokens if re.search(rf"(?<![A-Za-z0-9]){token}(?![A-Za-z0-9])", text)
    }
    keys = {TOKENS.get(token, token.lower()) for token in used}
    return keys | ({"sourcevg", "imagepath"} if "PATH" in used else set())


def _conf(values: Mapping[str, Assignment], used: set[str], made: Made) -> None:
    """Carry over what only the conf file says, and name what nothing takes."""
    swap = values.get("swap")
    if swap is not None and str(swap.value).lower() not in ("off", ""):
        size = re.fullmatch(r"(\d+)\s*([kKmMgG]?)[bB]?", str(swap.value))
        if size is None:
            made.notes.append(swap.note("not a size"))
        else:
            made.put("swap", f"{size[1]}{size[2].upper() or 'M'}iB")
    for key in ("thinpool", "targetvg"):
        if key in values:
            hint = "settings, not templates, say where clones are: [hosts.local.storage.lvm-thin]"
            made.notes.append(values[key].note(hint))
    by_lvm = "source" not in values or values["source"].value == "lvm"
    unused = {"sourcevg"} if not by_lvm else {"imagepath", "imagefile"}
    for key, assignment in values.items():
        if key not in _CONF and not re.fullmatch(r"bridge\d+", key):
            made.notes.append(assignment.note("isn't known"))
        elif key in unused:
            made.notes.append(assignment.note(f"source is {'lvm' if by_lvm else 'file'}"))
        elif key not in used | _TAKEN:
            made.notes.append(assignment.note("the template doesn't use it"))


# --- keys ---------------------------------------------------------------------------------------


def _text(keys: Mapping[str, Assignment], key: str) -> str:
    value = keys[key].value if key in keys else ""
    return value.strip() if isinstance(value, str) else str(value)


def _each(assignment: Assignment, made: Made, convert_key: Convert) -> None:
    try:
        reason = convert_key(assignment.value, made)
    except ValueError as error:
        reason = str(error)
    if reason:
        made.notes.append(assignment.note(reason))


def _boot(keys: dict[str, Assignment], made: Made) -> None:
    """Take the keys that say how the guest is booted, and what kind it is."""
    kind = _kind(keys, made)
    loader, kernel = keys.pop("bootloader", None), keys.pop("kernel", None)
    ramdisk = keys.pop("ramdisk", None) or keys.pop("initrd", None)
    program = Path(str(loader.value)).name if loader is not None else ""
    if loader is not None and program in ("pygrub", "pypxeboot"):
        made.put("boot", program)
        for other in (kernel, ramdisk):
            if other is not None:
                made.notes.append(other.note(f"boot = {program!r} finds the kernel by itself"))
    elif kernel is not None:
        made.put("boot", "kernel")
        made.put("kernel.path", str(kernel.value))
        if ramdisk is not None:
            made.put("kernel.initrd", str(ramdisk.value))
    else:
        made.put("boot", "disk" if kind == "hvm" else "pygrub")
    if loader is not None and program not in ("pygrub", "pypxeboot"):
        made.notes.append(loader.note("only pygrub and pypxeboot are known"))
    _cmdline(keys, made)


def _kind(keys: dict[str, Assignment], made: Made) -> str:
    kind, builder = keys.pop("type", None), keys.pop("builder", None)
    named = str(kind.value if kind is not None else "pv").lower()
    if kind is None and builder is not None and builder.value == "hvm":
        named = "hvm"
    if named in ("pv", "pvh", "hvm"):
        made.put("domain.type", named)
    elif kind is not None:
        made.notes.append(kind.note("pv, pvh and hvm are known"))
    return named


def _cmdline(keys: dict[str, Assignment], made: Made) -> None:
    root, extra = keys.pop("root", None), keys.pop("extra", None)
    words = [f"root={root.value}"] if root is not None else []
    words += [str(extra.value)] if extra is not None else []
    if not words:
        return
    if made.table["boot"] in ("kernel", "pygrub", "pypxeboot"):
        made.put("kernel.cmdline", " ".join(words))
        return
    for lost in (root, extra):
        if lost is not None:
            made.notes.append(lost.note(f"boot = {made.table['boot']!r} takes no command line"))


def _memory(value: Value, made: Made) -> str:
    made.put("memory", f"{_number(value)}MiB")
    return ""


def _vcpus(value: Value, made: Made) -> str:
    made.put("vcpus", _number(value))
    return ""


def _number(value: Value) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}\s*", value):
        return int(value)
    raise ValueError("not a number")


def _on_crash(value: Value, made: Made) -> str:
    if value in ("destroy", "restart", "preserve"):
        made.put("domain.on_crash", value)
        return ""
    return "destroy, restart or preserve are known"


def _on_reboot(value: Value, made: Made) -> str:
    if value in ("destroy", "restart"):
        if value == "destroy":
            made.put("domain.on_reboot", value)
        return ""
    return "destroy or restart are known"


def _vif(value: Value, made: Made) -> str:
    """Each network card: ``bridge=BRIDGE,mac=…`` (xl-network-configuration(5))."""
    nics, lost = [], []
    for item in value if isinstance(value, list) else [value]:
        said = dict(
            part.strip().partition("=")[::2] for part in str(item).split(",") if part.strip()
        )
        nic = {"kind": "bridge", "source": said.pop("bridge", "xenbr0")}
        if said.pop("type", "vif") == "ioemu":
            nic["model"] = said.pop("model", "rtl8139")
        if "mac" in said:
            lost.append("each clone has a MAC address of its own")
            del said["mac"]
        lost += [f"{key}= isn't carried over" for key in said]
        nics.append(nic)
    made.table["nics"] = nics
    return "; ".join(lost)


def _disk(value: Value, made: Made) -> str:
    """The disks: the first is the image, one whose name says swap is a swap area."""
    lost = []
    for item in value if isinstance(value, list) else [value]:
        disk = _one_disk(str(item))
        if disk.cdrom or not disk.target:
            lost.append(f"{disk.vdev or item}: no disk of a clone")
        elif "swap" in Path(disk.target).name.lower():
            lost.append(f'{disk.vdev}: give its size as swap = "…", each clone gets one (xvdb)')
        elif "image" not in made.table:
            _image(disk, made)
            lost += disk.lost
            if disk.vdev and disk.vdev[-1].isdigit():
                lost.append(_renamed(disk.vdev, made))
        else:
            lost.append(
                f"{disk.vdev}: give its size as a table [[disks]], each clone gets a new one"
            )
    return "; ".join(part for part in lost if part)


def _image(disk: _Disk, made: Made) -> None:
    made.put("image.path", disk.target)
    if disk.format in ("raw", "qcow2"):
        made.put("image.format", disk.format)
    else:
        disk.lost.append(
            f"format={disk.format} can't be cloned: qemu-img convert -O qcow2 makes one"
        )


def _renamed(vdev: str, made: Made) -> str:
    """Adapt the command line: a disk given as a partition (xvda2) is a disk of its own here."""
    cmdline = made.table.get("kernel", {}).get("cmdline", "")
    if f"/dev/{vdev}" in cmdline:
        made.put("kernel.cmdline", re.sub(rf"/dev/{re.escape(vdev)}\b", "/dev/xvda", cmdline))
        return f"the guest's {vdev} is xvda: root= is adapted, see to its /etc/fstab"
    return f"the guest's {vdev} is xvda: see to its /etc/fstab"


_FORMATS = ("qcow2", "qcow", "vhd")
_KINDS = {"phy", "file", "tap", "tap2", "aio", "raw", *_FORMATS}


@attrs.frozen
class _Disk:
    target: str
    format: str = ""
    vdev: str = ""
    cdrom: bool = False
    lost: list[str] = attrs.field(factory=list)


def _one_disk(text: str) -> _Disk:
    """Parse a disk, in the old form or in that of xl-disk-configuration(5)."""
    old = re.fullmatch(r"((?:[a-z0-9]+:)+)(/?[^,]*),([^,]+),([^,]+)", text.strip())
    if old is not None:
        kinds = old[1].rstrip(":").split(":")
        known = next((kind for kind in kinds if kind in _FORMATS), "raw")
        vdev, _, kind = old[3].strip().partition(":")
        others = [f"{kind}: isn't carried over" for kind in kinds if kind not in _KINDS]
        others += _access(old[4].strip())
        return _Disk(old[2].strip(), known, vdev, kind == "cdrom", others)
    places = {"target": "", "format": "", "vdev": "", "access": ""}
    positions = iter(places)
    cdrom = False
    lost: list[str] = []
    parts = [part.strip() for part in text.split(",")]
    for number, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if key == "target" and equals:
            places["target"] = ",".join([value, *parts[number + 1 :]])  # takes all that follows
            break
        if equals and key in ("format", "vdev", "access"):
            places[key] = value
        elif part in ("cdrom", "devtype=cdrom"):
            cdrom = True
        elif not equals and (position := next(positions, None)) is not None:
            places[position] = part
        elif part and part != "devtype=disk":
            lost.append(f"{part} isn't carried over")
    lost += _access(places["access"])
    return _Disk(places["target"], places["format"] or "raw", places["vdev"], cdrom, lost)


def _access(said: str) -> list[str]:
    """Return what is lost of a disk's access: a clone writes to its own."""
    return [] if said in ("", "w", "rw") else [f"access={said}: a clone may write to its disk"]


def _rest(assignment: Assignment, made: Made) -> None:
    """Name a key that nothing takes, but for those that say what is so anyway."""
    key, value = assignment.key, assignment.value
    if key in _OWN:
        if key == "uuid":
            made.notes.append(assignment.note("each clone has a UUID of its own"))
        return
    if str(value).lower() in _AS_IT_IS.get(key, ()):
        return
    made.notes.append(assignment.note("isn't carried over"))


Convert = Callable[[Value, Made], str]
_KEYS: Mapping[str, Convert] = {
    "memory": _memory,
    "vcpus": _vcpus,
    "vif": _vif,
    "disk": _disk,
    "on_crash": _on_crash,
    "on_reboot": _on_reboot,
}


def files(paths: Sequence[Path]) -> tuple[Path, Path | None]:
    """Tell which of one or two files is the template, and which has its values.

    :raises InvalidRequest: there is no template among them.
    """
    templates = [path for path in paths if is_xl(path)]
    others = [path for path in paths if path not in templates]
    if len(templates) != 1 or len(others) > 1:
        names = " and ".join(map(str, paths))
        raise InvalidRequest(
            f"{names}: one xl.cfg file or template is needed, and at most one conf file",
            hint="vmcloner template import-legacy etc/precise.template etc/precise.conf",
        )
    return templates[0], others[0] if others else None
