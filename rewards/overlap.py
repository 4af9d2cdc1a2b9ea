"""
What a text shares with the reference, the prompt, the context or its group. BLEU, ROUGE and METEOR are those
of sacrebleu, rouge-score and nltk.
"""
import math
import re
from collections import Counter
from types import SimpleNamespace

from formats.optional import optional
from rewards.parsing import plain_text
from rewards.reward import reward
from rewards.words import content_words, fresh, ngrams, stem, words

# ---- against a reference

@reward()
def bleu(text, *, reference):
    """sacrebleu's BLEU of a sentence / 100, against the reference, or a list of them."""
    given = reference if isinstance(reference, (list, tuple)) else [reference]
    references = [r for r in map(str, given) if r.strip()]
    if not references:
        return None
    package = optional('sacrebleu.metrics', "BLEU needs the package: pip install sacrebleu")
    return min(1.0, package.BLEU(effective_order=True).sentence_score(text, references).score / 100)


@reward()
def rouge(text, *, reference, variant='L'):
    """rouge-score's F1. variant: 'L', the longest common subsequence, or n-grams, 1 or 2."""
    if variant not in ('L', 1, 2):
        raise ValueError(f"variant is {variant!r}: it must be 'L', 1 or 2")
    reference, kind = plain_text(reference), f'rouge{variant}'
    if not re.search('[a-zA-Z0-9]', reference):
        return None
    package = optional('rouge_score.rouge_scorer', "ROUGE needs the package: pip install rouge-score")
    return package.RougeScorer([kind]).score(reference, text)[kind].fmeasure


@reward()
def meteor(text, *, reference):
    """nltk's METEOR (Banerjee & Lavie 2005) by words, then stems, without synonyms."""
    wanted = words(plain_text(reference))
    if not wanted:
        return None
    package = optional('nltk.translate.meteor_score', "METEOR needs the package: pip install nltk")
    by = {'stemmer': SimpleNamespace(stem=stem), 'wordnet': SimpleNamespace(synsets=lambda word: [])}
    return package.single_meteor_score(wanted, words(text), **by)


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


@reward(hackable=True, group=True)
def diversity(texts):
    """The mean of the shares of different words and word pairs, times 1 - self-BLEU (arXiv 1802.01886)."""
    spoken, values = list(map(words, texts)), []
    for i, own in enumerate(spoken):
        shares = [len(grams) / grams.total() if grams else 0.0 for grams in (ngrams(own, 1), ngrams(own, 2))]
        rest = [' '.join(other) for j, other in enumerate(spoken) if j != i and other]
        alike = bleu(' '.join(own), reference=rest) if rest else 0.0
        values.append(sum(shares) / 2 * (1 - alike))
    return values
