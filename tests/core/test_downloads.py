"""Downloads from hostile web servers are bounded in size, time and rate."""

import gzip
import shutil
import socket
import threading
import time

import pytest

from vmcloner_core import downloads
from vmcloner_core.downloads import fetch
from vmcloner_core.errors import HostCommandError, InvalidRequest, NotEnoughResources


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


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_the_proxy_of_the_environment_is_asked(serve, tmp_path, monkeypatch, variable):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked = []

    def proxy(connection):
        asked.append(True)  # first: the client may be done before the next statement
        connection.sendall(answer(b"by proxy", Content_Length=8))

    url = serve(proxy)
    port = url.rpartition(":")[2].partition("/")[0]
    monkeypatch.setenv(variable, f"http://user:pass%40word@127.0.0.1:{port}")
    assert get("http://images.example/disk.raw", tmp_path)[0] == b"by proxy"
    monkeypatch.setenv(variable, f"127.0.0.1:{port}")
    assert get("http://images.example/disk.raw", tmp_path)[0] == b"by proxy"
    assert asked == [True, True]
    direct = serve(lambda s: s.sendall(answer(b"direct", Content_Length=6)))
    for left_out in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(left_out, "localhost,127.0.0.1")
        assert get(direct, tmp_path)[0] == b"direct"
        monkeypatch.delenv(left_out)
    monkeypatch.setenv(variable, "socks5://127.0.0.1:1")
    with pytest.raises(InvalidRequest, match="is no HTTP proxy") as caught:
        get(direct, tmp_path)
    assert "no_proxy" in caught.value.hint


def test_a_redirect_to_another_host_asks_that_hosts_proxy(serve, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    proxy = serve(lambda s: s.sendall(answer(b"by proxy", Content_Length=8)))
    head = b"HTTP/1.1 302 Found\r\nLocation: http://images.example/x\r\nContent-Length: 0\r\n\r\n"
    direct = serve(lambda s: s.sendall(head))
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(direct, tmp_path)[0] == b"by proxy"


def test_redirects_without_an_end_or_to_something_else(serve, tmp_path):
    for location in ("/again", "ftp://127.0.0.1/x", "file:///etc/passwd"):
        head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        url = serve(lambda s, head=head: s.sendall(head.encode()))
        with pytest.raises(HostCommandError, match=r"too many redirects|redirects to"):
            get(url, tmp_path)
