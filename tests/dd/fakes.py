"""The boundary of copies in a volume group, faked: LVM's commands on volumes that are files.

They keep LVM's rules as far as the driver relies on them: what is open can't be deactivated, and
what hangs on a volume goes with it.
"""

import json
import re
import threading

import attrs

from vmcloner_core.errors import HostCommandError, WrongState
from vmcloner_core.process import CommandResult, LocalRunner, open_files
from vmcloner_lvm.commands import bound
from vmcloner_lvm.thick_driver import ThickDriver

VG = "vg"
EXTENT = 4 * 1024**2


@attrs.define
class Volume:
    """A logical volume."""

    uuid: str
    size: int
    tags: list[str]
    segtype: str = "linear"
    origin: str = ""


class FakeGroup:
    """A host with the volume group vg. ``refuse``: errors of commands, by a pattern."""

    def __init__(self, folder):
        self.folder = folder
        self.volumes = {}
        self.active = set()
        self.uuid = "first"
        self.free = 10**9
        self.calls = []
        self.refuse = {}
        self.missing = set()
        self.lock = threading.Lock()

    def path(self, name):
        return self.folder / name

    def which(self, program):
        return None if program in self.missing else f"/sbin/{program}"

    def run(self, argv, *, timeout=60.0, input=b"", env=None):  # noqa: A002
        if argv[0] == "qemu-img":
            return LocalRunner().run(argv, timeout=timeout)
        words = [*argv][len(bound([])) :]
        assert [*argv] == bound(words)
        with self.lock:
            return self._run(words)

    def _run(self, words):
        self.calls.append(" ".join(words))
        for pattern, error in self.refuse.items():
            if re.search(pattern, self.calls[-1]):
                raise error
        answer = getattr(self, f"_{words[0]}")(words[1:])
        return CommandResult(stdout=json.dumps(answer).encode(), stderr=b"")

    def _report(self, kind, rows):
        return {"report": [{kind: rows}]}

    def _vgs(self, words):
        return self._report("vg", [{
            "vg_name": VG, "vg_size": str(self.free), "vg_free": str(self.free),
            "vg_extent_size": str(EXTENT), "vg_mda_size": str(2**20), "vg_mda_free": str(2**19),
            "vg_uuid": self.uuid, "vg_exported": "", "vg_partial": "", "vg_shared": "",
        }])  # fmt: skip

    def _lvs(self, words):
        return self._report("lv", [
            {"vg_uuid": self.uuid, "lv_name": name, "lv_uuid": each.uuid, "lv_size": str(each.size),
             "lv_tags": ",".join(each.tags), "segtype": each.segtype, "origin": each.origin}
            for name, each in self.volumes.items()
        ])  # fmt: skip

    def _names(self, words):
        return [word.partition("/")[2] for word in words if word.startswith(f"{VG}/")]

    def _lvcreate(self, words):
        name, size = words[words.index("-n") + 1], int(words[words.index("-L") + 1][:-1])
        if name in self.volumes:
            raise HostCommandError(f'Logical Volume "{name}" already exists')
        self._take(size)
        tags = [words[at + 1] for at, word in enumerate(words) if word == "--addtag"]
        self.volumes[name] = Volume(f"uuid-{name}-{len(self.calls)}", size, tags)
        self.path(name).write_bytes(b"old bytes".ljust(size, b"."))

    def _lvextend(self, words):
        [name], size = self._names(words), int(words[words.index("-L") + 1][:-1])
        self._take(size - self.volumes[name].size)
        with self.path(name).open("ab") as stream:
            stream.write(b"." * (size - self.volumes[name].size))
        self.volumes[name].size = size

    def _take(self, size):
        if size > self.free:
            raise HostCommandError("lvcreate failed with 5: insufficient free space")
        self.free -= size

    def _lvchange(self, words):
        for name in self._names(words):
            gone = [words[at + 1] for at, word in enumerate(words) if word == "--deltag"]
            tags = self.volumes[name].tags
            new = [words[at + 1] for at, word in enumerate(words) if word == "--addtag"]
            self.volumes[name].tags = [tag for tag in [*tags, *new] if tag not in gone]

    def _lvrename(self, words):
        _, old, new = words
        self.volumes[new] = self.volumes.pop(old)
        self.path(old).rename(self.path(new))

    def _lvremove(self, words):
        doomed = re.findall(r'lv_uuid="([^"]+)"', " ".join(words))
        for name in [name for name, each in self.volumes.items() if each.uuid in doomed]:
            self._remove(name)

    def _remove(self, name):
        for dependent in [each for each, v in self.volumes.items() if v.origin == name]:
            self._remove(dependent)
        self.volumes.pop(name)
        self.path(name).unlink(missing_ok=True)

    # --- activation ---

    def size(self, name):
        return None  # devices are as large as their files

    def on(self, names):
        names = list(names)
        self.calls.append(f"activate {' '.join(names)}")
        return {name: self._refused("-ay", name) or self.active.add(name) for name in names}

    def off(self, names):
        names = list(names)
        self.calls.append(f"deactivate {' '.join(names)}")
        return {name: self._off(name) for name in names}

    def _off(self, name):
        error = self._refused("-an", name)
        if error is None and self.path(name).exists() and self._opened(name):
            error = busy(name)
        return error or self.active.discard(name)

    def _opened(self, name):
        """Tell whether another process has a volume open."""
        status = self.path(name).stat()
        return any(file.st_ino == status.st_ino for _, file in open_files())

    def _refused(self, how, name):
        for pattern, error in self.refuse.items():
            if re.search(pattern, f"{how} {name}"):
                return error
        return None


def open_driver(context):
    """Return the driver on a faked group."""
    host = context.runner
    driver = ThickDriver(context, VG, mapper=host, locks=host.folder)
    group = driver._group
    group.activate, group.deactivate, group.path = host.on, host.off, host.path
    return driver


def busy(name):
    """Return what deactivating a volume in use says."""
    return WrongState(f"volume {VG}/{name} is in use by process 7 (qemu)", hint="stop it")
