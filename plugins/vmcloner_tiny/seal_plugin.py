"""The module that the entry point ``vmcloner.image: sealer`` refers to."""

from __future__ import annotations

from vmcloner_core.hooks import ImageBackend, hookimpl
from vmcloner_tiny.sealer import Sealer


@hookimpl
def vmcloner_image_builder() -> ImageBackend:
    """Register the builder."""
    return ImageBackend(
        api=1,
        name="sealer",
        description="The guest that template capture boots to seal a disk; no template's image",
        factory=Sealer,
    )
