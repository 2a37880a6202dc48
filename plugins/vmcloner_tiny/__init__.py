"""Image builder ``tiny``: a guest that boots in seconds and prints its identity.

It consists of the distribution's own cloud kernel, an initramfs with busybox, a few virtio modules
and a shell script (``init``), built from three packages, and an empty disk that counts its boots.
It is meant for demonstrations, tests and measurements: real machines at minimal cost.
"""
