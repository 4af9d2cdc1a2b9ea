"""
Python that a model wrote: what its syntax tree shows, and what it does, in the sandbox. The program of a text
is in its fenced blocks (```python, then bare ones), or is all of it; thoughts before </think> are no part.
"""
import ast
import builtins
import re
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor

from rewards.reward import reward
from sandbox import check_sandbox, exam_of, grade_many, processors, run
from sandbox.exam import nodes_in

FENCE = re.compile(r'^([ \t]*)(`{3,}|~{3,})[ \t]*[{.]*([\w+-]*)[^`\n]*(?:\n|\Z)(.*?)'
                   r'(?:^\1? {0,3}\2[`~]*[ \t]*$|\Z)', re.MULTILINE | re.DOTALL)
QUOTE = r'(?m)^ {0,3}>(?!>) ?'
UNFINISHED = re.compile(r'^[^#\n]*#.*\b(TODO|FIXME|your code here|rest of)\b', re.IGNORECASE | re.MULTILINE)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
BINDING = (*DEFINITIONS, ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom)
FORKS = (ast.For, ast.AsyncFor, ast.While, ast.comprehension, ast.If, ast.IfExp, ast.ExceptHandler,
         ast.match_case, ast.Assert)
LONGEST_CODE = 100_000  # characters; more is no code


def tree_of(code):
    """The syntax tree, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about the model's escapes
            return ast.parse(code) if len(code) <= LONGEST_CODE else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two for what nests too deep
        return None


def binds(code):
    tree = tree_of(code)
    return tree is not None and any(isinstance(s, BINDING) for s in tree.body)


def code_of(text):
    text = text.removeprefix('\ufeff').replace('\r\n', '\n').rpartition('</think>')[2].partition('<think>')[0]
    if re.search(QUOTE + '(?:```|~~~)', text):
        text = re.sub(QUOTE, '', text)
    blocks = list(FENCE.finditer(text))  # the last may be cut off, and the first opened by the prompt
    before = textwrap.dedent(text[:blocks[0].start()] if blocks else text).strip('\n')
    if not blocks or not blocks[0][3] and binds(before):
        return before
    programs = [(block[3].lower(), textwrap.dedent(block[4]).strip('\n')) for block in blocks]
    tagged = [code for language, code in programs if language.startswith('py')]
    bare = [code for language, code in programs if not language]
    # What defines nothing, beside what does, is output or an example of use; what does not parse is no code.
    return '\n\n'.join(list(filter(binds, tagged + bare)) or tagged or bare)


def parse(text):
    """(code, tree) of a text; no tree unless it is a program: words that happen to parse do nothing."""
    code = code_of(text)
    tree = tree_of(code)
    return code, tree if tree and nodes_in(tree, (*BINDING, ast.Call, ast.For, ast.While)) else None


def names_in(tree, context):
    """The variables that are read (ast.Load) or assigned (ast.Store)."""
    return {node.id for node in nodes_in(tree, ast.Name) if isinstance(node.ctx, context)}


def names_imported(tree):
    return {(alias.asname or alias.name).partition('.')[0] for alias in nodes_in(tree, ast.alias)}


def share(flags, empty=0.0):
    """The share of true flags; `empty` when there are none."""
    flags = list(flags)
    return sum(flags) / len(flags) if flags else empty


@reward(hackable=True, binary=True)
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
    arguments = [x for x in ast.iter_child_nodes(function.args) if isinstance(x, ast.arg)]
    typed = [x.annotation is not None for x in arguments if x.arg not in ('self', 'cls')]
    return typed + [function.returns is not None]


def uses(tree):
    """For each imported name and each variable of a function: is it read anywhere?"""
    texts = {node.value for node in nodes_in(tree, ast.Constant) if isinstance(node.value, str)}  # __all__
    read, bound = names_in(tree, ast.Load) | texts, names_imported(tree)
    for function in nodes_in(tree, FUNCTIONS):
        bound |= names_in(function, ast.Store)
    return [name in read for name in bound if name != '*' and not name.startswith('_')]


@reward(hackable=True)
def code_quality(text):
    """
    The mean of five shares: definitions with a docstring, arguments and results with a type, functions of
    complexity 10 at most, lines of 100 characters at most, imports and variables that are used.
    """
    code, tree = parse(text)
    if tree is None:
        return 0.0
    functions = nodes_in(tree, FUNCTIONS)
    documented = share(bool(ast.get_docstring(node)) for node in nodes_in(tree, DEFINITIONS))
    typed = share(flag for function in functions for flag in annotated(function))
    simple = share(branches(function) <= 10 for function in functions)
    short = share(len(line) <= 100 for line in code.splitlines() if line.strip())
    return (documented + typed + simple + short + share(uses(tree), empty=1.0)) / 5


# ---- completeness

def does_something(function):
    """Does it return a value, yield, call, raise (not NotImplementedError) or change what outlives it?"""
    for node in ast.walk(function):
        match node:
            case ast.Raise():
                return not any('NotImplemented' in name.id for name in nodes_in(node, ast.Name))
            case ast.Return(value) if value and not (isinstance(value, ast.Constant) and value.value is ...):
                return True
            case ast.Yield() | ast.YieldFrom() | ast.Expr(ast.Call() | ast.Await()):
                return True
            case ast.Attribute() | ast.Subscript() if not isinstance(node.ctx, ast.Load):
                return True
    return False


def resolved(tree):
    """For each name that is read: is it bound anywhere, or built in?"""
    bound = names_imported(tree) | names_in(tree, (ast.Store, ast.Del)) | {*dir(builtins), '__file__'}
    for node in ast.walk(tree):
        match node:
            case (ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name) | ast.arg(name)
                  | ast.ExceptHandler(name=name) | ast.MatchAs(name=name) | ast.MatchStar(name)):
                bound.add(name)
    return ['*' in bound or name in bound for name in names_in(tree, ast.Load)]


@reward(hackable=True)
def code_completeness(text):
    """The share of functions that do something times that of names that are bound; half of it with a TODO."""
    code, tree = parse(text)
    if tree is None:
        return 0.0
    working = share(map(does_something, nodes_in(tree, FUNCTIONS)), empty=1.0)
    value = working * share(resolved(tree), empty=1.0)
    return value / 2 if UNFINISHED.search(code) else value


# ---- run in the sandbox

@reward(cheap=False, hackable=True, batched=True)
def code_execution(texts, *, timeout=2.0, memory=512 << 20, sandbox='full'):
    """1 when the module runs to its end in the sandbox, which sys.exit() keeps it from; see sandbox.run."""
    check_sandbox(sandbox)  # even where no text is a program: a run that cannot do this stops at once

    def runs(program):
        code, tree = program
        return float(tree is not None and run(code, [], timeout, memory, sandbox)[0] == 'ok')
    with ThreadPoolExecutor(processors()) as pool:  # each waits for a process of its own
        return list(pool.map(runs, list(map(parse, texts))))


@reward(batched=True)
def code_correctness(texts, *, tests, timeout=2.0, memory=512 << 20, sandbox='full'):
    """
    The share of the record's tests that the code passes, see sandbox.grade_many. Keep them out of the prompt:
    what is shown can be written down as the answer.
    """
    for record in tests:
        exam_of(record)  # even where no text is a program
    programs = list(map(parse, texts))
    jobs = [(code, t) for (code, tree), t in zip(programs, tests, strict=True) if tree is not None]
    grades = iter(grade_many(jobs, sandbox, timeout=timeout, memory=memory))
    return [0.0 if tree is None else next(grades)[0] for _, tree in programs]
