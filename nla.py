"""
Natural Language Autoencoders (transformer-circuits.pub, May 2026): an actor puts an activation vector into
words, a critic rebuilds the vector from the words, and GRPO makes the words carry it. Here: writing a vector
into a model's residual stream, the policy that does so while it reads its prompt, and the critic. The measure
is the fraction of variance explained (FVE).

Where this differs from other implementations:
1. The critic predicts (h - mean) / scale, not normalised. So FVE is 1 - MSE, 0 for a critic that knows
   nothing, and the reward -MSE is a text's own FVE less 1. With both sides at unit length
   (target_norm='unit') a small critic cannot even say "the mean".
2. A vector is written while the prompt is read: a marker among the completion's tokens is just a token.
3. The actor gets no gradient from the critic, the critic none from the actor. Most of a rising FVE is the
   critic getting used to the texts, so no claim without the control: the same run with freeze_actor=True.
Shapes: P prompts · T prompt tokens · K markers in a prompt · N texts · R text tokens · A width of the
activation · D width of the model.
"""
import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F

from model import GPT, GPTConfig, build
from policy import CausalPolicy, prompt_batch


def padding(tokens, lengths):
    """Where rows (N, R) of lengths (N,) are padded on the right."""
    return torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]


# -----------------------------------------------------------------------------
# injection

def inject(x: torch.Tensor, slots: torch.Tensor, vectors: torch.Tensor, mode: str = 'replace',
           scale: str | float = 'raw') -> torch.Tensor:
    """
    x (P, T, D) with vectors (P, K, D) written at slots (P, K); x itself stays as it is. mode: 'add', or
    'replace' (and 'project', whose map has been applied before). scale: the length that vectors get, a
    number, 'residual' (that of what stands in the slot) or 'raw' (their own).
    """
    rows = torch.arange(len(x), device=x.device)[:, None]
    residual = x[rows, slots]                                               # (P, K, D)
    if scale != 'raw':
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        length = scale
        if scale == 'residual':
            length = residual.detach().to(vectors.dtype).norm(dim=-1, keepdim=True)
        vectors = vectors * (length / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    written = residual + vectors if mode == 'add' else vectors
    return x.index_put((rows, slots), written.to(x.dtype))


def find_markers(prompts, marker_id, count=1):
    """
    Where the markers stand, (P, K) int64, in prompts (P lists of token ids): K for `count` vectors each, and
    for one vector as many as the first prompt has.
    """
    slots, wanted = [], count if count > 1 else max(1, list(prompts[0]).count(marker_id))
    for p, ids in enumerate(prompts):
        slots.append([i for i, token in enumerate(ids) if token == marker_id])
        if len(slots[p]) != wanted:
            raise ValueError(f"prompt {p} has {len(slots[p])} injection markers (token {marker_id}) and "
                             f"wants {wanted}: put the injection_token where the vector belongs")
    return torch.tensor(slots)


def marker_of(tokenizer, injection_token):
    """
    The id that marks where a vector goes: of characters [MASK], whatever the token's name. The tokenizer gets
    a token that it lacks.
    """
    if hasattr(tokenizer, 'mask_id'):
        return tokenizer.mask_id
    ids = tokenizer.encode(injection_token, special=True)
    if len(ids) == 1 and tokenizer.decode(ids, special=True) == injection_token:  # not one [UNK]
        return ids[0]
    return tokenizer.add_special_token(injection_token)


def encode_around(tokenizer, prompt, injection_token, marker_id, chat_template=False,
                  chat_template_kwargs=None, add_special_tokens=True):
    """
    Token ids of a prompt, text or chat messages, with the marker's id wherever it says injection_token; the
    other settings are those of data.prompts.render.
    """
    if chat_template:
        messages = [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else prompt
        stand_in = '\ue0ff'  # of private use: goes through the template as it is
        turns = [m | {'content': m['content'].replace(injection_token, stand_in)} for m in messages]
        prompt, injection_token = tokenizer.render_chat(turns, **chat_template_kwargs or {}), stand_in
    ids = []
    for part in prompt.split(injection_token):
        ids += [marker_id, *tokenizer.encode(part, special=chat_template)] if part else [marker_id]
    ids = ids[1:]  # no marker before the first part
    return [*tokenizer.prefix, *ids, *tokenizer.suffix] if add_special_tokens and not chat_template else ids


class Injection(nn.Module):
    """
    How a model takes vectors of width A: at which layers (0: the embeddings, before positions; i: what block
    i puts out), in which mode, at what length. In mode 'project', and where A is not the model's width, each
    layer has a learned linear map, at first the identity if it can be. scale None: the mean length of an
    embedding at layer 0, 'residual' elsewhere.
    """

    def __init__(self, model, activation_dim, mode='project', layers=(0,), scale=None):
        super().__init__()
        D, n_layer = model.config.n_embd, model.config.n_layer
        if not layers or not set(layers) <= set(range(n_layer + 1)) or len(set(layers)) < len(layers):
            raise ValueError(f"injection_layers is {tuple(layers)}: take different ones of 0 to {n_layer}")
        if scale is None:
            typical = model.wte.weight.detach().float().norm(dim=1).mean().item()
            scale = [typical if layer == 0 else 'residual' for layer in layers]
        self.settings = dict(activation_dim=activation_dim, mode=mode, layers=list(layers), scale=scale)
        self.project = None
        if mode == 'project' or activation_dim != D:
            self.project = nn.ModuleList(nn.Linear(activation_dim, D) for _ in layers)
            for linear in self.project:
                nn.init.zeros_(linear.bias)
                if activation_dim == D:
                    nn.init.eye_(linear.weight)

    def edit(self, slots, vectors):
        """What GPT.run takes as `edit`: writes vectors (P, K, A) at slots (P, K), at each of the layers."""
        if vectors is None:
            return None
        A, mode, layers, scale = self.settings.values()
        if vectors.shape[-1] != A:
            raise ValueError(f"activations of width {vectors.shape[-1]} do not fit an actor that takes {A}: "
                             "are they another model's?")

        def write(layer, x):
            if layer not in layers:
                return x
            i, v = layers.index(layer), vectors.to(x.dtype)
            if self.project:
                weight, bias = self.project[i].parameters()
                v = F.linear(v, weight.to(x.dtype), bias.to(x.dtype))  # NLAPolicy.start stays in fp32
            return inject(x, slots, v, mode, scale[i] if isinstance(scale, list) else scale)

        return write


class NLAPolicy(CausalPolicy):
    """
    Its prefill writes the batch's activations (P, K, A), if any, at its slots (P, K). start: the injection
    that training began with, which learns beside adapters. marker_id: never sampled.
    """

    def __init__(self, *settings, start=None, marker_id=None):
        super().__init__(*settings)
        self.start = start
        if marker_id is not None:
            if self.forbidden is None:
                weight = self.model.wte.weight
                self.forbidden = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
            self.forbidden[marker_id] = True

    def prefill(self, prompts, batch):
        edit = self.model.injection.edit(batch['slots'], batch.get('activation'))
        return self.model.prefill(prompts, batch['prompt_lengths'].numpy(), edit)

    def without_adapters(self):
        """The same, with the injection at its start."""
        plain = super().without_adapters()
        through_plain = plain.hidden

        def hidden(rollout):
            learned, self.model.injection = self.model.injection, self.start
            try:
                return through_plain(rollout)
            finally:
                self.model.injection = learned

        plain.hidden = hidden
        return plain


# -----------------------------------------------------------------------------
# the critic

def truncate(model, layer):
    """The first `layer` blocks of a GPT, sharing its weights: tokens -> the residual stream after them."""
    if not 0 <= layer <= model.config.n_layer:
        raise ValueError(f"activation_layer is {layer}: this model has blocks 1 to {model.config.n_layer}")
    trunk = copy.copy(model)
    trunk._modules = dict(model._modules)
    trunk._modules.pop('injection', None)
    trunk.blocks, trunk.norm_f, trunk.lm_head = model.blocks[:layer], nn.Identity(), nn.Identity()
    trunk.config = replace(model.config, n_layer=layer)
    return trunk


class Critic(nn.Module):
    """
    Reads a text and nothing else, and says which activation it is about: trunk (see `truncate`; a copy that
    learns), pooled over the text, and a head that is the identity at first where widths allow: with pooling
    'last' a new critic returns the activation at its text's end. mean (A,) and scale: see `standard`.
    """

    def __init__(self, trunk: nn.Module, mean: torch.Tensor, scale: float | torch.Tensor,
                 pooling: str = 'last', head: str = 'linear', target_norm: str = 'standard'):
        super().__init__()
        self.settings = {'pooling': pooling, 'head': head, 'target_norm': target_norm}
        D, A = trunk.config.n_embd, len(mean)
        self.register_buffer('mean', mean.float())
        self.register_buffer('scale', torch.as_tensor(scale, dtype=torch.float32))
        self.trunk, self.linear, self.mlp = trunk, nn.Linear(D, A), None
        nn.init.zeros_(self.linear.weight)  # where widths differ it starts by saying "the mean"
        nn.init.zeros_(self.linear.bias)
        if A == D:
            nn.init.eye_(self.linear.weight)
            if target_norm == 'standard':
                self.linear.weight.data /= self.scale
                self.linear.bias.data -= self.mean / self.scale
        if head == 'mlp':
            self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, A))
            nn.init.zeros_(self.mlp[2].weight)
            nn.init.zeros_(self.mlp[2].bias)

    def pool(self, hidden, lengths):
        """(N, R, D), lengths (N,) at least 1 -> (N, D); what stands in padding has no influence."""
        if self.settings['pooling'] == 'last':
            return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        outside = padding(hidden, lengths)[..., None]
        if self.settings['pooling'] == 'mean':
            return hidden.masked_fill(outside, 0.0).sum(dim=1) / lengths[:, None]
        return hidden.masked_fill(outside, -torch.inf).amax(dim=1)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Right-padded texts (N, R) int64 of lengths (N,) -> predictions (N, A) of `target`."""
        lengths = lengths.clamp(min=1)
        x = self.pool(self.trunk(tokens.masked_fill(padding(tokens, lengths), 0), lengths), lengths)
        prediction = self.linear(x) + (self.mlp(x) if self.mlp else 0)
        return self.at_unit_length(prediction) if self.settings['target_norm'] == 'unit' else prediction

    def target(self, h):
        """What a prediction is compared with: (h - mean) / scale, or h at length sqrt(A): mean square 1."""
        unit = self.settings['target_norm'] == 'unit'
        return self.at_unit_length(h) if unit else (h - self.mean) / self.scale

    @staticmethod
    def at_unit_length(x):
        return x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True).clamp(min=1e-12))

    def standard(self, prediction, h):
        """Prediction, from unit length at the true one, and activation h (N, A) as (x - mean) / scale."""
        if self.settings['target_norm'] == 'unit':
            length = h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5
            prediction = (prediction * length - self.mean) / self.scale
        return prediction, (h - self.mean) / self.scale


def turned_round(tokens, lengths):
    """Rows (N, R) with their first lengths (N,) tokens in the opposite order; 0 behind them."""
    index = lengths[:, None] - 1 - torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.gather(1, index.clamp(min=0)).masked_fill(index < 0, 0)


def as_read(rollout, ends, text_reversed, count=1):
    """
    A rollout's completions as the critic reads them: texts (N, R) in reading order, right-padded, their
    lengths (N,) without the end token, the activations (N, A) they are about, a prompt's `count` in one, and
    which are whole: not empty and, where the tokenizer has an end token (`ends`), ended.
    """
    device = rollout.tokens.device
    tokens, ended = rollout.tokens.flatten(0, 1), rollout.ended.flatten().to(device)
    lengths = rollout.lengths.flatten().to(device) - ended.long()
    h = rollout.batch['activation'][:, :count].flatten(1).repeat_interleave(rollout.tokens.shape[1], dim=0)
    whole = (lengths > 0) & ended if ends else lengths > 0
    return (turned_round(tokens, lengths) if text_reversed else tokens), lengths, h, whole


def fp32(vectors):
    """An array, perhaps float16 and on the disk, as a tensor."""
    return torch.from_numpy(np.array(vectors, dtype=np.float32))


def standardiser(vectors):
    """mean (A,) and one scale of vectors (n, A): with them the mean square of (h - mean) / scale is 1."""
    vectors = fp32(vectors)
    mean = vectors.mean(dim=0)
    scale = (vectors - mean).square().mean().sqrt().item()
    if scale < 1e-12:
        raise ValueError("all activations are equal: there is nothing to tell apart")
    return mean, scale


def fve(prediction: torch.Tensor, target: torch.Tensor) -> float:
    """Fraction of variance explained, 1 - sum |target - prediction|^2 / sum |target|^2, less their mean."""
    return 1 - ((target - prediction).square().sum() / target.square().sum()).item()


def fve_each(prediction, target):
    """(N,): what each row adds to the fve, which is their mean."""
    squares = target.square().sum(dim=1)
    return 1 - (target - prediction).square().sum(dim=1) / squares.mean()


def build_actor(saved, path):
    """The GPT of a checkpoint, read from path, with its injection."""
    def make(config):
        model = GPT(config)
        model.injection = Injection(model, **saved['nla']['injection'])
        return model

    state = {name: p for name, p in saved['model'].items() if not name.startswith('value_head.')}
    return build(make, saved['model_config'], state, path)


def build_critic(saved):
    state, layer = saved['critic'], saved['nla']['layer']
    trunk = truncate(GPT(GPTConfig(**saved['model_config'] | {'n_layer': layer})), layer)
    critic = Critic(trunk, state['mean'], state['scale'], **saved['nla']['critic'])
    critic.load_state_dict(state)
    return critic


@dataclass
class Activations:
    """
    A split, see data/activations.py. Given ones come without contexts, perhaps with texts, and
    perhaps several for a prompt, which are told as one: A is then the sum of their widths.
    """
    vectors: np.ndarray                     # (n, A), mapped from the disk
    contexts: np.ndarray | None = None      # (n, C) int32 token ids up to where it was taken
    prompts: list | None = None             # n lists of token ids
    slots: torch.Tensor | None = None       # (n, K): where in them the markers stand
    texts: list | None = None               # n texts (token ids) to learn from before GRPO
    count: int = 1                          # vectors of a prompt

    def __len__(self):
        return len(self.vectors)

    def text(self, i, n=10 ** 6):
        """At most n tokens about activation i: of the given text, or the last of its context; or None."""
        if self.texts is not None:
            return self.texts[i][:n]
        return None if self.contexts is None else self.contexts[i, -n:].tolist()

    def injected(self, vectors):
        """Vectors (P, A) as they go into the slots, (P, K, A / count): one for each, or one for all."""
        return vectors.unflatten(1, (self.count, -1)).expand(-1, self.slots.shape[1], -1)

    def batch(self, indices, seeds, device='cpu'):
        """What an NLAPolicy samples from: prompts with slots (P, K), and what goes there."""
        batch = prompt_batch([self.prompts[i] for i in indices], seeds, device)
        slots, vectors = self.slots[indices].to(device), fp32(self.vectors[indices]).to(device)
        return batch | {'record': torch.tensor(indices), 'slots': slots, 'activation': self.injected(vectors)}
