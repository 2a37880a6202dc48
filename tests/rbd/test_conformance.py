"""The conformance suite on a real cluster."""

import contextlib
import subprocess
import sys

import pytest

from tests.rbd.holding import HOLD
from vmcloner_core.testing.samples import make_context
from vmcloner_core.testing.storage import STATE_ID, TIMEOUT, StorageConformance
from vmcloner_rbd import importing
from vmcloner_rbd.driver import RbdDriver
from vmcloner_rbd.images import Images
from vmcloner_rbd.settings import RbdSettings

pytestmark = pytest.mark.ceph


class TestRbd(StorageConformance):
    @pytest.fixture
    def open_driver(self, settings: RbdSettings, tmp_path):
        context = make_context(tmp_path)
        context.host.state_id.parent.mkdir(parents=True, exist_ok=True)
        context.host.state_id.write_text(STATE_ID)  # another's clones would not be seen
        return lambda: RbdDriver(context, settings)

    @pytest.fixture(autouse=True)
    def images(self, settings: RbdSettings, open_driver, tmp_path):
        self.settings, self.state = settings, tmp_path
        driver = open_driver()
        self.images: Images = driver._images
        yield
        driver.close()

    def read(self, volume):
        with self.images.open(volume.name) as image:
            return image.read(0, volume.size)

    def write(self, volume, offset, data):
        with self.images.open(volume.name, writable=True) as image:
            image.write(offset, data)
            image.flush()

    def put_foreign(self, volume):
        self.images.create(volume.name, 4096)
        self.write(volume, 0, b"foreign")

    def check_foreign(self, volume):
        with self.images.open(volume.name) as image:
            assert image.read(0, 7) == b"foreign"

    @contextlib.contextmanager
    def busy(self, volume):
        given = self.settings
        argv = [given.conf, given.keyring, given.namespace, self.state, volume.name]
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, *map(str, argv)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            try:
                assert process.stdout.readline() == b"open\n"
                yield process.pid
            finally:
                process.stdin.close()
                process.wait(TIMEOUT)

    @contextlib.contextmanager
    def corrupting(self):
        def write(source, image, size, *args):
            image.write(0, b"\xff")
            real(source, image, size, *args)

        real = importing.verify
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(importing, "verify", write)
            yield
