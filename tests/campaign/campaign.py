"""Kill and disturb real commands at any of their calls; the same command again must complete them.

``python -m tests.campaign.campaign --seed 1 --kills 100 --faults 100 --pool overlay``: make a site,
and fleets in it. Each command that changes clones is hit once in each of their lives: it is killed
(SIGKILL, SIGTERM, SIGHUP) at a call to the system, to libvirt or of a program, or that call fails.
Then the same command is run again. What is on the host after it must be what an undisturbed run
leaves, and after the delete nothing may be left. See ``victim.py``.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import attrs

from tests.e2e.conftest import make_site

VICTIM = Path(__file__).with_name("victim.py")
COUNT, FEW = 3, 2
"""Clones; and where each command of LVM takes seconds, as in the lab."""
LIMIT, LONG = 180, 600
"""Seconds after which a command is taken to hang; and where each command of LVM takes seconds."""
TEMPLATE = """
extends = "plain"
swap = "1MiB"
[[disks]]
size = "2MiB"
[identity]
provider = "cloud-init"
authorized_keys = []
"""
VALUES = "clone,memory,role\n1,33MiB,first\n2,,second\n"
LAB = """
name = "kills"
[fleets.{fleet}]
template = "seeded"
count = {count}
values_file = "values.csv"
"""
POOLS = {
    "overlay": 'files]\nclone = "overlay"',
    "reflink": 'files]\nclone = "reflink"\npath = "{folder}/xfs/pool"',
    "full": 'files]\nclone = "copy"',
    "dd": "dd]",
    "lvm-thin": 'lvm-thin]\nvg = "vg"\nthinpool = "pool"',
    "lvm-dd": 'dd]\nvg = "vg"',
}
SIGNALS = {"kill": -signal.SIGKILL, "within": -signal.SIGKILL}
OS_ERRORS = {"write": ("EIO", "ENOSPC", "EROFS", "EACCES"), "read": ("EIO", "EACCES")}
LIBVIRT_ERRORS = ("timeout", "internal", "failed", "lost")
ROLLED_BACK_IN_PART = 11
VIRSH = ("virsh", "-q", "-c", "qemu:///system")
POOR = ("Traceback", "unexpected", "Exception", "[Errno", "None")
"""What no message may contain."""


@attrs.frozen
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@attrs.frozen
class Finding:
    """Something that is wrong."""

    pool: str
    operation: str
    fate: dict
    hit: str
    what: str

    def __str__(self):
        how = " ".join(f"{k}={v}" for k, v in self.fate.items() if k != "log")
        return f"{self.pool} {self.operation}: {self.what}\n    {how}\n    at: {self.hit}"


class Campaign:
    """A site with one fleet, whose operations are hit one after the other."""

    def __init__(self, site, pool, seed):
        self.site, self.pool, self.random = site, pool, random.Random(f"{pool} {seed}")
        self.fleet = site.fleet("web")
        self.calls = {}
        self.expected = {}
        self.hits = Counter()
        self.messages = Counter()
        self.findings = []
        create = [
            "create",
            self.fleet,
            "-t",
            "seeded",
            "--count",
            str(FEW if pool.startswith("lvm") else COUNT),
            "--values",
            "values.csv",
        ]
        kill, all_of_it = "--kill", ["--yes", "--missing-ok"]
        larger = ["set", self.fleet, "--memory", "40MiB", "--disk-size"]
        self.operations = {
            "create": create,
            "delete-stopped": ["delete", self.fleet, *all_of_it],
            "import": create,
            "set": [*larger, "2MiB"],
            "reset": ["reset", self.fleet],
            "start": ["start", self.fleet],
            "pause": ["pause", self.fleet],
            "resume": ["resume", self.fleet],
            "save": ["save", self.fleet],
            "restore": ["restore", self.fleet],
            "set-running": [*larger, "8MiB", "--vcpus", "1"],
            "reset-running": ["reset", self.fleet],
            "save-again": ["save", self.fleet],
            "restart-saved": ["restart", self.fleet, kill],
            "reset-saved": ["reset", self.fleet, "--start"],
            "snapshot-running": ["snapshot", "create", self.fleet, "running", "--memory"],
            "revert-running": ["snapshot", "revert", self.fleet, "running", "--force", "--yes"],
            "stop": ["stop", self.fleet, kill],
            "snapshot": ["snapshot", "create", self.fleet, "stopped"],
            "revert": ["snapshot", "revert", self.fleet, "stopped", "--yes"],
            "snapshot-delete": ["snapshot", "delete", self.fleet, "running", "--yes"],
            "delete": ["delete", self.fleet, *all_of_it],
            "roll-back": [*create, "--start", "--on-failure", "rollback"],
            "restart": ["restart", self.fleet, kill],
            "shut-down": ["stop", self.fleet, "--timeout", "1"],
            "stop-saved": ["stop", self.fleet, kill],
            "delete-snapshots": ["delete", self.fleet, *all_of_it],
            "delete-running": ["delete", self.fleet, *all_of_it],
            "delete-saved": ["delete", self.fleet, *all_of_it],
            "apply": ["apply", "lab.toml", "--prune", "--yes"],
            "delete-lab": ["delete", "--lab", "lab.toml", *all_of_it],
            "gc": ["gc", "--orphans", "--yes"],
        }
        self.before = {
            "import": [["template", "delete", "seeded"]],
            "reset-saved": [["save", self.fleet]],
            "stop-saved": [["start", self.fleet], ["save", self.fleet]],
            "delete-running": [[*create, "--start"]],
            "delete-saved": [[*create, "--start"], ["save", self.fleet]],
            "gc": [create],
        }
        (site.folder / "lab.toml").write_text(LAB.format(fleet=self.fleet, count=COUNT))

    # --- a life ---------------------------------------------------------------------------------

    def rehearse(self):
        """Learn what each operation calls, and what it leaves on the host."""
        self.checked(self.operations["create"])
        self.checked(self.operations["delete"])
        self.expected["nothing"] = self.found()
        if self.pool.endswith("dd"):  # it has no snapshots
            named = self.operations.items()
            self.operations = {k: v for k, v in named if "snapshot" not in v}
        for name, words in self.operations.items():
            self.prepare(name)
            log = self.site.folder / "calls"
            ended = self.run(words, {"how": "count", "kinds": ["write", "read"], "log": str(log)})
            assert ended.code == 0, (words, ended)
            self.calls[name] = [line.split()[0] for line in log.read_text().splitlines()]
            self.expected[name] = self.found()
            if name.startswith(("delete", "gc")):
                assert self.expected[name] == self.expected["nothing"], "a delete leaves something"

    def live(self, how, enough):
        """Go through all operations, each hit once, until ``enough()``."""
        for name, words in self.operations.items():
            if enough():
                break
            self.prepare(name)
            self.hit(name, words, self.fate(name, how))
        self.checked(self.operations["delete"])

    def prepare(self, name):
        """Bring the clones into the state in which an operation is tried."""
        for words in self.before.get(name, ()):
            self.checked(words)
        if name in ("reset", "revert"):
            for volume in self.disks():
                write = ["qemu-io", "-f", _format(volume), "-c", "write -P 7 0 4096", str(volume)]
                subprocess.run(write, check=True, timeout=60, capture_output=True)
        if name == "delete-snapshots" and not self.pool.startswith("lvm"):
            for clone in self.domains():  # into files, which block devices have no place for
                snapshot = ["snapshot-create-as", clone, "s1", "--disk-only"]
                subprocess.run([*VIRSH, *snapshot], check=True, timeout=60, capture_output=True)
        if name == "gc":
            for clone in self.domains():
                undefine = [*VIRSH, "undefine", clone]
                subprocess.run(undefine, check=True, timeout=60, capture_output=True)

    def fate(self, name, how):
        """Choose what becomes of an operation."""
        fate = {"log": str(self.site.folder / "hit")}
        if how == "kills":
            total = self.calls[name].count("write")
            signals = ("kill", "kill", "kill", "within", "within", "within", "term", "hup")
            fate |= {"how": self.random.choice(signals), "delay": self.random.uniform(0, 0.1)}
        else:
            total = len(self.calls[name])
            fate |= {"how": "fault", "kinds": ["write", "read"]}
        fate["at"] = self.random.randint(1, total)
        if how == "faults" and self.random.random() < 0.5:
            # There are more calls that read than calls that write.
            writes = [at for at, kind in enumerate(self.calls[name], 1) if kind == "write"]
            fate["at"] = self.random.choice(writes)
        kind = "write" if how == "kills" else self.calls[name][fate["at"] - 1]
        fate["error"] = self.random.choice(OS_ERRORS[kind])
        fate["libvirt"] = self.random.choice(LIBVIRT_ERRORS)
        fate["lasting"] = how == "faults" and self.random.random() < 0.3
        return fate

    def hit(self, name, words, fate):
        """Disturb an operation, then repeat it; note whatever is wrong."""
        self.hits[name] += 1
        as_json = fate["how"] != "fault" and self.random.random() < 0.5
        log = Path(fate["log"])
        log.write_text("")
        ended = self.run([*words, *(["-f", "json"] if as_json else [])], fate)
        hit = log.read_text().strip() or "nothing: it made fewer calls"

        def find(what):
            self.findings.append(Finding(self.pool, name, fate, hit, what))

        for what in self.judged(name, fate, hit, ended, as_json=as_json):
            find(what)
        undone = ended.code not in (0, ROLLED_BACK_IN_PART)
        if name == "roll-back" and fate["how"] == "fault" and undone and not fate["lasting"]:
            for what in self.differences("nothing"):
                find(f"rolled back, but {what}")
        again = self.run(words)
        if again.code != 0:
            find(f"the same command again: exit {again.code}: {again.err.strip()[-600:]}")
            again = self.run(words)
        for word in (word for word in POOR if word in again.err):
            find(f"the same command again says {word!r}: {again.err.strip()[-600:]}")
        for what in self.differences(name):
            find(f"afterwards: {what}")

    def judged(self, name, fate, hit, ended, *, as_json):
        """Yield what is wrong with how a command that was hit ended."""
        how, said = fate["how"], f"{ended.err.strip()} {ended.out.strip()}".strip()
        if ended.code is None:
            yield f"it hangs: {said[-4000:]}"
            return
        if ended.code == SIGNALS.get(how):
            return
        for word in (word for word in POOR if word in said.replace('"error": None', "")):
            yield f"it says {word!r}: {said[-1500:]}"
        if ended.code < 0 or (ended.code and not said):
            yield f"exit {ended.code}, and it says {said!r}"
        if how in ("term", "hup") and not hit.startswith("nothing") and ended.code not in (0, 130):
            yield f"exit {ended.code} after a SIG{how.upper()}: {said[-300:]}"
        if as_json and ended.out and not _is_json(ended.out):
            yield f"no JSON: {ended.out[:200]!r}"
        if ended.code == 0 and "left behind" not in ended.err:
            # Where a user never has access to console logs, a delete isn't to say so each time.
            silent = "/console/" if fate["error"] == "EACCES" else "\0"
            left = [what for what in self.differences(name) if silent not in what]
            yield from (f"exit 0, but {what}" for what in left)
        if ended.code:
            self.messages[f"{name} [{hit}] {fate['error']}: {ended.code}: {said[-400:]}"] += 1

    # --- what is there --------------------------------------------------------------------------

    def differences(self, name):
        """Yield what differs from what an undisturbed operation leaves."""
        found, expected = self.found(), self.expected[name]
        for what, there in found.items():
            if what not in expected or expected[what] != there:
                yield f"{what}: {there}, not {expected.get(what, 'absent')}"
        yield from (f"{what} is missing" for what in expected.keys() - found.keys())
        if name in ("reset", "revert"):
            for volume in self.disks():
                image = self.site.folder / "templates" / "image.raw"
                compare = ["qemu-img", "compare", "-F", "raw", "-f", _format(volume)]
                argv = [*compare, str(volume), str(image)]
                if subprocess.run(argv, timeout=60, capture_output=True, check=False).returncode:
                    yield f"{volume} isn't as its template"

    def found(self):
        """Return what of this site is on the host: files, volumes, domains, processes."""
        state = self.site.folder / "state"
        found = {}
        for top in (state, self.site.folder / "xfs", self.site.folder / "config"):
            for folder, _folders, names in os.walk(top):
                if Path(folder) != state / "runs":
                    found |= {f"{folder}/{name}": "file" for name in names}
        ours = [f for f in found if f.rpartition("/")[2] in ("lock", "id") or "/kvm-" in f]
        found = {name: what for name, what in found.items() if name not in ours}
        if self.pool.startswith("lvm"):
            argv = ["lvs", "--noheadings", "-o", "lv_name,lv_size", "vg"]
            found |= {f"volume {name}": size for name, size in map(str.split, _lines(argv))}
            maps = _words(["dmsetup", "ls"])
            found |= {f"map {m}": "there" for m in maps if self.site.prefix in m}
        for volume in self.disks():
            info = [*("qemu-img", "info", "-U", "--output=json"), str(volume)]
            found[f"size of {volume}"] = json.loads("".join(_lines(info)))["virtual-size"]
        for name, state in self.domains().items():
            xml = ElementTree.fromstring("".join(_lines([*VIRSH, "dumpxml", "--inactive", name])))
            what = [xml.findtext(tag) for tag in ("uuid", "memory", "vcpu")]
            found[f"domain {name}"] = " ".join([state, *what])
        return found

    def domains(self):
        """Return the states of the domains of this site."""
        rows = (
            line.split(maxsplit=2) for line in _lines([*VIRSH, "list", "--all", "--managed-save"])
        )
        return {name: state for _, name, state in rows if name.startswith(self.site.prefix)}

    def disks(self):
        """Return the first disks of the clones."""
        if self.pool.startswith("lvm"):
            return []  # they are inactive while their guests are
        folders = [self.site.folder / "state", self.site.folder / "xfs"]
        found = [p for f in folders for p in f.rglob(f"{self.fleet}-*-disk0*") if p.is_file()]
        return sorted(path for path in found if path.suffix in (".raw", ".qcow2"))

    # --- commands -------------------------------------------------------------------------------

    def run(self, words, fate=None):
        """Run a command, with a fate or without; returns how it ended."""
        argv = self.site.argv(*words)
        if fate is not None:
            argv = [sys.executable, str(VICTIM), json.dumps(fate), *argv[1:]]
        with subprocess.Popen(
            argv,
            cwd=self.site.folder,
            env=os.environ
            | {"PYTHONFAULTHANDLER": "1", "XDG_CONFIG_HOME": str(self.site.folder / "config")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                out, err = process.communicate(
                    timeout=LONG if self.pool.startswith("lvm") else LIMIT
                )
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)
                out, err = process.communicate()
                return Ended(None, out, err)
        return Ended(process.returncode, out, err)

    def checked(self, words):
        """Run a command that nothing disturbs."""
        ended = self.run(words)
        assert ended.code == 0, (words, ended)


def _format(volume):
    return volume.suffix.removeprefix(".")


def _is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _lines(argv):
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120)
    return [line for line in done.stdout.splitlines() if line.strip()]


def _words(argv):
    return " ".join(_lines(argv)).split()


@contextlib.contextmanager
def site_on(pool):
    """Make a site with a pool of a kind, and remove it."""
    site = make_site("qemu:///system")
    site = attrs.evolve(site, prefix=f"kills{site.prefix}")
    table = POOLS[pool].format(folder=site.folder)
    name = table.partition("]")[0]
    settings = site.folder / "vmcloner.toml"
    text = f"[defaults]\nstorage = '{name}'\n{settings.read_text()}\n[hosts.local.storage.{table}\n"
    settings.write_text(text)
    (site.folder / "templates" / "seeded.toml").write_text(TEMPLATE)
    (site.folder / "values.csv").write_text(VALUES)
    mounted = site.folder / "xfs"
    try:
        if pool == "reflink":
            mounted.mkdir()
            device = site.folder / "device"
            with device.open("wb") as stream:
                stream.truncate(1024**3)
            subprocess.run(["mkfs.xfs", "-q", device], check=True, timeout=60)
            subprocess.run(["mount", "-o", "loop", device, mounted], check=True, timeout=60)
        yield site
    finally:
        delete = site.argv("delete", site.fleet("web"), "--yes", "--missing-ok")
        subprocess.run(delete, cwd=site.folder, timeout=LONG, check=True)
        if mounted.is_mount():
            subprocess.run(["umount", mounted], check=True, timeout=60)
        shutil.rmtree(site.folder)


def campaign(pool, how, seed, hits, seconds=1e9, tell=lambda _line: None):
    """Hit so many operations, for at most so many seconds; returns the campaign."""
    with site_on(pool) as site:
        run = Campaign(site, pool, seed)
        begun = time.monotonic()
        run.rehearse()
        tell(f"{pool} {how}: rehearsed in {time.monotonic() - begun:.0f} s")
        end = time.monotonic() + seconds

        def enough():
            return run.hits.total() >= hits or time.monotonic() > end

        told = 0
        while not enough():
            run.live(how, enough)
            spent = time.monotonic() - begun
            told_so = f"{run.hits.total()} hits, {len(run.findings)} findings in {spent:.0f} s"
            tell(f"{pool} {how}: {told_so}")
            for finding in run.findings[told:]:
                tell(str(finding))
            told = len(run.findings)
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", default=str(int(time.time())))
    parser.add_argument("--kills", type=int, default=500, help="in all")
    parser.add_argument("--faults", type=int, default=500, help="in all")
    parser.add_argument("--pool", choices=POOLS, nargs="+", default=["overlay", "reflink", "full"])
    parser.add_argument("--messages", action="store_true", help="Print what commands said.")
    words = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit("ended"))  # and clean up
    print(f"seed {words.seed}")
    runs = []
    for how in ("kills", "faults"):
        hits = -(-getattr(words, how) // len(words.pool))
        for pool in words.pool if hits else ():
            runs.append((how, campaign(pool, how, words.seed, hits, tell=_tell)))
    for _how, run in runs if words.messages else ():
        for message, times in sorted(run.messages.items()):
            print(f"{times} x {message}")
    print(f"{'pool':10}{'operation':16}{'how':8}{'hits':>6}{'found':>6}")
    for how, run in runs:
        wrong = Counter(finding.operation for finding in run.findings)
        for name, hits in run.hits.items():
            print(f"{run.pool:10}{name:16}{how:8}{hits:6}{wrong[name]:6}")
    return 1 if any(run.findings for _how, run in runs) else 0


def _tell(line):
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
