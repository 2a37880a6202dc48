"""Find and fetch the packages that tiny is made of, from the machine's own package sources.

Only apt knows these sources, their proxies and their keys: it fetches, and checks what it
fetched. Nothing is installed, and the machine's own package lists are never changed.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from vmcloner_core.errors import BackendError, DeadlineExceeded, HostCommandError
from vmcloner_core.model import Progress
from vmcloner_core.process import CommandRunner

KERNELS = ("linux-image-cloud-amd64", "linux-image-virtual")
"""Meta packages that depend on the newest kernel for guests: Debian's, Ubuntu's."""
BUSYBOX = "busybox-static"
_IMAGE = re.compile(r"\blinux-image-[0-9][a-z0-9.+-]*")
_MODULES = re.compile(r"\blinux-modules-[0-9][a-z0-9.+-]*")
_FIELD = re.compile(r"^(Package|Version|Size|Depends): (.*)$", re.MULTILINE)
_UPDATE_TIMEOUT = 300.0
_DOWNLOAD_TIMEOUT = 900.0


@attrs.frozen
class Package:
    """A package in one version; ``size`` is that of its file, in bytes."""

    name: str
    version: str
    size: int
    depends: str = ""


@attrs.frozen
class Selection:
    """What tiny is made of: the kernel's image, its modules where they are apart, and busybox."""

    kernel: tuple[Package, ...]
    busybox: Package

    @property
    def packages(self) -> tuple[Package, ...]:
        """All of them."""
        return (*self.kernel, self.busybox)


class Apt:
    """The machine's package sources.

    :param work: an empty folder for what is fetched, and for package lists where the machine's
        own are missing or behind the archive. It has to outlive the object.
    """

    def __init__(self, runner: CommandRunner, work: Path) -> None:
        self._runner = runner
        self._work = work
        self._options: tuple[str, ...] = ()

    def select(self) -> Selection:
        """Return the newest packages.

        :raises BackendError: there is no apt, or its sources have no such packages.
        """
        if self._runner.which("apt-get") is None:
            raise BackendError(
                "tiny is made of packages of Debian or Ubuntu, and there is no apt-get here",
                hint="use another template: vmcloner template list",
            )
        selection = self._select()
        if selection is None and not self._options:
            self._update()
            selection = self._select()
        if selection is None:
            raise BackendError(
                f"apt has no {BUSYBOX}, or neither of {' and '.join(KERNELS)}",
                hint="tiny needs the package sources of Debian or Ubuntu for amd64",
            )
        return selection

    def fetch(self, selection: Selection, progress: Progress) -> dict[Package, Path]:
        """Download packages, or newer ones where the archive has dropped these.

        The kernel's image comes first, busybox last.

        :raises BackendError: they can't be had.
        """
        try:
            return self._fetch(selection, progress)
        except BackendError:
            if self._options:
                raise
        self._update()
        return self._fetch(self.select(), progress)

    def _fetch(self, selection: Selection, progress: Progress) -> dict[Package, Path]:
        total = sum(package.size for package in selection.packages)
        files: dict[Package, Path] = {}
        progress(0, total)
        for package in selection.packages:
            files[package] = self._download(package)
            progress(sum(fetched.size for fetched in files), total)
        return files

    def _download(self, package: Package) -> Path:
        folder = self._work / f"{package.name}_{package.version.replace(':', '%')}"
        folder.mkdir(exist_ok=True)
        # apt-get saves to the folder that it runs in, whence env.
        argv = ("env", "-C", str(folder), "apt-get", "-q", *self._options, "download")
        try:
            self._runner.run(
                (*argv, f"{package.name}={package.version}"), timeout=_DOWNLOAD_TIMEOUT
            )
        except HostCommandError as error:
            raise BackendError(
                f"{package.name} {package.version}: can't be downloaded: {error.message}",
                hint="check the machine's package sources: apt-get update",
            ) from error
        files = list(folder.glob("*.deb"))
        if len(files) != 1:
            raise BackendError(f"{package.name}: apt-get downloaded {len(files)} files, not one")
        return files[0]

    def _update(self) -> None:
        """Fetch package lists of our own and use them from now on."""
        lists = self._work / "lists"
        lists.mkdir(exist_ok=True)
        self._options = (
            *("-o", f"Dir::State::lists={lists}"),
            *("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="),
        )
        try:
            self._runner.run(("apt-get", "-q", *self._options, "update"), timeout=_UPDATE_TIMEOUT)
        except HostCommandError as error:
            raise BackendError(
                f"package lists can't be fetched: {error.message}",
                hint="check the machine's package sources: apt-get update",
            ) from error

    def _select(self) -> Selection | None:
        known = self._show(*KERNELS, BUSYBOX)
        meta = next((known[name] for name in KERNELS if name in known), None)
        image_name = _IMAGE.search(meta.depends) if meta else None
        if image_name is None or BUSYBOX not in known:
            return None
        image = self._show(image_name[0]).get(image_name[0])
        if image is None:
            return None
        kernel = [image]
        if modules_name := _MODULES.search(image.depends):
            kernel += self._show(modules_name[0]).values()
        return Selection(kernel=tuple(kernel), busybox=known[BUSYBOX])

    def _show(self, *names: str) -> dict[str, Package]:
        """Return those of the packages that apt knows, in the version that it would install."""
        argv = ("apt-cache", *self._options, "show", "--no-all-versions", *names)
        try:
            text = self._runner.run(argv).stdout.decode(errors="replace")
        except DeadlineExceeded:
            raise
        except HostCommandError:
            return {}  # apt-cache fails where it knows none of the names
        known = {}
        for record in text.split("\n\n"):
            fields = dict(_FIELD.findall(record))
            if {"Package", "Version", "Size"} <= fields.keys():
                name = fields["Package"]
                size = int(fields["Size"]) if fields["Size"].isdigit() else 0
                known[name] = Package(name, fields["Version"], size, fields.get("Depends", ""))
        return known
