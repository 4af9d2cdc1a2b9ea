"""
Rewards: functions from a completion to a number. The files of this folder hold their catalogue, by subject.

    @reward('name', needs=('reference',))
    def name(text, *, prompt=None, reference=None, tests=None, context=None, **params) -> float | None

The function names the fields and parameters that it uses, and no others: a record of the data gives the
fields, the config the parameters. Its score is from 0 to 1. None means that it does not apply, and the other
rewards judge alone; that depends on the record, never on the text, or a policy could choose its judge. What
cannot be computed is raised: no score is made up. A `hackable` reward can be had without a good completion:
weigh it beside one that reads the content.

A new reward is a function in one of these files. A custom one is a function in a config, without the
decorator; it may return any finite number. With the attribute `group = True` it takes the list of a group's
texts and returns a list, with `batched = True` the texts of the whole step, and a list for each field.

$ python -m rewards "Paris is the capital." --names=bleu,readability --reference="The capital is Paris."
"""
import importlib
import math
import warnings

from rewards.reward import FAILED, REWARDS, Reward, as_reward, find_reward, shorten

__all__ = ['REWARDS', 'Reward', 'check_fields', 'fields_of', 'resolve_rewards', 'score', 'score_completions']

# Importing a file of the catalogue enters its rewards into REWARDS.
for subject in 'answers maths form code overlap models reasoning style harm facts requests'.split():
    importlib.import_module(f'rewards.{subject}')


def score(name: str, text: str, prompt: str | None = None, reference: str | list[str] | None = None,
          tests: str | list[str] | None = None, context: str | None = None, **params) -> float | None:
    """
    One completion's score by a reward of the catalogue. Raises ValueError for an unknown name or parameter,
    RuntimeError for what the reward raises.
    """
    bound = find_reward(name).bind(name, params)
    return bound(text, prompt=prompt, reference=reference, tests=tests, context=context)


# ---- the rewards of a run

def resolve_rewards(spec, provided=None):
    """
    spec: names joined by commas, or a list of elements, see read_element. provided: see Reward.bind. Returns
    [(name, Reward, weight)], no name twice. Raises ValueError.
    """
    if isinstance(spec, str):
        spec = spec.split(',')
    if not isinstance(spec, (list, tuple)) or not spec:
        raise ValueError(f"rewards is {spec!r}: it must be a list with at least one reward")
    resolved = {}
    for element in spec:
        function, weight, params = read_element(element)
        name = free_name(function, resolved)
        unbound = find_reward(function) if isinstance(function, str) else as_reward(name, function)
        resolved[name] = unbound.bind(name, params, provided), weight
    total = sum(weight for _, weight in resolved.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        told = f"the weights of the rewards sum to {total:g}, not to 1: mean_reward can leave 0 to 1"
        warnings.warn(told, stacklevel=2)
    only, _ = next(iter(resolved.values()))
    if len(resolved) == 1 and only.hackable:
        told = f"the only reward, {only.name!r}, can be had without a good answer: weigh it beside another"
        warnings.warn(told, stacklevel=2)
    return [(name, *entry) for name, entry in resolved.items()]


def read_element(element):
    """
    (name or function, weight, params) of a spec's element: a name or function alone, (name, weight), (name,
    weight, params), or {'type', 'weight', 'params'}. Raises ValueError.
    """
    if isinstance(element, dict):
        if 'type' not in element or set(element) - {'type', 'weight', 'params'}:
            raise ValueError(f"rewards holds {element!r}: a dict takes 'type', 'weight' and 'params'")
        parts = element['type'], element.get('weight', 1.0), element.get('params') or {}
    else:
        parts = tuple(element) if isinstance(element, (list, tuple)) else (element,)
    if not 1 <= len(parts) <= 3 or not (isinstance(parts[0], str) or callable(parts[0])):
        wanted = "an element is a name or a function, alone or as (name, weight) or (name, weight, params)"
        raise ValueError(f"rewards holds {element!r}: {wanted}")
    function, weight, params = parts + (1.0, {})[len(parts) - 1:]
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise ValueError(f"the weight of reward {function!r} is {weight!r}: it must be a finite number")
    if not isinstance(params, dict):
        raise ValueError(f"the params of reward {function!r} are {params!r}: they must be a dict")
    if function == 'custom' and callable(params.get('reward_function')):  # as in aligntune's configs
        params = dict(params)
        function = params.pop('reward_function')
    return function, float(weight), params


def free_name(function, taken):
    """A reward's name in the logs: its own, with _2, _3 ... behind it where that is taken."""
    if isinstance(function, (str, Reward)):
        base = getattr(function, 'name', function)
    else:
        base = getattr(function, '__name__', type(function).__name__).strip('<>')
    name, n = base, 2
    while name in taken:
        name, n = f'{base}_{n}', n + 1
    return name


# ---- records and their completions

def fields_of(record):
    """
    A record's fields for rewards; its answer is the reference. 0 and '' are values, only None is missing.
    """
    answer = record.get('answer')
    reference = record.get('reference') if answer is None else answer
    optional = {name: record.get(name) for name in ('tests', 'context')}
    return {'prompt': record['prompt'], 'reference': reference, **optional}


def check_fields(rewards, records, errors='raise'):
    """
    Try each reward on an empty completion before any time is spent: of every record where that is cheap, else
    of the first that has the fields. Raises ValueError for a reward that applies to no record, and for a
    record to which none applies. Returns the other gaps, {name: {index of the record: ValueError}}.
    """
    gaps = {name: {} for name, _, _ in rewards}
    for name, reward, _ in rewards:
        tried = False
        for i, record in enumerate(records):
            fields = fields_of(record)
            missing = any(fields[need] is None for need in reward.needs)
            if not missing and tried and not reward.cheap:
                continue
            tried |= not missing
            if reward.scores([['']], [fields], errors) == [[None]]:
                gaps[name][i] = not_applicable(reward, record, i)
        if len(gaps[name]) == len(records):
            raise gaps[name][0]
    for i in range(len(records)):
        if rewards and all(i in gap for gap in gaps.values()):
            raise gaps[rewards[0][0]][i]
    return {name: gap for name, gap in gaps.items() if gap}


def not_applicable(reward, record, index):
    """The ValueError that says why a reward does not apply to a record."""
    fields = fields_of(record)
    missing, why = [need for need in reward.needs if fields[need] is None], "it returned None"
    if missing:
        asked = ["'answer' (or 'reference')" if need == 'reference' else repr(need) for need in missing]
        why = f"it needs the field {' and '.join(asked)}, and there are: {', '.join(record)}"
    elif reward.needs:
        unusable = [f"{need} {shorten(str(fields[need]))}" for need in reward.needs]
        why = f"it can do nothing with the {' and '.join(unusable)}"
    prompt = shorten(str(record['prompt']))
    return ValueError(f"reward {reward.name!r} does not apply to prompt {index} ({prompt}): {why}")


def score_completions(rewards, texts, records, errors='raise'):
    """
    texts: G completions for each of P records. Returns {name: P lists of G float | None}, None where a reward
    does not apply. With errors 'drop', a completion for which one raises is warned of, and has None for all.
    """
    if len(texts) != len(records):
        raise ValueError(f"there are {len(texts)} groups of completions for {len(records)} prompts")
    fields = [fields_of(record) for record in records]
    scores = {name: reward.scores(texts, fields, errors) for name, reward, _ in rewards}
    for p, group in enumerate(texts):
        for g in range(len(group)):
            if any(values[p][g] is FAILED for values in scores.values()):
                for values in scores.values():
                    values[p][g] = None
    return scores
