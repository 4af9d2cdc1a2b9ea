"""
The class `Reward`, the registry REWARDS and the decorator that enters functions into it; rewards/__init__.py
says what such a function does.
"""
import dataclasses
import difflib
import inspect
import math
import os
import traceback
import warnings
from collections.abc import Callable

REWARDS = {}  # name -> Reward
FIELDS = ('prompt', 'reference', 'tests', 'context')
FAILED = object()  # the score of a completion for which the reward raised


def shorten(text, limit=80):
    return repr(text if len(text) <= limit else text[:limit - 3] + '...')


def nearest(name, names):
    """'; did you mean ...?', or '' where nothing is near."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ''


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
        kinds, mine = inspect.Parameter, f"reward {self.name!r}"
        try:
            arguments = list(inspect.signature(self.function).parameters.values())
        except ValueError:  # some built-ins have no signature
            arguments = [kinds('text', kinds.POSITIONAL_ONLY)]
        if not arguments or arguments[0].kind in (kinds.KEYWORD_ONLY, kinds.VAR_KEYWORD):
            raise ValueError(f"{mine} takes no completion: its first argument must be the text")
        first, *rest = arguments
        if first.name in FIELDS:
            raise ValueError(f"{mine} takes {first.name!r} first: its first argument must be the text")
        named = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        self.defaults = {a.name: a.default for a in rest if a.kind in named}
        self.takes_any = any(a.kind is kinds.VAR_KEYWORD for a in rest)
        self.fields = [name for name in FIELDS if self.takes_any or name in self.defaults]

    def bind(self, name, params, provided=None):
        """
        This reward as `name`, with its parameters. provided: arguments for the functions that take them;
        params go first. Raises ValueError for a parameter that the function does not take, or lacks.
        """
        params = {key: value for key, value in (provided or {}).items() if key in self.defaults} | params
        own = sorted(set(self.defaults) - set(FIELDS))
        for key in params:
            if key in FIELDS or not (key in own or self.takes_any):
                hint = nearest(key, own) or f"; it has: {', '.join(own) or 'none'}"
                raise ValueError(f"reward {name!r} has no parameter {key!r}{hint}")
        for key in own:
            if self.defaults[key] is inspect.Parameter.empty and key not in params:
                raise ValueError(f"reward {name!r} needs the argument {key!r}: give it in params")
        by_model = bool(params.get('model') or params.get('scorer'))
        return dataclasses.replace(self, name=name, params=params, hackable=self.hackable and not by_model)

    def __call__(self, text, **fields):
        """The score of one completion, float or None."""
        return self.scores([[text]], [dict.fromkeys(FIELDS) | fields])[0][0]

    def scores(self, groups, records, errors='raise'):
        """
        groups: P lists of G completions; records: P dicts of fields. Returns P lists of G float, None where
        the reward does not apply, or, with errors 'drop', FAILED where it raises.
        """
        fields = [self.fields_from(record) for record in records]
        if self.batched:
            return self.score_batch(groups, fields)
        score = self.score_group if self.group else self.score_each
        scores = []
        for texts, given in zip(groups, fields, strict=True):
            scores.append([None] * len(texts) if given is None else score(texts, given, errors))
        return scores

    def fields_from(self, record):
        """The record's fields that the function takes; None where a needed one is missing."""
        if any(record[need] is None for need in self.needs):
            return None
        return {name: record[name] for name in self.fields if name in record}

    def score_each(self, texts, fields, errors):
        """A call for each completion of a group."""
        return [self.score_group([text], fields, errors)[0] for text in texts]

    def score_group(self, texts, fields, errors):
        """One call for a group."""
        try:
            return self.call(texts, fields)
        except (RuntimeError, ValueError) as e:
            if errors == 'raise':
                raise
            warnings.warn(f"completions left out: {e}", stacklevel=2)
            return [FAILED] * len(texts)

    def score_batch(self, groups, fields):
        """One call for all groups, each different text of a prompt once. It raises whatever `errors` says."""
        slots = []
        for p, texts in enumerate(groups):
            slots += [] if fields[p] is None else [(p, text) for text in dict.fromkeys(texts)]
        columns, values = {}, []
        if slots:
            for name in fields[slots[0][0]]:
                columns[name] = [fields[p][name] for p, _ in slots]
            values = self.call([text for _, text in slots], columns)
        by_slot, scores = dict(zip(slots, values, strict=True)), []
        for p, texts in enumerate(groups):
            scores.append([by_slot.get((p, text)) for text in texts])
        return scores

    def call(self, texts, fields):
        """
        A float | None for each text. Raises, with the reward's name, RuntimeError for what the function
        raises, ValueError for what it returns, ConnectionError for a service that is gone.
        """
        mine, takes_list = f"reward {self.name!r}", self.group or self.batched
        try:
            values = self.function(texts if takes_list else texts[0], **fields, **self.params)
        except ConnectionError as e:  # not the reward's fault: the run saves and stops
            raise ConnectionError(f"{mine}: {e}") from e
        except Exception as e:
            frame = traceback.extract_tb(e.__traceback__)[-1]
            error = f"{type(e).__name__}: {e} ({os.path.relpath(frame.filename)}, line {frame.lineno})"
            more = f" and {len(texts) - 1} more" if len(texts) > 1 else ''
            raise RuntimeError(f"{mine} raised {error} for completion {shorten(texts[0])}{more}") from e
        if not takes_list:
            values = [values]
        listed = hasattr(values, '__len__') and not isinstance(values, str)
        if not listed or len(values) != len(texts):
            wanted = f"{len(texts)} texts: it must be a list with a value for each"
            raise ValueError(f"{mine} returned {shorten(repr(values))} for {wanted}")
        return [self.checked(value, text) for value, text in zip(values, texts, strict=True)]

    def checked(self, value, text):
        """A value as a float, or None. Raises ValueError for what is no number or out of bounds."""
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


def reward(name, needs=(), cheap=True, hackable=False, group=False, batched=False):
    """Enter a function, which stays as it is, into REWARDS, with scores from 0 to 1; see Reward."""
    def enter(function):
        REWARDS[name] = Reward(name, function, needs, cheap, hackable, group, batched, bounds=(0.0, 1.0))
        return function
    return enter


def find_reward(name: str):
    if name not in REWARDS:
        names = ', '.join(REWARDS)
        raise ValueError(f"there is no reward {name!r}{nearest(name, REWARDS)} (there are: {names})")
    return REWARDS[name]


def as_reward(name, function):
    """A function as a Reward: the catalogue's, or a custom one by its attributes (group = True)."""
    for entry in REWARDS.values():
        if function in (entry, entry.function):
            return entry
    keys = ('needs', 'cheap', 'hackable', 'group', 'batched')
    return Reward(name, function, **{key: getattr(function, key) for key in keys if hasattr(function, key)})
