"""Set up and test in other releases: ``python -m contrib.packaging.userlands [RELEASE ...]``.

Each is a chroot with a copy of the checkout, where ``make test-fast`` installs what is missing and
runs the unit tests, with the release's own Python. Then a libvirtd of the release's own runs there,
in a network namespace, and the tests of the driver for libvirt run on it. The logs are in
build/userlands.
"""

from __future__ import annotations

import argparse
import os
import shutil
import ssl
import sys
from collections.abc import Sequence

from contrib.lab.errors import LabError, TimeUp
from contrib.lab.proc import say
from contrib.packaging import sources
from contrib.packaging.chroots import RELEASES, Release, Root, unpacked

DEFAULT = ("trixie", "noble")
LOGS = sources.TOP / "build/userlands"
_CHECKOUT = "/srv/vmcloner"
_PASSED_ON = ("PIP_INDEX_URL", "http_proxy", "https_proxy", "no_proxy")
# Each of pytest's processes has whole files: their tests share what is slow to make.
_UNIT = f"""
exec >/srv/log 2>&1
cd {_CHECKOUT}
exec make browser test-fast ARGS="$*"
"""
# A namespace of libvirt's own for each QEMU stays without devices: a chroot's /dev is no devtmpfs.
# The shell stays: as process 1 it reaps guests whose daemon has ended, and libvirt waits for that.
_LIBVIRT = f"""
echo 'namespaces = []' >>/etc/libvirt/qemu.conf
mount -t sysfs sysfs /sys
ip link set lo up
cd {_CHECKOUT}
exec >/srv/log 2>&1
python3 contrib/setup/libvirtd.py run -- .venv/bin/pytest \\
    -m "libvirt and not (slow or lvm or xen)" tests/libvirt
exit $?
"""
_OWN_NETWORK = ("unshare", "--net", "sh", "-c")
_WITHIN = 3 * 3600.0
"""Seconds for set-up and unit tests, and for those with libvirt."""


def test(release: Release, argv: Sequence[str]) -> bool:
    """Set up and run the tests, print how each part ended, and return whether all passed.

    :param argv: more arguments for pytest: then only the unit tests are run.
    :raises LabError: there is no chroot of this release.
    """
    with unpacked(release) as root:
        shutil.copytree(sources.TOP, root.folder / _CHECKOUT.lstrip("/"), ignore=sources.left_out)
        root.install("make", "ca-certificates")
        unit = _passes(release, root, "unit", "sh", "-c", _UNIT, "sh", *argv)
        libvirt = bool(argv) or _passes(release, root, "libvirt", *_OWN_NETWORK, _LIBVIRT)
        return unit and libvirt


def _passes(release: Release, root: Root, part: str, *argv: str) -> bool:
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{release.name}-{part}.log"
    what = f"{release.name}, Python {release.python}, {part} tests"
    say(f"{what}: the log will be in {log}")
    inside = root.folder / "srv/log"
    for old in (inside, log):
        old.unlink(missing_ok=True)
    try:
        root.run(*argv, timeout=_WITHIN, env=_env(root))
    except TimeUp:
        _fail(f"{what}: no end within {_WITHIN / 60:.0f} minutes; see {log}")
        return False
    except LabError:
        _fail(f"{what} failed; see {log}")
        return False
    finally:
        if inside.exists():
            shutil.copy(inside, log)
    print(f"{what}: {log.read_text().strip().splitlines()[-1].strip('= ')}", flush=True)
    return True


def _fail(text: str) -> None:
    print(f"userlands: {text}", file=sys.stderr, flush=True)


def _env(root: Root) -> dict[str, str]:
    """Return how pip reaches its index from here, and what makes a test without its tool fail."""
    certificates = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env["CI"] = "true"
    if certificates:
        shutil.copy(certificates, root.folder / "srv/certificates.crt")
        env["PIP_CERT"] = "/srv/certificates.crt"
    return env


def main(argv: Sequence[str] | None = None) -> int:
    """Test the releases that are named, one after the other, also after a failure."""
    parser = argparse.ArgumentParser(prog="userlands", description="Test other releases.")
    known = ", ".join(RELEASES)
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help=f"of {known}")
    parser.add_argument(
        "--pytest",
        action="append",
        default=[],
        metavar="ARG",
        help="for the unit tests, which then run alone",
    )
    asked = parser.parse_args(argv)
    unknown = set(asked.releases) - set(RELEASES)
    if unknown:
        parser.error(f"unknown release {', '.join(sorted(unknown))}; known: {known}")
    passed = True
    for name in asked.releases or DEFAULT:
        try:
            passed &= test(RELEASES[name], asked.pytest)
        except LabError as error:
            _fail(f"{name}: {error}")
            passed = False
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
