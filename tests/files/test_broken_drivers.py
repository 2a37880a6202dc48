"""The conformance suite's tests of copies fail on drivers that break that part of the contract."""

import attrs
import pytest

from vmcloner_core.errors import HostCommandError
from vmcloner_core.model import AS_IT_COMES, Outcome, untold
from vmcloner_core.testing.samples import make_context
from vmcloner_core.testing.storage import StorageConformance, make_image, no_progress
from vmcloner_files.driver import FilesDriver
from vmcloner_files.settings import FilesSettings


class Altered(FilesDriver):
    """Copies otherwise than it is asked to."""

    def altered(self, copying):
        return copying

    def progressing(self, progress):
        return progress

    def _requests(self, requests):
        return [attrs.evolve(r, copying=self.altered(r.copying)) for r in requests]

    def clone(self, requests, progress=untold):
        def told(name, done, total):
            self.progressing(lambda *now: progress(name, *now))(done, total)

        return super().clone(self._requests(requests), told)

    def reset(self, requests, progress=untold):
        return super().reset(self._requests(requests), progress)

    def import_image(self, template, image, progress, copying=AS_IT_COMES):
        return super().import_image(
            template, image, self.progressing(progress), self.altered(copying)
        )


class Unverified(Altered):
    def altered(self, copying):
        return attrs.evolve(copying, verify=False)


class Unpaced(Altered):
    def altered(self, copying):
        return attrs.evolve(copying, bandwidth=None)


class Silent(Altered):
    def progressing(self, _progress):
        return no_progress


class WrongTotal(Altered):
    def progressing(self, progress):
        return lambda done, total: progress(done, 2 * total)


class Wavering(Altered):
    """Its total grows with what is done."""

    def progressing(self, progress):
        return lambda done, total: progress(done, done if done < total else total)


class KeepsWrongCopies(Unverified):
    """Says that a copy failed, and keeps it as a complete volume."""

    def clone(self, requests):
        for outcome in super().clone(requests):
            yield Outcome(key=outcome.key, error=HostCommandError("wrong bytes"))


COPIES = StorageConformance.test_verified_copies_are_checked
RESETS = StorageConformance.test_verified_resets_are_checked
IMPORTS = StorageConformance.test_verified_imports_are_checked


@pytest.fixture
def image(tmp_path):
    return make_image(tmp_path / "image.raw", seed=1)


def open_driver(kind, tmp_path):
    return kind(make_context(tmp_path, "pool"), FilesSettings(path=tmp_path / "pool"))


def run(test, kind, tmp_path, image):
    """Run a test of the suite on a driver of a kind."""
    driver, values = open_driver(kind, tmp_path), {"image": image}
    code = test.__code__
    names = code.co_varnames[1 : code.co_argcount]
    if "origin" in names:
        values["origin"] = driver.import_image("tiny", image, no_progress).unwrap()
    test(StorageConformance(), **{"copier": driver} | {n: values[n] for n in names if n in values})


@pytest.mark.parametrize(
    ("test", "kind"),
    [
        (COPIES, Unverified),
        (COPIES, KeepsWrongCopies),
        (RESETS, Unverified),
        (IMPORTS, Unverified),
        (StorageConformance.test_copies_keep_to_a_bandwidth, Unpaced),
        (StorageConformance.test_imports_keep_to_a_bandwidth, Unpaced),
        *(
            (test, kind)
            for test in (
                StorageConformance.test_progress_of_copies,
                StorageConformance.test_progress_of_imports,
            )
            for kind in (Silent, WrongTotal, Wavering)
        ),
    ],
    ids=lambda value: value.__name__,
)
def test_the_suite_fails(tmp_path, image, test, kind):
    (tmp_path / "sound").mkdir()
    run(test, Altered, tmp_path / "sound", image)
    with pytest.raises(AssertionError):
        run(test, kind, tmp_path, image)
