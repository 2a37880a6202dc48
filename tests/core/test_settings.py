"""Settings and templates: what is wrong is named by file and key."""

import contextlib
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core.catalog import Catalog
from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError
from vmcloner_core.settings import Settings
from vmcloner_core.tomlfile import read_toml
from vmcloner_core.units import format_size, parse_size

IMAGE = '[image]\npath = "x.raw"\n'


@pytest.fixture
def catalog(tmp_path):
    def make(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.toml").write_text(textwrap.dedent(text))
        return Catalog(tmp_path / "built", [tmp_path])

    return make


def test_defaults_need_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("VMCLONER_CONFIG", raising=False)
    settings = Settings.load()
    assert settings.file is None
    assert settings.host().name == "local"
    assert tuple(settings.host().storage) == ("files",)


def test_the_variable_wins_over_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmcloner.toml").write_text('[defaults]\nstorage = "here"')
    (tmp_path / "other.toml").write_text('[defaults]\nstorage = "there"')
    assert Settings.load().defaults.storage == "here"
    monkeypatch.setenv("VMCLONER_CONFIG", str(tmp_path / "other.toml"))
    assert Settings.load().defaults.storage == "there"
    monkeypatch.setenv("VMCLONER_CONFIG", str(tmp_path / "gone.toml"))
    with pytest.raises(NotFound, match="gone"):
        Settings.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[defaults]\nstorag = 'x'", "defaults: unknown key 'storag' (did you mean 'storage'?)"),
        ("[defaults]\nstorage = 3", "defaults.storage: must be a string, not 3"),
        ("[limits]\nmemory_overcommit = true", "memory_overcommit: must be a number"),
        ("[limits]\nmemory_overcommit = -1", "memory_overcommit"),
        ("[hosts.local]\nstat = '/x'", "stat"),
        ("x = = 1\n", "line 1"),
        ("file = 'x'", "file"),
    ],
)
def test_bad_settings_name_file_and_key(tmp_path, text, message):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        Settings.load(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pools_and_their_drivers(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('[hosts.local.storage.fast]\ndriver = "files"\npath = "/srv"')
    settings = Settings.load(file)
    pools = settings.host("local").storage
    assert (pools["fast"].driver, pools["fast"].values) == ("files", {"path": "/srv"})
    assert pools["files"].driver == "files"
    assert tuple(pools) == ("files", "fast")
    with pytest.raises(NotFound, match="did you mean 'local'"):
        settings.host("locl")


def test_networks_for_clones_of_other_hosts(tmp_path):
    file = tmp_path / "vmcloner.toml"
    file.write_text('[hosts.local]\nnetworks = ["lan", "bridge:br0"]')
    assert Settings.load(file).host().networks == ("lan", "bridge:br0")
    file.write_text('[hosts.lab1]\naddress = "lab1"\nnetworks = ["lan"]')
    with pytest.raises(
        InvalidRequest, match=r"hosts\.lab1\.networks: belongs into the settings on"
    ):
        _ = Settings.load(file).remote


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("[hosts.far]", "hosts.far: has no address"),
        ('[hosts.far]\naddress = "far.example"', "hosts.far: is another machine"),
        ('[hosts.local]\naddress = "far.example"', "hosts.local.address"),
    ],
)
def test_a_host_that_is_not_this_machine_is_refused(tmp_path, table, reason):
    """It would be this machine under another name."""
    file = tmp_path / "s.toml"
    file.write_text(table)
    settings = Settings.load(file)
    with pytest.raises(InvalidRequest) as caught:
        settings.host("local" if "local" in table else "far")
    assert reason in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.hint


def test_template_with_defaults(catalog, tmp_path):
    template = catalog(a=IMAGE).template("a")
    assert template.memory == 512 * 1024**2
    assert template.image.path == tmp_path / "x.raw"
    assert template.folder == tmp_path
    assert template.origin_file == tmp_path / "a.toml"


def test_another_boot_provider_inherits_no_kernel(catalog):
    both = catalog(
        a=IMAGE + '[kernel]\npath = "k"\ncmdline = "quiet"',
        b='extends = "a"\nboot = "pygrub"\n[kernel]\ncmdline = "loud"',
        c='extends = "b"\nboot = "pygrub"',
    )
    for name in ("b", "c"):
        kernel = both.template(name).kernel
        assert (kernel.path, kernel.cmdline) == (None, "loud")


def test_a_template_may_lie_over_the_next_of_its_name(tmp_path):
    """Such as one of the user over the one that is shipped."""
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    for folder, text in ((shipped, "vcpus = 3\n" + IMAGE), (own, "extends = 'a'\nmemory = 4096")):
        folder.mkdir()
        (folder / "a.toml").write_text(text)
    template = Catalog(tmp_path / "built", [own, shipped]).template("a")
    assert (template.memory, template.vcpus) == (4096, 3)
    assert template.image.path == shipped / "x.raw"
    assert template.origin_file == own / "a.toml"
    (shipped / "a.toml").write_text("extends = 'a'")
    with pytest.raises(InvalidRequest, match="a > a > a: a loop"):
        Catalog(tmp_path / "built", [own, shipped]).template("a")


def test_extends_lays_tables_over(catalog):
    both = catalog(
        a=IMAGE + '[kernel]\npath = "k"\ncmdline = "quiet"\n[domain]\nmachine = "pc"',
        b='extends = "a"\nmemory = "1GiB"\n[kernel]\ncmdline = "loud"',
    )
    template = both.template("b")
    assert template.name == "b"
    assert template.memory == 1024**3
    assert template.kernel.cmdline == "loud"
    assert str(template.kernel.path) == "k"
    assert template.domain.machine == "pc"


@pytest.mark.parametrize("image", [IMAGE, '[image]\nbuilder = "tiny"\n'])
def test_an_ssh_key_lies_beside_the_file_that_names_it(tmp_path, monkeypatch, image):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    files = {
        shipped / "a.toml": image + "[ssh]\nkey = 'id_a'",
        own / "b.toml": "extends = 'a'",
        own / "c.toml": "extends = 'a'\n[ssh]\nkey = 'keys/id_c'",
        own / "d.toml": "extends = 'a'\n[ssh]\nkey = '~/id_d'",
    }
    for file, text in files.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    templates = Catalog(tmp_path / "built", [own, shipped])
    keys = [templates.template(name).ssh.key for name in "abcd"]
    assert keys == [shipped / "id_a"] * 2 + [own / "keys/id_c", tmp_path / "home/id_d"]


def test_a_builders_files_lie_in_a_folder_of_their_own(catalog, tmp_path):
    template = catalog(a='[image]\nbuilder = "tiny"').template("a")
    assert template.folder == tmp_path / "built" / "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'image' is missing"),
        (IMAGE + "memry = 1", "a.toml"),
        ("memory = '12 parsecs'\n" + IMAGE, "memory: not a size: '12 parsecs'"),
        ("memory = -1\n" + IMAGE, "memory"),
        ("vcpus = '2'\n" + IMAGE, "vcpus: must be a whole number, not '2'"),
        ("vcpus = 0\n" + IMAGE, "vcpus"),
        ("hypervisors = 'kvm'\n" + IMAGE, "hypervisors: must be a list of strings"),
        ("ready = 'console:['\n" + IMAGE, "ready"),
        ("ready = 'yesterday'\n" + IMAGE, "use running, ip, port:N"),
        ("[image]\npath = 'x'\nurl = 'http://x'", "exactly one of"),
        ("[image]\nurl = 'ftp://x'", "not http"),
        ("[image]\npath = 'x'\nformat = 'vmdk'", "format"),
        (IMAGE + "[[nics]]\nkind = 'bridge'", "needs a source"),
        (IMAGE + "[[nics]]\nkind = 'carrier-pigeon'", "kind"),
        ("extends = 'z'", "unknown template 'z'"),
        ("extends = 'a'", "a loop"),
        ("name = 'b'\n" + IMAGE, "unknown key 'name'"),
        ("[image\n", "line 1"),
    ],
)
def test_bad_templates_name_file_and_key(catalog, text, message):
    with pytest.raises(VmclonerError) as caught:
        catalog(a=text).template("a")
    assert "a.toml" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in (3, 4)


@given(
    st.recursive(
        st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["image", "path", "kernel", "nics", "kind", "memory", "domain", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    )
)
def test_any_toml_is_a_template_or_refused(tmp_path_factory, data):
    import json

    if not isinstance(data, dict):
        data = {"image": data}
    folder = tmp_path_factory.mktemp("t")

    def toml(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(toml(item) for item in value) + "]"
        return json.dumps(value).replace("\x7f", "\\u007f")

    text = "\n".join(f"{key} = {toml(value)}" for key, value in data.items())
    (folder / "a.toml").write_text(text)
    try:
        template = Catalog(folder / "built", [folder]).template("a")
    except VmclonerError as error:
        assert "\n" not in str(error)
        return
    assert template.name == "a"


def test_a_broken_template_does_not_hide_the_others(catalog):
    infos = catalog(a="[image", b=IMAGE).infos()
    assert [(info.name, info.error is None) for info in infos] == [("a", False), ("b", True)]


@pytest.mark.parametrize(
    ("text", "size"),
    [("128MiB", 128 * 1024**2), ("4G", 4 * 1024**3), ("10GB", 10**10), ("1.5K", 1536), (512, 512)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_refused(text):
    with contextlib.suppress(InvalidRequest):
        assert parse_size(text) > 0


@given(st.integers(0, 2**60))
def test_any_size_is_shown(size):
    assert format_size(size).split()[1] in ("B", "KiB", "MiB", "GiB", "TiB")


@pytest.mark.parametrize("number", ["1" * 4301, "0x" + "f" * 4000, "-" + "9" * 20, str(2**63)])
@pytest.mark.parametrize("text", ["a = {}", "[t]\na = [[{}]]", "[[t]]\na = {{ b = {} }}"])
def test_numbers_of_more_than_64_bits_are_refused(tmp_path, number, text):
    path = tmp_path / "settings.toml"
    path.write_text(text.format(number))
    with pytest.raises(InvalidRequest, match=r"settings\.toml: ") as caught:
        read_toml(path, trusted=False)
    assert len(str(caught.value)) < 300


def test_numbers_of_64_bits_are_read(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(f"a = {2**63 - 1}\nb = {-(2**63)}")
    assert read_toml(path, trusted=False) == {"a": 2**63 - 1, "b": -(2**63)}
