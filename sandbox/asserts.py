"""
Test statements taken apart, so that the process with the code never learns what is expected: `assert f(2) ==
3 + 1` is f(2) for that process, a comparison made here, and 3 + 1 for a process without the code.
sandbox/__init__.py runs both.
"""
import ast
import builtins
import collections
import math
import operator

# A statement of a test set, taken apart. call: the expression for the process with the code; check: a name in
# CHECKS, or None for what only prepares, in both processes; expected: the expression for the process without
# the code, later its value.
Step = collections.namedtuple('Step', 'call check expected')


# ---- comparing

def equal(a, b):
    """a == b, as floats that differ by rounding alone, inside lists, tuples and dicts too."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or (float in (type(a), type(b)) and math.isclose(a, b))
    if type(a) is type(b) and type(a) in (list, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if type(a) is type(b) is dict:
        return a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())
    return a == b


def same(got, wanted):
    return type(got) is type(wanted) and got == wanted


def near(got, wanted):
    """As math.isclose; wanted: (value, relative, absolute tolerance)."""
    value, relative, absolute = wanted
    return got == value or abs(got - value) <= max(relative * max(abs(got), abs(value)), absolute)


CHECKS = {'==': equal, 'is': same, 'near': near, '<': operator.lt, '<=': operator.le, '>': operator.gt,
          '>=': operator.ge, 'has': operator.contains, 'in': lambda got, wanted: got in wanted}
NEGATED = {'!=': '==', 'is not': 'is', 'not in': 'in', 'has not': 'has'}
SYMBOLS = {ast.Eq: '==', ast.NotEq: '!=', ast.Lt: '<', ast.LtE: '<=', ast.Gt: '>', ast.GtE: '>=',
           ast.Is: 'is', ast.IsNot: 'is not', ast.In: 'in', ast.NotIn: 'not in'}
TURNED = {'<': '>', '<=': '>=', '>': '<', '>=': '<=', 'in': 'has', 'not in': 'has not'}


def passes(step, result):
    """Whether a result from the process with the code is the one expected."""
    if result is None or result[0] != 'ok':
        return False
    try:
        holds = bool(CHECKS[NEGATED.get(step.check, step.check)](result[1], step.expected))
    except (TypeError, ValueError, OverflowError):  # 'a' < 1, or math.isclose(10**400, 1.0)
        return False
    return holds != (step.check in NEGATED)


def share_passed(steps, results):
    verdicts = [passes(step, result) for step, result in zip(steps, results, strict=True) if step.check]
    return sum(verdicts) / len(verdicts)


# ---- taking apart

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


def unknown_names(node, known):
    """The names in it that only the code under test can define: not bound in it, not known."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - bound_names(node) - known


def compare(left, symbol, right, known):
    """left symbol right as a Step when only one side needs the code, else None."""
    needs = bool(unknown_names(left, known)), bool(unknown_names(right, known))
    if needs == (True, False):
        return Step(ast.unparse(left), symbol, ast.unparse(right))
    if needs == (False, True):
        return Step(ast.unparse(right), TURNED.get(symbol, symbol), ast.unparse(left))


def compare_near(a, b, relative, absolute, known):
    """The same for |a - b| within tolerances, which are source."""
    step = compare(a, '==', b, known)
    return step and Step(step.call, 'near', f'({step.expected}, {relative}, {absolute})')


def is_call(node, *names):
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


def difference(node):
    """The a - b of abs(a - b), or None."""
    if is_call(node, 'abs') and len(node.args) == 1:
        inside = node.args[0]
        return inside if isinstance(inside, ast.BinOp) and isinstance(inside.op, ast.Sub) else None


def split_comparison(test, known):
    left, symbol, right = test.left, SYMBOLS[type(test.ops[0])], test.comparators[0]
    distance = difference(left) if symbol in ('<', '<=') else None
    step = None
    if distance and not unknown_names(right, known):
        step = compare_near(distance.left, distance.right, 0, ast.unparse(right), known)
    return step or compare(left, symbol, right, known)


def split(test, known):
    """
    The Steps for a condition, one for each part that `and` joins. What does not come apart must be True.
    """
    if not unknown_names(test, known):
        return []  # `assert True` and its like would be given away
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return [step for value in test.values for step in split(value, known)]
    step = None
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        step = Step(f'bool({ast.unparse(test.operand)})', 'is', 'False')
    elif isinstance(test, ast.Compare) and len(test.ops) == 1:
        step = split_comparison(test, known)
    elif is_call(test, 'isclose', 'math.isclose') and len(test.args) == 2:
        given = {k.arg: ast.unparse(k.value) for k in test.keywords}
        relative, absolute = given.get('rel_tol', '1e-09'), given.get('abs_tol', '0.0')
        step = compare_near(*test.args, relative, absolute, known)
    return [step or Step(f'bool({ast.unparse(test)})', 'is', 'True')]


def does_nothing(statement):
    """pass, a docstring, a bare name"""
    bare = isinstance(statement, ast.Expr) and isinstance(statement.value, (ast.Constant, ast.Name))
    return bare or isinstance(statement, ast.Pass)


PREPARING = (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef)


def as_asserts(tests, entry_point=None):
    """
    tests as a list of statements: asserts, and the imports, assignments and functions that they need. tests:
    such a list, one text with several, or HumanEval's: a function check(candidate) full of asserts, with the
    name of the function under test as entry_point or in a call check(name) at the end. Raises ValueError for
    what cannot be graded: asserts inside loops, conditions and the like, and statements other than asserts
    that call the code.
    """
    try:
        body = ast.parse(tests if isinstance(tests, str) else '\n'.join(tests)).body
    except (SyntaxError, ValueError) as e:
        raise ValueError(f"these tests are not Python ({e}): {str(tests)[:200]!r}") from None
    check = next((s for s in body if isinstance(s, ast.FunctionDef) and s.name == 'check'), None)
    if check:
        calls = [s for s in body if isinstance(s, ast.Expr) and is_call(s.value, 'check')]
        if calls and not entry_point:
            entry_point = ast.unparse(calls[0].value.args[0])
        if not entry_point or len(check.args.args) != 1:
            raise ValueError("a function check takes one argument, from entry_point or a line check(name)")
        for node in ast.walk(check):
            if isinstance(node, ast.Name) and node.id == check.args.args[0].arg:
                node.id = entry_point
        body = [s for s in body if s is not check and s not in calls] + check.body
    statements = []
    for s in body:
        if isinstance(s, ast.Assert):
            s.msg = None
        if not does_nothing(s):
            statements.append(ast.unparse(s))
    take_apart(statements)
    return statements


def take_apart(statements):
    """(Steps, the names that the code must define) of as_asserts' list. Raises ValueError as that does."""
    known, steps, names = set(dir(builtins)), [], set()
    for statement in ast.parse('\n'.join(statements)).body:
        unknown = unknown_names(statement, known)
        if isinstance(statement, ast.Assert):
            steps += split(statement.test, known)
            names |= unknown_names(statement.test, known)
        elif isinstance(statement, PREPARING) and not unknown:
            if isinstance(statement, ast.FunctionDef):
                known.add(statement.name)  # not what is local in it
            else:
                known = known.union(*map(bound_names, getattr(statement, 'targets', [statement])))
            prepare = f'exec({ast.unparse(statement)!r})'
            steps.append(Step(prepare, None, prepare))
        else:
            why = "only asserts, imports, assignments and functions can be"
            if unknown:
                why = f"it calls {' and '.join(sorted(unknown))} outside a plain assert"
            raise ValueError(f"these tests cannot be graded, for {ast.unparse(statement)[:200]!r}: {why}")
    if not any(step.check for step in steps):
        raise ValueError(f"these tests cannot be graded: no assert calls the code: {statements}")
    return steps, names
