"""Machines apart from their disks: saves that outlive who asked for them, what memory fits."""

import json

import pytest

libvirt = pytest.importorskip("libvirt")

from vmcloner_core.errors import WrongState  # noqa: E402
from vmcloner_libvirt import machines  # noqa: E402
from vmcloner_libvirt.metadata import parse  # noqa: E402

DOMAIN = """
<domain><uuid>U-1</uuid><memory>1024</memory><devices>
  <disk type="file"><driver type="qcow2"/><source file="/pool/web-1-disk0"/></disk>
  <interface type="network"><mac address="52:54:00:00:00:01"/></interface>
</devices></domain>
"""


class Domain:
    """A running domain that is being saved, for a client that was killed."""

    def __init__(self, heeds, steps=3):
        self.heeds, self.left, self.active, self.saved = heeds, steps, True, False
        self.continued = 0

    def name(self):
        return "web-1"

    def isActive(self):  # noqa: N802
        return self.active

    def hasManagedSaveImage(self, _flags=0):  # noqa: N802
        return int(self.saved)

    def jobInfo(self):  # noqa: N802
        if not self.active:
            raise _error(libvirt.VIR_ERR_OPERATION_INVALID)
        self.left = max(0, self.left - 1)
        if not self.left and not self.heeds and not self.continued:
            self.active, self.saved = False, True
        return [libvirt.VIR_DOMAIN_JOB_UNBOUNDED if self.left else libvirt.VIR_DOMAIN_JOB_NONE]

    def abortJob(self):  # noqa: N802
        if not self.heeds:
            raise _error(libvirt.VIR_ERR_NO_SUPPORT)
        self.left = 0

    def create(self):
        self.active, self.saved, self.continued = True, False, self.continued + 1


def _error(code):
    error = libvirt.libvirtError("refused")
    error.err = (code, 0, "refused", libvirt.VIR_ERR_ERROR, None, None, None, -1, -1)
    return error


@pytest.mark.parametrize("heeds", [True, False])
def test_a_guest_whose_save_goes_on_after_a_kill_runs_again(heeds, monkeypatch):
    guest = Domain(heeds)
    monkeypatch.setattr(machines.operations, "find", lambda *_: guest)
    monkeypatch.setattr(machines.time, "sleep", lambda _seconds: None)
    assert machines.resume(None, "web-1")
    assert guest.active
    assert not guest.left, "it is still being saved"
    assert guest.continued == (0 if heeds else 1)
    assert not machines.resume(None, "web-1")


def test_a_save_that_does_not_end_is_told(monkeypatch):
    guest = Domain(heeds=False, steps=10**6)
    monkeypatch.setattr(machines.operations, "find", lambda *_: guest)
    monkeypatch.setattr(machines, "SAVING", 0.0)
    with pytest.raises(WrongState, match="is being saved"):
        machines.resume(None, "web-1")


@pytest.mark.parametrize(
    ("then", "now", "what"),
    [
        ("U-1", "U-2", "UUID U-1 → U-2"),
        ("/pool/web-1-disk0", "/moved/web-1-disk0", "disks"),
        (":01", ":02", "network cards"),
        ("1024", "2048", "memory 1024 → 2048"),
    ],
)
def test_memory_fits_only_the_machine_that_it_is_of(tmp_path, then, now, what, monkeypatch):
    memory = machines.MAGIC[0] + b"what it holds"
    (tmp_path / machines.MEMORY).write_bytes(memory)
    manifest = {"like": machines.described(parse(DOMAIN)), "memory": len(memory)}
    (tmp_path / machines.MANIFEST).write_text(json.dumps(manifest))
    texts = [DOMAIN, DOMAIN.replace(then, now)]
    monkeypatch.setattr(machines.operations, "definition", lambda _domain: texts.pop(0))
    machines.check(None, "web-1", tmp_path)
    with pytest.raises(WrongState, match=f"have changed since the snapshot.*{what}"):
        machines.check(None, "web-1", tmp_path)
