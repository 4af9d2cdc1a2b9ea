"""
The program of the process that runs model-written code. It locks itself in, says 'ready', and gets the code,
then the calls: each a token and a length of 8 characters, and the source. It replies to each with a line: the
token and the value as JSON, or 'error' and the exception's name.
"""
import ctypes
import json
import os
import resource
import struct
import sys


def lock_in(job, channel):
    """Put up every layer of the job, or say which one failed and end."""
    libc, number = ctypes.CDLL(None, use_errno=True), ctypes.c_long

    def need(worked, layer):
        if not worked:
            os.write(channel, f'{layer} failed: {os.strerror(ctypes.get_errno())}\n'.encode())
            os._exit(1)
    for name, limit in job['limits'].items():
        resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (limit, limit))
    dies_too = libc.prctl(1, number(9), 0, 0, 0) == 0  # when the parent ends
    need(dies_too and os.getppid() == job['parent'], 'PR_SET_PDEATHSIG')
    if not job['filter']:
        return
    # not dumpable, as a core pattern that is a pipe ignores RLIMIT_CORE
    need(libc.prctl(4, number(0), 0, 0, 0) == 0, 'PR_SET_DUMPABLE')
    need(libc.prctl(38, number(1), number(0), number(0), number(0)) == 0, 'PR_SET_NO_NEW_PRIVS')
    need(libc.syscall(number(446), number(job['ruleset']), number(0)) == 0, 'Landlock')  # restrict_self
    os.close(job['ruleset'])
    header = struct.pack('Ii', 0x20080522, 0)  # version 3, this process
    need(libc.syscall(number(job['capset']), header, bytes(24)) == 0, 'capset')  # no capability
    code = bytes.fromhex(job['filter'])
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack('HxxxxxxP', len(code) // 8, ctypes.addressof(instructions))
    need(libc.prctl(22, number(2), program, 0, 0) == 0, 'seccomp')


def main():
    job = json.loads(sys.stdin.buffer.readline())
    channel, null = os.dup(0), os.open('/dev/null', os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    lock_in(job, channel)

    def say(head, content):
        os.write(channel, head + json.dumps(content).encode() + b'\n')

    def compiled(mode):
        return compile(take(int(take(8), 16)).decode('utf-8', 'surrogatepass'), f'<{mode}>', mode)
    take = open(channel, 'rb').read
    candidate = type(sys)('candidate')  # a module, as dataclasses and the like look for one
    sys.modules['candidate'] = candidate
    say(b'', 'ready')
    # A token lies on the interpreter's stack while the code runs: it would find a variable, and reply itself.
    try:
        say(take(8), exec(compiled('exec'), candidate.__dict__))
    except BaseException as e:
        say(b'error', type(e).__name__)
        os._exit(0)
    while True:  # until the parent ends it
        try:
            say(take(8), eval(compiled('eval'), candidate.__dict__))
        except BaseException as e:
            say(b'error', type(e).__name__)


if __name__ == '__main__':
    main()
