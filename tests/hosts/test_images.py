"""Templates that hosts lack are sent to them: on engines of this process with reference drivers."""

import hashlib
import itertools
import os
import random
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from vmcloner_core.catalog import Catalog, shipped
from vmcloner_core.errors import (
    BackendError,
    Interrupted,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    NotPulled,
    WrongState,
)
from vmcloner_core.extents import GRANULE
from vmcloner_core.hooks import hookimpl
from vmcloner_core.hosts import chunks, packing, parcel_calls, parcels, receiving, wire
from vmcloner_core.hosts.beside import Answered, Asked
from vmcloner_core.hosts.carrier import Carrier, Unreachable
from vmcloner_core.hosts.chunks import CHUNK, Chunk
from vmcloner_core.hosts.parcels import Item
from vmcloner_core.model import ImageSource
from vmcloner_core.placing import Where
from vmcloner_core.plan import StepStatus
from vmcloner_core.request import CreateRequest
from vmcloner_core.settings import Limits, Settings

IMAGE = bytes(3 * GRANULE) + random.Random(1).randbytes(2 * CHUNK + 5120) + bytes(2 * CHUNK)
TEXT = """
hypervisors = ["reference"]
boot = "reference"
memory = "128MiB"
[image]
path = "big.raw"
[ssh]
key = "id_secret"
[kernel]
path = "vmlinuz"
cmdline = "quiet"
[identity]
provider = "none"
authorized_keys = []
"""


class Spy(Carrier):
    """Passes calls on, and notes them; ``fault`` may raise before one of them."""

    def __init__(self, carrier):
        self.carrier, self.calls = carrier, []
        self.fault = lambda host, name: None
        self.lock, self.at_once, self.most = threading.Lock(), 0, 0

    def connect(self, hosts):
        return self.carrier.connect(hosts)

    def call(self, host, name, text, event):
        self.fault(host, name)
        with self.lock:
            self.calls.append((host, name))
            self.at_once += name == "receive"
            self.most = max(self.most, self.at_once)
        try:
            return self.carrier.call(host, name, text, event)
        finally:
            with self.lock:
                self.at_once -= name == "receive"

    def close(self):
        self.carrier.close()

    def count(self, name):
        return Counter(host for host, each in self.calls if each == name)


@pytest.fixture
def apart(hosts, tmp_path):
    """The hosts, each with template folders of its own; the controller has template ``big``."""
    folder = tmp_path / "config/vmcloner/templates"
    (folder / "under.toml").write_text(TEXT)
    (folder / "big.toml").write_text('extends = "under"\ndescription = "sent \\u00e9"\n')
    (folder / "big.raw").write_bytes(IMAGE)
    (folder / "vmlinuz").write_bytes(b"a kernel")
    for name, site in hosts.sites.items():
        own = hosts.folder / name / "templates"
        own.mkdir()
        for engine in (site.engine, hosts.carrier._besides[name]._engine):
            local = engine._local
            local.catalog = Catalog(
                local.host.templates, (own, shipped()), received=local.host.received
            )
    return hosts


@pytest.fixture
def spy(apart):
    return Spy(apart.carrier)


def received(hosts, name):
    return hosts.folder / name / "state/received"


def content(hosts, name):
    """Return the bytes of the image in a host's pool."""
    return hosts.sites[name].pool.contents["image big"]


def test_a_template_that_only_the_controller_has_is_sent_once(apart, spy):
    all_hosts = apart.controller(carrier=spy)
    assert all_hosts.create("web", "big", count=6).ok
    assert Counter(c.host for c in all_hosts.list()) == {"h1": 2, "h2": 2, "h3": 2}
    for name, site in apart.sites.items():
        assert content(apart, name) == IMAGE
        template = site.engine.template("big")
        assert template.description == "sent é"
        assert template.kernel.path.read_bytes() == b"a kernel"
        assert template.kernel.path.parent == received(apart, name) / "big"
        assert template.ssh.key is None, "the controller's secret"
        assert sorted(p.name for p in received(apart, name).iterdir()) == ["big", "big.toml"]
    (origin,) = {s.pool.images["big"].digest for s in apart.sites.values()}
    assert origin.startswith("sha256:")
    sent = len(spy.calls)
    all_hosts.create("web", "big", count=9)
    assert not {"receive", "offer"} & {name for _, name in spy.calls[sent:]}


def test_a_host_without_a_state_folder_yet(apart):
    """Its engine is opened before there is one."""
    assert not (apart.folder / "h1/state").exists()
    apart.controller().create("web", "big", count=1, where=Where(hosts=("h1",)))
    assert content(apart, "h1") == IMAGE


def test_only_hosts_that_get_clones_get_the_image(apart, spy):
    all_hosts = apart.controller(carrier=spy)
    all_hosts.create("web", "big", count=1, where=Where(hosts=("h2", "h3"), each=1))
    (clone,) = all_hosts.list()
    assert set(spy.count("receive")) == {clone.host}


def test_observers_see_how_far_it_is(apart):
    seen = []

    class Watch:
        @hookimpl
        def vmcloner_step_changed(self, event):
            seen.append((event.step, event.clone, event.status))

        @hookimpl
        def vmcloner_progress(self, event):
            seen.append((event.what, event.done, event.total))

    apart.controller(Watch()).create("web", "big", count=3)
    sends = [each for each in seen if each[0] in ("send", "send big")]
    assert sends[0] == ("send", "big", StepStatus.STARTED)
    assert sends[-1] == ("send", "big", StepStatus.DONE)
    done = [each[1] for each in sends[1:-1]]
    assert done == sorted(done)
    assert sends[-2][1] == sends[-2][2] >= 3 * 2 * CHUNK


def test_a_transfer_that_was_cut_off_goes_on(apart, spy):
    def cut(host, name):
        if (host, name) == ("h2", "receive") and spy.count("receive")["h2"] == 2:
            raise Unreachable("cut")

    spy.fault = cut
    all_hosts = apart.controller(carrier=spy)
    with pytest.raises(Unreachable, match="host 'h2': cut"):
        all_hosts.create("web", "big", count=3)
    assert all_hosts.list() == ()
    spy.fault, spy.calls = lambda host, name: None, []
    all_hosts.create("web", "big", count=3)
    assert set(spy.count("receive")) == {"h2"}, "the others have it"
    assert spy.count("receive")["h2"] < 5
    assert content(apart, "h2") == IMAGE


def test_what_arrived_damaged_is_sent_anew(apart, spy):
    def cut(host, name):
        if (host, name) == ("h3", "arrived"):
            raise Unreachable("cut")

    spy.fault = cut
    all_hosts = apart.controller(carrier=spy)
    with pytest.raises(Unreachable):
        all_hosts.create("web", "big", count=3)
    (draft,) = received(apart, "h3").glob(".big-image-*")
    with draft.open("r+b") as stream:
        stream.seek(CHUNK)
        stream.write(b"lost by a power cut")
    spy.fault = lambda host, name: None
    with pytest.raises(BackendError, match="host 'h3': image of template big arrived damaged"):
        all_hosts.create("web", "big", count=3)
    assert "big" not in apart.sites["h3"].pool.images
    assert all_hosts.create("web", "big", count=3).ok
    assert content(apart, "h3") == IMAGE


def test_no_more_uploads_at_once_than_the_settings_say(apart, spy, monkeypatch):
    all_hosts = apart.controller(carrier=spy)
    all_hosts.settings = Settings(limits=Limits(uploads=1))
    all_hosts.create("web", "big", count=3)
    assert spy.most == 1


def test_room_is_checked_before_anything_is_sent(apart, spy):
    apart.sites["h2"].pool.free = 1024
    apart.carrier._besides["h2"]._engine._local.drivers.storage("reference").free = 1024
    with pytest.raises(NotEnoughResources, match=r"host 'h2'.*1 KiB are free in pool"):
        apart.controller(carrier=spy).create("web", "big", count=3)
    assert not spy.count("receive")["h2"]


def give(hosts, name, text=TEXT):
    """Give a host template ``big`` of its own, with its image, and take it from the controller."""
    own = hosts.folder / name / "templates"
    (own / "big.toml").write_text(text)
    (own / "big.raw").write_bytes(IMAGE)
    (own / "vmlinuz").write_bytes(b"a kernel")
    (hosts.folder / "config/vmcloner/templates/big.toml").unlink(missing_ok=True)


def test_a_host_that_has_the_template_gives_it_to_the_others(apart, spy):
    give(apart, "h3")
    apart.controller(carrier=spy).create("web", "big", count=3)
    assert content(apart, "h1") == content(apart, "h2") == IMAGE
    assert set(spy.count("receive")) == {"h1", "h2"}
    assert spy.count("chunk")["h3"] < sum(spy.count("receive").values()), "read once for both"


def test_where_one_source_is_lost_another_goes_on(apart, spy):
    give(apart, "h1")
    give(apart, "h2")

    def lost(host, name):
        if (host, name) == ("h1", "chunk") and spy.count("chunk")["h1"] == 1:
            raise Unreachable("cut")

    spy.fault = lost
    apart.controller(carrier=spy).create("web", "big", count=3)
    assert content(apart, "h3") == IMAGE
    assert spy.count("chunk")["h2"]


@pytest.mark.parametrize("more", ['devices = "<rng/>"', 'xml = "domain.xml"'])
def test_a_hosts_template_gives_the_others_no_devices(apart, more):
    give(apart, "h1", f"{TEXT}[domain]\n{more}\n")
    (apart.folder / "h1/templates/domain.xml").write_text("<domain/>")
    with pytest.raises(WrongState, match="host 'h1' has domain"):
        apart.controller().create("web", "big", count=3)
    assert not received(apart, "h2").exists()


def test_a_host_with_the_text_but_no_image_gets_that(apart):
    own = apart.folder / "h2/templates"
    (own / "big.toml").write_text(TEXT)
    (own / "vmlinuz").write_bytes(b"its own")
    apart.controller().create("web", "big", count=3)
    assert content(apart, "h2") == IMAGE
    assert list(received(apart, "h2").iterdir()) == [], "its template is its own"


def newer(hosts, octets, more=""):
    """Give the controller's template another image, whose digest its file has."""
    folder = hosts.folder / "config/vmcloner/templates"
    (folder / "big.raw").write_bytes(octets)
    digest = hashlib.sha256(octets).hexdigest()
    text = TEXT.replace("[image]", f'[image]\nsha256 = "{digest}"')
    (folder / "big.toml").write_text(more + text[: text.index("[kernel]")] + NO_KERNEL)


NO_KERNEL = '[identity]\nprovider = "none"\nauthorized_keys = []\n'
NEWER = bytes(GRANULE) + random.Random(4).randbytes(4096)


def test_a_rebuilt_image_is_sent_to_hosts_that_have_an_earlier_one(apart, spy):
    newer(apart, IMAGE)
    all_hosts = apart.controller(carrier=spy)
    all_hosts.create("web", "big", count=3)
    all_hosts.delete("web")
    newer(apart, NEWER, 'description = "newer"\n')
    spy.fault = lambda host, name: killed() if (host, name) == ("h2", "receive") else None
    with pytest.raises(Killed):
        all_hosts.create("web", "big", count=3)
    for beside in apart.carrier._besides.values():
        beside._release()
    spy.fault = lambda host, name: None
    assert apart.controller().create("web", "big", count=3).ok
    for name, site in apart.sites.items():
        assert content(apart, name) == NEWER
        assert site.engine.template("big").description == "newer"
        assert [clone.template for clone in site.engine.list()] == ["big"]
    sent = len(spy.calls)
    all_hosts.create("web", "big", count=6)
    assert not {"receive", "retire"} & {name for _, name in spy.calls[sent:]}


class Killed(BaseException):
    """The controller is killed."""


def killed():
    raise Killed


def test_clones_of_the_earlier_image_keep_it(apart, caplog):
    """The pool has one image of a template: new clones there are made of it, and that is said."""
    newer(apart, IMAGE)
    all_hosts = apart.controller()
    all_hosts.create("web", "big", count=2, where=Where(hosts=("h1", "h2")))
    apart.sites["h2"].engine.delete("web-2")
    newer(apart, NEWER)
    assert all_hosts.create("db", "big", count=3).ok
    assert [content(apart, name) for name in ("h1", "h2", "h3")] == [IMAGE, NEWER, NEWER]
    (said,) = [r.getMessage() for r in caplog.records if "earlier image" in r.getMessage()]
    assert said.startswith("host 'h1': its clones are made of an earlier image of template big")
    assert "clones are linked to big: web-1" in said
    assert "delete those clones, or give the new image another name" in said


def test_clones_that_boot_the_earlier_kernel_keep_it(apart, caplog):
    all_hosts = apart.controller()
    all_hosts.create("web", "big", count=1, where=Where(hosts=("h1",)))
    newer(apart, NEWER)
    all_hosts.create("db", "big", count=1, where=Where(hosts=("h1",)))
    assert content(apart, "h1") == IMAGE
    assert "web-1 boots its kernel" in caplog.text


def test_a_template_that_is_broken_here_keeps_no_host_from_its_own(apart):
    all_hosts = apart.controller()
    all_hosts.create("web", "big", count=3)
    (apart.folder / "config/vmcloner/templates/big.toml").write_text("wrong = = 1\n")
    assert apart.controller().create("web", "big", count=4).ok


def test_a_host_s_own_template_keeps_its_image(apart):
    give(apart, "h1")
    all_hosts = apart.controller()
    where = Where(hosts=("h1",))
    all_hosts.create("web", "big", count=1, where=where)
    all_hosts.delete("web")
    newer(apart, NEWER)
    all_hosts.create("web", "big", count=1, where=where)
    assert content(apart, "h1") == IMAGE
    assert apart.carrier._besides["h1"].call_retire(Asked(name="big"), print) == (
        "it is the host's own"
    )


def test_different_images_of_one_template_are_said(apart, caplog):
    give(apart, "h1")
    give(apart, "h2")
    (apart.folder / "h2/templates/big.raw").write_bytes(bytes(1024))
    all_hosts = apart.controller()
    for _ in range(2):
        all_hosts.create("web", "big", add=2, where=Where(hosts=("h1", "h2")))
    assert "the hosts have different images of template big" in caplog.text


def test_an_image_that_is_to_be_pulled_first_is_sent_where_it_is_not(apart, monkeypatch):
    own = apart.folder / "h2/templates"
    url = "https://example.org"
    text = TEXT.replace('path = "big.raw"', f'url = "{url}/x.raw"\nchecksums = "{url}/SHA256SUMS"')
    for folder in (own, apart.folder / "config/vmcloner/templates"):
        (folder / "big.toml").write_text(text)
        (folder / "vmlinuz").write_bytes(b"a kernel")
    image_file = apart.folder / "config/vmcloner/templates/big.raw"
    pulled = SimpleNamespace(as_source=lambda _format: ImageSource(path=image_file))
    mine = threading.local()  # the controller's calls come from the thread that creates
    found = lambda _source: pulled if getattr(mine, "own", False) else None  # noqa: E731
    monkeypatch.setattr(parcels.pulling, "find", found)
    with pytest.raises(NotPulled):
        apart.controller().create("web", "big", count=1, where=Where(hosts=("h2",)))
    holding = parcels.holding

    def held(engine, name, storage):
        mine.own = engine.host.name == "all"
        try:
            return holding(engine, name, storage)
        finally:
            mine.own = False

    for module in (parcel_calls, receiving):
        monkeypatch.setattr(module, "holding", held)
    image = packing._image

    def obtained(engine, template, storage, stack):
        mine.own = True
        try:
            return image(engine, template, storage, stack)
        finally:
            mine.own = False

    monkeypatch.setattr(packing, "_image", obtained)
    apart.controller().create("web", "big", count=1, where=Where(hosts=("h2",)))
    assert content(apart, "h2") == IMAGE


def test_a_template_that_nobody_has(apart):
    with pytest.raises(NotFound, match="unknown template 'nope'"):
        apart.controller().create("web", "nope", count=3)


def test_a_dry_run_sends_nothing(apart, spy):
    all_hosts = apart.controller(carrier=spy)
    with pytest.raises(WrongState, match=r"template big is not on h\[1-3\] yet"):
        all_hosts.plan(CreateRequest(fleet="web", template="big", count=3))
    assert not spy.count("offer")
    all_hosts.create("web", "big", count=3)
    assert all_hosts.plan(CreateRequest(fleet="web", template="big", count=6)).clones


def test_ctrl_c_ends_a_transfer(apart, spy):
    all_hosts = apart.controller(carrier=spy)

    def stop(_host, name):
        if name == "receive":
            all_hosts.cancel()

    spy.fault = stop
    with pytest.raises(Interrupted):
        all_hosts.create("web", "big", count=3)


def test_deleting_the_template_removes_what_was_sent(apart):
    all_hosts = apart.controller()
    all_hosts.create("web", "big", count=3)
    all_hosts.delete("web")
    apart.carrier._besides["h1"]._engine.delete_template("big")
    assert list(received(apart, "h1").iterdir()) == []


def test_what_nobody_goes_on_with_is_swept(apart):
    folder = received(apart, "h1")
    folder.mkdir(parents=True)
    for name, age in ((".big-image-0123.part", 2 * 24 * 3600), (".big-image-4567.part", 60)):
        (folder / name).touch()
        then = time.time() - age
        os.utime(folder / name, (then, then))
    apart.sites["h1"].engine.gc()
    assert [p.name for p in folder.iterdir()] == [".big-image-4567.part"]


# --- what is hostile -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "octets",
    [
        b"no zstd",
        chunks.zstd.compress(b""),
        chunks.zstd.compress(b"\1" + bytes(7)),
        chunks.zstd.compress(bytes(9)),
        chunks.zstd.compress(bytes(2 * CHUNK)),
    ],
)
def test_a_part_that_is_none_is_refused(tmp_path, octets):
    with (tmp_path / "file").open("w+b") as stream, pytest.raises(BackendError, match="no part"):
        chunks.written(octets, stream.fileno(), 0, CHUNK)


def test_parts_are_written_as_they_were(tmp_path):
    (tmp_path / "from").write_bytes(IMAGE)
    with (tmp_path / "from").open("rb") as source, (tmp_path / "to").open("w+b") as target:
        for at in range(0, len(IMAGE), CHUNK):
            end = min(at + CHUNK, len(IMAGE))
            chunk = chunks.packed(source.fileno(), at, end)
            chunks.written(chunk.octets, target.fileno(), at, end)
        target.truncate(len(IMAGE))
    assert (tmp_path / "to").read_bytes() == IMAGE


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc/passwd"},
        {"digest": "../x"},
        {"size": -1},
        {"name": "vmlinuz", "size": 2**40},
    ],
)
def test_files_have_known_names_and_bounded_sizes(change):
    known = {"name": "image", "size": 1, "data": 1, "digest": "0" * 64}
    with pytest.raises(InvalidRequest):
        Item(**{**known, **change})


def test_an_image_that_names_another_file_is_refused(apart):
    """A host that was taken over must not read the files of others."""
    import subprocess

    give(apart, "h1")
    own = apart.folder / "h1/templates"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw",
         own / "big.raw", "1M"], check=True,
    )  # fmt: skip
    beside = apart.carrier._besides["h2"]
    text = apart.carrier.call("h1", "holding", '{"name": "big"}', print)
    assert "true" in text
    engine = beside._engine
    item = Item(name="image", size=(own / "big.raw").stat().st_size, data=1, digest=_of(own))
    parcel = parcels.Parcel(
        template="big", keys={}, digest=f"sha256:{'0' * 64}", format="qcow2", items=(item,)
    )
    arrival = receiving.Received(engine, parcel, "")
    arrival.begin()
    with (own / "big.raw").open("rb") as stream:
        arrival.receive("image", 0, chunks.packed(stream.fileno(), 0, item.size))
    with pytest.raises(InvalidRequest, match="backing"):
        arrival.end()
    assert "big" not in apart.sites["h2"].pool.images


def _of(folder):
    from vmcloner_core.images import hash_parts

    with (folder / "big.raw").open("rb") as stream:
        return hash_parts(stream.fileno(), lambda _done, _total: None)


def test_a_host_that_never_has_enough(apart, spy, monkeypatch):
    """It says that it has got one more byte each time."""
    honest, said = spy.call, itertools.count(1)

    def lying(host, name, text, event):
        assert len(spy.calls) < 100, "it goes on for ever"
        found = honest(host, name, text, event)
        return wire.dump(Answered(value=wire.dump(next(said)))) if name == "receive" else found

    monkeypatch.setattr(spy, "call", lying)
    with pytest.raises(WrongState, match="another transfer began anew"):
        apart.controller(carrier=spy).create("web", "big", count=1, where=Where(hosts=("h1",)))


def test_a_part_out_of_order_is_not_written(apart):
    engine = apart.carrier._besides["h2"]._engine
    item = Item(name="image", size=2 * CHUNK, data=2 * CHUNK, digest="0" * 64)
    parcel = parcels.Parcel(
        template="big", keys={}, digest=f"sha256:{'0' * 64}", format="raw", items=(item,)
    )
    arrival = receiving.Received(engine, parcel, "")
    arrival.begin()
    assert arrival.receive("image", CHUNK, Chunk(at=CHUNK, octets=b"x")) == 0
    with pytest.raises(BackendError):
        arrival.receive("image", 0, Chunk(at=4 * CHUNK, octets=b"x"))
    assert Asked().chunk is None
