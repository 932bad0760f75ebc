"""What only POSIX systems have is not needed: every module is imported, and a picture made, without it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import mmap, os, signal, subprocess, sys
from importlib import import_module
from pathlib import Path

root = Path(sys.argv.pop(1))
modules = []
for base, package in ((root, "dit_video"), (root / "cli", "dvgen")):
    for file in sorted((base / package).rglob("*.py")):
        if file.name != "__main__.py":
            modules.append(".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__"))
for name in modules:
    import_module(name)
try:
    sys.modules["dvgen.main"].run()  # imports what other packages import late
except SystemExit as end:
    assert not end.code
for name in modules:
    del sys.modules[name]

class Missing:
    def find_spec(self, name, *_):
        if name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
            raise ModuleNotFoundError(f"No module named {name!r}")

for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for place, names in (
    (os, "fork geteuid getgid getloadavg getpgid getuid killpg mkfifo nice sched_getaffinity setsid statvfs sysconf"),
    (signal, "SIGALRM SIGHUP SIGKILL SIGUSR1 alarm pause setitimer"),
    (mmap, "MAP_ANON MAP_ANONYMOUS MAP_PRIVATE MAP_SHARED"),
):
    for name in names.split():
        if hasattr(place, name):
            delattr(place, name)
sys.platform = "win32"
for name in modules:
    import_module(name)

from dit_video import processes
from dit_video.checkpoints import stream
assert stream._room(2 ** 20).numel() == 2 ** 20
os.name, kill = "nt", os.kill
del os.kill
assert processes.runs(processes.this_process().replace(str(os.getpid()), str(os.getppid()))) is None
os.name = "posix"  # what pathlib makes its paths by
from dvgen.main import run
run()
"""


def test_nothing_of_posix_is_needed(tmp_path: Path):
    line = [sys.executable, "-c", PROGRAM, str(ROOT), "sample", "a cat", "--random-weights", "--size", "32x32"]
    line += ["--frames", "1", "--seed", "1", "-o", "a.png", "--overwrite", "--verbose", "--log-file", "x.log"]
    found = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "a.png\n" * 2
    assert "the most memory so far: not known" in found.stderr and "GB (host)" in found.stderr
