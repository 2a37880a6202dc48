"""Hosts that share a pool's folder: state folders of their own, and real processes.

NFS itself is in tests/nfs: the kernel needs its client. What its mounts say is tested here by their
text, and how it answers by the conformance suite's TestLikeNfs.
"""

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest

from tests.files.sharing_work import make, opened
from vmcloner_core.errors import BackendError, Conflict, NotEnoughResources, WrongState
from vmcloner_core.model import CloneMode, CloneRequest, SnapshotLabels, SnapshotRequest
from vmcloner_core.os_errors import translate
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image
from vmcloner_files import drafts, labelling
from vmcloner_files import pool as pools
from vmcloner_files.sharing import check_locks, is_shared, mount_of

WORKER = Path(__file__).with_name("sharing_work.py")
TABLE = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:44 / /srv/one rw,relatime shared:9 - nfs4 lab:/srv rw,vers=4.2,hard,local_lock=none
31 22 0:45 / /srv/two rw - nfs lab:/srv rw,vers=3,hard,nolock,local_lock=all
32 22 0:46 / /srv/three rw - nfs lab:/srv rw,vers=3,hard,local_lock=flock
33 22 0:47 / /srv/four rw - nfs4 lab:/srv rw,vers=4.1,nocto,local_lock=none
34 22 0:48 / /srv/five rw - nfs lab:/srv rw,vers=3,hard,local_lock=none
35 22 0:49 / /srv/a\040b rw - cifs //lab/srv rw,vers=3.1.1
36 22 0:50 / /srv/ssh rw - fuse.sshfs lab:/srv rw
37 22 0:51 / /srv/two/local rw - xfs /dev/vdb rw
38 22 0:51 / /srv/six rw - xfs /dev/vdb rw
39 22 0:52 / /srv/six rw - nfs4 lab:/six rw,local_lock=none
broken
"""


@pytest.mark.parametrize(
    ("folder", "kind", "shared", "error"),
    [
        ("/srv/one/pool", "nfs4", True, None),
        ("/srv/five", "nfs", True, None),
        ("/srv/two", "nfs", True, "/srv/two is mounted with local_lock=all"),
        ("/srv/three/x", "nfs", True, "/srv/three is mounted with local_lock=flock"),
        ("/srv/four", "nfs4", True, "/srv/four is mounted with nocto"),
        ("/srv/a b/pool", "cifs", False, "is on cifs, whose locks are not known"),
        ("/srv/ssh", "fuse.sshfs", False, "is on fuse.sshfs"),
        ("/srv/two/local/pool", "xfs", False, None),
        ("/srv/six/pool", "nfs4", True, None),  # the later one hides the earlier
        ("/srv/oneness", "ext4", False, None),
    ],
)
def test_what_a_mount_says_of_sharing(folder, kind, shared, error):
    mount = mount_of(Path(folder), TABLE)
    assert mount.kind == kind
    assert is_shared(mount, None) is shared
    assert is_shared(mount, not shared) is not shared
    if error is None:
        check_locks("pool x", mount)
    else:
        with pytest.raises(BackendError) as caught:
            check_locks("pool x", mount)
        assert error in caught.value.message
        assert "shared = false" in caught.value.hint


@pytest.fixture
def image(tmp_path):
    return make_image(tmp_path / "image.raw", 1, 2**20)


@pytest.fixture
def two(tmp_path):
    """Return two hosts: their drivers and the ids of their state folders."""
    return [opened(tmp_path / name, tmp_path / "pool") for name in ("h1", "h2")]


def names(driver):
    return sorted(volume.name for volume in driver.volumes())


def test_each_host_sees_and_deletes_its_own_clones(two, image):
    (one, own), (two_, other) = two
    make(one, own, image, "web", 2)
    make(two_, other, image, "db", 2)
    assert names(one) == ["web-1-disk0", "web-2-disk0"]
    assert names(two_) == ["db-1-disk0", "db-2-disk0"]
    assert [o.template for o in two_.origins()] == ["tiny"]  # imported once for both
    assert [d.unwrap() for d in one.delete(one.volumes())] == [None, None]
    one.sweep()
    assert names(two_) == ["db-1-disk0", "db-2-disk0"]
    with pytest.raises(WrongState, match="clones are linked to its image: db-"):
        one.delete_origin("tiny")


def test_an_image_that_another_host_has_just_made_is_used(two, image, monkeypatch):
    """That host has a clone of it already when this one looks whether it may replace an image."""
    (one, own), (two_, other) = two
    there = pools.Pool.check_unlinked

    def late(self, template):
        monkeypatch.setattr(pools.Pool, "check_unlinked", there)
        make(two_, other, image, "db", 1)
        there(self, template)

    monkeypatch.setattr(pools.Pool, "check_unlinked", late)
    outcome = one.import_image("tiny", image, lambda _done, _total: None)
    assert (outcome.changed, outcome.unwrap()) == (False, *two_.origins())
    make(one, own, image, "web", 1)


def test_a_clone_of_another_host_is_never_taken_over(two, image):
    """Two guests would write to one disk."""
    (one, own), (two_, other) = two
    make(one, own, image, "web", 1)
    [volume] = one.volumes()
    before = volume.path.read_bytes()
    with pytest.raises(Conflict, match="belongs to another host that shares the pool"):
        make(two_, other, image, "web", 1)
    labels = make_labels("web", 1, state=other)
    [origin] = two_.origins()
    request = CloneRequest(labels=labels, origin=origin, mode=CloneMode.LINKED)
    for outcome in (*two_.reset([request]), *two_.clone([request])):
        assert isinstance(outcome.error, Conflict)
    mine = volume.path
    for outcome in two_.delete([attrs.evolve(volume, labels=labels)]):
        assert isinstance(outcome.error, Conflict)
    assert list(two_.unlabelled(["web-1-disk0"])) == ["web-1-disk0"]
    assert list(one.unlabelled(["web-1-disk0"])) == []
    assert mine.read_bytes() == before


def test_each_host_sees_its_own_snapshots(two, image):
    (one, own), (two_, _other) = two
    make(one, own, image, "web", 1)
    [volume] = one.volumes()
    labels = SnapshotLabels(
        labels=volume.labels,
        name="clean",
        taken="2026-01-01T00:00:00Z",
        disk=0,
        disks=1,
    )
    for outcome in one.snapshots.create([SnapshotRequest(volume=volume, labels=labels)]):
        outcome.unwrap()
    assert len(one.snapshots.found()) == 1
    assert two_.snapshots.found() == ()
    for outcome in two_.snapshots.delete(one.snapshots.found()):
        assert isinstance(outcome.error, Conflict)
    assert len(one.snapshots.found()) == 1


def test_a_draft_of_another_host_is_left_while_it_lives(two, image, monkeypatch):
    (one, own), (two_, _) = two
    make(one, own, image, "web", 1)
    with one._pool.draft(one._pool.volumes, named=True) as draft:
        two_.sweep()
        assert draft.path.exists()
        assert two_.leftovers() == ()


def test_labels_are_kept_of_a_file_that_is_not_seen_yet(two, image):
    """NFS may list a folder as it was a moment ago."""
    (one, own), (two_, _) = two
    make(one, own, image, "web", 2)
    hidden = one.volumes()[0].path
    away = hidden.with_name(".hidden")
    hidden.rename(away)
    (one._pool.folder / ".labels").open("ab").write(b"x" * 10**6)  # so that it is written anew
    two_.sweep()
    away.rename(hidden)
    assert names(opened(one.context.host.state, one._pool.folder)[0]) == [
        "web-1-disk0",
        "web-2-disk0",
    ]


def test_labels_are_in_one_place(two, image):
    (one, own), _ = two
    make(one, own, image, "web", 1)
    assert os.listxattr(one.volumes()[0].path) == []


def test_labels_whose_file_another_host_replaced_are_read_again(two, image, monkeypatch):
    (one, own), _ = two
    make(one, own, image, "web", 1)
    read, stale = os.pread, [True]

    def pread(fd, *more):
        if stale and stale.pop():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(fd, *more)

    monkeypatch.setattr(labelling.os, "pread", pread)
    assert names(one) == ["web-1-disk0"]
    assert not stale


def test_a_draft_that_another_host_removes_is_made_again(two, image, monkeypatch):
    """Its sweep had begun before the draft was locked, and its request came late."""
    (one, own), _ = two
    monkeypatch.setattr(drafts, "unnamed", _refused)
    publish, stale = drafts.Draft.publish, [True]

    def published(draft, path):
        if stale and path.name == "web-1-disk0" and stale.pop():
            draft.name.unlink()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        publish(draft, path)

    monkeypatch.setattr(drafts.Draft, "publish", published)
    make(one, own, image, "web", 1)
    assert names(one) == ["web-1-disk0"]
    assert not stale
    assert list((one._pool.volumes.parent / ".tmp").iterdir()) == []


def test_nothing_is_removed_while_it_is_open_here(two, image, monkeypatch):
    """NFS would keep it, under another name; after a power failure, for good."""
    (one, own), _ = two
    monkeypatch.setattr(drafts, "unnamed", _refused)
    unlink, removed = Path.unlink, []

    def closed(path, missing_ok=False):
        if path.exists():
            removed.append(path.parent.name)
            held = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
            assert str(path) not in held
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", closed)
    make(one, own, image, "web", 1)
    for outcome in one.delete(one.volumes()):
        outcome.unwrap()
    assert {".tmp", "volumes"} <= set(removed)


def test_a_clone_whose_bytes_the_server_has_no_room_for_is_not_there(two, image, monkeypatch):
    """NFS takes bytes, and says later that it is full: when they are flushed."""
    (one, own), _ = two
    monkeypatch.setattr(drafts, "unnamed", _refused)
    make(one, own, image, "web", 1)
    [origin] = one.origins()
    request = CloneRequest(
        labels=make_labels("web", 2, state=own), origin=origin, mode=CloneMode.LINKED
    )

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in (one.clone, one.reset):
        with monkeypatch.context() as patch:
            patch.setattr(drafts.os, "fsync", full)
            [outcome] = call([request])
            assert isinstance(outcome.error, NotEnoughResources)
            assert names(one) == ["web-1-disk0"]
        [outcome] = call([request])
        outcome.unwrap()
        for deleted in one.delete([outcome.value]):
            deleted.unwrap()


def _refused(folder):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.parametrize(("uid", "way"), [(0, "no_root_squash"), (1000, "or as root")])
def test_what_is_denied_to_root_needs_another_export(monkeypatch, uid, way):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    error = translate(PermissionError(errno.EACCES, "Permission denied"), "pool /srv/pool")
    assert (error.message, way in error.hint) == ("pool /srv/pool: Permission denied", True)


def test_who_writes_a_shared_pool_is_alone(two):
    """Appends of two clients of NFS would overwrite each other."""
    (one, _), (two_, _) = two
    one._pool.prepare()
    two_._pool.prepare()
    with one._pool.lock(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "LOCK_TIMEOUT", 0)
        with pytest.raises(Exception, match="locked by another process"), two_._pool.lock():
            pass


def test_a_pool_whose_locks_do_not_hold_is_refused(tmp_path, image, monkeypatch):
    table = f"1 0 0:1 / {tmp_path} rw - nfs lab:/ rw,vers=3,nolock,local_lock=all\n"
    monkeypatch.setattr(pools, "mount_of", lambda path: mount_of(path, table))
    driver, own = opened(tmp_path / "h1", tmp_path / "pool")
    with pytest.raises(BackendError, match="is mounted with local_lock=all"):
        make(driver, own, image, "web", 1)
    assert not (tmp_path / "pool").exists()
    found = {check.name: check for check in driver.probe()}
    assert found["sharing"].status.name == "FAILED"


def test_hosts_at_work_at_once_lose_nothing(tmp_path, image):
    """Six hosts make, delete and sweep at once, one of them is killed: all clones are there."""
    make_image(tmp_path / "image.raw", 1, 2**20)
    chance = random.Random(1)

    def start(name, rounds):
        words = [tmp_path / name, tmp_path / "pool", name, "8", str(rounds)]
        return subprocess.Popen([sys.executable, WORKER, *words], stdout=subprocess.PIPE)

    hosts = [f"h{n}" for n in range(6)]
    running = [start(name, 6) for name in hosts]
    with start("h9", 10**6) as killed:
        assert killed.stdout.readline() == b"go\n"
        time.sleep(chance.uniform(0.1, 0.5))
        killed.kill()
    for process in running:
        with process:
            process.communicate(timeout=120)
        assert process.returncode == 0
    with start("h9", 0) as again:
        again.communicate(timeout=60)
    for name in (*hosts, "h9"):
        driver, _ = opened(tmp_path / name, tmp_path / "pool")
        assert names(driver) == [f"{name}-{n}-disk0" for n in range(1, 9)]
        driver.sweep()
    assert list((tmp_path / "pool/.tmp").iterdir()) == []
    assert len(list((tmp_path / "pool/volumes").iterdir())) == 56
