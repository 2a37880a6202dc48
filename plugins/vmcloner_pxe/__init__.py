"""Network boot for a guest that is not there yet: DHCP, TFTP, http and PXELINUX on the host."""
