"""The process that is kept for strangers' work: what is over its time or size ends with it, and the next question is answered."""
import os
import signal
import threading

import pytest

from formats.chat import RENDERER
from formats.kept import Kept

SETUP = '''
import os, time
def answer(kind, x):
    if kind == 'exit': os._exit(x)
    if kind == 'print': print('noise', flush=True)
    if kind == 'forever':
        while True: pass
    if kind == 'sleep': time.sleep(x)
    if kind == 'memory': x = len(bytearray(x))
    if kind == 'long': return 'x' * x
    if kind == 'raise': raise KeyError(x)
    if kind == 'deep': return (lambda f: f(f))(lambda f: f(f))
    return x
'''


@pytest.fixture(scope='module')
def kept():
    kept = Kept(SETUP, seconds=30, memory=1 << 30, longest=1 << 20)
    yield kept
    kept.stop()


def test_answers_as_json_has_them(kept):
    for x in (1, None, [1, {'a': 'ü\u2028\n'}], 'x' * 300_000, float('inf')):
        assert kept.ask('same', x) == x
    assert kept.ask('print', 3) == 3  # what it prints is no answer


@pytest.mark.parametrize('kind, x, error, words', [
    ('forever', 0, TimeoutError, 'more than 1 s'), ('sleep', 60, TimeoutError, 'more than 1 s'),
    ('memory', 2 << 30, ValueError, 'MemoryError'),
    ('long', 2 << 20, ValueError, 'too much'), ('raise', 'key', ValueError, "KeyError: 'key'"), ('deep', 0, ValueError, 'RecursionError'),
    ('exit', 0, ValueError, 'too much')])
def test_what_goes_wrong_is_an_error_and_the_next_question_is_answered(kept, monkeypatch, kind, x, error, words):
    with monkeypatch.context() as patched, pytest.raises(error, match=words):
        patched.setattr(kept, 'seconds', 1 if error is TimeoutError else 30)
        kept.ask(kind, x)
    assert kept.ask('same', 7) == 7


def test_threads_and_forks(kept):
    got = []
    threads = [threading.Thread(target=lambda i=i: got.append(kept.ask('same', i) == i)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [True] * 20
    ours = kept.process.pid
    child = os.fork()
    if not child:
        os._exit(0 if kept.ask('same', 1) == 1 and kept.process.pid != ours else 1)
    assert os.waitpid(child, 0)[1] == 0 and kept.ask('same', 2) == 2 and kept.process.pid == ours


def test_a_process_that_does_not_start():
    with pytest.raises(RuntimeError, match="does not start that runs: 'import no_such_module'"):
        Kept('import no_such_module', seconds=1).ask(1)


def test_a_killed_process_is_replaced(kept):
    os.kill(kept.process.pid, signal.SIGKILL)
    kept.process.wait()
    assert kept.ask('same', 1) == 1


@pytest.mark.parametrize('template, words', [
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", 'more than'),
    ("{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}", 'MemoryError'),
    ("{{ 'a' * 10**10 }}", 'MemoryError'), ("{{ 'a'|center(10**8) }}", 'too much memory'), ("{{ '%2000000000d' % 1 }}", 'MemoryError')])
def test_a_chat_template_that_does_not_end(monkeypatch, template, words):
    with monkeypatch.context() as patched, pytest.raises((ValueError, TimeoutError), match=words):
        patched.setattr(RENDERER, 'seconds', 1 if words == 'more than' else 30)
        RENDERER.ask(template, [], {})
    assert RENDERER.ask('{{ messages[0] }}', ['hi'], {}) == 'hi'
