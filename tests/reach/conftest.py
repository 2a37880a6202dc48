"""Real sshd's on addresses of the loopback network: guests that let their user in, without a VM."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import attrs
import pytest

from tests.conftest import TEMPLATE
from vmcloner_core.model import Access

USER = getpass.getuser()


def keygen(path: Path) -> str:
    """Make a key pair; return the public key."""
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(argv, check=True, timeout=60)
    kind, key, *_ = path.with_name(f"{path.name}.pub").read_text().split()
    return f"{kind} {key}"


@attrs.frozen
class Site:
    """Four sshd's on one port, each with its own host key; web-4's is another than is known."""

    folder: Path
    port: int
    key: Path

    @property
    def plain(self) -> Path:
        """The folder by a path without a space: what quotes mean in Subsystem depends on sshd."""
        return self.folder.with_name("guests")

    @property
    def names(self) -> list[str]:
        return [f"web-{n}" for n in range(1, 5)]

    def address(self, name: str) -> str:
        return f"127.0.0.{name.rpartition('-')[2]}"

    def access(self, name: str, **changes: object) -> Access:
        access = Access(
            name=name,
            address=self.address(name),
            user=USER,
            port=self.port,
            known_hosts=self.folder / name / "known_hosts",
            key=self.key,
        )
        return attrs.evolve(access, **changes)

    def accesses(self, *names: str) -> list[Access]:
        return [self.access(name) for name in names or self.names]


def serve(site: Site, name: str) -> subprocess.Popen[bytes]:
    folder = site.folder / name
    folder.mkdir()
    known = keygen(folder / "host_key")
    if name == "web-4":
        known = keygen(folder / "another_key")
    (folder / "known_hosts").write_text(f"{name} {known}\n")
    (folder / "sftp").write_text("exec /usr/lib/openssh/sftp-server\n")  # tests replace it
    (folder / "sshd_config").write_text(
        f"""
        ListenAddress {site.address(name)}:{site.port}
        HostKey "{folder}/host_key"
        AuthorizedKeysFile "{site.key}.pub"
        PidFile none
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        SetEnv VMCLONER_GUEST={name}
        Subsystem sftp sh {site.plain}/{name}/sftp
        """
    )
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert sshd, "openssh-server is among the packages that tests need"
    return subprocess.Popen(
        [sshd, "-D", "-e", "-f", str(folder / "sshd_config")],
        stdin=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
    )


def listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def guests(tmp_path_factory):
    """The four, for the session."""
    folder = tmp_path_factory.mktemp("the guests")  # a space, for the quoting
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keygen(folder / "key")
    site = Site(folder, port, folder / "key")
    site.plain.symlink_to(folder)
    processes = [serve(site, name) for name in site.names]
    try:
        deadline = time.monotonic() + 30
        while not all(listens(site.address(name), port) for name in site.names):
            assert time.monotonic() < deadline, (folder / "web-1" / "log").read_text()
            time.sleep(0.05)
        yield site
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


@pytest.fixture
def web(guests, lab):
    """A fleet of four whose clones are those guests, as far as ssh can tell."""
    ssh = f'[ssh]\nuser = "{USER}"\nport = {guests.port}\nkey = "{guests.key}"\n'
    lab.template("t1", f'{TEMPLATE}{ssh}[[nics]]\nkind = "bridge"\nsource = "br0"\n')
    lab.engine.create("web", "t1", count=4, start=True)
    for name in guests.names:
        folder = lab.engine.host.records / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(guests.folder / name / "known_hosts", folder)
        lab.machines.found[name] = (guests.address(name), "192.0.2.1")
    return lab
