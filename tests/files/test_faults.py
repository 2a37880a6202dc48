"""The file system fails, at every call: each fault is one clear line, and the same call completes.

Calls to the operating system about files of the pool or the state folder are counted; in each round
another one fails.
"""

import errno
import fcntl
import io
import os

import attrs
import pytest

from tests.conftest import TEMPLATE
from vmcloner_core import Engine
from vmcloner_core.errors import PartialFailure, VmclonerError
from vmcloner_core.model import CloneMode, CloneRequest
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_files import drafts

CALLS = [
    *((os, name) for name in (
        "open", "read", "write", "pread", "pwrite", "fsync", "ftruncate", "fchmod", "chmod",
        "link", "rename", "replace", "unlink", "mkdir", "stat", "lstat", "fstat", "listdir",
        "scandir", "getxattr", "setxattr", "statvfs",
    )),
    (io, "open"),
    (fcntl, "flock"),
    (fcntl, "fcntl"),
]  # fmt: skip
STEP = 11
"""Not a divisor of the number of errors: each comes at other calls."""
ERRORS = [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.ESTALE]


class Faults:
    """Lets the n-th call about files in a folder fail."""

    def __init__(self, folder, monkeypatch):
        self.folder = str(folder)
        self.count, self.at, self.error = 0, -1, 0
        self.said = ""
        for module, name in CALLS:
            kinds = str | os.PathLike if module is io else object  # fdopen() makes no call
            monkeypatch.setattr(module, name, self._wrapped(name, getattr(module, name), kinds))
        self._readlink = os.readlink

    def _wrapped(self, name, real, kinds):
        def call(*args, **options):
            about = [arg for arg in args[:2] if isinstance(arg, kinds)]
            if self.at >= 0 and any(map(self._concerns, about)):
                self.count += 1
                if self.count == self.at + 1:
                    self.said = f"{name}{args[:2]}"
                    raise OSError(self.error, os.strerror(self.error))
            return real(*args, **options)

        return call

    def _concerns(self, arg):
        if isinstance(arg, int) and not isinstance(arg, bool) and arg > 2:
            try:
                arg = self._readlink(f"/proc/self/fd/{arg}")
            except OSError:
                return False
        elif not isinstance(arg, str | os.PathLike):
            return False
        return os.fspath(arg).startswith((f"{self.folder}/pool", f"{self.folder}/state"))


def run(driver, image, wanted):
    """Go through the life of a pool; return what failed."""
    failed = []

    def call(action):
        try:
            return action()
        except VmclonerError as error:
            failed.append(error)
        return None

    def outcomes(action):
        for outcome in call(lambda: list(action())) or ():
            if outcome.error is not None:
                failed.append(outcome.error)

    origin = call(lambda: driver.import_image("tiny", image, no_progress).unwrap())
    if origin is None:
        return failed
    requests = [attrs.evolve(each, origin=origin) for each in wanted]
    outcomes(lambda: driver.clone(requests))
    call(driver.volumes)
    outcomes(lambda: driver.reset(requests))
    call(lambda: driver.unlabelled([request.volume_name for request in requests]))
    call(driver.sweep)
    volumes = call(driver.volumes)
    outcomes(lambda: driver.delete(volumes or ()))
    outcomes(lambda: [driver.delete_origin("tiny")])
    return failed


@pytest.mark.parametrize("drafted", ["unnamed", "named"])
@pytest.mark.parametrize("mode", CloneMode)
def test_each_fault_is_one_line_and_leaves_nothing(
    tmp_path, make_driver, monkeypatch, mode, drafted
):
    if drafted == "named":

        def refuse(folder):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(drafts, "unnamed", refuse)
    image = make_image(tmp_path / "image.raw", seed=1, size=1024**2)
    wanted = [
        CloneRequest(labels=make_labels(index=index), mode=mode, size=2 * 1024**2)
        for index in (1, 2)
    ]
    faults = Faults(tmp_path, monkeypatch)
    unseen, at = [], 0
    while True:
        faults.count, faults.at, faults.error = 0, at, ERRORS[at % len(ERRORS)]
        failed = run(make_driver(tmp_path), image, wanted)
        reached, faults.at = faults.count > at, -1
        where = f"call {at}, {faults.said}: {os.strerror(faults.error)}"
        for error in failed:
            check_line(error, where)
            assert error.exit_code != 1, where
        unseen += [where] if not failed and reached else []
        assert run(make_driver(tmp_path), image, wanted) == [], where
        for folder in ("volumes", "templates", ".tmp"):
            assert list((tmp_path / "pool" / folder).iterdir()) == [], where
        if not reached:
            break
        at += STEP
    assert at > 100


SETTINGS = """
[defaults]
hypervisor = "reference"
storage = "pool"
[hosts.local]
state = "{folder}/state"
[hosts.local.storage.pool]
driver = "files"
path = "{folder}/pool"
"""


def check_line(error, where):
    assert isinstance(error, VmclonerError), where
    assert "\n" not in str(error), where
    assert "unexpected" not in str(error), where
    assert "Error" not in error.message, where


def test_each_fault_of_a_run_is_one_line_for_each_clone(tmp_path, monkeypatch):
    """The records and the state folder too. Afterwards the same commands do the rest."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "vmcloner.toml"
    config.write_text(SETTINGS.format(folder=tmp_path))
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "t1.toml").write_text(TEMPLATE)
    (tmp_path / "templates" / "image.raw").write_bytes(bytes(1024**2))
    faults = Faults(tmp_path, monkeypatch)
    plugins = [BootPlugin(), HypervisorPlugin()]

    def run():
        failed = []
        with Engine.open(config=config, plugins=plugins) as engine:
            for action in (
                lambda: engine.create("web", "t1", count=2, start=True),
                engine.survey,
                lambda: engine.reset("web"),
                lambda: engine.delete("web"),
                lambda: engine.delete_template("t1"),
            ):
                try:
                    action()
                except PartialFailure as error:
                    failed += [error, *(each for _name, each in error.failures)]
                except VmclonerError as error:
                    failed.append(error)
        return failed

    at = 0
    while True:
        faults.count, faults.at, faults.error = 0, at, ERRORS[at % len(ERRORS)]
        try:
            failed = run()
        except OSError as error:
            raise AssertionError(f"call {at}, {faults.said}: {error}") from error
        reached, faults.at = faults.count > at, -1
        where = f"call {at}, {faults.said}: {os.strerror(faults.error)}"
        for error in failed:
            check_line(error, where)
        assert run() == [], where
        if not reached:
            break
        at += STEP
    assert at > 100
