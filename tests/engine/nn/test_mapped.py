"""A mapped file that shrinks while something still reads it."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from engine.kernels.native import unavailable_reason
from engine.nn.mapped import MappedFile

PAGE = 4096
MAPS = Path("/proc/self/maps")
# Keeps a view of a file, lets go of the file itself, cuts it and reads on.
PROGRAM = """
import gc, os, sys
from pathlib import Path
from engine.nn.mapped import MappedFile

file = MappedFile(Path(sys.argv[1]))
view = file.blocks(0, file.size_bytes)
del file
gc.collect()
os.truncate(sys.argv[1], 4096)
print(view[0], view[-1])
"""


@pytest.mark.process
def test_a_view_outlives_its_file(tmp_path):
    if reason := unavailable_reason():
        pytest.skip(reason)
    path = tmp_path / "weights"
    path.write_bytes(b"\7" * (3 * PAGE))
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM, path], capture_output=True)
    assert (done.returncode, done.stdout.split()) == (0, [b"7", b"0"]), done.stderr


@pytest.mark.skipif(not MAPS.exists(), reason="no /proc/self/maps")
def test_the_last_view_unmaps_the_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(PAGE))

    def mapped():
        gc.collect()
        return str(path) in MAPS.read_text()

    file = MappedFile(path)
    view = file.blocks(0, PAGE)
    del file
    assert mapped()
    del view
    assert not mapped()
