"""A cluster of Dask distributed with mutual TLS: a scheduler, and a worker beside each host."""

import datetime
import ipaddress
import os
import subprocess
import sys
import time

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DASK = (sys.executable, "-I", "-m", "dask")
UNPROFILED = {**os.environ, "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}


def certify(folder, *names):
    """Write an authority, ``ca.pem``, and for each name ``NAME.pem`` and ``NAME.key``."""
    folder.mkdir(exist_ok=True)
    authority = ec.generate_private_key(ec.SECP256R1())
    _write(folder / "ca.pem", _certificate("ca", authority, "ca", authority, True))
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder / f"{name}.pem", _certificate(name, key, "ca", authority, False))
        form = serialization.PrivateFormat.PKCS8
        none = serialization.NoEncryption()
        text = key.private_bytes(serialization.Encoding.PEM, form, none)
        (folder / f"{name}.key").write_bytes(text)
        (folder / f"{name}.key").chmod(0o600)


def _certificate(name, key, issuer, by, is_authority):
    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
    )
    return builder.sign(by, hashes.SHA256())


def _write(file, certificate):
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@attrs.define
class Cluster:
    """A scheduler on an address, and what it needs."""

    folder: object
    address: str
    certificates: object = None
    scheduler: subprocess.Popen | None = None
    url: str = ""
    """Where the scheduler is; known when it is started."""

    def start(self):
        """Start the scheduler; returns when it listens."""
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        scheme = "tcp" if self.certificates is None else "tls"
        port = self.url.rpartition(":")[2] or "0"
        self.scheduler = subprocess.Popen(
            [
                *(*DASK, "scheduler", "--no-dashboard", "--scheduler-file", file),
                *("--host", f"{scheme}://{self.address}:{port}"),
                *self._tls("scheduler"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "scheduler.log").open("a"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text().endswith("}"):
            assert self.scheduler.poll() is None, (self.folder / "scheduler.log").read_text()
            assert time.monotonic() < deadline, "the scheduler does not start"
            time.sleep(0.1)
        import json

        self.url = json.loads(file.read_text())["address"]

    def worker(self, host, *options):
        """Return the command of a host's worker."""
        return [
            *(*DASK, "worker", self.url, "--no-dashboard", "--no-nanny", "--nthreads", "1"),
            *("--memory-limit", "0", "--resources", f"vmcloner-{host}=1"),
            *self._tls("worker"),
            *options,
        ]

    def _tls(self, name):
        if self.certificates is None:
            return ()
        return (
            *("--tls-ca-file", self.certificates / "ca.pem"),
            *("--tls-cert", self.certificates / f"{name}.pem"),
            *("--tls-key", self.certificates / f"{name}.key"),
        )

    def settings(self, name="controller"):
        """Return the table ``[carrier]`` of a controller."""
        lines = ["[carrier]", 'driver = "dask"', f'scheduler = "{self.url}"']
        if self.certificates is not None:
            lines.append(f'ca = "{self.certificates / "ca.pem"}"')
            lines += [f'cert = "{self.certificates / name}.pem"']
            lines += [f'key = "{self.certificates / name}.key"']
        return "\n".join([*lines, ""])

    def close(self):
        """End the scheduler."""
        if self.scheduler is not None:
            self.scheduler.kill()
            self.scheduler.wait()
