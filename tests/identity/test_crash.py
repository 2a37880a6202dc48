"""A create with identities that is killed at any moment: the same again completes it."""

import random
import shutil
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


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_in_mid_create_and_mid_delete(site, seed):
    fleet = site.fleet("id")
    homes = site.folder / "state" / "identity"
    when = random.Random(seed)

    def killed(*command):
        with site.popen(*command) as process:
            time.sleep(when.uniform(0.4, 1.5))
            process.kill()
            process.communicate()

    create = ("create", fleet, "-t", "seeded", "-c", "40")
    killed(*create)
    before = {home.name: (home / "known_hosts").read_text() for home in homes.glob("[!.]*")}
    site.run(*create)
    rows = site.rows(fleet)
    assert [row["index"] for row in rows] == list(range(1, 41))
    after = {home.name: (home / "known_hosts").read_text() for home in homes.glob("[!.]*")}
    assert sorted(after) == sorted(row["name"] for row in rows)
    assert before.items() <= after.items()
    assert len({key.split()[2] for key in after.values()}) == 40
    assert all((homes / name / "seed.iso").stat().st_mode & 0o777 == 0o600 for name in after)
    killed("delete", fleet, "--yes")
    site.run("delete", fleet, "--yes")
    assert site.remains() == []
    assert list(homes.iterdir()) == []
