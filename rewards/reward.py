"""The registry REWARDS, what it holds, and the decorator that enters functions; see rewards/__init__.py."""
import dataclasses
import difflib
import importlib
import inspect
import math
import os
import traceback
import warnings
from collections.abc import Callable

REWARDS = {}  # name -> Reward
FIELDS = ('prompt', 'reference', 'tests', 'context')
FAILED = object()  # the score of a completion for which the reward raised
EMPTY = inspect.Parameter.empty


def shorten(text, limit=80):
    return repr(text if len(text) <= limit else text[:limit - 3] + '...')


def hint(name, names):
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"


def optional(module, told):
    """A package that not all users have. told: the ImportError where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(told) from None


@dataclasses.dataclass(eq=False)
class Reward:
    """A function that scores completions, how to call it, and its parameters."""
    name: str
    function: Callable
    needs: tuple = ()           # the fields without which it does not apply
    cheap: bool = False         # check_fields may try it on every record
    hackable: bool = False      # a worthless text can score high
    group: bool = False         # it takes the list of a group's texts
    batched: bool = False       # it takes the different texts of all groups, and a list for each field
    bounds: tuple = (-math.inf, math.inf)
    params: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Read the signature. Raises ValueError unless the first argument can be the completion."""
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # a built-in without one: it takes the text
            signature = inspect.signature(shorten)
        arguments = list(signature.parameters.values())
        positional = [a.name for a in arguments if a.kind not in (a.KEYWORD_ONLY, a.VAR_KEYWORD)]
        if not positional or positional[0] in FIELDS:
            raise ValueError(f"reward {self.name!r} takes {signature}: its first argument must be the text")
        named = [a for a in arguments[1:] if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]
        self.defaults = {a.name: a.default for a in named}
        self.takes_any = arguments[-1].kind is inspect.Parameter.VAR_KEYWORD
        self.fields = [name for name in FIELDS if self.takes_any or name in self.defaults]

    def bind(self, name, params, provided=None):
        """
        This reward as `name` with params, and with what it takes of `provided`. Raises ValueError for a
        parameter that the function does not take, or lacks.
        """
        params = {key: value for key, value in (provided or {}).items() if key in self.defaults} | params
        own = sorted(set(self.defaults) - set(FIELDS))
        for key in params:
            if key in FIELDS or not (key in own or self.takes_any):
                raise ValueError(f"reward {name!r} has no parameter {key!r}; {hint(key, own)}")
        for key in own:
            if self.defaults[key] is EMPTY and key not in params:
                raise ValueError(f"reward {name!r} needs the argument {key!r}: give it in params")
        by_model = bool(params.get('model') or params.get('scorer'))
        return dataclasses.replace(self, name=name, params=params, hackable=self.hackable and not by_model)

    def missing(self, fields):
        return [need for need in self.needs if fields.get(need) is None]

    def why_none(self, fields):
        """Why it does not apply to a record with these fields."""
        if missing := self.missing(fields):
            return f"it needs {' and '.join(missing)}"
        given = [f"{need} {shorten(str(fields[need]))}" for need in self.needs]
        return f"it can do nothing with the {' and '.join(given)}" if given else "it returned None"

    def __call__(self, text, **fields):
        """The score of one completion, float or None."""
        return self.scores([[text]], [dict.fromkeys(FIELDS) | fields])[0][0]

    def scores(self, groups, records, errors='raise'):
        """
        P lists of G float, None where it does not apply, or, with errors 'drop', FAILED where it raises.
        groups: P lists of G completions; records: P dicts of fields.
        """
        scores = [[None] * len(texts) for texts in groups]
        applies = [p for p, record in enumerate(records) if not self.missing(record)]
        batch = self.score_batch(groups, records, applies) if self.batched else {}
        for p in applies:
            if self.batched:
                scores[p] = [batch[p, text] for text in groups[p]]
            elif self.group:
                scores[p] = self.try_call(groups[p], records[p], errors)
            else:
                scores[p] = [self.try_call([text], records[p], errors)[0] for text in groups[p]]
        return scores

    def score_batch(self, groups, records, applies):
        """{(p, text): score} by one call, each different text of a prompt once. Whatever fails is raised."""
        slots = [(p, text) for p in applies for text in dict.fromkeys(groups[p])]
        columns = {}
        for name in self.fields:
            columns[name] = [records[p][name] for p, _ in slots]
        values = self.call([text for _, text in slots], columns) if slots else []
        return dict(zip(slots, values, strict=True))

    def try_call(self, texts, record, errors):
        try:
            return self.call(texts, {name: record[name] for name in self.fields})
        except (RuntimeError, ValueError) as e:
            if errors == 'raise':
                raise
            warnings.warn(f"completions left out: {e}", stacklevel=2)
            return [FAILED] * len(texts)

    def call(self, texts, fields):
        """
        A float | None for each text. Raises RuntimeError for what the function raises, ValueError for what it
        returns, ConnectionError for a service that is gone.
        """
        mine, takes_list = f"reward {self.name!r}", self.group or self.batched
        try:
            values = self.function(texts if takes_list else texts[0], **fields, **self.params)
        except ConnectionError as e:  # the run saves and stops
            raise ConnectionError(f"{mine}: {e}") from e
        except Exception as e:
            frame = traceback.extract_tb(e.__traceback__)[-1]
            error = f"{type(e).__name__}: {e} ({os.path.relpath(frame.filename)}, line {frame.lineno})"
            more = f" and {len(texts) - 1} more" if len(texts) > 1 else ''
            raise RuntimeError(f"{mine} raised {error} for completion {shorten(texts[0])}{more}") from e
        try:
            values = list(values) if takes_list else [values]
        except TypeError:
            raise ValueError(f"{mine} returned {shorten(repr(values))}, not a list of scores") from None
        if len(values) != len(texts):
            raise ValueError(f"{mine} returned a list of {len(values)} for {len(texts)} texts")
        return [self.checked(value, text) for value, text in zip(values, texts, strict=True)]

    def checked(self, value, text):
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
            number = math.nan
        low, high = self.bounds
        if math.isfinite(number) and low <= number <= high:
            return number
        wanted = f"a number from {low:g} to {high:g}" if math.isfinite(low) else "a finite number"
        got = f"{shorten(repr(value))} ({type(value).__name__})"
        raise ValueError(f"reward {self.name!r} returned {got}, not {wanted}, for completion {shorten(text)}")


def reward(*, cheap=True, **flags):
    """Enter a function, which stays as it is, into REWARDS. It needs the fields that have no default."""
    def enter(function):
        name, arguments = function.__name__, inspect.signature(function).parameters
        needs = tuple(field for field in FIELDS if field in arguments and arguments[field].default is EMPTY)
        REWARDS[name] = Reward(name, function, needs, cheap, bounds=(0.0, 1.0), **flags)
        return function
    return enter


def find_reward(function):
    """The Reward of a name or function: the catalogue's, or a custom one by its attributes (group = True)."""
    if isinstance(function, str):
        if function not in REWARDS:
            raise ValueError(f"there is no reward {function!r}; {hint(function, REWARDS)}")
        return REWARDS[function]
    for entry in REWARDS.values():
        if function is entry.function:
            return entry
    if isinstance(function, Reward):
        return function
    name = getattr(function, '__name__', type(function).__name__).strip('<>')
    keys = ('needs', 'cheap', 'hackable', 'group', 'batched')
    return Reward(name, function, **{key: getattr(function, key) for key in keys if hasattr(function, key)})
