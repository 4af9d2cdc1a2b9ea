"""
Configuration without a framework, after nanoGPT: a script opens with a block of plain globals, then calls

    cfg = configure(globals())

Later wins: these defaults, then config files in the order given, then --key=value. A config file is Python,
looked for here and beside the script. Values on the command line are Python literals, and bare words are
strings, also in a list; --quiet alone is --quiet=True.

A room with settings of its own has a class `Settings` of the same form, which configure takes besides the
globals: `configure(globals(), grpo.Settings, tasks=TASKS)`. Outside they are all flat, so no name may be
owned twice. A setting's type is that of its default (an int will do for a float), or its annotation: `float |
None`, `Literal['sum', 'mean']` for a choice, `Annotated[float, '(0, 1]']` for a range.
"""
import ast
import difflib
import fnmatch
import functools
import glob
import inspect
import itertools
import json
import os
import re
import select
import shutil
import sys
import textwrap
import traceback
import types
import typing
import warnings
from typing import Annotated, NamedTuple

from formats.text_files import first_line, read_text
from runtime import early

Count = Annotated[int, '[1, inf)']
Natural = Annotated[int, '[0, inf)']
Positive = Annotated[float, '(0, inf)']
NonNegative = Annotated[float, '[0, inf)']
Share = Annotated[float, '[0, 1]']
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OTHER_NAMES = os.path.join(ROOT, 'runtime', 'other_names.json')  # {framework: {its name: [ours, a note]}}
DASHES = '+-\u2010\u2011\u2012\u2013\u2014\u2015\u2212'  # with what a word processor makes of two


class Setting(NamedTuple):
    """What is known of a setting besides its value."""
    kind: object        # a type, or an annotation
    comment: str
    room: str           # whose it is, as --help=ROOM has it
    heading: str        # the comment above the lines it stands among


# -----------------------------------------------------------------------------
# reading the settings out of a script and of the rooms' classes

def settings_block(source):
    """The statements of a script above its call of configure, at its top or in an `if`; None without one."""
    body = ast.parse(source).body
    for block in (body, *(node.body for node in body if isinstance(node, ast.If))):
        for i, node in enumerate(block):
            parts = ast.walk(node) if isinstance(node, (ast.Expr, ast.Assign)) else ()
            if any(isinstance(part, ast.Call) and ast.unparse(part.func) == 'configure' for part in parts):
                return block[:i]
    return None


def assignments(block):
    """(key, node) of what is set in it."""
    for node in block:
        if isinstance(node, ast.AnnAssign):
            yield node.target.id, node
        elif isinstance(node, ast.Assign):
            try:
                ast.literal_eval(node.value)
            except ValueError:  # computed: no setting
                continue
            yield ast.unparse(node.targets[0]), node


def read_keys(source, names=None, room='run', block=None):
    """{key: Setting} of a block, else of the script's; names: what annotations may use."""
    keys, lines, heading, above = {}, source.splitlines(), '', 0
    for key, node in assignments(block or settings_block(source)):
        for line in lines[above:node.lineno - 1]:
            if line.lstrip().startswith('# ') and not line.lstrip().startswith('# ---'):
                heading = line.strip().lstrip('# ')
        above = node.end_lineno
        if isinstance(node, ast.AnnAssign):
            kind = eval(ast.unparse(node.annotation), names)
        else:
            kind = type(ast.literal_eval(node.value))
        _, _, comment = lines[node.end_lineno - 1][node.end_col_offset:].partition('#')
        keys[key] = Setting(kind, comment.strip(), room, heading)
    return keys


@functools.cache
def read_room(cls):
    """{key: Setting} of a class of settings; its room is 'fill_in' of tasks.fill_in.FillIn.Settings."""
    source = textwrap.dedent(inspect.getsource(cls))
    names, room = vars(sys.modules[cls.__module__]), cls.__module__.rpartition('.')[2]
    return read_keys(source, names, room, ast.parse(source).body[0].body)


def rooms_of(task):
    """The classes of settings that a task has, its own and those of the classes it builds on."""
    return [vars(parent)['Settings'] for parent in reversed(task.__mro__) if 'Settings' in vars(parent)]


def keys_of(task):
    """The names of the settings that a task reads: its rooms', with what it uses of others' or refuses."""
    own = set()
    for room in rooms_of(task):
        own |= read_room(room).keys()
    return (own | set(task.uses)) - set(task.refuses)


# -----------------------------------------------------------------------------
# what a setting takes

def members(kind):
    """The types that an annotation offers: int and None of `int | None`."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def parts_of(kind):
    """(type, interval or None) of a type that may be Annotated."""
    if typing.get_origin(kind) is Annotated:
        return typing.get_args(kind)
    return typing.get_origin(kind) or kind, None


def inside(value, interval):
    """Whether a number lies in an interval as mathematics writes it, '[0, 1)'; a NaN lies in none."""
    low, high = map(float, interval[1:-1].split(','))
    above = value >= low if interval[0] == '[' else value > low
    below = value <= high if interval[-1] == ']' else value < high
    return above and below


def bounds_in_words(interval):
    """'at least 1', 'above 0 and at most 1'."""
    low, high = interval[1:-1].split(', ')
    bounds = []
    if low != '-inf':
        bounds.append(f"{'at least' if interval[0] == '[' else 'above'} {low}")
    if high != 'inf':
        bounds.append(f"{'at most' if interval[-1] == ']' else 'below'} {high}")
    return ' and '.join(bounds) or 'finite'


def name_of(kind):
    """What a type takes, in words: 'at least 1 (int)', 'float, or None', 'one of sum, mean'."""
    if len(members(kind)) > 1:
        return ', or '.join(map(name_of, members(kind)))
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    base, interval = parts_of(kind)
    words = {types.NoneType: 'None', bool: 'True or False', types.FunctionType: "a config's function"}
    name = words.get(base) or getattr(base, '__name__', str(base))
    return f'{bounds_in_words(interval)} ({name})' if interval else name


def fits(value, member):
    """Whether one of the types that an annotation offers takes the value."""
    base, interval = parts_of(member)
    if base is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(member))
    return base is object or type(value) is base and (interval is None or inside(value, interval))


def shown(value):
    """repr, which fails of numbers with thousands of digits, of deeply nested lists, or at a class's wish."""
    try:
        return repr(value)
    except Exception:
        return 'a value that cannot be printed'


def check(key, value, keys, where):
    """
    The value as the key takes it: an int also as a float, a list as a tuple and back. Raises ValueError
    naming key, value and what is taken.
    """
    if key not in keys:
        raise ValueError(f"{where}: unknown key {key!r}{remedy_for(key, keys)}")
    if type(value) in (int, float) and abs(value) > 1e15:
        raise ValueError(f"{where}: {key} is {shown(value)}; no number here is above 1e15")
    kind = keys[key].kind
    other = {int: float, list: tuple, tuple: list}.get(type(value))
    for candidate in (value, other(value)) if other else (value,):
        if any(fits(candidate, member) for member in members(kind)):
            return candidate
    elsewhere = known_elsewhere(key, keys) if isinstance(value, str) else ''
    note = f". {elsewhere}" if elsewhere else ''
    raise ValueError(f"{where}: {key} is {shown(value)}; it must be {name_of(kind)}{note}")


# -----------------------------------------------------------------------------
# what a key that is not ours may mean

def remedy_for(key, keys):
    """What follows "unknown key": its name here, or one that is truly near, or where all are listed."""
    key = re.match(r'\W*([\w.-]*)', key)[1].lower().replace('-', '_').strip('_')
    if key not in keys and (elsewhere := known_elsewhere(key, keys)):
        return f": {elsewhere}"
    near = near_key(key, keys)
    return f"; did you mean {near!r}?" if near else "; --help lists them all"


def known_elsewhere(key, keys):
    """What other frameworks' settings of that name are here: "TRL's beta is kl_beta here"; '' for none."""
    with open(OTHER_NAMES, encoding='utf-8') as f:
        table = json.load(f)
    exact, last = {}, {}  # {a name and what it is here: the first framework that has it}, whole or by its end
    for framework, rows in table.items():
        for name, (ours, note) in rows.items():
            if ours and not keys.keys() >= set(ours.split(', ')):
                continue
            here = f"is {ours.replace(', ', ' and ')} here" if ours not in ('', name) else ''
            told = f"{name} {', '.join(filter(None, (here, note)))}"
            if fnmatch.fnmatch(key, name):
                exact.setdefault(told, framework)
            elif name.endswith(f'.{key}') or key.endswith(f'.{name}'):
                last.setdefault(told, framework)
    lines = [f"{framework}'s {told}" for told, framework in (exact or last).items()]
    return '; '.join(lines[:3])


def near_key(key, keys):
    """The key that is meant by another: mistyped, joined, in another order, or cut; None where unsure."""
    def edits(other):
        if sorted(other.split('_')) == sorted(key.split('_')):
            return 0
        a, b = key.replace('_', ''), other.replace('_', '')
        changes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in changes if kind != 'equal')

    near = min(keys, key=edits)
    if edits(near) <= (1 if len(key) < 6 else 2):
        return near
    cut = [other for other in keys if other.startswith(key) or other.endswith(f'_{key}')
           or key in (f'no_{other}', f"{key.rpartition('.')[0]}.{other}")]
    if len(cut) != 1:
        return None
    least = len(cut[0]) / (3 if cut[0].startswith(key) else 2)
    return cut[0] if len(key) >= max(4, least) else None


def with_settings(key, path, values):
    """
    The path with the value of each {setting} in it. values: of all settings. Raises ValueError for a name
    that is no setting's, and for a value that is no part of a file's name.
    """
    def value_of(match):
        name, value = match[1], values.get(match[1])
        if name not in values:
            raise ValueError(f"{key} is {path!r}: unknown key {name!r}{remedy_for(name, values)}")
        text = re.sub(r'[^\w.+-]+', '-', str(value))
        if isinstance(value, (list, tuple, dict)) or name in (key, 'init_from') or text.strip('.-') == '':
            raise ValueError(f"{key} is {path!r}, where {name}, {shown(value)[:100]}, cannot stand")
        return text[:100]

    if set(re.sub(r'{[^{}]*}', '', path)) & set('{}'):
        raise ValueError(f"{key} is {path!r}: braces hold a setting's name, as {{seed}}")
    return re.sub(r'{([^{}]*)}', value_of, path)


# -----------------------------------------------------------------------------
# config files and the command line

def locate(path, folder=ROOT):
    """What a path means: here, else in the folder, else in the repo; None where there is nothing."""
    return next(filter(os.path.exists, (os.path.join(place, path) for place in ('', folder, ROOT))), None)


def find_config(path, folder):
    """The config file that is meant. Raises FileNotFoundError or ValueError, saying what to type."""
    found = locate(path, folder)
    if found and found.endswith('.py'):
        return found
    if found:
        raise ValueError(f"{path!r} is not a config file, which is Python (.py): give data as "
                         "--train_prompts=, a run to resume as --out_dir= with --init_from=resume")
    known = {}
    for pattern in ('config/**/*.py', os.path.join(os.path.dirname(path), '*.py')):
        for other in glob.glob(pattern, recursive=True) + glob.glob(pattern, root_dir=ROOT, recursive=True):
            known[os.path.basename(other)[:-3]] = other
    stem = re.split(r'[/\\\\]', path)[-1].removesuffix('.py')
    near = difflib.get_close_matches(stem, known, n=1, cutoff=0.75)
    meant = f"did you mean {known[near[0]]}?" if near else "overrides are --key=value, without spaces"
    raise FileNotFoundError(f"there is no config file {path!r}: {meant}")


def read_config_file(path, keys):
    """The values that a config file sets, less what it imports, functions and classes."""
    names = {'__file__': path, '__name__': 'config'}
    try:
        with open(path, 'rb') as f:
            source = f.read()
        program = compile(source, path, 'exec')
        is_script = settings_block(source) is not None
    except SyntaxError as e:
        raise ValueError(f"{path}, line {e.lineno or 1}: {first_line(e.msg)}") from None
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} cannot be read as Python: {first_line(e)}") from None
    except (MemoryError, RecursionError):
        raise ValueError(f"{path} cannot be read as Python: it is nested too deep") from None
    if is_script:
        raise ValueError(f"{path} is a program and no config file")
    try:
        exec(program, names)
    except (Exception, SystemExit) as e:
        frames = traceback.extract_tb(e.__traceback__)
        *_, line = [0, *(frame.lineno for frame in frames if frame.filename == path)]
        raise ValueError(f"{path}, line {line}: {type(e).__name__}: {e}") from None
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    aliases = itertools.chain(*(node.names for node in imports))
    own = {alias.asname or alias.name.partition('.')[0] for alias in aliases}
    for key, value in names.items():  # reward_funcs = my_reward is a setting, by a name that none has here
        defined = isinstance(value, (types.FunctionType, type)) and value.__name__ == key
        own |= {key} if defined or key.startswith('_') else set()
    values = {key: value for key, value in names.items() if key in keys or key not in own}
    if strangers := values.keys() - keys.keys():
        key = min(strangers, key=[*values].index)
        remedy = program_for(path, values, keys) or remedy_for(key, keys)
        raise ValueError(f"{path}: unknown key {key!r}{remedy}; a name of its own begins with _")
    return values


def program_for(path, values, keys):
    """What to run with a config of which another program of ours has more keys; None where none has."""
    most, remedy = len(values.keys() & keys.keys()), None
    for script in ('train_grpo.py', 'sample.py', *glob.glob('tools/*.py', root_dir=ROOT)):
        block = settings_block(read_text(os.path.join(ROOT, script)))
        known = len(values.keys() & dict(assignments(block or ())).keys())
        if known > most:
            program = script if '/' not in script else f"-m {script[:-3].replace('/', '.')}"
            most, remedy = known, f"; it is a config for another program: python {program} {path}"
    return remedy


class Words(ast.NodeTransformer):
    """Bare words become strings: of --rewards=['exact_answer'] a shell leaves [exact_answer]."""

    def visit_Name(self, node):
        return ast.Constant(node.id)


def read_value(key, text, keys):
    """What stands behind --key=, as a value. Raises ValueError where that is nothing, or no Python."""
    bases = [parts_of(member)[0] for member in members(keys[key].kind)]
    wanted = f"--{key}={text}: {key} takes {name_of(keys[key].kind)}"
    braced = {list, tuple, dict} & set(bases) and (text[:1] in ('[', '(', '{') or str not in bases)
    if bases == [bool] and text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    try:
        tree = ast.parse(text.lstrip(), mode='eval')
        value = ast.literal_eval(Words().visit(tree) if braced else tree)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError):
        if braced:
            raise ValueError(f'{wanted}; in a shell put it all in double quotes, "--{key}=..."') from None
        return text
    if bases == [str] and value is None:
        raise ValueError(f"{wanted} and no None; the empty one is --{key}=")
    if bases == [str] and not isinstance(value, str):
        return text  # --wandb_run_name=7 means the string
    return [value] if braced and isinstance(value, str) else value  # --lora_targets=q


def split_arguments(arguments, keys, folder):
    """
    (config files, [(key, text of its value or None, the argument)]) of a command line. Raises ValueError, and
    as find_config, saying what to type.
    """
    paths, overrides = [], []
    for argument in arguments:
        override = argument.lstrip(DASHES)
        dashes, (key, equals, text) = argument.removesuffix(override), override.partition('=')
        if not dashes and (not equals or argument.endswith('.py')):
            paths.append(find_config(argument, folder))
            continue
        if key and key not in keys:
            raise ValueError(f"{argument}: unknown key {key!r}{remedy_for(key, keys)}")
        if not key or dashes != '--' or (not equals and members(keys[key].kind) != (bool,)):
            example = f"--{key or 'seed'}={text or 'VALUE'}"
            raise ValueError(f"{argument}: overrides are --key=value, without spaces: {example}")
        overrides.append((key, text if equals else None, argument))
    return paths, overrides


def configure(namespace, *rooms, tasks=None, argv=None, names=False):
    """
    Override the settings in namespace, a script's globals, from argv (default: the command line). rooms:
    classes of settings; tasks: {name: class}, of which the setting `task` chooses one. Returns all settings
    as one object, flat. Raises ValueError for what does not fit, a key of another task, and contradictions,
    which a room's check(cfg) finds; FileNotFoundError for a missing config. names=True: returns also the
    arguments without dashes, which are no configs then.
    """
    argv = sys.argv[1:] if argv is None else argv
    plain = [argument for argument in argv if names and not argument.startswith('-')]
    sys.excepthook, warnings.formatwarning = one_line_errors, one_line_warning
    early.over()
    with open(namespace['__file__'], encoding='utf-8') as f:
        source = f.read()
    every_room = list(rooms)
    for task in (tasks or {}).values():
        every_room += [room for room in rooms_of(task) if room not in every_room]
    keys = read_keys(source, namespace)
    values = {key: namespace[key] for key in keys}
    for room in every_room:
        for key, setting in read_room(room).items():
            if key in keys:
                raise AssertionError(f"{key} is a setting of {keys[key].room} and of {setting.room}")
            keys[key], values[key] = setting, getattr(room, key)
    given = read_arguments([argument for argument in argv if argument not in plain], keys, values, namespace)
    values |= {key: value for key, (value, _) in given.items()}
    for key in values.keys() & namespace.keys():
        namespace[key] = values[key]
    cfg = types.SimpleNamespace(**values)
    if tasks:
        refuse_other_tasks(cfg, given, tasks)
        rooms += tuple(rooms_of(tasks[cfg.task]))
    for room in rooms:
        if hasattr(room, 'check'):
            room.check(cfg)
    return (plain, cfg) if names else cfg


def read_arguments(arguments, keys, values, namespace):
    """{key: (value, where it was given)} of config files, then overrides; --help is answered at once."""
    for argument in arguments:
        word, _, about = argument.partition('=')
        if word in ('-h', '--help'):
            print_help(namespace, keys, values, about)
            sys.exit(0)
    folder = os.path.dirname(os.path.abspath(namespace['__file__']))
    paths, overrides = split_arguments(arguments, keys, folder)
    given = {}
    for path in paths:
        for key, value in read_config_file(path, keys).items():
            given[key] = check(key, value, keys, path), path
    for key, text, argument in overrides:
        value = True if text is None else read_value(key, text, keys)
        given[key] = check(key, value, keys, argument), argument
    for key, (value, where) in given.items():
        if value == '' and values[key] != '':
            raise ValueError(f"{where}: {key} is empty; leave it out for {values[key]!r}")
    return given


def refuse_other_tasks(cfg, given, tasks):
    """Raises ValueError for a setting that the chosen task does not read."""
    for key, (_, where) in given.items():
        readers = [name for name in tasks if key in keys_of(tasks[name])]
        if key in tasks[cfg.task].refuses or (readers and cfg.task not in readers):
            whose = f", it is for {' and '.join(readers)}" if readers else ''
            raise ValueError(f"{where}: {key} is not a setting of task {cfg.task!r}{whose}: leave it out")


# -----------------------------------------------------------------------------
# --help, and errors as one line

def print_help(namespace, keys, values, room):
    """The script's docstring and each setting with its value and comment, room by room, or those of one."""
    rooms = list(dict.fromkeys(setting.room for setting in keys.values()))
    width = max(60, min(shutil.get_terminal_size().columns, 160))
    if room and room not in rooms:
        near = difflib.get_close_matches(room, rooms, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are the rooms {', '.join(rooms)}"
        raise ValueError(f"--help={room}: {meant}")
    if not room:
        print_lines((namespace.get('__doc__') or '').strip(), width)
        print_lines("\nSettings, in a config file or as --key=value; --key alone is --key=True.", width)
        if len(rooms) > 1:
            print_lines(f"--help=ROOM shows those of one: {', '.join(rooms)}.", width)
    heading = None
    for key, setting in keys.items():
        if room in ('', setting.room):
            if (setting.room, setting.heading) != heading:
                heading = setting.room, setting.heading
                title = [setting.room] if len(rooms) > 1 else []
                print_lines('\n' + ': '.join(title + [setting.heading] * bool(setting.heading)), width)
            print_setting(f'  --{key}={values[key]!r}', setting, width)


def print_lines(text, width):
    """The text's lines, each wrapped where it is wider than the terminal."""
    for line in text.split('\n'):
        print(textwrap.fill(line, width, subsequent_indent='    '))


def print_setting(start, setting, width):
    """A setting's line; its comment begins at column 40."""
    words = setting.comment
    if typing.get_origin(setting.kind) is typing.Literal and not words.startswith("'"):
        words = f"{' | '.join(map(str, typing.get_args(setting.kind)))}: {words}"
    indent = ' ' * 40
    text = textwrap.fill(words, width, initial_indent=indent, subsequent_indent=indent)
    print(start + text[len(start):] if len(start) < len(indent) else f'{start}\n{text}'.rstrip())


def one_line(text):
    """The text with line breaks and other unprintable characters as Python writes them."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def stdout_is_gone():
    """Whether the reader of our standard output, `head -1` say, has closed it; then nothing more is sent."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are reported always
    gone = bool(poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at the end
    return gone


def is_ours(file):
    file = os.path.abspath(file)
    return file.startswith(ROOT + os.sep) and 'site-packages' not in file


def one_line_warning(message, kind, file, *where, as_python=warnings.formatwarning):
    """Of a warning of ours the message; another tells its place too."""
    ours = kind is UserWarning and is_ours(file)
    return f"warning: {one_line(str(message))}\n" if ours else as_python(message, kind, file, *where)


def one_line_errors(kind, error, trace):
    """
    Of an error raised on purpose, by a `raise` of ours, the message is printed and nothing else. Any other is
    a bug, and keeps its traceback.
    """
    if kind is KeyboardInterrupt:
        return print('interrupted: what was being made is not saved', file=sys.stderr)
    if kind is BrokenPipeError and stdout_is_gone():
        return None
    *_, last = [None, *traceback.extract_tb(trace)]
    on_purpose = last and is_ours(last.filename) and last.line.startswith('raise')
    if not on_purpose or issubclass(kind, AssertionError):
        return sys.__excepthook__(kind, error, trace)
    line = one_line(str(error))  # a name in a user's file may hold a line break; a value may be a book
    if len(line) >= 2000:
        line = f'{line[:1200]} ... {line[-600:]}'
    return print('error:', line, file=sys.stderr)
