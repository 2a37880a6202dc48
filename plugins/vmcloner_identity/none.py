"""Identity provider ``none``: the image alone determines the identity of clones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmcloner_core.drivers import DriverContext, IdentityProvider, IdentityRequest
from vmcloner_core.hooks import IdentityBackend, hookimpl
from vmcloner_core.model import Outcome, Seed, Template


class NoIdentity(IdentityProvider):
    """Provides no seed."""

    seeds = False

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def check(self, template: Template) -> None:
        """See :meth:`IdentityProvider.check`: every template is accepted."""

    def unused(self, template: Template) -> tuple[str, ...]:
        """See :meth:`IdentityProvider.unused`: all of the table."""
        return tuple(f"identity.{key}" for key in template.identity.given)

    def seed(self, requests: Sequence[IdentityRequest]) -> Iterator[Outcome[Seed]]:
        """See :meth:`IdentityProvider.seed`."""
        for request in requests:
            yield Outcome(key=request.labels.clone, value=Seed(), changed=False)


@hookimpl
def vmcloner_identity_provider() -> IdentityBackend:
    """Describe the backend."""
    return IdentityBackend(
        api=1,
        name="none",
        description="No identity: for images that make clones distinct themselves, or need not",
        factory=NoIdentity,
    )
