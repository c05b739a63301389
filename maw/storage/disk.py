"""Disk space: claiming it for a file before the file is written, and sizes for people."""

from __future__ import annotations

import os
from typing import IO

GIGABYTE = 1e9
SPILL_BYTES = 1_000_000_000
"""Arrays above this size are kept in a file without a name, and not in memory."""
_ZEROS = 1 << 24


def claim(file: IO[bytes], size: int) -> None:
    """Makes the file `size` bytes long and reserves the disk space for it.

    Without that, a full disk would end a process that writes to a memory map of the file by a signal.

    Raises:
        OSError: the disk has too little space.
    """
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    done = file.seek(0, os.SEEK_END)
    while done < size:
        done += file.write(bytes(min(_ZEROS, size - done)))
    file.flush()


def size_text(size: int, whole_from: int = 20) -> str:
    """Bytes for people, in powers of ten: 1.2 GB, and without a decimal from `whole_from` units on: 21 MB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.0f} {name}" if size >= whole_from * unit else f"{size / unit:.1f} {name}"
    return f"{size} B"
