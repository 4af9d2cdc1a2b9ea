"""
What a text shares with the reference, the prompt, the context or its group. BLEU, ROUGE and METEOR are those
of sacrebleu, rouge-score and nltk.
"""
import functools
import math
import operator
import re
from collections import Counter

from rewards.parsing import plain_text
from rewards.reward import reward
from rewards.words import content_words, fresh, ngrams, stem, words

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


def bleu_of(matches, length, reference_lengths):
    """
    BLEU from the clipped matches of n = 1, 2, ... in `length` tokens: the geometric mean of precisions, the
    k-th without a match counting as 1/2^k (Chen & Cherry 2014, smoothing 3), times the brevity penalty.
    """
    if not length or not matches[0]:
        return 0.0
    logs, halvings = [], 0
    for n, count in enumerate(matches[:length]):
        halvings += not count
        logs.append(math.log((count or 0.5 ** halvings) / (length - n)))
    _, nearest = min((abs(n - length), n) for n in reference_lengths)
    return min(1.0, math.exp(min(0.0, 1 - nearest / length) + sum(logs) / len(logs)))


@reward()
def bleu(text, *, reference):
    """BLEU against the reference, or a list of them; 1 is sacrebleu's 100."""
    given = reference if isinstance(reference, (list, tuple)) else [reference]
    references = [tokens for tokens in map(tokens_13a, map(str, given)) if tokens]
    if not references:
        return None
    tokens, matches = tokens_13a(text), []
    for n in range(1, 5):
        allowed = functools.reduce(operator.or_, (ngrams(r, n) for r in references))
        matches.append((ngrams(tokens, n) & allowed).total())
    return bleu_of(matches, len(tokens), map(len, references))


def common_subsequence(a, b):
    """The length of the longest sequence of items that both hold in order."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


@reward()
def rouge(text, *, reference, variant='L'):
    """ROUGE's F1 (Lin 2004). variant: 'L', the longest common subsequence, or n-grams, 1 or 2."""
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
    """METEOR's sorted pairs (position in got, in wanted) of equal words, then of equal stems."""
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


@reward()
def meteor(text, *, reference):
    """METEOR (Banerjee & Lavie 2005) by words, then stems: 10PR / (R + 9P) (1 - (chunks / matches)^3 / 2)."""
    wanted, got = words(plain_text(reference)), words(text)
    if not wanted:
        return None
    pairs = align(wanted, got)
    if not pairs:
        return 0.0
    chunks = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in zip(pairs, pairs[1:], strict=False))
    precision, recall = len(pairs) / len(got), len(pairs) / len(wanted)
    return 10 * precision * recall / (recall + 9 * precision) * (1 - 0.5 * (chunks / len(pairs)) ** 3)


@reward()
def conciseness(text, *, reference):
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
    The cosine of the content words, times 1 - the share of word triples that are copied from the source,
    times fresh(text). None for a source without content words.
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
    return max(0.0, min(1.0, cosine) * (1 - copied) * fresh(text))


@reward(hackable=True)
def relevance(text, *, prompt):
    """Does it speak of the prompt's subject in other sentences? See on_subject."""
    return on_subject(text, plain_text(prompt))


@reward(hackable=True)
def context_relevance(text, *, context):
    """As relevance, of the context."""
    return on_subject(text, plain_text(context))


def matches_with_rest(counts):
    """counts: G texts' n-grams. How many of each text's occur in the rest, clipped as BLEU does."""
    most, second = {}, Counter()  # an n-gram's largest counts in two texts
    for own in counts:
        for gram, count in own.items():
            best = most.get(gram, 0)
            second[gram] = max(second.get(gram, 0), min(count, best))
            most[gram] = max(count, best)
    return [(own & second).total() for own in counts]


@reward(hackable=True, group=True)
def diversity(texts):
    """The mean of the shares of different words and word pairs, times 1 - self-BLEU (arXiv 1802.01886)."""
    tokens, counts, values = list(map(words, texts)), [], []
    for n in range(1, 5):
        counts.append([ngrams(own, n) for own in tokens])
    matches = zip(*map(matches_with_rest, counts), strict=True)  # G x 4
    for i, own_matches in enumerate(matches):
        varied = sum(len(c[i]) / c[i].total() if c[i] else 0.0 for c in counts[:2]) / 2
        rest = [len(other) for j, other in enumerate(tokens) if j != i and other]
        values.append(varied * (1 - bleu_of(own_matches, len(tokens[i]), rest)) if rest else varied)
    return values
