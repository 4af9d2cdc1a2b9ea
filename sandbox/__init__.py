"""
Runs model-written Python where it cannot get out (`run`), and grades it by tests (`grade`, `grade_many`).

Each completion gets a fresh process that may compute, import the standard library, and answer on a socket:
  seccomp    only the system calls of SYSCALLS: no process, thread, signal or socket, no writable file
  Landlock   it reads the standard and shared libraries, without installed packages (some hold the answers),
             and no other file, though it can ask whether one exists
  rlimits    processor time, memory, no bytes into files, no core; no capabilities even for root
  the parent a wall clock, a cap on results, SIGKILL to the process group
It gets the code once it is locked in, and the clock starts there: nothing that code does looks like a failed
sandbox. Tests run in a sandbox of their own (exam.py) and call the code over a socket (link.py), so it never
learns what is expected. docs/rewards.md says what it takes and what it cannot see.
"""
import collections
import functools
import itertools
import json
import marshal
import math
import os
import select
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen

from sandbox.exam import prepare
from sandbox.lockdown import WAY_OUT, SandboxError, landlock_ruleset, machine, seccomp_filter

CHILD = Path(__file__).with_name('child.py').read_text()  # the program of each process
LINK = compile(Path(__file__).with_name('link.py').read_text(), 'link.py', 'exec')
LINK = f"exec(__import__('marshal').loads({marshal.dumps(LINK)!r}))\n"  # not compiled in each process
START_LIMIT = 30.0      # seconds to get ready; more is not the code's fault, and raises
GRACE = 5.0             # seconds for tests to end after the code, or against constants
RESULT_CAP = 64 << 10   # bytes for all results of one process
# With a hash seed, the order of a set is the same each time, and so is the verdict.
ENVIRONMENT = {'LANG': 'C.UTF-8', 'PYTHONHASHSEED': '0', 'PYTHONSAFEPATH': '1'}

Grade = collections.namedtuple('Grade', 'score status')  # the share of tests passed; the status of run


# ---- one process

@functools.cache
def warn_unprotected():
    told = "sandbox='none': model-written code has your rights, files and network; use a container of its own"
    warnings.warn(told, stacklevel=4)


def run(code: str, calls: list[str], timeout: float = 2.0, memory: int = 512 << 20,
        sandbox: str = 'full', descriptors: list[int] = (),
        meanwhile: Callable | None = None) -> tuple[str, list]:
    """
    Run code, then evaluate the expressions in calls, in one process. timeout: seconds from when it gets the
    code; memory: bytes of address space; sandbox: 'full', or 'none' for a mere subprocess with limits, which
    malicious code leaves as it likes; descriptors: what it inherits; meanwhile: called when the code has
    ended and the calls are on their way, returns their deadline. Returns (status, results). status: 'ok',
    'error' (the code raised), 'timeout', 'crash' (it ended early, or wrote what is no reply) or 'flood' (more
    than RESULT_CAP bytes). results, one per call: ('ok', value), ('error', the exception's name; TypeError
    for a value that JSON has not), or None if never reached. Raises SandboxError where the sandbox
    cannot be put up, ValueError.
    """
    if sandbox not in ('full', 'none'):
        raise ValueError(f"sandbox is {sandbox!r}: it must be 'full' or 'none'")
    if not timeout > 0 or memory < 64 << 20:
        raise ValueError(f"timeout is {timeout}, memory {memory}: above 0 seconds, at least {64 << 20} bytes")
    seconds = math.ceil(timeout) + 1  # for when the parent is gone
    limits = {'CPU': seconds, 'AS': memory, 'FSIZE': 0, 'CORE': 0, 'NOFILE': 32, 'STACK': 8 << 20}
    job = {'limits': limits, 'parent': os.getpid(), 'filter': None}
    inherited = list(descriptors)
    if sandbox == 'full':
        inherited.append(landlock_ruleset())
        job |= {'filter': seccomp_filter().hex(), 'ruleset': inherited[-1], 'capset': machine()[3]}
    else:
        warn_unprotected()
    child, channel = start(inherited)
    heard, limit = bytearray(), time.monotonic() + START_LIMIT
    try:
        ended = exchange(channel, json.dumps(job).encode() + b'\n', heard, 1, limit)
        if heard == b'"ready"\n':
            return converse(channel, [code, *calls], time.monotonic() + timeout, meanwhile)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        channel.close()
    ending = f"exit status {child.returncode}, memory limit {memory >> 20} MB"
    seen = {None: f"could not be put up: {heard.decode(errors='replace').strip()}; {WAY_OUT}",
            'timeout': f"was not ready after {START_LIMIT:g} s",
            'crash': f"ended before it was ready ({ending})"}[ended]
    raise SandboxError(f"the sandbox {seen}")


def start(inherited):
    try:
        # Through /proc/self/fd, code could open the other end of a pipe too, and take out what was written.
        channel, theirs = socket.socketpair()
        channel.setblocking(False)
        with theirs:
            return Popen([sys.executable, '-s', '-S', '-B', '-c', CHILD], stdin=theirs, stdout=DEVNULL,
                         stderr=DEVNULL, cwd='/', env=ENVIRONMENT, pass_fds=inherited,
                         start_new_session=True), channel
    except OSError as e:
        raise SandboxError(f"no process for the sandbox: {e}") from None


def exchange(channel, unsent, heard, n_lines, deadline):
    """Send unsent, read until heard has n_lines. Returns None, or 'timeout', 'flood' or 'crash'."""
    waiting, late = select.poll(), False  # select.select knows no file descriptors above 1023
    while len(heard) <= RESULT_CAP:
        if not unsent and heard.count(b'\n') >= n_lines:
            return None
        if late:
            return 'timeout'
        waiting.register(channel, select.POLLIN | (select.POLLOUT if unsent else 0))
        left = deadline - time.monotonic()
        late = left <= 0  # what has come counts, even if this thread is late to look
        for _, event in waiting.poll(max(0, left) * 1000):
            try:
                if event == select.POLLOUT:
                    unsent = unsent[channel.send(unsent):]
                elif chunk := channel.recv(1 << 16):
                    heard += chunk
                else:
                    return 'crash'
            except ConnectionError:
                return 'crash'
    return 'flood'


def converse(channel, sources, deadline, meanwhile=None):
    """What run returns. sources: the code, and the calls, which are sent when it has ended."""
    tokens, heard = [os.urandom(4).hex().encode() for _ in sources], bytearray()
    texts = [source.encode('utf-8', 'surrogatepass') for source in sources]
    sent = [b'%s%08x%s' % (token, len(text), text) for token, text in zip(tokens, texts, strict=True)]
    ended = exchange(channel, sent[0], heard, 1, deadline)
    if not ended and heard.startswith(tokens[0]):
        calls = b''.join(sent[1:])
        if meanwhile:
            exchange(channel, calls, heard, 1, deadline)
            calls, deadline = b'', meanwhile()
        ended = exchange(channel, calls, heard, len(sources), deadline)
    replies = list(itertools.takewhile(bool, map(read_reply, tokens, heard.split(b'\n')[:-1])))
    first, *results = replies + [None] * (len(sources) - len(replies))
    if first and first[0] == 'error':
        return 'error', results
    return ended or ('ok' if len(replies) == len(sources) else 'crash'), results


def read_reply(token, line):
    """The result in a line, None for one without the token of what was asked."""
    try:
        if line.startswith(token):
            return 'ok', json.loads(line[len(token):])
        if line.startswith(b'error'):
            return 'error', str(json.loads(line[5:]))[:100]
    except (ValueError, RecursionError):
        return 'error', 'ValueError'


# what needs libraries of C, and some more
IMPORTS = """import array, collections, ctypes, datetime, decimal, fractions, hashlib, json, math, os, queue,
random, re, struct, time, typing, unicodedata, zlib""".replace('\n', ' ')


@functools.cache
def check_sandbox(sandbox='full'):
    """Raises SandboxError where code is not held in, or honest code cannot run, as with other C libraries."""
    honest = '[random.random() < 1, hashlib.md5(b"").digest_size, time.sleep(0)]'
    calls = [honest, 'open("/proc/self/stat")', 'os.listdir("/")']
    status, results = run(IMPORTS, calls, timeout=20, sandbox=sandbox)
    if status != 'ok' or results[0] != ('ok', [True, 16, None]):
        raise SandboxError(f"honest code cannot run in the sandbox here: it ends with {status}, {results[0]}")
    if sandbox == 'full' and any(result[0] != 'error' for result in results[1:]):
        raise SandboxError("the sandbox does not hold: a file outside the standard library could be read")


def processors():
    """How many programs run at once: the processors of this process, shared with other ranks."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


# ---- grading

def exam_of(tests):
    """The Exam of a text or a list of statements. Raises ValueError for what cannot be graded."""
    return prepare(tests if isinstance(tests, str) else '\n'.join(tests))


def examine(code, tests, sandbox, timeout=2.0, memory=512 << 20):
    """The Grade of a code: a process with the tests calls what the code defines in another."""
    exam = exam_of(tests)
    ours, theirs = socket.socketpair()
    statuses = []

    def run_code():
        ours.close()  # so that each side sees when the other has ended
        served = f'{LINK}serve_code{(theirs.fileno(), code, exam.imports, exam.classes)}'
        statuses.append(run(served, [], timeout, memory, sandbox, [theirs.fileno()])[0])
        theirs.close()
        return time.monotonic() + GRACE
    with ours, theirs:
        sit = f'sit{(ours.fileno(), exam.classes, *exam[:3])}'
        ended, results = run(LINK, [sit], START_LIMIT, 512 << 20, sandbox, [ours.fileno()], run_code)
    if not statuses:
        raise SandboxError(f"the process with the tests did not start: {ended}")
    told, share = results[0] or (ended, 0.0)
    return Grade(share if told == 'ok' else 0.0, statuses[0])


def grade_many(jobs: list, sandbox: str = 'full', **limits) -> list[Grade]:
    """
    The Grades of (code, tests) pairs, processors() at once. tests: a text or a list of statements, which run
    as in Python; an assert, or a loop or call with asserts in it, is one test, see exam.py. limits: timeout
    (of all tests of a pair) and memory, see run. Raises ValueError for tests that cannot be graded,
    SandboxError.
    """
    check_sandbox(sandbox)
    for _, tests in jobs:
        exam_of(tests)
    with ThreadPoolExecutor(processors()) as pool:
        return list(pool.map(lambda job: examine(*job, sandbox, **limits), jobs))


def grade(code: str, tests: str | list[str], **limits: float | str) -> float:
    """The share of the tests that the code passes. limits: timeout, memory and sandbox, see grade_many."""
    return grade_many([(code, tests)], **limits)[0].score


CONSTANTS = "None True False 0 1 -1 '' [] () {} set()".split()


def constant_passes(tests):
    """
    The source of a constant that passes all tests when functions return it, or None. Such tests teach
    nothing. Raises as grade does.
    """
    exam = exam_of(tests)
    constants = list(dict.fromkeys(CONSTANTS + exam.constants))
    start = f'{LINK}exam = {exam[:3]}'
    _, results = run(start, [f'examine(*exam, lambda name: lambda *a, **k: {c})' for c in constants], GRACE)
    passes = zip(constants, results, strict=True)
    return next((constant for constant, result in passes if result == ('ok', 1.0)), None)
