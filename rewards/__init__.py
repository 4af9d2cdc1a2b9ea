"""
The catalogue of rewards: plain functions from a completion to a number in [0, 1].

    @reward('name', needs=('reference',))
    def name(text, *, prompt=None, reference=None, tests=None, context=None, **params) -> float | None

A reward names the fields and the params it uses and no others. None means that it does not apply, and then the others judge alone; of ours it
depends on the record and never on the text, for else a policy would choose what it is judged by. What a reward cannot compute it raises, and the
error comes out with its name: a score is never made up. One that is `hackable` can be had without a good answer: weigh it beside one that looks at the content.
A custom reward is any function with a completion as its first argument; it may return any finite number. With the attribute `group = True` it gets the list of a
group's texts, with `batched = True` those of the whole step (then each field is a list too), and returns a list.
Here: the contract, right or wrong, and form. The others enter the same REWARDS from rewards_math.py, rewards_overlap.py, rewards_text.py and rewards_code.py.

$ python rewards.py "Paris is the capital." --names=bleu,readability --reference="The capital is Paris."
"""
import difflib
import functools
import inspect
import json
import math
import os
import re
import sys
import traceback
import warnings
from fractions import Fraction
from xml.parsers import expat

REWARDS = {}
FIELDS = ('prompt', 'reference', 'tests', 'context')


def reward(name, needs=(), cheap=True, hackable=False, group=False, batched=False):
    """
    Enter a function into REWARDS. needs: the fields without which it does not apply; cheap: check_fields may try every record; hackable: a text without
    worth can have it; group: it gets the texts of a group; batched: the different texts of all groups, and for each field a list.
    """
    def enter(function):
        function.needs, function.cheap, function.hackable, function.group, function.batched = needs, cheap, hackable, group, batched
        function.bounds = (0.0, 1.0)
        REWARDS[name] = function
        return function
    return enter


def plain_text(value):
    """A prompt, reference or context as one text: that of chat messages is what their last says, that of a list its items."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return str(value[-1].get('content', ''))
    return '\n'.join(map(str, value)) if isinstance(value, (list, tuple)) else '' if value is None else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# right or wrong

def answer_part(text, after=None, tag=None):
    """Where to look for the answer: behind the last `after`, inside the last <tag>...</tag>, else everywhere. None when that is not there."""
    if after is not None:
        _, found, text = text.rpartition(after)
        if not found:
            return None
    if tag is not None:
        before, closed, _ = text.rpartition(f'</{tag}>')
        _, opened, text = before.rpartition(f'<{tag}>')
        if not (opened and closed):
            return None
    return text.strip()


@reward('exact_answer', needs=('reference',))
def exact_answer(text, *, reference=None, case_sensitive=True, after=None, tag=None):
    """1 when the answer is the reference, but for space around it. after, tag: see answer_part ('</think>'; 'answer')."""
    wanted = '' if reference is None else str(reference).strip()
    if not wanted:
        return None
    got = answer_part(text, after, tag)
    if got is None:
        return 0.0
    return float(got == wanted if case_sensitive else got.casefold() == wanted.casefold())


# A number stands alone: letters glued to it make a word (x2, 3rd, 5km, 1e5), more dots or slashes a version or a date.
# Commas count where they group thousands (1,234) and separate elsewhere (3,4). A minus is a sign unless something that
# can be subtracted from stands right before it (10-5). Currency and percent signs are skipped: 25% is 25. 2 1/2 is 5/2.
DECIMAL = r'(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![.])\.[0-9]+)'
NUMBER = re.compile(rf'(?P<sign>(?<![^\W_])(?<![)\]}}−-])[-+−])?[$€£¥₹]?(?P<sign2>(?<=[$€£¥₹])[-−])?'
                    rf'(?<![^\W_])(?<![0-9][./])(?:(?P<whole>[0-9]{{1,9}}) (?=[0-9]+/[0-9]+(?![0-9/]|\.[0-9])))?'
                    rf'(?P<top>{DECIMAL})(?:/(?P<bottom>{DECIMAL}))?(?![^\W_]|\.[0-9]|/[0-9])')
LATEX_FRACTION = re.compile(r'([0-9]?)\\[dt]?frac\s*\{\s*([0-9.]+)\s*\}\s*\{\s*([0-9.]+)\s*\}')
LONGEST_NUMBER = 1000  # characters; Python refuses to read integers of more than 4,300 digits


def plain_numbers(text):
    """A text whose numbers are no longer written in LaTeX."""
    text = text.replace('{,}', ',').replace('\\,', '').replace('\\!', '').replace('\\$', '$').replace('\\%', '%')
    return LATEX_FRACTION.sub(lambda m: f'{m[1]}{" " if m[1] else ""}{m[2]}/{m[3]}', text)


def numbers_in(text):
    """All numbers of a text in order, exact, as Fractions."""
    numbers = []
    for match in NUMBER.finditer(plain_numbers(text)):
        top, bottom = match['top'].replace(',', ''), (match['bottom'] or '1').replace(',', '')
        if max(len(top), len(bottom)) <= LONGEST_NUMBER and Fraction(bottom) != 0:  # what is divided by zero is no number
            negative = ((match['sign'] or '') + (match['sign2'] or '')) in ('-', '−')
            numbers.append((-1 if negative else 1) * (int(match['whole'] or 0) + Fraction(top) / Fraction(bottom)))
    return numbers


def last_box(text):
    r"""What stands in the \boxed{...} that closes last, its braces matched. None without one."""
    box, opened = None, []
    for brace in re.finditer(r'(\\boxed\s*)?\{|\}', text):
        if brace.group() != '}':
            opened.append(brace)
        elif opened:
            opening = opened.pop()
            if opening[1]:
                box = text[opening.end():brace.start()]
    return box


def final_number(text):
    """
    The one number that a text answers with, a Fraction, or None: as GSM8K is scored, the first on the line behind the last
    '####' (a line without numbers is a heading, and does not count); else the last in the last \\boxed{}; else the last of all.
    """
    _, marked, rest = text.rpartition('####')
    found = numbers_in(rest.strip(' ').partition('\n')[0]) if marked else []
    if found:
        return found[0]
    box = last_box(text)
    found = numbers_in(text if box is None else box)
    return found[-1] if found else None


@reward('number_answer', needs=('reference',))
def number_answer(text, *, reference=None, after=None, tag=None):
    """1 when the final number of the text equals the reference's; that may be a number or a solution that ends in `#### 42`. None when it has no number."""
    wanted = None if reference is None else final_number(str(reference))
    if wanted is None:
        return None
    part = answer_part(text, after, tag)
    return float(part is not None and final_number(part) == wanted)


# Tasks whose own scoring passes the answer to eval() or to sympy's parser, which evaluates it: a model that writes
# __import__('os').system(...) has it run. Tried on each task of reasoning-gym 0.1.25.
EXECUTES_ANSWERS = ('binary_matrix', 'intermediate_integration', 'n_queens', 'polynomial_multiplication', 'simple_integration', 'spiral_matrix', 'string_insertion')
ARITHMETIC_ANSWERS = ('countdown', 'puzzle24')  # so do these, but there an answer is digits and operators, and others can be turned away
ARITHMETIC = re.compile(r'(?!.*\*\s*\*)[0-9+\-*/() ]{1,200}')  # no powers: 9**9**9 does not end


@functools.cache
def reasoning_gym_task(task, options):
    try:
        import reasoning_gym
    except ImportError:
        raise ImportError("it needs the package: pip install reasoning-gym") from None
    return reasoning_gym.create_dataset(task, size=1, seed=0, **json.loads(options))


@reward('reasoning_gym', needs=('context',), cheap=False)
def reasoning_gym(text, *, context=None, partial=False, after=None, tag=None):
    """
    What the task itself says of the answer. Records come from data/reasoning_gym/prepare.py. Many tasks give junk a little
    credit, so only full marks count, unless partial=True.
    """
    if not isinstance(context, dict) or not {'task', 'options', 'entry'} <= set(context):
        return None
    task, entry = context['task'], context['entry']
    if task in EXECUTES_ANSWERS:
        raise ValueError(f"the task {task!r} runs the model's answer as Python code: not safe")
    answer = answer_part(text, after, tag)
    if answer is None or (task in ARITHMETIC_ANSWERS and not ARITHMETIC.fullmatch(answer)):
        return 0.0
    scorer = reasoning_gym_task(task, json.dumps(context['options'], sort_keys=True))
    try:
        value = float(scorer.score_answer(answer, entry))
    except Exception:  # some tasks trip over an answer they cannot read, which is then wrong ...
        scorer.score_answer(entry['answer'], entry)  # ... but where they trip over their own, it is the entry, and that is an error
        value = 0.0
    return value if partial else float(value >= 1)


# ---------------------------------------------------------------------------------------------------------------------
# form

@reward('format_tag', hackable=True)
def format_tag(text, *, tags=('think', 'answer')):
    """1 when the text is <tag>...</tag> for each of tags in order, once, with something inside, and nothing between them; else 0. No partial credit: a policy collects it and stays there."""
    tags = (tags,) if isinstance(tags, str) else tags
    if not tags or not all(re.fullmatch(r'[A-Za-z_][\w-]*', tag) for tag in tags) or len(set(tags)) < len(tags):
        raise ValueError(f"tags is {tags!r}: it must be different names like 'think'")
    rest = text.strip()
    for tag in tags:
        opening, closing = f'<{tag}>', f'</{tag}>'
        if text.count(opening) != 1 or text.count(closing) != 1 or not rest.startswith(opening):
            return 0.0
        inside, _, rest = rest[len(opening):].partition(closing)
        rest = rest.lstrip()
        if not inside.strip():
            return 0.0
    return float(not rest)


def unfenced(text, language):
    """The content of the one fenced block (```json or bare ```), when there is exactly one; else the text."""
    blocks = re.findall(rf'^```[ \t]*(?:{language})?[ \t]*\n(.*?)^```[ \t]*$', text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    return blocks[0] if len(blocks) == 1 and text.count('```') == 2 else text


def refuse(*what):
    raise ValueError(f"refused: {what[0]!r}")


@reward('format_json', hackable=True)
def format_json(text, *, keys=None):
    """1 when the text, or the one fenced block in it, is a JSON object or array; with keys, an object that has them all. NaN and Infinity are not JSON."""
    if isinstance(keys, str):
        raise ValueError(f"keys is {keys!r}: it must be a list of names")
    try:
        value = json.loads(unfenced(text, 'json'), parse_constant=refuse)
    except (ValueError, RecursionError):
        return 0.0
    return float(isinstance(value, (dict, list)) if keys is None else isinstance(value, dict) and set(keys) <= set(value))


@reward('format_xml', hackable=True)
def format_xml(text):
    """1 when the text, or the one fenced block in it, is a well-formed XML document. A DTD scores 0 unread: entities are where XML bombs hide."""
    parser = expat.ParserCreate(encoding='utf-8')
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(unfenced(text, 'xml').strip().encode(), True)
    except (expat.ExpatError, ValueError):
        return 0.0
    return 1.0


@reward('length', hackable=True)
def length(text, *, min_length=10, max_length=500, target_length=None, ramp=0):
    """
    1 with min_length to max_length words, falling linearly to 0 over `ramp` words outside (0: at once). With target_length:
    1 at that many words, falling linearly to 0 at none and at twice as many.
    """
    words = len(text.split())
    if target_length is not None:
        if target_length < 1:
            raise ValueError(f"target_length is {target_length}: it must be at least 1")
        return max(0.0, 1 - abs(words - target_length) / target_length)
    if not 0 <= min_length <= max_length or ramp < 0:
        raise ValueError(f"min_length is {min_length}, max_length {max_length} and ramp {ramp}: they must be 0 <= min_length <= max_length and ramp at least 0")
    outside = max(min_length - words, words - max_length, 0)
    return max(0.0, 1 - outside / ramp) if ramp else float(outside == 0)


# ---------------------------------------------------------------------------------------------------------------------
# calling them

def shorten(text, limit=80):
    return repr(text if len(text) <= limit else text[:limit - 3] + '...')


def checked(name, function, value, text):
    """A reward's value as a float, or None. Raises ValueError, with the reward's name, for what is no number or out of bounds."""
    if value is None:
        return None
    low, high = getattr(function, 'bounds', (-math.inf, math.inf))
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high:
        wanted = f"a number from {low:g} to {high:g}" if math.isfinite(low) else "a finite number"
        raise ValueError(f"reward {name!r} returned {shorten(repr(value))} ({type(value).__name__}), not {wanted}, for completion {shorten(text)}")
    return number


def call(name, function, texts, argument, fields, params):
    """The values (a list of float | None) of texts, for which function(argument) is called once. Raises RuntimeError (function's own error is its cause), ConnectionError and ValueError, with the reward's name."""
    several = isinstance(argument, list)
    try:
        values = function(argument, **fields, **params)
    except ConnectionError as e:  # a service that is gone is no fault of the reward: the run saves and stops
        raise ConnectionError(f"reward {name!r}: {e}") from e
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        raise RuntimeError(f"reward {name!r} raised {type(e).__name__}: {e} ({os.path.relpath(frame.filename)}, line {frame.lineno}) for completion {shorten(texts[0])}"
                           + (f" and {len(texts) - 1} more" if len(texts) > 1 else '')) from e
    if several and (isinstance(values, (str, int, float)) or not hasattr(values, '__len__') or len(values) != len(texts)):
        raise ValueError(f"reward {name!r} returned {shorten(repr(values))} for {len(texts)} texts: it must be a list with a value for each")
    return [checked(name, function, value, text) for value, text in zip(values if several else [values], texts)]


def call_all(name, function, takes, params, groups, records, failed=None):
    """
    The values of all answers: groups is P lists of G texts, records P dicts of fields. Returns P lists of G float | None. Where `failed` is a set, an error
    of one answer or group is warned of and its (p, g) put there; one of a whole batch is raised all the same.
    """
    needs = getattr(function, 'needs', ())
    fields = [{k: v for k, v in record.items() if k in takes} for record in records]
    applies = [p for p, record in enumerate(records) if all(record[need] is not None for need in needs)]
    values = [[None] * len(group) for group in groups]
    if getattr(function, 'batched', False):
        slots = list(dict.fromkeys((p, text) for p in applies for text in groups[p]))  # each different text of a prompt once
        if slots:
            found = call(name, function, [text for _, text in slots], [text for _, text in slots], {k: [fields[p][k] for p, _ in slots] for k in fields[0]}, params)
            found = dict(zip(slots, found))
            values = [[found.get((p, text)) for text in group] for p, group in enumerate(groups)]
        return values
    together = getattr(function, 'group', False)
    for p in applies:
        for places in ([list(range(len(groups[p])))] if together else [[g] for g in range(len(groups[p]))]):
            texts = [groups[p][g] for g in places]
            try:
                found = call(name, function, texts, texts if together else texts[0], fields[p], params)
            except (RuntimeError, ValueError) as e:
                if failed is None:
                    raise
                warnings.warn(f"answers left out: {e}")
                failed.update((p, g) for g in places)
                continue
            for g, value in zip(places, found):
                values[p][g] = value
    return values


def find_reward(name: str):
    if name not in REWARDS:
        near = difflib.get_close_matches(name, REWARDS, n=1, cutoff=0.5)
        raise ValueError(f"there is no reward {name!r}" + (f"; did you mean {near[0]!r}?" if near else '') + f" (there are: {', '.join(REWARDS)})")
    return REWARDS[name]


def bind(name, function, params, provided=None):
    """
    function(text, **fields) -> float | None, which passes on the fields that the reward takes; its attribute all(groups, records) is call_all. provided: arguments
    for those rewards that name them. Raises ValueError when its arguments do not fit.
    """
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except ValueError:  # some built-ins do not tell
        arguments = [inspect.Parameter('text', inspect.Parameter.POSITIONAL_ONLY)]
    if not arguments or arguments[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise ValueError(f"reward {name!r} takes no completion: its first argument must be the text")
    if arguments[0].name in FIELDS:
        raise ValueError(f"reward {name!r} takes {arguments[0].name!r} first: its first argument is the completion, call it text")
    named = [a for a in arguments[1:] if a.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)]
    takes = {a.name for a in named}
    params = {k: v for k, v in (provided or {}).items() if k in takes} | params
    anything = any(a.kind is inspect.Parameter.VAR_KEYWORD for a in arguments)
    for key in params:
        if key in FIELDS or (key not in takes and not anything):
            own = sorted(takes - set(FIELDS))
            near = difflib.get_close_matches(key, own, n=1, cutoff=0.5)
            raise ValueError(f"reward {name!r} has no parameter {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; it has: {', '.join(own) or 'none'}"))
    for a in named:
        if a.default is a.empty and a.name not in FIELDS and a.name not in params:
            raise ValueError(f"reward {name!r} needs the argument {a.name!r}: give it in params (from a record come {', '.join(FIELDS)})")
    every = functools.partial(call_all, name, function, FIELDS if anything else takes, params)

    def bound(text, **fields):
        return every([[text]], [dict.fromkeys(FIELDS) | fields])[0][0]

    bound.all, bound.needs, bound.cheap = every, getattr(function, 'needs', ()), getattr(function, 'cheap', False)
    bound.hackable = getattr(function, 'hackable', False) and not (params.get('model') or params.get('scorer'))
    return bound


def score(name: str, text: str, prompt: str | None = None, reference: str | list[str] | None = None, tests: str | list[str] | None = None, context: str | None = None, **params) -> float | None:
    """One completion's reward by name, a float in [0, 1], or None when it does not apply. Raises ValueError for an unknown name or parameter, RuntimeError for what the reward raises."""
    return bind(name, find_reward(name), params)(text, prompt=prompt, reference=reference, tests=tests, context=context)


def resolve_rewards(spec, provided=None):
    """
    spec: names with commas between them, or a list of name | function | (name or function, weight) | (name or function, weight, params) | {'type', 'weight', 'params'};
    a weight left out is 1. provided: see bind. Returns [(name, function(text, **fields) -> float | None, weight)] with no name twice. Raises ValueError.
    """
    if isinstance(spec, str):
        spec = spec.split(',')
    if not isinstance(spec, (list, tuple)) or not spec:
        raise ValueError(f"rewards is {spec!r}: it must be a list with at least one reward, like [('number_answer', 1.0), ('length', 0.1, {{'max_length': 200}})]")
    resolved, names = [], set()
    for element in spec:
        if isinstance(element, dict):
            if 'type' not in element or set(element) - {'type', 'weight', 'params'}:
                raise ValueError(f"rewards holds {element!r}: a dict takes 'type', 'weight' and 'params'")
            parts = element['type'], element.get('weight', 1.0), element.get('params') or {}
        else:
            parts = tuple(element) if isinstance(element, (list, tuple)) else (element,)
        if not 1 <= len(parts) <= 3 or not (isinstance(parts[0], str) or callable(parts[0])):
            raise ValueError(f"rewards holds {element!r}: an element is a name or a function, alone or as (name, weight) or (name, weight, params)")
        what, weight, params = (parts + (1.0, {})[len(parts) - 1:])
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ValueError(f"the weight of reward {what!r} is {weight!r}: it must be a finite number")
        if not isinstance(params, dict):
            raise ValueError(f"the params of reward {what!r} are {params!r}: they must be a dict")
        if what == 'custom' and callable(params.get('reward_function')):  # how aligntune's configs give a function
            params = dict(params)
            what = params.pop('reward_function')
        base = what if isinstance(what, str) else getattr(what, '__name__', type(what).__name__).strip('<>')
        name = next(n for n in [base] + [f'{base}_{i}' for i in range(2, len(spec) + 2)] if n not in names)
        names.add(name)
        resolved.append((name, bind(name, find_reward(what) if isinstance(what, str) else what, params, provided), float(weight)))
    total = sum(weight for _, _, weight in resolved)
    if not math.isclose(total, 1, abs_tol=1e-6):
        warnings.warn(f"the weights of the rewards sum to {total:g}, not to 1: mean_reward is then not between 0 and 1")
    if len(resolved) == 1 and resolved[0][1].hackable:
        warnings.warn(f"the only reward, {resolved[0][0]!r}, can be had without a good answer, and a policy will find out how: weigh it beside one that looks at the content")
    return resolved


def fields_of(record):
    """What a record gives to its rewards; the reference is its answer. 0 and '' are values too, only None is nothing."""
    answer = record.get('answer')
    return {'prompt': record['prompt'], 'reference': record.get('reference') if answer is None else answer, 'tests': record.get('tests'), 'context': record.get('context')}


def not_applicable(name, function, record, index):
    fields = fields_of(record)
    missing = ["'answer' (or 'reference')" if need == 'reference' else repr(need) for need in function.needs if fields[need] is None]
    unusable = [f"{need} {shorten(str(fields[need]))}" for need in function.needs if fields[need] is not None]
    why = f"it needs the field {' and '.join(missing)}, and there are: {', '.join(record)}" if missing else f"it can do nothing with the {' and '.join(unusable)}" if unusable else "it returned None"
    return ValueError(f"reward {name!r} does not apply to prompt {index} ({shorten(str(record['prompt']))}): {why}")


def check_fields(rewards, records, errors='raise'):
    """
    Before any time is spent: try each reward on an empty completion, which does happen, for every record where that is cheap
    and else for the first that has the fields. Raises ValueError naming reward, prompt and field for a reward that applies to no record and a record to which no
    reward does, and, unless errors is 'drop', whatever a reward raises. Returns the gaps that are left, {name: {number of the record: why}}: there the other rewards judge alone.
    """
    gaps = {name: {} for name, _, _ in rewards}
    for name, function, _ in rewards:
        tried = False
        for i, record in enumerate(records):
            fields = fields_of(record)
            missing = any(fields[need] is None for need in function.needs)
            if missing:
                gaps[name][i] = not_applicable(name, function, record, i)
            elif function.cheap or not tried:
                failed = None if errors == 'raise' else set()
                if function.all([['']], [fields], failed) == [[None]] and not failed:
                    gaps[name][i] = not_applicable(name, function, record, i)
                tried = True
        if len(gaps[name]) == len(records):
            raise gaps[name][0]
    for i in range(len(records)):
        if rewards and all(i in gap for gap in gaps.values()):
            raise gaps[rewards[0][0]][i]
    return {name: gap for name, gap in gaps.items() if gap}


def score_completions(rewards: list, texts: list[list[str]], records: list[dict], errors: str = 'raise') -> dict[str, list[list[float | None]]]:
    """
    texts: P lists of G completions, one list for each of the P records. Returns {name: P lists of G float | None}, None where a reward does not apply. With errors 'drop' an
    answer for which a reward raises is warned of, and has None for all rewards.
    """
    if len(texts) != len(records):
        raise ValueError(f"there are {len(texts)} groups of completions for {len(records)} prompts")
    fields, failed = [fields_of(record) for record in records], set()
    scores = {name: function.all(texts, fields, None if errors == 'raise' else failed) for name, function, _ in rewards}
    for values in scores.values():
        for p, g in failed:
            values[p][g] = None
    return scores


def main(arguments):
    """python rewards.py "a text" --names=bleu,fluency --reference="..." [--prompt= --context= --tests=]: what each reward says of a text. Without names, all that can be had."""
    options = dict(a[2:].partition('=')[::2] for a in arguments if a.startswith('--'))
    texts = [a for a in arguments if not a.startswith('--')]
    unknown = set(options) - {'names', *FIELDS}
    if len(texts) != 1 or unknown:
        raise SystemExit(f"{'unknown option --' + unknown.pop() if unknown else f'there are {len(texts)} texts, not one'}: python rewards.py \"the text\" --names=bleu,readability " + ' '.join(f'--{f}=...' for f in FIELDS))
    fields = {k: v for k, v in options.items() if k in FIELDS}
    if 'tests' in fields:
        fields['tests'] = fields['tests'].split('\n')
    names = options['names'].split(',') if 'names' in options else list(REWARDS)
    for name in names:
        try:
            function = find_reward(name)
            value = score(name, texts[0], **fields)
        except (RuntimeError, ValueError) as e:
            print(f"{name:24} cannot be computed: {e}" if name in REWARDS else e)
            continue
        needs = [need for need in function.needs if need not in fields]
        why = f"needs {' and '.join(needs)}" if needs else f"it can do nothing with the {' and '.join(function.needs) or 'record'}"
        print(f"{name:24} " + (f"not applicable ({why})" if value is None else f"{value:.4f}") + ('  hackable' if function.hackable else ''))



if __name__ == '__main__':
    from rewards import main  # of the module that they entered theirs into
    main(sys.argv[1:])
