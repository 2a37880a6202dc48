"""The boundary of lvm-thin, faked: LVM's commands on a metadata text, and a pool in a kernel.

They keep LVM's rules as far as the driver relies on them: a message is carried out by nobody but
who sends it, an id that is taken is refused, restoring a text numbers it anew, what hangs on a
volume goes with it.
"""

import errno
import json
import re
from pathlib import Path

from vmcloner_core.errors import HostCommandError
from vmcloner_core.process import CommandResult
from vmcloner_lvm.commands import bound
from vmcloner_lvm.devmapper import Device, PoolStatus, device_name
from vmcloner_lvm.metadata import parse, write
from vmcloner_lvm.transaction import NewVolume, numbered, queue, settle
from vmcloner_lvm.volumegroup import VolumeGroup

IMPORTED = (Path(__file__).parent / "recorded" / "imported.vg").read_text()
VG, POOL = "vg", "pool"


class Killed(BaseException):
    """The process ends here, whatever it would have done."""


class FakeHost:
    """LVM and device-mapper of a host with the pool vg/pool. ``die_at``: at which call to end."""

    def __init__(self, text=IMPORTED):
        self.text = text
        self.transaction = self.group.pool(POOL).transaction_id
        self.devices = {volume.device_id for volume in self.group.thin.values()}
        self.heads = {}
        self.held = set()
        self.active = {}
        self.opened = {}
        self.calls = []
        self.die_at = None
        self.refuse = {}
        self.missing = set()
        self.mda = 64 * 1024**2
        self.status = {"metadata_used": 100, "metadata_total": 10000, "data_total": 1000,
                       "mode": "rw"}  # fmt: skip

    @property
    def group(self):
        return VolumeGroup.parse(self.text, VG)

    def consistent(self):
        """Tell whether kernel and metadata agree in everything."""
        group = self.group
        return (
            not group.pool(POOL).messages
            and group.pool(POOL).transaction_id == self.transaction
            and {v.device_id for v in group.thin.values() if v.pool == POOL} == self.devices
        )

    def hang(self, name, on, how="snapshot"):
        """Have somebody's snapshot of a volume, or in another pool a thin volume over it."""
        kind = 'type = "striped"'
        if how == "external_origin":
            kind = f'type = "thin"\nthin_pool = "other"\ndevice_id = 1\nexternal_origin = "{on}"'
        made = _section(name, kind)
        if how == "snapshot":
            made += _section(
                "snapshot0", f'type = "snapshot"\norigin = "{on}"\ncow_store = "{name}"'
            )
        self.text = self.text.replace("logical_volumes {\n", f"logical_volumes {{\n{made}", 1)

    def step(self, what):
        """Note a call; the process may end before it."""
        self.calls.append(what)
        if self.die_at is not None and len(self.calls) > self.die_at:
            raise Killed(what)
        for pattern, error in list(self.refuse.items()):
            if re.search(pattern, what):
                raise error

    # --- the command runner ---

    def which(self, program):
        return None if program in self.missing else f"/sbin/{program}"

    def run(self, argv, *, timeout=60.0, input=b"", env=None):  # noqa: A002
        words = [*argv][len(bound([])) :]
        assert [*argv] == bound(words)
        if "--config" in words:
            at = words.index("--config")
            del words[at : at + 2]
        self.step(" ".join(words))
        handler = getattr(self, f"_{words[0]}")
        return CommandResult(stdout=(handler(words[1:]) or "").encode(), stderr=b"")

    def _lvmconfig(self, words):
        return f'locking_dir="{self.locks}"\n'

    def _vgs(self, words):
        row = {"vg_name": VG, "vg_mda_size": str(self.mda), "vg_mda_free": "1", "vg_free": "0",
               "vg_exported": "", "vg_partial": "", "vg_shared": ""}  # fmt: skip
        return json.dumps({"report": [{"vg": [row]}]})

    def _vgcfgbackup(self, words):
        Path(words[1]).write_text(self.text)

    def _vgcfgrestore(self, words):
        group = VolumeGroup.parse(Path(words[words.index("-f") + 1]).read_text(), VG)
        if group.dependents.keys() - group.logical.keys():
            raise HostCommandError("vgcfgrestore failed with 5: Unknown logical volume specified")
        self.text = write(numbered(group).tree)

    def _lvcreate(self, words):
        if self.group.pool(POOL).messages:
            raise HostCommandError("Failed to suspend vg/pool with queued messages.")
        tags = tuple(word.partition("=")[2] for word in words if word.startswith("--addtag="))
        name = words[words.index("-n") + 1]
        if "-s" in words:
            origin = words[-1].split("/")[1]
            size = self.group.thin[origin].size
        else:
            origin, size = None, int(words[words.index("-V") + 1][:-1])
        new = NewVolume(name=name, size=size, tags=tags, origin=origin)
        queued = queue(self.group, POOL, create=[new])
        self.devices.add(queued.thin[name].device_id)
        self.transaction += 1
        self.text = write(settle(queued, POOL).tree)

    def _lvremove(self, words):
        names = [word.split("/")[1] for word in words if "/" in word]
        ids = {self.group.thin[name].device_id for name in names}
        if ids & self._in_use():
            raise HostCommandError("lvremove failed with 5: Device or resource busy")
        for name in names:
            if name in self.group.dependents:
                self.text = _without(self.text, {*self.group.dependents[name], "snapshot0"})
        self.text = write(settle(queue(self.group, POOL, delete=names), POOL).tree)
        self.devices -= ids
        self.transaction += 1

    def _lvextend(self, words):
        name, size = words[-1].split("/")[1], int(words[words.index("-L") + 1][:-1])
        extents = size // self.group.extent
        start = self.text.index(f"{name} {{")
        self.text = self.text[:start] + re.sub(
            r"extent_count = \d+", f"extent_count = {extents}", self.text[start:], count=1
        )

    def _lvchange(self, words):
        names = [word.split("/")[1] for word in words if word.startswith(f"{VG}/")]
        for name in names:
            if "-ay" in words:
                self.active[name] = 0
            elif "-an" in words and not self.opened.get(name):
                self.active.pop(name, None)
        if busy := [name for name in names if "-an" in words and self.opened.get(name)]:
            raise HostCommandError(f"lvchange failed with 5: Logical volume {busy[0]} in use.")
        for tag in (word.partition("=")[2] for word in words if word.startswith("--deltag=")):
            for name in names:
                start = self.text.index(f"{name} {{")
                self.text = self.text[:start] + self.text[start:].replace(f', "{tag}"', "", 1)

    # --- the device-mapper ---

    def device(self, name):
        for each in self.active:
            if device_name(VG, each) == name:
                return Device(number=0xFD00, opened=self.opened.get(each, 0))
        return None

    def pool(self, name):
        if name != device_name(VG, POOL, "tpool"):
            return None
        return PoolStatus(transaction_id=self.transaction, **self.status)

    def message(self, name, text):
        self.step(text)
        word, *numbers = text.split()
        numbers = [int(number) for number in numbers]
        if word.startswith("create"):
            if numbers[0] in self.devices:
                raise OSError(errno.EEXIST, "File exists")
            assert all(number in self.devices for number in numbers[1:])
            self.devices.add(numbers[0])
        elif word == "delete":
            if numbers[0] not in self.devices:
                raise OSError(errno.ENODATA, "No data available")
            if numbers[0] in self._in_use():
                raise OSError(errno.EBUSY, "Device or resource busy")
            self.devices.remove(numbers[0])
            self.heads.pop(numbers[0], None)
        else:
            assert numbers[0] == self.transaction
            self.transaction = numbers[1]

    def _in_use(self):
        thin = self.group.thin
        return self.held | {thin[name].device_id for name in self.active if name in thin}

    def write_head(self, pool, device_id, size, head):
        self.step(f"write_head {device_id}")
        assert device_id in self.devices - self._in_use()
        self.held.add(device_id)
        self.heads[device_id] = head
        self.drop_head(pool, device_id)

    def drop_head(self, pool, device_id):
        if device_id in self.held:
            self.step(f"drop_head {device_id}")
            self.held.remove(device_id)


def _section(name, segment):
    values = 'status = ["READ", "WRITE", "VISIBLE"]\nflags = []\nsegment_count = 1'
    return f"{name} {{\n{values}\nsegment1 {{\nextent_count = 2\n{segment}\n}}\n}}\n"


def _without(text, names):
    tree = parse(text)
    [group] = tree.sections()
    volumes = group.section("logical_volumes")
    kept = volumes.replaced(item for item in volumes.items if item.key not in names)
    group = group.replaced(kept if item is volumes else item for item in group.items)
    return write(tree.replaced(item if item.key != VG else group for item in tree.items))


def check_readable(host):
    """Check that what is kept is what LVM could read."""
    assert write(parse(host.text)) == host.text
