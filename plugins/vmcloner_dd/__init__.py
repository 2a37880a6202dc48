"""Storage plugin ``dd``: pools of full copies, in a folder or in a volume group.

A folder is a pool of ``files`` that makes only full copies. The volume group's driver is beside
``lvm-thin``.
"""
