"""
Python that a model wrote: what its syntax tree shows, and what it does. It never runs in this process, but in
the sandbox. The code of a text is in its fenced blocks (```python or bare ```), or is all of the text.
"""
import ast
import builtins
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

from rewards.reward import reward
from sandbox import as_asserts, check_sandbox, grade_many, run

FENCE = re.compile(r'^```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^```[ \t]*$|\Z)', re.MULTILINE | re.DOTALL)
UNFINISHED = re.compile(r'#.*\b(TODO|FIXME|your code here|rest of)\b', re.IGNORECASE)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.comprehension)
FORKS = (*LOOPS, ast.If, ast.IfExp, ast.ExceptHandler, ast.match_case, ast.Assert)
LONGEST_CODE = 100_000  # characters that are parsed; more is no code


def code_of(text):
    """All Python blocks of a text together, or without any fence the text."""
    blocks = FENCE.findall(text)
    python = [code for language, code in blocks if language.lower() in ('', 'python', 'python3', 'py')]
    return '\n\n'.join(python) if blocks else text


def parse(text):
    """(code, tree) of a text; no tree for what is no program: one defines something, or assigns and calls."""
    code = code_of(text)
    if len(code) > LONGEST_CODE:
        return code, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about the model's escapes
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last for brackets too deep
        return code, None
    kinds = {type(node) for node in ast.walk(tree)}
    return code, tree if kinds & set(DEFINITIONS) or {ast.Assign, ast.Call} <= kinds else None


def nodes_in(tree, kinds):
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def names_read(tree):
    return {node.id for node in nodes_in(tree, ast.Name) if isinstance(node.ctx, ast.Load)}


def names_imported(tree):
    names = set()
    for node in nodes_in(tree, IMPORTS):
        names |= {(alias.asname or alias.name).partition('.')[0] for alias in node.names}
    return names


def share(flags, empty=0.0):
    """The share of true flags; `empty` when there are none."""
    flags = list(flags)
    return sum(map(bool, flags)) / len(flags) if flags else empty


@reward('code_syntax', hackable=True)
def code_syntax(text):
    """1 when the text holds a Python program that parses."""
    return float(parse(text)[1] is not None)


# ---- quality

def branches(function):
    """McCabe's complexity: 1, and 1 for each fork."""
    operators = sum(len(node.values) - 1 for node in nodes_in(function, ast.BoolOp))
    return 1 + operators + len(nodes_in(function, FORKS))


def annotated(function):
    """For each argument but self, and for the result: has it a type?"""
    a = function.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    named = [x for x in arguments if x is not None and x.arg not in ('self', 'cls')]
    return [x.annotation is not None for x in named] + [function.returns is not None]


def uses(tree):
    """For each imported name and each variable of a function: is it read anywhere?"""
    constants = nodes_in(tree, ast.Constant)
    read = names_read(tree) | {node.value for node in constants if isinstance(node.value, str)}  # in __all__
    bound = names_imported(tree)
    for function in nodes_in(tree, FUNCTIONS):
        bound |= {node.id for node in nodes_in(function, ast.Name) if isinstance(node.ctx, ast.Store)}
    return [name in read for name in bound if name != '*' and not name.startswith('_')]


@reward('code_quality', hackable=True)
def code_quality(text):
    """
    The mean of five shares: definitions with a docstring, arguments and results with a type, functions of
    complexity 10 at most, lines of 100 characters at most, imports and variables that are used.
    """
    code, tree = parse(text)
    if tree is None:
        return 0.0
    functions = nodes_in(tree, FUNCTIONS)
    documented = share(ast.get_docstring(node) for node in nodes_in(tree, DEFINITIONS))
    typed = share(flag for function in functions for flag in annotated(function))
    simple = share(branches(function) <= 10 for function in functions)
    short = share(len(line) <= 100 for line in code.splitlines() if line.strip())
    return (documented + typed + simple + short + share(uses(tree), empty=1.0)) / 5


# ---- completeness

def does_something(function):
    """
    Does it return a value, yield, call, raise or change what outlives it? NotImplementedError is nothing.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.Raise):
            return 'NotImplemented' not in ast.unparse(node)
        if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != '...':
            return True
        calls = isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await))
        target = isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load)
        if calls or target or isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
    return False


def resolved(tree):
    """For each name that is read: is it bound anywhere in the code, or built in?"""
    bound = set(dir(builtins)) | {'__file__', '__name__'} | names_imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (*DEFINITIONS, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
            bound.add(node.name)
    return ['*' in bound or name in bound for name in names_read(tree)]


@reward('code_completeness', hackable=True)
def code_completeness(text):
    """
    The share of functions that do something times that of names which are bound; half of it with a TODO.
    """
    code, tree = parse(text)
    if tree is None:
        return 0.0
    working = share(map(does_something, nodes_in(tree, FUNCTIONS)), empty=1.0)
    value = working * share(resolved(tree), empty=1.0)
    return value / 2 if UNFINISHED.search(code) else value


# ---- run in the sandbox

def programs_in(texts):
    """{index: code} of the texts that are programs; the other texts score 0 and are not run."""
    parsed = map(parse, texts)
    return {i: code for i, (code, tree) in enumerate(parsed) if tree is not None}


@reward('code_execution', cheap=False, hackable=True, batched=True)
def code_execution(texts, *, timeout=2.0, memory=512 << 20, sandbox='full'):
    """1 when the module runs to its end in the sandbox, see sandbox.run."""
    check_sandbox(sandbox)  # even where no text is a program, so that a run that cannot do this stops at once

    def runs(code):
        return run(code, [], timeout, memory, sandbox)[0] == 'ok'
    programs, values = programs_in(texts), [0.0] * len(texts)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a process of its own
        for i, ended in zip(programs, pool.map(runs, programs.values()), strict=True):
            values[i] = float(ended)
    return values


@reward('code_correctness', needs=('tests',), batched=True)
def code_correctness(texts, *, tests, timeout=2.0, memory=512 << 20, sandbox='full'):
    """
    The share of the record's tests that the code passes in the sandbox, see sandbox.grade_many. Keep them out
    of the prompt: what is shown can be written down as the answer.
    """
    check_sandbox(sandbox)
    for asserts in tests:
        as_asserts(asserts)  # raises for what cannot be graded
    programs, values = programs_in(texts), [0.0] * len(texts)
    if programs:
        jobs = [(code, tests[i]) for i, code in programs.items()]
        grades = grade_many(jobs, None, timeout, memory, sandbox)
        for i, (passed, _) in zip(programs, grades, strict=True):
            values[i] = passed
    return values
