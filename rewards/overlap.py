"""
How much a text shares with the reference, the prompt, the context or its group. BLEU, ROUGE and METEOR give
what sacrebleu, rouge-score and nltk give.
"""
import functools
import math
import operator
import re
from collections import Counter

from rewards.parsing import plain_text
from rewards.reward import reward
from rewards.words import content_words, ngrams, repeated, stem, words

# ---- against a reference

ENTITIES = {'<skipped>': '', '-\n': '', '\n': ' ', '&quot;': '"', '&amp;': '&', '&lt;': '<', '&gt;': '>'}
APART = ((r'([\{-\~\[-\` -\&\(-\+\:-\@\/])', r' \1 '), (r'([^0-9])([\.,])', r'\1 \2 '),
         (r'([\.,])([^0-9])', r' \1 \2'), (r'([0-9])(-)', r'\1 \2 '))


def tokens_13a(text):
    """Words and signs as mteval-v13a.pl, and sacrebleu, split them."""
    for entity, sign in ENTITIES.items():
        text = text.replace(entity, sign)
    text = f' {text} '
    for pattern, apart in APART:
        text = re.sub(pattern, apart, text)
    return text.split()


def bleu_of(matches, length, reference_length):
    """
    BLEU from the clipped n-gram matches of n = 1, 2, ...: the geometric mean of the precisions that `length`
    tokens have, the k-th without a match counting as 1/2^k, times the brevity penalty. Chen & Cherry 2014,
    smoothing 3.
    """
    if not length or not matches[0]:
        return 0.0
    logs, halvings = [], 0
    for n, count in enumerate(matches[:length]):
        halvings += not count
        logs.append(math.log((count or 0.5 ** halvings) / (length - n)))
    return min(1.0, math.exp(min(0.0, 1 - reference_length / length) + sum(logs) / len(logs)))


@reward('bleu', needs=('reference',))
def bleu(text, *, reference=None):
    """BLEU of the text against the reference, or a list of them; 1 is sacrebleu's 100."""
    given = reference if isinstance(reference, (list, tuple)) else [reference]
    references = [tokens for tokens in map(tokens_13a, map(str, given)) if tokens]
    if not references:
        return None
    tokens, matches = tokens_13a(text), []
    for n in range(1, 5):
        allowed = functools.reduce(operator.or_, (ngrams(r, n) for r in references))
        matches.append((ngrams(tokens, n) & allowed).total())
    nearest = min((abs(len(r) - len(tokens)), len(r)) for r in references)[1]
    return bleu_of(matches, len(tokens), nearest)


def common_subsequence(a, b):
    """The length of the longest sequence of items that both hold in this order."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


@reward('rouge', needs=('reference',))
def rouge(text, *, reference=None, variant='L'):
    """
    ROUGE's F1 (Lin 2004) of runs of a-z and 0-9. variant: 'L', the longest common subsequence, or n-grams, 1
    or 2.
    """
    if variant not in ('L', 1, 2):
        raise ValueError(f"variant is {variant!r}: it must be 'L', 1 or 2")
    wanted, got = (re.findall('[a-z0-9]+', x.lower()) for x in (plain_text(reference), text))
    if not wanted:
        return None
    if variant == 'L':
        matches, total = common_subsequence(wanted, got), len(wanted) + len(got)
    else:
        a, b = ngrams(wanted, variant), ngrams(got, variant)
        matches, total = (a & b).total(), a.total() + b.total()
    return 2 * matches / total if matches else 0.0


def align(wanted, got):
    """METEOR's sorted pairs (position in got, position in wanted) of equal words, then of equal stems."""
    wanted, got, pairs = list(enumerate(wanted)), list(enumerate(got)), []
    for key in (str, stem):
        free, left = {}, []
        for j, word in wanted:
            free.setdefault(key(word), []).append((j, word))
        for i, word in got[::-1]:  # from the end, as nltk does
            equal = free.get(key(word))
            if equal:
                pairs.append((i, equal.pop()[0]))
            else:
                left.append((i, word))
        wanted, got = sorted(sum(free.values(), [])), left[::-1]
    return sorted(pairs)


@reward('meteor', needs=('reference',))
def meteor(text, *, reference=None):
    """
    METEOR (Banerjee & Lavie 2005) by equal words, then stems: 10PR / (R + 9P), less half of (chunks /
    matches)^3.
    """
    wanted, got = words(plain_text(reference)), words(text)
    if not wanted:
        return None
    pairs = align(wanted, got)
    if not pairs:
        return 0.0
    chunks = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in zip(pairs, pairs[1:], strict=False))
    precision, recall = len(pairs) / len(got), len(pairs) / len(wanted)
    return 10 * precision * recall / (recall + 9 * precision) * (1 - 0.5 * (chunks / len(pairs)) ** 3)


@reward('conciseness', needs=('reference',))
def conciseness(text, *, reference=None):
    """The share of the reference's content words that are said, times its length over the text's."""
    reference = plain_text(reference)
    wanted, got = Counter(content_words(reference)), Counter(content_words(text))
    if not wanted:
        return None
    covered = (wanted & got).total() / wanted.total()
    return covered * min(1.0, len(words(reference)) / max(1, len(words(text))))


# ---- against the prompt, the context, the group

def on_subject(text, source):
    """
    The cosine of the content words, times 1 - the share of the text's word triples that are copied from the
    source, times 1 - the share that is repeated. None for a source without content words.
    """
    a, b = Counter(content_words(text)), Counter(content_words(source))
    if not b:
        return None
    if not a:
        return 0.0
    norm = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    cosine = sum(n * b[word] for word, n in a.items()) / norm
    triples, source_triples = ngrams(words(text), 3), ngrams(words(source), 3)
    if triples:
        copied = sum(n for triple, n in triples.items() if triple in source_triples) / triples.total()
    else:
        copied = float(set(words(text)) <= set(words(source)))
    return max(0.0, min(1.0, cosine) * (1 - copied) * (1 - repeated(words(text))))


@reward('relevance', needs=('prompt',), hackable=True)
def relevance(text, *, prompt=None):
    """How much the text speaks of the prompt's subject in other sentences; see on_subject."""
    return on_subject(text, plain_text(prompt))


@reward('context_relevance', needs=('context',), hackable=True)
def context_relevance(text, *, context=None):
    """How much the text speaks of the context's subject in other sentences; see on_subject."""
    return on_subject(text, plain_text(context))


def matches_with_rest(counts):
    """counts: G texts' n-grams. Returns how many of each text's occur in the rest, clipped as BLEU does."""
    most = {}  # an n-gram's largest count, the text that has it, and the largest count of the rest
    for i, own in enumerate(counts):
        for gram, count in own.items():
            best, holder, second = most.get(gram, (0, None, 0))
            most[gram] = (count, i, best) if count > best else (best, holder, max(second, count))
    matches = []
    for i, own in enumerate(counts):
        total = 0
        for gram, count in own.items():
            best, holder, second = most[gram]
            total += min(count, second if holder == i else best)
        matches.append(total)
    return matches


@reward('diversity', hackable=True, group=True)
def diversity(texts):
    """
    The mean of a text's shares of different words and word pairs, times 1 - self-BLEU (arXiv 1802.01886).
    """
    tokens, counts = [words(text) for text in texts], {}
    for n in range(1, 5):
        counts[n] = [ngrams(own, n) for own in tokens]
    matches = list(zip(*map(matches_with_rest, counts.values()), strict=True))  # G x 4
    values = []
    for i, own in enumerate(tokens):
        rest = [len(other) for j, other in enumerate(tokens) if j != i and other]
        nearest = min((abs(n - len(own)), n) for n in rest)[1] if rest else None
        varied = sum(len(c) / c.total() if c else 0.0 for c in (counts[1][i], counts[2][i])) / 2
        values.append(varied * (1 - bleu_of(matches[i], len(own), nearest)) if rest else varied)
    return values
