"""
LoRA (Hu et al., arXiv 2106.09685): the model is frozen, and two thin matrices per linear learn, whose product
is added to its weight, W + alpha / r * B A. B starts at zero, so training starts from the model itself; or it
goes on with the adapters of a folder that PEFT reads and writes. With the adapters switched off, or back at
what the folder held, the same weights are the reference policy. The frozen weights may be int8.

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
from formats.weights import (
    ADAPTER_CONFIG,
    COLUMN,
    HF,
    adapter_base,
    counterpart,
    layout,
    local_folder,
    open_tensors,
)
from kernels import pick_rows
from runtime.checkpoint import check_fit, entry
from runtime.console import say

TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
# what lora_targets may list -> ours; GPT-2 has c_attn in place of q, k and v
NAMES = {**{target: (target,) for target in TARGETS}, **{f'{target}_proj': (target,) for target in TARGETS},
         'c_attn': ('c_attn',), 'c_proj': ('o', 'down'), 'c_fc': ('up',), 'all-linear': TARGETS}
ADAPTER_SETTINGS = ('lora_r', 'lora_alpha', 'lora_targets')  # what adapters are made with, and keep


def targets_of(names):
    """What lora_targets lists, a tuple or a text with commas, as ours; None is all. Raises ValueError."""
    if names is None:
        return TARGETS
    listed = [name.strip() for name in names.split(',')] if isinstance(names, str) else list(names)
    unknown = [name for name in listed if name not in list(NAMES)]
    if unknown or not listed:
        raise ValueError(f"lora_targets has {unknown[0] if unknown else 'nothing'!r}: take some of "
                         f"{', '.join(NAMES)}")
    wanted = {target for name in listed for target in NAMES[name]}
    return tuple(target for target in (*TARGETS, 'c_attn') if target in wanted)


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
        bias = None if bias is None else bias.to(x.dtype)
        # some rows at a time, whose copies stay in a cache
        n, y = max(1, 2 ** 21 // weight.shape[1]), []
        for start in range(0, len(weight), n):
            rows = slice(start, start + n)
            y.append(F.linear(x, dequantise(weight[rows], scale[rows], x.dtype), pick_rows(bias, rows)))
        return torch.cat(y, dim=-1)

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
        self.register_buffer('start_A', None)
        self.register_buffer('start_B', None)
        self.train(base.training)  # a model that was in eval() stays there

    def forward(self, x):
        y = self.base(x)
        A, B = (self.A, self.B) if self.on else (self.start_A, self.start_B)
        if A is None:
            return y
        flat, parts, end = y.view(-1, y.shape[-1]), [], 0
        narrow = F.linear(self.drop(x), A.to(x.dtype)).view(len(flat), -1).split(self.r, dim=1)
        for rows, n, b in zip(self.rows.values(), narrow, B.to(x.dtype).split(self.sizes), strict=True):
            product = torch.addmm(flat[:, rows], n, b.T, alpha=self.alpha / self.r)
            parts += [flat[:, end:rows.start], product]
            end = rows.stop
        parts = [part for part in (*parts, flat[:, end:]) if part.shape[1]]
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).view(y.shape)

    def plain(self):
        """The nn.Linear with the adapters folded in, in fp32, then rounded to the base's dtype."""
        linear = self.base.plain() if isinstance(self.base, Int8Linear) else self.base
        weight, A, B = linear.weight.float(), self.A.float(), self.B.float()
        for rows, a, b in zip(self.rows.values(), A.split(self.r), B.split(self.sizes), strict=True):
            weight[rows] += self.alpha / self.r * (b @ a)
        linear.weight.data = weight.to(linear.weight.dtype)
        return linear


def fused_rows(config):
    """The linears of a block and what their output rows are: {linear: {target: slice}}."""
    q, kv, hidden = config.n_head * config.head_dim, config.n_kv_head * config.head_dim, config.mlp_hidden
    qkv = {'q': slice(0, q), 'k': slice(q, q + kv), 'v': slice(q + kv, q + 2 * kv)}
    up, every = {'up': slice(0, hidden)}, slice(0, config.n_embd)
    if config.position == 'learned':  # as PEFT has it for GPT-2, whose q, k and v are one there, too
        qkv = {'c_attn': slice(0, q + 2 * kv)}
    if config.mlp == 'swiglu':
        up = {'gate': slice(0, hidden), 'up': slice(hidden, 2 * hidden)}
    return {'attn.qkv': qkv, 'attn.proj': {'o': every}, 'mlp.up': up, 'mlp.proj': {'down': every}}


def has_adapters(model):
    return any(isinstance(module, LoRALinear) for module in model.modules())


def add_lora(model: nn.Module, r: int, alpha: float, dropout: float = 0.0,
             targets: tuple[str, ...] = TARGETS):
    """
    Freeze a model.GPT and give every block fp32 adapters of rank r on the targets; TARGETS means all that it
    has. Raises ValueError for a target that it lacks.
    """
    linears, wanted = fused_rows(model.config), targets_of(targets)
    known = [target for rows in linears.values() for target in rows]
    if set(wanted) == set(TARGETS):
        wanted = known
    if set(wanted) - set(known):
        raise ValueError(f"LoRA targets are {', '.join(wanted)}: this model has {', '.join(known)}")
    model.requires_grad_(False)
    for block in model.blocks:
        for path, rows in linears.items():
            rows = {target: s for target, s in rows.items() if target in wanted}
            if rows:
                block.set_submodule(path, LoRALinear(block.get_submodule(path), rows, r, alpha, dropout))


def adapt(model, settings):
    """Make a run's start what the run trains, by its settings: int8, adapters where it came without."""
    if settings['load_in_8bit']:
        quantize_int8(model)
    if not has_adapters(model):
        add_lora(model, *(settings[f'lora_{key}'] for key in ('r', 'alpha', 'dropout', 'targets')))
    for layer in lora_layers(model).values():
        layer.drop.p = settings['lora_dropout']


def adapted_start(load, saved, path):
    """
    The model of a LoRA run's checkpoint, adapters and all: `saved` was read from path, load(start) loads what
    the run started from. Raises FileNotFoundError, and ValueError where the start is another one.
    """
    settings, learned = entry(saved, 'config', dict, path), entry(saved, 'model', dict, path)
    start = entry(saved, 'start', str, path)
    try:
        model = load(start)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{path} holds adapters alone, and their base is gone: {e}") from None
    check_start(saved, weight_sum(model), start)
    adapt(model, settings)
    learned = {name: p for name, p in learned.items() if not name.startswith('value_head.')}
    own = model.state_dict()
    wanted = {*learned, *(name for name in own if name.endswith(('.A', '.B')))}
    copy_tensors(learned, {name: own[name] for name in wanted & own.keys()}, path)
    return model


def weight_sum(model):
    """Tells one start from another."""
    return sum(p.double().sum() for p in model.parameters()).item()


def check_start(saved, now, start):
    """Raises ValueError unless the weights of the start are those that the run of a checkpoint began with."""
    # the last digits of a sum depend on the number of threads
    if not math.isclose(saved['start_weights'], now, rel_tol=1e-9, abs_tol=1e-6):
        raise ValueError(f"the model at {start} is not the one this run started from: restore it")


def lora_layers(model):
    """{name: LoRALinear}. Raises ValueError when there are none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    if not layers:
        raise ValueError("this model has no adapters: add_lora first")
    return layers


@contextmanager
def adapters_off(model):
    """
    Within, the model is its frozen base, with the adapters as they came, if they did. gradient_checkpointing
    needs the backward within, too.
    """
    layers = lora_layers(model).values()
    try:
        for layer in layers:
            layer.on = False
        yield
    finally:
        for layer in layers:
            layer.on = True


@torch.no_grad()
def merge_lora(model: nn.Module):
    """Fold adapters, if any, into the weights and dequantise int8, in place: plain linears, still frozen."""
    replace(model, (LoRALinear, Int8Linear), lambda module: module.plain())
    return model


def copy_tensors(source, target, where):
    """Copy source into target's tensors, all or none. Raises as check_fit."""
    check_fit(source, target, where)
    for name, tensor in target.items():
        tensor.copy_(source[name])


# -----------------------------------------------------------------------------
# adapters as PEFT writes them

ENDS = {'attn.c_proj': 'o', 'mlp.c_proj': 'down'}  # of names, where the last word is not enough
# what a PEFT config may say: plain LoRA, and what changes nothing in what is computed; PiSSA changes the base
PLAIN = {'peft_type': ('LORA',), 'task_type': ('CAUSAL_LM',), 'bias': ('none',),
         'init_lora_weights': (True, 'gaussian', 'eva', 'orthogonal')}
READ = ('r', 'lora_alpha', 'use_rslora', 'auto_mapping', 'base_model_name_or_path', 'exclude_modules',
        'fan_in_fan_out', 'inference_mode', 'layers_pattern', 'layers_to_transform', 'lora_dropout',
        'megatron_core', 'peft_version', 'qalora_group_size', 'target_modules')


def peft_tensors(model):
    """The adapters under PEFT's names. Raises ValueError for a model that transformers lacks."""
    fields, tensors = vars(model.config), {}
    theirs = layout(fields, COLUMN.get(counterpart(fields), HF))
    for name, layer in lora_layers(model).items():
        _, _, path = name.split('.', 2)  # blocks.I.attn.qkv
        modules = dict(zip(fused_rows(model.config)[path], theirs[f'{name}.weight'], strict=True))
        for target, A, B in zip(layer.rows, layer.A.split(layer.r), layer.B.split(layer.sizes), strict=True):
            module = modules[target].removesuffix('.weight')
            tensors[f'base_model.model.{module}.lora_A.weight'] = A.detach()
            tensors[f'base_model.model.{module}.lora_B.weight'] = B.detach()
    return tensors


def save_adapter(model: nn.Module, folder: str, base_name: str = '') -> None:
    """
    Write the folder that peft reads. base_name: the base's path or hub name. Raises ValueError for a model
    without adapters or one that transformers lacks.
    """
    tensors, gpt2 = peft_tensors(model), model.config.position == 'learned'
    layer, *_ = lora_layers(model).values()
    last = slice(-4 if gpt2 else -3, -2)  # 'q_proj', but 'attn.c_proj' and 'mlp.c_proj'
    config = {'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base_name,
              'inference_mode': True, 'bias': 'none', 'r': layer.r, 'lora_alpha': layer.alpha,
              'lora_dropout': layer.drop.p, 'fan_in_fan_out': gpt2,
              'target_modules': sorted({'.'.join(name.split('.')[last]) for name in tensors})}
    os.makedirs(folder, exist_ok=True)
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, os.path.join(folder, 'adapter_model.safetensors'), {'format': 'pt'})
    write_text(os.path.join(folder, ADAPTER_CONFIG), json.dumps(config, indent=1))


def read_adapter(folder):
    """
    (r, alpha, our targets, {name: function that reads the tensor}) of a PEFT folder. Raises ValueError naming
    what is broken or goes beyond plain LoRA of one r and alpha.
    """
    where, path = (os.path.join(folder, name) for name in (ADAPTER_CONFIG, 'adapter_model.safetensors'))
    config = read_json(where)
    r, alpha = config.get('r'), config.get('lora_alpha')
    if type(r) is not int or type(alpha) not in (int, float) or not all(0 < x < 1 << 24 for x in (r, alpha)):
        raise ValueError(f"{where}: r is {r!r} and lora_alpha {alpha!r}; both must be numbers above 0")
    for key, value in config.items():
        if value and key not in READ and value not in PLAIN.get(key, ()):
            raise ValueError(f"{where} has {key} {value!r}, and only plain LoRA is read: merge it with peft")
    tensors, targets = {}, []
    for name, read in open_tensors([path]).items():
        *_, parent, module, kind, _ = ['', '', '', *name.removesuffix('.weight').split('.'), '']
        target = ENDS.get(f'{parent}.{module}') or NAMES.get(module, ('',))[0]
        if kind not in ('lora_A', 'lora_B') or not target:
            raise ValueError(f"{path} holds {name}, which is no plain adapter on a linear of a block")
        tensors[name] = read
        targets.append(target)
    alpha = alpha * math.sqrt(r) if config.get('use_rslora') else float(alpha)
    return r, alpha, targets_of(targets), tensors


def load_adapter(model: nn.Module, folder: str):
    """
    Give a model.GPT the adapters of a PEFT folder, to go on from; switched off, they are what they are now.
    Raises as read_adapter, and ValueError where they do not fit.
    """
    r, alpha, targets, tensors = read_adapter(folder)
    add_lora(model, r, alpha, targets=targets)
    copy_tensors({name: read() for name, read in tensors.items()}, peft_tensors(model), folder)
    for layer in lora_layers(model).values():
        layer.start_A, layer.start_B = layer.A.detach().clone(), layer.B.detach().clone()
    return model


def go_on_with_adapters(cfg, path):
    """
    Where the start of a run is a folder of PEFT adapters, r, alpha and targets become theirs. Raises
    ValueError where the settings ask for others.
    """
    if not adapter_base(path):
        return
    *theirs, _ = read_adapter(local_folder(path))
    asked = cfg.lora_r or None, cfg.lora_alpha, cfg.lora_targets and targets_of(cfg.lora_targets)
    for key, now, value in zip(ADAPTER_SETTINGS, asked, theirs, strict=True):
        if now and now != value:
            raise ValueError(f"{key} is {now} and the adapters of {path} have {value}: leave it out to go on "
                             "with them, or merge them into their base")
        setattr(cfg, key, value)
    say(f"going on with the adapters of {path}: r {cfg.lora_r}, alpha {cfg.lora_alpha:g}, on "
        f"{', '.join(cfg.lora_targets)}")
