"""
Python that a model wrote: what its syntax tree shows, and what it does. Nothing of it is ever run in this process: sandbox.py does that.
Code is what stands in the fenced blocks (```python or bare ```), else the whole text.
"""
import ast
import builtins
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

from rewards import reward

FENCE = re.compile(r'^```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^```[ \t]*$|\Z)', re.MULTILINE | re.DOTALL)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LONGEST_CODE = 100_000  # characters that are parsed; more is no code


def code_of(text):
    """The code in a text: all its Python blocks together, or without any fence the text."""
    blocks = FENCE.findall(text)
    return '\n\n'.join(code for language, code in blocks if language.lower() in ('', 'python', 'python3', 'py')) if blocks else text


def parse(text):
    """(code, tree) of a text, or (code, None) when it is not Python, or does nothing: a program defines something, or names a value and calls something."""
    code = code_of(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of the model's escapes
            nodes = list(ast.walk(tree := ast.parse(code))) if len(code) <= LONGEST_CODE else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last for brackets too deep
        return code, None
    kinds = {type(node) for node in nodes}
    return code, tree if kinds & {*FUNCTIONS, ast.ClassDef} or {ast.Assign, ast.Call} <= kinds else None


def functions_in(tree):
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def share(flags, without=0.0):
    """The share that is true; `without` when there is nothing to count."""
    flags = list(flags)
    return sum(map(bool, flags)) / len(flags) if flags else without


@reward('code_syntax', hackable=True)
def code_syntax(text):
    """1 when the text holds a Python program that parses."""
    return float(parse(text)[1] is not None)


def branches(function):
    """McCabe's complexity: 1, and 1 for each place where the way forks."""
    forks = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case, ast.Assert)
    return 1 + sum(len(node.values) - 1 if isinstance(node, ast.BoolOp) else isinstance(node, forks) for node in ast.walk(function))


def annotated(function):
    """For each argument but self, and for what is returned: is its type told?"""
    a = function.args
    arguments = [x for x in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg] if x is not None and x.arg not in ('self', 'cls')]
    return [x.annotation is not None for x in arguments] + [function.returns is not None]


def uses(tree):
    """For each imported name and each variable of a function: is it read anywhere?"""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    read |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # __all__
    bound = {(alias.asname or alias.name).partition('.')[0] for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
    bound |= {node.id for function in functions_in(tree) for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return [name in read for name in bound if name != '*' and not name.startswith('_')]


@reward('code_quality', hackable=True)
def code_quality(text):
    """The mean of five shares: functions and classes with a docstring, arguments and returns with a type, functions of complexity 10 at most, lines of 100 characters at most, imports and variables that are used. 0 when it does not parse."""
    code, tree = parse(text)
    if tree is None:
        return 0.0
    functions = functions_in(tree)
    documented = share(ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, (*FUNCTIONS, ast.ClassDef)))
    typed = share(told for function in functions for told in annotated(function))
    simple = share(branches(function) <= 10 for function in functions)
    short = share(len(line) <= 100 for line in code.splitlines() if line.strip())
    return (documented + typed + simple + short + share(uses(tree), without=1.0)) / 5


def does_something(function):
    """Does its own body return, yield, call, raise (but NotImplementedError) or change something that outlives it?"""
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and 'NotImplemented' in ast.unparse(node):
            return False
        if isinstance(node, (ast.Yield, ast.YieldFrom, ast.Raise)) or isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != '...':
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await)):
            return True
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            return True
    return False


def resolved(tree):
    """For each name that is read: is it bound anywhere in the code, or built in?"""
    bound = set(dir(builtins)) | {'__file__', '__name__'}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).partition('.')[0] for alias in node.names}
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            bound.add(node.name)
    return ['*' in bound or name in bound for name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}]


@reward('code_completeness', hackable=True)
def code_completeness(text):
    """The share of functions that do something (not pass, ... or NotImplementedError) times that of names which are bound; half of it where a comment says TODO or FIXME. 0 when it does not parse."""
    code, tree = parse(text)
    if tree is None:
        return 0.0
    whole = share(map(does_something, functions_in(tree)), without=1.0) * share(resolved(tree), without=1.0)
    return whole / 2 if re.search(r'#.*\b(TODO|FIXME|your code here|rest of)\b', code, re.IGNORECASE) else whole


def programs_in(texts):
    """[(index, code)] of the texts that are programs; the others have 0 and are not run."""
    return [(i, code) for i, text in enumerate(texts) for code, tree in [parse(text)] if tree is not None]


@reward('code_execution', cheap=False, hackable=True, batched=True)
def code_execution(texts, *, timeout=2.0, memory=512 << 20, sandbox='full'):
    """1 when the module runs to its end in the sandbox (see sandbox.run): it raises nothing and does not leave by itself."""
    from sandbox import check_sandbox, run
    check_sandbox(sandbox)  # of an empty completion nothing is run, and yet a run should stop now that cannot do without
    values = [0.0] * len(texts)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a process of its own
        for i, status in pool.map(lambda program: (program[0], run(program[1], [], timeout, memory, sandbox)[0]), programs_in(texts)):
            values[i] = float(status == 'ok')
    return values


@reward('code_correctness', needs=('tests',), batched=True)
def code_correctness(texts, *, tests, timeout=2.0, memory=512 << 20, sandbox='full'):
    """The share of the record's tests (assert statements, a list of texts or one) that the code passes in the sandbox (see sandbox.grade_many). Keep them out of the prompt: what is shown can be written down as the answer."""
    from sandbox import as_asserts, check_sandbox, grade_many
    check_sandbox(sandbox)
    for asserts in tests:
        as_asserts(asserts)  # says what cannot be graded before any time is spent: nothing of an empty completion is run
    programs, values = programs_in(texts), [0.0] * len(texts)
    if programs:
        for (i, _), (share_passed, _) in zip(programs, grade_many([(code, tests[i]) for i, code in programs], None, timeout, memory, sandbox)):
            values[i] = share_passed
    return values
