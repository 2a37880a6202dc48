"""The plug board: third parties' distributions on disk, good and broken ones."""

import sys
from pathlib import Path

import attrs
import pytest

from vmcloner_core import Engine
from vmcloner_core.deadlines import answers
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


SHIPPED = [(kind, name) for kind, name in [("storage", "files"), ("boot", "disk")]]


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_a_strangers_plugin_does_not_replace_a_shipped_one(distribution, caplog, kind, name):
    distribution("acme", group=f"vmcloner.{kind}", **{name: "raise AssertionError('imported')"})
    host = PluginHost()
    assert getattr(host, kind)(name).factory.__module__.startswith("vmcloner_")
    assert f"{kind} plugin {name!r} of acme is refused: vmcloner itself brings" in caplog.text
    found = {i.distribution: i for i in host.infos() if (i.kind, i.name) == (kind, name)}
    assert (found["vmcloner"].state, found["acme"].state) == ("ok", "duplicate")
    assert found["acme"].error == "comes from acme and vmcloner"


@pytest.mark.parametrize("group", ["storage", "observer"])
def test_an_import_that_ends_the_process_is_contained(distribution, group, caplog):
    distribution("acme", group=f"vmcloner.{group}", leaves="import sys; sys.exit(3)")
    host = PluginHost()
    assert (info(host, "leaves").state, info(host, "leaves").error) == ("broken", "SystemExit: 3")
    host.load_observers()
    if group == "observer":
        assert "observer plugin 'leaves' of acme is not used: SystemExit: 3" in caplog.text
    else:
        with pytest.raises(BackendError, match="of acme is broken: SystemExit: 3"):
            host.storage("leaves")


def test_an_import_that_hangs_is_named(distribution, monkeypatch):
    distribution("acme", hangs="import threading; threading.Event().wait(5)", good=GOOD)
    monkeypatch.setattr("vmcloner_core.plugins.IMPORTING", 0.2)
    found = {i.name: i for i in PluginHost().infos() if i.distribution == "acme"}
    assert found["hangs"].state == "broken"
    assert found["hangs"].error == "no answer within 200 ms"
    assert found["good"].state == "ok"


OBSERVERS = {
    "other signature": (
        "@hookimpl\ndef vmcloner_clone_ready(clone, host):\n    pass",
        "Argument(s) {'host'} are declared in the hookimpl",
    ),
    "unknown hook": ("@hookimpl\ndef vmcloner_clone_gone(clone):\n    pass", "vmcloner_clone_gone"),
    "no hook": ("def vmcloner_clone_ready(clone):\n    pass", "it has no hook of vmcloner"),
}


@pytest.mark.parametrize(("source", "message"), OBSERVERS.values(), ids=OBSERVERS)
def test_observers_that_are_not_used_are_not_called_ok(distribution, source, message):
    text = f"from vmcloner_core.hooks import hookimpl\n{source}\n"
    distribution("watch", group="vmcloner.observer", odd=text)
    host = PluginHost()
    assert info(host, "odd").state == "broken"
    host.load_observers()
    assert not any(name == "observer:odd" for name, _ in host._manager.list_name_plugin())
    assert message in info(host, "odd").error


FACTORY = """
    from vmcloner_core.hooks import NoSettings, StorageBackend, hookimpl
    from vmcloner_core.testing.reference import ReferenceStorage

    class Old(ReferenceStorage):
        def clone(self, requests):
            yield from ()

    def fails(context, settings):
        raise SystemExit("gone")

    @hookimpl
    def vmcloner_storage_backend():
        return StorageBackend(api=1, name="{name}", description="d", factory=FACTORY)
"""
FACTORIES = {
    "no driver": ("lambda context, settings: None", "its factory makes a NoneType"),
    "no class of drivers": ("dict", "its factory dict is no StorageDriver"),
    "fails": ("fails", "SystemExit: gone"),
    "old": ("Old", "Old.clone takes (requests), not (requests, progress)"),
    "makes old": (
        "lambda *given: Old(*given)",
        "Old.clone takes (requests), not (requests, progress)",
    ),
}


@pytest.mark.parametrize(("factory", "message"), FACTORIES.values(), ids=FACTORIES)
def test_factories_that_make_no_driver_of_this_contract(distribution, tmp_path, factory, message):
    distribution("acme", odd=FACTORY.replace("FACTORY", factory))
    assert info(PluginHost(), "odd").state == "broken"
    assert message in info(PluginHost(), "odd").error
    settings = tmp_path / "vmcloner.toml"
    settings.write_text(f"[hosts.local]\nstate = '{tmp_path}'\n[hosts.local.storage.odd]\n")
    with Engine.open(config=settings) as engine, pytest.raises(BackendError) as caught:
        engine._host.drivers.storage("odd")
    assert "acme" in str(caught.value)
    assert message in str(caught.value)


def test_a_factory_that_hangs_is_named_and_holds_nobody_up(distribution, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "__defaults__", (0.3,))
    distribution("acme", odd=FACTORY.replace("FACTORY", "lambda *_: __import__('time').sleep(60)"))
    settings = tmp_path / "vmcloner.toml"
    settings.write_text(f"[hosts.local]\nstate = '{tmp_path}'\n[hosts.local.storage.odd]\n")
    with Engine.open(config=settings) as engine:
        with pytest.raises(BackendError) as caught:
            engine._host.drivers.storage("odd")
        assert engine._host.drivers.storage("files").name == "files"
    assert "storage plugin 'odd' is broken: its factory gave no answer within" in str(caught.value)
    assert "acme" in str(caught.value)


POLICY = """
    from vmcloner_core.hooks import hookimpl

    @hookimpl
    def vmcloner_clone_mac(labels, nic, attempt):
        {what}
"""


def test_a_mac_policy_comes_by_an_entry_point(distribution, lab):
    text = POLICY.replace("{what}", "return f'52:54:00:00:0{attempt}:{labels.index:02x}'")
    distribution("acme", group="vmcloner.observer", macs=text)
    lab.engine.create("web", "t1", count=2)
    assert [clone.mac for clone in lab.engine.list()] == ["52:54:00:00:00:01", "52:54:00:00:00:02"]


@pytest.mark.parametrize("what", ["raise RuntimeError('no')", "raise SystemExit('no')"])
def test_a_policy_that_fails_is_named(distribution, lab, what):
    distribution("acme", group="vmcloner.observer", macs=POLICY.replace("{what}", what))
    with pytest.raises(BackendError, match=r"clone_mac failed: \w+: no; it is 'macs' of acme"):
        lab.engine.create("web", "t1", count=2)


HANGS = """
    import threading
    from vmcloner_core.hooks import hookimpl

    @hookimpl
    def {hook}({argument}):
        threading.Event().wait(30)
"""


def test_an_observer_that_hangs_is_dropped(distribution, lab, monkeypatch, caplog):
    source = HANGS.replace("{hook}", "vmcloner_step_changed").replace("{argument}", "event")
    distribution("acme", group="vmcloner.observer", odd=source)
    monkeypatch.setattr("vmcloner_core.plugins.OBSERVING", 0.1)
    assert lab.engine.create("web", "t1", count=3).ok
    assert caplog.text.count("observer 'odd' of acme hangs, and is not used any more") == 1


def test_an_observer_that_fails_is_one_line(distribution, lab, caplog):
    source = HANGS.replace("{hook}", "vmcloner_clone_ready").replace("{argument}", "clone")
    source = source.replace("threading.Event().wait(30)", "raise SystemExit('no')")
    distribution("acme", group="vmcloner.observer", odd=source)
    caplog.set_level("WARNING")
    assert lab.engine.create("web", "t1", count=1).ok
    assert caplog.messages == ["observer 'odd' of acme failed: SystemExit: no"]


def test_a_policy_that_hangs_is_named(distribution, lab, monkeypatch):
    source = HANGS.replace("{hook}", "vmcloner_preflight").replace("{argument}", "plan")
    distribution("acme", group="vmcloner.observer", odd=source)
    monkeypatch.setattr(answers, "__defaults__", (0.5,))
    with pytest.raises(BackendError, match=r"preflight failed: no answer .*'odd' of acme"):
        lab.engine.create("web", "t1", count=1)


def test_docs_tell_of_the_current_api():
    changes = (Path(__file__).parents[2] / "docs" / "api-changes.md").read_text()
    assert f"\n## {API_VERSION}\n" in changes
    assert f"\n## {API_VERSION + 1}\n" not in changes
