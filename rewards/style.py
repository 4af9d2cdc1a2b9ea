"""How a text reads, on its surface, which is all that a policy learns from these alone. Silence scores 0."""
import functools
import math
import re

from formats.optional import optional
from rewards.facts import gives
from rewards.harm import ABUSE, free_of
from rewards.models import embeddings_of
from rewards.reward import reward
from rewards.words import any_of, content_words, cues_in, fresh, sentences, words

REFERRING = any_of("s?he|it|they|th(?:is|at|ese|ose|en|ere|erefore|us)|its|their|his|her|him|them|one of",
                   "both|none|too|as well|also|such|another|here|our|my|your|so|finally|next|instead|however",
                   "but|others?|moreover|meanwhile|otherwise|as a result|for (?:example|instance)|because")


def link(a, b):
    """1 where sentence b goes on from a, or refers back, 0.5 where it begins with The; 0 for a repetition."""
    x, y = set(content_words(a)), set(content_words(b))
    if x & y:
        return float(len(x & y) <= 0.75 * len(x | y))
    return 1.0 if REFERRING.search(b) else 0.5 * b.startswith('The ')


@reward(hackable=True, batched=True)
def coherence(texts, *, model=None, device='cpu'):
    """
    The mean link of neighbouring sentences, or their cosine by a sentence encoder, times fresh(text); 0.3 for
    one sentence.
    """
    split, relate = [sentences(text) for text in texts], link
    if model is not None:
        means = embeddings_of(model, device, sum(split, []))

        def relate(a, b):
            return max(0.0, (means[a] @ means[b]).item())
    values = []
    for text, parts in zip(texts, split, strict=True):
        links = list(map(relate, parts, parts[1:])) or [0.3] * len(parts)
        value = min(1.0, sum(links) / max(1, len(links)))
        values.append(value * fresh(text))
    return values


@functools.cache
def grammar():
    return optional('harper', "checking grammar needs the package: pip install harper-py").Linter()


@reward(hackable=True, cheap=False, batched=True)
def fluency(texts, *, by=None, start_log_probs=None):
    """
    By 'model', the default where there is one: exp of the mean log-prob per character, by start_log_probs.
    By 'grammar': 1 - five times harper-py's complaints per word, less under five. Both times fresh(text).
    """
    if by not in (None, 'model', 'grammar'):
        raise ValueError(f"by is {by!r}: it must be 'model' or 'grammar'")
    if by == 'model' and start_log_probs is None:
        raise ValueError("by is 'model', and there is none: give start_log_probs")
    if by == 'grammar' or start_log_probs is None:
        values = map(grammatical, texts)
    else:
        spoken = [text for text in texts if text.strip()]
        log_probs = dict(zip(spoken, start_log_probs(spoken) if spoken else (), strict=True))
        values = [math.exp(min(0.0, log_probs[text])) if text in log_probs else 0.0 for text in texts]
    return [value * fresh(text) for value, text in zip(values, texts, strict=True)]


def grammatical(text):
    n = len(words(text))
    return max(0.0, 1 - 5 * len(grammar().lint(text)) / n) * min(1.0, n / 5) if n else 0.0


SILENT_E = re.compile('(?:[^aeiouyl]|[aeiouy]l)e$|[^aeiouytd]ed$')


def syllables(word):
    """Groups of vowels, without a silent e at the end (large, while, looked); at least 1."""
    return max(1, len(re.findall('[aeiouy]+', word)) - bool(SILENT_E.search(word)))


@reward(hackable=True)
def readability(text, *, min_words=20):
    """Flesch's reading ease (1948) / 100, times fresh(text); 0 under min_words."""
    spoken = words(text)
    n = len(spoken)
    if n < max(1, min_words):
        return 0.0
    ease = 206.835 - 1.015 * n / len(sentences(text)) - 84.6 * sum(map(syllables, spoken)) / n
    return min(1.0, max(0.0, ease / 100)) * fresh(text)


EXAMPLES = ('for example', 'for instance', 'imagine', 'suppose', 'picture this')


@reward(hackable=True)
def engagement(text):
    """
    A quarter each for a question, an address, an example, and sentences of different length; 0 under 15 words
    and where more than half are repeated.
    """
    spoken, lengths = words(text), [len(words(s)) for s in sentences(text)]
    if len(spoken) < 15 or len(set(spoken)) < len(spoken) / 2:
        return 0.0
    hooks = [re.search(r'\w\?', text), {'you', 'your'} & set(spoken), cues_in(text, EXAMPLES),
             max(lengths) >= 1.5 * min(lengths)]
    return sum(map(bool, hooks)) / 4


@reward(hackable=True)
def brevity(text, *, reference=None, full=100, none=300):
    """1 up to `full` words, falling to 0 at `none`; 0 without words, or for an answer not the reference."""
    if not 0 < full < none:
        raise ValueError(f"full is {full} and none {none}: they must be 0 < full < none")
    n = len(words(text))
    if not n or (reference is not None and not gives(text, reference)):
        return 0.0
    return min(1.0, max(0.0, (none - n) / (none - full)))


POLITE = ("please,thank you,thanks,you are welcome,you're welcome,sorry,apologies,excuse me,kindly,may i,"
          "could you,would you,i would be happy,i'd be happy,happy to help,i appreciate").split(',')


@reward(hackable=True)
def politeness(text):
    """Half for each of two polite phrases, one for every 8 words at most, less for abuse (free_of)."""
    return min(2, len(cues_in(text, POLITE)), len(words(text)) // 8) / 2 * free_of(ABUSE, text)
