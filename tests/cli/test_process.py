"""Settings of the whole process (dvgen/process.py)."""

import os
import platform
import subprocess
import sys

import pytest
from dvgen import process


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
    program = """
import ctypes, sys
from dvgen import process
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.sbrk.argtypes = [ctypes.c_ssize_t]
if sys.argv[1:]:
    assert process.keep_freed_memory()
start = libc.sbrk(0)
libc.free(libc.malloc(2**28))
print(libc.sbrk(0) - start >= 2**28)
"""
    kept = [
        subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True).stdout
        for words in ([], ["set"])
    ]
    assert [each.strip() for each in kept] == ["False", "True"]
