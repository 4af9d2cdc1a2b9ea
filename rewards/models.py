"""
Models that judge. A `model` is a local folder for transformers, or a function; a `scorer` is a function, or
the URL of `judge.py serve`.
"""
import functools
import warnings

import torch

from formats.optional import optional
from judge import RUBRICS, LLMJudge
from rewards.parsing import plain_text
from rewards.reward import reward
from runtime.scorer import ScorerClient

BATCH = 32  # texts that a local model reads at once


@functools.lru_cache(maxsize=8)
def load(kind, path, device):
    """(tokenizer, model) of the local folder `path`. kind: one of transformers' Auto classes."""
    transformers = optional('transformers', "a model's folder takes the package: pip install transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = getattr(transformers, kind).from_pretrained(path, local_files_only=True)
    return tokenizer, model.to(device).eval()


def batches(tokenizer, model, texts):
    """Texts, or pairs, as padded inputs; long ones are cut."""
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    options = {'padding': True, 'truncation': True, 'max_length': longest, 'return_tensors': 'pt'}
    for start in range(0, len(texts), BATCH):
        yield tokenizer(texts[start:start + BATCH], **options).to(model.device)


# ---- classifiers and scorers

@torch.inference_mode()
def probabilities(model, device, texts, label):
    """P(label) of each text or pair, by a function or a classifier with a label that begins so."""
    if not texts:
        return []
    if not isinstance(model, str):
        return list(model(texts))
    tokenizer, classifier = load('AutoModelForSequenceClassification', model, device)
    config = classifier.config
    labels = [config.id2label[i].lower() for i in range(config.num_labels)]
    column = next((i for i, name in enumerate(labels) if name.startswith(label)), None)
    if column is None:
        raise ValueError(f"the classifier {model} has no label {label!r}, only: {', '.join(labels)}")
    p = []
    for batch in batches(tokenizer, classifier, texts):
        logits = classifier(**batch).logits.float()
        several = config.problem_type == 'multi_label_classification'
        p += (logits.sigmoid() if several else logits.softmax(dim=-1))[:, column].tolist()
    return p


def scored(scorer, prompts, texts, column):
    """Sigmoids of a scorer's numbers for prompt + text. column: of `judge.py serve`, 0 rewards, 1 costs."""
    joined = [plain_text(prompt) + text for prompt, text in zip(prompts, texts, strict=True)]
    numbers = ScorerClient(scorer).score(joined)[column] if isinstance(scorer, str) else list(scorer(joined))
    return torch.tensor(numbers, dtype=torch.float64).sigmoid().tolist()


# ---- encoders

@torch.inference_mode()
def states_of(model, device, texts, layer=None):
    """{text: (T, D) hidden states} by a function, or by an encoder, its last layer's by default."""
    if model is None:
        raise ValueError("it needs a model: give params {'model': a local folder with an encoder}")
    texts = [text for text in dict.fromkeys(texts) if text.strip()]
    if not isinstance(model, str):
        return dict(zip(texts, model(texts), strict=True))
    tokenizer, encoder = load('AutoModel', model, device)
    states = []
    for batch in batches(tokenizer, encoder, texts):
        output = encoder(**batch, output_hidden_states=layer is not None)
        hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
        for row, mask in zip(hidden, batch['attention_mask'], strict=True):
            states.append(row[mask.bool()].float().cpu())
    return dict(zip(texts, states, strict=True))


def embeddings_of(model, device, texts):
    """{text: (D,) the mean of its hidden states, of length 1}"""
    states = states_of(model, device, texts)
    return {text: x.mean(dim=0) / x.mean(dim=0).norm() for text, x in states.items()}


def compared(texts, references, states, compare):
    """compare(the states of both) of each pair, 0 to 1; None without a reference, 0 for an empty text."""
    values = []
    for text, wanted in zip(texts, references, strict=True):
        values.append(0.0 if wanted.strip() else None)
        if text.strip() and wanted.strip():
            values[-1] = min(1.0, max(0.0, compare(states[text], states[wanted])))
    return values


@reward(cheap=False, batched=True)
def semantic_similarity(texts, *, reference, model=None, device='cpu'):
    """The cosine of text and reference by a sentence encoder (such as all-MiniLM-L6-v2), at least 0."""
    references = list(map(plain_text, reference))
    means = embeddings_of(model, device, texts + references)
    return compared(texts, references, means, lambda x, y: (x @ y).item())


@reward(cheap=False, batched=True)
def bertscore(texts, *, reference, model=None, device='cpu', layer=None, baseline=0.83):
    """
    BERTScore's F1 (arXiv 1904.09675, without idf), rescaled to (F1 - baseline) / (1 - baseline), at least 0.
    baseline: the F1 of unrelated texts, about 0.83 with roberta-large at layer 17.
    """
    if not 0 <= baseline < 1:
        raise ValueError(f"baseline is {baseline}: it must be at least 0 and below 1")
    references = list(map(plain_text, reference))
    states = states_of(model, device, texts + references, layer)
    states = {text: x / x.norm(dim=1, keepdim=True) for text, x in states.items()}

    def rescaled_f1(x, y):
        alike = x @ y.T  # (T, T of the reference)
        precision, recall = alike.amax(dim=1).mean().item(), alike.amax(dim=0).mean().item()
        f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
        return (f1 - baseline) / (1 - baseline)
    return compared(texts, references, states, rescaled_f1)


# ---- a language model, asked by a rubric in words

load_judge = functools.lru_cache(maxsize=8)(LLMJudge)


@functools.cache
def try_judge(judge, name):
    """Warns of how well a judge tells good texts from bad by a rubric."""
    known = RUBRICS['texts'] | RUBRICS[name]
    good, bad = (torch.tensor(judge.grade(known[kind], known['rubric'], known['prompts']))
                 for kind in ('good', 'bad'))
    share = (good[:, None] > bad).float().mean().item()
    means = " and ".join(f"{x.mean():.2f} ± {x.std():.2f}" for x in (good, bad))
    told = f"the judge of {name!r} gives good and bad texts {means}, right in {share:.0%} of pairs"
    warnings.warn(told + (": too weak to learn from" if share < 0.75 else ''), stacklevel=2)


@reward(cheap=False, batched=True)
def rubric(texts, *, judge, rubric, prompt=None, context=None, reference=None, judge_model=None,
           device='cpu'):
    """How well a text meets a rubric, words or a name of RUBRICS, by an LLMJudge; 0 for an empty text."""
    if isinstance(judge, str):
        judge = load_judge(judge, judge_model, device)
    if rubric in RUBRICS:
        try_judge(judge, rubric)
        rubric = RUBRICS[rubric]['rubric']
    shown = [column and list(map(plain_text, column)) for column in (prompt, context, reference)]
    grades = judge.grade(texts, rubric, *shown)
    return [grade if text.strip() else 0.0 for text, grade in zip(texts, grades, strict=True)]
