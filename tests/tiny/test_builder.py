"""What the fetched packages become."""

import gzip
import subprocess
from importlib import resources

import pytest

from tests.tiny.debs import deb, file, module, tar
from tests.tiny.test_packages import DEBIAN, FakeApt
from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import BackendError
from vmcloner_core.model import Host
from vmcloner_tiny import builder as builder_module
from vmcloner_tiny.builder import MODULES, TinyBuilder
from vmcloner_tiny.plugin import vmcloner_image_builder

KERNEL = [
    file("./boot/vmlinuz-6.1.0-56-cloud-amd64", b"the kernel"),
    *(
        file(f"./lib/modules/6.1.0-56/kernel/{name}.ko", module())
        for names in MODULES.values()
        for name in names
    ),
]
BUSYBOX = [file("./bin/busybox", b"static busybox")]


class Archive(FakeApt):
    """An archive that has real packages."""

    kernel, busybox = KERNEL, BUSYBOX

    def run(self, argv, **options):
        result = super().run(argv, **options)
        if argv[0] == "env":
            (path,) = builder_module.Path(argv[2]).glob("*.deb")
            deb(path, tar(self.busybox if "busybox" in path.name else self.kernel))
        return result


def builder(runner, tmp_path):
    host = Host(name="local", state=tmp_path)
    return vmcloner_image_builder().factory(DriverContext(host=host, name="tiny", runner=runner))


def test_fills_the_folder_and_nothing_else(tmp_path):
    image = builder(Archive(DEBIAN), tmp_path).build(tmp_path, lambda *_: None)
    assert image == tmp_path / "disk.raw"
    assert {path.name for path in tmp_path.iterdir()} == {"disk.raw", "vmlinuz", "initrd.img"}
    assert (tmp_path / "vmlinuz").read_bytes() == b"the kernel"
    assert image.stat().st_size == 64 * 1024**2
    assert image.stat().st_blocks * 512 < 1024**2
    with image.open("rb") as disk:
        assert disk.read(64) == b"vmcloner-tiny 0 -\n".ljust(64, b"\0")


def test_the_initramfs_holds_what_init_needs(tmp_path):
    builder(Archive(DEBIAN), tmp_path).build(tmp_path, lambda *_: None)
    root = tmp_path / "root"
    root.mkdir()
    archive = gzip.decompress((tmp_path / "initrd.img").read_bytes())
    subprocess.run(["cpio", "-i", "--quiet"], input=archive, cwd=root, check=True, timeout=30)
    assert (root / "bin/busybox").read_bytes() == b"static busybox"
    shipped = resources.files("vmcloner_tiny").joinpath("init").read_bytes()
    assert (root / "init").read_bytes() == shipped
    assert (root / "init").stat().st_mode & 0o777 == 0o755
    for kind, names in MODULES.items():
        order = (root / "modules" / kind).read_text().split()
        assert order == [f"{name}.ko" for name in names]
        assert all((root / "modules" / name).read_bytes() == module() for name in order)


def test_the_same_packages_give_the_same_files(tmp_path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        builder(Archive(DEBIAN), tmp_path).build(tmp_path / name, lambda *_: None)
        made.append([(tmp_path / name / f).read_bytes() for f in ("vmlinuz", "initrd.img")])
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("attribute", "members", "reason"),
    [
        ("kernel", KERNEL[1:], r"0 files match boot/vmlinuz"),
        ("kernel", KERNEL[:-1], "isofs: not in the kernel's packages"),
        ("busybox", [], "0 files match bin/busybox"),
    ],
)
def test_a_package_without_what_is_needed_leaves_nothing(tmp_path, attribute, members, reason):
    archive = Archive(DEBIAN)
    setattr(archive, attribute, members)
    with pytest.raises(BackendError, match=reason):
        builder(archive, tmp_path).build(tmp_path, lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_follows_packages_and_sources(tmp_path, monkeypatch):
    first = builder(FakeApt(DEBIAN), tmp_path).fingerprint()
    assert "linux-image-6.1.0-56-cloud-amd64=6.1.192-2" in first
    assert first == TinyBuilder(_context(FakeApt(DEBIAN), tmp_path)).fingerprint()
    other = {n: t.replace("6.1.192", "6.1.193") for n, t in DEBIAN.items()}
    assert builder(FakeApt(other), tmp_path).fingerprint() != first
    sources = builder_module.own_files()
    monkeypatch.setattr(builder_module, "own_files", lambda: {**sources, "init": b"other"})
    assert builder(FakeApt(DEBIAN), tmp_path).fingerprint() != first


def _context(runner, tmp_path):
    return DriverContext(host=Host(name="local", state=tmp_path), name="tiny", runner=runner)
