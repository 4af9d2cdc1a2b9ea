"""Imported first by a program: until configure() is called Ctrl-C ends it in one line, also in imports."""
import os
import signal
import sys


def interrupted(*_):
    os.write(2, b'interrupted before anything was begun\n')
    os._exit(130)


def over():
    if signal.getsignal(signal.SIGINT) is interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
PROGRAMS = [os.path.join(ROOT, name) for name in ('train_grpo.py', 'sample.py', 'judge.py')]
ours = sys.argv[0] == '-m' or os.path.realpath(sys.argv[0]) in PROGRAMS  # with -m it has no name yet
if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupted)
