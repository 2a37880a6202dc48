"""A publisher of images: an HTTPS server on this machine, with an authority of its own."""

import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import re
import ssl
import sys
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Publisher:
    """What it serves by path, what it does wrong, and what it was asked.

    ``files`` are bodies, ``redirects`` locations, ``cuts`` how many bytes of a body to send before
    the connection ends, once each.
    """

    def __init__(self, ca):
        self.ca = ca
        self.url = ""
        self.files = {}
        self.redirects = {}
        self.cuts = {}
        self.asked = []
        self.tags = True

    def add(self, path, body, checksums=None, text=None):
        """Serve an image, and the file with its checksum."""
        self.files[path] = body
        if checksums is not None:
            self.files[checksums] = text.encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        publisher, path = self.server.publisher, self.path
        asked = self.headers.get("Range")
        publisher.asked.append((self.command, path, asked))
        if path in publisher.redirects:
            self.send_response(302)
            self.send_header("Location", publisher.redirects[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = publisher.files.get(path)
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        tag = f'"{hashlib.sha256(content).hexdigest()[:12]}"'
        start = 0
        if asked and self.headers.get("If-Range") == tag:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if start >= len(content) > 0 and start:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if publisher.tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return
        cut = publisher.cuts.pop(path, None)
        self.wfile.write(content[start:] if cut is None else content[start:cut])
        if cut is not None:
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    """A server that says nothing where its client hangs up, as ours does on what is too large."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), (ConnectionError, ssl.SSLError)):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def publishing(folder):
    """Yield a publisher; its authority's certificate is in ``folder``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "publisher")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    ca, private = folder / "ca.pem", folder / "key.pem"
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, private)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.publisher = Publisher(ca)
        server.publisher.url = f"https://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.publisher
        server.shutdown()
