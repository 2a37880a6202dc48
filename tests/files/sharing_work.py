"""A host that shares a pool: it makes and deletes clones of its own, COUNT at a time.

python sharing_work.py STATE POOL FLEET COUNT ROUNDS
"""

import sys
from pathlib import Path

from vmcloner_core.drivers import DriverContext, ImageFile
from vmcloner_core.model import CloneMode, CloneRequest, Host
from vmcloner_core.process import LocalRunner
from vmcloner_core.stored_ids import new_id, read_id
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import no_progress
from vmcloner_files.driver import FilesDriver
from vmcloner_files.settings import FilesSettings


def opened(state: Path, pool: Path, clone: str = "overlay") -> tuple[FilesDriver, str]:
    """Return a host's driver of a shared pool, and the id of its state folder."""
    host = Host(name="local", state=state)
    if read_id(host.state_id) is None:
        state.mkdir(exist_ok=True)
        host.state_id.write_text(f"{new_id()}\n")
    context = DriverContext(host=host, name="pool", runner=LocalRunner())
    own = read_id(host.state_id)
    assert own is not None
    return FilesDriver(context, FilesSettings(path=pool, clone=clone, shared=True)), own


def make(driver: FilesDriver, own: str, image: ImageFile, fleet: str, count: int) -> None:
    """Make a fleet of a host."""
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    requests = [
        CloneRequest(
            labels=make_labels(fleet, index, state=own), origin=origin, mode=CloneMode.LINKED
        )
        for index in range(1, count + 1)
    ]
    for outcome in driver.clone(requests):
        outcome.unwrap()


def main(state: Path, pool: Path, fleet: str, count: int, rounds: int) -> None:
    driver, own = opened(state, pool)
    path = pool.parent / "image.raw"
    image = ImageFile(path=path, format="raw", size=path.stat().st_size, digest="sha256:a")
    print("go", flush=True)
    for _ in range(rounds):
        make(driver, own, image, fleet, count)
        found = driver.volumes()
        assert {v.labels.fleet for v in found} == {fleet}
        assert len(found) == count
        for deleted in driver.delete(found):
            deleted.unwrap()
        driver.sweep()
    make(driver, own, image, fleet, count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
