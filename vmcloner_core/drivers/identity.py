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

    :param folder: the clone's own folder for the seed's files; it may hold files from an earlier
        call for the same clone. It is removed with the clone.
    :param host_key: the guest's private SSH host key (ed25519) in OpenSSH's format: a secret.
    :param host_key_public: its public key, as a line of ``ssh_host_ed25519_key.pub``.
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

    The engine decides the identity (:class:`~vmcloner_core.model.Identity`). It also creates the
    clone's folder and removes it with the clone. A provider only writes a seed. Only their owner
    may be able to read files with secrets.

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
    """False for a provider that makes no seeds: its clones have no folders."""

    @abstractmethod
    def check(self, template: Template) -> None:
        """Check the template's keys for this provider, before anything is made.

        :raises InvalidRequest: a key, or a file that it names, is wrong.
        """

    def unused(self, template: Template) -> tuple[str, ...]:  # noqa: ARG002 - for overriding it
        """Return the keys that a template sets and this provider ignores (``identity.gateway``)."""
        return ()

    def check_seed(self, request: IdentityRequest) -> None:
        """Check the input for a clone's seed, before anything is made. Writes nothing.

        :param request: of a run's first clone, with an unused host key and a folder that does not
            exist.
        :raises InvalidRequest: a text can't be filled in, or the result is invalid.
        """

    @abstractmethod
    def seed(self, requests: Sequence[IdentityRequest]) -> Iterator[Outcome[Seed]]:
        """Make the clones' seeds, before their domains are defined; keys are the clones' names.

        A seed from an earlier call is replaced: no domain uses it yet.
        """
