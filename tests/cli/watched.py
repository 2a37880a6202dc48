"""vmcloner with clones on the reference drivers, as a program of its own."""

import os
import tempfile
from pathlib import Path

from tests.conftest import TEMPLATE
from vmcloner_core import Engine
from vmcloner_core.cli import app
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin, StoragePlugin


def main(words, clones=30):
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("vmcloner.toml").write_text(
            '[defaults]\nhypervisor = "reference"\nstorage = "reference"\n'
            "[limits]\nboot_jobs = 256\n"
            f'[hosts.local]\nstate = "{folder}/state"\n'
        )
        Path("templates").mkdir()
        Path("templates/t1.toml").write_text(TEMPLATE)
        Path("templates/never.toml").write_text(TEMPLATE.replace("ready name", "never name"))
        Path("templates/image.raw").write_bytes(bytes(1024**2))
        engine = Engine.open(plugins=[StoragePlugin(), HypervisorPlugin(), BootPlugin()])
        if clones:
            engine.create("web", "t1", count=clones, start=True)

        def opened(_cls, plugins=(), **_):
            for observer in plugins:
                engine.plugins.watch(observer)
            return engine

        Engine.open = classmethod(opened)
        return app.main(words)
