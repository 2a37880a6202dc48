"""The conformance suite for identity providers.

Example::

    from vmcloner_core.testing.identity import IdentityConformance
    from vmcloner_core.testing.samples import make_context

    class TestMine(IdentityConformance):
        @pytest.fixture
        def provider(self, tmp_path):
            return MyProvider(make_context(tmp_path))

        @pytest.fixture
        def spec(self):            # the template's table, if the provider needs one
            return IdentitySpec(provider="mine")
"""

from __future__ import annotations

import stat
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from vmcloner_core.drivers import IdentityProvider, IdentityRequest
from vmcloner_core.model import (
    Identity,
    IdentitySpec,
    ImageSource,
    Interface,
    Nic,
    NicSpec,
    Seed,
    Template,
)
from vmcloner_core.records import new_host_key
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.suite import Suite

Make = Callable[[int], IdentityRequest]


class IdentityConformance(Suite):
    """What every identity provider must do. Override :meth:`provider`."""

    contract = IdentityProvider
    made_by = "provider"

    @pytest.fixture
    def provider(self) -> IdentityProvider:
        """Return the provider under test."""
        raise NotImplementedError("define a fixture provider")

    @pytest.fixture
    def spec(self) -> IdentitySpec:
        """Return a template's table ``identity`` that the provider accepts."""
        return IdentitySpec()

    @pytest.fixture
    def ask(self, spec: IdentitySpec, tmp_path: Path) -> Make:
        """Return a function that makes a request for the clone with an index."""

        def make(index: int) -> IdentityRequest:
            labels = make_labels("web", index)
            mac = f"52:54:00:00:00:{index:02x}"
            folder = tmp_path / labels.clone
            folder.mkdir(exist_ok=True)
            private, public = new_host_key(labels.clone)
            return IdentityRequest(
                labels=labels,
                template=Template(name="t", image=ImageSource(builder="b"), identity=spec),
                identity=Identity(
                    hostname=labels.clone,
                    machine_id=f"{index:032x}",
                    generation=uuid.UUID(int=index),
                    uuid=uuid.UUID(int=index),
                    interfaces=(Interface(mac=mac),),
                ),
                nics=(Nic(spec=NicSpec(), mac=mac),),
                folder=folder,
                host_key=private,
                host_key_public=public,
            )

        return make

    def test_its_own_template_passes_its_check(self, provider: IdentityProvider, ask: Make) -> None:
        """The checks accept the suite's requests and change nothing."""
        request = ask(1)
        provider.check(request.template)
        provider.check_seed(request)
        assert list(request.folder.iterdir()) == []

    def test_each_clone_has_one_outcome(self, provider: IdentityProvider, ask: Make) -> None:
        """A batch yields one seed for each clone, in any order."""
        outcomes = list(provider.seed([ask(n) for n in range(1, 21)]))
        assert sorted(o.key for o in outcomes) == sorted(f"web-{n}" for n in range(1, 21))
        assert all(isinstance(outcome.unwrap(), Seed) for outcome in outcomes)

    def test_no_clones_is_no_seeds(self, provider: IdentityProvider) -> None:
        """An empty batch is no error."""
        assert list(provider.seed([])) == []

    def test_a_seed_lies_in_its_clones_folder(self, provider: IdentityProvider, ask: Make) -> None:
        """All files of a seed are in the clone's folder, which is removed with the clone."""
        requests = [ask(1), ask(2)]
        folders = {request.labels.clone: request.folder for request in requests}
        for outcome in provider.seed(requests):
            image = outcome.unwrap().image
            assert image is None or (image.is_file() and image.parent == folders[outcome.key])

    def test_secrets_are_the_owners_alone(self, provider: IdentityProvider, ask: Make) -> None:
        """Only the owner can read the private host key, and no command line contains it."""
        request = ask(1)
        (outcome,) = provider.seed([request])
        secret = request.host_key.splitlines()[1].encode()
        assert secret.decode() not in outcome.unwrap().cmdline
        for path in request.folder.rglob("*"):
            if path.is_file() and secret in path.read_bytes():
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0

    def test_seeding_again_replaces_the_seed(self, provider: IdentityProvider, ask: Make) -> None:
        """The same request again gives the same seed and no further files."""
        request = ask(1)
        (first,) = provider.seed([request])
        before = sorted(path.name for path in request.folder.iterdir())
        (second,) = provider.seed([request])
        assert second.unwrap() == first.unwrap()
        assert sorted(path.name for path in request.folder.iterdir()) == before

    def test_two_clones_are_told_apart(self, provider: IdentityProvider, ask: Make) -> None:
        """Seeds of two clones differ, if the provider makes any."""
        one, two = (outcome.unwrap() for outcome in provider.seed([ask(1), ask(2)]))
        if not provider.seeds:
            assert one == two == Seed()
            return
        contents = [seed.image.read_bytes() if seed.image else b"" for seed in (one, two)]
        assert (one.cmdline, contents[0]) != (two.cmdline, contents[1])
