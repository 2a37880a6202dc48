"""Kill real commands at any of their calls, many one after the other, and then collect garbage.

``python -m tests.campaign.rubbish --seed 1 --kills 50 --pool overlay``: nothing is repeated or
mended in between. At the end the leases of what is left are ended and ``vmcloner gc`` is run, which
is killed a few times too: of the fleet nothing may be left, and what others own must be as it was.
Others are here a clone of another state folder in the same pool, a guest that vmcloner didn't make,
and files without labels in the pool.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter

import attrs

from tests.campaign.campaign import LONG, POOLS, SIGNALS, Campaign, site_on

LIMITS = """
[limits]
max_clones_per_owner = 1000
max_memory_per_owner = "1TiB"
"""
ALIEN = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>
"""
COLLECT = ["gc", "--expired", "--orphans", "--yes"]
MOST = 200
"""The last call at which a command is killed; one that makes fewer just isn't killed."""
LAB = """
name = "rubbish"
[fleets.{fleet}la]
template = "seeded"
count = {count}
[fleets.{fleet}lb]
template = "seeded"
after = ["{fleet}la"]
"""


def commands(run):
    """Return the words of all commands that change something, by name."""
    fleet, count = run.fleet, ["--count", "3"]
    again = ["create", fleet, "-t", "seeded", *count, "--values", "values.csv", "--ttl", "300d"]
    target = {"save", "restore", "pause", "resume"}
    for count in (1, 3):
        file = run.site.folder / f"lab-{count}.toml"
        file.write_text(LAB.format(fleet=fleet, count=count))
    return {
        **{name: [*words] for name, words in run.operations.items() if name != "import"},
        "create": again,
        "create-started": [*again, "--start"],
        "create-full": ["create", f"{fleet}f", "-t", "seeded", "--full", "--ttl", "300d"],
        **{name: [name, fleet] for name in sorted(target)},
        "set": ["set", fleet, "--vcpus", "2"],
        "lease-extend": ["lease", "extend", fleet, "--ttl", "300d"],
        "lease-end": ["lease", "end", f"{fleet}-2"],
        "import": ["template", "import", "seeded"],
        "capture": ["template", "capture", f"{fleet}-1", captured(run), "--no-seal"],
        "prune": ["template", "prune", "--yes"],
        "apply": ["apply", "lab-3.toml"],
        "apply-smaller": ["apply", "lab-1.toml", "--prune", "--yes"],
        "delete-lab": ["delete", "--lab", "lab-3.toml", "--yes", "--missing-ok"],
        "gc": ["gc", "--yes"],
        "gc-orphans": COLLECT,
    }


def captured(run):
    """Return the name of the template that a clone is captured as."""
    return f"{run.fleet}c"


@contextlib.contextmanager
def others_on(site, pool):
    """Make what belongs to others, and remove it at the end."""
    there = attrs.evolve(site, prefix=f"{site.prefix}o")
    config = site.folder / "vmcloner.toml"
    text = config.read_text()
    other = text.replace(f"{site.folder}/state", f"{site.folder}/other-state")
    names = [f"{site.fleet('web')}-8-disk0", f"notes{site.prefix}"]
    if pool.startswith("lvm"):
        make = ["lvcreate", "-y", "-an", *("-L 4M vg" if "dd" in pool else "-V4M vg/pool").split()]
        strangers = [[*make, "-n", name] for name in names]
        remove = [["lvremove", "-y", f"vg/{name}"] for name in names]
    else:
        folder = next((site.folder / "state").rglob("volumes"))
        if f"path = {str(folder.parent)!r}" not in other and "files]" in other:
            other = other.replace("files]\n", f"files]\npath = {str(folder.parent)!r}\n")
        files = [str(folder / name) for name in (f"{names[0]}.qcow2", *names[1:], ".notes")]
        strangers, remove = [["cp", str(config), file] for file in files], [["rm", *files]]
    (site.folder / "other.toml").write_text(other)
    config.write_text(text + LIMITS)
    virsh = ["virsh", "-q", "-c", "qemu:///system"]
    alien = f"{site.fleet('web')}-9"
    (site.folder / "alien.xml").write_text(ALIEN.format(name=alien))
    argv = [*site.argv()[:1], "--config", str(site.folder / "other.toml")]

    def call(*words):
        subprocess.run(words, check=True, timeout=LONG, cwd=site.folder, capture_output=True)

    with contextlib.ExitStack() as stack:
        stack.callback(call, *argv, "delete", there.fleet("mine"), "--yes", "--missing-ok")
        call(*argv, "create", there.fleet("mine"), "-t", "plain", "--ttl", "300d")
        call(*argv, "lease", "end", there.fleet("mine"))
        for words in ([*virsh, "define", str(site.folder / "alien.xml")], *strangers):
            call(*words)
        for words in ([*virsh, "undefine", alien], *remove):
            stack.callback(call, *words)
        yield


@attrs.define
class Rubbish:
    """What became of so many kills: the hits, and what was left or touched."""

    hits: Counter = attrs.field(factory=Counter)
    findings: list = attrs.field(factory=list)


def rubbish(pool, seed, kills, seconds=1e9, tell=lambda _line: None):
    """Kill so many commands, for at most so many seconds, and collect; returns what was found."""
    found = Rubbish()
    with site_on(pool) as site:
        run = Campaign(site, pool, f"rubbish {seed}")
        run.checked(["template", "import", "seeded"])
        with others_on(site, pool):
            run.checked(run.operations["create"])
            run.checked(run.operations["delete"])
            run.expected["nothing"] = run.found()
            end = time.monotonic() + seconds
            words = commands(run)
            while found.hits.total() < kills and time.monotonic() < end:
                name = run.random.choice(sorted(words))
                if not name.startswith(("create", "delete", "gc", "apply")):
                    run.run(words["create"])  # else there is soon nothing to kill others at
                _kill(run, name, words[name], found)
            _collect(run, found)
            tell(f"{pool}: {found.hits.total()} kills {dict(found.hits)}")
    return found


def _kill(run, name, words, found):
    log = run.site.folder / "hit"
    log.write_text("")
    at = round(MOST ** run.random.random())  # short commands too
    fate = {"how": run.random.choice(["kill", "within"]), "at": at, "log": str(log)}
    fate |= {"delay": run.random.uniform(0, 0.1), "error": "EIO", "libvirt": "lost"}
    ended = run.run(words, fate)
    if ended.code is None:
        found.findings.append(f"{name} hangs: {ended.err[-2000:]}")
    elif ended.code == SIGNALS["kill"]:
        found.hits[name] += 1
    elif "Traceback" in ended.err or "unexpected" in ended.err:
        found.findings.append(f"{name} at {log.read_text()}: {ended.err[-2000:]}")


def _collect(run, found):
    """End what is left, collect, itself killed at times, and compare with what was there before."""
    for words in (COLLECT, ["lease", "end", "--all"], COLLECT):
        for _ in range(2):
            _kill(run, f"last {words[0]}", words, found)
        ended = run.run([*words, "-f", "json"])
        if ended.code != 0:
            found.findings.append(f"{words}: exit {ended.code}: {ended.err[-2000:]}")
    again = run.run([*COLLECT, "--dry-run", "-f", "json"])
    if again.code != 0 or json.loads(again.out):
        found.findings.append(f"gc again: {again}")
    run.checked(["template", "import", "seeded"])  # its import may have been killed
    run.run(["template", "delete", captured(run)])  # it is a template, if its capture has ended
    run.checked(["template", "prune", "--yes"])
    found.findings += run.differences("nothing")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", default=str(int(time.time())))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pool", choices=POOLS, default="overlay")
    words = parser.parse_args()
    print(f"seed {words.seed}")
    found = rubbish(words.pool, words.seed, words.kills, tell=print)
    print("\n".join(map(str, found.findings)) or "nothing left, nothing of others touched")
    return 1 if found.findings else 0


if __name__ == "__main__":
    sys.exit(main())
