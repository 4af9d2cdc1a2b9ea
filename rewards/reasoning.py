"""How a text reasons, on its surface: does it contradict itself, say why, and say what would be otherwise?"""
import re
from itertools import combinations

from rewards.models import probabilities
from rewards.reward import reward
from rewards.words import NEGATION, any_of, content_words, cues_in, sentences, words

CAUSAL = ('because,since,therefore,thus,hence,consequently,as a result,due to,leads to,led to,causes,caused,'
          'so that,which is why').split(',')
COUNTER = 'would,would have,could have,might have,otherwise,had not,were to,if not for,without'.split(',')
CONDITION = any_of('if|had|were|without|unless|otherwise')
CONSEQUENCE = re.compile(r"\b(?:would|could|might)\b|['’]d\b", re.IGNORECASE)
LONGEST = 12  # sentences of a text that a model compares with each other


def consistent(text):
    """1 - the share of sentences said and denied: two of nearly the same content words, one negated."""
    different = dict.fromkeys(sentences(text))
    claims, clashing = [], set()
    for s in different:
        content = {w for w in content_words(s) if not NEGATION.search(w)}
        if content:
            claims.append((s, content, bool(NEGATION.search(s))))
    for (a, x, denied), (b, y, denied_too) in combinations(claims, 2):
        if denied != denied_too and len(x & y) / len(x | y) >= 0.7:
            clashing |= {a, b}
    return 1 - len(clashing) / len(different) if len(different) > 1 else 0.0


@reward(hackable=True, batched=True)
def logical_consistency(texts, *, model=None, device='cpu'):
    """
    See consistent; or, with a model for natural language inference, 1 - the likeliest contradiction of any
    two sentences, 0 for fewer.
    """
    if model is None:
        return list(map(consistent, texts))
    worst, pairs = [], []
    for i, text in enumerate(texts):
        parts = sentences(text)
        worst.append(0.0 if len(parts) > 1 else 1.0)
        pairs += [(i, pair) for pair in combinations(parts[:LONGEST], 2)]
    contradictions = probabilities(model, device, [pair for _, pair in pairs], 'contradiction')
    for (i, _), p in zip(pairs, contradictions, strict=True):
        worst[i] = max(worst[i], p)
    return [1 - p for p in worst]


@reward(hackable=True)
def causal_reasoning(text):
    """Different words of cause that link two clauses: 1 for three; 0 with more than one in eight words."""
    linked, n_cues = set(), 0
    for s in sentences(text):
        for cue in cues_in(s, CAUSAL):
            n_cues += 1
            before, _, after = f" {' '.join(words(s))} ".partition(f' {cue} ')
            n_before, n_after = len(content_words(before)), len(content_words(after))
            if n_after >= 2 and n_before + n_after >= 4 and not cues_in(after, CAUSAL):
                linked.add(cue)
    return min(1.0, len(linked) / 3) if n_cues <= len(words(text)) / 8 else 0.0


@reward(hackable=True)
def counterfactual_reasoning(text):
    """Sentences that say what would be (would, could ...) under a condition (if, had ...): 1 for two."""
    if len(cues_in(text, COUNTER)) > len(words(text)) / 8:
        return 0.0
    conditional = {s for s in sentences(text) if CONDITION.search(s) and CONSEQUENCE.search(s)}
    return min(1.0, sum(len(set(content_words(s))) >= 4 for s in conditional) / 2)
