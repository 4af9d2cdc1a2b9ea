"""The words (in lower case) of a text, their stems, and its sentences."""
import re
from collections import Counter

from rewards.numerals import ENGLISH

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
NEGATION = re.compile(r"\b(?:not|no|never|none|cannot|without)\b|n['’]t\b", re.IGNORECASE)
STOP_WORDS = frozenset(ENGLISH['stop words'].split())
ENDINGS = (('ies', 'y'), ('sses', 'ss'), *((end, '') for end in "'s ’s ing ed ly es s".split()))


def any_of(*alternatives):
    """A pattern for any of the alternatives (each may be a|b), as words in either case."""
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b", re.IGNORECASE)


def words(text):
    return WORD.findall(text.lower())


def sentences(text):
    return [s for s in re.split(r'(?<=[.!?])\s+|\n+', text) if words(s)]


def stem(word):
    """A word without a common English ending."""
    for ending, rest in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith('ss'):
            return word[:-len(ending)] + rest
    return word


def content_words(text):
    """The stems of the words that carry a text's subject."""
    return [stem(word) for word in words(text) if word not in STOP_WORDS]


def cues_in(text, cues):
    """The set of cues (words or phrases) that a text holds."""
    text = f" {' '.join(words(text))} "
    return {cue for cue in cues if f' {cue} ' in text}


def ngrams(items, n):
    return Counter(tuple(items[i:i + n]) for i in range(len(items) - n + 1))


def fresh(text):
    """1 - the share of word triples that occurred before; 1 for a short text."""
    triples = ngrams(words(text), 3)
    repeated = 1 - len(triples) / triples.total() if triples else 0.0
    return 1 - repeated


def is_prose(text):
    """A few words, or no mere list: some carry the grammar, and there are two or more to a mark."""
    spoken, marks = words(text), len(re.findall('[,;:.!?]+', text))
    return len(spoken) < 4 or (bool(STOP_WORDS & {*spoken}) and len(spoken) >= 2 * marks)
