"""Shared memory between real processes: what one writes the other sees, and nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from psgrad.transport.shared import Segment, SharingError, privatise

OTHER = """
import sys
import numpy as np
from psgrad.transport.shared import Segment
handle, n, do = sys.argv[1], int(sys.argv[2]), sys.argv[3]
data = Segment.attach(handle, n, writable=do == "write").data
print(int(data.sum()), flush=True)
if do == "write":
    data[:] = 7
elif do == "wait":
    sys.stdin.readline()
    print(int(data.sum()), flush=True)
else:
    data[0] = 1
"""


def other(handle, nbytes, do, **options):
    command = [sys.executable, "-c", OTHER, handle, str(nbytes), do]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, **options)


@pytest.mark.parametrize("nbytes", [1, 4096, 100_000])
def test_another_process_reads_and_writes(nbytes):
    mine = Segment.create(nbytes)
    assert mine.data.size == nbytes
    mine.data[:] = 1
    done = other(mine.handle, nbytes, "write")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == nbytes
    assert (mine.data == 7).all()


NO_HANDLES = ["", "/etc/hostname#1", "/proc/1/fd/2", "/proc/1/fd/2#3\n", "/proc/1/fd/\0#3"]


@pytest.mark.parametrize("handle", [*NO_HANDLES, "x" * 999])
def test_only_a_handle_is_opened(handle):
    """What comes by message must not open whatever file, or pipe, it names."""
    with pytest.raises(SharingError, match="is not the handle of a segment"):
        Segment.attach(handle, 100, writable=True)


def test_a_pipe_is_refused_at_once():
    reader, writer = os.pipe()
    inode = os.fstat(reader).st_ino
    with pytest.raises(SharingError, match="is not the segment of 100 bytes"):
        Segment.attach(f"/proc/{os.getpid()}/fd/{reader}#{inode}", 100, writable=False)
    os.close(reader)
    os.close(writer)


def test_a_reader_cannot_write():
    mine = Segment.create(100)
    done = other(mine.handle, 100, "try")
    assert done.returncode != 0
    assert "read-only" in done.stderr
    assert (mine.data == 0).all()


def test_it_outlives_its_creator():
    """A rank that dies takes nothing away from those that have mapped its memory."""
    creator = subprocess.Popen(
        [sys.executable, "-c", "from psgrad.transport.shared import Segment\n"
         "s = Segment.create(1000); s.data[:] = 3; print(s.handle, flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    handle = creator.stdout.readline().strip()
    mine = Segment.attach(handle, 1000, writable=True)
    creator.kill()
    creator.communicate(timeout=30)
    assert (mine.data == 3).all()
    mine.data[:] = 4
    with pytest.raises(SharingError, match="cannot map /proc/"):
        Segment.attach(handle, 1000, writable=False)


def test_nothing_has_a_name():
    before = set(os.listdir("/dev/shm"))
    segment = Segment.create(1 << 20)
    assert set(os.listdir("/dev/shm")) <= before
    assert segment.handle.startswith(f"/proc/{os.getpid()}/fd/")


def test_a_segment_of_another_size_is_refused():
    mine = Segment.create(100)
    with pytest.raises(
        SharingError, match="not the segment of 101 bytes that was meant, it has 100"
    ):
        Segment.attach(mine.handle, 101, writable=False)


def test_more_than_there_is_is_an_error():
    with pytest.raises(
        SharingError, match="cannot make 1152921504606846976 bytes of shared memory"
    ):
        Segment.create(1 << 60)


def test_what_is_private_does_not_change_any_more():
    """Every array on the segment keeps its address, and the others' writes stay theirs."""
    theirs = Segment.create(40_000)
    values = theirs.data.view(np.float32)
    values[:] = np.arange(10_000)
    mine = Segment.attach(theirs.handle, 40_000, writable=False).data.view(np.float32)
    piece = mine[5000:5010].reshape(2, 5)
    values[5000] = -1.0
    assert piece[0, 0] == -1.0
    own = privatise(mine)
    values[5000] = -2.0
    assert piece[0, 0] == -1.0
    own[5001] = 9.0
    assert piece[0, 1] == 9.0
    assert values[5001] == 5001.0
    assert np.shares_memory(own, piece)
    assert not mine.flags.writeable
    del own
    assert piece[1, 4] == 5009.0


def test_another_file_of_that_number_is_refused():
    """A process that has ended, and another one in its place; or one on another machine."""
    mine, other = Segment.create(100), Segment.create(100)
    path, _, inode = mine.handle.partition("#")
    wrong = f"{path}#{other.handle.partition('#')[2]}"
    with pytest.raises(SharingError, match="not the segment of 100 bytes that was meant"):
        Segment.attach(wrong, 100, writable=False)
    assert inode


def test_a_closed_segment_lets_nobody_in_and_stays():
    mine = Segment.create(100)
    theirs = Segment.attach(mine.handle, 100, writable=True)
    before = len(os.listdir("/proc/self/fd"))
    mine.close()
    mine.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    theirs.data[:] = 5
    assert (mine.data == 5).all()
    with pytest.raises(SharingError):
        Segment.attach(mine.handle, 100, writable=False)
