"""A state folder that is full, can't be read, or has no locks: one line each, the rest goes on."""

import contextlib
import errno
import fcntl
import logging
import os
import subprocess
import tempfile

import attrs
import pytest

from tests.core.test_seeding import homes, notes  # noqa: F401 - a fixture
from vmcloner_core import Engine, State
from vmcloner_core.errors import BackendError, NotEnoughResources, PartialFailure
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin, StoragePlugin


@pytest.fixture
def full(monkeypatch):
    """Return a function that fills the disk, for files of these clones only where it is told."""
    real = os.open

    def fill(*clones):
        def fail(path, flags, *mode, **options):
            here = not clones or any(clone in str(path).split("/") for clone in clones)
            if here and str(path).endswith(".draft"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(path, flags, *mode, **options)

        monkeypatch.setattr("vmcloner_core.records.os.open", fail)

    return fill


def failed(call):
    """Return the reasons of the clones that failed, by name."""
    with pytest.raises(PartialFailure) as caught:
        call()
    return {name: str(error) for name, error in caught.value.failures}


def fill_run_logs(monkeypatch):
    """Have the disk full for logs of runs."""
    real = os.open

    def opened(path, flags, *mode, **options):
        if str(path).endswith(".jsonl"):
            return real("/dev/full", os.O_WRONLY)
        return real(path, flags, *mode, **options)

    monkeypatch.setattr("vmcloner_core.runlog.os.open", opened)


def test_a_delete_says_that_it_succeeded_though_its_log_cannot_be_written(lab, run, monkeypatch):
    lab.engine.create("web", "t1", count=5)
    fill_run_logs(monkeypatch)
    # Of other tests' commands: they write to streams that are closed.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    code, out, err = run("delete", "web", "--yes")
    assert code == 0
    assert not lab.engine.list()
    assert "5" in out + err
    assert err.count("No space left on device") == 1


def test_nothing_is_written_to_delete(lab, monkeypatch):
    lab.engine.create("web", "t1", count=2)

    def fail(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    monkeypatch.setattr("vmcloner_core.records._write", fail)
    lab.engine.delete("web")
    assert not lab.engine.list()
    assert homes(lab) == []


def test_a_seed_that_cannot_be_noted_fails_its_own_clone(lab, notes, full):  # noqa: F811
    update = lab.engine._host.records.update

    def note(clone, **changes):
        full("web-2")
        update(clone, **changes)

    lab.engine._host.records.update = note
    reasons = failed(lambda: lab.engine.create("web", "t1", count=3, start=True))
    assert list(reasons) == ["web-2"]
    assert "No space left on device" in reasons["web-2"]
    states = {clone.name: clone.state for clone in lab.engine.list()}
    assert states["web-1"] is states["web-3"] is State.RUNNING


def test_a_stop_that_cannot_be_noted_fails_its_own_clone_and_stops_nothing(lab, full):
    lab.engine.create("web", "t1", count=3, start=True)
    full("web-2")
    reasons = failed(lambda: lab.engine.reset("web"))
    assert list(reasons) == ["web-2"]
    assert {clone.state for clone in lab.engine.list()} == {State.RUNNING}


def test_a_start_that_cannot_be_noted_is_a_start(lab, full, caplog):
    lab.engine.create("web", "t1", count=2, start=True)
    lab.engine.stop("web", kill=True)
    for name in ("web-1", "web-2"):
        lab.engine._host.records.note_restart(name, wanted=True)
    full("web-1")
    assert lab.engine.start("web").ok
    assert {clone.state for clone in lab.engine.list()} == {State.RUNNING}
    assert caplog.text.count("No space left on device") == 1


def test_an_identity_folder_that_cannot_be_read_is_one_line(lab, notes, monkeypatch):  # noqa: F811
    lab.engine.create("web", "t1", count=2, start=True)
    exists = type(lab.folder).exists

    def denied(path):
        if "web-1" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied")
        return exists(path)

    monkeypatch.setattr(type(lab.folder), "exists", denied)
    with pytest.raises(Exception, match=r"web-1: .*known_hosts: Permission denied") as caught:
        lab.engine._host.records.known_hosts("web-1")
    assert not isinstance(caught.value, OSError)
    assert lab.engine._host.records.known_hosts("web-2") is not None
    assert list(failed(lambda: lab.engine.delete("web"))) == ["web-1"]


@pytest.mark.parametrize("act", ["start", "delete", "create"])
def test_an_identities_folder_that_fails_is_one_line(lab, run, monkeypatch, act):
    lab.engine.create("web", "t1", count=1)
    folder, real = lab.engine._host.records.folder, os.listdir

    def fail(path):
        if path == folder:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr("vmcloner_core.records.os.listdir", fail)
    words = {"create": ("web", "-t", "t1"), "delete": ("web", "--yes"), "start": ("web",)}
    code, _, err = run(act, *words[act])
    assert code == 9
    assert err == (
        f"vmcloner: {folder}: Input/output error (see dmesg, then run the same command again)\n"
    )


def test_locks_that_fail_are_one_line(lab, run, monkeypatch):
    real = fcntl.fcntl

    def fail(descriptor, command, *arguments):
        if command == fcntl.F_OFD_SETLK:
            raise OSError(errno.ENOLCK, "No locks available")
        return real(descriptor, command, *arguments)

    monkeypatch.setattr("vmcloner_core.locks.fcntl.fcntl", fail)
    code, _out, err = run("create", "web", "-t", "t1")
    assert code == BackendError.exit_code
    assert "No locks available" in err
    assert "hosts.local.state" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("part", ["download", "build"])
def test_no_room_for_an_image_is_one_line(lab, monkeypatch, part):
    from vmcloner_core import images
    from vmcloner_core.model import ImageSource

    def fail(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Builder:
        def fingerprint(self):
            return "1"

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    template = lab.engine._host.catalog.template("t1")
    host = lab.engine.host
    source = ImageSource(url="http://127.0.0.1:1/x.raw", sha256="0" * 64)
    template = attrs.evolve(template, image=source, folder=host.templates / "t1")
    builder = Builder() if part == "build" else None
    obtained = images.obtained(template, builder, host, lambda _done, _total: None)
    with pytest.raises(NotEnoughResources, match="No space left on device"), obtained:
        pass


@pytest.mark.filesystems
def test_clones_are_deleted_though_the_state_folder_is_full(tmp_path, monkeypatch, capfd):
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VMCLONER_CONFIG", raising=False)
    (tmp_path / "vmcloner.toml").write_text(
        f'[defaults]\nhypervisor = "reference"\nstorage = "reference"\n'
        f'[hosts.local]\nstate = "{state}"\n'
    )
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "t1.toml").write_text(
        'hypervisors = ["reference"]\nboot = "reference"\n[image]\npath = "image.raw"\n'
    )
    (tmp_path / "templates" / "image.raw").write_bytes(bytes(1024**2))
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", state]
    subprocess.run(mount, check=True, timeout=60)
    try:
        plugins = [StoragePlugin(), HypervisorPlugin(), BootPlugin()]
        with Engine.open(plugins=plugins) as engine:
            engine.create("web", "t1", count=5, start=True)
            with contextlib.suppress(OSError):
                (state / "filling").write_bytes(bytes(2 * 1024**2))
            assert os.statvfs(state).f_bavail == 0
            assert engine.delete("web").ok
            assert engine.list() == ()
    finally:
        subprocess.run(["umount", state], check=True, timeout=60)
