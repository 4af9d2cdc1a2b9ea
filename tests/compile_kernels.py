"""
What the compiler makes of each Triton kernel for a GPU that is not there, as a program: `python tests/compile_kernels.py 90 NAME NAME`
prints what became of these LAUNCHES on sm_90 as JSON. TRITON_INTERPRET must not be set: the tests run it in a process of its own.

A launch is a call of the function that launches, on tensors without contents. A kernel that it comes to is not run: it is compiled for
the types, sizes and options that it was called with, as Triton would do on a GPU.
"""
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
with patch.object(torch.cuda, 'is_available', return_value=True):  # else Triton is left out
    import kernels
    from kernels import decoding

BF16, FP16, FP32, N = torch.bfloat16, torch.float16, torch.float32, 1000
KERNELS = {name: module for module in (kernels, decoding) for name in vars(module) if name.endswith('_kernel')}


def t(dtype, *shape):
    return torch.empty(shape, dtype=dtype, device='meta')


def ids(K=1):
    return t(torch.long, N, K)


def columns(n, K=1):
    """n of what row_grads takes for each row; the first for each of K tokens."""
    return [t(FP32, N, K), *[t(FP32, N, 1)] * (n - 1)]


def banned(V):
    return t(torch.bool, V)


def room(dtype, V):
    """Logits as kernels.new_logits keeps them on a GPU."""
    return t(dtype, N, V + -V % 16)[:, :V]


def bits(V):
    return t(torch.uint8, N, -(-V // 8))


def stats(dtype, V, K=1, forbidden=True, reference=True, allowed=False, room=room):
    z = room(dtype, V)
    kernels.row_stats_triton(z, ids(K), 1.25, banned(V) if forbidden else None, z if reference else None, bits(V) if allowed else None)


def grads(dtype, dz, V, K=1, forbidden=True, reference=True, allowed=False):
    z, masks = room(dtype, V), (banned(V) if forbidden else None, bits(V) if allowed else None)
    kernels.row_grads_triton(z, room(dz, V), ids(K), 1.25, masks[0], columns(4), columns(3, K), z if reference else None, masks[1])


def rows_side_by_side(dtype, V):
    """What the tests must find wrong where 16 does not divide V: rows that start anywhere."""
    return t(dtype, N, V)


def norm_and_swiglu(dtype, D, more=True):
    x, norm = t(dtype, N, D), torch.nn.RMSNorm(D, eps=1e-5, device='meta', dtype=dtype)
    decoding.add_norm_triton(x, x if more else None, norm)
    decoding.swiglu_triton(t(dtype, N, 8 * D))


def attend(dtype, heads, H_kv, d, width, rope=True):
    """`heads` queries for each of H_kv keys, cut from one row of a product."""
    B, G, T, R = 512, 8, 256, 200
    q, k, v = t(dtype, B, (heads + 2) * H_kv, d).split([heads * H_kv, H_kv, H_kv], dim=1)
    tables, slots = [t(dtype, T + R, d)] * 2 if rope else None, t(dtype, 2, 64 * T + (B + 1) * R, H_kv, d)
    decoding.attend_rows_triton(q, k, v, tables, slots, t(torch.long, 65), t(torch.long, B), t(torch.long, 1), (G, T, R), width)


def draw(dtype, V, temperature=0.8, ends=2, top_k=0, top_p=1.0):
    at, long, allowed = t(torch.long, 1), torch.long, t(torch.uint8, N + 1, 200, -(-V // 8)) if top_k or top_p < 1 else None
    u, tokens, logps = (t(dtype, N + 1, 200) for dtype in (torch.double, long, FP32))
    decoding.draw_rows_triton(room(dtype, V), u, t(long, N), at, tokens, logps, allowed, t(long, N), t(long, ends) if ends else None,
                              (temperature, top_k, top_p, banned(V)))


def too_large_a_block():
    """What the tests must find wrong: far more columns than registers."""
    launch = kernels.stats_kernel[(N,)]
    launch(t(FP32, N, 49152), None, ids(), None, None, *columns(5), N, 49152, 49152, K=1, SCALE=1.0, ROWS=1, BLOCK=32768, num_warps=2)


# A kernel gets a line for each way in which it is launched: name, function. Quick tests take those of QUICK, slow ones all.
LAUNCHES = {
    'stats, 49152': partial(stats, FP32, 49152, forbidden=False, reference=False),
    'stats, 49152, all': partial(stats, FP32, 49152),
    'stats, 151936, all': partial(stats, BF16, 151936),
    'stats, 151936, fp16, 8 tokens': partial(stats, FP16, 151936, K=8),
    'stats, 50257': partial(stats, FP32, 50257),
    'stats, 152001, all': partial(stats, BF16, 152001),
    'stats, 99, 8 tokens': partial(stats, FP32, 99, K=8),
    'stats, 152001, top-p': partial(stats, BF16, 152001, reference=False, allowed=True),
    'grads, 152001, top-p': partial(grads, BF16, BF16, 152001, reference=False, allowed=True),
    'rows side by side': partial(stats, FP32, 50257, room=rows_side_by_side),
    'grads, 49152': partial(grads, FP32, BF16, 49152, forbidden=False, reference=False),
    'grads, 49152, all': partial(grads, FP32, BF16, 49152),
    'grads, 151936, all': partial(grads, BF16, BF16, 151936),
    'grads, 151936, fp16, 8 tokens': partial(grads, FP16, FP16, 151936, K=8),
    'grads, 50257': partial(grads, FP32, BF16, 50257),
    'norm, SwiGLU, 576': partial(norm_and_swiglu, BF16, 576),
    'norm, SwiGLU, 896 alone': partial(norm_and_swiglu, BF16, 896, more=False),
    'norm, SwiGLU, 4096, fp32': partial(norm_and_swiglu, FP32, 4096),
    'attend, SmolLM2': partial(attend, BF16, 3, 3, 64, 8),
    'attend, Qwen2.5': partial(attend, BF16, 7, 2, 64, 4),
    'attend, GPT-2': partial(attend, BF16, 1, 12, 64, 8, rope=False),
    'attend, 128 wide': partial(attend, BF16, 4, 8, 128, 8),
    'attend, 80 wide, fp16': partial(attend, FP16, 1, 32, 80, 8),
    'attend, fp32': partial(attend, FP32, 3, 3, 64, 4),
    'attend, 128 wide, fp32': partial(attend, FP32, 2, 8, 128, 8),
    'draw, 49152': partial(draw, FP32, 49152),
    'draw, 151936, greedy': partial(draw, BF16, 151936, 0.0, ends=0),
    'draw, 50257': partial(draw, FP32, 50257),
    'draw, 50257, top-k, top-p': partial(draw, FP32, 50257, top_k=50, top_p=0.9),
    'draw, 152001, top-p': partial(draw, BF16, 152001, top_p=0.9),
    'draw, 152001, top-k, greedy': partial(draw, BF16, 152001, 0.0, top_k=50),
    'grads, 152001, all': partial(grads, BF16, BF16, 152001),
    'too large a block': too_large_a_block,
}
PLANTED = ['too large a block', 'rows side by side']
QUICK = ['stats, 151936, all', 'stats, 50257', 'attend, SmolLM2', *PLANTED]


def source_of(kernel, arguments):
    """(what Triton compiles for these arguments of a launch, its options): the types, and what is known of each by its value."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments.pop(parameter.name)
        kind, known = ('constexpr', value) if parameter.is_constexpr else specialise(CUDABackend, value, False, True, True)
        signature[parameter.name] = kind
        if kind == 'constexpr':
            constants[(i,)] = known
        elif known == 'D':
            attributes[(i,)] = [['tt.divisibility', 16]]
    return ASTSource(kernel, signature, constants, attributes), arguments


def widths(ptx, instruction):
    """{bytes: how many} of the instructions that read (ld) or write (st) the GPU's memory."""
    found = re.findall(rf'\b{instruction}\.global[.\w:]*?(?:\.v(\d))?\.[bfsu](\d+)', ptx)
    return Counter(int(vector or 1) * int(bits) // 8 for vector, bits in found)


class Compiled:
    """In the place of a kernel: a launch compiles it, and adds what came out to `found`."""

    def __init__(self, kernel, sm, found):
        self.kernel, self.sm, self.found = kernel, sm, found

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *args, **kwargs):
        named = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
        source, options = source_of(self.kernel, named)
        made = triton.compile(source, target=GPUTarget('cuda', self.sm, 32), options=options)
        with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
            file.write(made.asm['cubin'])
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, '-res-usage', file.name]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = {name: int(number) for name, number in re.findall(r'(REG|STACK|LOCAL):(\d+)', said)}
        self.found.append({'kernel': self.kernel.__name__, 'registers': used['REG'], 'spilled': used['STACK'] + used['LOCAL'],
                           'loads': widths(made.asm['ptx'], 'ld'), 'stores': widths(made.asm['ptx'], 'st')})


def compile_launches(sm, names):
    """{name: what came out of each kernel that this launch comes to}"""
    results = {}
    for name in names:
        results[name] = []
        with ExitStack() as stack:
            for kernel, module in KERNELS.items():
                stand_in = Compiled(getattr(module, kernel), sm, results[name])
                stack.enter_context(patch.object(module, kernel, stand_in))
            LAUNCHES[name]()
    return results


if __name__ == '__main__':
    import triton
    from triton._C.libtriton import native_specialize_impl as specialise
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.compiler import ASTSource

    print(json.dumps(compile_launches(int(sys.argv[1]), sys.argv[2:] or LAUNCHES)))
