"""What a process in the sandbox may do: the system calls of seccomp, and the files of Landlock."""
import ctypes
import functools
import os
import platform
import struct
import sys
import sysconfig

# The only system calls that pass, by their numbers on (x86-64, aarch64). All else fails with EPERM.
SYSCALLS = dict(
    # files that are open, and looking at others; openat has a rule of its own in seccomp_filter
    read=(0, 63), write=(1, 64), close=(3, 57), lseek=(8, 62), pread64=(17, 67), getdents64=(217, 61),
    fstat=(5, 80), stat=(4, None), lstat=(6, None), newfstatat=(262, 79), statx=(332, 291),
    readlink=(89, None), readlinkat=(267, 78), getcwd=(79, 17),
    # memory
    mmap=(9, 222), mprotect=(10, 226), munmap=(11, 215), mremap=(25, 216), brk=(12, 214), madvise=(28, 233),
    # clocks, waiting, randomness
    clock_gettime=(228, 113), clock_getres=(229, 114), gettimeofday=(96, 169), time=(201, None),
    nanosleep=(35, 101), clock_nanosleep=(230, 115), select=(23, None), pselect6=(270, 72),
    restart_syscall=(219, 128), getrandom=(318, 278),
    # itself: handlers for its own signals, locks, who it is, its end
    rt_sigaction=(13, 134), rt_sigprocmask=(14, 135), rt_sigreturn=(15, 139), sigaltstack=(131, 132),
    futex=(202, 98), sched_yield=(24, 124), sched_getaffinity=(204, 123), getpid=(39, 172), gettid=(186, 178),
    getuid=(102, 174), geteuid=(107, 175), getgid=(104, 176), getegid=(108, 177), getrusage=(98, 165),
    times=(100, 153), uname=(63, 160), sysinfo=(99, 179), exit=(60, 93), exit_group=(231, 94))
# column of SYSCALLS, AUDIT_ARCH of linux/audit.h, openat, capset
MACHINES = {'x86_64': (0, 0xC000003E, 257, 126), 'aarch64': (1, 0xC00000B7, 56, 91)}
CREATE_RULESET, ADD_RULE = 444, 445  # Landlock's system calls, the same on all machines
READ_FILE, READ_DIR = 1 << 2, 1 << 3
WAY_OUT = "in a container of its own, sandbox='none' runs code without it"


class SandboxError(RuntimeError):
    """The sandbox could not be put up, so the code was not run: nothing is said about the code."""


def machine():
    name = platform.machine()
    if sys.platform != 'linux' or name not in MACHINES:
        wanted = ' or '.join(MACHINES)
        raise SandboxError(f"the sandbox is for Linux on {wanted}, not {sys.platform} on {name}; {WAY_OUT}")
    return MACHINES[name]


@functools.cache
def seccomp_filter():
    """The BPF program (linux/filter.h, seccomp(2)) as bytes."""
    column, arch, openat, _ = machine()
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    ALLOW, EPERM, KILL = 0x7fff0000, 0x00050001, 0x80000000
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    # (operation, skip if so, if not, value); seccomp_data: nr at byte 0, arch at 4, third argument at 32
    program = [(load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, KILL),
               (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (answer, 0, 0, KILL)]  # x32 has other numbers
    for numbers in SYSCALLS.values():
        if numbers[column] is not None:
            program += [(equal, 0, 1, numbers[column]), (answer, 0, 0, ALLOW)]
    program += [(equal, 1, 0, openat), (answer, 0, 0, EPERM),
                (load, 0, 0, 32), (any_bit, 0, 1, writing), (answer, 0, 0, EPERM), (answer, 0, 0, ALLOW)]
    return b''.join(struct.pack('HBBI', *instruction) for instruction in program)


def readable_paths():
    """[(path, its rights)]: standard and shared libraries without installed packages, and harmless files."""
    folders = ('/lib', '/lib64', '/usr/lib', '/usr/lib64', os.path.join(sys.base_prefix, 'lib'))
    libraries = {os.path.realpath(path) for path in folders}
    shared = os.path.dirname(sysconfig.get_config_var('DESTSHARED') or '/')
    stdlib = {sysconfig.get_path('stdlib'), shared} - {'/'}  # two folders on some machines
    paths = [(path, READ_DIR) for path in stdlib] + [('/usr/share/zoneinfo', READ_DIR | READ_FILE)]
    for folder in filter(os.path.isdir, sorted(stdlib | libraries)):
        for name in sorted(os.listdir(folder)):
            other_python = folder in libraries and name.startswith('python')
            if name not in ('site-packages', 'dist-packages') and not other_python:
                paths.append((os.path.join(folder, name), READ_FILE))
    return paths + [(path, READ_FILE) for path in ('/etc/ld.so.cache', '/dev/null', '/dev/urandom')]


def syscall(*arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))


def last_error():
    return os.strerror(ctypes.get_errno())


@functools.cache
def landlock_ruleset():
    """
    The descriptor of a ruleset that each process inherits and puts into force: to read readable_paths, and
    nothing else. See landlock(7).
    """
    version = syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        raise SandboxError(f"no Landlock here ({last_error()}): it takes Linux 5.13 with it on; {WAY_OUT}")
    rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    # the rights, a bit each, that only a rule gives: for files, for TCP, for signals and abstract sockets
    attributes = [(1 << rights) - 1] + [3] * (version >= 4) + [3] * (version >= 6)
    ruleset = syscall(CREATE_RULESET, struct.pack(f'{len(attributes)}Q', *attributes), 8 * len(attributes), 0)
    if ruleset < 0:
        raise SandboxError(f"Landlock gives no ruleset: {last_error()}")
    for path, right in readable_paths():
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # not on this machine, or not for this user
            continue
        worked = syscall(ADD_RULE, ruleset, 1, struct.pack('<Qi', right, fd), 0) == 0
        os.close(fd)
        if not worked:
            raise SandboxError(f"Landlock refuses a rule for {path}: {last_error()}")
    return ruleset
