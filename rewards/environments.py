"""
What answers a completion that asks: a function environment(text, **record), or one of ENVIRONMENTS by name.

It gets the completion when the policy ends a turn, by an end token or a string of `stop`. What it returns is
appended, and the policy goes on: with '' it just goes on, with None, or '' after an end token, it is done. It
names columns of the record as rewards do, and `turn`, what was written since the last answer. It may be
async; with `batched = True` it gets lists, all that wait.
"""
import itertools
import re
import textwrap
import threading
import time
from decimal import Decimal
from fractions import Fraction

from rewards.code import FENCE
from rewards.numerals import Reader, Unreadable, tokenize
from rewards.reward import Reward, hint
from sandbox import check_sandbox, processors, run


class Environment(Reward):
    """
    A function that answers completions. Its attributes, if it has them: `stop`, the setting's default, and
    `says`, the characters that a vocabulary must have.
    """
    kind = 'environment'

    def __post_init__(self):
        super().__post_init__()
        self.stop, self.says = getattr(self.function, 'stop', ()), getattr(self.function, 'says', '')

    def check(self, records):
        """Raises ValueError where a record lacks what the function takes, or it takes no text first."""
        if self.as_trl or 'ids' in self.form:
            raise ValueError(f"{self}: its first argument must be the text")
        self.check_columns(dict.fromkeys(itertools.chain(['turn'], *records)))
        for i, record in enumerate(records):
            if missing := self.missing(record | {'turn': ''}):
                raise ValueError(f"{self} needs {missing[0]!r}, and prompt {i} has none")

    def answers(self, texts, records, seconds):
        """What the function returns for each of n texts, with its record and turn, or what it raises."""
        fields = list(map(self.fields_of, records))
        jobs = list(zip(texts, fields, strict=True))
        if self.whole:
            columns = dict.fromkeys(itertools.chain(*fields))
            for name in columns:
                columns[name] = [row.get(name) for row in fields]
            jobs = [(texts, columns)]
        answers = in_time(self.answer, jobs, seconds, getattr(self.function, 'at_once', 64))
        if self.whole:
            return answers[0] if isinstance(answers[0], list) else answers * len(texts)
        return answers

    def answer(self, text, fields):
        try:
            return self.call(text, None, fields)
        except Exception as e:  # call has named it
            return e


def in_time(function, jobs, seconds, at_once):
    """
    [function(*job) for job in jobs], in threads, at_once of them together; a TimeoutError for those that take
    longer. Their threads cannot be ended, and nothing waits for them.
    """
    late = TimeoutError(f"the environment took longer than environment_timeout, {seconds:g} s")
    values = [late] * len(jobs)

    def work(i):
        values[i] = function(*jobs[i])

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(jobs))]
    for start in range(0, len(jobs), at_once):
        together, until = threads[start:start + at_once], time.monotonic() + seconds
        for thread in together:
            thread.start()
        for thread in together:
            thread.join(max(0.0, until - time.monotonic()))
    return list(values)


def find_environment(given):
    """The Environment of a function or a name. Raises ValueError, and SandboxError for Python without one."""
    if isinstance(given, str) and given not in ENVIRONMENTS:
        raise ValueError(f"there is no environment {given!r}; {hint(given, ENVIRONMENTS)}")
    function = ENVIRONMENTS.get(given, given)
    if function is python:
        check_sandbox()
    return Environment(function.__name__, function, batched=getattr(function, 'batched', False))


# ---- those by name

def calculator(text, *, turn):
    """
    <<57*43>> is answered 2451: exactly, or with 12 digits where it is no whole number, never as 1e+60. The
    answer is 'error' to what is no such arithmetic, and beyond 10^50.
    """
    calls = re.findall(r'<<([^<>]*)>>', turn)
    if not calls:
        return ''
    try:
        value = Reader(tokenize(calls[-1])).number()
    except (Unreadable, OverflowError):
        return 'error'
    if abs(value) >= 10 ** 50 or 0 < abs(value) < Fraction(1, 10 ** 50):
        return 'error'
    return str(value.numerator) if value.denominator == 1 else f"{Decimal(f'{float(value):.12g}'):f}"


# It runs in the sandbox. What code does to it is the code's own loss.
SESSION = '''
import ast, contextlib, io, traceback

def answer(source):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            body, names = ast.parse(source).body, {'__name__': '__main__'}
            exec(compile(ast.Module(body[:-1], []), '<code>', 'exec'), names)
            exec(compile(ast.Interactive(body[-1:]), '<code>', 'single'), names)
        except BaseException as e:
            print(*traceback.format_exception_only(e), sep='')
    return shown.getvalue()
'''


def python(text, *, turn):
    """
    Runs the turn's last block, ```python or bare, in a new sandbox, for 2 seconds at most. The answer is a
    block ```output of what it printed and its last value or its error, 2,000 characters at most.
    """
    blocks = list(FENCE.finditer(turn))
    closed = blocks and blocks[-1][4].strip() and blocks[-1][0].rstrip().endswith(blocks[-1][2])
    if not closed or not re.fullmatch('py.*|', blocks[-1][3].lower()):
        return ''
    status, (result,) = run(SESSION, [f'answer({textwrap.dedent(blocks[-1][4])!r})[:2001]'])
    shown = 'error: no end after 2 s' if status == 'timeout' else 'error: the process ended early'
    if result:
        shown = str(result[1])  # whatever it is, if code has replied by itself
        shown = shown[:2000] + ' ...' * (len(shown) > 2000)
    return f'```output\n{shown.rstrip()}\n```\n'


calculator.stop, python.stop = ('>>',), ('```\n',)
calculator.says = '-.0123456789error'
python.at_once = processors()
ENVIRONMENTS = {'calculator': calculator, 'python': python}
