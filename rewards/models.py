"""
Models that judge. A `model` is a local folder that transformers loads, or a function; a `scorer` is a
function, or the URL of `judge.py serve`.
"""
import functools
import math

import torch

from rewards.parsing import plain_text
from rewards.reward import reward
from runtime.scorer import ScorerClient

BATCH = 32  # texts that a local model reads at once


@functools.lru_cache(maxsize=8)
def load(kind, path, device):
    """(tokenizer, model) of the local folder `path`. kind: one of transformers' Auto classes."""
    try:
        import transformers
    except ImportError:
        raise ImportError("a model given by its path needs the package: pip install transformers") from None
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = getattr(transformers, kind).from_pretrained(path, local_files_only=True)
    return tokenizer, model.to(device).eval()


def batches(tokenizer, model, texts):
    """The texts, or pairs, as padded inputs; long ones are cut."""
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    options = {'padding': True, 'truncation': True, 'max_length': longest, 'return_tensors': 'pt'}
    for start in range(0, len(texts), BATCH):
        yield tokenizer(texts[start:start + BATCH], **options).to(model.device)


# ---- classifiers and scorers

@torch.inference_mode()
def classify(path, device, texts):
    """[{label in lower case: probability}] of texts, or of pairs, by the classifier in the folder `path`."""
    tokenizer, model = load('AutoModelForSequenceClassification', path, device)
    labels = [model.config.id2label[i].lower() for i in range(model.config.num_labels)]
    several = model.config.problem_type == 'multi_label_classification'
    rows = []
    for batch in batches(tokenizer, model, texts):
        logits = model(**batch).logits.float()
        p = logits.sigmoid() if several else logits.softmax(dim=-1)
        rows += [dict(zip(labels, row, strict=True)) for row in p.tolist()]
    return rows


def probabilities(model, device, texts, label):
    """P(label) of each text or pair, by a function or a classifier with a label that begins so."""
    if not texts:
        return []
    if not isinstance(model, str):
        return list(model(texts))
    rows = classify(model, device, texts)
    name = next((name for name in rows[0] if name.startswith(label)), None)
    if name is None:
        raise ValueError(f"the classifier {model} has no label {label!r}, only: {', '.join(rows[0])}")
    return [row[name] for row in rows]


def scored(scorer, prompts, texts, column):
    """A scorer's numbers for prompt + text. column: 0 for rewards and 1 for costs of `judge.py serve`."""
    joined = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    return ScorerClient(scorer).score(joined)[column] if isinstance(scorer, str) else list(scorer(joined))


def sigmoid(x):
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, x))))


# ---- encoders

@torch.inference_mode()
def encode(path, device, layer, texts):
    """
    [(T, D) fp32 hidden states on the CPU] of texts by the encoder in `path`; those of the last layer for
    None.
    """
    tokenizer, model = load('AutoModel', path, device)
    states = []
    for batch in batches(tokenizer, model, texts):
        output = model(**batch, output_hidden_states=layer is not None)
        hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
        for row, mask in zip(hidden, batch['attention_mask'], strict=True):
            states.append(row[mask.bool()].float().cpu())
    return states


def states_of(model, device, layer, texts):
    """{text: (T, D)} of the different texts, by a folder's encoder or a function."""
    if model is None:
        raise ValueError("it needs a model: give params {'model': a local folder with an encoder}")
    texts = list(dict.fromkeys(texts))
    states = encode(model, device, layer, texts) if isinstance(model, str) else model(texts)
    return dict(zip(texts, states, strict=True))


def embeddings_of(model, device, texts):
    """{text: (D,)}, the means of the last hidden states, of length 1."""
    states = states_of(model, device, None, texts)
    return {text: x.mean(dim=0) / x.mean(dim=0).norm() for text, x in states.items()}


def compared(texts, references, compare):
    """compare(text, reference) of each pair; None without a reference, 0 for an empty text."""
    values = []
    for text, reference in zip(texts, references, strict=True):
        if text.strip() and reference.strip():
            values.append(min(1.0, max(0.0, compare(text, reference))))
        else:
            values.append(0.0 if reference.strip() else None)
    return values


@reward('semantic_similarity', needs=('reference',), cheap=False, batched=True)
def semantic_similarity(texts, *, reference, model=None, device='cpu'):
    """The cosine of text and reference by a sentence encoder (all-MiniLM-L6-v2, for one), at least 0."""
    references = list(map(plain_text, reference))
    means = embeddings_of(model, device, [x for x in texts + references if x.strip()])
    return compared(texts, references, lambda text, wanted: (means[text] @ means[wanted]).item())


@reward('bertscore', needs=('reference',), cheap=False, batched=True)
def bertscore(texts, *, reference, model=None, device='cpu', layer=None, baseline=0.83):
    """
    BERTScore's F1 (arXiv 1904.09675, without idf), rescaled to (F1 - baseline) / (1 - baseline), at least 0.
    baseline: the F1 of unrelated texts, about 0.83 with roberta-large at layer 17.
    """
    if not 0 <= baseline < 1:
        raise ValueError(f"baseline is {baseline}: it must be at least 0 and below 1")
    references = list(map(plain_text, reference))
    states = states_of(model, device, layer, [x for x in texts + references if x.strip()])
    states = {text: x / x.norm(dim=1, keepdim=True) for text, x in states.items()}

    def rescaled_f1(text, wanted):
        alike = states[text] @ states[wanted].T  # (T, T of the reference)
        precision, recall = alike.amax(dim=1).mean().item(), alike.amax(dim=0).mean().item()
        f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
        return (f1 - baseline) / (1 - baseline)
    return compared(texts, references, rescaled_f1)
