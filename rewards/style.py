"""
How a text reads: fluency, readability, engagement, brevity. An empty text has 0 for all of it, so that
silence does not pay.
"""
import functools
import math
import re

from rewards.facts import is_right
from rewards.parsing import cues_in, plain_text, repeated, sentences, words
from rewards.reward import reward

EXAMPLES = ('for example', 'for instance', 'imagine', 'suppose', 'picture this')


@functools.lru_cache(maxsize=1)
def grammar():
    try:
        from harper import Linter
    except ImportError:
        raise ImportError("checking grammar needs the package: pip install harper-py (in a "
                          "training run the start model can judge instead)") from None
    return Linter()


def correctness(text):
    """1 less five times the grammar checker's complaints per word, and less for under five words."""
    n = len(words(text))
    if not n:
        return 0.0
    return max(0.0, 1 - 5 * len(grammar().lint(text)) / n) * min(1.0, n / 5)


@reward('fluency', hackable=True, cheap=False, batched=True)
def fluency(texts, *, by=None, start_log_probs=None):
    """
    By 'model': exp of the mean log-prob per character, about 0.5 for plain English and 0.05 for noise, under
    start_log_probs(texts), which in training is the model that the run started from. By 'grammar'
    (harper-py): see correctness. Both times 1 - the share of repeated word triples. The default is the model
    where there is one.
    """
    if by not in (None, 'model', 'grammar'):
        raise ValueError(f"by is {by!r}: it must be 'model' or 'grammar'")
    if by == 'model' and start_log_probs is None:
        raise ValueError("by is 'model': there is no model here, give start_log_probs")
    if start_log_probs is None or by == 'grammar':
        likeness = {text: correctness(text) for text in texts}
    else:
        spoken = [text for text in texts if text.strip()]
        log_probs = start_log_probs(spoken) if spoken else []
        likeness = {text: math.exp(min(0.0, value)) for text, value in zip(spoken, log_probs, strict=True)}
    return [likeness.get(text, 0.0) * (1 - repeated(words(text))) for text in texts]


def syllables(word):
    """Groups of vowels, without a silent e at the end (large, while, looked); at least 1."""
    silent = re.search('(?:[^aeiouyl]|[aeiouy]l)e$|[^aeiouytd]ed$', word)
    return max(1, len(re.findall('[aeiouy]+', word)) - bool(silent))


@reward('readability', hackable=True)
def readability(text, *, min_words=20):
    """
    Flesch's reading ease (1948) over 100: 206.835 - 1.015 words per sentence - 84.6 syllables per word, kept
    within 0 and 1, times 1 - the share of repeated word triples. 0 under min_words words.
    """
    said = words(text)
    if len(said) < max(1, min_words):
        return 0.0
    ease = 206.835 - 1.015 * len(said) / len(sentences(text)) - 84.6 * sum(map(syllables, said)) / len(said)
    return min(1.0, max(0.0, ease / 100)) * (1 - repeated(said))


@reward('engagement', hackable=True)
def engagement(text):
    """
    A quarter each for a question, for addressing the reader, for an example, and for sentences of different
    length, from 15 words on; 0 for a text where more than half of the words were there before.
    """
    said, lengths = words(text), [len(words(sentence)) for sentence in sentences(text)]
    if len(said) < 15 or len(set(said)) < len(said) / 2:
        return 0.0
    varied = len(lengths) > 1 and max(lengths) >= 1.5 * min(lengths)
    asks, addresses = bool(re.search(r'\w\?', text)), bool({'you', 'your'} & set(said))
    return (asks + addresses + bool(cues_in(text, EXAMPLES)) + varied) / 4


@reward('brevity', hackable=True)
def brevity(text, *, reference=None, full=100, none=300):
    """
    1 up to `full` words, falling linearly to 0 at `none`; 0 without words, and for a wrong answer where there
    is a reference.
    """
    if not 0 < full < none:
        raise ValueError(f"full is {full} and none {none}: they must be 0 < full < none")
    n = len(words(text))
    if not n or (reference is not None and not is_right(text, plain_text(reference))):
        return 0.0
    return min(1.0, max(0.0, (none - n) / (none - full)))
