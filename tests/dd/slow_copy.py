"""Copy two disks so slowly that there is time to kill it: FOLDER BANDWIDTH."""

import sys
from pathlib import Path

from vmcloner_core.drivers import DriverContext
from vmcloner_core.model import CloneRequest, Copying, Host
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_dd.plugin import vmcloner_storage_backend
from vmcloner_dd.settings import DdSettings

folder = Path(sys.argv[1])
host = Host(name="local", state=folder / "state")
context = DriverContext(host=host, name="pool", runner=LocalRunner())
driver = vmcloner_storage_backend().factory(context, DdSettings(path=folder / "pool"))
image = make_image(folder / "image.raw", seed=1, size=32 * 1024**2)
origin = driver.import_image("tiny", image, no_progress).unwrap()
copying = Copying(bandwidth=int(sys.argv[2]))
requests = [
    CloneRequest(labels=make_labels(index=index), origin=origin, copying=copying)
    for index in (1, 2)
]
for outcome in driver.clone(requests, lambda _name, done, _total: print(done, flush=True)):
    print(outcome.key, outcome.changed, outcome.error, flush=True)
