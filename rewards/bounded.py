"""
Expressions compared by math-verify, in a process that is kept. What is over its time is killed with it, and
the next comparison starts another; so it is in any thread, and after a fork.
"""
import atexit
import functools
import json
import os
import re
import select
import subprocess
import sys
import threading

from rewards.reward import optional, shorten

PATIENCE = 2.0       # seconds for a comparison
START = 60.0         # for the start, which imports sympy
# The alarm ends it where nobody is left to kill it. It reads LaTeX alone: math-verify runs plain expressions.
CHILD = '''
import json, resource, signal, sys
from math_verify import LatexExtractionConfig, parse, verify
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
print('ready', flush=True)
for line in sys.stdin:
    signal.alarm(20)
    try:
        options = dict(extraction_mode='first_match', parsing_timeout=None)
        wanted, got = (parse(f'${x}$', [LatexExtractionConfig()], **options) for x in json.loads(line))
        options = dict(float_rounding=12, allow_set_relation_comp=True, timeout_seconds=None)
        equal = bool(wanted and got and verify(wanted, got, **options))
    except Exception:
        equal = False
    signal.alarm(0)
    print(equal, flush=True)
'''
# Powers of powers, exponents and factorials of many digits do not end, and no answer is written so.
ENDLESS = re.compile(r'\^\s*\{[^{}]*\^|\^\s*\w\s*\^|\^\s*\{?\s*-?[0-9]{4,}|[0-9]{3,}\s*!|!\s*\)\s*!')
lock, child = threading.Lock(), None


def answer(seconds):
    """The line that the process says next, or None where it is over its time or gone."""
    ready, _, _ = select.select([child.stdout], [], [], seconds)
    return child.stdout.readline() if ready else None


def start():
    global child
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child = subprocess.Popen([sys.executable, '-c', CHILD], text=True, **pipes)
    if not answer(START):
        stop()
        raise RuntimeError("math-verify does not start: see what python -c 'import math_verify' says")


def stop():
    global child
    if child is not None:
        child.kill()
        child.communicate()
    child = None


def forget():
    """In a fork the process, its pipes and the lock belong to the parent."""
    global lock, child
    lock, child = threading.Lock(), None


atexit.register(stop)
os.register_at_fork(after_in_child=forget)


@functools.lru_cache(maxsize=65536)
def equal_in_latex(wanted, got):
    """Do they mean the same? False where that cannot be said in time. Raises ImportError."""
    if not 0 < len(got) <= 300 or ENDLESS.search(got):
        return False
    optional('math_verify', f"to compare {shorten(wanted)} takes the package: pip install math-verify")
    with lock:
        said = None
        try:
            if child is None or child.poll() is not None:
                start()
            child.stdin.write(json.dumps([wanted, got]) + '\n')
            child.stdin.flush()
            said = answer(PATIENCE)
        except BrokenPipeError:
            pass
        finally:
            if not said:     # over its time, gone, or interrupted before it answered
                stop()
    return said == 'True\n'
