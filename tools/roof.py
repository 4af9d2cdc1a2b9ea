"""
Decode by arithmetic: bytes, operations and launches of a token on a GPU, against the least it could take.

The real `Decoder.step` runs on the meta device, where tensors have shapes alone, and they say that they lie
on a GPU. An operation is one launch that reads its inputs and writes its outputs once; so is a Triton kernel,
unless TRAFFIC knows better. Nothing here has run on a GPU. Caches, which help, and tails are left out.
"""
import sys
from collections import defaultdict
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import kernels
from model import GPT, GPTConfig
from policy import Decoder
from runtime.graphs import RowCache

# of an H100: bytes and bf16 FLOPs a second that good kernels get, seconds of the shortest launch
SPEED, PEAK, GRAPHED, EAGER = 0.9 * 3.35e12, 0.75 * 989e12, 2.5e-6, 6e-6
SMOLLM2 = {'n_layer': 30, 'n_head': 9, 'n_kv_head': 3, 'n_embd': 576, 'mlp_hidden': 1536, 'vocab_size': 49152}
QWEN2 = {'n_layer': 24, 'n_head': 14, 'n_kv_head': 2, 'n_embd': 896, 'mlp_hidden': 4864, 'qkv_bias': True,
         'vocab_size': 151936}
PARTS = {'attend': 'attention', 'draw_rows': 'draw', 'write': 'head'}  # by the function that launches


class Case(NamedTuple):
    """P prompts of T tokens, G completions of each, with so many slots of their own."""
    name: str
    config: dict
    P: int
    G: int
    T: int
    slots: int


CASES = [Case('SmolLM2-135M', SMOLLM2, 64, 8, 128, 64), Case('Qwen2.5-0.5B', QWEN2, 64, 8, 256, 192),
         Case('Qwen2.5-0.5B', QWEN2, 4, 8, 256, 192)]


def size(*tree):
    """Bytes of all tensors in it, each element counted once however often it is expanded."""
    total = 0
    for x in tree_leaves(tree):
        if isinstance(x, torch.Tensor):
            total += x[tuple(slice(None if step else 1) for step in x.stride())].numel() * x.element_size()
    return total


def cost(name, args, out):
    """(bytes, FLOPs) of the operation of that name."""
    name, tensors = name.rstrip('_'), [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
    if name in ('mm', 'bmm', 'addmm', 'baddbmm'):
        return size(args, out), 2 * tensors[-2].numel() * tensors[-1].shape[-1]
    if name in ('index', 'gather', 'embedding'):             # as much of the table as it gives
        return size(out, out, tensors[1:]), 0
    if name in ('index_copy', 'index_put', 'scatter'):       # what is put is read and written
        return size(tensors[-1], tensors[1:]), 0
    if name.startswith(('copy', 'fill', 'full', 'zero', 'new_zero')):
        tensors = tensors[1:]
    return size(tensors, out), 0


def of_attend_rows(q, k, v, rope, slots, lengths, rows, at, sizes, width):
    (G, T, R), (B, H_kv, d) = sizes, k.shape
    # `width` rows read their prompt once
    n_bytes = size(q, k, v, q) + size(slots[:, 0]) * (-(-B // width) * T + B * R)
    return n_bytes, 4 * q.numel() * (T + R)


def of_draw_rows(logits, u, rows, *_):
    return size(logits, logits, rows, rows, rows), 0  # twice, a number and what is written


# NAME of a kernels.NAME_triton: a function of the same arguments that gives (bytes, FLOPs)
TRAFFIC = {'attend_rows': of_attend_rows, 'draw_rows': of_draw_rows}


class SaysCuda(TorchFunctionMode):
    """Tensors of the meta device say that they lie on a GPU, and what is made there is made on meta."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.is_cuda.__get__ and args[0].is_meta:
            return True
        if func == torch.Tensor.device.__get__ and args[0].is_meta:
            return torch.device('cuda')
        args, kwargs = tree_map_only(torch.device, lambda _: torch.device('meta'), (args, kwargs or {}))
        return func(*args, **kwargs)


class Account(TorchDispatchMode):
    """Keeps of each launch inside it (part, name, bytes, FLOPs) in `rows`."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def launch(self, name, n_bytes, flops):
        frame, part = sys._getframe(1), 'gemm' if flops else 'elementwise'
        while frame and frame.f_code.co_name not in PARTS:
            frame = frame.f_back
        self.rows.append((PARTS[frame.f_code.co_name] if frame else part, name, n_bytes, flops))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name.removeprefix('aten::'), kwargs or {}
        if func._can_decompose() and name != '_fused_rms_norm':  # which is one launch on CUDA
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if not func.is_view and name != '_unsafe_view' and 'empty' not in name:
            self.launch(name, *cost(name, args, out))
        return out

    def kernel(self, name, *args, **kwargs):
        """One launch, in place of kernels.NAME_triton; its torch twin gives the tensors that come out."""
        kept = len(self.rows)
        out = getattr(kernels, f'{name}_torch')(*args, **kwargs)
        del self.rows[kept:]
        known = TRAFFIC[name](*args, **kwargs) if name in TRAFFIC else (size(args, kwargs, out), 0)
        self.launch(name, *known)
        return out


def decode_step(case):
    """(the rows of one step at temperature 1, seconds it takes at least, and what takes them, a text)."""
    P, G, N, account = case.P, case.G, case.P * case.G, Account()
    launchers = [name for name in vars(kernels) if name.endswith('_triton')]
    counted = {name: partial(account.kernel, name.removesuffix('_triton')) for name in launchers}
    with torch.device('meta'), SaysCuda(), torch.inference_mode(), patch.multiple(kernels, **counted):
        model = GPT(GPTConfig(block_size=2048, norm='rmsnorm', position='rope', mlp='swiglu', bias=False,
                              **case.config)).bfloat16()
        c, lengths = model.config, torch.zeros(P, dtype=torch.long)
        keys = torch.zeros(P, case.T, c.n_kv_head, c.head_dim, dtype=torch.bfloat16)
        cache, forbidden = RowCache(model, keys, G, case.T, case.slots), torch.zeros(c.vocab_size) > 0
        decoder = Decoder(model, cache, N, case.slots, (0,), (1.0, 0, 1.0, forbidden))
        cache.start([(keys, keys)] * c.n_layer, lengths)
        decoder.start(torch.zeros(N, case.slots, dtype=torch.double), lengths.repeat_interleave(G))
        with account:
            decoder.step()
    weights = sum(p.numel() for p in model.parameters())
    kept = (N * case.slots + P * case.T) * 2 * c.n_layer * c.n_kv_head * c.head_dim
    flops = 2 * N * (weights + 2 * (case.T + case.slots) * c.n_layer * c.n_head * c.head_dim)
    what = f"{2 * weights / 1e6:,.0f} MB of weights, {2 * kept / 1e6:,.0f} MB of keys and values"
    return account.rows, max(2 * (weights + kept) / SPEED, flops / PEAK), what


def seconds(rows):
    """Of the rows' launches in a CUDA graph, and without one."""
    graphed = sum(max(n_bytes / SPEED, flops / PEAK, GRAPHED) for _, _, n_bytes, flops in rows)
    return graphed, max(graphed, len(rows) * EAGER)


def roof():
    """Print the CASES as tables in Markdown."""
    print("a token on one H100, by arithmetic (not yet run on a GPU); in brackets: times the floor")
    for case in CASES:
        rows, least, what = decode_step(case)
        parts = defaultdict(list)
        for row in rows:
            parts[row[0]].append(row)
        print(f"\n{case.name}, B = {case.P * case.G}, prompts of {case.T}, {case.slots} own slots; "
              f"floor {1e3 * least:.2f} ms: {what}\n\n"
              "| part | launches | MB | GFLOP | ms, graph | ms, eager |\n|---|---|---|---|---|---|")
        for part, its in [*sorted(parts.items()), ('all', rows)]:
            mb, gflop = sum(row[2] for row in its) / 1e6, sum(row[3] for row in its) / 1e9
            cells = [f'{1e3 * s:.2f} ({s / least:.1f})' for s in seconds(its)]
            print(f"| {part} | {len(its):,} | {mb:,.0f} | {gflop:,.0f} | {' | '.join(cells)} |")
