"""
Runs model-written Python where it cannot get out, and says which share of the tests it passes.

    run(code, calls)         -> (status, results)    the value of each call, an expression, after the code has run
    grade(code, tests)       -> the share of passed tests, tests being assert statements: a list (as in MBPP) or one text
    grade_many(jobs)         -> [Grade(score, status)], many (code, tests) at once
    as_asserts(tests, name)  -> a list of statements, from HumanEval's `def check(candidate)` too (asserts.py)
    constant_passes(tests)   -> a constant that passes them all, or None: such tests are worth nothing
    check_sandbox()          raises SandboxError here and now, where nothing can be run

Each answer gets one fresh process that may compute, import the standard library, and write its results to one pipe. What holds it, each layer enough for most attacks:
  seccomp    no system call but those of SYSCALLS: no process or thread, no signal, no socket, no opening of a file for writing
  Landlock   it reads the standard library and the shared libraries, without installed packages (some hold the answers), and no other file, though it can ask whether one exists
  rlimits    processor time, memory, no bytes into files, no core; no capabilities even for root, an environment of two harmless variables
  the parent a wall clock, a cap on results, SIGKILL to the process group
Linux 5.13 or newer on x86-64 (aarch64: as the tables say, not tried). No root, no container, nothing to install. It is not a virtual machine: a hole in the
kernel ends it, so train as an unprivileged user. A layer that cannot be put up raises SandboxError, and is never a score of 0. Code gets by without threads, asyncio and numpy.

The answer's process never learns what is expected, and its word is never taken for a verdict: `assert f(2) == 3 + 1` becomes f(2), evaluated beside the answer, and 3 + 1,
evaluated once per test set in a sandbox without it. Both come back as JSON of exact built-in types (no subclass with an __eq__ of its own) and are compared here.
An answer can still lie about a test that asks it about itself alone, `assert f(f(1)) == f(1)`, and state passes from one test to the next.
"""
import builtins
import collections
import concurrent.futures
import ctypes
import functools
import json
import math
import os
import platform
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import time
import warnings

from sandbox.asserts import as_asserts, share_passed, take_apart

START_LIMIT = 30.0      # seconds that a process may take to get ready: this is no fault of the answer, and raises
EXPECTED_LIMIT = 10.0   # seconds for the expected values of a test set
RESULT_CAP = 64 << 10   # bytes that all results of one process may take

Grade = collections.namedtuple('Grade', 'score status')  # the share of tests passed, and how the run ended: see run


class SandboxError(RuntimeError):
    """The code was not run, because the sandbox could not be put up. Says nothing about the code."""


# ---------------------------------------------------------------------------------------------------------------------
# what a process may do

# The only system calls that pass, by their numbers on (x86-64, aarch64); None where there is no such call. All else fails with EPERM.
SYSCALLS = dict(
    # files that are open, and looking at others; openat has a rule of its own in seccomp_filter
    read=(0, 63), write=(1, 64), close=(3, 57), lseek=(8, 62), pread64=(17, 67), getdents64=(217, 61), fstat=(5, 80), stat=(4, None), lstat=(6, None),
    newfstatat=(262, 79), statx=(332, 291), readlink=(89, None), readlinkat=(267, 78), getcwd=(79, 17),
    # memory
    mmap=(9, 222), mprotect=(10, 226), munmap=(11, 215), mremap=(25, 216), brk=(12, 214), madvise=(28, 233),
    # clocks, waiting, randomness
    clock_gettime=(228, 113), clock_getres=(229, 114), gettimeofday=(96, 169), time=(201, None), nanosleep=(35, 101), clock_nanosleep=(230, 115), select=(23, None),
    pselect6=(270, 72), restart_syscall=(219, 128), getrandom=(318, 278),
    # itself: handlers for its own signals, locks, who it is, its end
    rt_sigaction=(13, 134), rt_sigprocmask=(14, 135), rt_sigreturn=(15, 139), sigaltstack=(131, 132), futex=(202, 98), sched_yield=(24, 124), sched_getaffinity=(204, 123),
    getpid=(39, 172), gettid=(186, 178), getuid=(102, 174), geteuid=(107, 175), getgid=(104, 176), getegid=(108, 177), getrusage=(98, 165), times=(100, 153),
    uname=(63, 160), sysinfo=(99, 179), exit=(60, 93), exit_group=(231, 94))
MACHINES = {'x86_64': (0, 0xC000003E, 257, 126), 'aarch64': (1, 0xC00000B7, 56, 91)}  # column of SYSCALLS, AUDIT_ARCH of linux/audit.h, openat, capset
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's, the same on all machines
READ_FILE, READ_DIR = 1 << 2, 1 << 3


def machine():
    if sys.platform != 'linux' or platform.machine() not in MACHINES:
        raise SandboxError(f"the sandbox is for Linux on {' or '.join(MACHINES)}, this is {sys.platform} on {platform.machine()}; inside a container of its own, sandbox='none' runs code without it")
    return MACHINES[platform.machine()]


@functools.cache
def seccomp_filter():
    """The BPF program (linux/filter.h, seccomp(2)) as bytes."""
    column, arch, openat, _ = machine()
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    ALLOW, EPERM, KILL = 0x7fff0000, 0x00050001, 0x80000000
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    # (what, instructions to skip if so, if not, value); seccomp_data: nr at byte 0, arch at 4, the third argument at 32
    program = [(load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, KILL), (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (answer, 0, 0, KILL)]  # from there on: x32, other numbers for the same calls
    for numbers in SYSCALLS.values():
        if numbers[column] is not None:
            program += [(equal, 0, 1, numbers[column]), (answer, 0, 0, ALLOW)]
    program += [(equal, 1, 0, openat), (answer, 0, 0, EPERM), (load, 0, 0, 32), (any_bit, 0, 1, writing), (answer, 0, 0, EPERM), (answer, 0, 0, ALLOW)]
    return b''.join(struct.pack('HBBI', *instruction) for instruction in program)


def readable_paths():
    """[(path, Landlock's rights)]: the standard library and the shared libraries but for packages that were installed, and a few harmless files."""
    libraries = {os.path.realpath(path) for path in ('/lib', '/lib64', '/usr/lib', '/usr/lib64', os.path.join(sys.base_prefix, 'lib'))}
    stdlib = {sysconfig.get_path('stdlib'), os.path.dirname(sysconfig.get_config_var('DESTSHARED') or '/')} - {'/'}  # two folders on some machines
    paths = [(path, READ_DIR) for path in stdlib] + [('/usr/share/zoneinfo', READ_DIR | READ_FILE)]
    paths += [(os.path.join(folder, name), READ_FILE) for folder in sorted(stdlib | libraries) if os.path.isdir(folder) for name in sorted(os.listdir(folder))
              if name not in ('site-packages', 'dist-packages') and not (folder in libraries and name.startswith('python'))]
    return paths + [(path, READ_FILE) for path in ('/etc/ld.so.cache', '/dev/null', '/dev/urandom')]


@functools.cache
def landlock_ruleset():
    """A file descriptor, made once, that each process inherits and puts into force: read what readable_paths says, and nothing else. See landlock(7)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    syscall = lambda *arguments: libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    version = syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        raise SandboxError(f"this kernel has no Landlock ({os.strerror(ctypes.get_errno())}): it takes Linux 5.13 with landlock among its security modules; inside a container of its own, sandbox='none' runs code without it")
    rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)  # how many there are, one bit each: all are refused but where a rule allows one
    attributes = struct.pack('QQQ', (1 << rights) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0)  # files, TCP, signals and abstract sockets
    ruleset = syscall(CREATE_RULESET, attributes, 24 if version >= 6 else 16 if version >= 4 else 8, 0)
    if ruleset < 0:
        raise SandboxError(f"Landlock gives no ruleset: {os.strerror(ctypes.get_errno())}")
    for path, right in readable_paths():
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # not on this machine, or not for this user
            continue
        worked = syscall(ADD_RULE, ruleset, 1, struct.pack('<Qi', right, fd), 0) == 0
        os.close(fd)
        if not worked:
            raise SandboxError(f"Landlock refuses a rule for {path}: {os.strerror(ctypes.get_errno())}")
    return ruleset


@functools.cache
def warn_unprotected():
    warnings.warn("sandbox='none': model-written code runs with your rights, its files and network open to it; do this only inside a container of its own", stacklevel=4)


# ---------------------------------------------------------------------------------------------------------------------
# one process

# The program of that process. It locks itself in, says 'ready', and only then touches the model's code. Lines of JSON follow:
# [-1, 'error', name] when the code itself fails, else [i, 'ok', value] or [i, 'error', name] for each call i.
CHILD = r'''
import ctypes, json, os, resource, struct, sys

job = json.loads(sys.stdin.buffer.read())
results, null = os.dup(1), os.open('/dev/null', os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
os.close(null)

def need(worked, layer):
    if not worked:
        os.write(results, f'{layer} failed: {os.strerror(ctypes.get_errno())}\n'.encode())
        os._exit(1)

libc = ctypes.CDLL(None, use_errno=True)
number = ctypes.c_long
for name, limit in job['limits'].items():
    resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (limit, limit))
need(libc.prctl(1, number(9), 0, 0, 0) == 0 and os.getppid() == job['parent'], 'PR_SET_PDEATHSIG')  # it dies with the parent
if job['filter']:
    need(libc.prctl(4, number(0), 0, 0, 0) == 0, 'PR_SET_DUMPABLE')  # a core pattern that is a pipe ignores RLIMIT_CORE
    need(libc.prctl(38, number(1), number(0), number(0), number(0)) == 0, 'PR_SET_NO_NEW_PRIVS')
    need(libc.syscall(number(job['restrict_self']), number(job['ruleset']), number(0)) == 0, 'Landlock')
    os.close(job['ruleset'])
    need(libc.syscall(number(job['capset']), struct.pack('Ii', 0x20080522, 0), bytes(24)) == 0, 'capset')  # version 3, this process; no capability
    program = bytes.fromhex(job['filter'])
    program = ctypes.create_string_buffer(program, len(program))
    need(libc.prctl(22, number(2), struct.pack('HxxxxxxP', len(program) // 8, ctypes.addressof(program)), 0, 0) == 0, 'seccomp')

def encode(value, depth=0):
    if depth > 50:
        raise ValueError
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode(v, depth + 1) for v in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [encode(v, depth + 1) for v in value]}
    if kind is dict:
        return {'dict': [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]}
    if kind is bytes:
        return {'bytes': value.hex()}
    if kind is complex:
        return {'complex': [value.real, value.imag]}
    raise TypeError

def say(*line):
    os.write(results, (json.dumps(line) + '\n').encode())

candidate = type(sys)('candidate')  # a module, as dataclasses and the like look for one
sys.modules['candidate'] = candidate
say('ready')
try:
    exec(compile(job['code'], '<answer>', 'exec'), candidate.__dict__)
except BaseException as e:
    say(-1, 'error', type(e).__name__)
    os._exit(0)
for i, call in enumerate(job['calls']):
    try:
        say(i, 'ok', encode(eval(compile(call, '<test>', 'eval'), candidate.__dict__)))
    except BaseException as e:
        say(i, 'error', type(e).__name__)
os._exit(0)
'''
READY = b'["ready"]'


def decode(value, depth=0):
    """What encode made, as exact built-in types again. Raises ValueError, TypeError for anything else: the line may be forged."""
    if depth > 100:
        raise ValueError
    if type(value) is list:
        return [decode(v, depth + 1) for v in value]
    if type(value) is not dict:
        return value
    (kind, content), = value.items()
    if kind in ('tuple', 'set', 'frozenset'):
        return getattr(builtins, kind)(decode(v, depth + 1) for v in content)
    if kind == 'dict':
        return {decode(k, depth + 1): decode(v, depth + 1) for k, v in content}
    if kind == 'bytes':
        return bytes.fromhex(content)
    if kind == 'complex':
        return complex(*content)
    raise ValueError


def read_results(data, n_calls):
    """(the name of the exception that the code raised, or None; n_calls results), from the lines of a process that may have written anything."""
    failed, results = None, [None] * n_calls
    for line in data.split(b'\n')[:n_calls + 1]:
        try:
            i, tag, value = json.loads(line)
            result = ('ok', decode(value)) if tag == 'ok' else ('error', str(value)[:100])
            if type(i) is int and i == -1 and tag == 'error':
                failed = result[1]
            elif type(i) is int and 0 <= i < n_calls and results[i] is None:
                results[i] = result
        except (ValueError, TypeError, RecursionError, OverflowError):
            continue
    return failed, results


def run(code: str, calls: list[str], timeout: float = 2.0, memory: int = 512 << 20, sandbox: str = 'full') -> tuple[str, list]:
    """
    Run code, then evaluate the expressions in calls one after the other, all in one process of its own.
    timeout: seconds for all of it, from when the process is ready; memory: bytes of address space.
    sandbox: 'full', or 'none' for a mere subprocess with limits, which malicious code leaves as it likes.
    Returns (status, results). status: 'ok' (it ran to its end), 'error' (the code itself raised), 'timeout', 'crash' (the
    process ended early) or 'flood' (more than RESULT_CAP bytes). results, one per call: ('ok', value), ('error', name of the
    exception), or None when it was not reached. A value of other than plain built-in types is a TypeError.
    Raises SandboxError when the sandbox cannot be put up, ValueError for a wrong argument.
    """
    if sandbox not in ('full', 'none'):
        raise ValueError(f"sandbox is {sandbox!r}: it must be 'full' or 'none'")
    if not timeout > 0 or memory < 64 << 20:
        raise ValueError(f"timeout is {timeout} and memory {memory}: they must be above 0 seconds and at least {64 << 20} bytes")
    limits = {'CPU': math.ceil(timeout) + 1, 'AS': memory, 'FSIZE': 0, 'CORE': 0, 'NOFILE': 32, 'STACK': 8 << 20}  # CPU, in seconds, is for when the parent is gone
    job = {'code': code, 'calls': list(calls), 'limits': limits, 'parent': os.getpid(), 'filter': None}
    if sandbox == 'full':
        job |= {'filter': seccomp_filter().hex(), 'ruleset': landlock_ruleset(), 'restrict_self': RESTRICT_SELF, 'capset': machine()[3]}
    else:
        warn_unprotected()
    environment = {'LANG': 'C.UTF-8', 'PYTHONHASHSEED': '0', 'PYTHONSAFEPATH': '1'}  # the order of a set is the same each time, and so is the verdict
    try:
        child = subprocess.Popen([sys.executable, '-s', '-S', '-B', '-c', CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd='/', env=environment,
                                 start_new_session=True, pass_fds=[job['ruleset']] if sandbox == 'full' else [])
    except OSError as e:
        raise SandboxError(f"no process for the sandbox: {e}") from None
    data, ready, ended = b'', False, None
    try:
        try:
            child.stdin.write(json.dumps(job).encode())
            child.stdin.close()
        except BrokenPipeError:
            pass  # it ended before it was ready, which shows below
        waiting = select.poll()  # not select.select, which knows no file descriptors above 1023
        waiting.register(child.stdout, select.POLLIN)
        deadline = time.monotonic() + START_LIMIT
        while ended is None:
            left = deadline - time.monotonic()
            if left <= 0 or not waiting.poll(left * 1000):
                ended = 'timeout'
                break
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                break
            data += chunk
            if not ready and b'\n' in data:
                first, _, data = data.partition(b'\n')
                if first != READY:
                    raise SandboxError(f"the sandbox could not be put up: {first[:200].decode(errors='replace')}; inside a container of its own, sandbox='none' runs code without it")
                ready, deadline = True, time.monotonic() + timeout
            if len(data) > RESULT_CAP:
                ended = 'flood'
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        child.stdout.close()
        try:
            child.stdin.close()
        except BrokenPipeError:  # of what it did not read
            pass
    if not ready:
        raise SandboxError("the sandbox's process " + (f"was not ready after {START_LIMIT:g} s" if ended else f"ended before it was ready (exit status {child.returncode}, memory limit {memory >> 20} MB)"))
    failed, results = read_results(data, len(job['calls']))
    return ended or ('error' if failed else 'ok' if None not in results else 'crash'), results


HONEST = ('abc, array, base64, binascii, bisect, calendar, cmath, collections, copy, ctypes, dataclasses, datetime, decimal, enum, fractions, functools, hashlib, heapq, itertools, json, math, numbers, '
          'operator, os, queue, random, re, statistics, string, struct, sys, textwrap, time, typing, unicodedata, zlib')


@functools.cache
def check_sandbox(sandbox='full'):
    """Raises SandboxError, before a run depends on it, where code cannot be held in, or not be run: another C library may need calls that SYSCALLS lacks, and every answer would be wrong."""
    status, results = run(f'import {HONEST}', ['[random.random() < 1, hashlib.md5(b"").digest_size, time.sleep(0)]', 'open("/proc/self/stat")', 'os.listdir("/")'], timeout=20, sandbox=sandbox)
    if status != 'ok' or results[0] != ('ok', [True, 16, None]):
        raise SandboxError(f"honest code cannot run in the sandbox here: importing modules of the standard library ends with {status}, {results[0]}")
    if sandbox == 'full' and any(result[0] != 'error' for result in results[1:]):
        raise SandboxError("the sandbox does not hold: a file outside the standard library could be read")


# ---------------------------------------------------------------------------------------------------------------------
# grading

@functools.lru_cache(maxsize=1 << 14)
def expected_steps(tests, sandbox):
    """tests: a text or a tuple. Returns (Steps with the values expected, names), worked out once. Raises ValueError when they have none."""
    steps, names = take_apart(as_asserts(tests))
    status, results = run('', [step.expected for step in steps], EXPECTED_LIMIT, sandbox=sandbox)
    for step, result in zip(steps, results):
        if result is None or result[0] == 'error':
            raise ValueError(f"these tests expect {step.expected}, which has no plain value ({status if result is None else result[1]}): {step.call} {step.check}")
    return [step._replace(expected=value) for step, (_, value) in zip(steps, results)], names


def grade_many(jobs: list, processes: int | None = None, timeout: float = 2.0, memory: int = 512 << 20, sandbox: str = 'full') -> list[Grade]:
    """
    jobs: (code, tests) pairs, tests as as_asserts takes them (HumanEval's check must be followed by its call). processes: how
    many run at once, as many as there are processors by default. timeout, memory, sandbox: as in run, timeout for all tests of an answer together.
    Returns a list of Grade(score, status) in order: a test that the answer did not come to is not passed, the others count.
    Raises ValueError for tests that cannot be graded, SandboxError when the sandbox cannot be put up.
    """
    check_sandbox(sandbox)
    jobs = [(code, tests if isinstance(tests, str) else tuple(tests)) for code, tests in jobs]

    def one(job):
        code, tests = job
        steps, _ = expected_steps(tests, sandbox)
        status, results = run(code, [step.call for step in steps], timeout, memory, sandbox)
        return Grade(share_passed(steps, results), status)
    with concurrent.futures.ThreadPoolExecutor(processes or len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda tests: expected_steps(tests, sandbox), dict.fromkeys(tests for _, tests in jobs)))  # first, for two threads not to do the same
        return list(pool.map(one, jobs))


def grade(code: str, tests: str | list[str], timeout: float = 2.0, memory: int = 512 << 20, sandbox: str = 'full') -> float:
    """The share of the tests that the code passes, a float from 0 to 1. See grade_many."""
    return grade_many([(code, tests)], 1, timeout, memory, sandbox)[0].score


CONSTANTS = (None, True, False, 0, 1, -1, '', [], (), {}, set())


def constant_passes(tests, sandbox='full'):
    """
    The source of a constant that passes all the tests, or None: whether functions that do nothing but return it pass, or a process
    that reports it for each test. Tried are CONSTANTS and the values expected. Such tests teach nothing, leave them out. Raises as grade does.
    """
    steps, names = expected_steps(tests if isinstance(tests, str) else tuple(tests), sandbox)
    expected = [step.expected[0] if step.check == 'near' else step.expected for step in steps if step.check]
    constants = list({repr(constant): constant for constant in (*CONSTANTS, *expected)}.items())
    code = 'VALUE = None\n' + ''.join(f'{name} = lambda *args, **kwargs: VALUE\n' for name in sorted(names))
    calls = [call for source, _ in constants for call in [f'globals().update(VALUE={source})'] + [step.call for step in steps]]
    _, results = run(code, calls, EXPECTED_LIMIT, sandbox=sandbox)
    for i, (source, constant) in enumerate(constants):
        first = i * (len(steps) + 1) + 1
        if 1 in (share_passed(steps, results[first:first + len(steps)]), share_passed(steps, [('ok', constant)] * len(steps))):
            return source
