"""The registry REWARDS, what it holds, and the decorator that enters functions; see rewards/__init__.py."""
import asyncio
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import os
import re
import threading
import traceback
import warnings
from collections.abc import Callable

from judge import RUBRICS
from runtime.scorer import in_threads

REWARDS = {}  # name -> Reward
FIELDS = ('prompt', 'reference', 'tests', 'context')
MORE = ('prompt_read', 'instruction_id_list', 'kwargs')  # columns that the catalogue sees too
TRL = ('prompts', 'completions', 'completion_ids', 'trainer_state', 'log_extra', 'log_metric')
PLURALS = ('texts', 'responses', 'answers', 'outputs', 'generations', 'samples', 'predictions', 'token_ids')
LIST = '(optional.)?(list|sequence|iterable|collection|tuple)'
FORMS = {rf'{LIST}\[{LIST}\[int': 'all ids', rf'{LIST}\[int': 'ids', rf'{LIST}(\[str|\[any|$)': 'texts',
         rf'{LIST}|\w*(tensor|array)': 'unclear'}  # of annotations; the first that fits
FAILED = object()  # the score of a completion for which the reward raised
EMPTY = inspect.Parameter.empty
EVERY = inspect.Parameter('completions', inspect.Parameter.KEYWORD_ONLY)


def shorten(text, limit=80):
    return repr(text if len(text) <= limit else text[:limit - 3] + '...')


def hint(name, names):
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"


@functools.cache
def event_loop():
    """One in a thread, which stays: what a coroutine opens belongs to its loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def is_async(function):
    function = getattr(function, 'func', function)  # of functools.partial
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def nowhere(*arguments, **named):
    """Where goes what a function logs through TRL's trainer: there is none."""


def form_of(argument):
    """
    What an argument for completions takes, by its annotation, else its name: 'text' or 'ids' of one, 'texts'
    or 'all ids' of all, 'unclear' where it reads like another list.
    """
    if argument.annotation is EMPTY:
        return {'tokens': 'ids'}.get(argument.name, 'unclear' if argument.name in PLURALS else 'text')
    told = re.sub(r"['\" ]|\w+\.", '', inspect.formatannotation(argument.annotation)).lower()
    return next((form for pattern, form in FORMS.items() if re.match(pattern, told)), 'text')


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
    catalogue: bool = False     # it scores from 0 to 1, and of a record it sees FIELDS alone
    params: dict = dataclasses.field(default_factory=dict)
    kind = 'reward'

    def __str__(self):
        return f"{self.kind} {self.name!r}"

    def __post_init__(self):
        """Read the signature. Raises ValueError where no argument can be the completion."""
        self.causes = set()
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # a built-in without one: it takes the text
            signature = inspect.signature(shorten)
        arguments = list(signature.parameters.values())
        first = next((a for a in arguments if a.kind not in (a.KEYWORD_ONLY, a.VAR_KEYWORD)), None)
        own = {a.name: a for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)}
        self.takes_any = bool(arguments) and arguments[-1].kind is inspect.Parameter.VAR_KEYWORD
        explicit = self.group or self.batched
        named = own.keys() & TRL[:3]  # then it is called as by TRL
        self.as_trl = not explicit and bool(named or (self.takes_any and not first))
        if self.as_trl:
            first = own.get('completions', EVERY)
        elif first is None or first.name in FIELDS:
            raise ValueError(f"{self} takes {signature}: its first argument must be the text")
        self.form = form_of(first)
        as_one = self.form == 'ids' or first.annotation in (str, 'str')
        if not explicit and (as_one if self.as_trl else self.form == 'unclear'):
            raise ValueError(f"{self}: `{first}` may be a text (text: str), all texts of the "
                             "step (texts: list[str], completions) or their ids (list[list[int]]): say which")
        self.whole = self.batched or self.as_trl or (not explicit and self.form in ('texts', 'all ids'))
        self.extras = [name for name in TRL if self.as_trl and (name in own or self.takes_any)]
        self.defaults = {name: argument.default for name, argument in own.items()
                         if name not in (*self.extras, first.name, 'tokens')}
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
        parameter that the function does not take.
        """
        judged = self.catalogue and self.name in RUBRICS
        if judged and 'judge' in params:
            return REWARDS['rubric'].bind(name, {'rubric': self.name} | params)
        params = {key: value for key, value in (provided or {}).items() if key in self.defaults} | params
        own = sorted(set(self.defaults) - set(FIELDS)) + ['judge'] * judged
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
                raise ValueError(f"{self} needs {need!r}, and this is neither in params nor a "
                                 f"column; {hint(need, list(map(str, columns)))}")

    def __call__(self, text, **fields):
        """The score of one completion, float or None."""
        return self.scores([[text]], [fields])[0][0]

    def scores(self, groups, records, errors='raise', tokens=None):
        """
        P lists of G float, None where it does not apply, or, with errors 'drop', FAILED where it raises or
        gives no number.
        groups: P lists of G completions; records: P dicts of fields; tokens: the completions' ids.
        """
        scores = [[None] * len(texts) for texts in groups]
        applies = [p for p, record in enumerate(records) if not self.missing(record)]
        if self.whole:
            self.score_all(scores, groups, records, applies, tokens, errors)
            return scores
        places, jobs = [], []
        for p in applies:
            texts, ids, fields = groups[p], tokens and tokens[p], self.fields_of(records[p])
            for g in [slice(None)] if self.group else range(len(texts)):
                places.append((p, g))
                jobs.append((texts[g], ids and ids[g], fields, errors))
        call_all = itertools.starmap
        if is_async(self.function):
            event_loop()  # one for all threads
            call_all = in_threads
        for (p, g), value in zip(places, call_all(self.try_call, jobs), strict=True):
            scores[p][g] = value
        return scores

    def names(self, columns):
        """Those of records' columns that the function takes."""
        if self.catalogue:
            return [name for name in (*FIELDS, *MORE) if name in self.defaults.keys() - self.hidden]
        return [name for name in (columns if self.takes_any else self.defaults) if name not in self.hidden]

    def fields_of(self, record):
        """What the function takes of a record. None is left to the argument's default."""
        record = dict.fromkeys(FIELDS) | record
        picked = [(name, record.get(name)) for name in self.names(record)]
        return {name: value for name, value in picked if value is not None or name not in self.defaults}

    def score_all(self, scores, groups, records, applies, tokens, errors):
        """
        Fill in the scores by one call for all completions, with a list for each field; of equal completions
        of a prompt a batched function sees one.
        """
        places = {}  # of what the function sees once
        for p in applies:
            for g, text in enumerate(groups[p]):
                places.setdefault((p, text if self.batched else g), []).append((p, g))
        rows = [same[0] for same in places.values()]
        if not rows:
            return
        texts, ids = [groups[p][g] for p, g in rows], tokens and [tokens[p][g] for p, g in rows]
        mine, fields = [records[p] for p, _ in rows], {}
        for name in self.names(dict.fromkeys(itertools.chain.from_iterable(mine))):
            column = [record.get(name) for record in mine]
            if name in FIELDS or name not in self.defaults or any(value is not None for value in column):
                fields[name] = column
        if self.as_trl:
            fields |= self.trl_fields(texts, ids, [record.get('prompt') for record in mine])
        for same, value in zip(places.values(), self.try_call(texts, ids, fields, errors), strict=True):
            for p, g in same:
                scores[p][g] = value

    def trl_fields(self, texts, ids, prompts):
        """
        What TRL's GRPOTrainer passes beside the columns, without a trainer. Where a prompt is a list of
        messages, its completion is one too.
        """
        completions = [[{'role': 'assistant', 'content': text}] if isinstance(prompt, list) else text
                       for text, prompt in zip(texts, prompts, strict=True)]
        completions = ids if self.form == 'all ids' else completions
        values = dict(zip(TRL, (prompts, completions, ids, None, nowhere, nowhere), strict=True))
        return {name: values[name] for name in self.extras}

    def try_call(self, texts, ids, fields, errors):
        try:
            values = self.call(texts, ids, fields)
        except (RuntimeError, ValueError) as e:
            values = [e] * len(texts) if isinstance(texts, list) else e
            if errors == 'drop' and self.batched and len(texts) > 1:
                values = []
                for i, text in enumerate(texts):  # which is it?
                    own = {name: [column[i]] for name, column in fields.items()}
                    values += self.try_call([text], ids and [ids[i]], own, errors)
                return values
        if isinstance(texts, str):
            return self.checked(values, texts, errors)
        return [self.checked(value, text, errors) for value, text in zip(values, texts, strict=True)]

    def call(self, texts, ids, fields):
        """
        What the function returns for a text, or for a list of them; ids: their tokens. Raises RuntimeError
        for what it raises, ValueError for a list of another length, ConnectionError for a lost service.
        """
        if ids is not None and self.takes_tokens and not self.as_trl and 'ids' not in self.form:
            fields = fields | {'tokens': ids}
        first = ids if 'ids' in self.form else texts
        try:
            values = self.function(*([] if self.as_trl else [first]), **fields, **self.params)
            if inspect.iscoroutine(values):
                values = asyncio.run_coroutine_threadsafe(values, event_loop()).result()
        except ConnectionError as e:  # the run saves and stops
            raise ConnectionError(f"{self}: {e}") from e
        except Exception as e:
            frame, several = traceback.extract_tb(e.__traceback__)[-1], isinstance(texts, list)
            error = f"{type(e).__name__}: {e} ({os.path.relpath(frame.filename)}, line {frame.lineno})"
            more = f" and {len(texts) - 1} more" if several and len(texts) > 1 else ''
            raise RuntimeError(f"{self} raised {error} for completion "
                               f"{shorten(texts[0] if several else texts)}{more}") from e
        if isinstance(texts, str):
            return values
        try:
            values = list(values)
        except TypeError:
            raise ValueError(f"{self} returned {shorten(repr(values))}, not a list") from None
        if len(values) != len(texts):
            raise ValueError(f"{self} returned a list of {len(values)} for {len(texts)} texts")
        return values

    def checked(self, value, text, errors):
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
            number = math.nan
        if math.isfinite(number) and (0 <= number <= 1 or not self.catalogue):
            return number
        wanted = "a number from 0 to 1" if self.catalogue else "a finite number"
        got = f"{shorten(repr(value))} ({type(value).__name__})"
        error = f"{self} returned {got}, not {wanted}, for completion {shorten(text)}"
        error = value if isinstance(value, Exception) else ValueError(error)
        if errors == 'raise':
            raise error
        self.complain(error)
        return FAILED

    def complain(self, error):
        """Warn that completions are left out: of each cause once, and of three at most."""
        cause = str(error).rpartition(' for completion ')[0]
        if len(self.causes | {cause}) > len(self.causes) < 3:
            self.causes.add(cause)
            warnings.warn(f"completions left out: {error}", stacklevel=2)


def reward(*, cheap=True, **flags):
    """Enter a function, which stays as it is, into REWARDS."""
    def enter(function):
        name = function.__name__
        REWARDS[name] = Reward(name, function, cheap=cheap, catalogue=True, **flags)
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
    named = getattr(function, 'func', function)  # of functools.partial
    name = getattr(named, '__name__', type(named).__name__).strip('<>')
    keys = ('needs', 'cheap', 'hackable', 'group', 'batched')
    return Reward(name, function, **{key: getattr(function, key) for key in keys if hasattr(function, key)})
