"""The plug board: third parties' distributions on disk, good and broken ones."""

import sys
from pathlib import Path

import attrs
import pytest

from vmcloner_core.errors import BackendError, NotFound
from vmcloner_core.hooks import API_VERSION, hookimpl
from vmcloner_core.plugins import PluginHost
from vmcloner_core.testing.reference import StoragePlugin

GOOD = """
    from vmcloner_core.hooks import NoSettings, StorageBackend, hookimpl
    from vmcloner_core.testing.reference import ReferenceStorage

    @hookimpl
    def vmcloner_storage_backend():
        return StorageBackend(api=1, name="{name}", description="d", factory=ReferenceStorage)
"""


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
                return StorageBackend(api=1, name="{name}", description="d", factory=Half)
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


def test_an_observer_may_say_which_api_it_is_for(distribution):
    watcher = """
        from vmcloner_core.hooks import hookimpl
        VMCLONER_API = {api}
        seen = []

        @hookimpl
        def vmcloner_clone_ready(clone):
            seen.append(clone)
    """
    own, later = (watcher.replace("{api}", str(api)) for api in (API_VERSION, API_VERSION + 1))
    distribution("watch", group="vmcloner.observer", own=own, later=later)
    host = PluginHost()
    host.load_observers()
    host.clone_ready("r", "web-1")
    assert sys.modules["watch_own"].seen == ["web-1"]
    assert sys.modules["watch_later"].seen == []
    assert (info(host, "own").state, info(host, "own").api) == ("ok", API_VERSION)
    assert (info(host, "later").state, info(host, "later").api) == ("incompatible", API_VERSION + 1)


LATER = """
    from vmcloner_core.drivers import StorageDriver
    from vmcloner_core.hooks import StorageBackend, hookimpl

    @hookimpl
    def vmcloner_storage_backend():
        return StorageBackend(api=2, name="{name}", description="d", factory=StorageDriver)
"""
"""That its driver is abstract here is no mistake: a later version may ask for less."""
LATER_HOOK = """
    @hookimpl
    def vmcloner_of_a_later_version(clone):
        pass
"""


@pytest.mark.parametrize("source", [LATER, LATER + LATER_HOOK])
def test_a_backend_for_another_api_is_refused_by_name(distribution, source):
    distribution("acme", later=source, good=GOOD)
    host = PluginHost()
    for _ in range(2):
        with pytest.raises(BackendError) as caught:
            host.storage("later")
        assert str(caught.value) == (
            "storage plugin 'later' of acme is built for driver API 2, this vmcloner has driver "
            "API 1 (install a version of it for this vmcloner)"
        )
        assert caught.value.exit_code == 8
    found = info(host, "later")
    assert (found.state, found.api) == ("incompatible", 2)
    assert found.error == "built for driver API 2, this vmcloner has driver API 1"
    assert host.storage("good").api == API_VERSION == info(host, "good").api


def test_hooks_of_a_backend_for_another_api_are_not_called(distribution):
    veto = """
    @hookimpl
    def vmcloner_preflight(plan):
        raise RuntimeError("called")
    """
    distribution("acme", later=LATER + veto, good=GOOD + veto)
    host = PluginHost()
    host.infos()
    host._manager.unregister(name="storage:good")
    host.preflight(None)


def test_a_backend_that_names_no_api_is_broken(distribution):
    distribution("acme", old=GOOD.replace("api=1, ", ""))
    assert info(PluginHost(), "old").state == "broken"
    assert "'api'" in info(PluginHost(), "old").error


def test_an_object_for_another_api_is_refused():
    plugin = StoragePlugin()
    plugin.vmcloner_storage_backend = hookimpl(
        lambda: attrs.evolve(StoragePlugin.vmcloner_storage_backend(plugin), api=2)
    )
    with pytest.raises(BackendError, match="'reference' is built for driver API 2"):
        PluginHost([plugin])


def test_what_ships_is_whole():
    own = [i for i in PluginHost().infos() if i.distribution == "vmcloner"]
    assert {(i.state, i.api, i.error) for i in own} == {("ok", API_VERSION, "")}


def test_docs_tell_of_the_current_api():
    changes = (Path(__file__).parents[2] / "docs" / "api-changes.md").read_text()
    assert f"\n## {API_VERSION}\n" in changes
    assert f"\n## {API_VERSION + 1}\n" not in changes
