"""
Natural Language Autoencoders: an actor puts an activation vector into words, a critic reads the words and
rebuilds the vector, and GRPO makes the words carry it. Here: writing a vector into a model's residual stream,
the policy that does so while it reads its prompt, the critic, and files of activations. The idea:
transformer-circuits.pub (May 2026); what a text carries is measured as the fraction of variance explained
(FVE).

Where this differs from other implementations:
1. The critic predicts (h - mean) / scale, and its prediction is not normalised. So FVE is 1 - MSE, 0 for a
   critic that knows nothing, and the reward -MSE is a text's own FVE less 1. With both sides at unit length a
   small critic cannot even say "the mean" (target_norm='unit' does it all the same).
2. A vector is written while the prompt is read and never after: it is in the cache then, and a token that
   looks like the marker later is just a token.
3. The actor gets no gradient from the critic, the critic none from the actor. Most of a rising FVE is the
   critic getting used to the texts, so no claim without the control: the same run with freeze_actor=True.
Shapes: P prompts · T prompt tokens · K markers in a prompt · N texts · R text tokens · A width of the
activation · D width of the model.
"""
import copy
import json
import os
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn as nn
from safetensors.torch import load_file
from torch.nn import functional as F

from model import GPT, GPTConfig
from policy import CausalPolicy, prompt_batch
from runtime.checkpoint import load_pt
from runtime.console import over

MODES = ('replace', 'add', 'project')
CRITIC_CHOICES = {'pooling': ('last', 'mean', 'max'), 'head': ('linear', 'mlp'),
                  'target_norm': ('standard', 'unit')}


# -----------------------------------------------------------------------------
# injection

def inject(x: torch.Tensor, slots: torch.Tensor, vectors: torch.Tensor, mode: str = 'replace',
           scale: str | float = 'raw') -> torch.Tensor:
    """
    x (P, T, D) with vectors (P, K, D) in the places slots (P, K); x itself stays as it is. mode: 'replace'
    (and 'project', whose map has been applied before) or 'add'. scale: 'raw', 'residual' (each vector gets
    the length of what stands in its place) or a number, the length that all get.
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
    Where the markers stand, (P, K) int64, in prompts (P lists of token ids). Raises ValueError naming the
    first prompt that has not `count` of them.
    """
    slots = []
    for p, ids in enumerate(prompts):
        slots.append([i for i, token in enumerate(ids) if token == marker_id])
        if len(slots[p]) != count:
            raise ValueError(f"prompt {p} has {len(slots[p])} injection markers (token {marker_id}) and "
                             f"wants {count}: put the injection_token where each vector belongs, before "
                             "max_prompt_length cuts it off")
    return torch.tensor(slots)


def marker_of(tokenizer, injection_token):
    """
    The id that marks where a vector goes: of characters [MASK], whatever the token's name. Raises ValueError
    unless the tokenizer has it as one token.
    """
    if hasattr(tokenizer, 'mask_id'):
        return tokenizer.mask_id
    ids = tokenizer.encode(injection_token, special=True)
    if len(ids) != 1:
        raise ValueError(f"injection_token {injection_token!r} is {len(ids)} tokens of this tokenizer: name "
                         "a single one that no text contains, for instance an unused special token")
    return ids[0]


def encode_around(tokenizer, prompt, injection_token, marker_id, chat_template=False):
    """
    Token ids of a prompt with the marker's id wherever the text says injection_token. With chat_template the
    prompt is the user's turn, or a list of messages.
    """
    if chat_template:
        messages = [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else prompt
        stand_in = '\ue0ff'  # of private use: goes through the template as it is
        turns = [m | {'content': m['content'].replace(injection_token, stand_in)} for m in messages]
        prompt = tokenizer.render_chat(turns)
        injection_token = stand_in
    elif not isinstance(prompt, str):
        raise ValueError(f"the prompt {str(prompt)[:60]} is a list of chat messages: set chat_template=True")
    ids = []
    for number, part in enumerate(prompt.split(injection_token)):
        ids += [marker_id] * (number > 0)
        ids += list(tokenizer.encode(part, special=chat_template)) if part else []
    return ids


class Injection(nn.Module):
    """
    How a model takes vectors of width A: at which layers (0: the embeddings, before positions; i: what block
    i puts out), in which mode, at what length. A learned linear map for each layer stands before it in mode
    'project', and wherever A is not the model's width; it starts as the identity if it can. scale None: the
    mean length of an embedding at layer 0, elsewhere the length of the residual there.
    """

    def __init__(self, model, activation_dim, mode='project', layers=(0,), scale=None):
        super().__init__()
        D, n_layer = model.config.n_embd, model.config.n_layer
        if mode not in MODES:
            raise ValueError(f"injection_mode is {mode!r}; it must be one of {', '.join(MODES)}")
        possible = all(isinstance(layer, int) and 0 <= layer <= n_layer for layer in layers)
        if not layers or not possible or len(set(layers)) < len(layers):
            raise ValueError(f"injection_layers is {tuple(layers)}: it takes different numbers from 0 (the "
                             f"embeddings) to {n_layer} (the last block's output)")
        named = scale in (None, 'raw', 'residual') or isinstance(scale, list)
        if not named and (isinstance(scale, str) or scale <= 0):
            raise ValueError(f"injection_scale is {scale!r}; it must be 'raw', 'residual', a length above "
                             "0, or None")
        self.settings = {'activation_dim': activation_dim, 'mode': mode, 'layers': list(layers)}
        if scale is None:
            typical = model.wte.weight.detach().float().norm(dim=1).mean().item()
            scale = [typical if layer == 0 else 'residual' for layer in layers]
        self.settings['scale'] = scale
        self.project = None
        if mode == 'project' or activation_dim != D:
            self.project = nn.ModuleList(nn.Linear(activation_dim, D) for _ in layers)
            for linear in self.project:
                nn.init.zeros_(linear.bias)
                if activation_dim == D:
                    nn.init.eye_(linear.weight)

    def edit(self, slots, vectors):
        """
        What GPT.run takes as `edit`: vectors (P, K, A), or (P, K, L, A) with one for each of the L layers,
        written at slots (P, K). None, which changes nothing, when there are no vectors.
        """
        if vectors is None:
            return None
        mode, layers, scale, A = (self.settings[key] for key in ('mode', 'layers', 'scale', 'activation_dim'))
        if vectors.shape[-1] != A or vectors.dim() == 4 and vectors.shape[2] != len(layers):
            raise ValueError(f"activations of shape {tuple(vectors.shape)} do not fit an actor that takes "
                             f"width {A} at {len(layers)} layers: is the file another model's?")

        def write(layer, x):
            if layer not in layers:
                return x
            i = layers.index(layer)
            v = (vectors[:, :, i] if vectors.dim() == 4 else vectors).to(x.dtype)
            if self.project:
                weight, bias = self.project[i].parameters()
                v = F.linear(v, weight.to(x.dtype), bias.to(x.dtype))  # NLAPolicy.start stays in fp32
            return inject(x, slots, v, mode, scale[i] if isinstance(scale, list) else scale)

        return write


class NLAPolicy(CausalPolicy):
    """
    A CausalPolicy whose prefill writes the batch's activations (P, K, A) at its slots (P, K); without
    'activation' in the batch nothing is written. start: the injection that training began with, which learns
    beside adapters.
    """

    def __init__(self, *settings, start=None):
        super().__init__(*settings)
        self.start = start

    def prefill(self, prompts, batch):
        return self.model.prefill(prompts, self.model.injection.edit(batch['slots'], batch.get('activation')))

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
    """
    The first `layer` blocks of a GPT, sharing its weights: tokens -> the residual stream after them, no last
    norm, no head. Layer 0 is the embedding.
    """
    if not 0 <= layer <= model.config.n_layer:
        raise ValueError(f"activation_layer is {layer}: this model has blocks 1 to {model.config.n_layer}, "
                         "and 0 means its embeddings")
    trunk = copy.copy(model)
    trunk._modules = dict(model._modules)
    trunk._modules.pop('injection', None)
    trunk.blocks, trunk.norm_f, trunk.lm_head = model.blocks[:layer], nn.Identity(), nn.Identity()
    trunk.config = replace(model.config, n_layer=layer)
    return trunk


class Critic(nn.Module):
    """
    Reads a text and nothing else, and says which activation it is about: trunk (see `truncate`; a copy that
    may learn), pooled over the text, and a head that starts as the identity where widths allow: given the
    very text that an activation came from, a new critic with pooling 'last' returns it exactly. mean (A,) and
    scale: see `standard`.
    """

    def __init__(self, trunk: nn.Module, mean: torch.Tensor, scale: float | torch.Tensor,
                 pooling: str = 'last', head: str = 'linear', target_norm: str = 'standard'):
        super().__init__()
        self.settings = {'pooling': pooling, 'head': head, 'target_norm': target_norm}
        for name, allowed in CRITIC_CHOICES.items():
            if self.settings[name] not in allowed:
                raise ValueError(f"critic_{name} is {self.settings[name]!r}; it must be one of "
                                 f"{', '.join(allowed)}")
        D, A = trunk.config.n_embd, len(mean)
        self.trunk = trunk
        self.register_buffer('mean', mean.float())
        self.register_buffer('scale', torch.as_tensor(scale, dtype=torch.float32))
        self.linear = nn.Linear(D, A)
        self.mlp = None
        if head == 'mlp':
            self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, A))
        with torch.no_grad():
            self.linear.weight.zero_()  # where widths differ it starts by saying "the mean"
            self.linear.bias.zero_()
            if A == D and target_norm == 'unit':
                self.linear.weight.copy_(torch.eye(D))
            elif A == D:
                self.linear.weight.copy_(torch.eye(D) / self.scale)
                self.linear.bias.copy_(-self.mean / self.scale)
            if self.mlp:
                self.mlp[2].weight.zero_()
                self.mlp[2].bias.zero_()

    def pool(self, hidden, lengths):
        """(N, R, D), lengths (N,) at least 1 -> (N, D); what stands in padding has no influence."""
        inside = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])[..., None]
        if self.settings['pooling'] == 'last':
            return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        if self.settings['pooling'] == 'mean':
            return hidden.masked_fill(~inside, 0.0).sum(dim=1) / lengths[:, None]
        return hidden.masked_fill(~inside, -torch.inf).amax(dim=1)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """
        Texts (N, R) int64, right-padded, of lengths (N,) -> predictions (N, A), to be compared with `target`;
        a text without tokens counts as its first padding.
        """
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        x = self.pool(self.trunk(tokens.masked_fill(~inside, 0)), lengths.clamp(min=1))
        prediction = self.linear(x) + (self.mlp(x) if self.mlp else 0)
        return self.at_unit_length(prediction) if self.settings['target_norm'] == 'unit' else prediction

    def target(self, h):
        """
        What a prediction is compared with: (h - mean) / scale, whose mean square is 1 over the training set;
        or h at length sqrt(A), with the same effect.
        """
        unit = self.settings['target_norm'] == 'unit'
        return self.at_unit_length(h) if unit else (h - self.mean) / self.scale

    @staticmethod
    def at_unit_length(x):
        return x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True).clamp(min=1e-12))

    def standard(self, prediction, h):
        """
        Prediction and activation h (N, A) both as (x - mean) / scale, for `fve`; a prediction without a
        length gets the true one.
        """
        if self.settings['target_norm'] == 'unit':
            length = h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5
            prediction = (prediction * length - self.mean) / self.scale
        return prediction, (h - self.mean) / self.scale


def turned_round(tokens, lengths):
    """Rows (N, R) with their first lengths (N,) tokens in the opposite order; 0 behind them."""
    index = lengths[:, None] - 1 - torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.gather(1, index.clamp(min=0)).masked_fill(index < 0, 0)


def as_read(rollout, ends, text_reversed):
    """
    The answers of a rollout as the critic reads them: texts (N, R) in reading order, right-padded, their
    lengths (N,) without the end token, the activations (N, A) they are about, and which are whole: not empty
    and, where the tokenizer has an end token (`ends`), ended with it.
    """
    device = rollout.tokens.device
    tokens, ended = rollout.tokens.flatten(0, 1), rollout.ended.flatten().to(device)
    lengths = rollout.lengths.flatten().to(device) - (ended.long() if ends else 0)
    h = rollout.batch['activation'][:, 0].repeat_interleave(rollout.tokens.shape[1], dim=0)
    whole = (lengths > 0) & ended if ends else lengths > 0
    return (turned_round(tokens, lengths) if text_reversed else tokens), lengths, h, whole


def check_finite(vectors, path):
    """Raises ValueError naming the first of vectors (n, A) with a NaN or an infinity in it."""
    for start in range(0, len(vectors), 10000):
        wrong = ~np.isfinite(vectors[start:start + 10000]).all(axis=1)
        if wrong.any():
            first = start + int(np.flatnonzero(wrong)[0])
            raise ValueError(f"{path}: activation {first} is NaN or infinite: the model or the file is "
                             "broken, or float16 too small for it")


def standardiser(vectors):
    """
    mean (A,) and one scale of vectors (n, A): with them the mean square of (h - mean) / scale is 1. Raises
    ValueError where they are all equal.
    """
    vectors = torch.as_tensor(np.array(vectors, dtype=np.float32))
    mean = vectors.mean(dim=0)
    scale = (vectors - mean).square().mean().sqrt().item()
    if scale < 1e-12:
        raise ValueError("all activations are equal: there is nothing to tell apart")
    return mean, scale


def fve(prediction: torch.Tensor, target: torch.Tensor, mean: torch.Tensor | float = 0.0) -> float:
    """
    Fraction of variance explained: 1 - sum |target - prediction|^2 / sum |target - mean|^2, both (B, D); mean
    is the training set's, 0 for standardised ones.
    """
    return 1 - ((target - prediction).square().sum() / (target - mean).square().sum()).item()


# -----------------------------------------------------------------------------
# actor and critic in a checkpoint: 'model' and 'critic', their weights, and 'nla', the settings to build them
# again

def build_actor(saved):
    """The GPT of a checkpoint with its injection."""
    with torch.device('meta'):
        model = GPT(GPTConfig(**saved['model_config']))
        model.injection = Injection(model, **saved['nla']['injection'])
    state = {name: p for name, p in saved['model'].items() if not name.startswith('value_head.')}
    model.load_state_dict(state, assign=True)
    if model.config.tied:
        model.lm_head.weight = model.wte.weight
    return model


def build_critic(saved):
    state, layer = saved['critic'], saved['nla']['layer']
    trunk = truncate(GPT(GPTConfig(**saved['model_config'] | {'n_layer': layer})), layer)
    critic = Critic(trunk, state['mean'], state['scale'], **saved['nla']['critic'])
    critic.load_state_dict(state)
    return critic


# -----------------------------------------------------------------------------
# activations: made here, or given

@dataclass
class Activations:
    """
    One split. Made here they come with contexts and one prompt for all; given from outside, each with a
    prompt of its own and perhaps a text.
    """
    vectors: np.ndarray                             # (n, A), mapped from the disk
    contexts: np.ndarray | None = None              # (n, C) int32 token ids up to where it was taken
    lengths: np.ndarray | None = None               # (n,)
    prompts: list | None = None                     # n lists of token ids, or a single one
    slots: torch.Tensor | None = None               # (n or 1, K): where in them the markers stand
    texts: list | None = None                       # n texts (token ids) to learn from before GRPO

    def __len__(self):
        return len(self.vectors)

    def text(self, i, n):
        """
        A text of at most n tokens about activation i, in reading order: the one that was given, or the last n
        tokens of its context. None when there is neither.
        """
        if self.texts is not None:
            return self.texts[i][:n]
        return None if self.contexts is None else self.contexts[i, :self.lengths[i]][-n:].tolist()

    def batch(self, indices, seeds, device='cpu'):
        """
        What an NLAPolicy samples from: prompts with slots (P, K) and activation (P, K, A), the same one for
        all K.
        """
        prompts = [self.prompts[i if len(self.prompts) > 1 else 0] for i in indices]
        slots = self.slots[indices] if len(self.slots) > 1 else self.slots.expand(len(indices), -1)
        vectors = torch.from_numpy(np.array(self.vectors[np.asarray(indices)], dtype=np.float32)).to(device)
        batch = prompt_batch(prompts, seeds, device) | {'record': torch.tensor(indices)}
        activation = vectors[:, None].expand(-1, slots.shape[1], -1)
        return batch | {'slots': slots.to(device), 'activation': activation}


def draw_places(documents, n, min_position, split, seed):
    """
    (n, 2): document and position of different random places in documents, from min_position on; all where n
    is more.
    """
    places = np.array([max(0, len(ids) - min_position) for ids in documents])
    if places.sum() == 0:
        raise ValueError(f"none of the {len(documents)} documents of split {split!r} is longer than "
                         f"{min_position} tokens, where the first place would be: take a shorter context, "
                         "or give longer texts")
    n = min(n, int(places.sum()))
    starts = places.cumsum() - places
    chosen = np.sort(np.random.default_rng([seed, split == 'val']).choice(places.sum(), n, replace=False))
    where = np.empty((n, 2), dtype=np.int32)
    where[:, 0] = np.searchsorted(starts, chosen, side='right') - 1
    where[:, 1] = chosen - starts[where[:, 0]] + min_position
    return where[np.random.default_rng(seed).permutation(n)]


@torch.no_grad()
def extract_activations(model, documents, layer, places, context, folder, split, dtype='float32'):
    """
    The residuals after block `layer` at places (n, 2) of documents (lists of token ids), each seeing at most
    `context` tokens up to its own, into folder: {split}.npy (n, A) raw, {split}_contexts.npy,
    {split}_lengths.npy and {split}_where.npy, the places. Returns n.
    """
    n, trunk, device = len(places), truncate(model, layer), model.wte.weight.device
    names = ('', '_contexts', '_lengths', '_where')
    files = {name: os.path.join(folder, f'{split}{name}.npy') for name in names}
    vectors = np.lib.format.open_memmap(files[''], mode='w+', dtype=dtype, shape=(n, model.config.n_embd))
    contexts, lengths = np.zeros((n, context), dtype=np.int32), np.zeros(n, dtype=np.int32)
    for i, (document, position) in enumerate(places):
        ids = documents[document][max(0, position + 1 - context):position + 1]
        contexts[i, :len(ids)], lengths[i] = ids, len(ids)
    for start in over(f'activations, {split}', range(0, n, 256)):
        part = slice(start, start + 256)
        hidden = trunk(torch.from_numpy(contexts[part]).long().to(device))
        last = torch.from_numpy(lengths[part]).long() - 1
        vectors[part] = hidden[torch.arange(len(hidden)), last].float().cpu().numpy()
    vectors.flush()
    for name, array in (('_contexts', contexts), ('_lengths', lengths), ('_where', places)):
        np.save(files[name], array)
    return n


def load_activations(path):
    """
    (header, {'train': Activations, 'val': Activations}) of a folder that data/activations/prepare.py wrote;
    the header says layer, width and which model. Raises FileNotFoundError and ValueError naming the file.
    """
    try:
        with open(os.path.join(path, 'header.json'), encoding='utf-8') as f:
            header = json.load(f)
        splits = {split: load_split(path, split) for split in ('train', 'val')}
    except FileNotFoundError as e:
        missing = os.path.basename(e.filename)
        raise FileNotFoundError(f"{path} is no folder of activations, {missing} is missing: run "
                                "data/activations/prepare.py, or name a folder that does not "
                                "exist yet to have it made") from None
    except ValueError as e:
        raise ValueError(f"{path} holds a file that is torn or no array ({e}): delete the folder "
                         "to have it made anew") from None
    for split, part in splits.items():
        check_finite(part.vectors, os.path.join(path, f'{split}.npy'))
        if part.vectors.shape[1] != header['width'] or len(part.vectors) != len(part.contexts):
            raise ValueError(f"{path}/{split}.npy is {part.vectors.shape}, its header says width "
                             f"{header['width']} and there are {len(part.contexts)} contexts: delete the "
                             "folder to have it made anew")
    return header, splits


def load_split(path, split):
    arrays = [os.path.join(path, f'{split}{name}.npy') for name in ('', '_contexts', '_lengths')]
    return Activations(*(np.load(array, mmap_mode='r') for array in arrays))


def read_vectors(path):
    """
    Vectors (n, A) fp32 from a .npy, .pt or .safetensors file that holds one tensor. Raises ValueError naming
    the file and what is wrong with it.
    """
    try:
        vectors = only_tensor(read_tensors(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file of activations at {path}") from None
    except Exception as e:
        raise ValueError(f"{path}: {' '.join(str(e).split())[:200]}") from None
    if vectors.ndim != 2:
        raise ValueError(f"{path} has shape {vectors.shape}; it must be (how many, width)")
    check_finite(vectors, path)
    return vectors


def read_tensors(path):
    """The tensor, array or dict of tensors in a file."""
    if path.endswith('.npy'):
        return np.load(path, mmap_mode='r')
    if path.endswith('.pt'):
        return load_pt(path)
    if path.endswith('.safetensors'):
        return load_file(path)
    raise ValueError("a file of activations is .npy, .pt or .safetensors")


def only_tensor(value):
    """The one tensor that a file holds, as an fp32 array."""
    if isinstance(value, dict):
        if len(value) != 1:
            raise ValueError(f"it holds {len(value)} tensors ({', '.join(list(value)[:5])}), it must hold "
                             "one")
        value, = value.values()
    return np.asarray(value.float() if isinstance(value, torch.Tensor) else value, dtype=np.float32)


# -----------------------------------------------------------------------------
# one activation, explained

def activation_at_end(about, tokenizer, text, device='cpu'):
    """
    The activation (1, A) at a text's last token, as an NLA (about: its settings) knows them: of the same
    model and layer, with as many tokens before it.
    """
    source = GPT.from_pretrained(about['source']).to(device).eval().requires_grad_(False)
    ids = tokenizer.encode(text)[-about['context']:]
    return truncate(source, about['layer'])(torch.tensor([ids], device=device))[:, -1].float().cpu().numpy()


@torch.no_grad()
def explain(saved: dict, tokenizer, vector: torch.Tensor, num_samples: int = 8, temperature: float = 1.0,
            seed: int = 1, device: str = 'cpu'):
    """
    What the actor of a checkpoint says of an activation (1, A), greedily and, at a temperature above 0,
    num_samples times more: [(the fraction of its variance that the critic rebuilds, text, whether it is the
    greedy one, whether it came to its end)], best first. Raises ValueError for a vector of another width.
    """
    about = saved['nla']
    actor, critic = build_actor(saved).to(device).eval(), build_critic(saved).to(device).eval()
    if vector.shape[1] != len(critic.mean):
        raise ValueError(f"the activation has width {vector.shape[1]} and this NLA explains those of width "
                         f"{len(critic.mean)}: it belongs to another model")
    marker_id = marker_of(tokenizer, about['settings']['injection_token'])
    one = Activations(vector, prompts=[about['prompt']], slots=find_markers([about['prompt']], marker_id))
    batch = one.batch([0], [seed], device)
    policy = NLAPolicy(actor, tokenizer, about['max_new_tokens'], temperature or 1.0)
    ends, reverse = tokenizer.eos_id is not None, about['settings']['text_reversed']
    rollouts, rows = [policy.greedy(batch)], []
    if temperature > 0:
        rollouts.append(policy.sample(batch, num_samples))
    for rollout in rollouts:
        texts, lengths, h, whole = as_read(rollout, ends, reverse)
        prediction, target = critic.standard(critic(texts, lengths), h)
        values = 1 - (prediction - target).square().sum(dim=1) / target.square().sum(dim=1)
        columns = (x.tolist() for x in (values, texts, lengths, whole))
        for value, ids, n, ended in zip(*columns, strict=True):
            rows.append((value, tokenizer.decode(ids[:n]), rollout is rollouts[0], ended))
    return sorted(rows, reverse=True)
