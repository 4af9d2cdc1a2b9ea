"""
Tests as a module whose statements pass or fail one by one. The parent looks at them here (`prepare`); the
process that has the tests and not the code runs them (`examine`), with this source and that of link.py.
"""
import ast
import builtins
import collections
import symtable
import sys

UNREACHABLE = {'asyncio', 'concurrent', 'multiprocessing', 'socket', 'subprocess', 'threading'}
BUILTINS = {*dir(builtins), '__file__', '__name__'}
DOING = (ast.Assert, ast.Expr, ast.For, ast.While, ast.With, ast.Try, ast.If, ast.Match)

# tree: the module, each test in a `with test__(i)`; n: how many; names: what the code may define; classes:
# are there classes among them; imports: source that the code may count on
Exam = collections.namedtuple('Exam', 'tree n names classes imports')


def nodes_in(node, kind):
    return [n for n in ast.walk(node) if isinstance(n, kind)]


def names_in(node):
    return {n.id for n in nodes_in(node, ast.Name)}


def called_names(node):
    return {n.func.id for n in nodes_in(node, ast.Call) if isinstance(n.func, ast.Name)}


def global_names(table):
    """The names that a scope of symtable and those in it look up in the module or among the built-ins."""
    top = table.get_type() == 'module'
    own = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return own.union(*map(global_names, table.get_children()))


def names_of_code(tree, table):
    """(names that only the code can define, or a built-in that all asserts call; the tests' other names)."""
    used = global_names(table)
    given = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    called = [called_names(node) for node in nodes_in(tree, ast.Assert)]
    handed = {name for s in tree.body if isinstance(s, ast.Expr) for name in names_in(s)}  # check(sum)
    shadowing = set.intersection(*called) if called else set()
    unknown = used - given - BUILTINS or (shadowing & BUILTINS or handed & BUILTINS) - given
    return unknown, used - BUILTINS - unknown


def refuse(why, node):
    raise ValueError(f"these tests cannot be graded, for {ast.unparse(node)[:200]!r}: {why}")


def check_imports(tree):
    for node in nodes_in(tree, (ast.Import, ast.ImportFrom)):
        modules = [node.module or ''] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        rooms = {module.partition('.')[0] for module in modules}
        if rooms - sys.stdlib_module_names or rooms & UNREACHABLE:
            refuse("the sandbox has only what computes in the standard library", node)


def runner_calls(definition):
    """Source that does what a runner would: functions test..., methods of a TestCase or a class Test..."""
    name, tests = definition.name, [s.name for s in definition.body if isinstance(s, ast.FunctionDef)]
    if isinstance(definition, ast.FunctionDef):
        return [f'{name}()'] if name.startswith('test') and not definition.args.args else []
    tests = [test for test in tests if test.startswith('test')]
    if any(ast.unparse(base).endswith('TestCase') for base in definition.bases):
        return [f'{name}.setUpClass()', *(f'{name}({test!r}).debug()' for test in tests)]
    return [f'{name}().{test}()' for test in tests if name.startswith('Test')]


def ends_the_process(statement):
    return any(n.attr == 'main' and names_in(n) == {'unittest'} for n in nodes_in(statement, ast.Attribute))


def prepare(tests):
    """The Exam of tests, a text. Raises ValueError for what cannot be graded."""
    try:
        tree = ast.parse(tests)
        tree.body = [s for s in tree.body if not ends_the_process(s)]
        unknown, others = names_of_code(tree, symtable.symtable(tests, '<tests>', 'exec'))
        n = mark_tests(tree, unknown)
        compile(tree, '<tests>', 'exec')
    except (SyntaxError, RecursionError, MemoryError) as e:
        raise ValueError(f"these tests are not Python ({type(e).__name__}: {e}): {tests[:200]!r}") from None
    check_imports(tree)
    if not n or not unknown:
        raise ValueError(f"these tests cannot be graded: no assert calls the code: {tests[:200]!r}")
    imports = [ast.unparse(s) for s in tree.body if isinstance(s, (ast.Import, ast.ImportFrom))]
    return Exam(tree, n, unknown | others, any(name[0].isupper() for name in unknown), '\n'.join(imports))


def mark_tests(tree, unknown):
    """Put each test of the module into a `with test__(i)`; their number."""
    definitions = [s for s in tree.body if isinstance(s, (ast.FunctionDef, ast.ClassDef))]
    concerned = set(unknown)  # names that lead to the code
    for s in definitions:
        if s.name not in names_in(tree):
            tree.body += ast.parse('\n'.join(runner_calls(s))).body
        if s.name not in names_in(tree) and nodes_in(s, ast.Assert):
            refuse(f"nothing calls {s.name}: add a line that does, as {s.name}(name)", s)
        if any(names_in(base) & unknown for base in getattr(s, 'bases', [])):
            refuse("a class of the tests cannot have one of the code as its base", s)
        if nodes_in(s, ast.Assert) or names_in(s) & concerned:
            concerned.add(s.name)
    loads = collections.Counter(n.id for n in nodes_in(tree, ast.Name))
    called = {name for s in tree.body if isinstance(s, ast.Expr) for name in called_names(s)}
    # called once, by the module: the tests are the statements in it
    once = {name for name in called if loads[name] == 1}
    opened = [s for s in definitions if isinstance(s, ast.FunctionDef) and s.name in once]
    concerned |= {a.arg for s in opened for a in s.args.args}

    def is_test(s):
        asserts = any(names_in(node) for node in nodes_in(s, ast.Assert))
        opens = isinstance(s, ast.Expr) and called_names(s) & {function.name for function in opened}
        return isinstance(s, DOING) and (asserts or names_in(s) & concerned) and not opens
    n = 0
    for body in [tree.body, *(function.body for function in opened)]:
        for i, s in enumerate(body):
            if is_test(s):
                guard = ast.withitem(ast.Call(ast.Name('test__', ast.Load()), [ast.Constant(n)], []))
                body[i] = ast.fix_missing_locations(ast.copy_location(ast.With([guard], [s]), s))
                n += 1
    return n


class Scope(dict):
    """The module of the tests: what only the code can define is fetched, variables each time."""

    def __init__(self, names, fetch, **own):
        super().__init__(own)
        self.names, self.fetch = names, fetch

    def __missing__(self, name):
        if name not in self.names:
            raise KeyError(name)
        value = self.fetch(name)
        if callable(value):
            self[name] = value
        return value


def examine(exam, fetch, gone):
    """
    The share of tests passed. fetch(name): what the code defines; gone(): whether the code's process has
    ended; then nothing passes, whatever the tests make of it.
    """
    verdicts = {}

    class Test:
        def __init__(self, i):
            self.i = i

        def __enter__(self):
            pass

        def __exit__(self, error, *_):
            verdicts[self.i] = verdicts.get(self.i, True) and error is None and not gone()
            return True
    scope, n = Scope(exam.names, fetch, __name__='__main__', test__=Test), 1
    try:
        exec(compile(exam.tree, '<tests>', 'exec'), scope)
    except BaseException:  # between two tests: none that follow can pass
        n = max(exam.n, len(verdicts) + 1)
    return sum(verdicts.values()) / max(n, len(verdicts))


def constants_in(exam):
    """The source of each constant that the tests compare with."""
    for node in nodes_in(exam.tree, ast.Compare):
        for side in [node.left, *node.comparators]:
            try:
                yield repr(ast.literal_eval(side))
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
