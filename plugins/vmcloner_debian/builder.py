"""Fill a folder with ``disk.raw``, ``vmlinuz`` and ``initrd.img``."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shlex
import shutil
import tempfile
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from vmcloner_core import reseeding
from vmcloner_core.drivers import DriverContext, ImageBuilder, image_cache
from vmcloner_core.errors import BackendError, HostCommandError, InvalidRequest, VmclonerError
from vmcloner_core.locks import hold
from vmcloner_core.model import Progress
from vmcloner_core.process import CommandRunner
from vmcloner_core.trusted_files import check_folder, make_folder
from vmcloner_debian import disk, overlay
from vmcloner_debian.settings import DebianOptions

log = logging.getLogger(__name__)
IMAGE, KERNEL, INITRD = "disk.raw", "vmlinuz", "initrd.img"
PACKAGES = (
    "linux-image-cloud-amd64",  # has drivers for KVM and Xen, including PV
    "initramfs-tools",
    "zstd",
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "iproute2",
    "cloud-init",
    "cloud-guest-utils",  # growpart
    "openssh-server",
    "qemu-guest-agent",
    "sudo",
)
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "grub-mkimage": "grub-common",
    "unshare": "util-linux",
}
BUILD_TIMEOUT = 1800.0
DISTRO_INFO = Path("/usr/share/distro-info/debian.csv")
_LEFT_OUT = ("usr/share/man/*", "usr/share/locale/*", "usr/share/doc/*", "usr/share/info/*")


class DebianBuilder(ImageBuilder):
    """Builds Debian images. Thread-safe: it keeps no state between calls."""

    def __init__(self, context: DriverContext, options: DebianOptions) -> None:
        self._runner = context.runner
        self._options = options

    def fingerprint(self) -> str:
        """Return the options and a hash of this builder's own files.

        Newer packages in the archive do not change it: a template that stays the same is more
        useful than one that is always up to date. A new ``revision`` requests the newest ones.
        """
        options = self._options
        words = [options.suite, *sorted(options.packages), str(options.size)]
        return " ".join([*words, options.mirror or "-", options.revision or "-", _own_hash()])

    def build(self, folder: Path, progress: Progress) -> Path:
        """See :meth:`ImageBuilder.build`.

        Templates with the same options share one image, across state folders too. It is stored in
        the user's cache folder, which may be cleared at any time.
        """
        key = hashlib.sha256(self.fingerprint().encode()).hexdigest()[:32]
        kept = image_cache() / key
        if not _take(self._runner, kept, folder):
            self._make(folder, progress)
            _keep(self._runner, folder, kept)
        return folder / IMAGE

    def _make(self, folder: Path, progress: Progress) -> None:
        self._check()
        progress(0, 0)
        # Inside the folder, so that cleaning up after a killed build removes this too.
        with tempfile.TemporaryDirectory(dir=folder) as work:
            root, shaped = Path(work, "root"), Path(work, "overlay")
            shaped.mkdir()
            overlay.write(shaped)
            self._bootstrap(root, shaped)
            kernel, initrd = _finish(root)
            shutil.copyfile(kernel, folder / KERNEL)
            shutil.copyfile(initrd, folder / INITRD)
            disk.make(self._runner, root, folder / IMAGE, self._options.size)

    def _check(self) -> None:
        for tool, package in TOOLS.items():
            if self._runner.which(tool) is None:
                raise BackendError(f"{tool} isn't installed", hint=f"apt-get install {package}")
        if not (disk.GRUB / "boot.img").exists():
            raise BackendError(
                "GRUB's BIOS files aren't installed", hint="apt-get install grub-pc-bin"
            )
        if os.geteuid() != 0:
            raise BackendError(
                "only root can build this image: its files have various owners",
                hint="run it with sudo",
            )

    def _bootstrap(self, root: Path, shaped: Path) -> None:
        try:
            self._run_bootstrap(root, shaped)
        except HostCommandError as error:
            reason = _reason(error.output)
            if reason is None:
                raise
            raise HostCommandError(
                f"mmdebstrap: {reason}", hint=_way_out(reason, self._options), output=error.output
            ) from error

    def _run_bootstrap(self, root: Path, shaped: Path) -> None:
        options = self._options
        self._runner.run(
            [
                # In its own mount namespace, mounts made by mmdebstrap vanish with it, even if it
                # is killed. So cleaning up the folder never descends into /dev.
                "unshare", "--mount", "--propagation", "private",
                "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
                '--aptopt=APT::Install-Recommends "false"',
                *(f"--dpkgopt=path-exclude=/{pattern}" for pattern in _LEFT_OUT),
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                f"--include={','.join((*PACKAGES, *options.packages))}",
                f"--essential-hook=sync-in {shlex.quote(str(shaped))} /",
                options.suite,
                str(root),
                *([options.mirror] if options.mirror is not None else []),
            ],
            timeout=BUILD_TIMEOUT,
            env={"TMPDIR": str(root.parent)},
        )  # fmt: skip


def _reason(output: str) -> str | None:
    """Return what apt or dpkg said was wrong; None if they said nothing.

    mmdebstrap's own last lines only say that a command failed, and which.
    """
    errors = [line[3:].strip() for line in output.splitlines() if line.startswith("E: ")]
    told = [line for line in errors if "apt-get" not in line and "mmdebstrap" not in line]
    return told[0][:500] if told else None


def _way_out(reason: str, options: DebianOptions) -> str:
    if "Release file" in reason:
        close = get_close_matches(options.suite, _suites(), n=1, cutoff=0.6)
        if close and close[0] != options.suite:
            return f"suite {options.suite!r}: did you mean {close[0]!r}?"
        return f"is {options.suite!r} a suite of that archive? see suite and mirror"
    if "package" in reason:
        return f"see the packages of {options.suite}: https://packages.debian.org/{options.suite}/"
    return "see mirror, and the network"


def _suites() -> tuple[str, ...]:
    """Return the names of Debian's suites, those of distro-info-data if it is installed."""
    with contextlib.suppress(OSError):
        lines = DISTRO_INFO.read_text(encoding="utf-8").splitlines()[1:]
        return tuple(words[2] for words in (line.split(",") for line in lines) if len(words) > 2)
    return ("bookworm", "trixie", "forky", "sid", "stable", "testing")


def _take(runner: CommandRunner, kept: Path, folder: Path) -> bool:
    """Fill a folder from the cache; return whether the cache had the image.

    Guests run it: from a cache that another user could have written, nothing is taken.
    """
    if not (kept / IMAGE).exists():
        return False
    try:
        check_folder(kept)
    except InvalidRequest as error:
        log.warning("%s", error)
        return False
    _share(runner, kept, folder)
    return True


def _keep(runner: CommandRunner, folder: Path, kept: Path) -> None:
    """Put a folder's files into the cache, all or nothing. Errors are ignored."""
    with (
        contextlib.suppress(OSError, VmclonerError),
        hold(kept.parent.parent, [f"image/{kept.name}"]),
        contextlib.ExitStack() as stack,
    ):
        make_folder(kept.parent)
        prefix = f".{kept.name}-"
        draft = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=kept.parent))
        filled = Path(draft, "filled")
        filled.mkdir()
        _share(runner, folder, filled)
        filled.rename(kept)  # fails if another process was faster; its image is the same


def _share(runner: CommandRunner, source: Path, target: Path) -> None:
    """Hard-link the files, which are never written to, or copy them to another file system."""
    for name in (KERNEL, INITRD, IMAGE):
        try:
            os.link(source / name, target / name)
        except OSError:
            copy = ["cp", "--sparse=always", "--reflink=auto"]
            runner.run([*copy, str(source / name), str(target / name)], timeout=600)


def _finish(root: Path) -> tuple[Path, Path]:
    """Remove what must differ between clones, write grub.cfg; return (kernel, initrd)."""
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/machine-id").write_text("")
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    (root / "var/lib/systemd/random-seed").unlink(missing_ok=True)
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise BackendError("the packages contain no kernel", hint="this suite isn't supported")
    kernel = kernels[-1]
    initrd = kernel.with_name(kernel.name.replace("vmlinuz-", "initrd.img-"))
    if not initrd.exists():
        raise BackendError(f"no initramfs was created for {kernel.name}")
    config = root / "boot/grub/grub.cfg"
    config.parent.mkdir(exist_ok=True)
    config.write_text(
        overlay.GRUB_CFG.format(
            kernel=f"/boot/{kernel.name}",
            initrd=f"/boot/{initrd.name}",
            arguments=overlay.ARGUMENTS,
        )
    )
    return kernel, initrd


def _own_hash() -> str:
    digest = hashlib.sha256()
    files = (path for path in resources.files(__package__).iterdir() if path.is_file())
    for path in sorted(files, key=lambda path: path.name):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    digest.update(reseeding.script())
    return digest.hexdigest()[:16]
