"""A conformance suite says once what a driver lacks, not in each of its tests."""

import subprocess

import pytest

from tests import child_pytest

SUITES = {
    "storage": (
        "from vmcloner_core.drivers import StorageDriver as Driver\n"
        "from vmcloner_core.testing.storage import StorageConformance as Suite\n",
        "open_driver",
        "lambda: Mine()",
    ),
    "hypervisor": (
        "from vmcloner_core.drivers import HypervisorDriver as Driver\n"
        "from vmcloner_core.testing.hypervisor import HypervisorConformance as Suite\n",
        "driver",
        "Mine()",
    ),
    "identity": (
        "from vmcloner_core.drivers import IdentityProvider as Driver\n"
        "from vmcloner_core.testing.identity import IdentityConformance as Suite\n",
        "provider",
        "Mine()",
    ),
    "boot": (
        "from vmcloner_core.drivers import BootProvider as Driver\n"
        "from vmcloner_core.testing.boot import BootConformance as Suite\n",
        "provider",
        "Mine()",
    ),
    "image": (
        "from vmcloner_core.drivers import ImageBuilder as Driver\n"
        "from vmcloner_core.testing.image import ImageConformance as Suite\n",
        "builder",
        "Mine()",
    ),
}


def said(tmp_path, text):
    (tmp_path / "test_mine.py").write_text(text)
    done = subprocess.run(
        child_pytest.argv("-q", "--rootdir", tmp_path, "test_mine.py"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout


@pytest.mark.parametrize("kind", SUITES)
def test_what_is_missing_is_said_once(tmp_path, kind):
    imports, fixture, made = SUITES[kind]
    text = (
        f"import pytest\n{imports}\n"
        "class Mine(Driver):\n    pass\n\n"
        f"class TestMine(Suite):\n    @pytest.fixture\n    def {fixture}(self):\n"
        f"        return {made}\n"
    )
    out = said(tmp_path, text)
    assert "Mine with abstract method" in out
    assert "1 error" in out
    assert "failed" not in out.splitlines()[-1]
    assert "skipped" in out.splitlines()[-1]


@pytest.mark.parametrize("kind", SUITES)
def test_a_suite_without_its_fixture(tmp_path, kind):
    imports, fixture, _ = SUITES[kind]
    out = said(tmp_path, f"{imports}\nclass TestMine(Suite):\n    pass\n")
    assert f"define a fixture {fixture}" in out
    assert "1 error" in out
