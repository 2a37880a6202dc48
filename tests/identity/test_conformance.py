"""The shipped providers keep the contract that everybody's have to."""

import pytest

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import IdentitySpec, ImageSource, Template
from vmcloner_core.testing.identity import IdentityConformance
from vmcloner_core.testing.samples import make_context
from vmcloner_identity.cloud_init import CloudInit
from vmcloner_identity.kernel_args import KernelArgs
from vmcloner_identity.none import NoIdentity


class TestCloudInit(IdentityConformance):
    @pytest.fixture
    def provider(self, tmp_path):
        return CloudInit(make_context(tmp_path))


class TestKernelArgs(IdentityConformance):
    @pytest.fixture
    def provider(self, tmp_path):
        return KernelArgs(make_context(tmp_path))

    def test_words_of_ones_own(self, provider, ask):
        import attrs

        asked = ask(3)
        spec = IdentitySpec(kernel_args="systemd.machine_id={{ machine_id }} n={{ index + 1 }}")
        asked = attrs.evolve(asked, template=attrs.evolve(asked.template, identity=spec))
        (outcome,) = provider.seed([asked])
        assert outcome.unwrap().cmdline == f"systemd.machine_id={3:032x} n=4"

    @pytest.mark.parametrize(
        "spec",
        [{"kernel_args": "a\nb"}, {"user_data": "x"}, {"network_config": "x"}],
    )
    def test_what_it_cannot_say_is_refused(self, provider, spec):
        image = ImageSource(builder="b")
        with pytest.raises(InvalidRequest, match=r"identity\."):
            provider.check(Template(name="t", image=image, identity=IdentitySpec(**spec)))

    def test_a_value_with_a_line_break_fails_its_clone(self, provider, ask):
        import attrs

        asked = ask(1)
        spec = IdentitySpec(kernel_args="x={{ role }}")
        template = attrs.evolve(asked.template, identity=spec)
        asked = attrs.evolve(asked, template=template, values={"role": "a\nb"})
        (outcome,) = provider.seed([asked])
        assert isinstance(outcome.error, InvalidRequest)


class TestNone(IdentityConformance):
    @pytest.fixture
    def provider(self, tmp_path):
        return NoIdentity(make_context(tmp_path))
