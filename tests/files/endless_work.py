"""Import, clone and delete, or reset, until killed.

python endless_work.py FOLDER IMAGES HOW COUNT [reset]
"""

import itertools
import sys
from pathlib import Path

from vmcloner_core.drivers import DriverContext, ImageFile
from vmcloner_core.model import CloneMode, CloneRequest, Host
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import no_progress
from vmcloner_files import drafts
from vmcloner_files.driver import FilesDriver
from vmcloner_files.settings import FilesSettings

SCRIBBLE = b"a guest was here"


def refuse(folder: Path) -> None:
    raise OSError(95, "Operation not supported")


def reset(driver: FilesDriver) -> None:
    """Reset the clones that are there, and scribble on them, time and again."""
    [origin] = driver.origins()
    requests = [
        CloneRequest(labels=volume.labels, origin=origin, mode=CloneMode.LINKED)
        for volume in driver.volumes()
    ]
    print("go", flush=True)
    while True:
        for outcome in driver.reset(requests):
            with outcome.unwrap().path.open("r+b") as stream:
                stream.write(SCRIBBLE)


def main(folder: Path, images: Path, how: str, count: int, task: str = "") -> None:
    if how == "named":
        drafts.unnamed = refuse
    host = Host(name="local", state=folder)
    context = DriverContext(host=host, name="pool", runner=LocalRunner())
    driver = FilesDriver(context, FilesSettings(path=folder / "pool"))
    if task == "reset":
        reset(driver)
    print("go", flush=True)
    for name in itertools.cycle("ab"):
        path = images / f"{name}.raw"
        size = path.stat().st_size
        image = ImageFile(path=path, format="raw", size=size, digest=f"sha256:{name}")
        origin = driver.import_image("tiny", image, no_progress).unwrap()
        requests = [
            CloneRequest(
                labels=make_labels(index=index),
                origin=origin,
                mode=CloneMode.FULL if index % 4 == 0 else CloneMode.LINKED,
            )
            for index in range(1, count + 1)
        ]
        for outcome in driver.clone(requests):
            outcome.unwrap()
        for deleted in driver.delete(driver.volumes()):
            if deleted.error is not None:
                raise deleted.error


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
