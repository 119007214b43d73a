"""Memory that the processes of one node share: no name, no owner, nothing left behind.

A segment is an anonymous file in memory (``memfd_create``). It has no entry in any folder, so it
does not count against the size of ``/dev/shm``, and it is gone when the last process that has it is
gone, however these end. Others reach it through its creator's open descriptor, ``/proc/PID/fd/N``,
as long as the creator runs; what they have mapped stays. All of it is reserved and mapped at once,
so that too little memory is an error here and not a signal later.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import PsgradError

POPULATE: Final = getattr(mmap, "MAP_POPULATE", 0)  # touch every page now
IN_ORDER: Final = platform.machine() in ("x86_64", "AMD64")
"""Whether what one processor stores in order, another one loads in order."""
HANDLE: Final = re.compile(r"/proc/[0-9]{1,10}/fd/[0-9]{1,10}#[0-9]{1,20}", re.ASCII)
MAP_FIXED: Final = 0x10  # replace the pages that are there


class SharingError(PsgradError):
    """Memory could not be shared; whoever sees it goes on by messages."""


@dataclass
class Segment:
    """``data[nbytes]`` is the memory; it stays mapped as long as an array on it is in use."""

    data: NDArray[np.uint8]
    handle: str
    """What another process attaches to, until ``close``; empty where it did not create it."""
    descriptor: int = -1

    @classmethod
    def create(cls, nbytes: int) -> Segment:
        """A segment of zeros. Raises ``SharingError`` where there is not enough memory."""
        free = available_nbytes()
        if nbytes > free:
            # To reserve more than there is would bring the kernel's killer, on whatever process.
            raise SharingError(f"cannot make {nbytes} bytes of shared memory: {free} are available")
        descriptor = -1
        try:
            descriptor = os.memfd_create("psgrad")
            os.posix_fallocate(descriptor, 0, max(1, nbytes))
            memory = mmap.mmap(descriptor, max(1, nbytes), mmap.MAP_SHARED | POPULATE)
        except (AttributeError, OSError) as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise SharingError(f"cannot make {nbytes} bytes of shared memory: {error}") from error
        # The inode says which file it is: another process may have that number one day.
        inode = os.fstat(descriptor).st_ino
        handle = f"/proc/{os.getpid()}/fd/{descriptor}#{inode}"
        return cls(np.frombuffer(memory, np.uint8)[:nbytes], handle, descriptor)

    def close(self) -> None:
        """Lets nobody in any more; the memory stays as long as it is mapped."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    @classmethod
    def attach(cls, handle: str, nbytes: int, *, writable: bool) -> Segment:
        """Maps a segment of ``nbytes``. Raises ``SharingError`` where it cannot be reached."""
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        if not HANDLE.fullmatch(handle):  # any other path would open whatever is there
            raise SharingError(f"{handle[:80]!r} is not the handle of a segment")
        path, _, inode = handle.partition("#")
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK  # not to wait at a pipe
        try:
            descriptor = os.open(path, flags)
            try:
                found = os.fstat(descriptor)
                if str(found.st_ino) != inode or found.st_size != max(1, nbytes):
                    raise SharingError(
                        f"{path} is not the segment of {nbytes} bytes that was meant, it has "
                        f"{found.st_size}"
                    )
                memory = mmap.mmap(descriptor, max(1, nbytes), mmap.MAP_SHARED | POPULATE, access)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SharingError(f"cannot map {path}: {error}") from error
        return cls(np.frombuffer(memory, np.uint8)[:nbytes], "")


def available_nbytes() -> int:
    """What the kernel says can be used without pushing anything out, less a tenth."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024 * 9 // 10
    return 0


def privatise(data: NDArray[Any]) -> NDArray[Any]:
    """Gives a mapped array memory of this process alone, with the same content and address.

    ``data`` is the whole of an attached segment; all arrays on it stay what they are. The one that
    is returned may be written to.
    """
    copy, nbytes = data.copy(), max(1, data.nbytes)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = libc.mmap(data.ctypes.data, nbytes, access, flags | MAP_FIXED, -1, 0)
    if address != data.ctypes.data:
        reason = os.strerror(ctypes.get_errno())
        raise SharingError(f"cannot give {nbytes} bytes memory of their own: {reason}")
    buffer = (ctypes.c_uint8 * nbytes).from_address(address)
    own: NDArray[Any] = np.ctypeslib.as_array(buffer)[: data.nbytes].view(data.dtype)
    np.copyto(own, copy)
    return own
