"""Identity providers: cloud-init, kernel arguments, and none."""
