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

from contrib.lab.errors import LabError
from contrib.lab.proc import say
from contrib.packaging import sources
from contrib.packaging.chroots import RELEASES, Release, Root, unpacked

DEFAULT = ("trixie", "noble")
LOGS = sources.TOP / "build/userlands"
_CHECKOUT = "/srv/vmcloner"
_PASSED_ON = ("PIP_INDEX_URL", "http_proxy", "https_proxy", "no_proxy")
_UNIT = f'make -C {_CHECKOUT} test-fast ARGS="$*" >/srv/log 2>&1'
# A namespace of libvirt's own for each QEMU stays without devices: a chroot's /dev is no devtmpfs.
_LIBVIRT = f"""
echo 'namespaces = []' >>/etc/libvirt/qemu.conf
mount -t sysfs sysfs /sys
ip link set lo up
cd {_CHECKOUT}
exec >/srv/log 2>&1
exec python3 contrib/setup/libvirtd.py run -- .venv/bin/pytest \\
    -m "libvirt and not (slow or lvm or xen)" tests/libvirt
"""
_OWN_NETWORK = ("unshare", "--net", "sh", "-c")
_WITHIN = 5400.0
"""Seconds for set-up and unit tests, and for those with libvirt."""


def test(release: Release, argv: Sequence[str]) -> str:
    """Set up, run the tests, and return the last lines of their output.

    :param argv: more arguments for pytest: then only the unit tests are run.
    :raises LabError: something failed; the log says what.
    """
    with unpacked(release) as root:
        shutil.copytree(sources.TOP, root.folder / _CHECKOUT.lstrip("/"), ignore=sources.left_out)
        root.install("make", "ca-certificates")
        unit = _run(release, root, "unit tests", "sh", "-c", _UNIT, "sh", *argv)
        if argv:
            return unit
        return f"{unit}; libvirt: {_run(release, root, 'libvirt', *_OWN_NETWORK, _LIBVIRT)}"


def _run(release: Release, root: Root, what: str, *argv: str) -> str:
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{release.name}-{what.partition(' ')[0]}.log"
    say(f"{release.name}: {what}, with the log in {log}")
    try:
        root.run(*argv, timeout=_WITHIN, env=_env(root))
    except LabError as error:
        raise LabError(f"{release.name}: {what} failed; see {log}") from error
    finally:
        if (root.folder / "srv/log").exists():
            shutil.copy(root.folder / "srv/log", log)
    return log.read_text().strip().splitlines()[-1].strip("= ")


def _env(root: Root) -> dict[str, str]:
    """Return how pip reaches its index from here: the machine's certificates, proxies."""
    certificates = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
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
    failed = False
    for name in asked.releases or DEFAULT:
        try:
            print(f"{name}, Python {RELEASES[name].python}: {test(RELEASES[name], asked.pytest)}")
        except LabError as error:
            print(f"userlands: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
