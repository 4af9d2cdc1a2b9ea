"""
One transformer. By config it is GPT-2 (LayerNorm, learned positions, GELU), Llama (RMSNorm, RoPE, SwiGLU, fewer
key/value heads), or, with causal=False, a bidirectional filler that reads the text on both sides of a gap.

`model(tokens)` returns hidden states, not logits: whoever wants log-probs decides which rows reach the head, which is
where the memory goes. Weights are fp32 masters; lower precision is autocast's business, never the parameters'.
Shapes: N rows · T tokens · D width · V vocabulary · H heads · d head width.
"""
import os
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int = 1024           # longest text the model reads, in tokens
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int | None = None     # None: as many as n_head; fewer is grouped-query attention
    n_embd: int = 768
    causal: bool = True              # False: every token sees every token
    norm: str = 'layernorm'          # 'layernorm' | 'rmsnorm'
    position: str = 'learned'        # 'learned' | 'rope'
    mlp: str = 'gelu'                # 'gelu' | 'relu2' (squared ReLU: as good, and cheap where gelu is not) | 'swiglu'
    mlp_hidden: int | None = None    # None: 4 D
    bias: bool = True
    tied: bool = True                # the head shares the token embedding's weights
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0             # leave at 0 under RL: a ratio between two different dropout masks means nothing

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        self.mlp_hidden = self.mlp_hidden or 4 * self.n_embd
        for key, kinds in (('norm', ('layernorm', 'rmsnorm')), ('position', ('learned', 'rope')), ('mlp', ('gelu', 'relu2', 'swiglu'))):
            if getattr(self, key) not in kinds:
                raise ValueError(f"{key} is {getattr(self, key)!r}; it must be one of {', '.join(kinds)}")
        if self.n_embd % self.n_head or self.n_head % self.n_kv_head:
            raise ValueError(f"n_embd {self.n_embd} must be a multiple of n_head {self.n_head}, and n_head of n_kv_head {self.n_kv_head}")


def make_norm(config):
    if config.norm == 'rmsnorm':
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def rope_table(config):
    """cos and sin (block_size, d) of the rotation angles, in the half-split layout (RoFormer, arXiv 2104.09864)."""
    d = config.n_embd // config.n_head
    frequencies = config.rope_theta ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = torch.arange(config.block_size, dtype=torch.float64)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    """Turn each head of x (N, heads, T, d) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


class Attention(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head_dim = config.n_embd // config.n_head
        self.qkv = nn.Linear(config.n_embd, (config.n_head + 2 * config.n_kv_head) * self.head_dim, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, rope, mask):
        c = self.config
        N, T, D = x.shape
        heads = self.qkv(x).view(N, T, -1, self.head_dim).transpose(1, 2)  # (N, H + 2 H_kv, T, d)
        qk, v = heads.split([c.n_head + c.n_kv_head, c.n_kv_head], dim=1)
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k = qk.split([c.n_head, c.n_kv_head], dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=c.causal and mask is None,
                                           dropout_p=c.dropout if self.training else 0.0,
                                           enable_gqa=c.n_kv_head != c.n_head)
        return self.proj(y.transpose(1, 2).reshape(N, T, D))


class MLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.kind = config.mlp
        self.up = nn.Linear(config.n_embd, config.mlp_hidden, bias=config.bias)
        self.gate = nn.Linear(config.n_embd, config.mlp_hidden, bias=config.bias) if config.mlp == 'swiglu' else None
        self.proj = nn.Linear(config.mlp_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        if self.kind == 'swiglu':
            return self.proj(F.silu(self.gate(x)) * self.up(x))
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
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, rope, mask):
        x = x + self.drop(self.attn(self.norm_1(x), rope, mask))
        return x + self.drop(self.mlp(self.norm_2(x)))


class GPT(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == 'learned' else None
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm_f = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        if config.position == 'rope':
            cos, sin = rope_table(config)
            self.register_buffer('rope_cos', cos, persistent=False)
            self.register_buffer('rope_sin', sin, persistent=False)
        for name, p in self.named_parameters():
            if name.endswith('proj.weight'):
                nn.init.zeros_(p)  # each block starts as the identity; small models learn several times faster this way
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)

    def forward(self, tokens, lengths=None):
        """
        Hidden states after the last norm. tokens (N, T) int64, right-padded; lengths (N,) true lengths, None when no
        row is padded. Returns (N, T, D); what stands at padded positions means nothing.
        """
        N, T = tokens.shape
        if T > self.config.block_size:
            raise ValueError(f"a text of {T} tokens does not fit into this model's block_size of {self.config.block_size}: shorten it, or train a model with a larger block_size")
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe.weight[:T]
        rope = (self.rope_cos[:T], self.rope_sin[:T]) if self.wpe is None else None
        x = self.drop(x)
        # Causal rows need no padding mask: padding stands to the right of everything that counts.
        mask = None
        if lengths is not None and not self.config.causal:
            mask = (torch.arange(T, device=tokens.device) < lengths[:, None])[:, None, None, :]  # (N, 1, 1, T) keys that exist
        for block in self.blocks:
            x = block(x, rope, mask)
        return self.norm_f(x)

    def logits(self, tokens, lengths=None):
        """Logits (N, T, V) at every position; for a few positions take the hidden states and call lm_head on those."""
        return self.lm_head(self(tokens, lengths))

    @classmethod
    def from_pretrained(cls, path):
        """The model in one of our checkpoint files, pretrained or trained by GRPO, on the CPU. Raises as load_checkpoint does."""
        checkpoint = load_checkpoint(path, 'generator', 'run')
        model = cls(GPTConfig(**checkpoint['model_config']))
        model.load_state_dict(checkpoint['model'])
        return model


def configure_optimizers(module, weight_decay, learning_rate, betas):
    """AdamW as in nanoGPT: matrices and embeddings decay, biases and norms do not; fused where torch has it."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [{'params': [p for p in params if p.dim() >= 2], 'weight_decay': weight_decay},
              {'params': [p for p in params if p.dim() < 2], 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


# ---------------------------------------------------------------------------------------------------------------------
# checkpoints: one file, written whole or not at all, read without running any code that may be inside

def save_checkpoint(path, checkpoint):
    """Write to a temporary file beside `path`, flush it to the disk, rename: a reader sees the old file or the new one."""
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    temporary = f'{path}.tmp'
    with open(temporary, 'wb') as f:
        torch.save(checkpoint, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def load_checkpoint(path, *kinds):
    """
    The checkpoint's dict, on the CPU. kinds: what its 'kind' entry may be ('generator', 'judge', 'run').
    Raises FileNotFoundError when there is no such file, ValueError when it is torn, of another program, or of another kind.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:
        raise ValueError(f"{path} cannot be read as a checkpoint (torn, or not one): {(str(e) or type(e).__name__).splitlines()[0][:120]}. Delete it and run again to make it anew") from None
    found = checkpoint.get('kind') if isinstance(checkpoint, dict) else None
    if found not in kinds:
        raise ValueError(f"{path} holds {'a ' + found if found else 'no'} checkpoint where a {' or '.join(kinds)} is wanted: check which path belongs to which key")
    return checkpoint
