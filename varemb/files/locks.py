"""Locks of folders that only one process may write to."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

# What file systems without locks of folders answer, such as NFS.
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP)


def lock_folder(folder: Path) -> int | None:
    """Locks a folder against everybody else who asks for it here.

    No file is left: the lock ends with the process, even killed. A file system without such locks
    lets everybody in.

    Args:
        folder: that is there.

    Returns:
        A descriptor of the folder, which keeps the lock until it is closed; None if somebody else
        has it, or removed the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first, second = lock_folder(Path(folder)), lock_folder(Path(folder))
        ...     os.close(first)
        >>> second is None
        True
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
    if _is_at(descriptor, folder):  # else it was removed or renamed before we had the lock
        return descriptor
    os.close(descriptor)
    return None


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.stat(folder).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
