"""Root folders of Debian and Ubuntu releases: made once by mmdebstrap, unpacked for each use."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from contrib.lab import cache
from contrib.lab.errors import LabError
from contrib.lab.proc import need, run

_DEBIAN = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_UBUNTU = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
# Devices of its own: a package's script changes the group of /dev/kvm, and the host's must stay.
_ENTER = """
set -e
mount --rbind "$0" "$0"  # what makes namespaces of its own there needs a root that is a mount
mount -t tmpfs -o mode=755,nosuid dev "$0/dev"
mkdir "$0/dev/net"
while read -r name numbers; do
    mknod -m 666 "$0/dev/$name" c $numbers
done <<END
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
net/tun 10 200
END
mkdir "$0/dev/pts" "$0/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$0/dev/pts"
mount -t tmpfs -o mode=1777 shm "$0/dev/shm"
ln -s pts/ptmx "$0/dev/ptmx"
ln -s /proc/self/fd "$0/dev/fd"
ln -s fd/0 "$0/dev/stdin"
ln -s fd/1 "$0/dev/stdout"
ln -s fd/2 "$0/dev/stderr"
exec chroot "$0" "$@"
"""
_NO_DAEMONS = "#!/bin/sh\nexit 101\n"


@attrs.frozen(kw_only=True)
class Release:
    """A release of a distribution.

    :param suffix: ends the version of a package that is built for it.
    :param python: its version, like ``3.13``. :param options: apt's settings for it.
    """

    name: str
    suffix: str
    python: str
    components: str = "main"
    keyring: Path = _DEBIAN
    options: tuple[str, ...] = ()


RELEASES = {
    release.name: release
    for release in (
        Release(name="bookworm", suffix="deb12", python="3.11"),
        Release(name="trixie", suffix="deb13", python="3.13"),
        # Still changes. Its lists are valid for a week, which many mirrors and snapshots exceed.
        Release(
            name="forky",
            suffix="deb14",
            python="3.14",
            options=('Acquire::Check-Valid-Until "false"',),
        ),
        Release(
            name="noble",
            suffix="ubuntu24.04",
            python="3.12",
            components="main,universe",
            keyring=_UBUNTU,
        ),
    )
}


@attrs.frozen
class Root:
    """An unpacked root folder. Changes are lost when it is no longer used."""

    folder: Path

    def run(
        self, *argv: str | Path, timeout: float = 600.0, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a command in it as root, with the machine's network, and return its output.

        :raises LabError: it failed; the message has its last lines.
        :raises TimeUp: it took longer than ``timeout`` seconds, and was killed.
        """
        variables = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        out = run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                *(f"--mount-proc={self.folder / 'proc'}", "sh", "-c", _ENTER, self.folder),
                *argv,
            ],
            timeout=timeout,
            env={**variables, **(env or {})},
        )
        return out.decode(errors="replace")

    def install(self, *packages: str | Path) -> None:
        """Install packages, or files of packages named as seen inside; not what they recommend."""
        self.run("apt-get", "-q", "update")
        self.run("apt-get", "-q", "install", "-y", "--no-install-recommends", *packages)

    def files(self) -> dict[str, str]:
        """Return all files and folders, each with its mode, its owner and its size."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if name.parts[0] not in ("dev", "proc", "sys", "run", "tmp"):
                status = path.lstat()
                size = 0 if path.is_dir() else status.st_size
                found[f"/{name}"] = f"{status.st_mode:o} {status.st_uid} {status.st_gid} {size}"
        return found


@contextlib.contextmanager
def unpacked(release: Release, packages: Sequence[str] = ()) -> Iterator[Root]:
    """Yield a root folder with a minimal system and packages. Removes what killed uses left."""
    archive = _archive(release, packages)
    top = cache.folder()
    with contextlib.ExitStack() as stack:
        with cache.locked(top / "chroots.lock"):
            _clear_away(top)
            work = Path(tempfile.mkdtemp(prefix="chroot-", dir=top))
            stack.enter_context(cache.locked(work / "lock"))
            stack.callback(shutil.rmtree, work)  # while it is locked: nobody else removes it too
        folder = work / "root"
        folder.mkdir(mode=0o755)
        run(["tar", "-xf", archive, "-C", folder], timeout=300)
        policy = folder / "usr/sbin/policy-rc.d"
        policy.write_text(_NO_DAEMONS)
        policy.chmod(0o755)
        yield Root(folder)


def _clear_away(top: Path) -> None:
    for left in top.glob("chroot-*"):
        with cache.locked(left / "lock", wait=False) as descriptor:
            if descriptor is not None:
                shutil.rmtree(left)


def _archive(release: Release, packages: Sequence[str]) -> Path:
    need("mmdebstrap", "unshare")
    if os.geteuid() != 0:
        raise LabError("chroots need root; run make as root, or install sudo")
    argv = [
        # Namespaces of its own: what it mounts and starts ends with it, however it ends.
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
        *(f"--components={release.components}", '--aptopt=APT::Install-Recommends "false"'),
        *(f"--aptopt={option}" for option in release.options),
        f"--include={','.join(('apt', *packages))}",  # which Ubuntu doesn't call required
        release.name,
    ]

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as work:
            # Where the user that apt reads it as can read it.
            Path(work).chmod(0o755)
            keyring = shutil.copy(_keyring(release), work)
            run(
                [*argv, folder / "root.tar", "--keyring", keyring],
                timeout=900,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )

    return cache.entry(f"root-{release.name}", cache.digest(*argv), build) / "root.tar"


def _keyring(release: Release) -> Path:
    """Return the keys that sign a release; Ubuntu's come from Debian 13 where they are missing."""
    if release.keyring.exists():
        return release.keyring
    if release.keyring != _UBUNTU:
        raise LabError(f"{release.keyring} is missing; run: contrib/setup/packages")

    def fetch(folder: Path) -> None:
        with unpacked(RELEASES["trixie"]) as root:
            root.install("ubuntu-keyring")
            shutil.copy(root.folder / str(_UBUNTU).lstrip("/"), folder)

    return cache.entry("ubuntu-keyring", "trixie", fetch) / _UBUNTU.name
