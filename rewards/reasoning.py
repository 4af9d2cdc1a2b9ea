"""
How a text argues: contradictions, causes, conditions, coherence. What needs no model looks at the surface and
is marked hackable: a policy that learns from one such reward alone learns the surface. An empty text has 0.
"""
import itertools
import re

from rewards.models import embeddings_of, probabilities
from rewards.parsing import NEGATION, content_words, cues_in, repeated, sentences, words
from rewards.reward import reward

CAUSAL = ('because', 'since', 'therefore', 'thus', 'hence', 'consequently', 'as a result', 'due to',
          'leads to', 'led to',
          'causes', 'caused', 'so that', 'which is why')
COUNTERFACTUAL = ('would', 'would have', 'could have', 'might have', 'otherwise', 'had not', 'were to',
                  'if not for', 'without')
CONDITION = re.compile(r'\b(?:if|had|were|without|unless|otherwise)\b', re.IGNORECASE)
CONSEQUENCE = re.compile(r"\b(?:would|could|might)\b|['’]d\b", re.IGNORECASE)


def contradicting(text):
    """
    The sentences that say and deny nearly the same: of common content words, one negated and the other not.
    """
    told = []
    for sentence in sentences(text):
        content = {word for word in content_words(sentence) if not NEGATION.search(word)}
        told.append((sentence, content, bool(NEGATION.search(sentence))))
    clashing = set()
    for (a, x, a_denies), (b, y, b_denies) in itertools.combinations(told, 2):
        if a_denies != b_denies and x and y and len(x & y) / len(x | y) >= 0.7:
            clashing |= {a, b}
    return clashing


def consistency_of(text):
    different = set(sentences(text))
    return 1 - len(contradicting(text)) / len(different) if len(different) > 1 else 0.0


@reward('logical_consistency', hackable=True, batched=True)
def logical_consistency(texts, *, model=None, device='cpu'):
    """
    1 less the share of sentences that contradict another one of the text: said and denied in nearly the same
    words, or, with a model for natural language inference, the likeliest contradiction of any two sentences
    (of the first 12). 0 for fewer than two sentences.
    """
    if model is None:
        return list(map(consistency_of, texts))
    told, pairs = list(map(sentences, texts)), []
    for i, said in enumerate(told):
        pairs += [(i, pair) for pair in itertools.combinations(said[:12], 2)]
    worst = [0.0 if len(said) > 1 else 1.0 for said in told]
    contradictions = probabilities(model, device, [pair for _, pair in pairs], 'contradiction')
    for (i, _), p in zip(pairs, contradictions, strict=True):
        worst[i] = max(worst[i], p)
    return [1 - p for p in worst]


def linked_clauses(text, cues):
    """
    The different cues that link two clauses of two content words or more, in a text with at most one cue in
    eight words.
    """
    linked, sown = set(), 0
    for sentence in sentences(text):
        for cue in cues_in(sentence, cues):
            sown += 1
            before, _, after = f" {' '.join(words(sentence))} ".partition(f' {cue} ')
            n_before, n_after = len(content_words(before)), len(content_words(after))
            if n_after >= 2 and n_before + n_after >= 4 and not cues_in(after, cues):
                linked.add(cue)
    return linked if sown <= len(words(text)) / 8 else set()


@reward('causal_reasoning', hackable=True)
def causal_reasoning(text):
    """
    Different words of cause that link two clauses: 1 for three or more. It says nothing of whether the causes
    are true.
    """
    return min(1.0, len(linked_clauses(text, CAUSAL)) / 3)


def is_counterfactual(sentence):
    conditional = CONDITION.search(sentence) and CONSEQUENCE.search(sentence)
    return bool(conditional) and len(set(content_words(sentence))) >= 4


@reward('counterfactual_reasoning', hackable=True)
def counterfactual_reasoning(text):
    """
    Sentences that say what would be (would, otherwise ...) under a condition (if, had ...): 1 for two or more
    different ones.
    """
    if len(cues_in(text, COUNTERFACTUAL)) > len(words(text)) / 8:
        return 0.0
    return min(1.0, len(set(filter(is_counterfactual, sentences(text)))) / 2)


def goes_on(a, b):
    """
    Whether sentence b goes on with the subject of a without saying the same: 5 to 60 % of the content words
    are common.
    """
    x, y = set(content_words(a)), set(content_words(b))
    return 0.05 <= len(x & y) / max(1, len(x | y)) <= 0.6


@reward('coherence', hackable=True, batched=True)
def coherence(texts, *, model=None, device='cpu'):
    """
    The share of neighbouring sentences that go on with the subject, see goes_on, times 1 - the share of
    repeated word triples. With a model, a sentence encoder, the neighbours' mean cosine takes the place of
    the share. 0 for one sentence.
    """
    told, link = list(map(sentences, texts)), goes_on
    if model is not None:
        embeddings = embeddings_of(model, device, list(itertools.chain(*told)))

        def link(a, b):
            return max(0.0, (embeddings[a] @ embeddings[b]).item())

    scores = []
    for text, said in zip(texts, told, strict=True):
        links = sum(link(a, b) for a, b in itertools.pairwise(said))
        share = min(1.0, links / (len(said) - 1)) if len(said) > 1 else 0.0
        scores.append(share * (1 - repeated(words(text))))
    return scores
