"""Files that are whole or absent: atomic writes, checksums, locks, disk space, run records."""
