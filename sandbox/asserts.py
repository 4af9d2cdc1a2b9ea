"""
Test statements taken apart, so that who answers them never learns what is expected: `assert f(2) == 3 + 1` is f(2), for the answer's process, a comparison, made here,
and 3 + 1, for a process without the answer. sandbox.py runs both.
"""
import ast
import builtins
import collections
import math
import operator

# A statement of a test set, taken apart. call: the expression for the answer's process; check: a name in CHECKS; expected: the
# expression for the process without the answer, later its value. check is None for what only prepares, in both processes.
Step = collections.namedtuple('Step', 'call check expected')


def equal(a, b):
    """a == b, as floats that differ by rounding alone, inside lists, tuples and dicts too."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or (float in (type(a), type(b)) and math.isclose(a, b))
    if type(a) is type(b) and type(a) in (list, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if type(a) is type(b) is dict:
        return a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())
    return a == b


def near(got, wanted):
    """As math.isclose; wanted: (value, relative, absolute tolerance)."""
    value, relative, absolute = wanted
    return got == value or abs(got - value) <= max(relative * max(abs(got), abs(value)), absolute)


CHECKS = {'==': equal, '!=': lambda got, wanted: not equal(got, wanted), '<': operator.lt, '<=': operator.le, '>': operator.gt, '>=': operator.ge, 'near': near,
          'is': lambda got, wanted: type(got) is type(wanted) and got == wanted, 'is not': lambda got, wanted: not (type(got) is type(wanted) and got == wanted),
          'in': lambda got, wanted: got in wanted, 'not in': lambda got, wanted: got not in wanted,
          'has': lambda got, wanted: wanted in got, 'has not': lambda got, wanted: wanted not in got}
SYMBOLS = {ast.Eq: '==', ast.NotEq: '!=', ast.Lt: '<', ast.LtE: '<=', ast.Gt: '>', ast.GtE: '>=', ast.Is: 'is', ast.IsNot: 'is not', ast.In: 'in', ast.NotIn: 'not in'}
TURNED = {'==': '==', '!=': '!=', '<': '>', '<=': '>=', '>': '<', '>=': '<=', 'is': 'is', 'is not': 'is not', 'in': 'has', 'not in': 'has not'}


def bound_names(node):
    """The names that a statement or expression gives a value to."""
    names = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
            names.add(n.id)
        elif isinstance(n, ast.FunctionDef):
            names.add(n.name)
        elif isinstance(n, ast.arg):
            names.add(n.arg)
        elif isinstance(n, ast.alias):
            names.add(n.asname or n.name.split('.')[0])
    return names


def asked_names(node, known):
    """The names in it that only the answer can define: not bound in it, not known."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - bound_names(node) - known


def compare(left, symbol, right, asks):
    """left symbol right as a Step when only one side asks the answer, else None."""
    if asks(left) and not asks(right):
        return Step(ast.unparse(left), symbol, ast.unparse(right))
    if asks(right) and not asks(left):
        return Step(ast.unparse(right), TURNED[symbol], ast.unparse(left))


def compare_near(a, b, relative, absolute, asks):
    """The same for |a - b| within tolerances, which are source."""
    step = compare(a, '==', b, asks)
    return step and Step(step.call, 'near', f'({step.expected}, {relative}, {absolute})')


def is_distance(node):
    """abs(a - b)"""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == 'abs' and len(node.args) == 1 and isinstance(node.args[0], ast.BinOp) and isinstance(node.args[0].op, ast.Sub)


def split(test, asks):
    """The Steps for a condition, one for each part that `and` joins. What comes apart in no other way is asked as a whole, and True is expected."""
    if not asks(test):
        return []  # `assert True` and its like would be given away
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return [step for value in test.values for step in split(value, asks)]
    step = None
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        step = Step(f'bool({ast.unparse(test.operand)})', 'is', 'False')
    elif isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, symbol, right = test.left, SYMBOLS[type(test.ops[0])], test.comparators[0]
        if symbol in ('<', '<=') and is_distance(left) and not asks(right):
            step = compare_near(left.args[0].left, left.args[0].right, 0, ast.unparse(right), asks)
        step = step or compare(left, symbol, right, asks)
    elif isinstance(test, ast.Call) and ast.unparse(test.func) in ('isclose', 'math.isclose') and len(test.args) == 2:
        tolerance = {'rel_tol': '1e-09', 'abs_tol': '0.0'} | {k.arg: ast.unparse(k.value) for k in test.keywords}
        step = compare_near(*test.args, tolerance['rel_tol'], tolerance['abs_tol'], asks)
    return [step or Step(f'bool({ast.unparse(test)})', 'is', 'True')]


def as_asserts(tests, entry_point=None):
    """
    tests as a list of statements: asserts, and the imports, assignments and functions that they need. tests: such a list, one
    text with several, or HumanEval's: a function check(candidate) full of asserts, with the name of the function under test as
    entry_point or in a call check(name) at the end. Raises ValueError for what cannot be graded: asserts inside loops,
    conditions and the like, and statements other than asserts that call the answer.
    """
    try:
        body = ast.parse(tests if isinstance(tests, str) else '\n'.join(tests)).body
    except (SyntaxError, ValueError) as e:
        raise ValueError(f"these tests are not Python ({e}): {str(tests)[:200]!r}") from None
    check = next((s for s in body if isinstance(s, ast.FunctionDef) and s.name == 'check'), None)
    if check:
        calls = [s for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call) and ast.unparse(s.value.func) == 'check']
        entry_point = entry_point or (calls and ast.unparse(calls[0].value.args[0]))
        if not entry_point or len(check.args.args) != 1:
            raise ValueError("the tests are a function check: it must take one argument, and entry_point or a line check(name) must say what that is")
        for node in ast.walk(check):
            if isinstance(node, ast.Name) and node.id == check.args.args[0].arg:
                node.id = entry_point
        body = [s for s in body if s is not check and s not in calls] + check.body
    keep = [s for s in body if not isinstance(s, ast.Pass) and not (isinstance(s, ast.Expr) and isinstance(s.value, (ast.Constant, ast.Name)))]  # without docstrings
    statements = [ast.unparse(ast.Assert(s.test) if isinstance(s, ast.Assert) else s) for s in keep]
    take_apart(statements)
    return statements


def take_apart(statements):
    """statements: as_asserts' list. Returns (Steps, the names that the answer must define). Raises ValueError as as_asserts does."""
    known, steps, names = set(dir(builtins)), [], set()
    asks = lambda node: asked_names(node, known)
    for statement in ast.parse('\n'.join(statements)).body:
        if isinstance(statement, ast.Assert):
            steps += split(statement.test, asks)
            names |= asks(statement.test)
        elif isinstance(statement, (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef)) and not asks(statement):
            known |= {statement.name} if isinstance(statement, ast.FunctionDef) else set().union(*map(bound_names, getattr(statement, 'targets', [statement])))  # not what is local inside
            prepare = f'exec({ast.unparse(statement)!r})'
            steps.append(Step(prepare, None, prepare))
        else:
            why = f"it calls {' and '.join(sorted(asks(statement)))} outside a plain assert" if asks(statement) else "only asserts, imports, assignments and functions can be"
            raise ValueError(f"these tests cannot be graded, for {ast.unparse(statement)[:200]!r}: {why}")
    if not any(step.check for step in steps):
        raise ValueError(f"these tests cannot be graded: no assert calls a function of the answer: {statements}")
    return steps, names


def passes(step, result):
    """Whether a result from the answer's process is the one expected."""
    try:
        return result is not None and result[0] == 'ok' and bool(CHECKS[step.check](result[1], step.expected))
    except (TypeError, ValueError, OverflowError):  # 'a' < 1, or math.isclose(10**400, 1.0)
        return False


def share_passed(steps, results):
    verdicts = [passes(step, result) for step, result in zip(steps, results) if step.check]
    return sum(verdicts) / len(verdicts)
