"""What is wrong with a template's file is said in one clear line, or all of it by a check."""

import json

import pytest

from tests.conftest import TEMPLATE
from vmcloner_core.catalog import Catalog, shipped
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.request import CreateRequest

IMAGE = '[image]\npath = "image.raw"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (IMAGE + "[nics]\n", "nics: must be an array of tables, [[nics]], not a table, [nics]"),
        (IMAGE + "[disks]\n", "disks: must be an array of tables, [[disks]], not a table, [disks]"),
        ('nics = "x"\n' + IMAGE, "nics: must be an array of tables, [[nics]], not 'x'"),
        ("disks = [1]\n" + IMAGE, "disks[0]: must be a table, not 1"),
        ('ssh = "x"\n' + IMAGE, "ssh: must be a table, [ssh], not 'x'"),
        (IMAGE + "[[ssh]]\n", "ssh: must be a table, [ssh], not an array of tables, [[ssh]]"),
        (IMAGE + "[[domain]]\n", "domain: must be a table, [domain], not an array of tables, [["),
        ("image = 'x'\n", "image: must be a table, [image], not 'x'"),
        ("image = [1, 2]\n", "image: must be a table, [image], not a list, [1, 2]"),
        ("values = 3\n" + IMAGE, "values: must be a table, [values], not 3"),
        (IMAGE + "options = 'x'\n", "image.options: must be a table, [options], not 'x'"),
        (
            IMAGE + '[[nics]]\nkind = "usr"\n',
            "nics[0].kind: must be 'user' or 'bridge' or 'network'",
        ),
        (IMAGE + 'format = "vmdk"\n', "image.format: must be 'raw' or 'qcow2', not 'vmdk'"),
        (IMAGE + '[domain]\ntype = "x"\n', "domain.type: must be 'pv' or 'pvh' or 'hvm', not 'x'"),
        ("hypervisors = 'kvm'\n" + IMAGE, "hypervisors: must be a list of strings, not 'kvm'"),
    ],
)
def test_wrong_shapes(run, lab, text, said):
    lab.template("t1", text)
    file = lab.folder / "templates" / "t1.toml"
    code, out, err = run("create", "web", "-t", "t1")
    assert (code, out) == (3, "")
    assert err.startswith(f"vmcloner: {file}: {said}")
    assert len(err.splitlines()) == 1
    assert "typing" not in err
    assert "object" not in err


def test_a_check_shows_all_at_once(run, lab):
    """What the wrong keys leave is checked too."""
    lab.template(
        "t1",
        'memory = "x"\nvcpus = 0\nmemry = 1\nready = "sh"\nname = "x"\nboot = "nope"\n'
        '[image]\npath = "gone.raw"\n[ssh]\nport = 0\nuesr = "x"\n[nics]\nkind = "bridge"\n',
    )
    code, out, _ = run("template", "check", "t1", "-f", "json")
    assert code == 3
    found = [(row["check"], row["detail"]) for row in json.loads(out) if row["status"] == "failed"]
    details = [detail for check, detail in found if check == "file"]
    for text in (
        "memory: not a size: 'x'", "vcpus: ", "unknown key 'memry' (did you mean 'memory'?)",
        "ready: can't wait for 'sh'", "unknown key 'name'", "ssh.port: ",
        "ssh: unknown key 'uesr' (did you mean 'user'?)", "nics: must be an array of tables",
    ):  # fmt: skip
        assert sum(detail.startswith(text) for detail in details) == 1, (text, details)
    assert len(details) == 8
    assert {check for check, _ in found} == {"file", "keys", "image", "boot", "domain"}
    said = run("create", "web", "-t", "t1")[2]
    assert len(said.splitlines()) == 1


def test_a_check_of_what_is_no_toml_is_one_line(run, lab):
    lab.template("t1", "[[")
    code, _, err = run("template", "check", "t1")
    assert code == 3
    assert "not TOML" in err
    assert run("template", "check", "nope")[0] == 4


def catalog(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return Catalog(folder / "built", [folder, shipped()])


def test_an_image_is_inherited_key_by_key(tmp_path):
    parent = "[image]\nbuilder = 'debian'\n[image.options]\nsuite = 'trixie'\nsize = '2GiB'\n"
    found = catalog(
        tmp_path / "t",
        p=parent,
        larger="extends = 'p'\n[image.options]\nsize = '4GiB'\n",
        same="extends = 'p'\n[image]\nbuilder = 'debian'\n[image.options]\nmirror = 'http://m'\n",
        other="extends = 'p'\n[image]\nbuilder = 'tiny'\n",
        file="extends = 'p'\n[image]\npath = 'x.qcow2'\n",
        named="extends = 'q'\n[image]\nformat = 'raw'\n",
        q="[image]\npath = 'x.img'\nformat = 'qcow2'\nsha256 = '" + "0" * 64 + "'\n",
        moved="extends = 'q'\n[image]\npath = 'y.img'\n",
    )
    images = {name: found.template(name).image for name in found.files() if len(name) > 1}
    assert images["larger"].options == {"suite": "trixie", "size": "4GiB"}
    assert images["larger"].builder == "debian"
    assert images["same"].options == {"suite": "trixie", "size": "2GiB", "mirror": "http://m"}
    assert (images["other"].builder, images["other"].options) == ("tiny", {})
    assert (images["file"].builder, images["file"].path) == (None, tmp_path / "t" / "x.qcow2")
    assert (images["named"].path, images["named"].format) == (tmp_path / "t" / "x.img", "raw")
    assert images["named"].sha256 == "0" * 64
    assert images["moved"].sha256 is None  # it was of the other file
    assert images["moved"].format == "qcow2"


def test_keys_that_may_log_in_are_relative_to_the_template(tmp_path):
    key = "ssh-ed25519 AAAA me@host.example"
    given = f"['id.pub', 'keys/a.pub', '/etc/b.pub', '~/c.pub', '{key}']"
    text = IMAGE + f"[identity]\nauthorized_keys = {given}\n"
    found = catalog(tmp_path / "t", a=text).template("a")
    folder = tmp_path / "t"
    assert found.identity.authorized_keys == (
        f"{folder}/id.pub", f"{folder}/keys/a.pub", "/etc/b.pub", "~/c.pub", key,
    )  # fmt: skip


def test_a_misspelt_value_is_refused(lab):
    lab.template(
        "t1", TEMPLATE + '[values]\nrole = "db"\n[domain]\ndevices = "<!-- {{ port }} -->"\n'
    )
    for key, close in (("memroy", "memory"), ("rol", "role"), ("prot", "port")):
        request = CreateRequest(fleet="web", template="t1", values={1: {key: "1"}})
        with pytest.raises(InvalidRequest) as caught:
            lab.engine.plan(request)
        assert f"uses '{key}' (did you mean '{close}'?" in str(caught.value)
    request = CreateRequest(fleet="web", template="t1", values={1: {"port": 1, "note": "x"}})
    assert len(lab.engine.plan(request).clones) == 1
