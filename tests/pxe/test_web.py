"""Files of web servers: whom they are asked of, and by which name."""

import http.server
import ssl
import subprocess
import threading
import time

import pytest

from vmcloner_pxe import web
from vmcloner_pxe.errors import NetbootError


class Handler(http.server.BaseHTTPRequestHandler):
    """Says by which name it was asked; redirects once by /to?URL."""

    def do_GET(self):
        where = self.path.partition("?")[2]
        body = b"" if where else f"{self.headers['Host']} {self.path}".encode()
        self.send_response(301 if where else 200)
        if where:
            self.send_header("Location", where)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server():
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def secure(server, tmp_path, monkeypatch):
    """The server, with a certificate for boot.example that is believed."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=boot.example", "-addext", "subjectAltName=DNS:boot.example"),
            *("-keyout", tmp_path / "key", "-out", tmp_path / "certificate"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
    return server


def get(url, asked=None):
    def address(host):
        if asked is not None:
            asked.append(host)
        if host == "inside.example":
            raise NetbootError("not to be reached")
        return "127.0.0.1"

    got = []
    with web.download(url, address, max_size=1000, deadline=time.monotonic() + 20) as file:
        file.read(got.append)
    return b"".join(got).decode()


def test_a_server_is_asked_by_its_name_at_the_address_that_was_looked_at(server):
    port = server.server_port
    assert get(f"http://boot.example:{port}/a%20b") == f"boot.example:{port} /a%20b"


def test_a_redirect_is_looked_at_like_the_first_address(server):
    port, asked = server.server_port, []
    assert get(f"http://a.example:{port}/to?http://b.example:{port}/x", asked).endswith("/x")
    assert asked == ["a.example", "b.example"]
    with pytest.raises(NetbootError, match="not to be reached"):
        get(f"http://a.example:{port}/to?//inside.example:{port}/x")
    with pytest.raises(NetbootError, match="not a web server's file"):
        get(f"http://a.example:{port}/to?file:///etc/passwd")


def test_a_certificate_is_checked_for_the_name_not_the_address(secure):
    port = secure.server_port
    assert get(f"https://boot.example:{port}/x") == f"boot.example:{port} /x"
    with pytest.raises(NetbootError, match="doesn't match"):
        get(f"https://other.example:{port}/x")
