"""The contract of identity providers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from vmcloner_core.model import Identity, Labels, Nic, Outcome, Seed, Template


@attrs.frozen(kw_only=True)
class IdentityRequest:
    """One clone that an identity provider makes a seed for.

    :param folder: the clone's own folder for the seed's files; it holds nothing of the provider's
        but what an earlier call for the same clone may have left. It goes with the clone.
    :param host_key: the guest's SSH host key (ed25519), private, in OpenSSH's format: a secret.
    :param host_key_public: the same, as a line of ``ssh_host_ed25519_key.pub``.
    """

    labels: Labels
    template: Template
    identity: Identity
    nics: tuple[Nic, ...]
    values: Mapping[str, str | int] = attrs.field(factory=dict)
    folder: Path
    host_key: str = attrs.field(repr=False)
    host_key_public: str


class IdentityProvider(ABC):
    """Brings a clone's identity into its guest.

    Who a clone is, is decided by the engine (:class:`~vmcloner_core.model.Identity`), which also
    keeps the folder with the clone's labels and removes it with the clone: a provider only writes
    a seed, files that no one but their owner can read where there are secrets in them.

    Example::

        class PlainText(IdentityProvider):
            def check(self, template): ...

            def seed(self, requests):
                for request in requests:
                    image = request.folder / "seed.img"
                    image.write_text(request.identity.hostname.ljust(512))
                    yield Outcome(key=request.labels.clone, value=Seed(image=image))
    """

    seeds = True
    """False for a provider that leaves its clones as they are: none of them has a folder."""

    @abstractmethod
    def check(self, template: Template) -> None:
        """Check what the template says for this provider, before anything is made.

        :raises InvalidRequest: a key is wrong, or a file that it names.
        """

    def check_seed(self, request: IdentityRequest) -> None:
        """Check what a clone's seed is made of, before anything is made. Writes nothing.

        :param request: of a run's first clone, with a host key that is nobody's; its folder isn't
            there.
        :raises InvalidRequest: a text can't be filled in, or what comes out isn't what it must be.
        """

    @abstractmethod
    def seed(self, requests: Sequence[IdentityRequest]) -> Iterator[Outcome[Seed]]:
        """Make the clones' seeds, before their domains are defined; keys are the clones' names.

        A seed that is there from an earlier call is replaced: no domain uses it yet.
        """
