"""Which libvirt URIs the settings may name: those of daemons on this host."""

import pytest

from vmcloner_core.cli.app import main
from vmcloner_core.errors import InvalidRequest


@pytest.mark.parametrize(
    "uri",
    [
        "qemu:///system",
        "qemu:///session",
        "qemu:///embed?root=/tmp/embedded",
        "qemu+unix:///system?socket=/run/libvirt/libvirt-sock",
        "qemu:///system?socket=/run/name=x",
        "test:///default",
        "test:///tmp/node.xml",
        "xen:///system",
        "xen:///",
    ],
)
def test_a_daemon_on_this_host(make_driver, uri):
    assert make_driver(uri).uri == uri


REMOTE = [
    "qemu+ssh://far/system",
    "qemu+ssh:///system",
    "qemu+ssh://root@far:22/system",
    "qemu+libssh://far/system",
    "qemu+libssh2://far/system",
    "qemu+tcp://far/system",
    "qemu+tcp:///system",
    "qemu+tls://far/system",
    "qemu://far/system",
    "qemu://localhost/system",
    "qemu://[::1]/system",
    "qemu+ext:///system?command=/bin/nc",
    "qemu+ext:///session?command=/bin/sh&socket=/run/s",
    "qemu+ext://localhost/system?netcat=/bin/sh",
    "qemu+ssh:///system?command=/bin/sh",
    "qemu+ssh:///system?netcat=/bin/sh&no_verify=1",
    "qemu+libssh2:///system?netcat=/bin/sh",
    "xen+ext:///system?command=/bin/sh",
    "test+ext:///default?command=/bin/sh",
    "remote+ext:///?name=qemu:///system&command=/bin/sh",
    "qemu+unix+ext:///system?command=/bin/sh",
    "qemu+unix://far/system",
    "xen+ssh://far/system",
    "xen://far/",
    "QEMU+SSH://far/system",
    "remote+tls://far/",
    "qemu:///system?name=qemu%2Bssh://far/system",
    "qemu+unix:///?socket=/run/s&na%6De=qemu%2Bssh://far/system",
    "qemu:///system?socket=/run/s;name=qemu%2Bssh://far/system",
    "far",
    "",
    "qemu:///system\n",
]


@pytest.mark.parametrize("uri", REMOTE)
@pytest.mark.parametrize("name", ["kvm", "xen"])
def test_another_machine_or_transport_is_refused(make_driver, make_xen, name, uri):
    make = make_driver if name == "kvm" else make_xen
    with pytest.raises(InvalidRequest) as caught:
        make(uri=uri)
    message = f"hosts.local.hypervisor.{name}.uri: {uri!r} is not a libvirt daemon on this host"
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("name", ["kvm", "xen"])
def test_the_command_says_so_in_one_line(name, tmp_path, capsys):
    file = tmp_path / "s.toml"
    file.write_text(f"[hosts.local.hypervisor.{name}]\nuri = 'qemu+ssh://far/system'\n")
    assert main(["--config", str(file), "host", "prepare", "network", "--hypervisor", name]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"hosts.local.hypervisor.{name}.uri: 'qemu+ssh://far/system' is not" in line
