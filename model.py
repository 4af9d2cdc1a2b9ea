"""
One transformer. Its config makes it GPT-2 (LayerNorm, learned positions, GELU), Llama, Qwen2, Qwen3, SmolLM2
(RMSNorm, RoPE, SwiGLU, grouped-query attention), or, with causal=False, a bidirectional filler.

The completions of a group share their prompt, so there are three ways in: `model(tokens)` reads whole texts,
`model.prefill` reads prompts once and keeps their keys and values, `model.complete` reads G completions of
each. All are `model.run` with their own rule of who attends to whom; policy.py adds one token at a time.
They return hidden states: the caller decides which rows reach the head, where the memory goes.
Shapes: N rows · P prompts · G completions of each · T, R tokens of prompts, completions · D width ·
V vocabulary · H heads (H_kv of keys) of width d.
"""
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from formats import weights
from kernels import (
    GroupAttention,
    PackedAttention,
    Rows,
    group_rows,
    joined_attention,
    padded_rows,
    spans,
    takes_flash,
    wide,
)
from kernels.decoding import add_linear, add_norm, plus, rotate, swiglu
from runtime.checkpoint import check_fit, entry, load_checkpoint
from runtime.lora import adapted_start, load_adapter, merge_lora

LARGEST = 1 << 24  # of any size: no model exceeds it, and a product of two never overflows
KINDS = {'norm': ('layernorm', 'rmsnorm'), 'position': ('learned', 'rope'),
         'mlp': ('gelu', 'relu2', 'swiglu')}


@dataclass
class GPTConfig:
    block_size: int = 1024           # longest text the model reads, in tokens
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int | None = None     # None: as many as n_head; fewer is grouped-query attention
    n_embd: int = 768
    head_dim: int | None = None      # None: n_embd / n_head
    causal: bool = True              # False: every token sees every token
    norm: str = 'layernorm'
    position: str = 'learned'
    mlp: str = 'gelu'                # relu2, the squared ReLU, is cheap on a CPU
    mlp_hidden: int | None = None    # None: 4 D
    bias: bool = True
    qkv_bias: bool | None = None     # None: as bias; Qwen2 has biases here only
    qk_norm: bool = False            # RMSNorm on each head's queries and keys, as in Qwen3
    tied: bool = True                # the head shares the token embedding's weights
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # Llama 3's, with the keys of weights.LLAMA3
    norm_eps: float = 1e-5

    def __post_init__(self):
        self.check_fields()
        self.n_kv_head = self.n_kv_head or self.n_head
        self.mlp_hidden = self.mlp_hidden or 4 * self.n_embd
        self.qkv_bias = self.bias if self.qkv_bias is None else self.qkv_bias
        D, H, H_kv = self.n_embd, self.n_head, self.n_kv_head
        if H % H_kv or (self.head_dim is None and D % H):
            raise ValueError(f"n_embd {D} must be a multiple of n_head {H}, and n_head of n_kv_head {H_kv}")
        self.head_dim = self.head_dim or D // H
        if H * self.head_dim > LARGEST:
            raise ValueError(f"n_head {H} heads of width {self.head_dim} are more than {LARGEST} together")
        if self.position == 'rope' and self.head_dim % 2:
            raise ValueError(f"a head is {self.head_dim} wide; for RoPE n_embd / n_head must be even")
        if self.rope_scaling is not None:
            scaling = {key: self.rope_scaling.get(key) for key in weights.LLAMA3}
            weights.check_positive(scaling, 'rope_scaling ')
            if scaling['low_freq_factor'] >= scaling['high_freq_factor']:
                raise ValueError(f"rope_scaling {scaling}: low_freq_factor must be below high_freq_factor")

    def check_fields(self):
        """Each field is of its type, sizes up to LARGEST, other numbers positive."""
        for field in fields(self):
            key, value = field.name, getattr(self, field.name)
            kinds = getattr(field.type, '__args__', (field.type,))
            least = 0 if key == 'n_layer' else 1  # nla.truncate at layer 0 leaves no block
            if float in kinds:
                weights.check_positive({key: value})
            elif type(value) not in kinds:
                names = ' or '.join(kind.__name__ for kind in kinds)
                raise ValueError(f"{key} is {value!r}; it must be {names}")
            elif type(value) is int and not least <= value <= LARGEST:
                raise ValueError(f"{key} is {value}; it must be between {least} and {LARGEST}")
            elif key in KINDS and value not in KINDS[key]:
                raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(KINDS[key])}")


class RMSNorm(nn.RMSNorm):
    """torch's, in fewer operations where torch takes many: in fp32 on a CPU."""

    def __init__(self, width, eps):
        super().__init__(width, eps=eps)
        # no buffer, because a cast of the model must not round it
        self.floor = torch.tensor(eps, dtype=torch.float, device='cpu')

    def forward(self, x):
        if x.is_cuda or x.dtype != torch.float:
            return super().forward(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # not 1 / x.shape[-1]: where sizes are dynamic, torch.compile may get a factor made of one wrong
        mean_square = torch.addcmul(self.floor, length, length, value=1 / self.normalized_shape[0])
        return x * mean_square.rsqrt_() * self.weight


def make_norm(config):
    if config.norm == 'rmsnorm':
        return RMSNorm(config.n_embd, config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def rope_frequencies(config):
    """
    Angles per position (d,) in float64 (arXiv 2104.09864), stretched by rope_scaling as in Llama 3.1: of each
    pair the first turns backwards.
    """
    d = config.head_dim
    frequencies = config.rope_theta ** -(torch.arange(0, d, 2, dtype=torch.float64, device='cpu') / d)
    if config.rope_scaling:
        frequencies = stretched(frequencies, config.rope_scaling)
    return torch.cat((-frequencies, frequencies))


def stretched(frequencies, rope_scaling):
    """Slow ones are divided by a factor, fast ones stay, and those between pass from one to the other."""
    factor, low, high, length = (rope_scaling[key] for key in weights.LLAMA3)
    turns = length * frequencies / (2 * torch.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (smooth + (1 - smooth) / factor)


class Attention(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.heads = [config.n_head, config.n_kv_head]
        self.head_dim = d = config.head_dim
        self.qkv = nn.Linear(config.n_embd, (config.n_head + 2 * config.n_kv_head) * d, bias=config.qkv_bias)
        self.q_norm = RMSNorm(d, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(d, config.norm_eps) if config.qk_norm else None
        self.proj = nn.Linear(config.n_head * d, config.n_embd, bias=config.bias)

    def forward(self, x, rope):
        """x (..., D) -> q (..., H, d), k and v (..., H_kv, d)."""
        H, H_kv = self.heads
        heads = self.qkv(x).view(*x.shape[:-1], -1, self.head_dim)  # (..., H + 2 H_kv, d)
        qk, v = heads.split_with_sizes([H + H_kv, H_kv], dim=-2)
        if self.q_norm is not None:
            q, k = qk.split_with_sizes(self.heads, dim=-2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=-2)
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k = qk.split_with_sizes(self.heads, dim=-2)
        return q, k, v


class MLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.kind = config.mlp
        width = config.mlp_hidden * (2 if config.mlp == 'swiglu' else 1)  # the gate's rows come first
        self.up = nn.Linear(config.n_embd, width, bias=config.bias)
        self.proj = nn.Linear(config.mlp_hidden, config.n_embd, bias=config.bias)

    def forward(self, x, normed):
        """The residual stream x (..., D) and its norm -> what add_linear returns."""
        y = self.up(normed)
        if self.kind == 'swiglu':
            y = swiglu(y)
        elif self.kind == 'relu2':
            y = F.relu(y).square()
        else:
            y = F.gelu(y, approximate='tanh')
        return add_linear(x, self.proj, y)


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.norm_1 = make_norm(config)
        self.attn = Attention(config)
        self.norm_2 = make_norm(config)
        self.mlp = MLP(config)
        self.compiled = False

    def forward(self, x, more, rope, attend):
        """
        The residual stream x (..., D), and what is still to be added to it, or None: so an addition and the
        norm behind it are one pass. attend(q, k, v) knows who sees whom.
        """
        before, after = Block.before, Block.after
        if self.compiled and (torch.is_grad_enabled() or x.is_cuda):
            before, after = compiled_halves()
        x, *heads = before(self, x, more, rope)
        return after(self, x, attend(*heads))

    def before(self, x, more, rope):
        x, normed = add_norm(x, more, self.norm_1)
        return x, *self.attn(normed, rope)

    def after(self, x, y):
        x, more = add_linear(x, self.attn.proj, y.flatten(-2))
        x, normed = add_norm(x, more, self.norm_2)
        return self.mlp(x, normed)


@functools.cache
def compiled_halves():
    """The parts between attentions, compiled once for all layers and sizes."""
    return tuple(torch.compile(half, dynamic=True) for half in (Block.before, Block.after))


class GPT(nn.Module):
    """tokens (N, T) -> hidden states (N, T, D)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # True: backward computes a block's activations again
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == 'learned' else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm_f = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        # no buffer, because a cast of the model must not round it
        self.rope_frequencies = rope_frequencies(config) if self.wpe is None else None
        for name, p in self.named_parameters():
            if name.endswith('proj.weight'):
                nn.init.zeros_(p)  # blocks start as the identity; small models learn several times faster
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)

    def run(self, tokens, positions, attend, edit=None, turns=False):
        """
        The transformer itself: tokens (...) at positions that broadcast to them -> hidden (..., D).
        attend(layer, q, k, v) says who sees whom: q (..., H, d), k and v (..., H_kv, d) -> (..., H, d); with
        turns=True it applies RoPE itself.
        edit(i, x) may change the residual stream x (..., D): for i = 0 the embeddings, else block i's output.
        """
        x, more = self.wte(tokens), None
        if edit:
            x = edit(0, x)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        rope = None if turns else self.rope(positions, x.dtype)
        checkpointed = self.gradient_checkpointing and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            if checkpointed:
                block = partial(checkpoint, block, use_reentrant=False)
            x, more = block(x, more, rope, partial(attend, layer))
            if edit or checkpointed:  # what goes from block to block is kept: one tensor
                x, more = plus(x, more), None
            if edit:
                x = edit(layer + 1, x)
        return self.norm_f(plus(x, more))

    def rope(self, positions, dtype):
        """cos and sin (..., 1, d) of positions (...) for rotate, or None where positions are learned."""
        if self.wpe is not None:
            return None
        # in float64, because 1e5 radians must keep their fraction
        angles = positions[..., None, None] * self.frequencies(positions.device)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def compile_blocks(self):
        """Compile the forward of training: ten seconds per layer; a CPU needs a C++ compiler."""
        for block in self.blocks:
            block.compiled = True

    def frequencies(self, device):
        if self.rope_frequencies.device != device:
            self.rope_frequencies = self.rope_frequencies.to(device, non_blocking=True)
        return self.rope_frequencies

    def positions(self, tokens):
        """0 to T - 1 for rows of T tokens. Raises ValueError when T is above block_size."""
        T, longest = tokens.shape[1], self.config.block_size
        if T > longest:
            raise ValueError(f"a text of {T} tokens does not fit into block_size {longest}")
        return torch.arange(T, device=tokens.device)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None,
                edit: Callable | None = None) -> torch.Tensor:
        """
        Hidden states (N, T, D) of whole texts, tokens (N, T) int64, right-padded; 0 in padding. lengths (N,),
        best on the CPU: None when no row is padded. edit: see run.
        """
        return self.read(tokens, lengths, edit, None)

    def prefill(self, tokens, lengths=None, edit=None):
        """
        Hidden states (P, T, D) of prompts, and the prefix for `complete`: each layer's keys and values
        (P, T, H_kv, d), 0 in padding. Arguments as of forward.
        """
        prefix = [None] * self.config.n_layer

        def keep(layer, k, v):
            prefix[layer] = k, v

        return self.read(tokens, lengths, edit, keep), prefix

    def read(self, tokens, lengths, edit, keep):
        """forward; each layer's keys and values (N, T, H_kv, d) go to keep(layer, k, v), if there is one."""
        N, T = tokens.shape
        positions, causal = self.positions(tokens), self.config.causal
        lengths = torch.full((N,), T) if lengths is None else torch.as_tensor(lengths, device='cpu')
        rows = padded_rows(lengths, T, tokens.device)
        mask = None  # causal rows need none: padding stands to the right of everything that counts
        if rows.index is not None and not causal:
            there = lengths.to(tokens.device, non_blocking=True)
            mask = (positions < there[:, None])[:, None, None, :]  # (N, 1, 1, T)
        parts = functools.cache(lambda: [spans(lengths, lengths, tokens.device, causal)])

        def attend(layer, q, k, v):
            flash, grouped = takes_flash(q), q.shape[1] != k.shape[1]
            padded = None if flash and not keep else [rows.pad(k), rows.pad(v)]
            if keep:
                keep(layer, *padded)
            if flash:
                return PackedAttention.apply(parts(), q, k, v)
            heads = [wide(x).transpose(1, 2) for x in (rows.pad(q), *padded)]
            y = F.scaled_dot_product_attention(*heads, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
            return rows.pack(y.transpose(1, 2).to(q.dtype))

        def edit_rows(layer, x):
            return rows.pack(edit(layer, rows.pad(x)))

        x = self.run(rows.pack(tokens), rows.pack(positions.expand(N, T)), attend, edit and edit_rows)
        return rows.pad(x)

    def complete(self, tokens, prefix, prompt_lengths, lengths=None):
        """
        Hidden states (P, G, R, D) of completions (P, G, R), right-padded, each after its prompt:
        prompt_lengths (P,) of the prefix's T tokens and lengths (P, G), both best on the CPU, the latter None
        when no completion is padded. Gradients reach the prefix.
        """
        R, device = tokens.shape[2], tokens.device
        lengths = torch.full(tokens.shape[:2], R) if lengths is None else lengths
        prompt_lengths, lengths = (torch.as_tensor(n, device='cpu') for n in (prompt_lengths, lengths))
        first = prompt_lengths.to(device, non_blocking=True)[:, None, None]
        positions = (first + torch.arange(R, device=device)).expand(tokens.shape)
        way = self.packed_attention if takes_flash(prefix[0][0]) else self.merged_attention
        rows, attend = way(prefix, prompt_lengths, lengths, R)
        return rows.pad(self.run(rows.pack(tokens), rows.pack(positions), attend))

    def packed_attention(self, prefix, prompt_lengths, lengths, R):
        """For flash attention, see PackedAttention."""
        T, device, flat = prefix[0][0].shape[1], prefix[0][0].device, lengths.flatten()
        rows = Rows(torch.arange(len(flat)) * R, flat, (*lengths.shape, R), device)
        prompts = padded_rows(prompt_lengths, T, device)
        parts = spans(lengths.sum(dim=1), prompt_lengths, device), spans(flat, flat, device, causal=True)

        def attend(layer, q, k, v):
            return PackedAttention.apply(parts, q, *map(prompts.pack, prefix[layer]), k, v)

        return rows, attend

    def merged_attention(self, prefix, prompt_lengths, lengths, R):
        """For a CPU, see GroupAttention, and for fp32 on a GPU."""
        keys, bias = wide(prefix[0][0]), None
        rows, *layouts = group_rows(lengths, R, keys.device)
        absent = torch.arange(keys.shape[1]) >= prompt_lengths[:, None]  # (P, T)
        if absent.any():
            bias = torch.zeros(absent.shape, dtype=keys.dtype).masked_fill(absent, -torch.inf)
            bias = bias[:, None, None].to(keys.device, non_blocking=True)  # (P, 1, 1, T)
        attention = GroupAttention.apply
        if keys.is_cuda:
            attention, layouts = joined_attention, [rows]

        def attend(layer, q, k, v):
            return attention(*map(wide, (q, k, v, *prefix[layer])), bias, *layouts).to(q.dtype)

        return rows, attend

    def logits(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (N, T, V) at every position."""
        return self.lm_head(self(tokens, lengths))

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, merge: bool = True) -> 'GPT':
        """
        The fp32 model on the CPU: of our checkpoint file, a Hugging Face directory or hub name, a .gguf file;
        of a folder of PEFT adapters their base, with them merged into it or (merge=False) beside it. Raises
        what load_checkpoint, weights.read and load_adapter raise.
        """
        path = os.fspath(path)
        if os.path.isfile(path) and not path.endswith('.gguf'):
            saved = load_checkpoint(path, 'generator', 'run', 'adapters')
            return merge_lora(cls.from_checkpoint(saved, path))
        base = weights.adapter_base(path)
        if not base:
            return build(cls, *weights.read(path), path)
        try:
            model = load_adapter(cls.from_pretrained(base), weights.local_folder(path))
        except FileNotFoundError as e:
            raise FileNotFoundError(f"the model of the adapters in {path} is missing: {e}") from None
        return merge_lora(model) if merge else model

    @classmethod
    def from_checkpoint(cls, saved: dict, path: str) -> 'GPT':
        """The model of what load_checkpoint has read from path; of a LoRA run with its adapters beside it."""
        if 'nla' in saved:
            raise ValueError(f"{path} is an autoencoder: python sample.py --checkpoint={path} --text=...")
        if saved['kind'] == 'adapters':
            return adapted_start(partial(cls.from_pretrained, merge=False), saved, path)
        state = entry(saved, 'model', dict, path)
        state = {name: p for name, p in state.items() if not str(name).startswith('value_head.')}
        return build(cls, entry(saved, 'model_config', dict, path), state, path)

    def grow(self, vocab_size):
        """Rows for more tokens, each at first the mean of the others."""
        for layer in (self.wte, self.lm_head):
            rows = layer.weight.data
            more = rows.mean(dim=0, keepdim=True).expand(vocab_size - len(rows), -1)
            layer.weight = nn.Parameter(torch.cat((rows, more)))
        if self.config.tied:
            self.lm_head.weight = self.wte.weight
        self.config = replace(self.config, vocab_size=vocab_size)

    def save_pretrained(self, folder: str, eos_id: int | Sequence[int] | None = None,
                        bos_id: int | None = None, pad_id: int | None = None) -> None:
        """Write it as `transformers` reads it; eos_id: where generate stops there, see weights.write."""
        weights.write(folder, vars(self.config), self.state_dict(), eos_id, bos_id, pad_id)


class NotDrawn(TorchFunctionMode):
    """Weights that are going to be loaded: to draw them first would import the compiler, for a second."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        drawn = getattr(func, '__name__', '') in ('normal_', 'eye')
        return None if drawn else func(*args, **kwargs or {})


def build(make, config, state, path):
    """
    make(GPTConfig) with the weights of state, both from the file at path, which may claim any size: the fit
    is checked first. Raises ValueError naming the file.
    """
    try:
        config = GPTConfig(**config)
    except (ValueError, TypeError) as e:  # TypeError: a key that it does not have
        raise ValueError(f"{path}: {e}") from None
    if config.n_layer > len(state):
        raise ValueError(f"{path}: n_layer is {config.n_layer}, but the file holds {len(state)} tensors")
    with torch.device('meta'), NotDrawn():
        model = make(config)
    check_fit(state, model.state_dict(), path)
    model.load_state_dict(state, assign=True)
    trunk = getattr(model, 'trunk', model)
    if config.tied:
        trunk.lm_head.weight = trunk.wte.weight
    return model
