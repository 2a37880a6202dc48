"""Each planted bug is caught by the conformance suites, by the test that is meant for it."""

import inspect
import logging
from collections import Counter

import pytest

from tests.core.test_reference import TestReference as OnHypervisor
from tests.core.test_reference import TestReferenceStorage as OnStorage
from tests.suites.mutants import MUTANTS, SOUND, Images
from vmcloner_core.testing import observer
from vmcloner_core.testing.boot import BootConformance
from vmcloner_core.testing.command import CommandConformance
from vmcloner_core.testing.identity import IdentityConformance
from vmcloner_core.testing.image import ImageConformance
from vmcloner_core.testing.observer import ObserverConformance
from vmcloner_core.testing.store import StoreConformance

pytest_plugins = ["pytester"]


class OnIdentity(IdentityConformance):
    @pytest.fixture
    def provider(self):
        return self.made()


class OnBoot(BootConformance):
    at_start = True

    @pytest.fixture
    def provider(self):
        return self.made()


class OnImage(ImageConformance):
    @pytest.fixture
    def builder(self):
        return self.made()

    @pytest.fixture
    def other_builder(self):
        builder = Images()
        builder.fingerprint = lambda: "other"
        return builder


class OnObserver(ObserverConformance):
    @pytest.fixture
    def observer(self):
        return self.made()


class OnCommand(CommandConformance):
    name = "hello"

    @pytest.fixture
    def command(self):
        return self.made


class OnStore(StoreConformance):
    @pytest.fixture
    def open_store(self, tmp_path):
        return lambda: self.made(tmp_path)


SUITES = {
    "storage": OnStorage,
    "hypervisor": OnHypervisor,
    "identity": OnIdentity,
    "boot": OnBoot,
    "image": OnImage,
    "observer": OnObserver,
    "command": OnCommand,
    "store": OnStore,
}


def failures(pytester, kind, made, test=""):
    """Run the suite of a kind, or one test of it, on a plugin; return the names of what failed."""
    globals()["CURRENT"] = type("TestIt", (SUITES[kind],), {"made": made, "__test__": True})
    pytester.makeini("[pytest]")
    file = pytester.makepyfile(test_it="from tests.suites.test_mutants import CURRENT as TestIt")
    found = pytester.inline_run(file, "-q", "-k", test, "-p", "no:cacheprovider")
    passed, _skipped, failed = found.listoutcomes()
    assert passed or failed, "nothing was run"
    return {report.nodeid.rpartition("::")[2].partition("[")[0] for report in failed}


@pytest.mark.parametrize("kind", SOUND)
def test_the_sound_ones_pass(pytester, kind):
    assert failures(pytester, kind, SOUND[kind]) == set()


@pytest.mark.parametrize(
    ("kind", "mutant", "test"), MUTANTS, ids=[f"{k}-{m.__name__}" for k, m, _ in MUTANTS]
)
def test_planted_bugs_are_caught_by_name(pytester, monkeypatch, kind, mutant, test):
    monkeypatch.setattr(observer, "OBSERVING", 0.3)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", root.level)  # a mutant changes it
    assert failures(pytester, kind, mutant, f"{test} and not {test}_") == {test}


def test_the_table_is_of_all_kinds():
    assert len(MUTANTS) > 100
    assert min(Counter(kind for kind, _, _ in MUTANTS).values()) >= 8
    for kind, _, test in MUTANTS:
        assert inspect.isfunction(getattr(SUITES[kind], test))
