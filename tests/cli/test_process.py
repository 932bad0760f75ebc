"""Settings of the whole process (dvgen/process.py)."""

import os
import platform
import subprocess
import sys

import pytest
from dvgen import process

from dit_video import allocator


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    process.prepare()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"


def test_the_command_sets_them_before_torch_is_imported():
    program = "import sys, os, dvgen.main; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if name not in process.ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", process.ENVIRONMENT["GOMP_SPINCOUNT"]]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_glibc_takes_the_settings_of_its_allocator():
    """What is freed stays, but where large tensors are to give theirs back; and nothing changes unless it is asked."""
    program = """
import ctypes, sys
from dit_video import allocator
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.sbrk.argtypes = [ctypes.c_ssize_t]
def kept(size):
    start = libc.sbrk(0)
    libc.free(libc.malloc(size))
    return libc.sbrk(0) - start > size // 2
if sys.argv[1:]:
    assert allocator.keep_freed_memory()
with allocator.giving_back():
    print(kept(2 * allocator.LARGE))
with allocator.giving_back(False):
    print(kept(4 * allocator.LARGE))
"""
    environment = {name: value for name, value in os.environ.items() if name not in allocator.ALLOCATOR}
    kept = [
        subprocess.run(
            [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for words in ([], ["set"])
    ]
    assert kept == [["False", "False"], ["False", "True"]]


@pytest.mark.parametrize("name", allocator.ALLOCATOR)
def test_what_the_user_says_of_the_allocator_stays(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "1")
    assert not allocator.keep_freed_memory()


ENDS = """
import atexit, sys, threading, time
from dvgen import process

class Loaded:
    def __del__(self):
        print("taken apart")

kept = Loaded()
def late():
    time.sleep(0.2)
    print("thread done")

with process.leaving_at_once():
    atexit.register(print, "handler done")
    threading.Thread(target=late).start()
    sys.exit(sys.argv[1] if sys.argv[1] == "in words" else int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", ["0", "3", "130"])
def test_what_is_loaded_is_not_taken_apart_at_the_end(code: str):
    found = subprocess.run([sys.executable, "-c", ENDS, code], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (int(code), "thread done\nhandler done\n", "")


def test_an_end_that_is_no_number_is_as_ever():
    found = subprocess.run([sys.executable, "-c", ENDS, "in words"], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and "taken apart" in found.stdout and found.stderr == "in words\n"


def test_garbage_is_looked_for_again_after_a_large_import():
    program = """
import gc, sys
from dvgen import process
with process.importing("fractions"):
    assert not gc.isenabled()
    import fractions
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen > 0
with process.importing("fractions"):
    assert gc.isenabled()
try:
    with process.importing("no_such_module"):
        import no_such_module
except ImportError:
    assert gc.isenabled() and gc.get_freeze_count() == frozen
"""
    subprocess.run([sys.executable, "-c", program], check=True)
