"""What is reaped by a process that inherits orphans, and what never is. Each case is a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, os, subprocess, sys, time
from vizora_rt.service.orphans import PAUSE, Orphans
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0    # PR_SET_CHILD_SUBREAPER: orphans come to this process
orphans = Orphans()

def orphan():
    '''A process that has ended and whose parent ended before it. Its process id.'''
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(gate[0], 1)
            os._exit(0)
        os.write(writing, str(child).encode())
        os._exit(0)
    os.waitpid(parent, 0)
    return int(os.read(reading, 20))

gate = os.pipe()

def end(pid):
    os.write(gate[1], b'x')
    ended(pid)

def ended(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

def own(code):
    child = subprocess.Popen([sys.executable, '-c', f'raise SystemExit({code})'])
    ended(child.pid)
    return child
"""

CASES = {
    "none": "assert orphans.reap(set(), 0.0) == []",
    "one that runs": "pid = orphan(); assert orphans.reap(set(), 0.0) == orphans.reap(set(), 9.0) == []; end(pid)",
    "one, at the second look": """
pid = orphan(); end(pid)
assert orphans.reap(set(), 5.0) == []
assert orphans.reap(set(), 5.0 + PAUSE / 2) == []
assert orphans.reap(set(), 5.0 + PAUSE) == [pid]
assert orphans.reap(set(), 9.0) == []
""",
    "several, in one look": """
pids = [orphan() for _ in range(5)]
for pid in pids: os.write(gate[1], b'x')
for pid in pids: ended(pid)
orphans.reap(set(), 0.0)
assert sorted(orphans.reap(set(), PAUSE)) == sorted(pids)
""",
    "never one of ours": """
child = own(7)
assert orphans.reap({child.pid}, 0.0) == orphans.reap({child.pid}, 9.0) == []
assert child.wait() == 7
""",
    "nor one that is not named yet": """
child = own(7)
assert orphans.reap(set(), 0.0) == []
assert orphans.reap({child.pid}, 9.0) == []
assert child.wait() == 7
""",
    "one behind ours, once ours is reaped": """
child = own(7)
pid = orphan(); end(pid)
orphans.reap({child.pid}, 0.0)
assert child.wait() == 7
orphans.reap({child.pid}, 1.0)
assert orphans.reap({child.pid}, 1.0 + PAUSE) == [pid]
""",
    "one that another part reaped meanwhile": """
pid = orphan(); end(pid)
orphans.reap(set(), 0.0)
os.waitpid(pid, 0)
assert orphans.reap(set(), 9.0) == []
""",
}


@pytest.mark.parametrize("case", CASES)
def test_orphans(case: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM + CASES[case]], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
