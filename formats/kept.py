"""
Work on what strangers wrote, bounded: a Python process that is kept and answers questions, each within a time
and a size. What is over them ends with its process, and the next question starts another. It is asked from
any thread, and a fork has its own.
"""
import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STARTING = 60.0  # seconds: it imports
LOOP = '''
import contextlib, json, resource, sys
sys.path.insert(0, {root!r})
{setup}
with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit
    resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
said, sys.stdout = sys.stdout, sys.stderr
print('ready', file=said, flush=True)
for line in sys.stdin:
    resource.setrlimit(resource.RLIMIT_CPU, (int(sum(resource.getrusage(0)[:2]) + {seconds} + 2), -1))
    try:
        told = [answer(*json.loads(line)), None]
    except BaseException as e:
        told = [None, f'{{type(e).__name__}}: {{e}}'[:500]]
    print(json.dumps(told), file=said, flush=True)
'''


class Kept:
    """answer(...) as `setup`, a piece of Python, defines it: asked in the process, JSON in and out."""

    def __init__(self, setup, seconds, memory=2 << 30, longest=64 << 20):
        self.code = LOOP.format(root=ROOT, setup=setup, seconds=int(seconds), memory=memory)
        self.setup, self.seconds, self.longest = setup, seconds, longest
        self.forget()
        os.register_at_fork(after_in_child=self.forget)
        atexit.register(self.stop)

    def forget(self):
        """In a fork the process, its pipes and the lock are the parent's."""
        self.process, self.lock = None, threading.Lock()

    def ask(self, *question):
        """What answer(*question) returns. Raises ValueError where it raised, TimeoutError, RuntimeError."""
        sent = json.dumps(question, default=str).encode() + b'\n'
        with self.lock:
            try:
                try:
                    told = self.exchange(sent)
                except BrokenPipeError:  # it was killed while it had nothing to do
                    self.stop()
                    told = self.exchange(sent)
            except BaseException:
                self.stop()
                raise
        answer, trouble = json.loads(told)
        if trouble:
            raise ValueError(trouble)
        return answer

    def start(self):
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL}
        command = [sys.executable, '-P', '-c', self.code]  # no module of the folder where we are
        self.process = subprocess.Popen(command, bufsize=0, start_new_session=True, **pipes)
        try:
            self.read(STARTING)
        except (ValueError, TimeoutError):
            raise RuntimeError(f"a process does not start that runs: {self.setup.strip()[:60]!r}") from None

    def exchange(self, sent):
        if self.process is None or self.process.poll() is not None:
            self.start()
        while sent:
            sent = sent[self.process.stdin.write(sent):]
        return self.read(self.seconds)

    def read(self, seconds):
        """A line of the process's. Raises TimeoutError, ValueError where it ended or said too much."""
        line, deadline = bytearray(), time.monotonic() + seconds
        while not line.endswith(b'\n'):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = self.process.stdout.read(1 << 16) if ready else None
            if part is None:
                raise TimeoutError(f"it takes more than {seconds:g} s")
            line += part
            if not part or len(line) > self.longest:
                raise ValueError("it takes too much memory")
        return line

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None
