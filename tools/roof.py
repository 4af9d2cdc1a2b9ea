"""
Decode by arithmetic: bytes, operations and launches of a token on a GPU, against the least it could take.

The real `Decoder.step` runs on the meta device, where tensors have shapes alone. An operation, or a Triton
kernel, is one launch that reads its inputs and writes its outputs once. Nothing here has run on a GPU.
"""
import sys
from functools import partial
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import decoding
from model import GPT, GPTConfig
from policy import Decoder
from runtime.graphs import RowCache

# of an H100: bytes and bf16 FLOPs a second that good kernels get, seconds of the shortest launch
SPEED, PEAK, GRAPHED, EAGER = 0.9 * 3.35e12, 0.75 * 989e12, 2.5e-6, 6e-6
SMOLLM2 = {'n_layer': 30, 'n_head': 9, 'n_kv_head': 3, 'n_embd': 576, 'mlp_hidden': 1536, 'vocab_size': 49152}
QWEN2 = {'n_layer': 24, 'n_head': 14, 'n_kv_head': 2, 'n_embd': 896, 'mlp_hidden': 4864, 'qkv_bias': True,
         'vocab_size': 151936}
PARTS = {'attend': 'attention', 'draw_rows': 'draw', 'write': 'head'}  # by the function that launches
# of (name, sizes, P prompts, G completions of each, T tokens of a prompt, slots that a completion has)
CASES = [('SmolLM2-135M', SMOLLM2, 64, 8, 128, 64), ('Qwen2.5-0.5B', QWEN2, 64, 8, 256, 192),
         ('Qwen2.5-0.5B', QWEN2, 4, 8, 256, 192)]


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


def of_attend_rows(q, k, v, rope, slots, *others):
    *_, rows, _, (_, T, R), width = others
    kept = R * len(rows) + T * -(-len(rows) // width)  # rows that read a prompt together read it once
    return size(q, k, v, q) + kept * size(slots[:, 0]), 4 * q.numel() * (T + R)


# NAME of a decoding.NAME_triton: a function of the same arguments that gives (bytes, FLOPs)
TRAFFIC = {'attend_rows': of_attend_rows, 'draw_rows': lambda logits, *_: (size(logits, logits), 0)}


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
        """One launch, in place of decoding.NAME_triton; its torch twin gives the tensors that come out."""
        kept = len(self.rows)
        out = getattr(decoding, f'{name}_torch')(*args, **kwargs)
        del self.rows[kept:]
        once = size(args, kwargs, out), 0
        self.launch(name, *(TRAFFIC[name](*args, **kwargs) if name in TRAFFIC else once))
        return out


def decode_step(sizes, P, G, T, slots):
    """The rows of a step at temperature 1, and seconds that weights, keys and values take at least."""
    account, N = Account(), P * G
    names = [name.removesuffix('_triton') for name in vars(decoding) if name.endswith('_triton')]
    counted = {f'{name}_triton': partial(account.kernel, name) for name in names}
    on_gpu = patch.object(torch.Tensor, 'is_cuda', True)
    with torch.device('meta'), on_gpu, torch.inference_mode(), patch.multiple(decoding, **counted):
        config = GPTConfig(2048, norm='rmsnorm', position='rope', mlp='swiglu', bias=False, **sizes)
        model, lengths = GPT(config).bfloat16(), torch.zeros(P, dtype=torch.long)
        keys = torch.zeros(P, T, config.n_kv_head, config.head_dim, dtype=torch.bfloat16)
        forbidden = torch.zeros(config.vocab_size) > 0
        decoder = Decoder(model, RowCache(model, keys, G, T, slots), N, slots, [0], (1.0, 0, 1.0, forbidden))
        decoder.start(torch.zeros(N, slots, dtype=torch.double), lengths.repeat_interleave(G))
        with account:
            decoder.step()
    weights, per_head = sum(p.numel() for p in model.parameters()), config.n_layer * config.head_dim
    kept = (N * slots + P * T) * 2 * config.n_kv_head * per_head
    flops = 2 * N * (weights + 2 * (T + slots) * config.n_head * per_head)
    return account.rows, max(2 * (weights + kept) / SPEED, flops / PEAK)


def seconds(rows):
    """Of the rows' launches in a CUDA graph, and without one."""
    graphed = sum(max(n_bytes / SPEED, flops / PEAK, GRAPHED) for _, _, n_bytes, flops in rows)
    return graphed, max(graphed, len(rows) * EAGER)


def roof():
    """Print the CASES as tables in Markdown."""
    print("a token on one H100, by arithmetic (not yet run on a GPU); in brackets: times the floor")
    for name, sizes, P, G, T, slots in CASES:
        rows, floor = decode_step(sizes, P, G, T, slots)
        print(f"\n{name}, B = {P * G}, prompts of {T}, {slots} own slots; floor {1e3 * floor:.2f} ms\n\n"
              f"| part | launches | MB | GFLOP | ms, graph | ms, eager |\n{'|---' * 6}|")
        for part in [*sorted({row[0] for row in rows}), 'all']:
            its = [row for row in rows if part in (row[0], 'all')]
            MB, GFLOP = sum(row[2] for row in its) / 1e6, sum(row[3] for row in its) / 1e9
            cells = [f'{1e3 * s:.2f} ({s / floor:.1f})' for s in seconds(its)]
            print(f"| {part} | {len(its):,} | {MB:,.0f} | {GFLOP:,.0f} | {' | '.join(cells)} |")
