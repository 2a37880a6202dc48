"""What the host does that sends a template: it opens its files, and says what they are."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import VmclonerError
from vmcloner_core.extents import GRANULE, data_runs, length
from vmcloner_core.hosts.chunks import Chunk, next_chunk
from vmcloner_core.hosts.parcels import IMAGE, Item, Parcel, pool_of, unheard
from vmcloner_core.images import hash_parts
from vmcloner_core.model import Template
from vmcloner_core.os_errors import translated

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine


class Packed:
    """The open files of a parcel on the host that sends them."""

    def __init__(self, parcel: Parcel, files: dict[str, int]) -> None:
        self.parcel = parcel
        self.files = files
        self._runs = {name: list(data_runs(fd)) for name, fd in files.items()}

    def chunk(self, name: str, offset: int) -> Chunk:
        """Return the next part of a file."""
        size = next(i.size for i in self.parcel.items if i.name == name)
        return next_chunk(self.files[name], self._runs[name], size, offset)


def pack(engine: Engine, name: str, storage: str, stack: contextlib.ExitStack) -> Packed:
    """Open a template's files, and return them; ``stack`` closes them."""
    template = engine.template(name)
    image = _image(engine, template, storage, stack)
    paths = {IMAGE: image.path, **_others(template)}
    files: dict[str, int] = {}
    items = []
    for item, path in paths.items():
        with translated(path):
            files[item] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, files[item])
            items.append(_measured(item, files[item]))
    parcel = Parcel(
        template=name,
        keys=_keys(engine, template, image),
        digest=image.digest,
        format=image.format,
        items=tuple(items),
    )
    return Packed(parcel, files)


def _measured(name: str, fd: int) -> Item:
    pieces = 0

    def counted(_done: int, _total: int) -> None:
        nonlocal pieces
        pieces += 1

    digest = hash_parts(fd, counted)
    return Item(name=name, size=length(fd), data=(pieces - 1) * GRANULE, digest=digest)


def _image(
    engine: Engine, template: Template, storage: str, stack: contextlib.ExitStack
) -> ImageFile:
    """Return a template's image, in a pool or else from its source."""
    from vmcloner_core import images

    host = engine._host
    with contextlib.suppress(VmclonerError):  # no pool, none in it, or it gives none out
        return stack.enter_context(host.images.lent(template.name, pool_of(engine, storage)))

    with host.hold([f"template/{template.name}"], lambda: False):
        builder = host.images.builder(template)
        return stack.enter_context(images.obtained(template, builder, host.host, unheard))


def _others(template: Template) -> dict[str, Path]:
    """Return the files of a template beside its image."""
    kernel = template.kernel
    found = {
        "vmlinuz": kernel and kernel.path and template.folder / kernel.path,
        "initrd": kernel and kernel.initrd and template.folder / kernel.initrd,
        "user_data": template.identity.user_data,
        "network_config": template.identity.network_config,
        "domain_xml": template.domain.xml,
    }
    return {name: path for name, path in found.items() if path}


def _keys(engine: Engine, template: Template, image: ImageFile) -> dict[str, Any]:
    """Return a template's keys as another host may have them: without this one's secrets."""
    from vmcloner_core.identity_rules import authorized_keys

    keys = engine._host.catalog.keys(template.name)
    keys.get("ssh", {}).pop("key", None)
    if "authorized_keys" in keys.get("identity", {}):
        keys["identity"]["authorized_keys"] = list(authorized_keys(template))
    source = keys["image"]
    for key in ("keyring", "signature"):
        source.pop(key, None)
    kind, _, digest = image.digest.partition(":")
    if "path" in source and kind == "sha256":
        source["sha256"] = digest  # a file of that name on another host may be another one
    return keys
