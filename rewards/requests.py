"""
Whether a text does what was asked: the prompt's checkable demands, its subject, courtesy.
"""
import math
import re
from functools import partial

from rewards.form import format_json
from rewards.harm import REFUSING, mild
from rewards.models import scored, sigmoid
from rewards.overlap import on_subject
from rewards.parsing import cues_in, plain_text, sentences, words
from rewards.reward import reward

NUMBERS = ('zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen '
           'sixteen seventeen '
           'eighteen nineteen twenty').split()
COUNTED = re.compile(r"\b(exactly|at least|at most|no more than|up to|fewer than|less than|more than|under|"
                     r"in|of|with|use|write)?"
                     rf"\s*([0-9]{{1,4}}|{'|'.join(NUMBERS)})[- ](word|sentence|line|paragraph|bullet)(?:s| "
                     rf"point| points)?\b",
                     re.IGNORECASE)
QUOTED = r"""["'“‘`]([^"'”’`]+)["'”’`]"""
POLITE = ('please', 'thank you', 'thanks', 'you are welcome', "you're welcome", 'sorry', 'apologies',
          'excuse me', 'kindly',
          'i would be happy', "i'd be happy", 'may i', 'could you', 'would you', 'happy to help',
          'i appreciate')


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


def paragraphs(text):
    return [part for part in re.split(r'\n\s*\n', text) if part.strip()]


def bullets(text):
    return re.findall(r'^\s*(?:[-*•]|[0-9]+[.)])\s+\S', text, re.MULTILINE)


UNITS = {'word': words, 'sentence': sentences, 'line': lines, 'paragraph': paragraphs, 'bullet': bullets}


def bounds(how, n):
    """The least and the most that '`how` n words' asks for."""
    if how in ('at least', 'more than'):
        return n + (how == 'more than'), math.inf
    if how in ('at most', 'no more than', 'up to'):
        return 1, n
    return (1, n - 1) if how in ('under', 'fewer than', 'less than') else (n, n)


def has_count(unit, low, high, text):
    return low <= len(unit(text)) <= high


def is_json(text):
    return format_json(text) == 1


def is_lower(text):
    return text == text.lower() and text != text.upper()


def is_upper(text):
    return text == text.upper() and text != text.lower()


def has_no_comma(text):
    return ',' not in text


def mentions(phrase, text):
    return phrase in text.lower()


def avoids(phrase, text):
    return phrase not in text.lower()


def begins(phrase, text):
    return text.lower().strip().startswith(phrase)


def ends(phrase, text):
    return text.lower().strip().endswith(phrase)


SIMPLE = ((r'\b(?:in|as|valid) json\b|\bjson (?:format|object)\b', is_json),
          (r'\b(?:all|in|only) (?:lower ?case|small letters)\b', is_lower),
          (r'\b(?:all|in|only) (?:upper ?case|capitals?|capital letters)\b', is_upper),
          (r'\b(?:no|without(?: any)?|not use(?: any)?|avoid) commas\b', has_no_comma))
PHRASES = ((rf'(?<!not )\b(?:include|mention|use|contain)(?:s|ing)? (?:the )?(?:words?|phrases?|keywords?)? '
            rf'?{QUOTED}', mentions),
           (r"\b(?:do not|don['’]t|never|avoid|without) ?(?:include|mention|use|using|say|saying|contain)? "
            r"?(?:the )?"
            rf'(?:words?|phrases?)? ?{QUOTED}', avoids),
           (rf'\b(?:start|begin)(?:s|ning|ing)? with (?:the )?(?:words?|phrase)? ?{QUOTED}', begins),
           (rf'\b(?:end|finish)(?:s|ing)? with (?:the )?(?:words?|phrase)? ?{QUOTED}', ends))


def constraints_in(prompt):
    """
    What a prompt asks for that can be checked, [(words of the prompt, text -> bool)]: counts of words,
    sentences, lines, paragraphs and bullets, JSON, upper or lower case, no commas, words to use or to avoid,
    beginning and end.
    """
    constraints = []
    for match in COUNTED.finditer(prompt):
        number = match[2].lower()
        n = NUMBERS.index(number) if number in NUMBERS else int(number)
        low, high = bounds((match[1] or 'exactly').lower(), n)
        constraints.append((match[0], partial(has_count, UNITS[match[3].lower()], low, high)))
    for pattern, check in SIMPLE:
        if re.search(pattern, prompt, re.IGNORECASE):
            constraints.append((pattern, check))
    for pattern, check in PHRASES:
        for match in re.finditer(pattern, prompt, re.IGNORECASE):
            constraints.append((match[0], partial(check, match[1].lower())))
    return constraints


@reward('instruction_following', needs=('prompt',), hackable=True)
def instruction_following(text, *, prompt=None):
    """
    The share of the prompt's checkable demands (see constraints_in) that the text meets, after IFEval (arXiv
    2311.07911). None when there is none. It looks at the form alone.
    """
    checks = constraints_in(plain_text(prompt))
    if not checks:
        return None
    return sum(check(text) for _, check in checks) / len(checks) if text.strip() else 0.0


@reward('helpfulness', needs=('prompt',), hackable=True, batched=True)
def helpfulness(texts, *, prompt, scorer=None):
    """
    Twice the relevance to the prompt, 1 at most, and 0 for a refusal; or, with a scorer, the sigmoid of its
    reward.
    """
    prompts, scores = list(map(plain_text, prompt)), []
    if scorer is not None:
        return [sigmoid(value) for value in scored(scorer, prompts, texts, 0)]
    for text, subject in zip(texts, map(on_subject, texts, prompts), strict=True):
        refused = subject is not None and REFUSING.search(text)
        scores.append(0.0 if refused else subject and min(1.0, 2 * subject))
    return scores


@reward('politeness', hackable=True)
def politeness(text):
    """
    Half for each of two different polite phrases, one for every 8 words at most; with abuse as little of it
    as mild() says.
    """
    return min(2, len(cues_in(text, POLITE)), len(words(text)) // 8) / 2 * mild(text)
