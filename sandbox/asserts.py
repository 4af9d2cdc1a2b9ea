"""Test statements taken apart, so that the process with the code never learns what is expected."""
import ast
import builtins
import collections
import math
import operator

# call: the expression for the process with the code; expected: the one for the process without, later its
# value; check(got, wanted): do they agree? It is None for what prepares, in both processes.
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
    """math.isclose for other than floats too. wanted: (value, relative, absolute tolerance)."""
    value, relative, absolute = wanted
    return got == value or abs(got - value) <= max(relative * max(abs(got), abs(value)), absolute)


def negated(check):
    return lambda got, wanted: not check(got, wanted)


def contained(got, wanted):
    return got in wanted


CHECKS = {ast.Eq: equal, ast.NotEq: negated(equal), ast.Is: same, ast.IsNot: negated(same), ast.In: contained,
          ast.NotIn: negated(contained), ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
          ast.GtE: operator.ge}


def passes(step, result):
    """Is a result from the process with the code the one expected?"""
    if result is None or result[0] != 'ok':
        return False
    try:
        return bool(step.check(result[1], step.expected))
    except (TypeError, ValueError, OverflowError):  # 'a' < 1, or math.isclose(10**400, 1.0)
        return False


def share_passed(steps, results):
    verdicts = [passes(step, result) for step, result in zip(steps, results, strict=True) if step.check]
    return sum(verdicts) / len(verdicts)


# ---- taking apart

def bound_names(node):
    """The names that a statement or expression gives a value to."""
    names = set()
    for part in ast.walk(node):
        match part:
            case ast.Name(name, ast.Store()) | ast.FunctionDef(name) | ast.arg(name):
                names.add(name)
            case ast.alias(name, alias):
                names.add(alias or name.split('.')[0])
    return names


def unknown_names(node, known):
    """The names in it that only the code under test can define."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - bound_names(node) - known


def compare(left, check, right, known):
    """A Step where only one side needs the code, else None."""
    needs = bool(unknown_names(left, known)), bool(unknown_names(right, known))
    if needs == (True, False):
        return Step(ast.unparse(left), check, ast.unparse(right))
    if needs == (False, True):
        return Step(ast.unparse(right), lambda got, wanted: check(wanted, got), ast.unparse(left))


def compare_near(a, b, relative, absolute, known):
    """The same for |a - b| within tolerances, which are source."""
    step = compare(a, equal, b, known)
    return step and Step(step.call, near, f'({step.expected}, {relative}, {absolute})')


def compare_difference(test, known):
    """The Step of abs(a - b) < limit, or None."""
    match test:
        case ast.Compare(ast.Call(ast.Name('abs'), [ast.BinOp(a, ast.Sub(), b)]), [sign], [limit]):
            if isinstance(sign, (ast.Lt, ast.LtE)) and not unknown_names(limit, known):
                return compare_near(a, b, 0, ast.unparse(limit), known)


def split(test, known):
    """The Steps for a condition, one for each part of an `and`. What does not come apart must be True."""
    if not unknown_names(test, known):
        return []  # `assert True` and its like would be given away
    step = None
    match test:
        case ast.BoolOp(ast.And(), parts):
            return [step for part in parts for step in split(part, known)]
        case ast.UnaryOp(ast.Not(), operand):
            step = Step(f'bool({ast.unparse(operand)})', same, 'False')
        case ast.Compare(left, [sign], [right]):
            step = compare_difference(test, known) or compare(left, CHECKS[type(sign)], right, known)
        case ast.Call(ast.Name('isclose') | ast.Attribute(ast.Name('math'), 'isclose'), [a, b], options):
            given = {'rel_tol': '1e-09', 'abs_tol': '0.0'} | {o.arg: ast.unparse(o.value) for o in options}
            step = compare_near(a, b, given['rel_tol'], given['abs_tol'], known)
    return [step or Step(f'bool({ast.unparse(test)})', same, 'True')]


PREPARING = (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef)


def inline_check(check, body, entry_point):
    """HumanEval's statements with those of the function check in place, of the function under test."""
    rest = []
    for s in body:
        match s:
            case ast.Expr(ast.Call(ast.Name('check'), arguments)):
                entry_point = entry_point or next(map(ast.unparse, arguments), None)
            case _ if s is not check:
                rest.append(s)
    if not entry_point or len(check.args.args) != 1:
        raise ValueError("a function check takes one argument, from entry_point or a line check(name)")
    for node in ast.walk(check):
        if isinstance(node, ast.Name) and node.id == check.args.args[0].arg:
            node.id = entry_point
    return rest + check.body


def as_asserts(tests, entry_point=None):
    """
    tests as a list of statements: asserts, and the imports, assignments and functions that they need. tests:
    such a list, one text, or HumanEval's function check(candidate), with the name of the function under test
    as entry_point or in a call check(name). Raises ValueError for what cannot be graded, such as loops.
    """
    try:
        body = ast.parse(tests if isinstance(tests, str) else '\n'.join(tests)).body
    except (SyntaxError, ValueError) as e:
        raise ValueError(f"these tests are not Python ({e}): {str(tests)[:200]!r}") from None
    check = next((s for s in body if isinstance(s, ast.FunctionDef) and s.name == 'check'), None)
    if check:
        body = inline_check(check, body, entry_point)
    statements = []
    for s in body:
        match s:
            case ast.Pass() | ast.Expr(ast.Constant() | ast.Name()):
                continue
            case ast.Assert():
                s.msg = None
        statements.append(ast.unparse(s))
    take_apart(statements)
    return statements


def take_apart(statements):
    """(Steps, the names that the code must define) of as_asserts' list. Raises ValueError."""
    known, steps, names = set(dir(builtins)), [], set()
    for statement in ast.parse('\n'.join(statements)).body:
        unknown = unknown_names(statement, known)
        if isinstance(statement, ast.Assert):
            steps += split(statement.test, known)
            names |= unknown
        elif isinstance(statement, PREPARING) and not unknown:
            if isinstance(statement, ast.FunctionDef):
                known.add(statement.name)  # not what is local in it
            else:
                known = known.union(*map(bound_names, getattr(statement, 'targets', [statement])))
            prepare = f'exec({ast.unparse(statement)!r})'
            steps.append(Step(prepare, None, prepare))
        else:
            called = f"it calls {' and '.join(sorted(unknown))} outside a plain assert"
            why = called if unknown else "only asserts, imports, assignments and functions can be"
            raise ValueError(f"these tests cannot be graded, for {ast.unparse(statement)[:200]!r}: {why}")
    if not any(step.check for step in steps):
        raise ValueError(f"these tests cannot be graded: no assert calls the code: {statements}")
    return steps, names
