"""Conformance suite for image builders.

Example::

    from vmcloner_core.testing.image import ImageConformance
    from vmcloner_core.testing.samples import make_context

    class TestMine(ImageConformance):
        @pytest.fixture
        def builder(self, tmp_path):
            return MyBuilder(make_context(tmp_path))

The image is built twice in all. With the fixture ``other_builder``, one whose options or sources
give another image, the suite checks that the fingerprint tells.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs
import pytest

from vmcloner_core import images
from vmcloner_core.drivers import ImageBuilder, ImageFile
from vmcloner_core.model import ImageSource
from vmcloner_core.testing.suite import Suite

MAX_FINGERPRINT = 64 * 1024
RESERVED = {".image", ".builder", ".fingerprint"}
"""Files that vmcloner writes beside an image."""


@attrs.frozen
class Built:
    """What a build did: its folder, the path that it returned, and the progress that it told."""

    fingerprint: str
    """As it was before."""
    folder: Path
    image: object
    told: tuple[tuple[int, int], ...]
    left: tuple[str, ...]
    """What was there afterwards in the folder for temporary files, and in the current one."""

    @property
    def path(self) -> Path:
        """The image."""
        assert isinstance(self.image, Path), f"build returned {self.image!r}, not a Path"
        return self.image


class ImageConformance(Suite):
    """What every image builder must do. Define the fixture :meth:`builder`."""

    contract = ImageBuilder
    made_by = "builder"

    @pytest.fixture
    def builder(self) -> ImageBuilder:
        """Return the builder under test."""
        raise NotImplementedError("define a fixture builder")

    @pytest.fixture
    def other_builder(self) -> ImageBuilder:
        """Return a builder of another image."""
        pytest.skip("the suite has no fixture other_builder")

    @pytest.fixture
    def built(self, builder: ImageBuilder, tmp_path_factory: pytest.TempPathFactory) -> Built:
        """Return the image, built once for all tests of the class."""
        known: Built | None = vars(type(self)).get("_built")
        if known is None:
            known = build(builder, tmp_path_factory.mktemp("image"))
            type(self)._built = known  # type: ignore[attr-defined]
        return known

    def test_the_fingerprint_is_a_short_text(self, builder: ImageBuilder) -> None:
        """It is kept beside the image and compared, so it is text, and no empty one."""
        fingerprint = builder.fingerprint()
        assert isinstance(fingerprint, str)
        assert 0 < len(fingerprint) <= MAX_FINGERPRINT
        assert fingerprint == fingerprint.encode().decode()

    def test_the_fingerprint_stays(self, builder: ImageBuilder, built: Built) -> None:
        """Asked again, also after a build, it is the same: nothing would be built again."""
        assert builder.fingerprint() == builder.fingerprint() == built.fingerprint

    def test_the_fingerprint_tells_images_apart(
        self, builder: ImageBuilder, other_builder: ImageBuilder
    ) -> None:
        """Another image has another fingerprint."""
        assert builder.fingerprint() != other_builder.fingerprint()

    def test_the_image_is_in_its_folder(self, built: Built) -> None:
        """The path that is returned is that of a regular file in the folder, raw or qcow2."""
        assert built.path.is_relative_to(built.folder)
        assert built.path.is_file()
        assert not built.path.is_symlink()
        assert built.path.suffix in (".raw", ".qcow2")

    def test_the_image_can_be_imported(self, built: Built) -> None:
        """It passes the checks of every import: its format, its size, no other file below it."""
        assert inspected(built).size > 0

    def test_files_stay_in_the_folder(self, built: Built) -> None:
        """Nothing refers to what is outside: the folder is renamed, and may be shared."""
        for path in built.folder.rglob("*"):
            assert not path.is_symlink() or not path.readlink().is_absolute(), path
            assert path.resolve().is_relative_to(built.folder.resolve()), path
            assert path.is_dir() or path.is_file(), f"{path} is neither file nor folder"
        assert not RESERVED & {path.name for path in built.folder.iterdir()}

    def test_nothing_is_left_elsewhere(self, built: Built) -> None:
        """Temporary files are removed, and the current folder holds nothing new."""
        assert built.left == ()

    def test_progress_is_of_bytes(self, built: Built) -> None:
        """What is told of progress isn't negative, nor more than the total, if that is known."""
        for done, total in built.told:
            assert done >= 0
            assert total == 0 or done <= total

    def test_a_second_build_has_the_same_files(
        self, builder: ImageBuilder, built: Built, tmp_path: Path
    ) -> None:
        """Templates name the files beside the image, so their names don't change."""
        again = build(builder, tmp_path)
        assert _names(again) == _names(built)
        assert again.path.relative_to(again.folder) == built.path.relative_to(built.folder)
        assert inspected(again).size == inspected(built).size


def build(builder: ImageBuilder, folder: Path) -> Built:
    """Have a builder fill an empty folder, with folders of its own beside it."""
    target, scratch, here = (folder / name for name in ("target", "scratch", "here"))
    for each in (target, scratch, here):
        each.mkdir()
    told: list[tuple[int, int]] = []
    fingerprint = builder.fingerprint()
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        patch.setattr(tempfile, "tempdir", None)
        patch.chdir(here)
        image = builder.build(target, lambda done, total: told.append((done, total)))
        moved = Path.cwd() != here
    assert not moved, "the build changed the current folder"
    assert Path.cwd() == before
    left = tuple(str(p.relative_to(folder)) for e in (scratch, here) for p in sorted(e.iterdir()))
    return Built(fingerprint, target, image, tuple(told), left)


def inspected(built: Built) -> ImageFile:
    """Return the image as an import sees it."""
    return images.from_file(ImageSource(path=built.path), lambda *_: None, "sha256:-")


def _names(built: Built) -> set[str]:
    return {path.relative_to(built.folder).as_posix() for path in built.folder.rglob("*")}
