"""One process at a time writes a run folder: a lock on a file in it, which ends with its process however that ends.

Readers need none: what they read is written atomically, or line by line.
"""

import contextlib
import errno
import os
import socket
import stat
import warnings
from pathlib import Path
from typing import IO

NAME = ".lock"
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
NOT_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # file systems that have no locks


def lock(folder: Path) -> IO[str]:
    """The run folder's lock, held until the file that is returned is closed. ValueError says who holds it now."""
    path = folder / NAME
    try:
        descriptor = os.open(path, FLAGS, 0o644)
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise ValueError(f"{path} is a link, and a run writes where it stands: take it away") from None
        raise OSError(f"{folder} cannot be written: {e.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no plain file: take it away")
    file = os.fdopen(descriptor, "r+", errors="replace")
    try:
        take(file)
    except BlockingIOError:
        with file:
            raise ValueError(f"{folder} is being written by {file.read(200).strip() or 'another process'}: wait until "
                             "it ends, or stop it") from None
    except OSError as e:
        if e.errno not in NOT_HERE:
            raise
        warnings.warn(f"{folder} lies where files cannot be locked: see to it that one process alone writes it",
                      stacklevel=3)
    with contextlib.suppress(OSError):  # who holds it is only said, and a full disk may still let a run be read
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    return file


def take(file: IO[str]) -> None:
    """BlockingIOError if another process has it, OSError (ENOSYS) where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError(errno.ENOSYS, "no locks here") from None
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
