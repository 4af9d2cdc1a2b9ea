"""
Neural judges, frozen while a policy learns from them: Judge, how much of a text a machine has filled in (the
reward of fill-in is 1 - score), and ScoreModel, a reward or a cost. LagrangeMultiplier: the price of a cost.

As a script it serves a reward and a cost model over HTTP; a cost above 0 is unsafe.
$ python judge.py serve --reward=out-shop/reward.pt --cost=out-shop/cost.pt --port=8000
$ curl -d '{"prompts": ["tker>"], "responses": ["tea egg rice"]}' http://127.0.0.1:8000/score_batch
"""
import math
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from formats import weights
from model import GPT, GPTConfig, build
from runtime.checkpoint import entry, load_checkpoint, tokenizer_of
from runtime.config import configure
from runtime.scorer import ScorerServer

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
        lengths (N,), or None without padding.
        """
        cls = torch.full_like(tokens[:, :1], self.cls_id)
        with_cls = None if lengths is None else lengths + 1
        hidden = self.trunk(torch.cat((cls, tokens), dim=1), with_cls)         # (N, 1 + T, D)
        slots = self.slot_head(hidden[:, 1:]).squeeze(-1)
        replaced = slots.float().sigmoid()
        if lengths is None:
            share = replaced.mean(dim=1, keepdim=True)
        else:
            padding = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
            share = replaced.masked_fill(padding, 0.0).sum(dim=1, keepdim=True) / lengths[:, None]
        evidence = torch.cat((hidden[:, 0], share.logit(eps=1e-4)), dim=1)
        return self.score_head(evidence).squeeze(-1), slots

    @torch.inference_mode()
    def score(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """How machine-filled each text looks, (N,) from 0 to 1."""
        return self(tokens, lengths)[0].sigmoid()

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
        last = self.trunk(tokens)[rows, lengths - 1]
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
            fields, trunk, head, its_kind = weights.read_score_model(path)
            if its_kind not in (None, kind):
                raise ValueError(f"{path} holds a {its_kind} model where a {kind} model is wanted")
            state = {f'trunk.{name}': tensor for name, tensor in trunk.items()}
            state |= {'score_head.weight': head['weight'], 'score_head.bias': head['bias'],
                      'mean': head['mean'], 'var': head['var']}
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

    def score(self, rows):
        """A list of floats for each model, of what encode returned."""
        columns = []
        for i, (model, *_) in enumerate(self.parts):
            columns.append(self.score_with(model, [row[i] for row in rows]))
        return tuple(columns)

    @torch.inference_mode()
    def score_with(self, model, ids):
        """A model's scores of lists of ids, those of like length together."""
        order, scores = sorted(range(len(ids)), key=lambda row: len(ids[row])), [0.0] * len(ids)
        while order:
            n = max(1, min(len(order), BATCH_TOKENS // len(ids[order[-1]])))
            batch, order = order[-n:], order[:-n]
            values = model.scores([ids[row] for row in batch]).tolist()
            for row, value in zip(batch, values, strict=True):
                scores[row] = value
        return scores


# -----------------------------------------------------------------------------
# the script

def serve(cfg):
    """Score texts over HTTP until a signal comes."""
    token = os.environ.get('SCORER_TOKEN')
    if not token and cfg.host not in ('127.0.0.1', 'localhost'):
        print(f"warning: anyone who reaches {cfg.host} may ask; set SCORER_TOKEN", file=sys.stderr)
    dtype = torch.bfloat16 if cfg.precision == 'bf16' else torch.float32
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
    print(f"scorer ready: scorer_url = http://{cfg.host}:{server.server_address[1]}", flush=True)
    server.run()


def stop_with_parent(server):
    """Standard input closes when who started us ends."""
    sys.stdin.read()
    server.stop()


if __name__ == '__main__':
    reward = ''                                 # a reward model: our checkpoint, or a Hugging Face folder
    cost = ''                                   # and a cost model
    host = '127.0.0.1'                          # 0.0.0.0: other machines too; set SCORER_TOKEN on both sides
    port: Annotated[int, '[0, 65535]'] = 8000   # 0: any free one
    template: str | None = None                 # how '{prompt}' and '{response}' are joined by /score
    max_length: Annotated[int, '[3, inf)'] = 512  # tokens of a text; longer ones are cut
    device = 'cpu'
    precision: Literal['fp32', 'bf16'] = 'fp32'
    with_parent = False                         # True: stop when standard input closes
    cfg = configure(globals(), argv=[argument for argument in sys.argv[1:] if argument != 'serve'])
    if sys.argv[1:2] != ['serve'] or not reward or not cost:
        raise ValueError("usage: python judge.py serve --reward=DIR --cost=DIR [--port=8000]; see --help")
    serve(cfg)
