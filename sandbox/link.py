"""
How the process with the tests calls code that runs in another, over a socket. Plain values travel as copies:
pickled, but only of PLAIN types, so that none has methods of its own. Of all else a Remote stands for what
stays where it is, and forwards what is done with it. Each side serves the other while it waits.
"""
import builtins
import collections
import contextlib
import functools
import io
import math
import pickle
import sys

PLAIN = {f'builtins.{name}' for name in """int float complex bool str bytes bytearray list tuple dict set
frozenset range slice Ellipsis ellipsis NotImplemented NotImplementedType NoneType""".split()}
PLAIN |= {f'collections.{name}' for name in ('Counter', 'OrderedDict', 'defaultdict', 'deque')}
PLAIN |= {f'datetime.{name}' for name in ('date', 'datetime', 'time', 'timedelta')}
PLAIN |= {'fractions.Fraction', 'decimal.Decimal'}
SPECIAL = {name for name in dir(int) + dir(list) if name.startswith('__')} - set(dir(object))
SPECIAL |= {f'__{name}__' for name in 'lt le gt ge str repr hash next enter exit matmul'.split()}
ITEMS = {f'__{name}__' for name in 'getitem setitem delitem exit round'.split()}


class Gone(BaseException):
    """The other process has ended. Not an Exception, so that no test takes it for one that it expects."""


# ---- values

@functools.cache
def base_of(kind):
    """The plain type that this is or inherits from, or None."""
    return next((base for base in kind.__mro__ if f'{base.__module__}.{base.__name__}' in PLAIN), None)


ERRORS = {}  # classes of exceptions by what travels


def error_type(module, name, base):
    """The class of exceptions of that name, else a new one of the built-in base."""
    parent = getattr(builtins, base)
    kind = getattr(sys.modules.get(module), name, None)
    if not issubclass(parent, BaseException):
        raise TypeError(base)
    if not (isinstance(kind, type) and issubclass(kind, parent)):
        kind = type(name, (parent,), {})
    return ERRORS.setdefault((module, name, base), kind)


def error(kind, args, attributes):
    made = BaseException.__new__(kind, *args)
    made.__dict__.update(attributes)
    return made


HELPERS = {'error_type': error_type, 'error': error, 'nan': math.nan,
           'record': lambda name, fields, values: collections.namedtuple(name, fields)(*values),
           'dict_keys': lambda keys: dict.fromkeys(keys).keys(),
           'dict_items': lambda pairs: dict(pairs).items(),
           'dict_values': lambda values: dict(enumerate(values)).values()}
NAMES = {id(helper): name for name, helper in HELPERS.items()}


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        """None for what travels, else what the other side makes a Remote of, or finds in its own objects."""
        kind, link = type(value), self.link
        if id(value) in NAMES:
            return NAMES[id(value)]
        if isinstance(value, Remote):
            return 'yours', value.remote__[1]
        if isinstance(value, type):
            plain = base_of(value) is value or issubclass(value, BaseException)
        else:
            plain = base_of(kind) and not (link.classes and kind.__module__ == 'candidate')
        if plain or isinstance(value, BaseException) or kind.__name__ in HELPERS:
            return None
        number = link.numbers.setdefault(id(value), len(link.objects))
        if number == len(link.objects):
            link.objects.append(value)
        names = [n for n in SPECIAL if getattr(kind, n, None) is not getattr(object, n, None)]
        return 'mine', number, kind.__name__, names

    def reducer_override(self, value):
        kind = value if isinstance(value, type) else type(value)
        if issubclass(kind, BaseException):
            base = next(base for base in kind.__mro__ if base.__module__ == 'builtins')
            key = kind.__module__, kind.__name__, base.__name__
            ERRORS[key] = kind
            return (error_type, key) if kind is value else (error, (kind, value.args, vars(value)))
        base = base_of(kind)
        if kind is value or kind is base:
            return NotImplemented
        if base is tuple and hasattr(kind, '_fields'):
            return HELPERS['record'], (kind.__name__, kind._fields, list(value))
        return (base, (base(value),)) if base else (HELPERS[kind.__name__], (list(value),))


class Unpickler(pickle._Unpickler):
    """BUILD, which can set attributes of classes, is not among its codes."""
    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BUILD[0]}

    def find_class(self, module, name):
        if f'{module}.{name}' not in PLAIN:
            raise pickle.UnpicklingError(f"{module}.{name} is not plain")
        return super().find_class(module, name)

    def persistent_load(self, key):
        if isinstance(key, str):
            return HELPERS[key]
        if key[0] == 'yours':
            return self.link.objects[key[1]]
        _, number, kind, names = key
        if number not in self.link.remotes:  # one object, one Remote
            self.link.remotes[number] = make_remote(self.link, number, kind, names)
        return self.link.remotes[number]


# ---- what stands for an object of the other process

class Remote:
    __slots__ = ('remote__',)

    def __getattr__(self, name):
        return self.remote__[0].ask('getattr', self, name)

    def __setattr__(self, name, value):
        self.remote__[0].ask('setattr', self, name, value)

    def __call__(self, *args, **kwargs):
        return self.remote__[0].ask('call', self, args, kwargs)

    def __eq__(self, other):
        """What it is compared with may be what is expected, and stays here, unless it is remote too."""
        if isinstance(other, Remote):
            return self is other or self.remote__[0].ask('special', self, '__eq__', other)
        value = self.remote__[0].ask('plain', self)
        return NotImplemented if isinstance(value, Remote) else value == other

    def __instancecheck__(self, value):
        return isinstance(value, Remote) and self.remote__[0].ask('isinstance', value, self)


def special(name):
    def method(self, *others):
        link = self.remote__[0]
        meets_plain = any(not isinstance(other, Remote) for other in others)
        if meets_plain and name not in ITEMS and not link.classes:
            return NotImplemented  # f(1) - 0.5 would tell the code what is expected
        return link.ask('special', self, name, *others)
    return method


def make_remote(link, number, kind, names):
    """kind: the name of its type; names: of the type's special methods."""
    names = SPECIAL.intersection(names) - (set() if link.classes else {'__contains__'})
    methods = {name: special(name) for name in names}
    remote = type(kind, (Remote,), {'__slots__': (), '__hash__': object.__hash__} | methods)()
    object.__setattr__(remote, 'remote__', (link, number))
    return remote


def overwrite(old, new):
    """Make old, if it can be changed, what it has become on the other side."""
    if type(old) is type(new) and old != new:
        if isinstance(old, list) and len(old) == len(new):
            for i, pair in enumerate(zip(old, new, strict=True)):
                overwrite(*pair)  # the rows of a grid stay the same lists
                old[i] = pair[pair[0] != pair[1]]
        elif isinstance(old, (list, bytearray)):
            old[:] = new
        elif isinstance(old, (dict, set, collections.deque)):
            old.clear()
            (old.extend if isinstance(old, collections.deque) else old.update)(new)


# ---- the conversation

def call(function, args, kwargs):
    return function(*args, **kwargs)


def plain(value):
    base = base_of(type(value))
    return base(value) if base else value


OPERATIONS = {'call': call, 'getattr': getattr, 'setattr': setattr, 'isinstance': isinstance, 'plain': plain,
              'special': lambda value, name, *others: getattr(type(value), name)(value, *others)}


class Link:
    """
    One end. operations: {name: function}, what the other side may ask for; classes: do the tests use some of
    the code? Their objects may meet plain values.
    """

    def __init__(self, socket, operations, classes=False):
        self.file = open(socket, 'r+b', buffering=0)
        self.reads, self.operations, self.classes = io.BufferedReader(self.file), operations, classes
        self.objects, self.numbers = [], {}  # mine that the other side knows; their numbers by id
        self.remotes, self.gone = {}, False

    def send(self, *message):
        data = io.BytesIO()
        pickler = Pickler(data)
        pickler.link = self
        pickler.dump(message)
        rest = data.getvalue()
        try:
            while rest:
                rest = rest[self.file.write(rest):]
        except OSError:
            self.gone = True
            raise Gone from None

    def receive(self):
        unpickler = Unpickler(self.reads)
        unpickler.link = self
        try:
            return unpickler.load()
        except (EOFError, ConnectionError):
            self.gone = True
            raise Gone from None

    def ask(self, name, *operands):
        """What the other side returns, or raises; what it did to lists and the like is done to these too."""
        self.send('ask', name, operands)
        while (message := self.receive())[0] == 'ask':
            self.serve(*message[1:])
        kind, value, changed, printed = message
        sys.stdout.write(printed)
        arguments = [*operands[1], *operands[2].values()] if name == 'call' else ()
        for old, new in zip(arguments, changed, strict=False):
            overwrite(old, new)
            value = old if value is new else value
        if kind == 'error':
            raise value
        return value

    def serve(self, name, operands):
        """Do it, and send ('value' or 'error', which, the arguments as they are then, what was printed)."""
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                kind, value = 'value', self.operations[name](*operands)
        except Gone:
            raise
        except BaseException as e:  # SystemExit too
            kind, value = 'error', e
        arguments = [*operands[1], *operands[2].values()] if name == 'call' else []
        try:
            self.send(kind, value, arguments, printed.getvalue())
        except Exception as e:
            self.send('error', TypeError(f"no value: {e}"), [], '')


def serve_code(socket, code, imports, classes):
    """Run code as a module, which may count on the tests' imports, then do what the other side asks for."""
    module = type(sys)('candidate')  # dataclasses and the like look for one
    sys.modules['candidate'] = module
    scope, imported = module.__dict__, {}
    exec(compile(code, '<answer>', 'exec'), scope)
    exec(imports, imported)
    for name, value in imported.items():
        scope.setdefault(name, value)
    link = Link(socket, OPERATIONS | {'fetch': scope.__getitem__}, classes)
    with contextlib.suppress(Gone):
        while True:
            link.serve(*link.receive()[1:])


def sit(socket, exam, examine):
    """The verdict of exam.examine on the code behind a socket."""
    def guarded(operation):
        def guard(target, *operands):
            known = type(target).__module__ in ('__main__', '_io', 're')
            public = operation not in (getattr, setattr) or known and not str(operands[0]).startswith('_')
            if id(target) not in link.numbers or not public:
                raise AttributeError("not for the code: functions of the tests know what is expected")
            return operation(target, *operands)
        return guard
    guards = {name: guarded(operation) for name, operation in OPERATIONS.items()}
    link = Link(socket, guards, exam.classes)
    with link.file:
        link.file.write(b'.')  # the code may come
        return examine(exam, lambda name: link.ask('fetch', name), lambda: link.gone)
