"""The configuration format of PXELINUX and extlinux: not a plugin, but what two plugins share."""
