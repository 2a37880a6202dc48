"""Modules are loaded after what they need."""

import lzma
import shutil
import subprocess

import pytest

from tests.tiny.debs import COMPRESS, deb, file, module, tar
from vmcloner_core.errors import BackendError
from vmcloner_tiny.deb import Deb
from vmcloner_tiny.modules import ModuleTree

ROOT = "./lib/modules/6.1.0-1/"
NEEDS = {
    "virtio-pci": ("virtio_ring", "virtio"),
    "virtio": ("virtio_ring",),
    "virtio_ring": (),
    "virtio_net": ("virtio", "net_failover"),
    "net_failover": ("failover",),
    "failover": (),
}


@pytest.fixture
def tree(tmp_path):
    """Return a function: from (path, bytes) of a kernel's files to its tree."""
    opened = []

    def make(*files, packages=1):
        parts = [files[n::packages] for n in range(packages)]
        for number, part in enumerate(parts):
            package = deb(tmp_path / f"{number}.deb", tar([file(ROOT + p, c) for p, c in part]))
            opened.append(Deb(package, tmp_path))
        return ModuleTree(opened)

    yield make
    for package in opened:
        package.__exit__(None, None, None)


def files(suffix=""):
    return [
        (f"kernel/drivers/{name}.ko{suffix}", COMPRESS[suffix](module(*needs)))
        for name, needs in NEEDS.items()
    ]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_what_is_needed_comes_first(tree, suffix):
    loaded = tree(*files(suffix), packages=2).load(["virtio_pci", "virtio_net"])
    order = list(loaded)
    assert sorted(order) == sorted(name.replace("-", "_") for name in NEEDS)
    for name, needs in NEEDS.items():
        for needed in needs:
            assert order.index(needed) < order.index(name.replace("-", "_"))
    assert loaded["virtio"] == module("virtio_ring")


def test_order_is_one_that_modprobe_would_take(tree, tmp_path):
    """The oracle: depmod and modprobe, on modules that they can read."""
    root = tmp_path / "root"
    folder = root / "lib/modules/6.1.0-1"
    made = [(path, _elf(tmp_path, NEEDS[path[15:-3]], path[15:-3])) for path, _ in files()]
    for path, content in made:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    subprocess.run(["depmod", "-b", root, "6.1.0-1"], check=True, timeout=30)
    shown = subprocess.run(
        ["modprobe", "-d", root, "-S", "6.1.0-1", "--show-depends", "virtio_net"],
        check=True,
        timeout=30,
        capture_output=True,
        text=True,
    ).stdout
    expected = {line.split("/")[-1].split(".")[0] for line in shown.splitlines()}
    assert set(tree(*made).load(["virtio_net"])) == expected == {
        "virtio_ring", "virtio", "failover", "net_failover", "virtio_net",
    }  # fmt: skip


def _elf(folder, needs, name):
    """Return an object file that kmod takes for a module: it exports and uses symbols."""
    uses = "".join(f"extern int {n}_x; int *{n}_y = &{n}_x;" for n in needs)
    symbol = name.replace("-", "_")
    info = f"depends={','.join(needs)}"
    source = folder / f"{symbol}.c"
    source.write_text(
        f"{uses} int {symbol}_x;"
        f'const char i[] __attribute__((section(".modinfo"))) = "license=GPL\\0{info}";'
        f'const char k[] __attribute__((section("__ksymtab_strings"))) = "{symbol}_x";'
    )
    subprocess.run(["gcc", "-c", "-o", source.with_suffix(".o"), source], check=True, timeout=30)
    return source.with_suffix(".o").read_bytes()


def test_what_is_built_in_needs_no_loading(tree):
    builtin = ("modules.builtin", b"kernel/drivers/virtio/virtio-ring.ko\nkernel/lib/x.ko\n")
    loaded = tree(*(f for f in files() if "ring" not in f[0]), builtin).load(["virtio"])
    assert list(loaded) == ["virtio"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (module("nowhere"), "nowhere: not in the kernel's packages"),
        (module("a"), "a depends on itself"),
        (b"\x7fELF", "has no list of dependencies"),
        (module("../../etc/passwd"), "has no list of dependencies"),
    ],
)
def test_what_cant_be_loaded_is_an_error(tree, content, reason):
    with pytest.raises(BackendError, match=reason):
        tree(("kernel/a.ko", content)).load(["a"])


def test_a_loop_through_others_is_an_error(tree):
    names = ("a", "b", "c")
    loop = [(f"kernel/{n}.ko", module(names[i - 1])) for i, n in enumerate(names)]
    with pytest.raises(BackendError, match="depends on itself"):
        tree(*loop).load(["a"])


def test_damaged_compression_is_an_error(tree):
    with pytest.raises(BackendError, match=r"a\.ko\.xz: damaged"):
        tree(("kernel/a.ko.xz", lzma.compress(module())[:-9])).load(["a"])


def test_the_oracles_are_installed():
    assert shutil.which("depmod")
    assert shutil.which("modprobe")
