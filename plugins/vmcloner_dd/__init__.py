"""Storage plugin ``dd``: full copies of a template, read once and written to many volumes at once.

A pool is a folder (kept as ``files`` keeps one) or a volume group (named and tagged as ``lvm-thin``
does): what those two packages know of their places is used here.
"""
