"""Images that no template names any more are shown, and removed unless clones need them."""

import json

import attrs
import pytest

from tests.conftest import TEMPLATE


def rows(run, *words):
    code, out, _ = run("template", *words, "-f", "json")
    return code, json.loads(out)


@pytest.fixture
def gone(lab):
    """A template whose image is in the pool, and whose file is removed."""
    lab.template("gone")
    lab.engine.import_template("gone")
    (lab.folder / "templates/gone.toml").unlink()
    built = lab.folder / "state/templates/gone"
    built.mkdir(parents=True)
    (built / "vmlinuz").write_bytes(b"x" * 100_000)
    return built


def test_an_image_without_a_template_is_listed_and_pruned(lab, run, gone):
    _, listed = rows(run, "list")
    (row,) = [row for row in listed if row["name"] == "gone"]
    assert (row["imported"], row["file"]) == ("reference", str(gone))
    assert "vmcloner template prune" in row["error"]
    code, found = rows(run, "prune", "--dry-run")
    assert code == 0
    assert {(r["template"], r["storage"], r["folder"]) for r in found} == {
        ("gone", None, str(gone)), ("gone", "reference", None),
    }  # fmt: skip
    assert {row["result"] for row in found} == {"would be removed"}
    assert gone.exists()
    code, out, err = run("template", "prune")
    assert (code, out) == (2, "")
    assert "--yes" in err
    code, found = rows(run, "prune", "--yes")
    assert (code, {row["result"] for row in found}) == (0, {"removed"})
    assert not gone.exists()
    assert not lab.pool.origins()
    assert not list((lab.folder / "state/templates").iterdir())
    assert rows(run, "prune", "--yes") == (0, [])


def test_what_templates_name_stays(lab, run):
    lab.engine.import_template("t1")
    lab.template("broken", "[image\n")
    for name, text in (("built", 'extends = "tiny"\n'), ("broken", "[image\n")):
        lab.template(name, text)
        (lab.folder / f"state/templates/{name}").mkdir(parents=True)
    assert rows(run, "prune", "--yes") == (0, [])
    lab.template("built")  # now it has an image file
    assert [row["template"] for row in rows(run, "prune", "--yes")[1]] == ["built"]


def test_what_clones_were_made_from_stays(lab, run, gone):
    lab.template("gone")
    lab.engine.create("web", "gone", count=1)
    (lab.folder / "templates/gone.toml").unlink()
    code, found = rows(run, "prune", "--yes")
    assert code == 10
    assert all("web-1 was made from it" in row["result"] for row in found)
    assert gone.exists()
    assert lab.pool.origins()


def test_delete_removes_what_a_builder_made(lab, run, gone):
    assert run("template", "delete", "gone")[2].endswith("image removed\n")
    assert not gone.exists()
    assert not lab.pool.origins()
    assert run("template", "delete", "gone")[2].endswith("image was not there\n")


def test_delete_names_the_other_pools_that_have_an_image(lab, run, gone, monkeypatch):
    (origin,) = lab.pool.origins()
    other = attrs.evolve(origin, pool="second")
    monkeypatch.setattr(lab.pool, "origins", lambda: (other,))
    said = run("template", "delete", "gone")[2]
    assert "vmcloner template delete gone --storage second" in said
    monkeypatch.undo()
    assert "--storage" not in run("template", "delete", "gone")[2]


def test_delete_keeps_the_kernel_of_clones(lab, run, gone):
    lab.template("gone")
    lab.engine.create("web", "gone", count=1)
    disk = lab.pool.disks.copy()
    lab.pool.disks.clear()  # as after a full copy: no clone is linked to the image
    code, _, err = run("template", "delete", "gone")
    assert code == 0
    assert "what its builder made is kept: web-1 was made from it" in err
    lab.pool.disks.update(disk)
    assert gone.exists()


def test_an_image_without_a_template_file_is_shown_and_explained(lab, run):
    folder = lab.folder / "templates"
    for name in ("noble-server-cloudimg-amd64.img", "deb.qcow2.xz", "vm.ova", "notes.txt"):
        (folder / name).write_bytes(bytes(512))
    _, listed = rows(run, "list")
    found = {row["name"]: row for row in listed if row["error"]}
    assert set(found) == {"noble-server-cloudimg-amd64", "deb", "vm"}
    assert '[image], path = "vm.ova"' in found["vm"]["error"]
    for name in ("deb", "deb.qcow2.xz"):
        code, _, err = run("create", "web", "-t", name)
        assert code == 4
        assert f"write {folder}/deb.toml" in err
    lab.template("vm", TEMPLATE.replace("image.raw", "vm.ova"))
    assert "vm" not in {row["name"] for row in rows(run, "list")[1] if row["error"]}


def test_check_finds_an_image_that_is_not_what_its_name_says(lab, run):
    (lab.folder / "templates/image.raw").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(1024))
    (lab.folder / "templates/t1.toml").write_text(TEMPLATE)
    code, out, _ = run("template", "check", "t1", "-f", "value")
    assert code == 3  # as create
    assert "is qcow2, though its name says raw" in out
