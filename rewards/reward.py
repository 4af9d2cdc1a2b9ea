"""The registry REWARDS, what it holds, and the decorator that enters functions; see rewards/__init__.py."""
import dataclasses
import difflib
import importlib
import inspect
import itertools
import math
import os
import re
import traceback
import warnings
from collections.abc import Callable

REWARDS = {}  # name -> Reward
FIELDS = ('prompt', 'reference', 'tests', 'context')
TRL = ('prompts', 'completions', 'completion_ids')  # a function that names one is called as by TRL
TRL_EXTRAS = ('trainer_state', 'log_extra', 'log_metric')
PLURALS = ('texts', 'responses', 'answers', 'outputs', 'generations', 'samples', 'predictions', 'token_ids')
LIST = '(optional.)?(list|sequence|iterable|collection|tuple)'
FAILED = object()  # the score of a completion for which the reward raised
EMPTY = inspect.Parameter.empty
EVERY = inspect.Parameter('completions', inspect.Parameter.KEYWORD_ONLY)


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


def nowhere(*arguments, **named):
    """Where goes what a function logs through TRL's trainer: there is none."""


def form_of(argument):
    """
    What an argument for completions takes, by its annotation, else its name: 'text', 'ids' (a list of its
    tokens), 'texts' or 'all ids' (of all completions), 'unclear' where it reads like another list.
    """
    told = '' if argument.annotation is EMPTY else inspect.formatannotation(argument.annotation)
    told = re.sub(r"['\" ]|\w+\.", '', told).lower()
    if re.match(rf'{LIST}\[{LIST}\[int', told):
        return 'all ids'
    if re.match(rf'{LIST}\[int', told) or (argument.name == 'tokens' and not told):
        return 'ids'
    if re.match(rf'{LIST}(\[str|\[any|$)', told):
        return 'texts'
    is_list = re.match(rf'{LIST}|\w*(tensor|array)', told) or (argument.name in PLURALS and not told)
    return 'unclear' if is_list else 'text'


@dataclasses.dataclass(eq=False)
class Reward:
    """A function that scores completions, how to call it, and its parameters."""
    name: str
    function: Callable
    needs: tuple = ()           # fields without which it does not apply; arguments without a default join
    cheap: bool = False         # check_fields may try it on every record
    hackable: bool = False      # a worthless text can score high
    group: bool = False         # it takes the list of a group's texts
    batched: bool = False       # it takes the different texts of all groups, and a list for each field
    binary: bool = False        # 0 or 1, whatever it is asked
    catalogue: bool = False     # of a record it sees FIELDS alone: its parameters are the config's
    bounds: tuple = (-math.inf, math.inf)
    params: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Read the signature. Raises ValueError where no argument can be the completion."""
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # a built-in without one: it takes the text
            signature = inspect.signature(shorten)
        arguments = list(signature.parameters.values())
        positional = [a for a in arguments if a.kind not in (a.KEYWORD_ONLY, a.VAR_KEYWORD)]
        own = {a.name: a for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)}
        self.takes_any = bool(arguments) and arguments[-1].kind is inspect.Parameter.VAR_KEYWORD
        explicit, first = self.group or self.batched, positional[0] if positional else None
        self.as_trl = not explicit and bool(own.keys() & set(TRL) or (self.takes_any and not first))
        if self.as_trl:
            first = own.get('completions', EVERY)
        elif first is None or first.name in FIELDS:
            raise ValueError(f"reward {self.name!r} takes {signature}: its first argument must be the text")
        self.form = form_of(first)
        as_one = self.form == 'ids' or first.annotation in (str, 'str')
        if not explicit and (as_one if self.as_trl else self.form == 'unclear'):
            raise ValueError(f"reward {self.name!r}: `{first}` may be a text (text: str), all texts of the "
                             "step (texts: list[str], completions) or their ids (list[list[int]]): say which")
        self.whole = self.as_trl or (not explicit and self.form in ('texts', 'all ids'))
        theirs = (*TRL, *TRL_EXTRAS) if self.as_trl else ()
        self.extras = [name for name in theirs if name in own or self.takes_any]
        others = own.keys() - {*self.extras, first.name, 'tokens'}
        self.defaults = {name: argument.default for name, argument in own.items() if name in others}
        asked = {'tokens', 'completion_ids'} & own.keys()
        self.takes_tokens = bool(asked) or 'ids' in self.form or self.takes_any
        required = [name for name, default in self.defaults.items() if default is EMPTY]
        self.needs = tuple(dict.fromkeys((*self.needs, *required)))
        self.wanted = [name for name in self.needs if name not in self.params]
        self.hidden = {*self.params, *self.extras, first.name, 'tokens'}  # of records' columns
        if self.as_trl:  # as there, unless the function names them; the reference is the answer again
            self.hidden |= {'prompt', 'completion', 'reference'} - self.defaults.keys()

    def bind(self, name, params, provided=None):
        """
        This reward as `name` with params, and with what it takes of `provided`. Raises ValueError for a
        parameter that the function does not take. What it lacks, records must have: see check_fields.
        """
        params = {key: value for key, value in (provided or {}).items() if key in self.defaults} | params
        own = sorted(set(self.defaults) - set(FIELDS))
        for key in params:
            if key in (*FIELDS, *self.extras, 'tokens') or not (key in own or self.takes_any):
                raise ValueError(f"reward {name!r} has no parameter {key!r}; {hint(key, own)}")
        by_model = bool(params.get('model') or params.get('scorer'))
        return dataclasses.replace(self, name=name, params=params, hackable=self.hackable and not by_model)

    def missing(self, fields):
        return [need for need in self.wanted if fields.get(need) is None]

    def why_none(self, fields):
        """Why it does not apply to a record with these fields."""
        if missing := self.missing(fields):
            return f"it needs {' and '.join(missing)}"
        given = [f"{need} {shorten(str(fields[need]))}" for need in self.wanted]
        return f"it can do nothing with the {' and '.join(given)}" if given else "it returned None"

    def check_columns(self, columns):
        """Raises ValueError for an argument that is neither in params nor a column of any record."""
        for need in self.wanted:
            if need not in columns and need not in FIELDS:
                near = difflib.get_close_matches(need, columns, n=1)
                meant = f"; did you mean {near[0]!r}?" if near else "; or give it in params"
                raise ValueError(f"reward {self.name!r} needs {need!r}; records have: "
                                 f"{', '.join(map(str, columns))}{meant}")

    def clashes(self, columns):
        """The parameters that records have too: the config's count."""
        return [] if self.catalogue else [key for key in self.params if key in columns]

    def __call__(self, text, **fields):
        """The score of one completion, float or None."""
        return self.scores([[text]], [fields])[0][0]

    def scores(self, groups, records, errors='raise', tokens=None):
        """
        P lists of G float, None where it does not apply, or, with errors 'drop', FAILED where it raises.
        groups: P lists of G completions; records: P dicts of fields; tokens: the completions' ids, P lists of
        G lists, for functions that take them.
        """
        scores = [[None] * len(texts) for texts in groups]
        applies = [p for p, record in enumerate(records) if not self.missing(record)]
        if self.batched or self.whole:
            for (p, g), value in self.score_all(groups, records, applies, tokens).items():
                scores[p][g] = value
            return scores
        for p in applies:
            texts, ids, fields = groups[p], tokens and tokens[p], self.fields_of(records[p])
            if self.group:
                scores[p] = self.try_call(texts, ids, fields, errors)
                continue
            for g, text in enumerate(texts):
                scores[p][g] = self.try_call(text, ids and ids[g], fields, errors)
        return scores

    def names(self, columns):
        """Those of records' columns that the function takes."""
        if self.catalogue:
            return [name for name in FIELDS if name in self.defaults]
        return [name for name in (columns if self.takes_any else self.defaults) if name not in self.hidden]

    def fields_of(self, record):
        """What the function takes of a record. None is left to the argument's default."""
        record = dict.fromkeys(FIELDS) | record
        picked = [(name, record.get(name)) for name in self.names(record)]
        return {name: value for name, value in picked if value is not None or name not in self.defaults}

    def score_all(self, groups, records, applies, tokens):
        """
        {(p, g): score} by one call for all completions, with a list for each field; of equal completions of a
        prompt a batched function sees one. Whatever fails is raised.
        """
        every, slots = [(p, g) for p in applies for g in range(len(groups[p]))], {}
        for p, g in every:
            slots.setdefault((p, groups[p][g] if self.batched else g), (p, g))
        rows = list(slots.values())
        texts, ids = [groups[p][g] for p, g in rows], tokens and [tokens[p][g] for p, g in rows]
        mine, fields = [records[p] for p, _ in rows], {}
        for name in self.names(dict.fromkeys(itertools.chain.from_iterable(mine))):
            column = [record.get(name) for record in mine]
            if name in FIELDS or name not in self.defaults or any(value is not None for value in column):
                fields[name] = column
        if self.as_trl:
            fields |= self.trl_fields(texts, ids, [record.get('prompt') for record in mine])
        values = dict(zip(rows, self.call(texts, ids, fields) if rows else (), strict=True))
        return {(p, g): values[slots[p, groups[p][g] if self.batched else g]] for p, g in every}

    def trl_fields(self, texts, ids, prompts):
        """
        What TRL's GRPOTrainer passes beside the columns. Where a prompt is a list of messages, its completion
        is one too. There is no trainer: its state is None.
        """
        completions = [[{'role': 'assistant', 'content': text}] if isinstance(prompt, list) else text
                       for text, prompt in zip(texts, prompts, strict=True)]
        values = {'prompts': prompts, 'completions': ids if self.form == 'all ids' else completions,
                  'completion_ids': ids, 'trainer_state': None, 'log_extra': nowhere, 'log_metric': nowhere}
        return {name: values[name] for name in self.extras}

    def try_call(self, texts, ids, fields, errors):
        try:
            return self.call(texts, ids, fields)
        except (RuntimeError, ValueError) as e:
            if errors == 'raise':
                raise
            warnings.warn(f"completions left out: {e}", stacklevel=2)
            return [FAILED] * len(texts) if self.group else FAILED

    def call(self, texts, ids, fields):
        """
        The function's float | None for a text, or for each of a list of them; ids: their tokens. Raises
        RuntimeError for what it raises, ValueError for what it returns, ConnectionError for a lost service.
        """
        mine, several = f"reward {self.name!r}", isinstance(texts, list)
        if ids is not None and self.takes_tokens and not self.as_trl and 'ids' not in self.form:
            fields = fields | {'tokens': ids}
        first = ids if 'ids' in self.form else texts
        try:
            values = self.function(*([] if self.as_trl else [first]), **fields, **self.params)
        except ConnectionError as e:  # the run saves and stops
            raise ConnectionError(f"{mine}: {e}") from e
        except Exception as e:
            frame, shown = traceback.extract_tb(e.__traceback__)[-1], texts[0] if several else texts
            error = f"{type(e).__name__}: {e} ({os.path.relpath(frame.filename)}, line {frame.lineno})"
            more = f" and {len(texts) - 1} more" if several and len(texts) > 1 else ''
            raise RuntimeError(f"{mine} raised {error} for completion {shorten(shown)}{more}") from e
        if not several:
            return self.checked(values, texts)
        try:
            values = list(values)
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
    """Enter a function, which stays as it is, into REWARDS."""
    def enter(function):
        name, options = function.__name__, {'cheap': cheap, 'catalogue': True, 'bounds': (0.0, 1.0), **flags}
        REWARDS[name] = Reward(name, function, **options)
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
