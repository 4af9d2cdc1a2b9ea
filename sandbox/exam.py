"""Tests made a module whose statements pass or fail one by one, for the process that runs them (link.py)."""
import ast
import builtins
import collections
import functools
import marshal
import symtable
import sys

UNREACHABLE = {'asyncio', 'concurrent', 'multiprocessing', 'socket', 'subprocess', 'threading'}
BUILTINS = {*dir(builtins), '__file__', '__name__'}
DOING = (ast.Assert, ast.Expr, ast.For, ast.While, ast.With, ast.Try, ast.If, ast.Match)

# module: marshalled, each of n tests in a `with test__(i)`; names: what the code may define; classes: are any
# of them classes; imports and constants: their source
Exam = collections.namedtuple('Exam', 'module n names classes imports constants')


def nodes_in(node, kind):
    return [n for n in ast.walk(node) if isinstance(n, kind)]


def names_in(node):
    return {n.id for n in nodes_in(node, ast.Name)}


def global_names(table):
    """The names that a scope of symtable and those in it look up in the module or among the built-ins."""
    top = table.get_type() == 'module'
    own = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return own.union(*map(global_names, table.get_children()))


def names_of_code(tree, table):
    """(names that only the code can define, or built-ins that all tests mention; the tests' other names)."""
    used = global_names(table)
    given = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    mentioned = filter(None, [names_in(s) for s in tree.body if isinstance(s, DOING)])
    shadowing = functools.reduce(set.intersection, mentioned, BUILTINS)
    unknown = used - given - BUILTINS or shadowing - given
    return unknown, used - BUILTINS - unknown


def refuse(why, node):
    raise ValueError(f"these tests cannot be graded, for {ast.unparse(node)[:200]!r}: {why}")


def check_imports(tree):
    for node in nodes_in(tree, (ast.Import, ast.ImportFrom)):
        modules = [node.module or ''] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        rooms = {module.partition('.')[0] for module in modules}
        if rooms - sys.stdlib_module_names or rooms & UNREACHABLE:
            refuse("the sandbox has only what computes in the standard library", node)


def mark_tests(tree, unknown):
    """Put each test of the module into a `with test__(i)`; their number."""
    definitions = [s for s in tree.body if isinstance(s, (ast.FunctionDef, ast.ClassDef))]
    concerned = set(unknown)  # names that lead to the code
    for s in definitions:
        if s.name not in names_in(tree) and nodes_in(s, ast.Assert):
            if isinstance(s, ast.ClassDef) or not s.name.startswith('test') or s.args.args:
                refuse(f"nothing calls {s.name}: add a line that does, as {s.name}(name)", s)
            tree.body += ast.parse(f'{s.name}()').body  # as pytest would
        if any(names_in(base) & unknown for base in getattr(s, 'bases', [])):
            refuse("a class of the tests cannot have one of the code as its base", s)
        if nodes_in(s, ast.Assert) or names_in(s) & concerned:
            concerned.add(s.name)
    loads = collections.Counter(n.id for n in nodes_in(tree, ast.Name))
    calls = [s.value.func for s in tree.body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    once = {function.id for function in calls if isinstance(function, ast.Name) and loads[function.id] == 1}
    # functions that the module calls once: the tests are the statements in them
    opened = {s.name: s for s in definitions if isinstance(s, ast.FunctionDef) and s.name in once}
    concerned |= {a.arg for s in opened.values() for a in s.args.args}

    def is_test(s):
        asserts = any(names_in(node) for node in nodes_in(s, ast.Assert))
        opens = isinstance(s, ast.Expr) and names_in(s) & opened.keys()
        return isinstance(s, DOING) and (asserts or names_in(s) & concerned) and not opens
    n = 0
    for body in [tree.body, *(s.body for s in opened.values())]:
        for i, s in enumerate(body):
            if is_test(s):
                guard = ast.withitem(ast.Call(ast.Name('test__', ast.Load()), [ast.Constant(n)], []))
                body[i] = ast.fix_missing_locations(ast.copy_location(ast.With([guard], [s]), s))
                n += 1
    return n


@functools.lru_cache(maxsize=1 << 12)
def prepare(tests):
    """The Exam of tests, a text. Raises ValueError for what cannot be graded."""
    try:
        tree = ast.parse(tests)
        unknown, others = names_of_code(tree, symtable.symtable(tests, '<tests>', 'exec'))
        n = mark_tests(tree, unknown)
        module = marshal.dumps(compile(tree, '<tests>', 'exec'))
    except (SyntaxError, RecursionError, MemoryError) as e:
        raise ValueError(f"these tests are not Python ({type(e).__name__}: {e}): {tests[:200]!r}") from None
    check_imports(tree)
    if not n or not unknown:
        raise ValueError(f"these tests cannot be graded: no assert calls the code: {tests[:200]!r}")
    imports = '\n'.join(ast.unparse(s) for s in tree.body if isinstance(s, (ast.Import, ast.ImportFrom)))
    constants = [repr(node.value) for node in nodes_in(tree, ast.Constant)]
    return Exam(module, n, unknown | others, any(name[0].isupper() for name in unknown), imports, constants)
