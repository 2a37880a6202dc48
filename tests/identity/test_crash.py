"""A create with identities that is killed in the middle: the same again completes it."""

import shutil
import signal
import time

import pytest

from tests.e2e.conftest import make_site

pytestmark = pytest.mark.libvirt

TEMPLATE = """
extends = "plain"
[identity]
provider = "cloud-init"
authorized_keys = []
"""


@pytest.fixture(scope="module")
def site():
    site = make_site("qemu:///system")
    (site.folder / "templates" / "seeded.toml").write_text(TEMPLATE)
    site.run("template", "import", "seeded")
    yield site
    shutil.rmtree(site.folder)


@pytest.mark.parametrize("some", [1, 8, 16])
def test_kill_9_in_mid_create_and_mid_delete(site, some):
    """Killed once ``some`` of 40 clones have got their identities, or have lost them."""
    fleet = site.fleet("id")
    homes = site.folder / "state" / "identity"

    def known_hosts():
        return {home.name: (home / "known_hosts").read_text() for home in homes.glob("[!.]*")}

    def killed(*command, when):
        with site.popen(*command) as process:
            while not when(sum(1 for _ in homes.glob("[!.]*"))):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.001)
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL

    create = ("create", fleet, "-t", "seeded", "-n", "40")
    killed(*create, when=lambda made: made >= some)
    before = known_hosts()
    assert some <= len(before) < 40
    site.run(*create)
    rows = site.rows(fleet)
    assert [row["index"] for row in rows] == list(range(1, 41))
    after = known_hosts()
    assert sorted(after) == sorted(row["name"] for row in rows)
    assert before.items() <= after.items()
    assert len({key.split()[2] for key in after.values()}) == 40
    assert all((homes / name / "seed.iso").stat().st_mode & 0o777 == 0o600 for name in after)
    killed("delete", fleet, "--yes", when=lambda left: left <= 40 - some)
    site.run("delete", fleet, "--yes", "--missing-ok")
    assert site.remains() == []
    assert list(homes.iterdir()) == []
