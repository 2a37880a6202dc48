"""The plug board: third parties' distributions on disk, good and broken ones."""

import sys
import textwrap

import pytest
from stevedore import ExtensionManager

from vmcloner_core.errors import BackendError, NotFound
from vmcloner_core.plugins import PluginHost

GOOD = """
    from vmcloner_core.hooks import NoSettings, StorageBackend, hookimpl
    from vmcloner_core.testing.reference import ReferenceStorage

    @hookimpl
    def vmcloner_storage_backend():
        return StorageBackend(name="{name}", description="d", factory=ReferenceStorage)
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Return a function that puts a distribution with plugins on sys.path."""
    modules = set(sys.modules)
    monkeypatch.setattr(ExtensionManager, "ENTRY_POINT_CACHE", {})

    def make(dist, group="vmcloner.storage", **plugins):
        folder = tmp_path / dist
        info = folder / f"{dist}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        lines = []
        for name, source in plugins.items():
            module = f"{dist}_{name}".replace("-", "_")
            (folder / f"{module}.py").write_text(textwrap.dedent(source.replace("{name}", name)))
            lines.append(f"{name} = {module}")
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(lines))
        monkeypatch.syspath_prepend(str(folder))

    yield make
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def info(host, name):
    (found,) = {i for i in host.infos() if i.name == name}
    return found


def test_a_third_partys_backend_has_the_same_standing(distribution):
    distribution("acme", zfs=GOOD)
    host = PluginHost()
    assert host.storage("zfs").description == "d"
    assert (info(host, "zfs").distribution, info(host, "zfs").version) == ("acme", "1.2")
    assert info(host, "zfs").state == "ok"


def test_only_what_is_named_is_imported(distribution):
    distribution("acme", zfs=GOOD, boom="raise RuntimeError('imported')")
    assert PluginHost().storage("zfs")
    assert "acme_boom" not in sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "no_such_module"),
        ("raise RuntimeError('at import')", "at import"),
        ("x = (", "SyntaxError"),
        ("x = 1", "registers 0 backends"),
        (GOOD.replace("{name}", "other"), "registers the name 'other'"),
        (GOOD.replace("vmcloner_storage_backend", "vmcloner_storage_bakend"), "bakend"),
        (
            """
            from vmcloner_core.drivers import StorageDriver
            from vmcloner_core.hooks import StorageBackend, hookimpl

            class Half(StorageDriver):
                def probe(self):
                    yield

            @hookimpl
            def vmcloner_storage_backend():
                return StorageBackend(name="{name}", description="d", factory=Half)
            """,
            "Half lacks capacity, clone, delete",
        ),
    ],
)
def test_a_broken_plugin_is_reported_and_harms_no_other(distribution, source, message):
    distribution("acme", bad=source, good=GOOD)
    host = PluginHost()
    with pytest.raises(BackendError, match="acme") as caught:
        host.storage("bad")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 8
    assert info(host, "bad").state == "broken"
    assert message in info(host, "bad").error
    assert host.storage("good")


def test_a_name_that_two_bring_is_refused_naming_both(distribution):
    distribution("acme", zfs=GOOD)
    distribution("rival", zfs=GOOD)
    host = PluginHost()
    with pytest.raises(BackendError, match="acme and rival"):
        host.storage("zfs")
    assert {i.state for i in host.infos() if i.name == "zfs"} == {"duplicate"}


def test_unknown_plugin(distribution):
    distribution("acme", zfs=GOOD)
    with pytest.raises(NotFound, match="did you mean 'zfs'"):
        PluginHost().storage("zf")


def test_observers_come_by_entry_points_too(distribution):
    watcher = """
        from vmcloner_core.hooks import hookimpl
        seen = []

        @hookimpl
        def vmcloner_clone_ready(clone):
            seen.append(clone)
    """
    distribution("watch", group="vmcloner.observer", log=watcher, bad="raise OSError('no')")
    host = PluginHost()
    host.load_observers()
    host.clone_ready("r", "web-1")
    assert sys.modules["watch_log"].seen == ["web-1"]
    assert info(host, "bad").state == "broken"


def test_what_ships_is_whole():
    broken = [i for i in PluginHost().infos() if i.distribution == "vmcloner" and i.state != "ok"]
    assert broken == []
