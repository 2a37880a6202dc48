"""Disks and configuration files beside libxlutil, which reads them for xl."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmcloner_legacy import xl_disk
from vmcloner_legacy.xl_cfg import read_xl

pytestmark = pytest.mark.others

FORMATS = {0: "", 1: "qcow", 2: "qcow2", 3: "vhd", 4: "raw", 5: "empty", 6: "qed"}


class Disk(ctypes.Structure):
    """``libxl_device_disk``, as far as it is looked at."""

    _fields_ = (
        ("backend_domid", ctypes.c_uint32),
        ("backend_domname", ctypes.c_char_p),
        ("pdev_path", ctypes.c_char_p),
        ("vdev", ctypes.c_char_p),
        ("backend", ctypes.c_int),
        ("format", ctypes.c_int),
        ("script", ctypes.c_char_p),
        ("removable", ctypes.c_int),
        ("readwrite", ctypes.c_int),
        ("is_cdrom", ctypes.c_int),
        ("rest", ctypes.c_uint64 * 64),
    )


class Xlu:
    """The library."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        self._nowhere = ctypes.c_void_p(libc.fopen(b"/dev/null", b"w"))
        self._xl, self._xlu = ctypes.CDLL("libxenlight.so"), ctypes.CDLL("libxlutil.so")
        self._xlu.xlu_cfg_init.restype = ctypes.c_void_p
        self._xlu.xlu_cfg_get_listitem.restype = ctypes.c_char_p

    def _config(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._xlu.xlu_cfg_init(self._nowhere, b"test"))

    def disk(self, text: str) -> Disk | None:
        """Return what a line says, None where it is refused."""
        disk, config = Disk(), self._config()
        self._xl.libxl_device_disk_init(ctypes.byref(disk))
        specs = (ctypes.c_char_p * 1)(text.encode())
        failed = self._xlu.xlu_disk_parse(config, 1, specs, ctypes.byref(disk))
        self._xlu.xlu_cfg_destroy(config)
        return None if failed else disk

    def values(self, text: str, keys: set[str]) -> dict[str, object] | None:
        """Return what a file says of these keys, None where it is refused."""
        config = self._config()
        try:
            data = text.encode()
            if self._xlu.xlu_cfg_readdata(config, data, len(data)):
                return None
            return {key: value for key in keys if (value := self._value(config, key)) is not None}
        finally:
            self._xlu.xlu_cfg_destroy(config)

    def _value(self, config: ctypes.c_void_p, key: str) -> object:
        value, entries, count = ctypes.c_char_p(), ctypes.c_void_p(), ctypes.c_int()
        name = key.encode()
        if not self._xlu.xlu_cfg_get_string(config, name, ctypes.byref(value), 1):
            return (value.value or b"").decode()
        found = self._xlu.xlu_cfg_get_list(
            config, name, ctypes.byref(entries), ctypes.byref(count), 1
        )
        if found:
            return None
        items = (self._xlu.xlu_cfg_get_listitem(entries, at) for at in range(count.value))
        return [(item or b"").decode() for item in items]


@pytest.fixture(scope="module")
def xlu() -> Xlu:
    return Xlu()


WORD = st.sampled_from(
    ["/a", "/dev/vg/a", "/x.iso", "vg/a", "", "raw", "qcow2", "vhd", "xvda", "hda", "hdc:cdrom",
     "ioemu:hda", "sda:disk", "w", "r", "rw", "ro", "!", "cdrom", "format=raw", "vdev=xvdb",
     "access=rw", "access=ro", "devtype=cdrom", "devtype=disk", "target=/t,u", "script=block-x",
     "discard", "no-discard", "backendtype=phy", "backendtype=qdisk", "backend=dom", "format=",
     "direct-io-safe", "removable=1", "format=qcow2", "devtype=", "vdev=hdd:cdrom", "empty"]
)  # fmt: skip
PREFIX = st.sampled_from(
    ["", "", "", "phy:", "file:", "tap:aio:", "tap2:qcow2:", "raw:", "qcow2:", "vhd:", "drbd:",
     "tapdisk:", "tap:tapdisk:vhd:", "iscsi:", "rbd:", "nbd:", "aio:", "tap:"]
)  # fmt: skip
LINES = st.tuples(PREFIX, st.lists(WORD, max_size=6), st.sampled_from([",", ", ", ",,"])).map(
    lambda line: line[0] + line[2].join(line[1])
)


@settings(max_examples=300)
@given(LINES)
@example("phy:/a,ioemu:hda,w")
def test_disks_beside_libxlutil(xlu: Xlu, text: str) -> None:
    real, disk = xlu.disk(text), xl_disk.parse(text)
    if real is None:
        return  # xm took more than xl does
    target = (real.pdev_path or b"").decode()
    if not disk.foreign:
        assert (disk.target or "").removeprefix("/dev/") == target.removeprefix("/dev/")
        assert disk.format in (FORMATS[real.format], "") or not target
        assert disk.cdrom == bool(real.is_cdrom)
    assert (disk.vdev or "") == (real.vdev or b"").decode()
    if not disk.cdrom:
        assert disk.read_only == (not real.readwrite)
    if real.script:
        assert disk.lost


TEXT = st.text(alphabet="ab /,=#;:'\"\\nx1[]", max_size=8)
QUOTED = TEXT.map(lambda text: f'"{text}"') | TEXT.map(lambda text: f"'{text}'")
NUMBER = st.sampled_from(["0", "1", "512", "0x10", "010", "-1", "4096"])
SCALAR = QUOTED | NUMBER
SPACE = st.sampled_from(["", " ", "\n", " \n ", "# note\n", "  "])
LIST = st.tuples(st.lists(st.tuples(SPACE, SCALAR, SPACE), max_size=3), st.booleans()).map(
    lambda listed: f"[{','.join(''.join(item) for item in listed[0])}{',' if listed[1] else ''}]"
)
KEYS = {"name", "memory", "disk", "extra", "vif"}
ASSIGNMENT = st.tuples(
    st.sampled_from(sorted(KEYS)), st.sampled_from([" = ", "=", " += ", "= "]), SCALAR | LIST,
    st.sampled_from(["\n", "\n", ";", " # note\n", "\n\n", " ;\n", "\r\n"]),
).map("".join)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(ASSIGNMENT, max_size=4).map("".join))
@example("name = 'a'\ndisk = [ 'phy:/a,xvda,w', # first\n  ]\n")
def test_files_beside_libxlutil(
    xlu: Xlu, tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    real = xlu.values(text, KEYS)
    path = tmp_path_factory.getbasetemp() / "guest.cfg"
    path.write_bytes(text.encode())
    found, notes = read_xl(path)
    if real is None or notes:
        return  # xm ran it as Python; what isn't carried over is named
    assert {each.key: each.value for each in found}.keys() == real.keys()
    for each in found:
        assert _as_texts(each.value) == _as_texts(real[each.key]), each.key


def _as_texts(value: object) -> object:
    """Return a value with its numbers as libxlutil has them: it leaves them texts."""
    if isinstance(value, list):
        return [_as_texts(item) for item in value]
    text = str(value)
    try:
        return int(text, 0)
    except ValueError:
        return text
