"""Plugin ``lvm-thin``: clones as thin snapshots in an LVM pool, many in one transaction."""
