"""How a text reasons, on its surface: does it contradict itself, say why, and say what would be otherwise?"""
import re
from itertools import combinations

from rewards.facts import contradicts, roots
from rewards.models import probabilities
from rewards.reward import reward
from rewards.words import any_of, content_words, is_prose, sentences

CAUSES = any_of(
    r"because(?: of)?|since(?! (?:\d|then|last))|(?:due|owing|thanks) to|therefore|thus|hence|consequently",
    r"as a (?:result|consequence)(?: of)?|for (?:this|that) reason|(?:that|which)(?: is|['’]s) why|in turn",
    r"(?:cause|trigger|produce|drive)[sd]?|triggered|(?:leads?|led|leading) to|result(?:s|ed)? (?:in|from)",
    r"reasons? (?:why|for|that)|(?:which|this) (?:makes?|made)|by \w+ing|and so|(?<=, )so(?! that)")
IF = any_of(r"if|unless|otherwise|without|but for|suppos(?:e|ing)|imagine|assuming|in a world",
            r"(?<![^.,;:] )(?:had|were|should)(?= (?!to )\w)")
WOULD = re.compile(r"\b(?:would|could|might)(?:n['’]t)?\b|['’]d (?=\w)", re.IGNORECASE)
WOULD_HAVE = re.compile(rf"(?:{WOULD.pattern}) *(?:not |never |even |also )?have \w", re.IGNORECASE)
UNREAL = re.compile(rf"\b(?:have|had|were|was|did|\w{{2,}}ed)(?:n['’]t)?\b|{WOULD.pattern}", re.IGNORECASE)
OPEN = any_of("could|might")  # what may come true yet, unless the sentence has a past tense
LONGEST = 12  # sentences of a text that a model compares with each other


def consistent(text):
    """1 - the share of sentences said and denied: two of nearly the same words, one of which contradicts."""
    parts, clashing = list(dict.fromkeys(sentences(text))), set()
    for a, b in combinations(parts, 2):
        x, y = roots(a), roots(b)
        if len(x & y) >= 0.7 * len(x | y) and contradicts(a, b, set()):
            clashing |= {a, b}
    return 1 - len(clashing) / len(parts) if len(parts) > 1 else 0.0


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


def sentences_that(reason, text):
    """The mean reason(sentence, the one before) that is not 0; in full from a third of the text, in prose."""
    parts = sentences(text)
    values = [value for before, s in zip(['', *parts], parts, strict=False) if (value := reason(s, before))]
    if not values or not is_prose(text):
        return 0.0
    return min(1.0, 3 * len(values) / len(parts)) * sum(values) / len(values)


def links_cause(s, before):
    """Does it link two sides that have words of their own? One may be the sentence before."""
    sides = [content_words(part) for part in re.split('[,;:]', CAUSES.sub(',', s))]
    elsewhere = bool(content_words(CAUSES.sub('', before)))
    return bool(CAUSES.search(s)) and any(sides) and sum(map(bool, sides)) + elsewhere > 1


def supposes(s, before):
    """1 where it says what would be if something were so that is not; 0.5 for what may come true yet."""
    supposed = IF.search(s) or WOULD_HAVE.search(s) or IF.match(before)
    if not supposed or not WOULD.search(s) or not content_words(UNREAL.sub('', IF.sub('', s))):
        return 0.0
    return 1.0 if UNREAL.search(OPEN.sub('', s)) else 0.5


@reward(hackable=True)
def causal_reasoning(text):
    """Sentences that link a cause and an effect; see sentences_that."""
    return sentences_that(links_cause, text)


@reward(hackable=True)
def counterfactual_reasoning(text):
    """Sentences that say what would be otherwise; see sentences_that."""
    return sentences_that(supposes, text)
