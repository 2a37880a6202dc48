"""Measure clones in Ceph by the backend rbd against loops of Ceph's command rbd, on one node.

Runs by itself, as root: ``make bench-rbd`` starts a cluster of one node and stops it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.rbd.cluster import Cluster
from vmcloner_core.drivers import ImageFile
from vmcloner_core.model import CloneRequest, Outcome
from vmcloner_core.testing.samples import make_context, make_labels
from vmcloner_rbd.driver import RbdDriver
from vmcloner_rbd.settings import RbdSettings

MIB = 1024**2
SAMPLE = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clones", nargs="?", type=int, default=300)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="clones of each loop")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-rbd-") as folder:
        cluster = Cluster(Path(folder) / "ceph")
        try:
            cluster.start()
            rows = measure(cluster, Path(folder), given.clones, given.sample)
        finally:
            cluster.stop()
    for work, way, each, ratio in rows:
        print(f"{work:8} {way:42} {each:8.1f} ms each   {ratio:5.1f} x")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


def measure(
    cluster: Cluster, folder: Path, clones: int, sample: int
) -> list[tuple[str, str, float, float]]:
    """Return what each way of each work took, in ms for one clone, and the ratio to ours."""
    settings = RbdSettings(pool="vms", conf=cluster.conf, keyring=cluster.keyring)
    driver = RbdDriver(make_context(folder), settings)
    image = folder / "image"
    with image.open("wb") as stream:
        stream.write(os.urandom(64 * MIB))
        stream.truncate(256 * MIB)
    file = ImageFile(path=image, format="raw", size=256 * MIB, digest=f"sha256:{0:064}")
    driver.import_image("tiny", file, lambda _done, _total: None)
    (origin,) = driver.origins()
    requests = [
        CloneRequest(labels=make_labels("web", n + 1), origin=origin) for n in range(clones)
    ]
    names = [f"loop-{n}" for n in range(sample)]
    parent = "vms/template.tiny@vmcloner"

    batch = driver_batch(lambda: list(driver.clone(requests)))
    one = timed(lambda: [all_ok([*driver.clone([request])]) for request in more(origin, sample)])
    loop = timed(lambda: [cluster.rbd("clone", parent, f"vms/{name}") for name in names])
    labelled = timed(
        lambda: [cluster.rbd("image-meta", "set", f"vms/{name}", "label", "x") for name in names]
    )
    found = timed(driver.volumes)
    shown = timed(lambda: [cluster.rbd("image-meta", "list", f"vms/{name}") for name in names])
    removed = timed(lambda: [cluster.rbd("rm", f"vms/{name}") for name in names])
    volumes = driver.volumes()
    gone = driver_batch(lambda: list(driver.delete(volumes)))
    driver.close()
    ms, each = 1000 / clones, 1000 / sample
    return [
        ("clone", f"vmcloner, a batch of {clones}, with labels", batch * ms, 1.0),
        ("clone", "vmcloner, one by one, with labels", one * each, one * each / (batch * ms)),
        ("clone", "loop of rbd clone", loop * each, loop * each / (batch * ms)),
        ("clone", "loop of rbd clone and rbd image-meta set", (loop + labelled) * each,
         (loop + labelled) * each / (batch * ms)),
        ("list", "vmcloner, all labels", found * ms, 1.0),
        ("list", "loop of rbd image-meta list", shown * each, shown * each / (found * ms)),
        ("delete", f"vmcloner, a batch of {len(volumes)}", gone * 1000 / len(volumes), 1.0),
        ("delete", "loop of rbd rm", removed * each, removed * each * len(volumes) / gone / 1000),
    ]  # fmt: skip


def more(origin: object, count: int) -> list[CloneRequest]:
    return [CloneRequest(labels=make_labels("one", n + 1), origin=origin) for n in range(count)]


def driver_batch(work: Callable[[], list[Outcome[object]]]) -> float:
    """Return the seconds of a batch that succeeds."""
    return timed(lambda: all_ok(work()))


def all_ok(outcomes: list[Outcome[object]]) -> None:
    assert all(outcome.changed for outcome in outcomes), [o.error for o in outcomes if o.error]


def timed(work: Callable[[], object]) -> float:
    before = time.monotonic()
    work()
    return time.monotonic() - before


if __name__ == "__main__":
    main()
