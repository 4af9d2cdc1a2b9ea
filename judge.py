"""
Neural judges, frozen while a policy learns from them: Judge, how much of a text a machine has filled in (the
reward of fill-in is 1 - score), ScoreModel, a reward or a cost, and LLMJudge, a language model with a rubric.
LagrangeMultiplier: the price of a cost.

As a script it serves a reward and a cost model over HTTP (a cost above 0 is unsafe), or a language model.
$ python judge.py serve --reward=out-shop/reward.pt --cost=out-shop/cost.pt --port=8000
$ curl -H 'Content-Type: application/json' \
    -d '{"prompts": ["tker>"], "responses": ["tea egg rice"]}' http://127.0.0.1:8000/score_batch
$ python judge.py serve --model=DIR
"""
import runtime.early  # noqa: F401, I001  before torch
import bisect
import hashlib
import json
import math
import os
import re
import signal
import sys
import threading
import urllib.parse
import warnings
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from formats import weights
from model import GPT, GPTConfig, build
from runtime.checkpoint import entry, load_checkpoint, tokenizer_of
from runtime.config import configure
from runtime.scorer import ScorerClient, ScorerServer, ScorerUnavailable, in_threads

# what safe-rlhf's models were trained on
BEAVER_TEMPLATE = 'BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}'
BATCH_TOKENS = 16384  # that a score model reads at once


def read_model(path, kind):
    """(the checkpoint at path, the fields of its GPTConfig, its tensors). Raises as load_checkpoint does."""
    checkpoint = load_checkpoint(path, kind)
    return checkpoint, entry(checkpoint, 'model_config', dict, path), entry(checkpoint, 'model', dict, path)


class Judge(nn.Module):
    """
    A bidirectional trunk that reads [CLS] + text. A slot head says of each token how likely it was replaced;
    the score is sigmoid(w . h_CLS + a * logit(mean of those) + b). T labels a text instead of one make it
    good after a minute.
    """

    def __init__(self, config: GPTConfig, cls_id: int):
        super().__init__()
        self.trunk = GPT(config)
        self.cls_id = cls_id
        self.slot_head = nn.Linear(config.n_embd, 1)
        self.score_head = nn.Linear(config.n_embd + 1, 1)
        with torch.no_grad():  # the score starts as the share of slots that look replaced, and few do
            self.slot_head.bias.fill_(-2.0)
            self.score_head.weight.zero_()[0, -1] = 1.0
            self.score_head.bias.zero_()

    def forward(self, tokens, lengths=None):
        """
        Logits of the score (N,) and of each token having been replaced (N, T). tokens (N, T), right-padded;
        lengths (N,), best on the CPU, or None without padding.
        """
        N, T = tokens.shape
        lengths = torch.full((N,), T) if lengths is None else lengths
        cls = torch.full_like(tokens[:, :1], self.cls_id)
        hidden = self.trunk(torch.cat((cls, tokens), dim=1), lengths + 1)      # (N, 1 + T, D)
        slots = self.slot_head(hidden[:, 1:]).squeeze(-1)
        lengths = lengths.to(tokens.device)[:, None]
        padding = torch.arange(T, device=tokens.device) >= lengths
        share = slots.float().sigmoid().masked_fill(padding, 0.0).sum(dim=1, keepdim=True) / lengths
        evidence = torch.cat((hidden[:, 0], share.logit(eps=1e-4)), dim=1)
        return self.score_head(evidence).squeeze(-1), slots

    @torch.inference_mode()
    def score(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """How machine-filled each text looks, (N,) from 0 to 1."""
        n = len(tokens) if tokens.is_cuda else 64  # what so many need stays in a CPU's cache
        lengths = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths
        parts = zip(tokens.split(n), lengths.split(n), strict=True)
        return torch.cat([self(*part)[0] for part in parts]).sigmoid()

    @classmethod
    def from_pretrained(cls, path: str, tokenizer) -> 'Judge':
        """The frozen judge of a checkpoint file, on the CPU; its `quality` is that on held-out texts."""
        checkpoint, *saved = read_model(path, 'judge')
        tokenizer.check_same(entry(checkpoint, 'chars', list, path), path)
        judge = build(lambda config: cls(config, tokenizer.cls_id), *saved, path)
        judge.quality = entry(checkpoint, 'quality', dict, path)
        return judge.eval().requires_grad_(False)


class ScoreModel(nn.Module):
    """
    A causal trunk and a linear head at the text's last token, as in safe-rlhf (arXiv 2310.12773). Kind
    'reward': the better text scores higher, normalized by mean and spread. Kind 'cost': above 0 is unsafe, so
    only the spread may be normalized.
    """

    def __init__(self, config: GPTConfig, kind: str):
        super().__init__()
        self.trunk, self.kind = GPT(config), kind
        self.score_head = nn.Linear(config.n_embd, 1)
        self.register_buffer('mean', torch.zeros(()))
        self.register_buffer('var', torch.ones(()))

    def forward(self, tokens, lengths):
        """Scores (N,) of tokens (N, T), right-padded, with true lengths (N,)."""
        rows = torch.arange(len(tokens), device=tokens.device)
        last = self.trunk(tokens, lengths)[rows, lengths - 1]
        score = self.score_head(last).squeeze(-1).float()
        centred = score - self.mean if self.kind == 'reward' else score
        return centred * self.var.rsqrt()

    def scores(self, rows):
        """Scores (N,) of lists of token ids."""
        device = self.score_head.weight.device
        tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return self(tokens.to(device), torch.tensor([len(row) for row in rows], device=device))

    @classmethod
    def from_pretrained(cls, path: str, kind: str) -> 'ScoreModel':
        """The frozen model of that kind, on the CPU: our checkpoint, or a folder of transformers' form."""
        if path.endswith('.pt'):
            _, fields, state = read_model(path, kind)
        else:
            fields, state, its_kind = weights.read_score_model(path)
            if its_kind not in (None, kind):
                raise ValueError(f"{path} holds a {its_kind} model where a {kind} model is wanted")
        return build(lambda config: cls(config, kind), fields, state, path).eval().requires_grad_(False)


@dataclass
class LagrangeMultiplier:
    """
    Lambda, the price of a cost, so that E[C] + threshold <= 0. It goes by an exponential average, from 0 on,
    of J = mean cost + threshold. rule 'exponential': ln lambda += lr * average; 'safe_rlhf': ln lambda +=
    lr * lambda * average, gradient ascent in ln lambda (arXiv 2310.12773, which averages 128 episodes, as
    ema_beta 0 does with a batch of them). positive_only: J counts as max(J, 0); lambda then never falls.
    """
    value: float = 1.0
    lr: float = 0.005
    minimum: float = 1e-4
    maximum: float = 5.0
    ema_beta: float = 0.9
    threshold: float = 0.0
    positive_only: bool = False
    rule: str = 'exponential'

    def __post_init__(self):
        if not 0 < self.minimum <= self.maximum:
            raise ValueError(f"lambda's minimum {self.minimum} must be above 0 and at most its maximum, "
                             f"{self.maximum}")
        known = self.rule in ('exponential', 'safe_rlhf')
        if not (self.value >= 0 and self.lr >= 0 and 0 <= self.ema_beta < 1 and known):
            raise ValueError(f"{self}: value and lr must be at least 0, ema_beta in [0, 1), and rule "
                             "exponential or safe_rlhf")
        self.log_value, self.ema = math.log(self.value) if self.value else -math.inf, 0.0

    def update(self, mean_cost: float) -> float:
        """The new lambda. mean_cost: over all ranks. Raises FloatingPointError unless it is finite."""
        if not math.isfinite(mean_cost):
            raise FloatingPointError(f"the mean cost is {mean_cost}: lambda was not touched")
        J = mean_cost + self.threshold
        if self.positive_only:
            J = max(J, 0.0)
        self.ema = self.ema_beta * self.ema + (1 - self.ema_beta) * J
        self.log_value += self.lr * self.ema * (self.value if self.rule == 'safe_rlhf' else 1.0)
        self.log_value = min(max(self.log_value, math.log(self.minimum)), math.log(self.maximum))
        self.value = math.exp(self.log_value)
        return self.value

    def state_dict(self) -> dict:
        return {'value': self.value, 'log_value': self.log_value, 'ema': self.ema}

    def load_state_dict(self, state):
        vars(self).update(state)


# -----------------------------------------------------------------------------
# texts to score

def score_ids(tokenizer, text, room):
    """
    At most `room` token ids of a text as score models read it, in training and in service: the tokenizer's
    begin token, if it has one, and the end token last, where the score is read.
    """
    begin = list(tokenizer.prefix)
    ids = tokenizer.encode(text[:100 * room])  # no token is longer than 100 characters
    return begin + ids[:room - 1 - len(begin)] + [tokenizer.eos_id]


class TextScorer:
    """A reward and a cost model, or one of them ('' for the other), each with its tokenizer."""

    def __init__(self, reward_path: str, cost_path: str, device: str = 'cpu', max_length: int = 512,
                 dtype: torch.dtype = torch.float32):
        self.device, self.parts = device, []
        for path, kind in ((reward_path, 'reward'), (cost_path, 'cost')):
            if not path:
                continue
            model, tokenizer = ScoreModel.from_pretrained(path, kind).to(device), tokenizer_of(path)
            model.trunk.to(dtype)
            model.score_head.to(dtype)
            if tokenizer.eos_id is None:
                raise ValueError(f"the tokenizer of {path} has no end token, and a score is read there")
            self.parts.append((model, tokenizer, min(max_length, model.trunk.config.block_size)))

    def encode(self, texts):
        """For each text its token ids for each of the models."""
        rows = []
        for text in texts:
            rows.append([score_ids(tokenizer, text, room) for _, tokenizer, room in self.parts])
        return rows

    @torch.inference_mode()
    def score(self, rows):
        """A list of floats for each model, of what encode returned."""
        columns = []
        for i, (model, *_) in enumerate(self.parts):
            ids, scores = [tuple(row[i]) for row in rows], {}
            for batch in in_batches(ids):
                scores |= zip(batch, model.scores(batch).tolist(), strict=True)
            columns.append([scores[row] for row in ids])
        return tuple(columns)


def in_batches(rows):
    """Rows of token ids, each once, those of like length together."""
    rows = sorted(dict.fromkeys(rows), key=len)
    while rows:
        n = max(1, BATCH_TOKENS // len(rows[-1]))
        yield rows[-n:]
        rows = rows[:-n]


# -----------------------------------------------------------------------------
# a language model as judge

GRADES, VALUES = '1 2 3 4 5'.split(), torch.linspace(0, 1, 5)
# one number, after the thoughts
GRADED = re.compile(r'(?s)(?:.*</think>)?[^\d<]*([1-5](?:\.\d+)?)(?: ?(?:/|out of) ?5)?\b[^\d<]*')
# what an endpoint may read as its tokens: <|im_end|>, </s>, <end_of_turn>, [INST]
SPECIAL = re.compile(r'<(?=\||/?s>|\w+_of_turn)|\[(?=/?INST)')
with open(os.path.join(os.path.dirname(__file__), 'rewards', 'rubrics.json'), encoding='utf-8') as f:
    RUBRICS = json.load(f)  # a reward's name -> its rubric, and texts to try a judge with


def question(text, rubric, *shown):
    """What is asked about a text, which cannot close the mark around it: a hash that is taken out of it."""
    named = zip(('Prompt', 'Context', 'A right answer'), shown, strict=True)
    shown = ''.join(f'{name}: {value}\n' for name, value in named if value)
    mark = hashlib.sha256(ascii((rubric, shown)).encode()).hexdigest()[:8]
    text = re.sub(mark, '-', text, flags=re.IGNORECASE)
    return RUBRICS['question'].format(rubric=rubric, shown=shown, mark=mark, text=text)


class LLMJudge:
    """
    A language model that grades texts from 1 to 5 by a rubric in words; a score is the grade to expect by its
    probabilities (arXiv 2303.16634), 0 to 1. judge: a causal model's path or hub name, the URL of `judge.py
    serve`, or of an OpenAI-compatible endpoint, which has a path (/v1). JUDGE_API_KEY is the key to both.
    """
    logprobs, cuts = True, False  # does the endpoint take the setting; have texts been cut?

    def __init__(self, judge: str, model: str | None = None, device: str = 'cpu', patience: float = 60.0,
                 concurrency: int = 8):
        self.name, self.device, self.concurrency = model or 'default', device, concurrency
        if not judge.startswith(('http://', 'https://')):
            self.tokenizer = tokenizer_of(judge)
            self.model = GPT.from_pretrained(judge).to(device).eval().requires_grad_(False)
            self.grade_ids = [self.tokenizer.encode(grade)[-1] for grade in GRADES]
            self.ask = lambda questions: self.score(self.encode(questions))[0]
            return
        self.client = ScorerClient(judge, patience=patience, token=os.environ.get('JUDGE_API_KEY'))
        is_ours = not urllib.parse.urlsplit(judge).path.strip('/')
        self.ask = (lambda questions: self.client.score(questions)[0]) if is_ours else self.ask_endpoint

    def grade(self, texts: list[str], rubric: str, prompt: list | None = None, context: list | None = None,
              reference: list | None = None) -> list[float]:
        """
        How well each text meets the rubric; NaN where an endpoint gave no grade. Raises ScorerUnavailable,
        ValueError for a question too long without its text.
        """
        columns = [column or [None] * len(texts) for column in (prompt, context, reference)]
        asked = [question(text, rubric, *shown) for text, *shown in zip(texts, *columns, strict=True)]
        different = list(dict.fromkeys(asked))
        grades = dict(zip(different, self.ask(different), strict=True))
        return [grades[text] for text in asked]

    def encode(self, texts):
        """(what it may share, token ids) of each question."""
        return [(text.partition('\n[')[0], tuple(self.fitted(text))) for text in texts]

    def ids_of(self, text):
        chat, read = [{'role': 'user', 'content': text}], self.tokenizer
        return read.chat(chat) if read.has_chat_template else read.encode_prompt(text)

    def fitted(self, asked):
        """A question's token ids; the middle of a text too long for the model is left out."""
        ids, room = self.ids_of(asked), self.model.config.block_size
        if len(ids) <= room:
            return ids
        mark = '\n{}\n'.format(asked.rpartition('\n')[0].rpartition('\n')[2])
        before, text, after = asked.rsplit(mark, 2) if asked.count(mark) > 1 else ('', '', asked)

        def cut(n):
            kept = text[:n - n // 2] + ' ... ' * (n > 0) + text[len(text) - n // 2:]
            return self.ids_of(mark.join((before, kept, after)))
        n = bisect.bisect_left(range(len(text)), True, key=lambda n: len(cut(n)) > room)
        if not n:
            raise ValueError(f"a question has {len(ids)} tokens, and the judge reads {room}")
        if not self.cuts:
            self.cuts = True
            warnings.warn(f"the judge reads {room} tokens: longer texts lose their middle", stacklevel=2)
        return cut(n - 1)

    @torch.inference_mode()
    def score(self, rows):
        """(grades, costs of 0) of what encode returned. Rubric and prompt are read once for their texts."""
        groups, grades = {}, {}
        for head, ids in rows:
            groups.setdefault(head, []).append(ids)
        for group in groups.values():
            n = min(len(os.path.commonprefix(group)), min(map(len, group)) - 1)  # one stays each row's own
            _, prefix = self.model.prefill(torch.tensor([group[0][:n]], device=self.device))
            for batch in in_batches(group):
                own = [torch.tensor(ids[n:], device=self.device) for ids in batch]
                tokens, length = pad_sequence(own, batch_first=True), torch.tensor([n], device=self.device)
                lengths = torch.tensor([len(ids) for ids in own])
                hidden = self.model.complete(tokens[None], prefix, length, lengths[None])[0]
                last = hidden[range(len(own)), lengths - 1]
                logits = self.model.lm_head(last)[:, self.grade_ids].float().cpu()  # (G, 5)
                grades |= zip(batch, (logits.softmax(dim=-1) @ VALUES).tolist(), strict=True)
        return [grades[ids] for _, ids in rows], [0.0] * len(rows)

    def ask_endpoint(self, questions):
        before = self.logprobs
        grades = in_threads(self.ask_one, zip(questions), self.concurrency)
        if before != self.logprobs:
            warnings.warn(f"the judge at {self.client.url} refuses logprobs: its text is read", stacklevel=2)
        return grades

    def ask_one(self, text):
        text = SPECIAL.sub(r'\g<0> ', text)
        asked = {'model': self.name, 'messages': [{'role': 'user', 'content': text}], 'temperature': 0,
                 'max_tokens': 16}
        more = {'logprobs': True, 'top_logprobs': 20} if self.logprobs else {}
        try:
            return self.client.ask('/chat/completions', asked | more, grade_in)
        except ScorerUnavailable as e:
            if not more or getattr(e.__context__, 'code', 0) not in (400, 403, 422):  # the HTTPError's
                raise
        grade = self.client.ask('/chat/completions', asked, grade_in)
        self.logprobs = False
        return grade


def grade_in(answer):
    """
    The grade in an endpoint's answer: by the log-probs of its first token, or the number in its text; NaN
    without one. Raises ValueError where it is no chat completion.
    """
    try:
        choice = answer['choices'][0]
        number = GRADED.fullmatch(choice['message']['content'] or '')
        first = ((choice.get('logprobs') or {}).get('content') or [{}])[0]
        likeliest_last = reversed(first.get('top_logprobs') or [])  # '4' and ' 4' are one grade
        logps = {token['token'].strip(): float(token['logprob']) for token in likeliest_last}
    except (TypeError, LookupError, AttributeError):
        raise ValueError("its answer is no chat completion") from None
    if logps.keys() & set(GRADES):
        grades = torch.tensor([logps.get(grade, -math.inf) for grade in GRADES])
        return (grades.softmax(dim=-1) @ VALUES).item()
    return (float(number[1]) - 1) / 4 if number else math.nan


# -----------------------------------------------------------------------------
# the script

def serve(cfg):
    """Score texts over HTTP until a signal comes."""
    token = os.environ.get('SCORER_TOKEN')
    if not token and cfg.host not in ('127.0.0.1', 'localhost'):
        print(f"warning: anyone who reaches {cfg.host} may ask; set SCORER_TOKEN", file=sys.stderr)
    dtype = torch.bfloat16 if cfg.precision == 'bf16' else torch.float32
    if cfg.model:
        scorer = LLMJudge(cfg.model, device=cfg.device)
        scorer.model.to(dtype)
    else:
        scorer = TextScorer(cfg.reward, cfg.cost, cfg.device, cfg.max_length, dtype)
    template = cfg.template or ('{prompt}{response}' if cfg.reward.endswith('.pt') else BEAVER_TEMPLATE)
    try:
        server = ScorerServer(scorer, cfg.host, cfg.port, template, token)
    except OSError as e:
        raise OSError(f"cannot listen on {cfg.host}:{cfg.port} ({e.strerror}): name another --port") from None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.stop)
    if cfg.with_parent:
        threading.Thread(target=stop_with_parent, args=(server,), daemon=True).start()
    setting, port = 'judge' if cfg.model else 'scorer_url', server.server_address[1]
    print(f"scorer ready: {setting} = http://{cfg.host}:{port}", flush=True)
    server.run()


def stop_with_parent(server):
    """Standard input closes when who started us ends."""
    sys.stdin.read()
    server.stop()


if __name__ == '__main__':
    reward = ''                                 # a reward model: our checkpoint, or a Hugging Face folder
    cost = ''                                   # and a cost model
    model = ''                                  # or a language model that grades
    host = '127.0.0.1'                          # 0.0.0.0: other machines too; set SCORER_TOKEN on both sides
    port: Annotated[int, '[0, 65535]'] = 8000   # 0: any free one
    template: str | None = None                 # how '{prompt}' and '{response}' are joined by /score
    max_length: Annotated[int, '[3, inf)'] = 512  # tokens of a text; longer ones are cut
    device = 'cpu'
    precision: Literal['fp32', 'bf16'] = 'fp32'
    with_parent = False                         # True: stop when standard input closes
    commands, cfg = configure(globals(), names=True)
    if commands != ['serve'] or bool(cfg.model) == bool(cfg.reward and cfg.cost):
        raise ValueError("usage: python judge.py serve --reward=DIR --cost=DIR (or --model=DIR) "
                         "[--port=8000]; see --help")
    serve(cfg)
