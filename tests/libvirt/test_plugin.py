"""The plugin without libvirt-python, and what its import costs."""

import subprocess
import sys

import pytest

WITHOUT = "import sys; sys.modules['libvirt'] = None\n"


def run(code: str) -> str:
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


def test_it_registers_without_libvirt_and_says_what_is_missing() -> None:
    code = f"""{WITHOUT}
from pathlib import Path
from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import BackendError
from vmcloner_core.model import Host, Status
from vmcloner_core.process import LocalRunner
from vmcloner_libvirt.kvm_plugin import vmcloner_hypervisor_backend
backend = vmcloner_hypervisor_backend()
context = DriverContext(
    host=Host(name="local", state=Path("/nonexistent")), name="kvm", runner=LocalRunner()
)
driver = backend.factory(context, backend.settings())
for method in (driver.states, driver.inspect, driver.resources):
    try:
        method()
    except BackendError as error:
        print(error)
(check,) = driver.probe()
assert check.status is Status.FAILED
print(f"{{check.detail}} ({{check.fix}})")
"""
    lines = run(code).splitlines()
    assert (
        lines
        == [
            "libvirt-python is not installed "
            "(pip install 'vmcloner[libvirt]' (needs libvirt-dev, pkg-config and gcc))"
        ]
        * 4
    )


@pytest.mark.parametrize(
    "module",
    [
        "vmcloner_libvirt.kvm_plugin",
        "vmcloner_libvirt.xen_plugin",
        "vmcloner_boot.disk",
        "vmcloner_boot.kernel",
        "vmcloner_boot.pygrub",
    ],
)
def test_its_import_loads_nothing_heavy(module: str) -> None:
    code = f"""
import sys
import vmcloner_core.hooks
before = set(sys.modules)
import {module}
heavy = {{"libvirt", "lxml", "rich", "jinja2.sandbox", "cliff"}}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    assert run(code).strip() == "[]"
