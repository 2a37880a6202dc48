"""Storage backend: a pool of images in Ceph (RBD), which the guests of many hosts can share."""
