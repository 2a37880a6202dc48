"""Image builder ``tiny``: a guest that boots in seconds and says who it is.

It is the distribution's own cloud kernel with an initramfs of busybox, a few virtio modules and
a shell script (``init``), made on the spot out of three packages, and an empty disk that counts
its boots. Made for demonstrations, tests and measurements: real machines at the least cost.
"""
