"""
How much a text shares with another: with a reference (translation and summary metrics), with the prompt, the context, or the rest of its group.
Words are compared in lower case; BLEU, ROUGE and METEOR give what sacrebleu, rouge-score and nltk give.
"""
import functools
import math
import re
from collections import Counter

from rewards import plain_text, reward

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
STOP_WORDS = frozenset("""a about after all also am an and any are as at be because been before being but by can could did do does doing down during each
few for from further had has have having he her here hers him his how i if in into is it its itself just me more most my no nor not of off on once only or other
our out over own same she should so some such than that the their them then there these they this those through to too under until up very was we were what when
where which while who whom why will with would you your""".split())


def words(text):
    return WORD.findall(text.lower())


def stem(word):
    """A word without its commonest English endings."""
    for ending, rest in (('ies', 'y'), ('sses', 'ss'), ('ing', ''), ('ed', ''), ('ly', ''), ('es', ''), ('s', '')):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith('ss'):
            return word[:-len(ending)] + rest
    return word


def content_words(text):
    """The stems of a text's words that carry its subject."""
    return [stem(word) for word in words(text) if word not in STOP_WORDS]


def ngrams(items, n):
    return Counter(tuple(items[i:i + n]) for i in range(len(items) - n + 1))


def repeated(items, n=3):
    """The share of n-grams that stood there before: 0 for a text without loops or too short to have one."""
    found = ngrams(items, n)
    return 1 - len(found) / found.total() if found else 0.0


# ---------------------------------------------------------------------------------------------------------------------
# against a reference

def tokens_13a(text):
    """Words and signs as mteval-v13a.pl, and sacrebleu, split them."""
    text = text.replace('<skipped>', '').replace('-\n', '').replace('\n', ' ')
    for entity, sign in (('&quot;', '"'), ('&amp;', '&'), ('&lt;', '<'), ('&gt;', '>')):
        text = text.replace(entity, sign)
    text = f' {text} '
    for pattern, apart in ((r'([\{-\~\[-\` -\&\(-\+\:-\@\/])', r' \1 '), (r'([^0-9])([\.,])', r'\1 \2 '), (r'([\.,])([^0-9])', r' \1 \2'), (r'([0-9])(-)', r'\1 \2 ')):
        text = re.sub(pattern, apart, text)
    return text.split()


def bleu_of(matches, length, reference_length):
    """
    BLEU from the clipped n-gram matches of n = 1, 2, ..., for a text of `length` tokens: the geometric mean of the precisions (of the orders that the text is long enough for), where the
    k-th without a match counts as 1/2^k matches, and the brevity penalty. Chen & Cherry 2014, smoothing 3; sacrebleu's 'exp'.
    """
    if not length or not matches[0]:
        return 0.0
    logs, halvings = [], 0
    for n, found in enumerate(matches[:length]):
        halvings += not found
        logs.append(math.log((found or 0.5 ** halvings) / (length - n)))
    return min(1.0, math.exp(min(0.0, 1 - reference_length / length) + sum(logs) / len(logs)))


@reward('bleu', needs=('reference',))
def bleu(text, *, reference=None):
    """BLEU of the text against the reference, or a list of them; 1 is sacrebleu's 100."""
    references = [tokens for tokens in map(tokens_13a, map(str, reference if isinstance(reference, (list, tuple)) else [reference])) if tokens]
    if not references:
        return None
    tokens = tokens_13a(text)
    allowed = [functools.reduce(lambda a, b: a | b, (ngrams(r, n) for r in references)) for n in range(1, 5)]
    nearest = min((abs(len(r) - len(tokens)), len(r)) for r in references)[1]
    return bleu_of([(ngrams(tokens, n) & allowed[n - 1]).total() for n in range(1, 5)], len(tokens), nearest)


def common_subsequence(a, b):
    """The length of the longest sequence of items that both hold in this order."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def f1(matches, n, m):
    return 2 * matches / (n + m) if matches else 0.0


@reward('rouge', needs=('reference',))
def rouge(text, *, reference=None, variant='L'):
    """ROUGE's F1 against the reference: variant 'L', the longest common subsequence, or 1 or 2, the n-grams. Words are runs of a-z and 0-9, not stemmed (Lin 2004)."""
    if variant not in ('L', 1, 2):
        raise ValueError(f"variant is {variant!r}: it must be 'L', 1 or 2")
    wanted, got = (re.findall('[a-z0-9]+', x.lower()) for x in (plain_text(reference), text))
    if not wanted:
        return None
    if variant == 'L':
        return f1(common_subsequence(wanted, got), len(wanted), len(got))
    a, b = ngrams(wanted, variant), ngrams(got, variant)
    return f1((a & b).total(), a.total(), b.total())


@reward('meteor', needs=('reference',))
def meteor(text, *, reference=None):
    """METEOR (Banerjee & Lavie 2005) by equal words, then equal stems: F = 10PR / (R + 9P), less half the cube of chunks / matches. No synonyms."""
    wanted, got = list(enumerate(words(plain_text(reference)))), list(enumerate(words(text)))
    if not wanted:
        return None
    n, m, pairs = len(got), len(wanted), []
    for key in (str, stem):
        places, left = {}, []
        for j, word in wanted:
            places.setdefault(key(word), []).append((j, word))
        for i, word in got[::-1]:  # from the end, as nltk does
            same = places.get(key(word))
            if same:
                pairs.append((i, same.pop()[0]))
            else:
                left.append((i, word))
        wanted, got = sorted(sum(places.values(), [])), left[::-1]
    if not pairs:
        return 0.0
    pairs.sort()
    chunks = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in zip(pairs, pairs[1:]))
    precision, recall = len(pairs) / n, len(pairs) / m
    return 10 * precision * recall / (recall + 9 * precision) * (1 - 0.5 * (chunks / len(pairs)) ** 3)


@reward('conciseness', needs=('reference',))
def conciseness(text, *, reference=None):
    """The share of the reference's content words that are said, times the reference's length over the text's where that is longer."""
    wanted, got = Counter(content_words(plain_text(reference))), Counter(content_words(text))
    if not wanted:
        return None
    return (wanted & got).total() / wanted.total() * min(1.0, len(words(plain_text(reference))) / max(1, len(words(text))))


# ---------------------------------------------------------------------------------------------------------------------
# against a reference, in the eyes of a local model

@functools.lru_cache(maxsize=4)
def hidden_states_of(path, device, layer):
    """A function of texts -> [(T, D) fp32 hidden states of each, on the CPU] by the encoder in the local folder `path`. layer: None is the last."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ImportError("a model given by its path needs the package: pip install transformers") from None
    import torch
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModel.from_pretrained(path, local_files_only=True).to(device).eval()

    @torch.inference_mode()
    def hidden_states(texts, batch_size=32):
        states = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(texts[start:start + batch_size], padding=True, truncation=True, max_length=min(tokenizer.model_max_length, model.config.max_position_embeddings), return_tensors='pt').to(device)
            out = model(**batch, output_hidden_states=layer is not None)
            out = out.last_hidden_state if layer is None else out.hidden_states[layer]
            states += [row[mask.bool()].float().cpu() for row, mask in zip(out, batch['attention_mask'])]
        return states
    return hidden_states


def states_of(model, device, layer, texts):
    """{text: (T, D)} of the different texts, each read once. model: a folder, or a function from texts to their states."""
    if model is None:
        raise ValueError("it needs a model: give params {'model': a local folder with an encoder}")
    texts = list(dict.fromkeys(texts))
    return dict(zip(texts, (hidden_states_of(model, device, layer) if isinstance(model, str) else model)(texts)))


@reward('semantic_similarity', needs=('reference',), cheap=False, batched=True)
def semantic_similarity(texts, *, reference, model=None, device='cpu'):
    """The cosine, not below 0, of text and reference as a sentence encoder sees them: the mean of its last hidden states (all-MiniLM-L6-v2, for one)."""
    references = list(map(plain_text, reference))
    states = states_of(model, device, None, [x for x in texts + references if x.strip()])
    means = {text: x.mean(dim=0) / x.mean(dim=0).norm() for text, x in states.items()}
    return [None if not r.strip() else min(1.0, max(0.0, (means[t] @ means[r]).item())) if t.strip() else 0.0 for t, r in zip(texts, references)]


@reward('bertscore', needs=('reference',), cheap=False, batched=True)
def bertscore(texts, *, reference, model=None, device='cpu', layer=None, baseline=0.83):
    """
    BERTScore's F1 (arXiv 1904.09675, without idf): each token with the likest of the other text. baseline: what unrelated texts get, about 0.83 with roberta-large at layer 17;
    (F1 - baseline) / (1 - baseline), not below 0, for raw it hardly tells a good text from any other.
    """
    if not 0 <= baseline < 1:
        raise ValueError(f"baseline is {baseline}: it must be at least 0 and below 1")
    references = list(map(plain_text, reference))
    states = states_of(model, device, layer, [x for x in texts + references if x.strip()])
    states = {text: x / x.norm(dim=1, keepdim=True) for text, x in states.items()}
    values = []
    for t, r in zip(texts, references):
        if not r.strip() or not t.strip():
            values.append(None if not r.strip() else 0.0)
            continue
        alike = states[t] @ states[r].T                                         # (T, T of the reference)
        precision, recall = alike.amax(dim=1).mean().item(), alike.amax(dim=0).mean().item()
        f = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
        values.append(min(1.0, max(0.0, (f - baseline) / (1 - baseline))))
    return values


# ---------------------------------------------------------------------------------------------------------------------
# against the prompt, the context, the group

def on_subject(text, source):
    """The cosine of the content words of text and source, less the share of the text's word triples that are copied from it, and less its own repetitions. None when source has no content words."""
    a, b = Counter(content_words(text)), Counter(content_words(source))
    if not b:
        return None
    if not a:
        return 0.0
    cosine = sum(n * b[word] for word, n in a.items()) / math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    copied, there = ngrams(words(text), 3), ngrams(words(source), 3)
    share = sum(n for triple, n in copied.items() if triple in there) / copied.total() if copied else float(set(words(text)) <= set(words(source)))
    return max(0.0, min(1.0, cosine) * (1 - share) * (1 - repeated(words(text))))


@reward('relevance', needs=('prompt',), hackable=True)
def relevance(text, *, prompt=None):
    """How much the text speaks of what the prompt speaks of, in other sentences; see on_subject."""
    return on_subject(text, plain_text(prompt))


@reward('context_relevance', needs=('context',), hackable=True)
def context_relevance(text, *, context=None):
    """How much the text speaks of what the context speaks of, in other sentences; see on_subject."""
    return on_subject(text, plain_text(context))


@reward('diversity', hackable=True, group=True)
def diversity(texts):
    """For each text of a group: the mean of its shares of different words and word pairs, times 1 - the BLEU of the text against the other ones (self-BLEU, arXiv 1802.01886). A text alone has the first factor only."""
    tokens = [words(text) for text in texts]
    matches = [[0] * 4 for _ in tokens]
    for n in range(1, 5):
        counts, most = [ngrams(own, n) for own in tokens], {}  # most: an n-gram's largest count, in which text, and the largest count of the others
        for i, found in enumerate(counts):
            for gram, count in found.items():
                best, where, second = most.get(gram, (0, None, 0))
                most[gram] = (count, i, best) if count > best else (best, where, max(second, count))
        for i, found in enumerate(counts):
            matches[i][n - 1] = sum(min(count, most[gram][2] if most[gram][1] == i else most[gram][0]) for gram, count in found.items())
    values = []
    for i, own in enumerate(tokens):
        lengths = [(abs(len(other) - len(own)), len(other)) for j, other in enumerate(tokens) if j != i and other]
        varied = sum(len(found) / found.total() if found else 0.0 for found in (ngrams(own, 1), ngrams(own, 2))) / 2
        values.append(varied * (1 - (bleu_of(matches[i], len(own), min(lengths)[1]) if lengths else 0.0)))
    return values
