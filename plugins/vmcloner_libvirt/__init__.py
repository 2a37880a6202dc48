"""Hypervisors by way of libvirt-python.

``kvm_plugin`` and ``kvm`` hold what is QEMU's own; the rest is what every hypervisor behind
libvirt shares: the connections, the batches over them, domain XML, labels in it, errors, consoles.
"""
