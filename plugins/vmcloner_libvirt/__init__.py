"""Hypervisors through libvirt-python.

``kvm*``, ``acceleration`` and ``doctor`` are QEMU's, ``xen*`` and ``libxl`` are Xen's. The rest is
shared: connections, batches over them, domain XML with labels, networks, errors, consoles.
"""
