"""
How the process with the tests calls code that runs in another, over a socket. Plain values travel as copies;
pickled, but only as PLAIN types, so that none has methods of its own. Of all else a Remote stands for what stays
where it is, and forwards what is done with it. Each side serves the other while it waits.
"""
import builtins
import collections
import contextlib
import io
import math
import pickle
import sys

PLAIN = {f'builtins.{name}' for name in """int float complex bool str bytes bytearray list tuple dict set
frozenset range slice Ellipsis NotImplemented ellipsis NotImplementedType NoneType""".split()}
PLAIN |= {f'collections.{name}' for name in ('Counter', 'OrderedDict', 'defaultdict', 'deque')}
PLAIN |= {f'datetime.{name}' for name in ('date', 'datetime', 'time', 'timedelta')}
PLAIN |= {'fractions.Fraction', 'decimal.Decimal'}
ALONE = [f'__{name}__' for name in """len iter next str repr hash bool int float index round abs neg pos invert
reversed getitem setitem delitem enter exit""".split()]
BINARY = 'add sub mul truediv floordiv mod pow matmul and or xor lshift rshift'.split()
TOGETHER = {f'__{name}__' for name in ['lt', 'le', 'gt', 'ge', 'contains', *BINARY, *('r' + b for b in BINARY)]}


class Gone(BaseException):
    """The other process has ended. Not an Exception, so that no test takes it for one that it expects."""


# ---- values

def base_of(kind):
    """The plain type that this is or inherits from, or None."""
    return next((base for base in kind.__mro__ if f'{base.__module__}.{base.__name__}' in PLAIN), None)


def record(name, fields, values):
    return collections.namedtuple(name, fields)(*values)


ERRORS = {}  # classes of exceptions by what travels


def name_error(kind):
    key = kind.__module__, kind.__name__, next(b for b in kind.__mro__ if b.__module__ == 'builtins').__name__
    ERRORS[key] = kind
    return error_type, key


def error_type(module, name, base):
    """The class of exceptions of that name, else a new one of the built-in base."""
    parent = getattr(builtins, base)
    if not issubclass(parent, BaseException):
        raise TypeError(base)
    kind = getattr(sys.modules.get(module), name, None)
    if not (isinstance(kind, type) and issubclass(kind, parent)):
        kind = type(name, (parent,), {'__module__': module})
    return ERRORS.setdefault((module, name, base), kind)


def error(kind, args, attributes):
    made = BaseException.__new__(kind, *args)
    made.__dict__.update(attributes)
    return made


HELPERS = {'record': record, 'error_type': error_type, 'error': error, 'nan': math.nan,
           'dict_keys': lambda keys: dict.fromkeys(keys).keys(), 'dict_items': lambda pairs: dict(pairs).items(),
           'dict_values': lambda values: dict(enumerate(values)).values()}
NAMES = {id(helper): name for name, helper in HELPERS.items()}


class Pickler(pickle.Pickler):
    def __init__(self, file, link):
        super().__init__(file)
        self.link = link

    def persistent_id(self, value):
        kind = type(value)
        if id(value) in NAMES:
            return NAMES[id(value)]
        if isinstance(value, Remote):
            return 'yours', value.remote__[1]
        if isinstance(value, type):
            plain = base_of(value) is value or issubclass(value, BaseException)
        else:
            plain = kind not in self.link.own and (base_of(kind) or kind.__name__ in HELPERS)
        if plain or isinstance(value, BaseException):
            return None
        objects = self.link.objects
        number = self.link.numbers.setdefault(id(value), len(objects))
        if number == len(objects):
            objects.append(value)
        names = [n for n in (*ALONE, *TOGETHER) if getattr(kind, n, None) is not getattr(object, n, None)]
        own = kind in self.link.own or isinstance(value, type) and value in self.link.own
        return 'mine', number, tuple(names), own

    def reducer_override(self, value):
        kind = type(value)
        if isinstance(value, BaseException):
            return error, (kind, value.args, vars(value))
        if isinstance(value, type):
            return name_error(value) if issubclass(value, BaseException) else NotImplemented
        if kind.__name__ in HELPERS:
            return HELPERS[kind.__name__], (list(value),)
        base = base_of(kind)
        if base is tuple and hasattr(kind, '_fields'):
            return record, (kind.__name__, kind._fields, list(value))
        return (base, (base(value),)) if base not in (kind, None) else NotImplemented


class Unpickler(pickle._Unpickler):
    """BUILD, which may set attributes of classes, is not among its codes."""
    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BUILD[0]}

    def __init__(self, file, link):
        super().__init__(file)
        self.link = link

    def find_class(self, module, name):
        if f'{module}.{name}' in PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not plain")

    def persistent_load(self, key):
        if isinstance(key, str):
            return HELPERS[key]
        if key[0] == 'yours':
            return self.link.objects[key[1]]
        _, number, names, own = key
        remotes = self.link.remotes
        if number not in remotes:
            remotes[number] = make_remote(self.link, number, names, own and self.link.classes)
        return remotes[number]


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
        link, _, own = self.remote__
        if name in TOGETHER and not own and not all(isinstance(other, Remote) for other in others):
            return NotImplemented  # f(1) - 0.5 would tell the code what is expected
        return link.ask('special', self, name, *others)
    return method


def make_remote(link, number, names, own):
    """own: of a class that the tests name, which may meet plain values. names: of its type's methods."""
    names = {*ALONE, *TOGETHER}.intersection(names) - (set() if own else {'__contains__'})
    methods = {name: special(name) for name in names}
    remote = type('Remote', (Remote,), {'__slots__': (), '__hash__': object.__hash__} | methods)()
    object.__setattr__(remote, 'remote__', (link, number, own))
    return remote


def overwrite(old, new):
    """Make old, if it can be changed, what it has become on the other side."""
    if type(old) is not type(new) or old == new:
        return
    if isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, (dict, set, collections.deque)):
        old.clear()
        (old.extend if isinstance(old, collections.deque) else old.update)(new)


OPERATIONS = {
    'call': lambda function, args, kwargs: function(*args, **kwargs), 'getattr': getattr, 'setattr': setattr,
    'special': lambda value, name, *others: getattr(type(value), name)(value, *others), 'isinstance': isinstance,
}


# ---- the conversation

class Link:
    """One end. operations: {name: function}, what the other side may ask for."""

    def __init__(self, socket, operations):
        self.reads, self.writes = open(socket, 'rb'), open(socket, 'wb', closefd=False)
        self.operations, self.gone = operations, False
        self.own = set()      # classes of mine that the tests name
        self.classes = False  # may the other side have such?
        self.objects, self.numbers = [], {}  # mine that the other side knows; their numbers by id
        self.remotes = {}     # its objects, so that one is one Remote

    def send(self, *message):
        data = io.BytesIO()
        Pickler(data, self).dump(message)
        try:
            self.writes.write(data.getvalue())
            self.writes.flush()
        except OSError:
            self.gone = True
            raise Gone from None

    def receive(self):
        try:
            return Unpickler(self.reads, self).load()
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
        """Do it, and send ('value' or 'error', which one, the arguments as they are then, what was printed)."""
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


def serve_code(socket, code):
    """Run code as a module, then do what the side of the tests asks for, to its end."""
    module = type(sys)('candidate')  # dataclasses and the like look for one
    sys.modules['candidate'] = module
    scope = module.__dict__
    exec(compile(code, '<answer>', 'exec'), scope)

    def prepare(names, imports):
        """names: that the tests may ask for; imports: of the tests, which code may count on."""
        imported = {}
        exec(imports, imported)
        for name, value in imported.items():
            scope.setdefault(name, value)
        link.own |= {scope[name] for name in names if isinstance(scope.get(name), type)}

    def plain(value):
        base = base_of(type(value))
        return base(value) if base else value
    link = Link(socket, OPERATIONS | dict(prepare=prepare, fetch=scope.__getitem__, plain=plain))
    with contextlib.suppress(Gone):
        while True:
            link.serve(*link.receive()[1:])


def sit(socket, exam, examine):
    """The verdict of exam.examine on the code behind a socket."""
    def guarded(operation):
        def guard(target, *operands):
            reads = operation in (getattr, setattr)
            public = type(target).__module__ in ('__main__', '_io', 're') and not str(operands[0]).startswith('_')
            if id(target) not in link.numbers or reads and not public:
                raise AttributeError("not for the code: functions of the tests know what is expected")
            return operation(target, *operands)
        return guard
    link = Link(socket, {name: guarded(operation) for name, operation in OPERATIONS.items()})
    link.classes = any(name[0].isupper() for name in exam.names)
    try:
        link.ask('prepare', sorted(exam.names), exam.imports)
    except BaseException:  # the code itself raised, so nobody answers, or answers with what is no value
        return [0, exam.n]
    with link.reads:
        return examine(exam, lambda name: link.ask('fetch', name), lambda: link.gone)
