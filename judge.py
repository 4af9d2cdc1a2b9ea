"""
Neural judges, frozen while a policy learns from them: Judge tells how much of a text a machine has filled in (fill-in's reward is 1 - score), ScoreModel is a reward
or a cost model on a causal trunk, LagrangeMultiplier the price of a cost. Keep a second judge, trained from another seed and never used for
reward: where the two part, the policy is learning the judge's mistakes, not the text.

As a script it serves a reward and a cost model over HTTP; ScorerClient asks it.
$ python judge.py serve --reward=out-shop/reward.pt --cost=out-shop/cost.pt --port=8000
$ curl -d '{"prompts": ["tker>"], "responses": ["tea egg rice"]}' http://127.0.0.1:8000/score_batch       # {"rewards": [...], "costs": [...]}
GET /health · POST /score_texts {"texts"} · POST /score, /score_batch {"prompts", "responses"}. Cost above 0 is unsafe.
"""
import json
import math
import os
import signal
import sys
import threading

import torch
import torch.nn as nn

from formats import weights
from model import GPT, GPTConfig, build
from runtime.checkpoint import entry, load_checkpoint, tokenizer_of
from runtime.scorer import ScorerServer

LAMBDA_RULES = ('exponential', 'safe_rlhf')
BEAVER_TEMPLATE = 'BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}'  # what safe-rlhf's models were trained on


class Judge(nn.Module):
    """
    A bidirectional trunk that reads [CLS] + text. A slot head says of each character how likely it was replaced; the
    score is sigmoid(w . h_CLS + a * logit(mean over the text of those) + b). Evidence gathered slot by slot is learned from T
    labels a text instead of one, so the score is good after a minute where h_CLS alone needs several.
    """

    def __init__(self, config: GPTConfig, cls_id: int):
        super().__init__()
        self.trunk = GPT(config)
        self.cls_id = cls_id
        self.slot_head = nn.Linear(config.n_embd, 1)
        self.score_head = nn.Linear(config.n_embd + 1, 1)
        with torch.no_grad():  # starts as: score = the share of slots that look replaced, and few do
            self.slot_head.bias.fill_(-2.0)
            self.score_head.weight.zero_()[0, -1] = 1.0
            self.score_head.bias.zero_()

    def forward(self, tokens, lengths=None):
        """tokens (N, T) right-padded, lengths (N,) or None. Returns logits of the score (N,) and of each position's being replaced (N, T)."""
        N, T = tokens.shape
        if T + 1 > self.trunk.config.block_size:
            raise ValueError(f"the judge reads texts of at most {self.trunk.config.block_size - 1} tokens and was given {T}: train a judge with a larger block_size, or lower block_size")
        cls = torch.full((N, 1), self.cls_id, device=tokens.device)
        hidden = self.trunk(torch.cat((cls, tokens), dim=1), None if lengths is None else lengths + 1)  # (N, 1 + T, D)
        slots = self.slot_head(hidden[:, 1:]).squeeze(-1)
        replaced = slots.float().sigmoid()
        if lengths is None:
            share = replaced.mean(dim=1, keepdim=True)
        else:
            share = replaced.masked_fill(torch.arange(T, device=tokens.device) >= lengths[:, None], 0.0).sum(dim=1, keepdim=True) / lengths[:, None]
        return self.score_head(torch.cat((hidden[:, 0], share.logit(eps=1e-4)), dim=1)).squeeze(-1), slots

    @torch.inference_mode()
    def score(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """How machine-filled each text looks: (N,) in (0, 1)."""
        return self(tokens, lengths)[0].sigmoid()

    @classmethod
    def from_pretrained(cls, path: str, tokenizer) -> 'Judge':
        """
        The judge in a checkpoint file, on the CPU, frozen, with `quality`, how well it told held-out texts apart (auc, r2).
        Raises as load_checkpoint does, and ValueError when it was trained on another vocabulary than the tokenizer's.
        """
        checkpoint = load_checkpoint(path, 'judge')
        tokenizer.check_same(entry(checkpoint, 'chars', list, path), path)
        judge = build(lambda config: cls(config, tokenizer.cls_id), entry(checkpoint, 'model_config', dict, path), entry(checkpoint, 'model', dict, path), path)
        judge.quality = entry(checkpoint, 'quality', dict, path)
        return judge.eval().requires_grad_(False)


class ScoreModel(nn.Module):
    """
    A reward or cost model: a causal trunk, and a linear head at the text's last token, its end. Kind 'reward': the better text has the higher score, normalized by mean
    and spread. Kind 'cost': above 0 is unsafe, so that only the spread may be normalized. The shape of safe-rlhf's models (arXiv 2310.12773).
    """

    def __init__(self, config: GPTConfig, kind: str):
        super().__init__()
        if kind not in ('reward', 'cost'):
            raise ValueError(f"a score model is of kind 'reward' or 'cost', not {kind!r}")
        self.trunk, self.kind = GPT(config), kind
        self.score_head = nn.Linear(config.n_embd, 1)
        self.register_buffer('mean', torch.zeros(()))
        self.register_buffer('var', torch.ones(()))

    def forward(self, tokens, lengths):
        """Scores (N,) of tokens (N, T), right-padded, with true lengths (N,); what stands in padding plays no part."""
        last = self.trunk(tokens)[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        score = self.score_head(last).squeeze(-1).float()
        return (score - self.mean if self.kind == 'reward' else score) * self.var.rsqrt()

    @classmethod
    def from_pretrained(cls, path: str, kind: str) -> 'ScoreModel':
        """The model of that kind at path, frozen, on the CPU: our checkpoint, or a folder that weights.read_score_model takes. Raises as load_checkpoint does."""
        if path.endswith('.pt'):
            checkpoint = load_checkpoint(path, kind)
            model = build(lambda config: cls(config, kind), entry(checkpoint, 'model_config', dict, path), entry(checkpoint, 'model', dict, path), path)
        else:
            fields, state, head, found = weights.read_score_model(path)
            if found not in (None, kind):
                raise ValueError(f"{path} holds a {found} model where a {kind} model is wanted: check which path belongs to which key")
            state = {f'trunk.{name}': tensor for name, tensor in state.items()} | {'score_head.weight': head['weight'], 'score_head.bias': head['bias'], 'mean': head['mean'], 'var': head['var']}
            model = build(lambda config: cls(config, kind), fields, state, path)
        return model.eval().requires_grad_(False)


class LagrangeMultiplier:
    """
    Lambda, the price of a cost, so that E[C] + threshold <= 0: the larger the threshold, the stricter. update() goes by the exponential average of J = mean cost +
    threshold, which begins at the first J. rule 'exponential': ln lambda += lr * average; 'safe_rlhf': lr * lambda * average, gradient ascent in ln lambda (Safe RLHF, arXiv
    2310.12773; it averages the last 128 episodes, as ema_beta 0 does with batches of that size). positive_only: J counts as max(J, 0), and lambda never falls again.
    """

    def __init__(self, value: float = 1.0, lr: float = 0.005, minimum: float = 1e-4, maximum: float = 5.0, ema_beta: float = 0.9, threshold: float = 0.0, positive_only: bool = False, rule: str = 'exponential'):
        if not 0 < minimum <= maximum or value < 0 or not 0 <= ema_beta < 1 or rule not in LAMBDA_RULES:
            raise ValueError(f"lambda needs 0 < minimum ({minimum}) <= maximum ({maximum}), a value ({value}) of at least 0, 0 <= ema_beta ({ema_beta}) < 1 and a rule ({rule!r}) of {', '.join(LAMBDA_RULES)}")
        if lr < 0:
            raise ValueError(f"lambda's rate is {lr}: below 0 it would fall as the cost rises")
        self.value, self.lr, self.minimum, self.maximum, self.ema_beta = value, lr, minimum, maximum, ema_beta
        self.threshold, self.positive_only, self.rule, self.ema = threshold, positive_only, rule, None
        self.log_value = math.log(value) if value else -math.inf

    def update(self, mean_cost: float) -> float:
        """Takes in a batch's mean cost, the same on all ranks, and returns the new lambda. Raises FloatingPointError when the cost is not finite."""
        if not math.isfinite(mean_cost):
            raise FloatingPointError(f"the mean cost is {mean_cost}: lambda was not touched")
        J = mean_cost + self.threshold
        if self.positive_only:
            J = max(J, 0.0)
        self.ema = J if self.ema is None else self.ema_beta * self.ema + (1 - self.ema_beta) * J
        self.log_value += self.lr * self.ema * (self.value if self.rule == 'safe_rlhf' else 1.0)
        self.log_value = min(max(self.log_value, math.log(self.minimum)), math.log(self.maximum))
        self.value = math.exp(self.log_value)
        return self.value

    def state_dict(self) -> dict:
        return {'value': self.value, 'log_value': self.log_value, 'ema': self.ema}

    def load_state_dict(self, state):
        self.value, self.log_value, self.ema = state['value'], state['log_value'], state['ema']


def score_ids(tokenizer, text, room):
    """Token ids of a text as score models read it, in training and in service: cut to leave room, then the end token, which the score is read at; a Llama's begin token before."""
    told = json.loads(getattr(tokenizer, 'files', {}).get('tokenizer_config.json', '{}'))
    begin = [tokenizer.bos_id] if tokenizer.bos_id is not None and told.get('add_bos_token', 'Llama' in str(told.get('tokenizer_class'))) else []
    return begin + tokenizer.encode(text[:100 * room])[:room - 1 - len(begin)] + [tokenizer.eos_id]


# ---------------------------------------------------------------------------------------------------------------------
# the scorer service

class TextScorer:
    """A reward and a cost model, or one of them, with their tokenizers: encode(texts), then score(what it returned) -> (rewards, costs), lists of floats."""

    def __init__(self, reward_path: str, cost_path: str, device: str = 'cpu', max_length: int = 512, dtype: torch.dtype = torch.float32, batch_tokens: int = 16384):
        self.device, self.batch_tokens = device, batch_tokens
        self.parts = []
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
        """For each text its ids for each of the models."""
        return [[score_ids(tokenizer, text, room) for _, tokenizer, room in self.parts] for text in texts]

    @torch.inference_mode()
    def score(self, rows):
        scores = []
        for which, (model, *_) in enumerate(self.parts):
            ids = [row[which] for row in rows]
            order, found = sorted(range(len(ids)), key=lambda i: len(ids[i])), [0.0] * len(ids)
            while order:
                n = max(1, min(len(order), self.batch_tokens // len(ids[order[-1]])))
                some, order = order[-n:], order[:-n]
                lengths = torch.tensor([len(ids[i]) for i in some])
                tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids[i]) for i in some], batch_first=True)
                for i, score in zip(some, model(tokens.to(self.device), lengths.to(self.device)).tolist()):
                    found[i] = score
            scores.append(found)
        return tuple(scores)


if __name__ == '__main__':
    from runtime.config import configure
    reward = ''                                # a reward model: our checkpoint, or a Hugging Face folder
    cost = ''                                  # and a cost model
    host = '127.0.0.1'                         # 0.0.0.0 serves other machines too: set SCORER_TOKEN in the environment of both sides then
    port = 8000                                # 0: any free one
    template: str | None = None                # how /score joins '{prompt}' and '{response}'; None: one after the other, and for a Hugging Face folder as safe-rlhf does
    max_length = 512                           # tokens of a text; longer ones are cut
    max_items = 4096                           # texts of a request
    max_bytes = 16 << 20                       # of a request
    device = 'cpu'
    precision = 'fp32'                         # 'fp32' | 'bf16'
    with_parent = False                        # True: stop when standard input closes, as it does when the program that started this one ends
    arguments = [a for a in sys.argv[1:] if a != 'serve']
    configure(globals(), argv=arguments)
    if precision not in ('fp32', 'bf16') or max_length < 3:
        raise ValueError(f"precision is {precision!r} and max_length {max_length}: fp32 or bf16, and at least 3")
    if sys.argv[1:2] != ['serve'] or not reward or not cost:
        raise ValueError("usage: python judge.py serve --reward=DIR --cost=DIR [--port=8000]; --help lists the settings")
    if not os.environ.get('SCORER_TOKEN') and host not in ('127.0.0.1', 'localhost'):
        print(f"warning: anyone who reaches {host} may ask; set SCORER_TOKEN in the environment", file=sys.stderr)
    scorer = TextScorer(reward, cost, device, max_length, {'fp32': torch.float32, 'bf16': torch.bfloat16}[precision])
    try:
        server = ScorerServer(scorer, host, port, template or ('{prompt}{response}' if reward.endswith('.pt') else BEAVER_TEMPLATE), os.environ.get('SCORER_TOKEN'), max_items, max_bytes)
    except OSError as e:
        raise OSError(f"cannot listen on {host}:{port} ({e.strerror}): name another --port, or 0 for any free one") from None
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, server.stop)
    if with_parent:
        threading.Thread(target=lambda: (sys.stdin.read(), server.stop()), daemon=True).start()
    print(f"scorer ready: scorer_url = http://{host}:{server.server_address[1]}", flush=True)
    server.run()
