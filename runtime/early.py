"""
What a program imports first: Ctrl-C while torch is imported, which takes seconds, ends it in one line, until
configure() calls over().
"""
import os
import signal
import sys


def interrupted(*_):
    os.write(2, b'interrupted before anything was begun\n')
    os._exit(130)


def over():
    if signal.getsignal(signal.SIGINT) is interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Where another folder's program imports one of ours, Ctrl-C is its own affair; of `python -m` argv has no name.
root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
ours = sys.argv[:1] == ['-m'] or os.path.realpath(sys.argv[0]).startswith(root + os.sep)
if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupted)
