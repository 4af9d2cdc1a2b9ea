"""
One transformer. By config it is GPT-2 (LayerNorm, learned positions, GELU), Llama, Qwen2, Qwen3 or SmolLM2 (RMSNorm, RoPE,
SwiGLU, fewer key/value heads), or, with causal=False, a bidirectional filler that reads the text on both sides of a gap.

A group of answers shares its prompt, so there are three ways in, one arithmetic: `model(tokens)` reads whole texts,
`model.prefill` reads prompts once and keeps their keys and values, `model.answer` reads G answers to each of them. All
are `model.run` with another idea of who attends to whom; sample.py brings a fourth, one token at a time.

They return hidden states, not logits: whoever wants log-probs decides which rows reach the head, which is where the
memory goes. There is no left padding anywhere: rows are right-padded with true lengths, so positions are natural.
Shapes: N rows · P prompts · G answers of each · T and R tokens · D width · V vocabulary · H heads (H_kv of keys) · d head width.
"""
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from formats import weights
from kernels import GroupAttention, wide
from runtime.checkpoint import check_fit, entry, load_checkpoint

LARGEST = 1 << 24  # of any size: no model's is larger, and a product of two never overflows


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
    norm: str = 'layernorm'          # 'layernorm' | 'rmsnorm'
    position: str = 'learned'        # 'learned' | 'rope'
    mlp: str = 'gelu'                # 'gelu' | 'relu2' (squared ReLU: as good, and cheap where gelu is not) | 'swiglu'
    mlp_hidden: int | None = None    # None: 4 D
    bias: bool = True
    qkv_bias: bool | None = None     # None: as bias; Qwen2 has biases here alone
    qk_norm: bool = False            # RMSNorm on each head's queries and keys, as in Qwen3
    tied: bool = True                # the head shares the token embedding's weights
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # Llama 3's: factor, low_freq_factor, high_freq_factor, original_max_position_embeddings
    norm_eps: float = 1e-5

    def __post_init__(self):
        for key in ('block_size', 'vocab_size', 'n_layer', 'n_head', 'n_kv_head', 'n_embd', 'head_dim', 'mlp_hidden'):
            value = getattr(self, key)
            least = 0 if key == 'n_layer' else 1  # no block at all is what nla.truncate leaves of a model at layer 0
            if value is not None and not least <= value <= LARGEST:
                raise ValueError(f"{key} is {value}; it must be between {least} and {LARGEST}")
        self.n_kv_head = self.n_kv_head or self.n_head
        self.mlp_hidden = self.mlp_hidden or 4 * self.n_embd
        self.qkv_bias = self.bias if self.qkv_bias is None else self.qkv_bias
        for key, kinds in (('norm', ('layernorm', 'rmsnorm')), ('position', ('learned', 'rope')), ('mlp', ('gelu', 'relu2', 'swiglu'))):
            if getattr(self, key) not in kinds:
                raise ValueError(f"{key} is {getattr(self, key)!r}; it must be one of {', '.join(kinds)}")
        if self.n_head % self.n_kv_head or (self.head_dim is None and self.n_embd % self.n_head):
            raise ValueError(f"n_embd {self.n_embd} must be a multiple of n_head {self.n_head}, and n_head of n_kv_head {self.n_kv_head}")
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        if self.n_head * self.head_dim > LARGEST:
            raise ValueError(f"n_head {self.n_head} heads of width {self.head_dim} are more than {LARGEST} together")
        if self.position == 'rope' and self.head_dim % 2:
            raise ValueError(f"a head is {self.head_dim} wide; RoPE turns pairs, so n_embd / n_head must be even")
        numbers = {'norm_eps': self.norm_eps, 'rope_theta': self.rope_theta} | {f'rope_scaling {key}': (self.rope_scaling or {}).get(key) for key in weights.LLAMA3 if self.rope_scaling is not None}
        for key, value in numbers.items():
            if type(value) not in (int, float) or not 0 < value < 1e18:
                raise ValueError(f"{key} is {value!r}; it must be a positive number")
        if self.rope_scaling is not None and not self.rope_scaling['low_freq_factor'] < self.rope_scaling['high_freq_factor']:
            raise ValueError(f"rope_scaling is {self.rope_scaling}; its low_freq_factor must be below its high_freq_factor")


class RMSNorm(nn.Module):
    """arXiv 1910.07467, statistics in fp32. torch's own is the same and, on a CPU, half as fast for few rows."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        h = x.float()
        h = h * (h.square().sum(dim=-1, keepdim=True) / h.shape[-1] + self.eps).rsqrt()
        return self.weight * h.to(x.dtype)


def make_norm(config):
    if config.norm == 'rmsnorm':
        return RMSNorm(config.n_embd, config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def rope_frequencies(config):
    """Angle per position (d/2,) in float64 (RoFormer, arXiv 2104.09864), stretched for long texts as Llama 3.1 does where the config says so."""
    d = config.head_dim
    frequencies = config.rope_theta ** -(torch.arange(0, d, 2, dtype=torch.float64, device='cpu') / d)
    if config.rope_scaling:
        s = config.rope_scaling
        turns = s['original_max_position_embeddings'] * frequencies / (2 * torch.pi)  # full turns within the original context
        smooth = ((turns - s['low_freq_factor']) / (s['high_freq_factor'] - s['low_freq_factor'])).clamp(0, 1)
        frequencies = frequencies * (smooth + (1 - smooth) / s['factor'])
    return frequencies


def rotation(angles, dtype):
    """cos and sin (..., d) of angles (..., d/2) for rotate, the halves of sin with opposite signs."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(x, cos, sin):
    """Turn each head of x (..., heads, d) by its position's angle, in the half-split layout: pairs are d/2 apart. cos, sin (..., 1, d) from rotation."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)


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
        """x (..., D), whatever its leading axes mean -> q (..., H, d), k and v (..., H_kv, d)."""
        H, H_kv = self.heads
        heads = self.qkv(x).view(*x.shape[:-1], -1, self.head_dim)              # (..., H + 2 H_kv, d)
        qk, v = heads.split([H + H_kv, H_kv], dim=-2)
        if self.q_norm is not None:
            q, k = qk.split(self.heads, dim=-2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=-2)
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k = qk.split(self.heads, dim=-2)
        return q, k, v


class MLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.kind = config.mlp
        gated = 2 if config.mlp == 'swiglu' else 1
        self.up = nn.Linear(config.n_embd, gated * config.mlp_hidden, bias=config.bias)  # swiglu: the gate's rows, then the values'
        self.proj = nn.Linear(config.mlp_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        if self.kind == 'swiglu':
            gate, value = self.up(x).chunk(2, dim=-1)
            return self.proj(F.silu(gate) * value)
        if self.kind == 'relu2':
            return self.proj(F.relu(self.up(x)).square())
        return self.proj(F.gelu(self.up(x), approximate='tanh'))


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.norm_1 = make_norm(config)
        self.attn = Attention(config)
        self.norm_2 = make_norm(config)
        self.mlp = MLP(config)
        self.compiled = False

    def forward(self, x, rope, attend):
        """x (..., D); attend(q, k, v) knows what the leading axes mean and who sees whom."""
        before, after = compiled_halves() if self.compiled and torch.is_grad_enabled() else (Block.before, Block.after)
        return after(self, x, attend(*before(self, x, rope)))

    def before(self, x, rope):
        return self.attn(self.norm_1(x), rope)

    def after(self, x, y):
        x = x + self.attn.proj(y.flatten(-2))
        return x + self.mlp(self.norm_2(x))


@functools.cache
def compiled_halves():
    """
    What lies between two attentions, fused by torch.compile: once for all layers and all sizes. For training alone; the sampler's whole step
    is compiled in sample.py.
    """
    return tuple(torch.compile(half, dynamic=True) for half in (Block.before, Block.after))


class GPT(nn.Module):
    """One transformer that is GPT-2, Llama, Qwen2, Qwen3 or a bidirectional filler, by its config. tokens (N, T) -> hidden states (N, T, D)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # True: a block's activations are computed again in backward instead of kept
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == 'learned' else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm_f = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        self.rope_frequencies = rope_frequencies(config) if self.wpe is None else None  # no buffer: a cast of the model must not touch it
        for name, p in self.named_parameters():
            if name.endswith('proj.weight'):
                nn.init.zeros_(p)  # each block starts as the identity; small models learn several times faster this way
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)

    def run(self, tokens, positions, attend, edit=None):
        """
        The transformer itself: tokens (...) at positions (...) broadcastable to them -> hidden (..., D) after the last norm.
        attend(layer, q, k, v) says who sees whom: q (..., H, d), k and v (..., H_kv, d) -> (..., H, d). edit(i, x) may change what flows:
        x (..., D) is the tokens' embeddings for i = 0, without positions, and what block number i puts out from 1 on.
        """
        x = self.wte(tokens)
        if edit:
            x = edit(0, x)
        rope = None
        if self.wpe is not None:
            x = x + self.wpe(positions)
        else:
            rope = rotation(positions[..., None, None] * self.frequencies(x.device), x.dtype)  # in float64: 1e5 radians keep their fraction
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            who = partial(attend, layer)
            x = checkpoint(block, x, rope, who, use_reentrant=False) if again else block(x, rope, who)
            if edit:
                x = edit(layer + 1, x)
        return self.norm_f(x)

    def compile_blocks(self):
        """From now on the forward of training is compiled (ten seconds per layer at its first use; on a CPU it takes a C++ compiler)."""
        for block in self.blocks:
            block.compiled = True

    def frequencies(self, device):
        if self.rope_frequencies.device != device:
            self.rope_frequencies = self.rope_frequencies.to(device)
        return self.rope_frequencies

    def check_length(self, n):
        if n > self.config.block_size:
            raise ValueError(f"a text of {n} tokens does not fit into this model's block_size of {self.config.block_size}: shorten it, or train a model with a larger block_size")

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None, edit: Callable | None = None) -> torch.Tensor:
        """
        Whole texts. tokens (N, T) int64, right-padded; lengths (N,) true lengths, None when no row is padded. Returns hidden
        states (N, T, D); what stands at padded positions means nothing. edit: see run.
        """
        T = tokens.shape[1]
        self.check_length(T)
        # Causal rows need no padding mask: padding stands to the right of everything that counts.
        mask = None
        if lengths is not None and not self.config.causal:
            mask = (torch.arange(T, device=tokens.device) < lengths[:, None])[:, None, None, :]  # (N, 1, 1, T) keys that exist
        return self.run(tokens, torch.arange(T, device=tokens.device), lambda layer, q, k, v: self.attention(q, k, v, mask, self.config.causal and mask is None), edit)

    def attention(self, q, k, v, mask=None, is_causal=False):
        """q (N, T, H, d) against k, v (N, S, H_kv, d), mask (N or 1, 1, T, S) true where a query may look -> (N, T, H, d)."""
        y = F.scaled_dot_product_attention(*(wide(x).transpose(1, 2) for x in (q, k, v)), attn_mask=mask, is_causal=is_causal, enable_gqa=q.shape[-2] != k.shape[-2])
        return y.transpose(1, 2).to(q.dtype)

    def prefill(self, tokens, edit=None):
        """
        Prompts (P, T), right-padded, read once. Returns their hidden states (P, T, D) and the prefix that `answer` attends to:
        for each layer the keys and values (P, T, H_kv, d). edit: see run.
        """
        T = tokens.shape[1]
        self.check_length(T)
        prefix = [None] * self.config.n_layer

        def attend(layer, q, k, v):
            prefix[layer] = k, v
            return self.attention(q, k, v, is_causal=True)

        return self.run(tokens, torch.arange(T, device=tokens.device), attend, edit), prefix

    def complete(self, tokens, prefix, prompt_lengths):
        """
        Completions (P, G, R), right-padded, each after its prompt: every token sees the prompt (prompt_lengths (P,) of the prefix's
        T tokens) and the answer up to itself. Returns hidden states (P, G, R, D); gradients reach the prefix.
        """
        P, G, R = tokens.shape
        T = prefix[0][0].shape[1]
        seen = torch.arange(T, device=tokens.device) < prompt_lengths[:, None]  # (P, T)
        if tokens.is_cuda:
            own = torch.ones(R, R, dtype=torch.bool, device=tokens.device).tril().expand(P, G, R, R)
            mask = torch.cat((seen[:, None, None].expand(P, G, R, T), own), dim=-1).view(P * G, 1, R, T + R)
        else:
            bias = None if seen.all() else torch.zeros(P, 1, 1, T, dtype=wide(prefix[0][0]).dtype).masked_fill(~seen[:, None, None], -torch.inf)

        def attend(layer, q, k, v):
            if not tokens.is_cuda:
                return GroupAttention.apply(*(wide(x) for x in (q, k, v, *prefix[layer])), bias).to(q.dtype)
            shared = (x[:, None].expand(-1, G, -1, -1, -1) for x in prefix[layer])  # (P, G, T, H_kv, d)
            k, v = (torch.cat(both, dim=2).flatten(0, 1) for both in zip(shared, (k, v)))
            return self.attention(q.flatten(0, 1), k, v, mask).unflatten(0, (P, G))

        return self.run(tokens, prompt_lengths[:, None, None] + torch.arange(R, device=tokens.device), attend)

    def logits(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (N, T, V) at every position; for a few positions take the hidden states and call lm_head on those."""
        return self.lm_head(self(tokens, lengths))

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> 'GPT':
        """
        The model at path, fp32, on the CPU: one of our checkpoint files, a Hugging Face directory (config.json and *.safetensors;
        GPT-2, Llama, Qwen2, Qwen3, SmolLM2), a .gguf file of Llama type, or a name on the Hugging Face hub. Raises as load_checkpoint
        and weights.read do.
        """
        path = os.fspath(path)
        if os.path.isfile(path) and not path.endswith('.gguf'):
            saved = load_checkpoint(path, 'generator', 'run')
            if 'nla' in saved:
                raise ValueError(f"{path} holds the actor and critic of an autoencoder, not a plain model: `sample.py --checkpoint={path} --text=...` explains with them")
            return build(cls, entry(saved, 'model_config', dict, path), {name: p for name, p in entry(saved, 'model', dict, path).items() if not str(name).startswith('value_head.')}, path)
        return build(cls, *weights.read(path), path)

    def save_pretrained(self, folder: str, eos_id: int | None = None) -> None:
        """config.json and model.safetensors as `transformers` reads them. Raises ValueError when no architecture there is this one."""
        weights.write(folder, vars(self.config), self.state_dict(), eos_id)


def read_config(config, path):
    """GPTConfig(**config), where config comes from the file at path. Raises ValueError naming the file and the key."""
    kinds = {field.name: getattr(field.type, '__args__', (field.type,)) for field in fields(GPTConfig)}
    for key, value in config.items():
        if key not in kinds:
            raise ValueError(f"{path}: its model_config has the key {key!r}, which no model has here")
        if type(value) not in kinds[key] and not (type(value) is int and float in kinds[key]):
            raise ValueError(f"{path}: {key} is {value!r}; it must be {' or '.join(kind.__name__ for kind in kinds[key])}")
    try:
        return GPTConfig(**config)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def build(make, config, state, path):
    """
    make(GPTConfig) with the weights of state, both from the file at path, the trunk's head tied where the config says so. That they fit is
    known before memory is taken: a file may claim any size. Raises ValueError naming the file.
    """
    config = read_config(config, path)
    if config.n_layer > len(state):
        raise ValueError(f"{path}: n_layer is {config.n_layer}, and it holds {len(state)} tensors")
    with torch.device('meta'):
        model = make(config)
    check_fit(state, model.state_dict(), path)
    model.load_state_dict(state, assign=True)
    trunk = getattr(model, 'trunk', model)
    if config.tied:
        trunk.lm_head.weight = trunk.wte.weight
    return model
