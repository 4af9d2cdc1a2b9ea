"""The sandbox: nothing gets out, nothing outstays its time, and no answer grades itself. Then the data sets of programs that it grades."""
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest

import sandbox
from data.humaneval.prepare import convert as convert_humaneval
from data.mbpp.prepare import convert as convert_mbpp
from data.pyfunc.prepare import make_problems
from rewards import code as code_rewards
from sandbox import Grade, SandboxError, constant_passes, grade, grade_many, lockdown, run

ROOT = Path(__file__).resolve().parent.parent
TESTS = ['assert f(2) == 3', 'assert f(5) == 3 + 3', 'assert f(-1) == 0']

# ---------------------------------------------------------------------------------------------------------------------
# attacks. attack() returns something true where it got through; DIRECTORY is writable to all and holds the file `kept`

ESCAPES = {
    'write to cwd': "return open('escaped', 'w')",
    'write absolute': "return open(DIRECTORY + '/escaped', 'w')",
    'write to /tmp': "return open('/tmp/escaped', 'w')",
    'write to /dev/shm': "return open('/dev/shm/escaped', 'w')",
    'append': "return open(DIRECTORY + '/kept', 'a')",
    'truncate while reading': "return os.open(DIRECTORY + '/kept', os.O_RDONLY | os.O_TRUNC)",
    'truncate': "return os.truncate(DIRECTORY + '/kept', 0) is None",
    'unnamed file': "return os.open(DIRECTORY, os.O_TMPFILE | os.O_RDWR)",
    'symlink': "return os.symlink('/etc/passwd', DIRECTORY + '/escaped') is None",
    'hard link': "return os.link(DIRECTORY + '/kept', DIRECTORY + '/escaped') is None",
    'mkdir': "return os.mkdir(DIRECTORY + '/escaped') is None",
    'fifo': "return os.mkfifo(DIRECTORY + '/escaped') is None",
    'unlink': "return os.unlink(DIRECTORY + '/kept') is None",
    'rename': "return os.rename(DIRECTORY + '/kept', DIRECTORY + '/escaped') is None",
    'chmod': "return os.chmod(DIRECTORY + '/kept', 0) is None",
    'utime': "return os.utime(DIRECTORY + '/kept', (0, 0)) is None",
    'read a file of all': "return open(DIRECTORY + '/kept').read()",
    'read /etc/passwd': "return open('/etc/passwd').read()",
    'read the sandbox': "return open(DIRECTORY + '/../sandbox/__init__.py').read()",
    'read its own environment': "return open('/proc/self/environ', 'rb').read()",
    'read its own memory map': "return open('/proc/self/maps').read()",
    "read the parent's environment": "return open(f'/proc/{PARENT}/environ', 'rb').read()",
    "read the parent's memory": "return open(f'/proc/{PARENT}/mem', 'rb')",
    'list the root': "return os.listdir('/')",
    'list a directory': "return os.listdir(DIRECTORY)",
    'installed packages': """import sysconfig
for folder in (sysconfig.get_path('purelib'), '/usr/lib/python3/dist-packages'):
    for path, _, names in os.walk(folder):
        for name in names[:3]:
            try:
                return open(os.path.join(path, name), 'rb').read(1)
            except OSError:
                pass
        if path.count('/') > folder.count('/') + 1:
            break""",
    'a secret in the environment': "return 'SECRET' in os.environ or 'hunter2' in str(os.environ)",
    'inet socket': "import socket; return socket.socket(socket.AF_INET)",
    'inet6 socket': "import socket; return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
    'unix socket': "import socket; return socket.socket(socket.AF_UNIX)",
    'socket pair': "import socket; return socket.socketpair()",
    'netlink socket': "import socket; return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    'packet socket': "import socket; return socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    'kill the parent': "return os.kill(PARENT, 9) is None",
    'kill everything': "return os.kill(-1, 9) is None",
    'kill the group': "return os.kill(0, 9) is None",
    'kill init': "return os.kill(1, 0) is None",
    'pidfd': "import signal; return signal.pidfd_send_signal(os.pidfd_open(PARENT), 9) is None",
    'SIGIO to the parent': "import fcntl\n"
                           "return any(fcntl.fcntl(fd, command, PARENT if command == 8 else 9) is not None for command in (8, 10, 15) for "
                           "fd in range(16))",
    'fork': "return os.fork() + 1",
    'fork bomb': "while True:\n    os.fork()",
    'fork and leave the session': "pid = os.fork()\nif pid == 0:\n    os.setsid()\n    import time\n    time.sleep(60)\nreturn pid",
    'threads': "import threading\nthread = threading.Thread(target=int)\nthread.start()\nreturn thread",
    'multiprocessing': "import multiprocessing; return multiprocessing.Pool(1)",
    'os.system': "return os.system('true') == 0",
    'subprocess': "import subprocess; return subprocess.run(['/bin/true']).returncode == 0",
    'exec': "os.execv('/bin/echo', ['echo', '[0, \"ok\", true]'])",
    'posix_spawn': "return os.posix_spawn('/bin/true', ['true'], {})",
    'memfd': "return os.memfd_create('x')",
    'pipe': "return os.pipe()",
    'more memory': "import resource; return resource.setrlimit(resource.RLIMIT_AS, (-1, -1)) is None",
    'more files': "import resource; return resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)) is None",
    'setuid': "return os.setuid(os.getuid()) is None",
    'setgroups': "return os.setgroups([0]) is None",
    'chroot': "return os.chroot('/') is None",
    'chdir': "return os.chdir('/tmp') is None",
    'nice': "return os.nice(-5)",
    # what does not fail with EPERM has gone through, even if it complains about its arguments; names as in the kernel's x86-64 table
    'raw system calls': """import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
calls = dict(open=2, socket=41, clone=56, fork=57, vfork=58, execve=59, kill=62, shmget=29, semget=64, msgget=68, fcntl=72, ptrace=101,
             capset=126, prctl=157, mount=165, tkill=200, io_setup=206, tgkill=234, mq_open=240, add_key=248, keyctl=250,
             inotify_init=253, unshare=272, perf_event_open=298, prlimit64=302, setns=308, process_vm_readv=310, process_vm_writev=311,
             kcmp=312, seccomp=317, memfd_create=319, bpf=321, execveat=322, userfaultfd=323, pidfd_send_signal=424, io_uring_setup=425,
             io_uring_enter=426, open_tree=428, fsopen=430, pidfd_open=434, clone3=435, openat2=437, pidfd_getfd=438, process_madvise=440,
             landlock_create_ruleset=444, ioctl=16)
def passes(number):
    return libc.syscall(number, *[ctypes.c_long(0)] * 6) != -1 or ctypes.get_errno() != errno.EPERM
return [name for name, number in calls.items() if passes(number)]""",
    'x32 system call': "import ctypes; return ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39)) > 0",
    '32-bit system call': """import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20 (getpid); int 0x80; ret
return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() > 0""",
}
EXHAUSTION = {  # name: (code, the statuses it may end with)
    'loop': ("while True:\n    pass", 'timeout'),
    'sleep': ("import time; time.sleep(60)", 'timeout'),
    'loop that ignores signals': ("import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
                                  "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass", 'timeout'),
    'loop that swallows all': ("while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
                               'timeout'),
    'loop behind a closed pipe': ("os.closerange(0, 64)\nwhile True:\n    pass", 'crash'),
    'power': ("return 9 ** 9 ** 9 > 0 and None", 'timeout ok'),
    'regular expression': ("import re; re.match('(a+)+$', 'a' * 64 + 'b')", 'timeout'),
    'large allocation': ("bytearray(8 << 30)", 'ok'),
    'growing list': ("x = [0]\nwhile True:\n    x += x", 'ok crash timeout'),
    'deep recursion': ("import sys\nsys.setrecursionlimit(10 ** 9)\ng = lambda: g()\ng()", 'ok crash timeout'),
    'segfault': ("import ctypes; ctypes.string_at(0)", 'crash'),
    'abort': ("os.abort()", 'crash'),
    'stdout flood': ("while True:\n    print('x' * 65536)", 'timeout'),
    'result flood': ("while True:\n    for fd in range(3, 32):\n        try:\n            os.write(fd, b'x' * 65536)\n"
                     "        except OSError:\n            pass", 'flood'),
    'garbage on the results': ("for fd in range(3, 32):\n    try:\n"
                               "        os.write(fd, bytes(range(256)) + b'\\n[0, \"ok\", {\"set\": [[1]]}]\\n[0, \"ok\", {\"a\": "
                               "1, \"b\": 2}]\\n[0, \"ok\", ' + b'[' * 9999 + b'\\n[0]\\n[0, \"ok\", ' + b'1' * 5000 + b']\\n')\n"
                               "    except OSError:\n        pass", 'ok crash'),
    '100 MB result': ("return 'x' * 10 ** 8", 'ok flood timeout'),
    'deep result': ("x = []\nfor _ in range(10 ** 5):\n    x = [x]\nreturn x", 'ok'),
    'result that holds itself': ("x = []\nx.append(x)\nreturn x", 'ok'),
    '5000 digits': ("return 10 ** 5000", 'ok'),
}
AT_IMPORT = {'loop at import': ('while True:\n    pass', 'timeout'), 'code that nests too deep': ('(' * 10 ** 5, 'error crash'),
             'NUL': ('x = "\0"', 'error'), 'lone surrogate': ('x = "\ud800"', 'error'),
             'sys.exit': ('import sys\nsys.exit(0)', 'error'), 'os._exit as if the sandbox had failed': ('import os\nos._exit(1)', 'crash')}

# ---------------------------------------------------------------------------------------------------------------------
# attacks on the conversation between the process and its parent. The call is f(), which says 'honest' where the attack does
# not define another; 'forged' must never be its result, and no attack may look like a sandbox that could not be put up

BEFORE = r'''
import os
def opened(folder='/proc/self/fd', flags=os.O_RDONLY | os.O_NONBLOCK, **options):
    """Every descriptor of the process, opened anew, one by one."""
    for n in range(3, 32):
        try:
            yield os.open(f'{folder}/{n}', flags, **options)
        except OSError:
            pass
def swallow(fds):
    """The first thing that had been written, and was not read yet."""
    for fd in fds:
        try:
            return os.read(fd, 65536)
        except OSError:
            pass
def put(data, fds=range(3, 32)):
    for fd in fds:
        try:
            os.write(fd, data)
        except OSError:
            pass
def f():
    return 'honest'
'''
MORE = r'''
import ctypes, gc, json, select, sys, time
LINES = [b'["ready"]', b'"ready"', b'["I am the model"]', b'[0, "ok", "forged"]', b'"forged"', b'null', b'ok', b'error "E"']
libc = ctypes.CDLL(None, use_errno=True)
def forge():
    for line in LINES:
        put(line + b'\n')
def all_frames():
    frame = sys._getframe(1)
    while frame:
        yield frame
        frame = frame.f_back
def things():
    """All that the collector and the frames know, and what is in it."""
    found = gc.get_objects() + gc.get_referents(*all_frames()) + [x for frame in all_frames() for x in (frame.f_locals, frame.f_globals)]
    for x in list(found):
        if type(x) in (dict, list, tuple, set):
            found += list(x.values()) if type(x) is dict else list(x)
    return found
def tokens():
    """The texts and bytes among them that look like one."""
    texts = {x.decode('latin-1') if type(x) is bytes else x for x in things() if type(x) in (bytes, str)}
    digits = set('0123456789') | set('abcdef')
    return [x.encode() for x in texts if len(x) in (8, 16, 32) and not set(x) - digits and not x.isalpha()]
def refused(*calls):
    """Ends the process where one of the calls goes through."""
    for call in calls:
        try:
            if call() != -1:
                os._exit(9)
        except (OSError, ValueError):
            pass
'''
# Each opens with its name and the statuses that it may end with. Those that may time out have 0.3 s, the others 10.
PIPES = r'''
#: swallow ready and say other: crash
if swallow(opened()):
    put(b'["I am the model"]\n')
os._exit(0)
#: swallow through /dev/fd: crash
if swallow(opened("/dev/fd")):
    put(b'["I am the model"]\n')
os._exit(0)
#: swallow through the thread: crash
if swallow(opened("/proc/thread-self/fd")):
    put(b'["x"]\n')
os._exit(0)
#: swallow through its id: crash
if swallow(opened(f"/proc/{os.getpid()}/fd")):
    put(b'["x"]\n')
os._exit(0)
#: swallow through a folder: crash error
folder = os.open("/proc/self", os.O_PATH)
if swallow(opened("fd", dir_fd=folder)):
    put(b'["x"]\n')
os._exit(0)
#: swallow by system call: crash
import ctypes
for n in range(3, 32):
    fd = ctypes.CDLL(None).syscall(257, -100, b"/proc/self/fd/%d" % n, 2048, 0)
    if fd >= 0 and swallow([fd]):
        put(b'["x"]\n')
os._exit(0)
#: swallow and end: ok
if swallow(opened()):
    os._exit(3)
#: swallow, wait and give back: timeout
line = swallow(opened())
import time
time.sleep(60)
put(line)
#: swallow and wait: timeout
swallow(opened())
import time
time.sleep(60)
os._exit(0)
#: swallow and flood: flood
swallow(opened())
while True:
    put(b"x" * 65536)
#: swallow from then on: ok
fds = list(opened())
class E:
    def __del__(self):
        swallow(fds)
def f():
    e = E()
    return "honest"
#: second reader, first closed: crash
fds = list(opened())
os.closerange(3, 12)
'''
WORDS = r'''
#: duplicates: ok
import fcntl
refused(lambda: os.dup(3), lambda: os.dup2(3, 40), lambda: os.dup2(3, 1), lambda: fcntl.fcntl(3, fcntl.F_DUPFD, 20),
        lambda: libc.syscall(292, 3, 20, 0))
#: size of the pipe: ok
import fcntl
refused(*[lambda n=n: fcntl.fcntl(n, 1031, 4096) for n in range(3, 32)])
#: blocking turned off: ok
import fcntl
refused(*[lambda n=n: os.set_blocking(n, False) for n in range(3, 32)],
        *[lambda n=n: fcntl.fcntl(n, fcntl.F_SETFL, os.O_NONBLOCK) for n in range(3, 32)],
        *[lambda n=n: fcntl.ioctl(n, 0x5421, b"\1\0\0\0") for n in range(3, 32)])
#: signals from the pipe: ok
import fcntl
refused(*[lambda n=n: fcntl.fcntl(n, fcntl.F_SETOWN, os.getppid()) for n in range(3, 32)],
        *[lambda n=n: fcntl.fcntl(n, fcntl.F_SETFL, os.O_ASYNC) for n in range(3, 32)],
        *[lambda n=n: fcntl.fcntl(n, fcntl.F_SETSIG, 9) for n in range(3, 32)])
#: splice, tee, vmsplice, sendfile: ok
refused(*[lambda c=c, n=n: libc.syscall(c, n, 0, n, 0, 4096, 0) for c in (275, 276, 278, 40, 326) for n in range(3, 12)])
#: socket calls on the channel: ok
refused(*[lambda c=c, n=n: libc.syscall(c, n, 2, 0, 0, 0, 0) for c in (44, 45, 46, 47, 48, 54, 55, 299, 307) for n in range(3, 12)])
#: opened for writing: ok
if [*opened(flags=os.O_WRONLY), *opened(flags=os.O_RDWR)]:
    os._exit(9)
#: fill the pipe: flood
for _ in range(99):
    put(b"x" * 4096)
    swallow(opened())
#: read its own stdin: timeout
for n in range(32):
    try:
        os.read(n, 64)
    except OSError:
        pass
#: close everything: crash
os.closerange(0, 64)
#: close everything in a call: crash
def f():
    os.closerange(0, 64)
    return "honest"
#: another file under its number: crash
os.closerange(0, 64)
while os.open("/dev/null", os.O_RDONLY) < 31:
    pass
#: drop by drop: timeout
while True:
    put(b"x")
    time.sleep(0.001)
#: half a line: crash
put(b'["rea')
os._exit(0)
#: nothing but ends of lines: crash flood
put(b"\n" * 10 ** 5)
#: results before the code has ended: crash
forge()
#: results before, and then the end: crash
forge()
os._exit(0)
#: results before, and then nothing: crash
forge()
import time
time.sleep(60)
#: results before, one by one: crash
for line in LINES:
    put(line + b"\n")
    time.sleep(0.01)
#: results during the call: crash
def f():
    forge()
    return "honest"
#: results of calls to come: crash
def f():
    put(b'"forged"\n' * 9)
    return "honest"
#: results in the words of the frames: crash error
for token in tokens():
    put(token + b'null\n')
raise ValueError
#: the same, in the call: ok crash
def f():
    for token in tokens():
        put(token + b'"forged"\n')
    return 'honest'
#: every eight digits: crash flood
for n in range(4000):
    put(b'%08x"forged"\n' % n)
#: ends as if it were done: crash
os._exit(0)
#: ends as a failed sandbox does: crash
put(b"Landlock failed: Operation not permitted\n")
os._exit(1)
#: the frames' own functions: crash
for frame in all_frames():
    for x in [*frame.f_locals.values(), *frame.f_globals.values()]:
        for arguments in ((0, 'ok', 'forged'), (-1, 'ok', None), (b'', 'forged'), ('ok', 'forged'), ('forged',)):
            if type(x) is type(f) and x.__code__.co_filename == '<string>' and x.__name__ not in ('take', 'compiled'):
                try:
                    x(*arguments)
                except Exception:
                    pass
#: a traceback to the frames: crash
try:
    1 / 0
except ZeroDivisionError as e:
    frame = e.__traceback__.tb_frame.f_back
    frame.f_locals['say'](*((b'', 'forged') if frame.f_code.co_varnames else (0, 'ok', 'forged')))
#: the runner again: error
sys.modules['__main__'].main()
#: the runner's reader closed: crash
for x in gc.get_objects():
    if type(x).__name__ == 'BufferedReader':
        x.close()
#: the frames emptied: ok error crash
for frame in all_frames():
    frame.f_locals.clear()
    try:
        frame.clear()
    except RuntimeError:
        pass
gc.collect()
#: jump over the failure: timeout error
frame = sys._getframe(1)
def tracer(frame, event, argument):
    if event == 'line' and frame.f_lineno > start:
        try:
            frame.f_lineno = start + 4
        except ValueError:
            pass
    return tracer
start, frame.f_trace = frame.f_lineno, tracer
sys.settrace(tracer)
raise ValueError
#: os.read replaced: ok
os.read = lambda fd, n: b'0' * n
#: os.read fails: ok
def read(*a):
    raise OSError
os.read = read
#: os.write writes before: crash
write = os.write
os.write = lambda fd, line: [write(fd, x + b'\n') for x in LINES] and write(fd, line)
#: os.write writes twice: crash
write = os.write
os.write = lambda fd, line: write(fd, line) and write(fd, line)
#: os.write keeps silent: timeout
os.write = lambda fd, line: len(line)
#: json.dumps forges lines: crash
json.dumps = lambda line, **k: '[0, "ok", "forged"]\n' * 3
#: json.dumps fails: crash
json.dumps = None
#: built-ins replaced: error crash flood
import builtins
for name in ('compile', 'eval', 'type', 'len', 'int', 'BaseException'):
    setattr(builtins, name, None)
#: built-ins emptied: crash error
import builtins
builtins.__dict__.clear()
#: modules emptied: crash error
for module in list(sys.modules.values()):
    if module.__name__ != 'candidate':
        vars(module).clear()
#: the lowest recursion limit: ok crash error
sys.setrecursionlimit(6)
#: at exit: error
import atexit
atexit.register(forge)
sys.exit(0)
#: at exit, after an error that cannot be said: crash
import atexit
atexit.register(forge)
json.dumps = None
sys.exit(0)
#: in a finaliser: ok
class E:
    def __del__(self):
        forge()
sys.modules['kept'] = E()
#: in a finaliser during the call: crash
class E:
    def __del__(self):
        forge()
def f():
    e = E()
    return 'honest'
#: in the collector: crash
gc.callbacks.append(lambda *a: forge())
gc.set_threshold(1)
x = [[] for _ in range(99)]
#: in a hook of audit: crash
sys.addaudithook(lambda *a: forge())
#: in a profile: crash flood
import sys
sys.setprofile(lambda frame, event, x: put(b'"forged"\n') if event == 'c_return' else None)
#: in a thread: error
import threading
threading.Thread(target=forge).start()
#: in a child: error
os.fork()
#: faulthandler into the channel: crash
import faulthandler
for n in range(3, 32):
    faulthandler.dump_traceback(n)
#: segfault into the channel: crash
import faulthandler
for n in range(3, 12):
    try:
        os.fstat(n)
        faulthandler.enable(n)
    except OSError:
        pass
ctypes.string_at(0)
#: faulthandler later: error
import faulthandler
for n in range(3, 12):
    faulthandler.dump_traceback_later(0.001, file=n)
#: an exception that does not describe itself: ok
class E(Exception):
    __str__ = __repr__ = __eq__ = __hash__ = lambda *a: 1 / 0
    __class__ = property(lambda self: 1 / 0)
def f():
    raise E
#: an exception whose name fails: crash
class M(type):
    __name__ = property(lambda c: 1 / 0)
class E(Exception, metaclass=M):
    pass
def f():
    raise E
#: an exception whose name forges: crash
class M(type):
    __name__ = property(lambda c: forge())
class E(Exception, metaclass=M):
    pass
def f():
    raise E
#: an exception whose name ends the line: ok
def f():
    raise type('E"\n"forged"\n[0, "ok", "forged"]\n', (Exception,), {})
#: an exception whose name does not end: flood
raise type('E' * 10 ** 7, (Exception,), {})
#: an exception whose name takes for ever: timeout
class M(type):
    __name__ = property(lambda c: time.sleep(60))
class E(Exception, metaclass=M):
    pass
raise E
#: a type equal to all: ok
class M(type):
    __eq__ = lambda *a: True
    __hash__ = type.__hash__
class T(metaclass=M):
    pass
def f():
    return T()
#: a result that doubles: timeout
def f():
    x = 'x'
    for _ in range(45):
        x = [x, x]
    return x
#: a result of many parts: flood
def f():
    return list(range(10 ** 5))
#: numbers of one hash: ok flood
def f():
    return {n * (2 ** 61 - 1) for n in range(2000)}
#: more digits than are read: ok
sys.set_int_max_str_digits(0)
def f():
    return 10 ** 6000
#: no memory left: ok error crash
kept = []
try:
    while True:
        kept.append(bytearray(1 << 16))
except MemoryError:
    pass
try:
    while True:
        kept = [kept]
except MemoryError:
    pass
#: a call that exits: ok
def f():
    sys.exit(0)
#: stops itself: ok crash
import signal
refused(lambda: os.kill(os.getpid(), signal.SIGSTOP), lambda: signal.raise_signal(signal.SIGSTOP))
#: alarms: ok
import signal
refused(lambda: libc.syscall(37, 1), lambda: libc.syscall(38, 0, 0, 0), lambda: libc.syscall(222, 0, 0, 0),
        lambda: libc.syscall(283, 0, 0))
#: limits and places in the queue: ok
import resource
refused(lambda: resource.setrlimit(resource.RLIMIT_CPU, (0, 0)), lambda: os.nice(-5), lambda: os.nice(5),
        lambda: os.sched_setaffinity(0, {0}), lambda: os.sched_setscheduler(0, 0, os.sched_param(0)),
        lambda: libc.prctl(1, 0, 0, 0, 0))
#: sleep in C: timeout
ctypes.PyDLL(None).sleep(60)
#: wait for a lock in C: timeout
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()
#: wait with signals blocked: timeout
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
select.select([], [], [], 60)
#: a loop in C without the end: timeout
sum(iter(int, 1))
#: late in the call: timeout
def f():
    time.sleep(60)
    return 'honest'
#: late in its name: timeout
class E(Exception):
    pass
def f():
    try:
        raise E
    finally:
        time.sleep(60)
#: steals the calls to come: ok
def f():
    for n in range(3, 12):
        if select.select([n], [], [], 0)[0]:
            os.read(n, 4096)
    return 'honest'
'''


def attacks_in(text, before):
    """{name: (code, statuses)}"""
    parts = [part.split('\n', 1) for part in text.split('#: ')[1:]]
    return {name: (before + code, statuses) for (name, statuses), code in ((head.split(': '), code) for head, code in parts)}


TALK = attacks_in(PIPES, BEFORE) | attacks_in(WORDS, BEFORE + MORE)

DRIVER = """
import concurrent.futures, json, os, sys, time
folder, jobs, threads = json.load(sys.stdin)
sys.path.insert(0, folder)
import sandbox
token = f'attacked by {os.getpid()}'
sandbox.CHILD += '# ' + token
def one(job):
    code, call, timeout, memory = job
    start = time.monotonic()
    try:
        status, (result,) = sandbox.run(code.replace('PARENT', str(os.getpid())), [call], timeout, memory)
    except sandbox.SandboxError as e:
        status, result = f'stopped the run: {e}', None
    return status, repr(result)[:200], result is not None and result[0] == 'ok' and bool(result[1]), time.monotonic() - start
with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    outcomes = list(pool.map(one, jobs))
left = []
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        left += [pid] if token in open(f'/proc/{pid}/cmdline').read() else []
    except OSError:
        pass
print(json.dumps([outcomes, left, os.getuid()]))
"""


def processes(token):
    """The ids of the processes that have the token on their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            found += [pid] if token in Path('/proc', pid, 'cmdline').read_text(errors='replace') else []
        except OSError:
            pass
    return found


def can_run(python, user):
    try:
        return subprocess.run([python, '-c', 'import ctypes'], user=user, group=user, extra_groups=[], capture_output=True).returncode == 0
    except OSError:
        return False


def besiege(user, jobs, threads=3):
    """
    [(status, result, got through, seconds)] of (code, call, timeout, memory), each run once as this user or 'nobody', uid 65534.
    DIRECTORY in the code is a folder that all may write to. Nothing may be left of them, there or among the processes.
    """
    python, uid = sys.executable, None
    if user == 'nobody':
        if os.getuid() != 0:
            pytest.skip("running as uid 65534 takes root to become it")
        uid = 65534
        python = next((p for p in (sys.executable, '/usr/bin/python3', '/usr/local/bin/python3') if can_run(p, uid)), None)
        if python is None:
            pytest.skip(f"uid 65534 can run neither {sys.executable} nor a system Python")
    folder = tempfile.mkdtemp()  # not pytest's own, which others cannot enter
    try:
        os.chmod(folder, 0o755)
        shutil.copytree(ROOT / 'sandbox', Path(folder, 'sandbox'), ignore=shutil.ignore_patterns('__pycache__'))
        watched = Path(folder, 'watched')
        watched.mkdir()
        (watched / 'kept').write_text('as it was')
        watched.chmod(0o777)
        (watched / 'kept').chmod(0o666)
        before = (watched / 'kept').stat()
        jobs = [(f'DIRECTORY = {str(watched)!r}\n' + code, *rest) for code, *rest in jobs]
        done = subprocess.run([python, '-c', DRIVER], input=json.dumps([folder, jobs, threads]), env=os.environ | {'SECRET': 'hunter2'},
                              capture_output=True, text=True, cwd='/', user=uid, group=uid, extra_groups=[] if uid else None, timeout=3600)
        assert done.returncode == 0, done.stderr  # the parent survives
        outcomes, left, ran_as = json.loads(done.stdout)
        assert ran_as == (uid or os.getuid()) and not left, f"processes left behind: {left}"
        after = (watched / 'kept').stat()
        assert os.listdir(watched) == ['kept'] and (watched / 'kept').read_text() == 'as it was'
        assert (after.st_mode, after.st_mtime, after.st_nlink) == (before.st_mode, before.st_mtime, 1)
        assert not any(os.path.exists(path) for path in ('/escaped', '/tmp/escaped', '/dev/shm/escaped'))
        return outcomes
    finally:
        shutil.rmtree(folder)


USERS = pytest.mark.parametrize('user', ['this user', 'nobody'])


def limit(statuses):
    return 0.3 if 'timeout' in statuses.split() else 10.0


@USERS
def test_no_attack_gets_through(user):
    # other architectures are death
    expected = {name: 'crash' if 'system call' in name and 'raw' not in name else 'ok' for name in ESCAPES}
    expected |= {name: statuses for name, (_, statuses) in (EXHAUSTION | AT_IMPORT).items()} | {'control': 'ok'}
    bodies = ESCAPES | {name: body for name, (body, _) in EXHAUSTION.items()}
    attacks = {name: 'import os\ndef attack():\n    ' + body.replace('\n', '\n    ') for name, body in bodies.items()}
    attacks |= {name: code for name, (code, _) in AT_IMPORT.items()} | {'control': 'def attack():\n    return [1, "two"]'}
    outcomes = besiege(user, [(code, 'attack()', limit(expected[name]), 512 << 20) for name, code in attacks.items()])
    for name, (status, result, through, seconds) in zip(attacks, outcomes, strict=True):
        assert status in expected[name].split() and through == (name == 'control'), f"{name}: {status}, {result}"
        assert seconds < 60, f"{name} took {seconds:.1f} s"
    assert result == "('ok', [1, 'two'])"


def converse(user, tries, threads=3):
    names = [name for name in TALK for _ in range(tries)]
    outcomes = besiege(user, [(code, 'f()', limit(statuses), 128 << 20) for code, statuses in map(TALK.get, names)], threads)
    for name, (status, result, _, seconds) in zip(names, outcomes, strict=True):
        assert status in TALK[name][1].split() and not result.startswith("('ok', 'forged"), f"{name}: {status}, {result}"
        assert seconds < 60, f"{name} took {seconds:.1f} s"


@USERS
def test_no_attack_on_the_conversation_gets_through(user):
    """Five times each, once of them as nobody where that is possible."""
    converse(user, tries=1 if user == 'nobody' else 5 - (os.getuid() == 0))


@pytest.mark.slow
def test_no_attack_on_the_conversation_gets_through_in_200_tries():
    converse('this user', tries=200, threads=4)


CHEATS = {
    'exit at import': 'import sys\nsys.exit(0)',
    'exit': 'import sys\ndef f(x):\n    sys.exit(0)',
    '_exit at import': 'import os\nos._exit(0)',
    '_exit': 'import os\ndef f(x):\n    os._exit(0)',
    'printed verdict': 'print("PASS")\ndef f(x):\n    print("ok", True)',
    'always equal': 'class Equal:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return Equal()',
    'int subclass': 'class Int(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\ndef f(x):\n'
                    '    return Int(1000)',
    'disguised class': 'class Int(int):\n    __eq__ = lambda self, other: True\n    __class__ = int\nInt.__name__ = "int"\ndef f(x):\n'
                       '    return Int(1000)',
    'patched json': 'import json\njson.dumps = lambda line: "[0, \\"ok\\", true]\\n[1, \\"ok\\", true]\\n[2, \\"ok\\", true]"\ndef f(x):\n'
                    '    return 1000',
    'patched built-ins': 'import builtins\nbuiltins.eval = lambda *a: True\n'
                         'builtins.compile = builtins.type = builtins.isinstance = lambda *a, **k: True\ndef f(x):\n    return True',
    'forged lines': 'import os\nfor fd in range(3, 32):\n    try:\n        for i in range(3):\n'
                    '            for line in (f\'[{i}, "ok", true]\', f\'[{i}, "ok", {{"pass": []}}]\', f\'[{i}, "passed", 1]\', '
                    'f\'[{i}, "ok", NaN]\'):\n                os.write(fd, line.encode() + b"\\n")\n    except OSError:\n        pass\n'
                    'os._exit(0)',
    # whatever in the process looks like a test: text that says what f(x) is to equal, or an object that holds 3, 6 and 0 together
    'search for the expected values': """import gc, re, sys
def f(x):
    frame, seen = sys._getframe(), gc.get_objects()
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    items = [t for o in seen if type(o) in (dict, list, tuple) for t in (o.values() if type(o) is dict else o)]
    texts = [t for t in items if type(t) is str and 'f(2)' in t and len(t) < 500]
    for text in texts:
        found = re.search(re.escape(f'f({x})') + r'\\s*==\\s*(.*)', text)
        if found and 're.search' not in text:
            return eval(found[1])
    raise LookupError""",
}


def test_no_answer_grades_itself():
    for name, got in zip(CHEATS, grade_many([(code, TESTS) for code in CHEATS.values()]), strict=True):
        assert got.score == 0, f"{name}: {got}"
    # a number that math.isclose cannot take, and one longer than Python reads, are wrong answers and no errors
    assert grade_many([('f = lambda x: 10 ** 400', ['assert f(1) == 0.5']), ('f = lambda x: 10 ** 5000', TESTS)]) == [(0, 'ok'), (0, 'ok')]


def test_honest_answers_get_their_share():
    assert grade('def f(x):\n    return x + 1', TESTS) == 1.0
    assert grade('def f(x):\n    return 3', TESTS) == pytest.approx(1 / 3)
    assert grade_many([('def f(x):\n    while x < 0:\n        pass\n    return x + 1', TESTS), ('def f(x: return', TESTS), ('', TESTS),
                       ('def f(x):\n    return x + 1', '\n'.join(TESTS))], timeout=0.5) == \
        [Grade(2 / 3, 'timeout'), Grade(0, 'error'), Grade(0, 'ok'), Grade(1, 'ok')]
    assert run('import collections, re, dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int',
               ['P(3).x', 're.findall("a", "banana")', 'P(3)', '1 / 0']) == \
        ('ok', [('ok', 3), ('ok', ['a', 'a', 'a']), ('error', 'TypeError'), ('error', 'ZeroDivisionError')])
    values = [None, True, -3, 1.5, 'ü\n\ud800', [1, [2, {'a': [{}]}]], float('inf')]
    assert run('', [repr(v) if v != float('inf') else 'float("inf")' for v in values])[1] == [('ok', v) for v in values]


@pytest.mark.parametrize('test, right, wrong', [
    ('f(1) == 0.3', '0.3', '0.1 + 0.2'),
    ('f(1) == [1, (2, 3)]', '[1, (2, 3)]', '[1, [2, 3]]'),
    ('{1: 0.3} == f(1)', '{1: 0.3}', '{1: 0.1 + 0.2}'),
    ('set(f(1)) == {1, 2}', '[2, 1, 1]', '[1]'),
    ('f(1) != 3', '4', '3'),
    ('f(1) < 3', '2', '"x"'),
    ('3 < f(1)', '4', '2'),
    ('f(1) in (3, 4)', '4', '5'),
    ('3 in f(1)', '[3]', '[4]'),
    ('f(1) not in (3, 4)', '5', '4'),
    ('f(1) is None', 'None', '0'),
    ('not f(1)', '[]', '[0]'),
    ('f(1)', '[0]', '[]'),
    ('f(1) == 1 and f(1) == True', '1', '2'),
    ('abs(f(1) - 0.5) < 1e-3', '0.5001', '0.502'),
    ('abs(0.5 - f(1)) <= 1e-3', '0.5001', '0.502'),
    ('math.isclose(f(1), math.pi, rel_tol=0.01)', '3.14', '3'),
    ('[f(x) for x in range(2)] == [7, 7]', '7', '8'),
    ('sorted(f(1)) == sorted(given)', '[2, 1]', '[1]'),
])
def test_each_kind_of_assert(test, right, wrong):
    tests = ['import math', 'given = [1, 2]', f'assert {test}, "a message"']
    assert [g.score for g in grade_many([(f'def f(x):\n    return {value}', tests) for value in (right, wrong)])] == [1, 0]


HUMANEVAL = ("METADATA = {'author': 'jt'}\n\ndef check(candidate):\n    '''All of it.'''\n    import math\n"
             "    assert candidate(2) == 3, 'small'\n    assert True\n    assert math.isclose(candidate(0.5), 1.5)\n")


def test_humaneval_style():
    """Each statement of a function that the tests call once is a test; `assert True` is none."""
    assert grade('def f(x):\n    return x + 1', HUMANEVAL + 'check(f)\n') == 1
    assert grade('def f(x):\n    return 3', HUMANEVAL + 'check(f)\n') == 0.5
    # other things called f inside
    helped = ['def same(f, x):\n    return [f for y in (f, x)]', 'given = [f for f in (2, 3)]', 'assert f(given[0]) == 3',
              'assert same(f(2), 0) == same(3, 0)']
    assert grade('def f(x):\n    return x + 1', helped) == 1 and grade('def f(x):\n    return 4', helped) == 0


@pytest.mark.parametrize('tests, why', [
    ('assert f(1) ==', 'not Python'), ('x' * 70000 + '(', 'not Python'), ('assert True', 'no assert calls'), ([], 'no assert calls'),
    ('x = [1, 2]\nassert x == [1, 2]', 'no assert calls'),
    (HUMANEVAL, 'nothing calls check: add a line that does, as check.name.'),
    ('def test_f(tmp_path):\n    assert f(1) == 2', 'nothing calls'),
    ('import numpy as np\nassert f(1) == np.ones(1)', 'for .import numpy as np.: the sandbox has only what computes'),
    ('from solution import f\nassert f(1) == 2', 'the sandbox has only'), ('import asyncio\nassert asyncio.run(f(1)) == 2', 'has only'),
    ('class Mine(Theirs):\n    pass\nassert Mine().f() == 1', 'cannot have one of the code as its base'),
    ('assert f(' + '-' * 20000 + '1) == 1', 'not Python .MemoryError')])
def test_tests_that_cannot_be_graded(tests, why):
    with pytest.raises(ValueError, match=why) as e:
        grade('', tests)
    assert len(str(e.value).splitlines()) == 1


def test_constants_that_pass():
    assert constant_passes(TESTS) is None
    assert constant_passes(['assert f(2) == []', 'assert f(3) == []']) == '[]'
    assert constant_passes(['assert list(f(2)) == []', 'assert f(3) * 2 == ()']) == '()'
    assert constant_passes('def check(g):\n    for x in range(3):\n        assert g(x) in (7, 8)\ncheck(f)') == '7'
    assert constant_passes('for x in range(3):\n    assert 5 <= f(x)') == '5'
    assert constant_passes(['assert f(2) == 12', 'assert f(3) == 12']) == '12'
    assert constant_passes(['assert f(f(2)) == f(2)']) is not None
    assert constant_passes(['assert f(2)', 'assert f(3) == 1']) == 'True'
    assert constant_passes(['assert f(2)', 'assert not f(3)']) is None
    assert constant_passes('assert f(2) != 7') == 'None'


def test_a_missing_layer_raises_and_is_no_zero(monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(sandbox, 'landlock_ruleset', lambda: os.open('/dev/null', os.O_RDONLY))  # not a ruleset
        with pytest.raises(SandboxError, match='Landlock failed'):
            grade('def f(x):\n    return x + 1', TESTS)
    with monkeypatch.context() as m:
        m.setattr(sandbox, 'seccomp_filter', lambda: bytes(16))  # not a program
        with pytest.raises(SandboxError, match='seccomp failed'):
            run('', ['1'])
    with monkeypatch.context() as m:
        m.setattr(sandbox, 'CHILD', 'raise SystemExit(3)')
        with pytest.raises(SandboxError, match='ended before it was ready .exit status 3'):
            run('', ['1'])
    with monkeypatch.context() as m:
        m.setattr(sandbox, 'CHILD', 'import time; time.sleep(60)')
        m.setattr(sandbox, 'START_LIMIT', 0.1)
        with pytest.raises(SandboxError, match='not ready after 0.1 s'):
            run('', ['1'])
    with monkeypatch.context() as m:
        m.setattr(lockdown.platform, 'machine', lambda: 'riscv64')
        with pytest.raises(SandboxError, match='riscv64'):
            lockdown.machine()
    for wrong in ({'sandbox': 'off'}, {'timeout': 0}, {'memory': 1000}):
        with pytest.raises(ValueError, match=f'{next(iter(wrong))} is|memory {wrong.get("memory")}'):
            run('', ['1'], **wrong)


def test_a_sandbox_that_honest_code_cannot_run_in_raises(monkeypatch):
    sandbox.check_sandbox()
    for name, changed in (('SYSCALLS', lockdown.SYSCALLS | {'getdents64': (None, None)}), ('readable_paths', lambda: [])):
        with monkeypatch.context() as m:
            for cached in (sandbox.check_sandbox, sandbox.seccomp_filter, sandbox.landlock_ruleset):
                cached.cache_clear()
            m.setattr(lockdown, name, changed)
            with pytest.raises(SandboxError, match='honest code cannot run'):
                grade('def f(x):\n    return x + 1', TESTS)
    for cached in (sandbox.check_sandbox, sandbox.seccomp_filter, sandbox.landlock_ruleset):
        cached.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(lockdown, 'readable_paths', lambda: [('/', 12)])  # as a hole in the layer would be
        with pytest.raises(SandboxError, match='does not hold'):
            sandbox.check_sandbox()
    sandbox.landlock_ruleset.cache_clear()


def test_the_code_is_sent_when_the_clock_starts(monkeypatch):
    """However late the parent reads 'ready', and however late it looks for what was written in time."""
    converse, told = sandbox.converse, []

    def late(*arguments):
        time.sleep(0.2)
        told.append(time.monotonic())
        return converse(*arguments)
    monkeypatch.setattr(sandbox, 'converse', late)
    status, (started,) = run('import time\nstarted = time.monotonic()', ['started'])
    assert status == 'ok' and started[1] >= told[0]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        heard, past = bytearray(), time.monotonic() - 1
        theirs.send(b'one\ntw')
        assert sandbox.exchange(ours, b'', heard, 1, past) is None and heard == b'one\ntw'
        assert sandbox.exchange(ours, b'', heard, 2, past) == 'timeout'
        theirs.send(b'o\n')
        assert sandbox.exchange(ours, b'', heard, 2, past) is None
        theirs.close()
        assert sandbox.exchange(ours, b'unread', heard, 3, time.monotonic() + 9) == 'crash'
    assert run('import os\nos._exit(0)', []) == ('crash', [])  # it has not run to its end
    # more than the socket holds, both ways
    assert run('', ['0'.ljust(1000)] * 3000, timeout=60) == ('ok', [('ok', 0)] * 3000)


def test_a_line_may_hold_anything():
    """Without its token it is no reply; with it, it is a value or an error, and nothing is raised."""
    draw = random.Random(0)
    pieces = [b'token', b'error', b'"', b'[', b'{"set":', b'{"dict":', b'{"bytes":', b'{"complex":', b'[[1,2]]', b']', b'}', b'NaN',
              b'1' * 5000, b'[' * 2000, b'\xff', b'\0', b'"a"', b'null', b',', b'-1', b' ', b'{}']
    for _ in range(3000):
        line = b''.join(draw.choices(pieces, k=draw.randint(0, 5)))
        for start in (b'', b'token'):
            reply = sandbox.read_reply(b'token', bytearray(start + line))
            assert reply is None or reply[0] in ('ok', 'error')
            assert (reply is None) != (start + line).startswith((b'token', b'error'))


def test_as_many_programs_at_once_as_there_are_processors(monkeypatch):
    for affinity, ranks, wanted in (({0, 3}, None, 2), (set(range(8)), '4', 2), ({5}, '2', 1)):
        monkeypatch.setattr(os, 'sched_getaffinity', lambda pid, affinity=affinity: affinity)
        monkeypatch.setenv('LOCAL_WORLD_SIZE', ranks) if ranks else monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
        assert sandbox.processors() == wanted
    running, most = [], []

    def run_alone(*arguments, **limits):
        running.append(1)
        most.append(len(running))
        time.sleep(0.005)
        running.pop()
        return 'ok', []

    def examine_alone(code, *arguments, **limits):
        return Grade(int(code), run_alone()[0])
    grade('', TESTS)  # the sandbox is looked at
    monkeypatch.setattr(sandbox, 'examine', examine_alone)
    monkeypatch.setattr(code_rewards, 'run', run_alone)
    assert [g.score for g in grade_many([(str(i), TESTS) for i in range(9)])] == list(range(9))
    assert code_rewards.code_execution(['f = abs(3)'] * 9) == [1.0] * 9
    assert len(most) == 18 and set(most) == {1}


def test_a_process_dies_with_its_parent():
    code = "import sandbox, sys\nsandbox.CHILD += '# orphan ' + sys.argv[1]\nsandbox.run('import time; time.sleep(60)', [], timeout=60)"
    token = f'{os.getpid()} {time.time()}'
    parent = subprocess.Popen([sys.executable, '-c', code, token], cwd=ROOT)
    deadline = time.monotonic() + 240
    while not (there := processes('# orphan ' + token)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert there
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    while processes('# orphan ' + token) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes('# orphan ' + token)


def test_no_sandbox_must_be_asked_for_and_warns_once():
    sandbox.warn_unprotected.cache_clear()
    with pytest.warns(UserWarning, match="sandbox='none'"):
        assert grade('def f(x):\n    return x + 1', TESTS, sandbox='none') == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert run('while True:\n    pass', ['1'], timeout=0.3, sandbox='none') == ('timeout', [None])


def test_many_answers_at_once():
    """64 answers with 3 tests each take 40 s of processor time at most, ours and theirs."""
    def used():
        return sum(sum(resource.getrusage(whose)[:2]) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    before = used()
    got = grade_many([(f'def f(x):\n    return x + {i % 4}', TESTS) for i in range(64)])
    assert [g.score for g in got] == [float(i % 4 == 1) for i in range(64)] and {g.status for g in got} == {'ok'}
    assert used() - before < 40


# ---------------------------------------------------------------------------------------------------------------------
# data sets

def test_pyfunc():
    train, val = made = make_problems(n=300, n_val=60, seed=0)
    assert (len(train), len(val)) == (300, 60) and make_problems(300, 60, 0) == made != make_problems(300, 60, 1)
    assert len({p['prompt'] for p in train + val}) == 360
    shown = grade_many([(p['answer'], p['tests']) for p in val[:15]])
    hidden = grade_many([(p['answer'], p['hidden_tests']) for p in val[:15]])
    assert set(shown + hidden) == {Grade(1.0, 'ok')}
    for problem in random.Random(0).sample(train, 8):
        assert not set(problem['tests']) & set(problem['hidden_tests']) and len(problem['tests']) >= 2 and len(problem['hidden_tests']) >= 3
        assert constant_passes(problem['tests']) is None
        assert all(test.removeprefix('assert ') in problem['prompt'] for test in problem['tests'])


def test_humaneval_records(capsys):
    problem = {'task_id': 'HumanEval/0', 'prompt': 'def f(x):\n    """ One more. """\n', 'entry_point': 'f',
               'canonical_solution': '    return x + 1\n', 'test': HUMANEVAL}
    loop = problem | {'task_id': 'HumanEval/1',
                      'test': 'def check(candidate):\n    for x in range(9):\n        assert candidate(x) == x + 1\n'}
    weak = problem | {'task_id': 'HumanEval/2', 'test': 'def check(candidate):\n    assert candidate(0)\n'}
    unsound = problem | {'task_id': 'HumanEval/3', 'canonical_solution': '    return x\n'}
    foreign = problem | {'task_id': 'HumanEval/4', 'test': 'import numpy\n' + HUMANEVAL}
    records = convert_humaneval([problem, loop, weak, unsound, foreign])
    assert [r['task_id'] for r in records] == ['HumanEval/0', 'HumanEval/1'] and problem['prompt'] in records[0]['prompt']
    assert grade(records[0]['answer'], records[0]['tests']) == 1
    said = 'left out 2 problems whose tests cannot be graded or a constant passes, and 1 whose own solution fails'
    assert said in capsys.readouterr().out


def test_mbpp_records():
    problem = {'task_id': 601, 'text': 'Write a function to add one.', 'code': 'def f(x):\r\n  return x + 1', 'test_setup_code': '',
               'test_list': TESTS, 'challenge_test_list': ['assert f(8) == 9']}
    weak = problem | {'task_id': 602, 'test_list': ['assert f(1) == 2', 'assert f(2) == 2'], 'code': 'def f(x):\n  return 2'}
    records = convert_mbpp([problem, weak, problem | {'code': 'def f(x):\n  return 1'}])
    assert len(records) == 1
    assert records[0]['tests'] == TESTS and records[0]['hidden_tests'] == ['assert f(8) == 9'] and '\r' not in records[0]['answer']
    assert 'Write a function to add one.' in records[0]['prompt'] and all(test in records[0]['prompt'] for test in TESTS)
