"""Downloads from hostile web servers are bounded in size, time and rate."""

import gzip
import shutil
import socket
import threading
import time

import pytest

from vmcloner_core import downloads
from vmcloner_core.downloads import fetch
from vmcloner_core.errors import HostCommandError, NotEnoughResources


@pytest.fixture
def serve():
    """Return a function that serves one answer, sent by a function of the socket; gives the URL."""
    servers = []

    def serve(send):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def work():
            try:
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        send(connection)
            except OSError:
                pass

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/image.raw"

    yield serve
    for server in servers:
        server.close()


def answer(body=b"", **headers):
    lines = [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode() + body


def get(url, tmp_path):
    told = []
    fetch(url, tmp_path / "image", lambda done, total: told.append((done, total)))
    return (tmp_path / "image").read_bytes(), told


def test_a_body_with_and_without_a_length(serve, tmp_path):
    body = bytes(range(256)) * 10_000
    url = serve(lambda s: s.sendall(answer(body, Content_Length=len(body))))
    found, told = get(url, tmp_path)
    assert found == body
    assert told[-1] == (len(body), len(body))
    (tmp_path / "image").unlink()
    assert get(serve(lambda s: s.sendall(answer(body))), tmp_path)[0] == body


def test_chunks(serve, tmp_path):
    sent = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    url = serve(lambda s: s.sendall(answer(sent, Transfer_Encoding="chunked")))
    assert get(url, tmp_path)[0] == b"abcde"


@pytest.mark.parametrize("length", ["abc", "-1", "1e9", "9" * 30, "\u0661"])
def test_a_length_that_is_no_number(serve, tmp_path, length):
    url = serve(lambda s: s.sendall(answer(b"x", Content_Length=length)))
    with pytest.raises(HostCommandError, match="length"):
        get(url, tmp_path)


def test_a_body_that_is_cut_off(serve, tmp_path):
    url = serve(lambda s: s.sendall(answer(b"x" * 100, Content_Length=1000)))
    with pytest.raises(HostCommandError):
        get(url, tmp_path)


def test_a_bomb_is_not_unpacked(serve, tmp_path):
    body = gzip.compress(bytes(10_000_000))
    url = serve(lambda s: s.sendall(answer(body, Content_Encoding="gzip")))
    with pytest.raises(HostCommandError, match="encodes it as 'gzip'"):
        get(url, tmp_path)


@pytest.fixture
def little_room(monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=downloads.RESERVE + 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)


def test_a_body_without_an_end_does_not_fill_the_disk(serve, tmp_path, little_room):
    def endless(connection):
        connection.sendall(answer())
        while True:
            connection.sendall(bytes(65536))

    with pytest.raises(NotEnoughResources, match=r"more than the 9\.8 KiB that are free"):
        get(serve(endless), tmp_path)
    assert (tmp_path / "image").stat().st_size <= 10_000


def test_a_length_beyond_the_room(serve, tmp_path, little_room):
    url = serve(lambda s: s.sendall(answer(b"x", Content_Length=20_000)))
    with pytest.raises(NotEnoughResources):
        get(url, tmp_path)


def test_a_server_that_drips(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "PERIOD", 0.3)

    def drip(connection):
        connection.sendall(answer(Content_Length=1_000_000))
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    with pytest.raises(HostCommandError, match="less than"):
        get(serve(drip), tmp_path)


def test_a_server_that_stops(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "READ_TIMEOUT", 0.3)
    stop = threading.Event()

    def stall(connection):
        connection.sendall(answer(b"x" * 10, Content_Length=1000))
        stop.wait(30)

    try:
        with pytest.raises(HostCommandError):
            get(serve(stall), tmp_path)
    finally:
        stop.set()


def test_a_server_does_not_say_when_to_ask_again(serve, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 999999\r\nContent-Length: 0\r\n\r\n"
    url = serve(lambda s: s.sendall(busy))
    with pytest.raises(HostCommandError, match="503"):
        get(url, tmp_path)
    assert sum(slept) < 10
