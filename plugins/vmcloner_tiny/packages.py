"""Find and download the packages that tiny is built from, using the machine's own package sources.

Only apt knows these sources, their proxies and their keys, so apt downloads and verifies the
packages. Nothing is installed, and the machine's own package lists are never changed.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from vmcloner_core.errors import BackendError, DeadlineExceeded, HostCommandError
from vmcloner_core.model import Progress
from vmcloner_core.process import CommandRunner

KERNELS = ("linux-image-cloud-amd64", "linux-image-virtual")
"""Metapackages that depend on the newest kernel for guests, of Debian and of Ubuntu."""
BUSYBOX = "busybox-static"
_IMAGE = re.compile(r"\blinux-image-[0-9][a-z0-9.+-]*")
_MODULES = re.compile(r"\blinux-modules-[0-9][a-z0-9.+-]*")
_FIELD = re.compile(r"^(Package|Version|Size|Depends): (.*)$", re.MULTILINE)
_UPDATE_TIMEOUT = 300.0
_DOWNLOAD_TIMEOUT = 900.0


@attrs.frozen
class Package:
    """One version of a package; ``size`` is the size of its file, in bytes."""

    name: str
    version: str
    size: int
    depends: str = ""


@attrs.frozen
class Selection:
    """The packages for tiny: the kernel image, its modules if they are separate, and busybox."""

    kernel: tuple[Package, ...]
    busybox: Package

    @property
    def packages(self) -> tuple[Package, ...]:
        """All of them."""
        return (*self.kernel, self.busybox)


class Apt:
    """The machine's package sources.

    :param work: an empty folder for downloads, and for package lists if the machine's own are
        missing or outdated. It has to outlive the object.
    """

    def __init__(self, runner: CommandRunner, work: Path) -> None:
        self._runner = runner
        self._work = work
        self._options: tuple[str, ...] = ()

    def select(self) -> Selection:
        """Return the newest packages.

        :raises BackendError: apt is not installed, or its sources lack the packages.
        """
        if self._runner.which("apt-get") is None:
            raise BackendError(
                "tiny is built from Debian or Ubuntu packages, and apt-get is not installed",
                hint="use another template: vmcloner template list",
            )
        selection = self._select()
        if selection is None and not self._options:
            self._update()
            selection = self._select()
        if selection is None:
            raise BackendError(
                f"apt has no {BUSYBOX}, or no kernel ({' or '.join(KERNELS)})",
                hint="tiny needs the package sources of Debian or Ubuntu for amd64",
            )
        return selection

    def fetch(self, selection: Selection, progress: Progress) -> dict[Package, Path]:
        """Download packages, or newer versions if the archive no longer has these.

        The kernel image comes first, busybox last.

        :raises BackendError: they cannot be downloaded.
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
        # apt-get saves to its working directory, which env sets.
        argv = ("env", "-C", str(folder), "apt-get", "-q", *self._options, "download")
        try:
            self._runner.run(
                (*argv, f"{package.name}={package.version}"), timeout=_DOWNLOAD_TIMEOUT
            )
        except HostCommandError as error:
            raise BackendError(
                f"{package.name} {package.version}: download failed: {error.message}",
                hint="check the machine's package sources: apt-get update",
            ) from error
        files = list(folder.glob("*.deb"))
        if len(files) != 1:
            raise BackendError(
                f"{package.name}: apt-get downloaded {len(files)} files, expected one"
            )
        return files[0]

    def _update(self) -> None:
        """Download our own package lists and use them from now on."""
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
                f"download of package lists failed: {error.message}",
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
        """Return the packages that apt knows, in the version that it would install."""
        argv = ("apt-cache", *self._options, "show", "--no-all-versions", *names)
        try:
            text = self._runner.run(argv).stdout.decode(errors="replace")
        except DeadlineExceeded:
            raise
        except HostCommandError:
            return {}  # apt-cache fails if it knows none of the names
        known = {}
        for record in text.split("\n\n"):
            fields = dict(_FIELD.findall(record))
            if {"Package", "Version", "Size"} <= fields.keys():
                name = fields["Package"]
                size = int(fields["Size"]) if fields["Size"].isdigit() else 0
                known[name] = Package(name, fields["Version"], size, fields.get("Depends", ""))
        return known
