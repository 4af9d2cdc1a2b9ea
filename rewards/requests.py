"""Does a text do what the prompt asks for?"""
import functools
import math
import re

from rewards.answers import NUMBERS, numbers_in
from rewards.facts import ABSTAINING
from rewards.form import format_json
from rewards.harm import REFUSING
from rewards.ifeval import recorded
from rewards.models import scored
from rewards.overlap import on_subject
from rewards.parsing import plain_text
from rewards.reward import reward
from rewards.words import any_of, content_words, is_prose, sentences, words

# ---- how many of what a prompt demands

VALUES = NUMBERS | {'single': 1}
SCALES = {'dozen': 12, 'hundred': 100, 'thousand': 1000}
SPELLED = any_of(*VALUES, *SCALES).pattern
NUMBER = re.compile(rf'(?:\ban? )?{SPELLED}(?:(?: and |[- ]){SPELLED})*', re.IGNORECASE)
NOT = r"\b(?:no|not|never|cannot|\w+n['’]t|without)(?: (?:be|use|write|have|contain|go|make|run|it))* "
LESS, MORE = 'less|fewer|under|below|shorter', 'more|over|above|longer|greater|beyond|exceed(?:ing)?'
EDGE = '(?:at )?(?:a )?\\b{}(?:imum)?(?: of)?[.:]?'
LEAST, MOST = f"at least|{EDGE.format('min')}", f"at (?:the )?most|{EDGE.format('max')}"
SIGNS = {  # what stands for what is said before a number, and behind it
    '≥': (rf'{NOT}(?:{LESS})(?: than)?|{LEAST}', rf'or (?:{MORE})|{LEAST}|\+'),
    '≤': (rf'{NOT}(?:{MORE})(?: than)?|{MOST}|up to|within|(?:limit|keep|restrict)\w*(?: \w+){{0,4}}? to',
          f'or (?:{LESS})|{MOST}'),
    '<': (rf'\b(?:{LESS})(?: than)?', '(?!)'),
    '>': (rf'\b(?:{MORE})(?: than)?', '(?!)'),
    '~': (r'about|around|approx(?:\.|imately)?|roughly|circa|nearly|almost', 'or so|approximately'),
    '=': ('exactly|precisely|only', 'exactly')}
UNITS = {  # and how many there are in a text
    'word': lambda t: len(words(t)), 'sentence': lambda t: len(sentences(t)), 'character': len,
    'paragraph': lambda t: found(r'(?:\A|\n[^\S\n]*\n)\s*\S', t), 'line': lambda t: found(r'^.*\S', t),
    'bullet': lambda t: found(r'^[^\S\n]*(?:[-*•]|[0-9]+[.)])[^\S\n]+\S', t)}
UNIT = rf"({'|'.join(UNITS)})(?:(?:ed)? (?:point|item)|-point)?s?\b"
COUNTS = r'(?:[≥≤<>~=]?[0-9]+[ ,]*(?:(?:words?|sentences?)?,? ?(?:and|but) )?)+'
COUNTED = re.compile(rf'(\b(?:the|these|those|following|first|last|next|previous|my|your) )?({COUNTS})[\s-]*'
                     rf'(?:(?!(?:letter|syllable|key|new|more|of|in)\b)[a-z]+[ -])?{UNIT}', re.IGNORECASE)

def found(pattern, text):
    return len(re.findall(pattern, text, re.IGNORECASE | re.MULTILINE))


def digits(match):
    total = last = 0
    for word in words(match[0]):
        last = max(1, last) * SCALES[word] if word in SCALES else last + VALUES.get(word, 0)
        if word == 'thousand':
            total, last = total + last, 0
    return str(total + last)


def with_signs(prompt):
    """Numbers as digits behind a sign: 'no less than fifty words' is '≥50 words', '3 to 5' is '≥3 ≤5'."""
    prompt = NUMBER.sub(digits, re.sub('(?<=[0-9]),(?=[0-9]{3})', '', prompt))
    for sign, (before, behind) in SIGNS.items():
        prompt = re.sub(rf'(?:{before})\s*(?=[0-9])', sign, prompt, flags=re.IGNORECASE)
        late = rf'(?<![≥≤<>~=0-9])([0-9]+)((?:[\s-]{UNIT})?)(?: long)?,?\s?\(?(?:{behind})'
        prompt = re.sub(late, rf'{sign}\1\2', prompt, flags=re.IGNORECASE)
    return re.sub(r'[~=]?\b([0-9]+)\s?(?:-|–|to|and|or)\s?([0-9]+)\b', r'≥\1 ≤\2', prompt)


def bounds_of(counts):
    """The least and the most that '≥3 ≤5' allows; about is a fifth more or less."""
    least, most = 0, math.inf
    for sign, n in re.findall('([≥≤<>~=]?)([0-9]+)', counts):
        n, slack = int(n), max(1, int(n) // 5) if sign == '~' else 0
        least = max(least, {'≤': 0, '<': 0, '>': n + 1}.get(sign, n - slack))
        most = min(most, {'≥': math.inf, '>': math.inf, '<': n - 1}.get(sign, n + slack))
    return least, most


def within(count, least, most, text):
    return least <= count(text) <= most


def counting(prompt):
    """The checks of '≥3 words', but not those of each part, or of a story's 3 characters."""
    for match in COUNTED.finditer(prompt):
        told, counts, unit = match[1], match[2], match[3].lower()
        least, most = bounds_of(counts)
        around = re.split(r'[.!?]\s', prompt[:match.start()])[-1] + prompt[match.end():match.end() + 9]
        each = re.search('(?i:each|every|per) ', around + ' ')
        if not (each or (told and counts.strip().isdigit()) or (unit == 'character' and most < 10)):
            yield functools.partial(within, UNITS[unit], max(least, min(1, most)), most)


# ---- and the rest

QUOTE = r"""(?:["“`][^"”`\n]+["”`]|['‘][^\n]+?['’](?![a-z]))"""
WORDS = '(?:the )?(?:following )?(?:words?|phrases?|keywords?)?:? ?'
WITH = r'(?: \w+){0,4}? with (?:this |the )?(?:exact )?(?:words?|phrase|sentence)?:? ?'
NEVER = r"\b(?:do(?:es)? not|don['’]t|must not|should not|never|avoid|without) ?(?:\w+ )?"
SIMPLE = {
    r'\b(?:in|as|valid) json\b|\bjson (?:format|object)\b': lambda t: format_json(t) == 1,
    r'\b(?:all|in|only) (?:lower ?case|small letters)\b': str.islower,
    r'\b(?:all|in|only) (?:upper ?case|capitals?|capital letters|caps)\b': str.isupper,
    r'\b(?:no|without|not use|avoid|use of)(?: \w+)? commas\b': lambda t: ',' not in t}
QUOTING = {  # of the quotations behind it, in lower case, and the text
    NEVER + WORDS: lambda parts, t: not any(found(rf'\b{re.escape(part)}\b', t) for part in parts),
    rf'\b(?:includ|mention|us|contain)(?:es?|s|ing)? {WORDS}': lambda parts, t: all(
        part in t.lower() for part in parts),
    rf'\b(?:start|begin)(?:s|ning|ing)?{WITH}': lambda parts, t: t.strip().lower().startswith(parts[0]),
    rf'\b(?:end|finish)(?:s|ing)?{WITH}': lambda parts, t: t.strip().lower().endswith(parts[0])}


@functools.lru_cache(maxsize=4096)
def demands_of(prompt):
    """The checks of what a prompt asks in words."""
    checks = list(counting(with_signs(prompt)))
    checks += [check for pattern, check in SIMPLE.items() if re.search(pattern, prompt, re.IGNORECASE)]
    for pattern, check in QUOTING.items():
        quoting = rf'{pattern}\[?({QUOTE}(?:(?:,? and |,? or |, ){QUOTE})*)'
        for quotes in re.findall(quoting, prompt, re.IGNORECASE):
            parts = [part[1:-1].lower() for part in re.findall(QUOTE, quotes)]
            checks.append(functools.partial(check, parts))
        prompt = re.sub(quoting, '|', prompt, flags=re.IGNORECASE)
    return checks


@reward(hackable=True)
def instruction_following(text, *, prompt=None, instruction_id_list=None, kwargs=None):
    """
    The share of checkable demands that the text meets: those of IFEval's columns instruction_id_list and
    kwargs, by its strict checks, or else those in the prompt's words.
    """
    named = instruction_id_list is not None
    checks = recorded(instruction_id_list, kwargs) if named else demands_of(plain_text(prompt))
    if not checks:
        return None
    return sum(bool(check(text)) for check in checks) / len(checks) if text.strip() else 0.0


# ---- help

ASKS_NUMBER = re.compile(r"how (?:many|much|old|long|far|tall|often)|"
                         r"[0-9] ?(?:[-+*/x×÷]|times|plus|minus) ?[0-9]", re.IGNORECASE)
ASKS_WHETHER = re.compile(r"(?:is|are|was|were|do|does|did|can|will|should|has|have) ", re.IGNORECASE)
ASKS_MUCH = re.compile("how (?:do|can|could|should|to)|what (?:should|can|could)|(?:can|could|would) you|"
                       "why|explain|describe|write|give", re.IGNORECASE)


def form_of_answer(text, asked):
    """How far a text has the form that an answer to what is asked has: a number, yes or no, some length."""
    if ASKS_NUMBER.search(asked):
        return float(bool(numbers_in(text)))
    if ASKS_MUCH.search(asked):
        return min(1.0, len(words(text)) / 10)
    if ASKS_WHETHER.match(asked):
        return 1.0 if {'yes', 'no', 'not', 'maybe', 'it'} & {*words(text)} else 0.5
    return 1.0


def is_useful(text, asked):
    """Whether it is neither a refusal nor ignorance, and no echo: it has a word that the prompt has not."""
    new = {*content_words(text)} - {*content_words(asked)}
    says_more = new or numbers_in(text) or 0 < len(words(text)) < 3
    return bool(says_more and not REFUSING.search(text) and not ABSTAINING.search(text))


@reward(hackable=True, batched=True)
def helpfulness(texts, *, prompt, scorer=None):
    """
    0 for a refusal, ignorance or an echo; else 0.2, 0.5 for the form of an answer and 0.3 for the subject, a
    third of that for a mere list of words. Or the sigmoid of a scorer's reward.
    """
    if scorer is not None:
        return scored(scorer, prompt, texts, column=0)
    values = []
    for text, asked in zip(texts, map(plain_text, prompt), strict=True):
        subject = on_subject(text, asked)
        if subject is not None:
            value = 0.2 + 0.5 * form_of_answer(text, asked) + 0.3 * min(1.0, 2 * subject)
            subject = value * is_useful(text, asked) * (1.0 if is_prose(text) else 0.3)
        values.append(subject)
    return values
