"""The module that the entry point ``vmcloner.image: debian`` refers to."""

from __future__ import annotations

from vmcloner_core.hooks import ImageBackend, hookimpl
from vmcloner_debian.builder import DebianBuilder
from vmcloner_debian.settings import DebianOptions


@hookimpl
def vmcloner_image_builder() -> ImageBackend:
    """Register the builder."""
    return ImageBackend(
        api=1,
        name="debian",
        description="Debian with cloud-init and an SSH server, by mmdebstrap",
        factory=DebianBuilder,
        options=DebianOptions,
    )
