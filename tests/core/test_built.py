"""``image build``: a template of one's own that a builder's options make."""

import pytest

from vmcloner_core import catalog, user_folders
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import Conflict, InvalidRequest, NotFound


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    folder = tmp_path / "config"
    monkeypatch.setattr(user_folders, "config", lambda: folder)
    return folder / "templates"


def write_built(*declaration):
    file, text = catalog.built(*declaration)
    catalog.write(file, text)
    return file


def test_a_template_is_written_as_it_was_asked(config):
    options = {"suite": "bookworm", "packages": ["git", "make"], "size": 4 * 1024**3}
    file = write_built("ci", "debian-12-built", "debian", options)
    shipped = catalog.search_path()[-1]
    found = catalog.Catalog(config.parent, [config, shipped]).template("ci")
    assert found.origin_file == file
    assert found.image.builder == "debian"
    assert found.image.options == options
    assert found.identity.provider == "cloud-init"
    assert found.folder == config.parent / "ci"


def test_it_is_replaced_and_one_by_hand_is_not(config):
    write_built("ci", "debian-12-built", "debian", {"suite": "bookworm"})
    file = write_built("ci", "debian-12-built", "debian", {"suite": "trixie"})
    assert "trixie" in file.read_text()
    for text in ('extends = "tiny"\n', file.read_text() + 'packages = ["git"]\n'):
        file.write_text(text)
        with pytest.raises(Conflict, match="by hand"):
            write_built("ci", "debian-12-built", "debian", {"suite": "bookworm"})
        assert file.read_text() == text


def test_any_text_is_an_option(config):
    options = {"revision": '\U0001f600 "\\\x7f\n'}
    write_built("ci", "debian-12-built", "debian", options)
    found = catalog.Catalog(config.parent, [config, catalog.search_path()[-1]]).template("ci")
    assert found.image.options == {"suite": "bookworm", "size": "2GiB", **options}
    with pytest.raises(InvalidRequest, match="not valid text"):
        write_built("ci", "debian-12-built", "debian", {"revision": "\udcff"})


def test_options_are_checked_before_anything_is_written(lab, config):
    with pytest.raises(InvalidRequest, match="suite"):
        lab.engine.build_image("ci", {"suite": "no such suite!"})
    with pytest.raises(InvalidRequest, match="name"):
        lab.engine.build_image("../ci", {"suite": "bookworm"})
    assert not config.exists()


def test_a_build_that_fails_leaves_no_template(lab, config, monkeypatch):
    """Nor changes one that is there: it is written once its image is built."""
    seen = []

    def build(template):
        seen.append((template.image.options["suite"], template.origin_file.exists()))
        raise KeyboardInterrupt

    monkeypatch.setattr(lab.engine._host.images, "build", build)
    with pytest.raises(KeyboardInterrupt):
        lab.engine.build_image("ci", {"suite": "trixie"})
    assert seen == [("trixie", False)]
    assert not config.exists()
    file = write_built("ci", "debian-12-built", "debian", {"suite": "bookworm"})
    before = file.read_text()
    with pytest.raises(KeyboardInterrupt):
        lab.engine.build_image("ci", {"suite": "trixie"})
    assert seen[1] == ("trixie", True)
    assert file.read_text() == before
    monkeypatch.setattr(lab.engine._host.images, "build", lambda _template: "image")
    template, image = lab.engine.build_image("ci", {"suite": "trixie"})
    assert (template.origin_file, image) == (file, "image")
    assert "trixie" in file.read_text()


def test_a_shipped_template_can_be_built_with_other_options(lab, config, monkeypatch):
    monkeypatch.setattr(lab.engine._host.images, "build", lambda _template: "image")
    template, _ = lab.engine.build_image("debian-12-built", {"suite": "trixie"})
    assert template.image.options["suite"] == "trixie"
    assert template.origin_file == config / "debian-12-built.toml"
    assert (template.folder.name, template.ready) == ("debian-12-built", "ssh")


def test_what_has_no_builder_is_not_built(lab):
    with pytest.raises(InvalidRequest, match="no image builder"):
        lab.engine.build_image("t1")
    with pytest.raises(NotFound):
        lab.engine.build_image("nowhere")


BUILT = """
hypervisors = ["reference"]
boot = "reference"
memory = "256MiB"
[image]
builder = "tiny"
[kernel]
path = "vmlinuz"
"""


def test_a_kernel_is_built_where_another_host_imported_the_image(lab, monkeypatch):
    """In a pool that hosts share, the image is there, but the kernel isn't on this host."""
    lab.template("built", BUILT)
    file = lab.folder / "templates/image.raw"
    image = ImageFile(path=file, format="raw", size=1024**2, digest="sha256:1")
    lab.pool.import_image("built", image, lambda _done, _total: None).unwrap()
    built = []

    def build(template):
        built.append(template.name)
        template.folder.mkdir(parents=True, exist_ok=True)
        (template.folder / "vmlinuz").touch()

    monkeypatch.setattr(lab.engine._host.images, "build", build)
    lab.engine.create("web", "built", count=1)
    lab.engine.create("web", "built", count=2)
    assert built == ["built"]
