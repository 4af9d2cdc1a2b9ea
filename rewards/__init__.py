"""
Rewards: functions from a completion to a number. The files of this folder hold their catalogue, by subject.

    @reward(hackable=True)
    def name(text, *, reference, prompt=None, tests=None, context=None, **params) -> float | None

The function names the fields of a record and the parameters of a config that it uses. It needs the fields
without a default, here the reference. Its score is from 0 to 1; None means that it does not apply, and the
other rewards judge alone. That depends on the record, never on the text, or a policy could choose its judge.
What cannot be computed is raised: no score is made up. A `hackable` reward can be had without a good
completion. With `judge` in its params a language model is asked instead.

A custom reward is a function in a config, without the decorator; it may return any finite number. It names
any columns of the records, and `tokens`, the completion's token ids; without a default it needs them, as
those in its attribute, needs = ('reference',). With `group = True` it takes the list of a group's texts and
returns a list, with `batched = True` the texts of the whole step, and a list for each field. One that names
`completions` is called as TRL calls it. It may be async.

$ python -m rewards "Paris is the capital." --names=bleu,readability --reference="The capital is Paris."
"""
import importlib
import itertools
import math
import warnings

from rewards.reward import FAILED, REWARDS, Reward, find_reward, shorten

__all__ = ['REWARDS', 'Reward', 'check_fields', 'fields_of', 'resolve_rewards', 'score', 'score_completions']

# Importing a file of the catalogue enters its rewards into REWARDS.
for subject in 'answers maths form code overlap models reasoning style harm facts requests'.split():
    importlib.import_module(f'rewards.{subject}')


def score(name: str, text: str, prompt: str | None = None, reference: str | list[str] | None = None,
          tests: str | list[str] | None = None, context: str | None = None, **params) -> float | None:
    """
    A completion's score by a reward of the catalogue. Raises ValueError for an unknown name or parameter,
    RuntimeError for what the reward raises.
    """
    bound = find_reward(name).bind(name, params)
    return bound(text, prompt=prompt, reference=reference, tests=tests, context=context)


# ---- the rewards of a run

def resolve_rewards(spec, provided=None):
    """
    [(name, Reward, weight)], a repeated name as name_2, name_3 ... spec: names joined by commas, or a list of
    elements, see read_element. provided: see Reward.bind. Raises ValueError.
    """
    if isinstance(spec, str):
        spec = [name.strip() for name in spec.split(',') if name.strip()]
    if not isinstance(spec, (list, tuple)) or not spec:
        raise ValueError(f"rewards is {spec!r}: it must be a list with at least one reward")
    resolved = {}
    for element in spec:
        function, weight, params = read_element(element)
        reward = find_reward(function)
        name, n = reward.name, 2
        while name in resolved:
            name, n = f'{reward.name}_{n}', n + 1
        resolved[name] = name, reward.bind(name, params, provided), weight
    resolved = list(resolved.values())
    if not any(weight for _, _, weight in resolved):
        raise ValueError("the weights of the rewards are all 0: nothing would be learned")
    total = sum(weight for _, _, weight in resolved)
    if not math.isclose(total, 1, abs_tol=1e-6):
        warnings.warn(f"the weights of the rewards sum to {total:g}, not to 1", stacklevel=2)
    name, first, _ = resolved[0]
    if len(resolved) == 1 and first.hackable:
        warnings.warn(f"the only reward, {name!r}, can be had without a good answer: add one", stacklevel=2)
    return resolved


def read_element(element):
    """
    (name or function, weight, params) of such a tuple, its last two optional, of a name or function alone, or
    of a dict of 'type', 'weight' and 'params'. Raises ValueError.
    """
    if isinstance(element, dict) and set(element) <= {'type', 'weight', 'params'}:
        parts = element.get('type'), element.get('weight', 1.0), element.get('params') or {}
    else:
        parts = tuple(element) if isinstance(element, (list, tuple)) else (element,)
    if not 1 <= len(parts) <= 3 or not (isinstance(parts[0], str) or callable(parts[0])):
        wanted = "a name or function, (name, weight, params), or a dict of 'type', 'weight' and 'params'"
        raise ValueError(f"rewards holds {element!r}: an element is {wanted}")
    function, weight, params = parts + (1.0, {})[len(parts) - 1:]
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise ValueError(f"the weight of reward {function!r} is {weight!r}: it must be a finite number")
    if not isinstance(params, dict):
        raise ValueError(f"the params of reward {function!r} are {params!r}: they must be a dict")
    if function == 'custom' and callable(params.get('reward_function')):  # as in aligntune's configs
        params = dict(params)
        function = params.pop('reward_function')
    return function, float(weight), params


# ---- records and their completions

def fields_of(record):
    """A record's columns for rewards; its answer is the reference too. Only None is missing, not 0 or ''."""
    return record | {'reference': record['answer']} if record.get('answer') is not None else record


def check_fields(rewards, records, errors='raise'):
    """
    Try each reward on an empty completion of every record, or where it is not cheap of the first that has the
    fields. Raises ValueError for an argument that is no column, and for a record to which no reward applies.
    Returns the other gaps, {name: {index of the record: ValueError}}.
    """
    gaps, fields = {name: {} for name, _, _ in rewards}, list(map(fields_of, records))
    columns = dict.fromkeys(itertools.chain.from_iterable(fields))
    for name, reward, _ in rewards:
        reward.check_columns(columns)
        tried = False
        for i, record in enumerate(records):
            has_fields = not reward.missing(fields[i])
            if has_fields and tried and not reward.cheap:
                continue
            tried |= has_fields
            if reward.scores([['']], [fields[i]], errors, [[[]]]) == [[None]]:
                told = f"reward {name!r} does not apply to prompt {i} ({shorten(str(record['prompt']))})"
                has = ', '.join(str(key) for key, value in record.items() if value is not None)
                gaps[name][i] = ValueError(f"{told}: {reward.why_none(fields[i])}, and the record has: {has}")
    for i in range(len(records)):
        if rewards and all(i in gap for gap in gaps.values()):
            raise gaps[rewards[0][0]][i]
    return {name: gap for name, gap in gaps.items() if gap}


def score_completions(rewards, texts, records, errors='raise', tokens=None):
    """
    {name: P lists of G float | None} of texts, P lists of G completions; tokens: their ids, for rewards that
    take them. With errors 'drop', a completion for which a reward raises is warned of, and has None for all.
    """
    if len(texts) != len(records):
        raise ValueError(f"there are {len(texts)} groups of completions for {len(records)} prompts")
    fields = [fields_of(record) for record in records]
    scores = {name: reward.scores(texts, fields, errors, tokens) for name, reward, _ in rewards}
    for p, group in enumerate(texts):
        for g in range(len(group)):
            if any(values[p][g] is FAILED for values in scores.values()):
                for values in scores.values():
                    values[p][g] = None
    return scores
