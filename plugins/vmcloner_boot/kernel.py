"""Boot provider ``kernel``: a kernel of the host, with a command line for each clone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmcloner_boot.cmdline import example, fill_cmdline
from vmcloner_core.drivers import BootProvider, BootRequest, DriverContext
from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.hooks import BootBackend, hookimpl
from vmcloner_core.model import BootConfig, Outcome, Template

_MAGIC = (
    (0x202, b"HdrS"),  # Linux/x86 boot protocol 2.00 and later (Documentation/arch/x86/boot.rst)
    (0, b"\x7fELF"),  # an uncompressed kernel with a PVH or multiboot entry, or Xen's own
    (0, b"\x1f\x8b"),  # gzip: Xen's loader unpacks it
)


class KernelBoot(BootProvider):
    """Boots clones from the template's kernel; needs the template's table ``kernel``."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def check(self, template: Template) -> None:
        """See :meth:`BootProvider.check`."""
        _paths(template)
        fill_cmdline(template, *example(template))
        # What an image builder makes isn't there before it has run.
        if template.image.builder is None or os.path.isdir(template.folder):  # noqa: PTH112
            _files(template)

    def resolve(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """See :meth:`BootProvider.resolve`."""
        files: dict[str, BootConfig] = {}
        for request in requests:
            name, template = request.labels.clone, request.template
            try:
                if template.name not in files:
                    files[template.name] = _files(template)
                found = files[template.name]
                cmdline = fill_cmdline(template, request.labels, request.nics, request.values)
            except VmclonerError as error:
                yield Outcome(key=name, error=error)
                continue
            config = BootConfig(
                kernel=found.kernel,
                initrd=found.initrd,
                cmdline=cmdline,
                devices=(),
                source=f"template {template.name}",
            )
            yield Outcome(key=name, value=config)


@hookimpl
def vmcloner_boot_provider() -> BootBackend:
    """Describe the backend."""
    return BootBackend(
        api=1,
        name="kernel",
        description="A kernel and an initrd of the host, with a command line for each clone",
        factory=KernelBoot,
        cmdline=True,
    )


def _paths(template: Template) -> tuple[Path, Path | None]:
    kernel = template.kernel
    if kernel is None or kernel.path is None:
        raise InvalidRequest(
            f"template {template.name}: boot = 'kernel' needs a table [kernel] with a path",
            hint="and where needed initrd and cmdline",
        )
    return kernel.path, kernel.initrd


def _files(template: Template) -> BootConfig:
    """Return a template's kernel and initrd, checked."""
    kernel_path, initrd_path = _paths(template)
    path = template.folder / kernel_path
    _check_magic(template, path, _read(template, "kernel.path", path))
    initrd = None
    if initrd_path is not None:
        initrd = template.folder / initrd_path
        if not _read(template, "kernel.initrd", initrd):
            raise InvalidRequest(f"template {template.name}: kernel.initrd: {initrd} is empty")
    return BootConfig(kernel=path.absolute(), initrd=initrd and initrd.absolute(), devices=())


def _read(template: Template, key: str, path: Path) -> bytes:
    """Return the first kilobyte of a regular file."""
    try:
        if not path.is_file():  # a device or a pipe could block, or never end
            reason = "is not a file" if path.exists() else "doesn't exist"
            raise InvalidRequest(f"template {template.name}: {key}: {path} {reason}")
        with path.open("rb") as stream:
            return stream.read(1024)
    except OSError as error:
        raise InvalidRequest(
            f"template {template.name}: {key}: can't read {path}: {error.strerror}"
        ) from error


def _check_magic(template: Template, path: Path, head: bytes) -> None:
    if not any(head.startswith(magic, offset) for offset, magic in _MAGIC):
        raise InvalidRequest(
            f"template {template.name}: kernel.path: {path} is no kernel",
            hint="it must be a bzImage, an ELF image, or one of these compressed by gzip",
        )
