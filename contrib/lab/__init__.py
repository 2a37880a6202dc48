"""The lab: a KVM host with device-mapper and a Xen host, as virtual machines on this machine."""
