"""
Configuration without a framework, after nanoGPT: a script opens with a block of plain globals, then calls

    config = configure(globals())

The command line overrides them: `python train_grpo.py config/grpo_config.py --seed=2`. Later wins: defaults, then config
files in the order given, then --key=value. A config file is Python and sets the same names; functions it defines are
welcome as values. Values on the command line are Python literals, and bare words are strings; --quiet alone is --quiet=True. A name annotated
`key: float | None = None` takes those types; any other takes the type of its default (an int will do for a float).
"""
import ast
import difflib
import linecache
import os
import select
import sys
import types


def settings_block(source):
    """The statements among which the call of configure stands: of the script, or, where it is also imported, of its `if __name__ == '__main__':`."""
    body = ast.parse(source).body
    calls = lambda node: isinstance(getattr(node, 'value', None), ast.Call) and getattr(node.value.func, 'id', '') == 'configure'
    return next((node.body for node in body if isinstance(node, ast.If) and any(map(calls, node.body))), body)


def read_keys(source):
    """The settings above the call of configure, {name: (allowed type, comment)} in order, read from the script's own text."""
    keys, lines = {}, source.splitlines()
    for node in settings_block(source):
        value = getattr(node, 'value', None)
        if isinstance(value, ast.Call) and getattr(value.func, 'id', '') == 'configure':
            break
        if isinstance(node, ast.AnnAssign):
            target, kind = node.target, eval(ast.unparse(node.annotation))
        elif isinstance(node, ast.Assign) and is_literal(value):
            target, kind = node.targets[0], type(ast.literal_eval(value))
        else:
            continue
        _, _, comment = lines[node.end_lineno - 1][node.end_col_offset:].partition('#')
        keys[target.id] = kind, comment.strip()
    return keys


def is_literal(node):
    try:
        ast.literal_eval(node)
        return True
    except ValueError:
        return False


def name_of(kind):
    return str(kind) if isinstance(kind, types.UnionType) else kind.__name__


def shown(value):
    """repr, which fails of a number with thousands of digits, of lists nested a thousand deep, and where a class of the config's own says so."""
    try:
        return repr(value)
    except Exception:
        return 'a value that cannot be printed'


def check(key, value, keys, where):
    """The value, with int made float and list made tuple (or back) where the key wants that. Raises ValueError naming the key."""
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        raise ValueError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "; --help lists them all" + ("; a name of the file's own begins with _" if '.py' in where else '')))
    kind = keys[key][0]
    kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
    if type(value) in kinds or object in kinds:
        return value
    if type(value) is int and float in kinds and abs(value) <= sys.float_info.max:
        return float(value)
    for sequence in {list, tuple} & set(kinds):
        if type(value) in (list, tuple):
            return sequence(value)
    raise ValueError(f"{where}: {key} must be {name_of(kind)}, not {shown(value)} ({type(value).__name__})")


def read_config_file(path, keys):
    """The values that a config file sets. Functions, classes and modules it needs for itself are its own business, as are _names."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no config file {path!r} (overrides are written --key=value)")
    names = {'__file__': path, '__name__': 'config'}
    try:
        with open(path, encoding='utf-8') as f:
            source = f.read()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text (byte {e.start})") from None
    try:
        program = compile(source, path, 'exec')
    except SyntaxError as e:
        raise ValueError(f"{path}, line {e.lineno}: {e.msg}") from None
    except (ValueError, MemoryError, RecursionError):
        raise ValueError(f"{path} is no Python that can be read: it holds a NUL character, or is nested too deep") from None
    try:
        exec(program, names)
    except Exception as e:
        line, trace = 0, e.__traceback__
        while trace:
            line, trace = trace.tb_lineno if trace.tb_frame.f_code.co_filename == path else line, trace.tb_next
        raise ValueError(f"{path}, line {line}: {type(e).__name__}: {e}") from None
    machinery = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)
    return {k: v for k, v in names.items() if k in keys or not (k.startswith('_') or isinstance(v, machinery))}


def read_override(argument, keys):
    """--key=value as (key, value); --key alone is True, where that is what the key takes."""
    key, equals, text = argument[2:].partition('=')
    if not equals and keys.get(key, (None,))[0] is bool:
        return key, True
    if not equals:
        raise ValueError(f"{argument}: overrides are written --key=value, with an equals sign")
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError):  # what its documentation lists, and a sum of numbers
        value = text
    if key in keys and keys[key][0] is str and not isinstance(value, str):
        value = text  # --wandb_run_name=7 means the string
    return key, value


def print_help(namespace, source, keys):
    """The script's docstring, then each setting with its present value and comment, under the headings of the settings block."""
    print((namespace.get('__doc__') or '').strip() + "\n\nSettings, in a config file or as --key=value; where the value is True or False, --key alone is --key=True:")
    start = settings_block(source)[0].lineno - 1
    for line in source[:source.index('configure(globals()')].splitlines()[start:]:
        line = line.strip()
        if line.startswith('# '):
            print(f'\n{line[2:]}')
        key = line.partition('=')[0].partition(':')[0].strip()
        if key in keys:
            print(f"  --{key}={namespace[key]!r}".ljust(52), keys[key][1])


def one_line(text):
    """The text with what is no printable character, a line break or what moves a terminal's cursor, as Python writes it."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def stdout_is_gone():
    """Whether who reads our standard output, `head -1` say, has closed it. Then it is turned away from there, or Python would complain as it flushes at the end."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are told of always
    gone = bool(poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def one_line_errors(kind, error, trace):
    """
    An error that this repo raises on purpose (its last line is a `raise` of ours) is for the user: print its message
    and nothing else. Any other is a bug, and keeps its traceback.
    """
    if kind is KeyboardInterrupt:
        return print('interrupted: what was being made is not saved', file=sys.stderr)
    if kind is BrokenPipeError and stdout_is_gone():
        return None
    last = trace
    while last and last.tb_next:
        last = last.tb_next
    file = last.tb_frame.f_code.co_filename if last else ''
    ours = 'site-packages' not in file and os.path.dirname(os.path.abspath(file)).startswith(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if ours and linecache.getline(file, last.tb_lineno).strip().startswith('raise') and not issubclass(kind, AssertionError):
        line = one_line(str(error))  # a name in someone's file may hold a line break; a value may be a book
        print('error:', line if len(line) < 2000 else f'{line[:1200]} ... {line[-600:]}', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def configure(namespace, argv=None):
    """Override namespace's settings from argv (default: the command line) and return them as a dict. Raises ValueError, FileNotFoundError."""
    sys.excepthook = one_line_errors
    with open(namespace['__file__'], encoding='utf-8') as f:
        source = f.read()
    keys = read_keys(source)
    arguments = sys.argv[1:] if argv is None else argv
    if '--help' in arguments or '-h' in arguments:
        print_help(namespace, source, keys)
        sys.exit(0)
    overrides = [a for a in arguments if a.startswith('-')]
    for path in (a for a in arguments if not a.startswith('-')):
        for key, value in read_config_file(path, keys).items():
            namespace[key] = check(key, value, keys, path)
    for argument in overrides:
        if not argument.startswith('--'):
            raise ValueError(f"{argument}: overrides are written --key=value")
        key, value = read_override(argument, keys)
        namespace[key] = check(key, value, keys, argument)
    return {key: namespace[key] for key in keys}
