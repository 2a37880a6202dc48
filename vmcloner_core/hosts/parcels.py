"""Templates and their images on their way from one host to another: what crosses of them.

A parcel is a template's keys, and the files that these name: its image, its kernel and so on. The
files cross in chunks (:mod:`vmcloner_core.hosts.chunks`).
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Literal

import attrs

from vmcloner_core import pulling
from vmcloner_core.drivers import StorageDriver
from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError
from vmcloner_core.model import Template
from vmcloner_core.names import check_template
from vmcloner_core.template_images import TemplateImages
from vmcloner_core.units import MAX_SIZE

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine

IMAGE = "image"
FILES = {
    "vmlinuz": ("kernel", "path"),
    "initrd": ("kernel", "initrd"),
    "user_data": ("identity", "user_data"),
    "network_config": ("identity", "network_config"),
    "domain_xml": ("domain", "xml"),
}
"""The other files of a parcel: which key of the template names each."""
MAX_FILE = 1024**3
"""Bytes of one of these."""
STEP = "send"
"""The name of the step in events."""


def _digest(_instance: object, _attribute: object, value: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise InvalidRequest("not a digest")


def _origin(_instance: object, _attribute: object, value: str) -> None:
    if not re.fullmatch(r"[a-z0-9-]{1,32}:[\x21-\x7e]{1,256}", value):
        raise InvalidRequest("not an image's digest")


@attrs.frozen(kw_only=True)
class Item:
    """A file of a parcel.

    :param size: bytes. :param data: bytes of it that aren't zeros, about.
    :param digest: of its bytes; see :func:`vmcloner_core.images.hash_parts`.
    """

    name: str
    size: int
    data: int
    digest: str = attrs.field(validator=_digest)

    def __attrs_post_init__(self) -> None:
        if self.name not in (IMAGE, *FILES):
            raise InvalidRequest(f"not a file of a template: {self.name!r}")
        if not 0 <= self.size <= (MAX_SIZE if self.name == IMAGE else MAX_FILE):
            raise InvalidRequest(f"{self.name}: {self.size} bytes")


@attrs.frozen(kw_only=True)
class Parcel:
    """A template, and what of it has to be sent.

    :param keys: its keys, with those that it extends, as in its file.
    :param digest, format: of its image, as pools know it.
    """

    template: str = attrs.field(validator=lambda _i, _a, v: check_template(v) and None)
    keys: dict[str, Any]
    digest: str = attrs.field(validator=_origin)
    format: Literal["raw", "qcow2"]
    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """The bytes that have to be sent, before they are compressed."""
        return sum(item.data for item in self.items)


@attrs.frozen(kw_only=True)
class Holding:
    """What a host has of a template.

    :param template: whether it has its text. :param image: whether it has its image, or makes it by
        itself. :param digest: of the image in its pool, empty if it isn't there.
    :param sent: whether a controller sent the template.
    :param memory: bytes of a clone. :param why: what makes a template unfit to be given to others
        by a host, empty if nothing.
    """

    template: bool
    image: bool = False
    digest: str = ""
    sent: bool = False
    memory: int = 0
    why: str = ""


def was_sent(engine: Engine, template: Template) -> bool:
    """Tell whether a controller sent a template, which is then none of this host's own."""
    file = template.origin_file
    return file is not None and file.parent == engine.host.received


def pool_of(engine: Engine, storage: str) -> StorageDriver:
    """Return a pool; empty for the default one."""
    host = engine._host
    return host.drivers.storage(storage or engine.settings.defaults.storage)


def holding(engine: Engine, name: str, storage: str) -> Holding:
    """Return what a host has of a template.

    :raises InvalidRequest: its file there is wrong.
    """
    images: TemplateImages = engine._host.images
    try:
        template = engine.template(name)
    except NotFound:
        if name in {info.name for info in engine.templates()}:
            raise  # it extends one that is missing
        return Holding(template=False)
    origin = None
    with contextlib.suppress(VmclonerError):  # a controller needs no pool
        origin = images.origin(pool_of(engine, storage), name)
    domain = template.domain
    return Holding(
        template=True,
        image=origin is not None or _makes(template),
        digest=origin.digest if origin is not None else "",
        sent=was_sent(engine, template),
        memory=template.memory,
        why="domain.xml" if domain.xml else "domain.devices" if domain.devices else "",
    )


def _makes(template: Template) -> bool:
    """Tell whether a host imports a template's image by itself."""
    image = template.image
    if image.checksums is not None:
        return pulling.find(image) is not None  # it has to be pulled first
    return image.path.exists() if image.path is not None else image.captured is None


def unheard(_done: int, _total: int) -> None:
    """Ignore progress."""
