"""Boot provider ``kernel``: a kernel of the host, with a command line for each clone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vmcloner_core.drivers import BootProvider, BootRequest, DriverContext
from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.hooks import BootBackend, hookimpl
from vmcloner_core.model import BootConfig, KernelSpec, Labels, Nic, Outcome, Template

MAX_CMDLINE = 2047
"""Bytes: Linux's COMMAND_LINE_SIZE on x86 (arch/x86/include/asm/setup.h) less the final NUL."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
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
        kernel = _kernel(template)
        _cmdline(kernel, *_example(template), template.values)
        # What an image builder makes isn't there before it has run.
        if template.image.builder is None or template.folder.is_dir():
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
                cmdline = _cmdline(_kernel(template), request.labels, request.nics, request.values)
            except VmclonerError as error:
                yield Outcome(key=name, error=error)
                continue
            config = BootConfig(
                kernel=found.kernel, initrd=found.initrd, cmdline=cmdline, devices=()
            )
            yield Outcome(key=name, value=config)


@hookimpl
def vmcloner_boot_provider() -> BootBackend:
    """Describe the backend."""
    return BootBackend(
        name="kernel",
        description="A kernel and an initrd of the host, with a command line for each clone",
        factory=KernelBoot,
        cmdline=True,
    )


def _kernel(template: Template) -> KernelSpec:
    if template.kernel is None:
        raise InvalidRequest(
            f"template {template.name}: boot = 'kernel' needs a table [kernel]",
            hint="path, and where needed initrd and cmdline",
        )
    return template.kernel


def _files(template: Template) -> BootConfig:
    """Return a template's kernel and initrd, checked."""
    kernel = _kernel(template)
    path = template.folder / kernel.path
    _check_magic(template, path, _read(template, "kernel.path", path))
    initrd = None
    if kernel.initrd is not None:
        initrd = template.folder / kernel.initrd
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


def _cmdline(
    kernel: KernelSpec,
    labels: Labels,
    nics: tuple[Nic, ...],
    values: Mapping[str, str | int],
) -> str:
    """Return a clone's kernel command line."""
    from vmcloner_core.placeholders import clone_values, fill  # brings jinja2 with it

    what = f"template {labels.template}: kernel.cmdline"
    text = fill(kernel.cmdline, clone_values(labels, nics, values), what=what)
    if _CONTROL.search(text):
        raise InvalidRequest(f"{what}: has a line break or another control character")
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_CMDLINE:
        raise InvalidRequest(f"{what}: {size} bytes for {labels.clone}, of {MAX_CMDLINE} at most")
    return text


def _example(template: Template) -> tuple[Labels, tuple[Nic, ...]]:
    """Return labels and cards as a clone of the template has them, to try its texts on."""
    labels = Labels(
        fleet="check",
        index=1,
        template=template.name,
        run="check",
        owner="check",
        created="1970-01-01T00:00:00Z",
        storage="check",
        hypervisor="check",
    )
    return labels, tuple(
        Nic(spec=spec, mac=f"52:54:00:00:00:{number & 0xFF:02x}")
        for number, spec in enumerate(template.nics)
    )
