"""
Comparing expressions by math-verify, in a process that is kept: what takes too long is killed with it, and the next
comparison starts another one. That holds in any thread, and after a fork.
"""
import atexit
import functools
import json
import os
import select
import subprocess
import sys
import threading

from rewards.reward import optional, shorten

PATIENCE = 5.0       # seconds for a comparison
START = 60.0         # for the start, which imports sympy
CHILD = '''
import json, sys
from math_verify import LatexExtractionConfig, parse, verify
print('ready', flush=True)
for line in sys.stdin:
    try:
        options = dict(extraction_mode='first_match', parsing_timeout=None)
        wanted, got = (parse(f'${x}$', [LatexExtractionConfig()], **options) for x in json.loads(line))
        print(json.dumps(bool(wanted and got and verify(wanted, got, timeout_seconds=None))), flush=True)
    except Exception:
        print('false', flush=True)
'''
lock, child = threading.Lock(), None


def ask(process, line, seconds):
    """The process's next line, or None where it is over its time or gone."""
    try:
        if line is not None:
            process.stdin.write(line)
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline() if ready else None
    except OSError:
        return None


def stop():
    global child
    if child is not None and child.owner == os.getpid():
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    child = None


def start():
    global child
    stop()
    child = subprocess.Popen([sys.executable, '-c', CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child.owner = os.getpid()
    if not ask(child, None, START):
        stop()
        raise RuntimeError("math-verify does not start: try python -c 'import math_verify'")


def forget():
    """After a fork the process and its pipes belong to the parent."""
    global lock, child
    lock, child = threading.Lock(), None


atexit.register(stop)
os.register_at_fork(after_in_child=forget)


@functools.lru_cache(maxsize=65536)
def equal_in_latex(wanted, got):
    """Do they mean the same? False where that cannot be said in time."""
    optional('math_verify', f"to compare {shorten(wanted)} takes the package: pip install math-verify")
    with lock:
        if child is None or child.poll() is not None:
            start()
        answer = ask(child, json.dumps([wanted, got]).encode() + b'\n', PATIENCE)
        if not answer:
            stop()
        return answer == b'true\n'
