"""The module that the entry point ``vmcloner.image: tiny`` refers to."""

from __future__ import annotations

from vmcloner_core.hooks import ImageBackend, hookimpl
from vmcloner_tiny.builder import TinyBuilder


@hookimpl
def vmcloner_image_builder() -> ImageBackend:
    """Register the builder."""
    return ImageBackend(
        api=1,
        name="tiny",
        description="Cloud kernel and busybox, from the machine's own package sources",
        factory=TinyBuilder,
    )
