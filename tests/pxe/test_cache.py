"""The cache: one fetch for many, whole files or none, never more than it may hold."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmcloner_pxe import command
from vmcloner_pxe.cache import Cache
from vmcloner_pxe.errors import NetbootError


@pytest.fixture
def cache(tmp_path):
    return Cache(folder=tmp_path)


def get(cache, key, content, deadline=None):
    def fetch(stream):
        stream.write(content)

    return cache.get((key,), fetch, deadline=deadline or time.monotonic() + 60)


def test_fetches_once_for_many(cache):
    fetched = []

    def fetch(stream):
        fetched.append(threading.get_ident())
        time.sleep(0.1)
        stream.write(b"content")

    with ThreadPoolExecutor(20) as pool:
        streams = list(
            pool.map(lambda _n: cache.get(("k",), fetch, deadline=time.monotonic() + 60), range(20))
        )
    assert len(fetched) == 1
    assert {stream.read() for stream in streams} == {b"content"}


def test_keeps_nothing_of_a_fetch_that_failed(cache, tmp_path):
    def fetch(stream):
        stream.write(b"half")
        raise NetbootError("truncated")

    with pytest.raises(NetbootError, match="truncated"):
        cache.get(("k",), fetch, deadline=time.monotonic() + 60)
    assert all(path.name.startswith("lock-") for path in tmp_path.iterdir())
    assert get(cache, "k", b"whole").read() == b"whole"


def test_fetches_anew_what_is_too_old_while_others_read_it(cache, tmp_path):
    old = get(cache, "k", b"old")
    assert get(cache, "k", b"new").read() == b"old"
    [path] = [path for path in tmp_path.iterdir() if not path.name.startswith("lock-")]
    os.utime(path, (time.time() - 700,) * 2)
    assert get(cache, "k", b"new").read() == b"new"
    assert old.read() == b"old"


def test_removes_the_oldest_where_it_holds_too_much(tmp_path):
    cache = Cache(folder=tmp_path, max_size=2500)
    for number in range(4):
        get(cache, str(number), bytes(1000)).close()
        time.sleep(0.02)
    left = [path for path in tmp_path.iterdir() if not path.name.startswith("lock-")]
    assert len(left) == 2
    assert get(cache, "3", b"fetched again").read() == bytes(1000)


def test_waits_no_longer_than_the_deadline_for_anothers_download(cache):
    began, go_on = threading.Event(), threading.Event()

    def fetch(_stream):
        began.set()
        go_on.wait(30)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(cache.get, ("k",), fetch, deadline=time.monotonic() + 60)
        began.wait(30)
        with pytest.raises(NetbootError, match="another download"):
            get(cache, "k", b"", deadline=time.monotonic() + 0.1)
        go_on.set()
        other.result().close()


def test_says_why_it_cannot_be_written(tmp_path):
    with pytest.raises(NetbootError, match=r"No such file or directory \(ENOENT\)"):
        get(Cache(folder=tmp_path / "gone"), "k", b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_the_folder_of_another_user_is_given_to_it_and_nothing_else(tmp_path, monkeypatch):
    """In a folder that others can write, a link may take its place as soon as it is made."""
    precious = tmp_path / "precious"
    precious.touch()
    mkdir = Path.mkdir

    def raced(path, *args, **options):
        mkdir(path, *args, **options)
        if path.name == "uid-65534":
            path.rmdir()
            path.symlink_to(precious)

    monkeypatch.setattr(Path, "mkdir", raced)
    with pytest.raises(NetbootError, match="isn't a folder of user"):
        command.cache(tmp_path / "cache", (65534, 65534))
    assert precious.stat().st_uid == 0
