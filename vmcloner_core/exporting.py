"""Write a template's image to a file of its own; with all that a captured template needs elsewhere.

The image's name comes last: an export that was interrupted leaves a draft, which the same command
replaces.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import attrs

from vmcloner_core import catalog, user_folders
from vmcloner_core.copying import copy_runs
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import Conflict, InvalidRequest, NotEnoughResources, WrongState
from vmcloner_core.extents import nonzero_runs
from vmcloner_core.model import Origin, Outcome, Progress, Template
from vmcloner_core.os_errors import translated
from vmcloner_core.process import LocalRunner
from vmcloner_core.qemu_img import to_qcow2
from vmcloner_core.tomlfile import read_toml
from vmcloner_core.units import format_size

STEP = "export"
"""The name of the step in events."""


@attrs.frozen(kw_only=True)
class Export:
    """A template's image that is written to a file.

    :param written: bytes of the file on disk, None if nothing was written.
    :param format: ``raw`` or ``qcow2``. :param beside: the other files that are written.
    """

    template: str
    pool: str
    file: Path
    format: str
    size: int
    compressed: bool = False
    beside: tuple[Path, ...] = ()
    written: int | None = None


def planned(
    template: Template, origin: Origin, file: Path, *, compressed: bool, overwrite: bool
) -> Export:
    """Return what an export will do, checked. Changes nothing.

    :raises InvalidRequest: the file's name says no format, or one that isn't compressed.
    :raises Conflict: a file is there. :raises NotEnoughResources: it doesn't fit.
    """
    file = user_folders.expanded(file).absolute()
    formats = {".qcow2": "qcow2", ".raw": "raw", ".img": "raw"}
    kind = formats.get(file.suffix.lower())
    if kind is None:
        raise InvalidRequest(f"{file}: its name says no format", hint="name it *.qcow2 or *.raw")
    if compressed and kind == "raw":
        raise InvalidRequest(f"{file}: a raw image isn't compressed", hint="name it *.qcow2")
    beside = tuple(beside for beside, _ in _kernels(template, file))
    if template.image.captured is not None:
        beside += (file.with_suffix(".toml"),)
    with translated(file.parent):
        if not overwrite:
            _check_free(file, beside)
        free = shutil.disk_usage(file.parent).free
    if not compressed and origin.allocated > free:
        raise NotEnoughResources(
            f"{file} takes up to {format_size(origin.allocated)}, {format_size(free)} are free"
        )
    return Export(
        template=template.name,
        pool=origin.pool,
        file=file,
        format=kind,
        size=origin.size,
        compressed=compressed,
        beside=beside,
    )


def _check_free(file: Path, beside: Sequence[Path]) -> None:
    """Check that nothing is overwritten but what an export that was interrupted left beside."""
    toml = file.with_suffix(".toml")
    begun = os.path.lexists(toml) and catalog.is_captured(toml)
    for path in (file, *(() if begun else beside)):
        if os.path.lexists(path):
            raise Conflict(f"{path} exists", hint="choose another name, or --overwrite")


def _kernels(template: Template, file: Path) -> list[tuple[Path, Path]]:
    """Return the copies of a captured template's kernel and initrd, and what they are copies of."""
    kernel = template.kernel
    if template.image.captured is None or kernel is None:
        return []
    given = [("vmlinuz", kernel.path), ("initrd.img", kernel.initrd)]
    return [
        (file.with_name(f"{file.stem}.{name}"), template.folder / path)
        for name, path in given
        if path is not None
    ]


def write(
    export: Export, template: Template, image: ImageFile, progress: Progress
) -> Outcome[Export]:
    """Carry an export out."""
    draft = export.file.with_name(f".{export.file.name}.part")
    with translated(export.file):
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _claim(fd, draft)
            if export.format == "qcow2":
                to_qcow2(LocalRunner(), image, draft, compressed=export.compressed)
                progress(image.size, image.size)
            else:
                _copy(image, fd, progress)
            os.fsync(fd)
            _write_beside(export, template)
            written = os.fstat(fd).st_blocks * 512
            draft.rename(export.file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    return Outcome(key=export.template, value=attrs.evolve(export, written=written))


def _claim(fd: int, draft: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise WrongState(f"{draft}: another export writes it") from error
    os.ftruncate(fd, 0)


def _copy(image: ImageFile, target: int, progress: Progress) -> None:
    source = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.ftruncate(target, image.size)
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done, image.size)

        runs = ((a, min(b, image.size)) for a, b in nonzero_runs(source) if a < image.size)
        copy_runs(source, target, runs, count)
        progress(image.size, image.size)
    finally:
        os.close(source)


def _write_beside(export: Export, template: Template) -> None:
    """Write what makes the file a captured template elsewhere: its TOML file, kernel and initrd."""
    if template.image.captured is None or template.origin_file is None:
        return
    copies = _kernels(template, export.file)
    keys = ("path", "initrd")
    kernel = {key: path.name for key, (path, _) in zip(keys, copies, strict=False)}
    own = read_toml(template.origin_file, trusted=True)
    top: dict[str, object] = {key: own[key] for key in ("description", "disk_size") if key in own}
    parent = str(own.get("extends", template.name))
    text = catalog.captured(parent, top, kernel, export.file.name)
    export.file.with_suffix(".toml").write_text(text)  # first: it says whose the others are
    for path, source in copies:
        shutil.copyfile(source, path)
