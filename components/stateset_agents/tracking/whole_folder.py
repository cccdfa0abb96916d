"""A folder takes another's place: whoever looks finds the old one or the new one, and it is whole.

Owns the swap, the place beside it where the new one is written, and what a process that was killed
left of both. It does not know what is in folders.

Linux swaps two names in one step. Where system or file system cannot (macOS, NFS), the old folder
is renamed away before the new one gets its name. A process that is killed in between leaves no
folder of that name, and the old one beside it as `.<name>.replaced`; `put_back`, which readers of
such folders ask first, gives it its name again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What the name of a folder begins with that is being written, or removed.
UNFINISHED = ".unfinished-"
_ENDING = ".replaced"
# Of <fcntl.h> and <linux/fs.h>: paths as they are given, and renameat2's flag for a swap.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What says that a swap in one step cannot be had here.
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV)


@contextmanager
def in_place_of(target: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `target` when the block ends well, else vanishes.

    Raises:
        OSError: as `take_place`.
    """
    new = target.with_name(f"{UNFINISHED}{target.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        take_place(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def take_place(new: Path, target: Path) -> None:
    """Give the folder `new`, which is on the same disk, the name `target`; one that had it is
    removed.

    One process at a time writes to a place. Killed at any moment it leaves the old folder or the
    new one to `put_back`, and maybe another one, whole or not, under the name of `new`.

    Raises:
        OSError: it cannot be done; the old folder has its name.
    """
    put_back(target)
    shutil.rmtree(_away(target), ignore_errors=True)
    if not target.exists():
        new.rename(target)
    elif swap_at_once(new, target):
        shutil.rmtree(new)
    else:
        swap_in_two_renames(new, target)


def put_back(target: Path) -> None:
    """Give a folder its name again, should a swap that was killed have taken it."""
    if not target.exists():
        with suppress(FileNotFoundError):
            _away(target).rename(target)


def put_all_back(folder: Path) -> None:
    """`put_back` for everything in a folder."""
    for away in folder.glob(f".*{_ENDING}"):
        put_back(away.with_name(away.name.removeprefix(".").removesuffix(_ENDING)))


def swap_at_once(new: Path, target: Path) -> bool:
    """Let two folders change names in one step; False where that cannot be had."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = _AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target)
    if renameat2(*names, _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(target))


def swap_in_two_renames(new: Path, target: Path) -> None:
    """As `take_place` where a folder has the name, without a swap in one step."""
    away = _away(target)
    while True:
        target.rename(away)
        try:
            new.rename(target)
        except OSError as error:
            put_back(target)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # a reader thought this process dead, and put the old one back: once more
        else:
            break
    shutil.rmtree(away)


def _away(target: Path) -> Path:
    return target.with_name(f".{target.name}{_ENDING}")
