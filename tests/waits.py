"""
A config that stops a run where a test wants it: once a line is told that begins as WAIT_AT says, the run waits for the signal that the test
sends, or for the file WAIT_FOR. So it does not matter which of the two is faster.
"""
import os as _os
import sys as _sys
import time as _time

from runtime import ranks as _ranks


class _Patient:
    def __init__(self, out):
        self.out, self.line = out, ''

    def __getattr__(self, name):
        return getattr(self.out, name)

    def write(self, text):
        written = self.out.write(text)
        self.line += text
        if self.line.endswith('\n'):
            told, self.line = self.line, ''
            if told.startswith(_os.environ.get('WAIT_AT', '\0')):
                self.out.flush()
                while not (_ranks.stop_signals or _os.path.exists(_os.environ.get('WAIT_FOR', ''))):
                    _time.sleep(0.01)
        return written


_sys.stdout = _Patient(_sys.stdout)
