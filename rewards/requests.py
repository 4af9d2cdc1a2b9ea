"""Does a text do what the prompt asks for?"""
import re

from rewards.form import format_json
from rewards.harm import REFUSING
from rewards.models import scored
from rewards.overlap import on_subject
from rewards.parsing import plain_text
from rewards.reward import reward
from rewards.words import sentences, words

NUMBER_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen twenty""".split()
BULLET = re.compile(r'^\s*(?:[-*•]|[0-9]+[.)])\s+\S', re.MULTILINE)
PARTS = {'word': words, 'sentence': sentences, 'bullet': BULLET.findall, 'line': str.splitlines,
         'paragraph': re.compile(r'\n\s*\n').split}
HOW = 'exactly|at least|at most|no more than|up to|fewer than|less than|more than|under|in|of|with|use|write'
COUNT = rf"[0-9]{{1,4}}|{'|'.join(NUMBER_WORDS)}"
UNIT = '(word|sentence|line|paragraph|bullet)(?:s| point| points)?'
COUNTED = re.compile(rf'\b({HOW})?\s*({COUNT})[- ]{UNIT}\b', re.IGNORECASE)
# What a prompt says, and whether a text meets it.
SIMPLE = {
    r'\b(?:in|as|valid) json\b|\bjson (?:format|object)\b': lambda t: format_json(t) == 1,
    r'\b(?:all|in|only) (?:lower ?case|small letters)\b': lambda t: t == t.lower() != t.upper(),
    r'\b(?:all|in|only) (?:upper ?case|capitals?|capital letters)\b': lambda t: t == t.upper() != t.lower(),
    r'\b(?:no|without(?: any)?|not use(?: any)?|avoid) commas\b': lambda t: ',' not in t}
# The same where the prompt goes on with a quotation; text and quotation in lower case.
QUOTED = r"""["'“‘`]([^"'”’`]+)["'”’`]"""
NOT = r"\b(?:do not|don['’]t|never|avoid|without) ?(?:include|mention|use|using|say|saying|contain)? ?"
USE = r'(?<!not )\b(?:include|mention|use|contain)(?:s|ing)? '
WITH = 'with (?:the )?(?:words?|phrase)? ?'
QUOTING = {
    USE + '(?:the )?(?:words?|phrases?|keywords?)? ?': lambda t, quoted: quoted in t,
    NOT + '(?:the )?(?:words?|phrases?)? ?': lambda t, quoted: quoted not in t,
    r'\b(?:start|begin)(?:s|ning|ing)? ' + WITH: lambda t, quoted: t.strip().startswith(quoted),
    r'\b(?:end|finish)(?:s|ing)? ' + WITH: lambda t, quoted: t.strip().endswith(quoted)}


def meets_count(how, n, unit, text):
    """Does a text meet a demand like 'at least 3 words'?"""
    count = sum(bool(part.strip()) for part in PARTS[unit](text))
    if how in ('at least', 'more than'):
        return count >= n + (how == 'more than')
    if how in ('at most', 'no more than', 'up to'):
        return 1 <= count <= n
    if how in ('under', 'fewer than', 'less than'):
        return 1 <= count < n
    return count == n


def demands_met(prompt, text):
    """Of each checkable demand of a prompt: does the text meet it?"""
    met = []
    for how, count, unit in COUNTED.findall(prompt):
        n = int(count) if count.isdigit() else NUMBER_WORDS.index(count.lower())
        met.append(meets_count(how.lower(), n, unit.lower(), text))
    met += [check(text) for pattern, check in SIMPLE.items() if re.search(pattern, prompt, re.IGNORECASE)]
    for pattern, check in QUOTING.items():
        for quoted in re.findall(pattern + QUOTED, prompt, re.IGNORECASE):
            met.append(check(text.lower(), quoted.lower()))
    return met


@reward(hackable=True)
def instruction_following(text, *, prompt):
    """The share of the prompt's checkable demands that the text meets, after IFEval (arXiv 2311.07911)."""
    met = demands_met(plain_text(prompt), text)
    if not met:
        return None
    return sum(met) / len(met) if text.strip() else 0.0


@reward(hackable=True, batched=True)
def helpfulness(texts, *, prompt, scorer=None):
    """Twice the relevance to the prompt, 1 at most, 0 for a refusal; or the sigmoid of a scorer's reward."""
    if scorer is not None:
        return scored(scorer, prompt, texts, column=0)
    values = list(map(on_subject, texts, map(plain_text, prompt)))
    for i, text in enumerate(texts):
        if values[i] is not None:
            values[i] = 0.0 if REFUSING.search(text) else min(1.0, 2 * values[i])
    return values
