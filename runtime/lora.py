"""
LoRA (Hu et al., arXiv 2106.09685): the model is frozen, and two thin matrices per linear learn, whose product
is added to its weight, W + alpha / r * B A. B starts at zero, so training starts from the model itself. With
the adapters switched off the same weights are the reference policy. The frozen weights may be int8.

Our linears are fused (q, k, v in one; gate and up in one), so an adapter belongs to some rows of a linear.
Shapes: S adapted slices of a linear, r the rank.
"""
import json
import math
import os
from contextlib import contextmanager

import torch
import torch.nn as nn
from safetensors.torch import save_file
from torch.nn import functional as F

from formats.text_files import read_json, write_text
from formats.weights import counterpart, open_tensors
from runtime.checkpoint import check_fit

TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


def replace(module, kind, make):
    """Put make(child) in the place of every submodule of that kind."""
    for name, child in list(module.named_children()):
        if isinstance(child, kind):
            setattr(module, name, make(child))
        else:
            replace(child, kind, make)


# -----------------------------------------------------------------------------
# frozen weights in int8

def dequantise(weight, scale, dtype):
    # Scaling the product is cheaper, but its sums overflow fp16.
    return torch.mul(weight, scale[:, None], out=torch.empty(weight.shape, dtype=dtype, device=weight.device))


class Int8Matmul(torch.autograd.Function):
    """Dequantises again in backward: autograd would keep each layer's weight."""

    @staticmethod
    def forward(ctx, x, weight, scale, bias):
        ctx.save_for_backward(weight, scale)
        return F.linear(x, dequantise(weight, scale, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        weight, scale = ctx.saved_tensors
        return grad @ dequantise(weight, scale, grad.dtype), None, None, None


class Int8Linear(nn.Module):
    """A frozen linear: weight int8 (out, in) times scale fp32 (out,); errors are at most scale / 2."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1) / 127  # the row's largest weight becomes +-127
        self.register_buffer('weight', (weight / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8))
        self.register_buffer('scale', scale)
        self.bias = None if linear.bias is None else linear.bias.requires_grad_(False)

    def forward(self, x):
        return Int8Matmul.apply(x, self.weight, self.scale, self.bias)

    def plain(self):
        """The nn.Linear, in fp32, that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device='meta')
        linear.weight = nn.Parameter(dequantise(self.weight, self.scale, torch.float32), requires_grad=False)
        linear.bias = self.bias
        return linear


def quantize_int8(model: nn.Module):
    """
    Make every linear in the blocks of a model.GPT an Int8Linear, frozen, in a quarter of fp32's memory.
    SmolLM2-135M-Instruct on GSM8K is 0.0028 nats from fp32 then, in mean KL; in bf16 it is 0.0011.
    """
    replace(model.blocks, nn.Linear, Int8Linear)


# -----------------------------------------------------------------------------
# adapters

class LoRALinear(nn.Module):
    """
    A frozen linear (nn.Linear or Int8Linear) and S adapters, each adding to some rows {target: slice} of its
    output. A (S r, in) and B (adapted rows, r) stack them.
    """

    def __init__(self, base, rows, r, alpha, dropout):
        super().__init__()
        self.base, self.rows, self.r, self.alpha, self.on = base, rows, r, alpha, True
        self.sizes = [s.stop - s.start for s in rows.values()]
        self.drop = nn.Dropout(dropout)
        self.A = nn.Parameter(torch.empty(len(rows) * r, base.in_features, device=base.weight.device))
        self.B = nn.Parameter(torch.zeros(sum(self.sizes), r, device=base.weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as PEFT does: uniform within 1 / sqrt(in)
        self.train(base.training)  # a model that was in eval() stays there

    def forward(self, x):
        y = self.base(x)
        if not self.on:
            return y
        narrow = F.linear(self.drop(x), self.A.to(x.dtype)) * (self.alpha / self.r)  # (..., S r)
        return y + F.linear(narrow, self.wide_B().to(x.dtype))

    def wide_B(self):
        """B as one matrix (out, S r), zero outside its blocks: W changes by alpha / r * wide_B A."""
        wide = self.B.new_zeros(self.base.out_features, len(self.rows) * self.r)
        for s, (rows, B) in enumerate(zip(self.rows.values(), self.B.split(self.sizes), strict=True)):
            wide[rows, s * self.r:(s + 1) * self.r] = B
        return wide

    def plain(self):
        """The nn.Linear with the adapters folded in, in fp32, then rounded to the base's dtype."""
        linear = self.base.plain() if isinstance(self.base, Int8Linear) else self.base
        delta = self.alpha / self.r * (self.wide_B().float() @ self.A.float())
        linear.weight.data = (linear.weight.float() + delta).to(linear.weight.dtype)
        return linear


def fused_rows(config):
    """The linears of a block and what their output rows are: {linear: {target: slice}}."""
    q, kv, hidden = config.n_head * config.head_dim, config.n_kv_head * config.head_dim, config.mlp_hidden
    qkv = {'q': slice(0, q), 'k': slice(q, q + kv), 'v': slice(q + kv, q + 2 * kv)}
    up, every = {'up': slice(0, hidden)}, slice(0, config.n_embd)
    if config.mlp == 'swiglu':
        up = {'gate': slice(0, hidden), 'up': slice(hidden, 2 * hidden)}
    return {'attn.qkv': qkv, 'attn.proj': {'o': every}, 'mlp.up': up, 'mlp.proj': {'down': every}}


def add_lora(model: nn.Module, r: int, alpha: float, dropout: float = 0.0,
             targets: tuple[str, ...] = TARGETS):
    """
    Freeze a model.GPT and give every block fp32 adapters of rank r on the targets; TARGETS means all that it
    has (GELU has no 'gate'). Raises ValueError for a target that it lacks.
    """
    linears = fused_rows(model.config)
    known = [target for rows in linears.values() for target in rows]
    wanted = known if set(targets) == set(TARGETS) else targets
    if not wanted or set(wanted) - set(known):
        raise ValueError(f"LoRA targets are {tuple(targets)}: this model has {', '.join(known)}")
    if r < 1 or alpha <= 0:
        raise ValueError(f"LoRA's r is {r} and its alpha {alpha}: r must be at least 1 and alpha above 0")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("this model has adapters already: merge_lora first")
    model.requires_grad_(False)
    for block in model.blocks:
        for path, rows in linears.items():
            rows = {target: s for target, s in rows.items() if target in wanted}
            if rows:
                block.set_submodule(path, LoRALinear(block.get_submodule(path), rows, r, alpha, dropout))


def lora_layers(model):
    """{name: LoRALinear}. Raises ValueError when there are none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    if not layers:
        raise ValueError("this model has no adapters: add_lora first")
    return layers


@contextmanager
def adapters_off(model):
    """Within, the model is its frozen base. gradient_checkpointing needs the backward within, too."""
    layers = lora_layers(model).values()
    before = [layer.on for layer in layers]
    try:
        for layer in layers:
            layer.on = False
        yield
    finally:
        for layer, on in zip(layers, before, strict=True):
            layer.on = on


@torch.no_grad()
def merge_lora(model: nn.Module):
    """Fold the adapters into the weights and dequantise int8: plain linears, still frozen."""
    replace(model, (LoRALinear, Int8Linear), lambda module: module.plain())


def copy_tensors(source, target, where):
    """Copy source into target's tensors, all or none. Raises as check_fit."""
    check_fit(source, target, where)
    for name, tensor in target.items():
        tensor.copy_(source[name])


# -----------------------------------------------------------------------------
# adapters as PEFT writes them

GPT2 = {'attn.qkv': 'attn.c_attn', 'attn.proj': 'attn.c_proj', 'mlp.up': 'mlp.c_fc', 'mlp.proj': 'mlp.c_proj'}


def is_gpt2(config):
    """False for Llama, Qwen2, Qwen3. Raises ValueError for a model that transformers lacks."""
    return counterpart(vars(config)) == 'gpt2'


def peft_tensors(model):
    """The adapters under PEFT's names. GPT-2's q, k and v are one linear, so one adapter of rank S r."""
    tensors = {}
    for name, layer in lora_layers(model).items():
        _, i, path = name.split('.', 2)  # blocks.I.attn.qkv
        if is_gpt2(model.config):
            pairs = [(f'transformer.h.{i}.{GPT2[path]}', layer.A, layer.wide_B())]
        else:
            part = 'mlp' if path.startswith('mlp') else 'self_attn'
            names = [f'model.layers.{i}.{part}.{target}_proj' for target in layer.rows]
            pairs = zip(names, layer.A.split(layer.r), layer.B.split(layer.sizes), strict=True)
        for module, A, B in pairs:
            tensors[f'base_model.model.{module}.lora_A.weight'] = A.detach()
            tensors[f'base_model.model.{module}.lora_B.weight'] = B.detach()
    return tensors


def save_adapter(model: nn.Module, folder: str, base_name: str = '') -> None:
    """
    Write the folder that peft reads. base_name: the base's path or hub name. Raises ValueError for a model
    without adapters or one that transformers lacks.
    """
    tensors, gpt2 = peft_tensors(model), is_gpt2(model.config)
    layer, *_ = lora_layers(model).values()
    last = slice(-4 if gpt2 else -3, -2)  # 'q_proj', but 'attn.c_proj' and 'mlp.c_proj'
    modules = {'.'.join(name.split('.')[last]): tensor.shape[0] // layer.r  # S
               for name, tensor in tensors.items() if 'lora_A' in name}
    stacked = {name: S for name, S in modules.items() if S > 1}
    config = {'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base_name,
              'inference_mode': True, 'bias': 'none', 'r': layer.r, 'lora_alpha': layer.alpha,
              'lora_dropout': layer.drop.p, 'fan_in_fan_out': gpt2, 'target_modules': sorted(modules),
              'rank_pattern': {name: S * layer.r for name, S in stacked.items()},
              'alpha_pattern': {name: S * layer.alpha for name, S in stacked.items()}}  # alpha / r stays
    os.makedirs(folder, exist_ok=True)
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, os.path.join(folder, 'adapter_model.safetensors'), {'format': 'pt'})
    write_text(os.path.join(folder, 'adapter_config.json'), json.dumps(config, indent=1))


def load_adapter(model: nn.Module, folder: str):
    """Give a Llama-like model the adapters of a PEFT folder. Raises FileNotFoundError, ValueError."""
    config_path = os.path.join(folder, 'adapter_config.json')
    path = os.path.join(folder, 'adapter_model.safetensors')
    for file in (config_path, path):
        if not os.path.isfile(file):
            raise FileNotFoundError(f"there is no {file}: name a folder that PEFT has saved")
    if is_gpt2(model.config):
        raise ValueError(f"{folder}: an adapter of GPT-2 can be written but not read: q, k, v may share an A")
    config = {'lora_dropout': 0.0} | read_json(config_path)
    check_plain_lora(config, config_path)
    saved = {name: read() for name, (_, read) in open_tensors([path]).items()}
    modules = {name.partition('_proj.lora_')[0].rpartition('.')[2] for name in saved}
    targets = [target for target in TARGETS if target in modules] or TARGETS
    add_lora(model, config['r'], config['lora_alpha'], config['lora_dropout'], targets)
    copy_tensors(saved, peft_tensors(model), path)


def check_plain_lora(config, path):
    """Raises ValueError naming what in a PEFT config is broken or goes beyond plain LoRA."""
    number = int, float
    for key, kinds, least in (('r', (int,), 1), ('lora_alpha', number, 0), ('lora_dropout', number, 0)):
        value = config.get(key)
        if type(value) not in kinds or not least <= value < 1 << 24:
            raise ValueError(f"{path}: {key} is {value!r}; it must be a number from {least} on")
    beyond = ('use_rslora', 'alpha_pattern', 'alora_invocation_tokens')
    odd = {key: config[key] for key in beyond if config.get(key)}
    start = config.get('init_lora_weights', True)
    if odd or start not in (True, False, 'gaussian'):  # PiSSA and the like change the base, too
        raise ValueError(f"{path} has {odd or start}: only plain LoRA can be read")
