"""
The lm_head without its logits, and the attention of a group to its prompt. Sampling has kernels/decoding.py.

Hidden states and the head's weight go in; log-probs, entropy and KL of given tokens come out, or a whole loss
with its gradients, in memory that does not grow with rows x vocabulary. Two passes go over each chunk of
logits z (n, V), between two matrix products:
    row_stats      z -> log-prob of each given token, entropy, KL to a reference's logits
    row_grads      dloss/d(those) -> dloss/dz, in place
On a GPU each is a Triton kernel, elsewhere torch on blocks of rows that stay in the cache. They serve
    fused_logps    differentiable log-probs and entropy; backward makes the logits again (8 N D V operations)
    fused_loss     any loss of those numbers, called on each chunk while its logits exist (6 N D V operations)
Attention comes last: Rows (texts without their padding), GroupAttention (on a CPU) and PackedAttention (on a
GPU).
Shapes: N rows · K tokens of each row (the G fills of a slot share one) · V vocabulary · D width ·
U units of R rows, some of which count · P prompts · G completions · T, R tokens · H heads of width d.
"""
import contextlib
import functools
import math
import os
from types import SimpleNamespace

import torch
from torch.nn import functional as F

INTERPRET = os.environ.get('TRITON_INTERPRET') == '1'  # tests run the Triton kernels on a CPU
triton, tl, jit = None, SimpleNamespace(constexpr=None), lambda kernel: kernel  # kernels are read, not run
if INTERPRET or torch.cuda.is_available():
    with contextlib.suppress(ImportError):  # some platforms have no wheels
        import triton
        import triton.language as tl
        from triton import jit

CHUNK = {'cpu': 2 ** 27, 'cuda': 3 * 2 ** 29}  # bytes of logits held at once: 128 MB, 1.6 GB on a GPU
BLOCK = 2 ** 19                            # logits that a CPU works on at once: 2 MB stay in its cache


# ---- a mask over the vocabulary as bits

def pack(allowed):
    """bool (..., V) as bits (..., ceil(V / 8)) uint8, an eighth of the size."""
    padded = F.pad(allowed, (0, -allowed.shape[-1] % 8)).unflatten(-1, (-1, 8)).byte()
    bits = padded << torch.arange(8, dtype=torch.uint8, device=allowed.device)
    return bits.sum(dim=-1, dtype=torch.uint8)


def unpack(bits, V):
    """The bool (..., V) that pack was given."""
    shifted = bits[..., None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (shifted & 1).bool().flatten(-2)[..., :V]


# ---- the two passes in torch

def row_blocks(z):
    size = max(1, BLOCK // z.shape[1])
    return [slice(start, start + size) for start in range(0, len(z), size)]


def scaled(z, scale, forbidden, allowed):
    """
    The logits that are sampled from: over the temperature, -inf for forbidden ids and where the bits allowed
    (n, V / 8) are 0. May be z itself.
    """
    z = z.float() if scale == 1 else z.float() * scale
    if forbidden is not None:
        z = z.masked_fill(forbidden, -torch.inf)
    return z if allowed is None else z.masked_fill(~unpack(allowed, z.shape[1]), -torch.inf)


def pick_rows(tensor, rows):
    return None if tensor is None else tensor[rows]


def new_stats(z, ids):
    """Room for the five that row_stats returns."""
    return torch.empty(ids.shape, device=z.device), *torch.zeros(4, len(z), 1, device=z.device)


def centred(x):
    """p (n, V), y = x - max x (n, V) of scaled logits x, log sum e^y (n, 1) and log sum e^x (n, 1)."""
    largest = x.amax(dim=1, keepdim=True)
    p = x.softmax(dim=1)                          # one fast pass, where exp and sum would be four
    log_sum = -p.amax(dim=1, keepdim=True).log()
    y = (x - largest).clamp_(min=-1e30)           # the clamp makes 0 * -inf zero
    return p, y, log_sum, largest + log_sum


def row_stats_torch(z, ids, scale, forbidden, z_ref=None, allowed=None):
    logps, entropy, lse, kl, lse_ref = new_stats(z, ids)
    for rows in row_blocks(z):
        masks = forbidden, pick_rows(allowed, rows)
        p, y, log_sum, lse[rows] = centred(scaled(z[rows], scale, *masks))
        logps[rows] = y.gather(1, ids[rows]) - log_sum
        entropy[rows] = log_sum - (p * y).sum(dim=1, keepdim=True)
        if z_ref is not None:
            _, y_ref, log_sum_ref, lse_ref[rows] = centred(scaled(z_ref[rows], scale, *masks))
            kl[rows] = p.mul_(y.sub_(y_ref)).sum(dim=1, keepdim=True) - log_sum + log_sum_ref
    return logps, entropy, lse, kl, lse_ref


def row_grads_torch(z, dz, ids, scale, forbidden, stats, grads, z_ref=None, allowed=None):  # noqa: PLR0913
    entropy, lse, kl, lse_ref = stats
    of_logps, of_entropy, of_kl = grads
    dead = ~((of_logps != 0).any(dim=1, keepdim=True) | (of_entropy != 0) | (of_kl != 0))
    any_dead, logps_alone = bool(dead.any()), z_ref is None and not of_entropy.any()
    for rows in row_blocks(z):
        masks = forbidden, pick_rows(allowed, rows)
        x = scaled(z[rows], scale, *masks)
        p = x.softmax(dim=1)
        factor = -scale * of_logps[rows].sum(dim=1, keepdim=True)
        if not logps_alone:
            log_p = (x - lse[rows]).clamp_(min=-1e30)
            factor = factor - scale * of_entropy[rows] * (log_p + entropy[rows])
        if z_ref is not None:
            log_p_ref = (scaled(z_ref[rows], scale, *masks) - lse_ref[rows]).clamp_(min=-1e30)
            factor += scale * of_kl[rows] * (log_p - log_p_ref - kl[rows])
        p.mul_(factor).scatter_add_(1, ids[rows], scale * of_logps[rows])
        dz[rows] = p.masked_fill_(dead[rows], 0.0) if any_dead else p  # a row without a gradient may be NaN


# ---- the two passes in Triton: ROWS rows per program (1 on a GPU), the vocabulary in blocks of BLOCK columns

# forbidden, allowed and z_ref may be None, which is known when a kernel is compiled

@jit
def load(z, row, column, real, forbidden, allowed, V, STRIDE, SCALE: tl.constexpr):
    # what lies behind V is read, so that loads are vectors, and not used
    x = tl.load(z + row * STRIDE + column, mask=real & (column < STRIDE), other=0.0)
    inside = real & (column < V)
    x = tl.where(inside, x.to(tl.float32) * SCALE, -float('inf'))
    if forbidden is not None:
        banned = tl.load(forbidden + column, mask=column < V, other=1)
        x = tl.where(banned != 0, -float('inf'), x)
    if allowed is not None:
        bits = tl.load(allowed + row * tl.cdiv(V, 8) + column // 8, mask=inside, other=0)
        x = tl.where((bits.to(tl.int32) >> (column % 8)) & 1 != 0, x, -float('inf'))
    return x

@jit
def stats_kernel(z, z_ref, ids, forbidden, allowed, logps, entropy, lse, kl, lse_ref, N, V, STRIDE,
                 K: tl.constexpr, SCALE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # N V may exceed 2^31
    real = row < N
    # One pass. m is the maximum so far, s = sum e^(z - m), t = sum e^(z - m) (z - m),
    # u = sum e^(z - m) ((z - m) - (z_ref - m_ref)).
    zero, lowest = tl.zeros((ROWS, 1), tl.float32), tl.full((ROWS, 1), -1e30, tl.float32)
    m, m_ref, s, t, u, s_ref = lowest, lowest, zero, zero, zero, zero
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        x = load(z, row, column, real, forbidden, allowed, V, STRIDE, SCALE)
        new = tl.maximum(m, tl.max(x, axis=1)[:, None])
        e = tl.exp(x - new)
        y = tl.where(e > 0, x - new, 0.0)
        old = tl.exp(m - new)
        shift = tl.where(s > 0, m - new, 0.0)
        if z_ref is not None:
            x_ref = load(z_ref, row, column, real, forbidden, allowed, V, STRIDE, SCALE)
            new_ref = tl.maximum(m_ref, tl.max(x_ref, axis=1)[:, None])
            shift_ref = tl.where(s > 0, m_ref - new_ref, 0.0)
            y_ref = tl.where(e > 0, x_ref - new_ref, 0.0)
            u = old * (u + s * (shift - shift_ref)) + tl.sum(e * (y - y_ref), axis=1)[:, None]
            s_ref = s_ref * tl.exp(m_ref - new_ref) + tl.sum(tl.exp(x_ref - new_ref), axis=1)[:, None]
            m_ref = new_ref
        t = old * (t + s * shift) + tl.sum(e * y, axis=1)[:, None]
        s = s * old + tl.sum(e, axis=1)[:, None]
        m = new
    s, s_ref = tl.where(real, s, 1.0), tl.where(real, s_ref, 1.0)
    log_s = tl.log(s)
    tl.store(lse + row, m + log_s, mask=real)
    tl.store(entropy + row, log_s - t / s, mask=real)
    for k in tl.static_range(K):
        chosen = tl.load(ids + row * K + k, mask=real, other=0)
        x = load(z, row, chosen, real, forbidden, allowed, V, STRIDE, SCALE)
        tl.store(logps + row * K + k, (x - m) - log_s, mask=real)
    if z_ref is not None:
        tl.store(lse_ref + row, m_ref + tl.log(s_ref), mask=real)
        tl.store(kl + row, u / s - log_s + tl.log(s_ref), mask=real)

@jit
def grads_kernel(z, z_ref, ids, forbidden, allowed, dz, DZ_STRIDE, entropy, lse, kl, lse_ref, of_logps,
                 of_entropy, of_kl, N, V, STRIDE, K: tl.constexpr, SCALE: tl.constexpr,
                 ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    real = row < N
    h, n = tl.load(entropy + row, mask=real, other=0.0), tl.load(lse + row, mask=real, other=0.0)
    eta = tl.load(of_entropy + row, mask=real, other=0.0)
    total = tl.zeros((ROWS, 1), tl.float32)
    live = eta != 0
    for k in tl.static_range(K):
        c = tl.load(of_logps + row * K + k, mask=real, other=0.0)
        total += c
        live = live | (c != 0)
    if z_ref is not None:
        d, n_ref = tl.load(kl + row, mask=real, other=0.0), tl.load(lse_ref + row, mask=real, other=0.0)
        kappa = tl.load(of_kl + row, mask=real, other=0.0)
        live = live | (kappa != 0)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        y = load(z, row, column, real, forbidden, allowed, V, STRIDE, SCALE) - n  # log p
        p = tl.exp(y)
        y = tl.where(p > 0, y, 0.0)
        factor = -total - eta * (y + h)
        if z_ref is not None:
            y_ref = load(z_ref, row, column, real, forbidden, allowed, V, STRIDE, SCALE) - n_ref
            factor += kappa * (y - tl.where(p > 0, y_ref, 0.0) - d)
        g = p * factor
        for k in tl.static_range(K):
            c = tl.load(of_logps + row * K + k, mask=real, other=0.0)
            g += tl.where(tl.load(ids + row * K + k, mask=real, other=0) == column, c, 0.0)
        g = tl.where(live, g * SCALE, 0.0).to(dz.dtype.element_ty)
        tl.store(dz + row * DZ_STRIDE + column, g, mask=real & (column < DZ_STRIDE))


def tile(V, most):
    """Rows and columns that a program takes at once, and its warps."""
    size = max(16, triton.next_power_of_2(V))
    # an interpreter's time goes with the number of steps, not with their size
    return (32, size, 4) if INTERPRET else (1, min(most, size), most // 512)


def on_device(kernel, grid, x, *arguments, **options):
    """Launch a kernel where its first argument, x, lies."""
    with torch.cuda.device_of(x):
        kernel[grid](x, *arguments, **options)


def launch(kernel, z, z_ref, ids, scale, masks, *tensors):
    N, V = z.shape
    masks = [None if mask is None else mask.contiguous() for mask in masks]
    rows, block, warps = tile(V, 8192)
    if N:
        on_device(kernel, (triton.cdiv(N, rows),), z, z_ref, ids, *masks, *tensors, N, V, z.stride(0),
                  K=ids.shape[1], SCALE=float(scale), ROWS=rows, BLOCK=block, num_warps=warps)


def row_stats_triton(z, ids, scale, forbidden, z_ref=None, allowed=None):
    stats = new_stats(z, ids)
    launch(stats_kernel, z, z_ref, ids, scale, (forbidden, allowed), *stats)
    return stats


def row_grads_triton(z, dz, ids, scale, forbidden, stats, grads, z_ref=None, allowed=None):  # noqa: PLR0913
    grads = [g.contiguous() for g in grads]
    launch(grads_kernel, z, z_ref, ids, scale, (forbidden, allowed), dz, dz.stride(0), *stats, *grads)


# ---- the two passes on any device

def row_stats(z, *arguments):
    """
    Log-probs (N, K) and, (N, 1) each, entropy, log normaliser, exact KL to z_ref, log normaliser of z_ref, in
    fp32, the last two 0 without a reference. Arguments: ids (N, K), scale = 1 / temperature, forbidden (V,)
    bool or None, z_ref (N, V) or None, with rows of z's stride, allowed (N, V / 8) bits or None.
    """
    return (row_stats_triton if z.is_cuda and triton else row_stats_torch)(z, *arguments)


def row_grads(z, dtype, *arguments):
    """
    dloss/dz (N, V) in dtype, in z's own memory where that is its dtype. Arguments: ids, scale, forbidden;
    stats, what row_stats returned after the log-probs; grads, dloss/d of log-probs (N, K), entropy and KL
    (N, 1); z_ref; allowed.
    """
    dz = z if z.dtype == dtype else torch.empty(len(z), z.stride(0), dtype=dtype, device=z.device)
    dz = dz[:, :z.shape[1]]
    (row_grads_triton if z.is_cuda and triton else row_grads_torch)(z, dz, *arguments)
    return dz


# ---- chunks of rows, and the matrix products around the passes

def new_logits(n, weight):
    """
    Room (n, V) for logits in the weight's dtype; on a GPU fp32 if a row stays in the second-level cache, and
    16 divides the stride of rows: kernels read any vocabulary in vectors.
    """
    V, on_gpu = len(weight), weight.is_cuda
    dtype = torch.float32 if on_gpu and V <= 2 ** 16 else weight.dtype
    return torch.empty(n, V + -V % 16 if on_gpu else V, device=weight.device, dtype=dtype)[:, :V]


def logits_of(hidden, weight, room=None):
    """
    Logits (n, V) of hidden (n, D), as new_logits keeps them, for sampler and trainer alike; in the memory of
    room. Without it differentiable.
    """
    if room is None and torch.is_grad_enabled():
        return F.linear(hidden, weight)
    z = new_logits(len(hidden), weight) if room is None else room[:len(hidden)]
    if z.dtype == weight.dtype:
        torch.mm(hidden, weight.T, out=z)
    else:
        torch.mm(hidden, weight.T, out_dtype=z.dtype, out=z)
    return z


def chunks(counts, weight):
    """
    Slices of units, of `counts` rows each, whose logits fill CHUNK bytes, at least one unit a slice; and room
    for the logits of the largest.
    """
    row_bytes = new_logits(1, weight).nbytes
    most = CHUNK['cuda' if weight.is_cuda else 'cpu'] // row_bytes
    slices, start, held, largest = [], 0, 0, 0
    for unit, n in enumerate(counts):
        if unit > start and held + n > most:
            slices.append(slice(start, unit))
            start, held = unit, 0
        held += n
        largest = max(largest, held)
    if counts:
        slices.append(slice(start, len(counts)))
    return slices, new_logits(largest, weight)


def push_back(dz, hidden, weight, grad_weight):
    """The gradient of hidden from that of its logits; the weight's is added to grad_weight, fp32 or None."""
    if grad_weight is None:
        pass
    elif dz.dtype == torch.float32:
        grad_weight.addmm_(dz.T, hidden)
    elif dz.is_cuda:
        torch.addmm(grad_weight, dz.T, hidden, out_dtype=torch.float32, out=grad_weight)
    else:
        grad_weight += dz.T @ hidden
    return dz @ weight


# ---- log-probs and entropy

def row_chunks(hidden, weight, allowed):
    """(rows, their logits, their bits allowed), chunk by chunk, in the same memory."""
    slices, room = chunks([1] * len(hidden), weight)
    for rows in slices:
        yield rows, logits_of(hidden[rows], weight, room), pick_rows(allowed, rows)


class FusedLogps(torch.autograd.Function):

    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature, forbidden, allowed):
        logps = torch.empty(ids.shape, device=hidden.device)
        stats = torch.empty(4, len(ids), 1, device=hidden.device)
        for rows, z, kept in row_chunks(hidden, weight, allowed):
            logps[rows], *of_chunk = row_stats(z, ids[rows], 1 / temperature, forbidden, None, kept)
            stats[:, rows] = torch.stack(of_chunk)
        ctx.save_for_backward(hidden, weight, ids, forbidden, allowed, stats)
        ctx.temperature = temperature
        return logps, stats[0].squeeze(1)

    @staticmethod
    def backward(ctx, grad_logps, grad_entropy):
        hidden, weight, ids, forbidden, allowed, stats = ctx.saved_tensors
        grads = grad_logps, grad_entropy[:, None], torch.zeros_like(stats[0])
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, device=weight.device) if ctx.needs_input_grad[1] else None
        for rows, z, kept in row_chunks(hidden, weight, allowed):
            dz = row_grads(z, weight.dtype, ids[rows], 1 / ctx.temperature, forbidden, stats[:, rows],
                           [g[rows] for g in grads], None, kept)
            grad_hidden[rows] = push_back(dz, hidden[rows], weight, grad_weight)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def fused_logps(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, temperature: float = 1.0,
                forbidden: torch.Tensor | None = None, allowed: torch.Tensor | None = None
                ) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probs of ids, (N,) or (N, K), and entropy (N,), fp32, differentiable, under softmax(hidden (N, D) @
    weight (V, D).T / temperature) without the forbidden (V,) bool tokens and those that are 0 among the bits
    allowed (N, V / 8), see pack.
    """
    columns = ids if ids.dim() == 2 else ids[:, None]
    logps, entropy = FusedLogps.apply(hidden, weight, columns, temperature, forbidden, allowed)
    return logps.view(ids.shape), entropy


# ---- a whole loss

def real_rows(mask, counts):
    """The rows (n,) of mask (U, K, R) with a token: `counts` of each unit."""
    return mask.any(dim=1).flatten().nonzero_static(size=sum(counts)).squeeze(1)


def pick(tensor, units, real):
    """The rows real (n,) of the units of a tensor (U, R, ...), or None for None."""
    return None if tensor is None else tensor[units].flatten(0, 1).index_select(0, real)


class FusedLoss(torch.autograd.Function):

    @staticmethod
    def forward(ctx, hidden, weight, ids, mask, counts, loss_of, temperature, forbidden, allowed, ref_hidden,
                ref_weight, grad_enabled):
        U, R, D = hidden.shape
        scale = 1 / temperature
        wants_grad = grad_enabled and any(ctx.needs_input_grad[:2])
        # in fp16 a share of a mean over many tokens would underflow before a loss scale reaches it
        ctx.boost = float(max(1, sum(counts))) if weight.dtype == torch.float16 else 1.0
        loss = torch.zeros((), device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if wants_grad else None
        grad_weight = None
        if grad_enabled and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(weight.shape, device=weight.device)
        slices, room = chunks(counts, weight)
        room_ref = None if ref_hidden is None else new_logits(len(room), ref_weight)
        for units in slices:
            masks = mask[units]
            real = real_rows(masks, counts[units])                              # (n,)
            x, kept = pick(hidden, units, real), pick(allowed, units, real)     # (n, D), (n, V / 8)
            tokens = pick(ids.transpose(1, 2), units, real)                     # (n, K)
            z, z_ref = logits_of(x, weight, room), None
            if ref_hidden is not None:
                z_ref = logits_of(pick(ref_hidden, units, real), ref_weight, room_ref)
            logps, *stats = row_stats(z, tokens, scale, forbidden, z_ref, kept)
            with torch.set_grad_enabled(wants_grad):
                per_row = logps, stats[0], stats[2]                             # log-probs, entropy, KL
                leaves = [values.detach().requires_grad_(wants_grad) for values in per_row]
                share = loss_of(units, *(place_rows(values, real, masks) for values in leaves))
                loss += share.detach()
            if wants_grad:
                grads = torch.autograd.grad(share, leaves, allow_unused=True, materialize_grads=True)
                grads = [g * ctx.boost for g in grads]
                dz = row_grads(z, weight.dtype, tokens, scale, forbidden, stats, grads, z_ref, kept)
                grad_x = push_back(dz, x, weight, grad_weight)
                grad_hidden[units].view(-1, D).index_copy_(0, real, grad_x)
        ctx.grads, ctx.dtype = (grad_hidden, grad_weight), weight.dtype
        return loss

    @staticmethod
    def backward(ctx, grad):
        (grad_hidden, grad_weight), ctx.grads = ctx.grads, None  # handed over, so that only one copy exists
        scale = grad / ctx.boost                                 # a tensor: nothing waits for the device
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale).to(ctx.dtype)
        return grad_hidden.mul_(scale), grad_weight, *[None] * 10


def place_rows(values, real, mask):
    """Values (n, 1 or K) of the rows real (n,) as (u, 1 or K, R), like mask; zeros elsewhere."""
    u, _, R = mask.shape
    rows = values.new_zeros(u * R, values.shape[1]).index_copy(0, real, values)
    return rows.view(u, R, -1).transpose(1, 2)


def fused_loss(hidden, weight, ids, mask, loss_of, temperature=1.0, forbidden=None, allowed=None,
               ref_hidden=None, ref_weight=None, counts=None):
    """
    A loss of log-probs and, in the same sweep, its gradients for hidden (U, R, D) and weight (V, D).

    Rows count that have a token in mask (U, K, R); ids (U, K, R). Units, as many as fit a chunk, go to
    loss_of(units: slice, logps (u, K, R), entropy (u, 1, R), kl (u, 1, R)) -> scalar; the loss is the sum.
    temperature, forbidden, allowed (U, R, V / 8): see fused_logps. kl is exact, to what ref_hidden and
    ref_weight give. counts: how many rows of each unit count, a list; without it the device is asked.
    Backward can be called once.
    """
    counts = mask.any(dim=1).sum(dim=1).tolist() if counts is None else counts
    return FusedLoss.apply(hidden, weight, ids, mask, counts, loss_of, temperature, forbidden, allowed,
                           ref_hidden, ref_weight, torch.is_grad_enabled())


def unit_logps(hidden, weight, ids, mask, counts, temperature, forbidden, allowed):
    """Log-probs (U, K, R), entropy (U, 1, R), differentiable, 0 in rows without a token; see fused_loss."""
    real, every = real_rows(mask, counts), slice(None)
    logps, entropy = fused_logps(pick(hidden, every, real), weight, pick(ids.transpose(1, 2), every, real),
                                 temperature, forbidden, pick(allowed, every, real))
    return place_rows(logps, real, mask), place_rows(entropy[:, None], real, mask)


# ---- rows without their padding

class Rows:
    """
    n real tokens among the places of a padded layout. What there is for each token goes from (*shape, *) to
    (n, *), row after row, and back with zeros as padding.
    """

    def __init__(self, starts, lengths, shape, device):
        """The tokens of a row stand behind its start, lengths (N,) and starts (N,) being on the CPU."""
        self.shape, self.n, self.index = shape, int(lengths.sum()), None
        if self.n < math.prod(shape) or (starts.diff() < 0).any():
            r = torch.arange(int(lengths.max()))
            self.index = (starts[:, None] + r)[r < lengths[:, None]].to(device, non_blocking=True)

    def pack(self, x):
        """(*shape, *) -> (n, *)"""
        x = x.flatten(0, len(self.shape) - 1)
        return x if self.index is None else x.index_select(0, self.index)

    def pad(self, x):
        """(n, *) -> (*shape, *)"""
        if self.index is not None:
            places = x.new_zeros(math.prod(self.shape), *x.shape[1:])
            x = places.index_copy(0, self.index, x)
        return x.view(*self.shape, *x.shape[1:])


def padded_rows(lengths, width, device):
    """Rows (N, width) of lengths (N,), on the CPU."""
    return Rows(torch.arange(len(lengths)) * width, lengths, (len(lengths), width), device)


def group_rows(lengths, width, device):
    """
    The tokens of completions of lengths (P, G), on the CPU, shortest first, as three layouts: Rows (P, G,
    width); a list of Rows (N, R), completions of like length together; Rows (P, m), those of each prompt.
    """
    (P, G), most = lengths.shape, int(lengths.sum(dim=1).max())
    before = lengths.cumsum(dim=1) - lengths + most * torch.arange(P)[:, None]
    order = lengths.flatten().argsort(stable=True)
    order = order[lengths.flatten()[order] > 0]
    lengths, alike = lengths.flatten()[order], []
    size = (lengths - 1).clamp(min=15).log2().floor()  # up to 16, 32, 64, ... tokens
    for part in lengths.split(size.unique_consecutive(return_counts=True)[1].tolist()):
        alike.append(padded_rows(part, int(part[-1]), device))
    return (Rows(order * width, lengths, (P, G, width), device), alike,
            Rows(before.flatten()[order], lengths, (P, most), device))


# ---- attention of a group to its prompt, on a CPU

def wide(x):
    """x in fp32 where it is in half precision: a CPU's attention is six times slower backward in bf16."""
    return x.float() if x.dtype.itemsize == 2 else x


def fold(x, rows, n_heads):
    """(n, H, d) as (N, n_heads, m H / n_heads, d): the m places of each row, for heads that share keys."""
    x = rows.pad(x.unflatten(1, (n_heads, -1)))                 # (N, m, n_heads, H / n_heads, d)
    return x.transpose(1, 2).flatten(2, 3)


def unfold(x, rows):
    """The way back, to (n, H, d)."""
    return rows.pack(x.unflatten(2, (rows.shape[-1], -1)).transpose(1, 2)).flatten(1, 2)


class GroupAttention(torch.autograd.Function):
    """
    Completions attend to themselves and to their prompt, stored once per group: two calls of a CPU's flash
    attention, merged by their normalisers. Given the merged ones, the backward of each is its part of the sum
    (as in ring attention, arXiv 2310.01889).
    """

    @staticmethod
    def forward(ctx, q, k, v, prompt_k, prompt_v, bias, own, groups):
        """
        q (n, H, d), k, v (n, H_kv, d) of n tokens; the prompt's (P, T, H_kv, d), bias (P, 1, 1, T); own,
        groups: the tokens by completions and by prompts, see group_rows.
        """
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        prompt, found = (prompt_k.transpose(1, 2), prompt_v.transpose(1, 2)), []
        for rows, *part in by_part(own, q, k, v):
            y, lse = attention(*(fold(x, rows, x.shape[1]) for x in part), 0.0, True)
            found.append((unfold(y, rows), unfold(lse[..., None], rows)))
        y, lse = map(torch.cat, zip(*found, strict=True))                       # (n, H, d), (n, H, 1)
        y_prompt, lse_prompt = attention(fold(q, groups, k.shape[1]), *prompt, 0.0, False, attn_mask=bias)
        y_prompt, lse_prompt = unfold(y_prompt, groups), unfold(lse_prompt[..., None], groups)
        y = torch.lerp(y_prompt, y, (lse - lse_prompt).sigmoid())
        lse = torch.logaddexp(lse, lse_prompt)
        ctx.save_for_backward(q, k, v, prompt_k, prompt_v, bias, y, lse)
        ctx.rows = own, groups
        return y

    @staticmethod
    def backward(ctx, grad):
        q, k, v, prompt_k, prompt_v, bias, y, lse = ctx.saved_tensors
        attention_back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        (own, groups), found = ctx.rows, []
        for rows, *part in by_part(own, grad, q, k, v, y, lse):
            *part, normaliser = [fold(x, rows, x.shape[1]) for x in part]
            grads = attention_back(*part, normaliser.squeeze(-1), 0.0, True)
            found.append([unfold(x, rows) for x in grads])
        grad_q, *grad_own = map(torch.cat, zip(*found, strict=True))
        prompt = prompt_k.transpose(1, 2), prompt_v.transpose(1, 2)
        grad, q, y, lse = (fold(x, groups, k.shape[1]) for x in (grad, q, y, lse))
        more, *grad_prompt = attention_back(grad, q, *prompt, y, lse.squeeze(-1), 0.0, False, attn_mask=bias)
        grad_q = grad_q + unfold(more, groups)
        return grad_q, *grad_own, *(x.transpose(1, 2) for x in grad_prompt), *[None] * 3


def by_part(own, *tensors):
    """Each of the layouts of `own` with its tokens of all tensors (n, *)."""
    sizes = [rows.n for rows in own]
    return zip(own, *(x.split(sizes) for x in tensors), strict=True)


# ---- attention on a GPU: packed sequences

def spans(queries, keys, device, causal=False):
    """
    N packed sequences of so many queries and keys (N,), on the CPU, as flash attention takes them. Queries
    see all keys of their sequence or, causal, those up to their own.
    """
    ends = [F.pad(n.cumsum(0), (1, 0)).to(torch.int32).to(device, non_blocking=True) for n in (queries, keys)]
    return *ends, int(queries.max()), int(keys.max()), 0.0, causal


def takes_flash(x):
    """Whether flash attention takes x (..., d): half precision, d in eights, a GPU of 2020 on."""
    fits = x.is_cuda and x.dtype.itemsize == 2 and x.shape[-1] in range(8, 257, 8)
    return fits and torch.cuda.get_device_capability(x.device) >= (8, 0)


def attend_forward(q, k, v, part):
    """Of q (n, H, d) to k, v (m, H_kv, d): attention (n, H, d), normalisers (H, n)."""
    return torch.ops.aten._flash_attention_forward(q, k, v, *part, False)[:2]


def attend_backward(grad, q, k, v, y, lse, part):
    """The gradients of q, k and v; y and lse may be the merged ones."""
    no_dropout = q.new_zeros(2, dtype=torch.uint64), q.new_empty(0)
    return torch.ops.aten._flash_attention_backward(grad, q, k, v, y, lse, *part, *no_dropout)


class PackedAttention(torch.autograd.Function):
    """Queries (n, H, d) see one or more lists of keys: a call for each, merged as in GroupAttention."""

    @staticmethod
    def forward(ctx, parts, q, *keys_values):
        """keys_values: of each of parts, which are spans, k and v (m, H_kv, d)."""
        y, lse = attend_forward(q, *keys_values[:2], parts[0])
        for part, *keys in zip(parts[1:], keys_values[2::2], keys_values[3::2], strict=True):
            more, more_lse = attend_forward(q, *keys, part)
            share = (more_lse - lse).sigmoid().T[..., None]  # (n, H, 1)
            y = torch.lerp(y.to(share.dtype), more.to(share.dtype), share).to(q.dtype)
            lse = torch.logaddexp(lse, more_lse)
        ctx.parts = parts
        ctx.save_for_backward(q, y, lse, *keys_values)
        return y

    @staticmethod
    def backward(ctx, grad):
        q, y, lse, *keys_values = ctx.saved_tensors
        pairs = zip(ctx.parts, keys_values[::2], keys_values[1::2], strict=True)
        grads = [attend_backward(grad, q, k, v, y, lse, part) for part, k, v in pairs]
        grad_q = functools.reduce(torch.add, [of_q for of_q, _, _ in grads])
        return None, grad_q, *(x for _, *of_keys in grads for x in of_keys)


def joined_attention(q, k, v, prompt_k, prompt_v, bias, rows):
    """GroupAttention in plain torch, for what a GPU's flash attention refuses. rows: (P, G, R)."""
    R, T, H_kv = rows.shape[2], *prompt_k.shape[1:3]
    q, k, v = rows.pad(q.unflatten(1, (H_kv, -1)) * q.shape[-1] ** -0.5), rows.pad(k), rows.pad(v)
    scores = torch.einsum('pgrhsd,pthd->pghsrt', q, prompt_k)
    if bias is not None:
        scores = scores + bias[:, None, None]
    later = torch.ones(R, R, dtype=torch.bool, device=q.device).triu(1)
    own_scores = torch.einsum('pgrhsd,pguhd->pghsru', q, k).masked_fill(later, -torch.inf)
    weights, own = torch.cat((scores, own_scores), dim=-1).softmax(dim=-1).split([T, R], dim=-1)
    y = torch.einsum('pghsrt,pthd->pgrhsd', weights, prompt_v) + torch.einsum('pghsru,pguhd->pgrhsd', own, v)
    return rows.pack(y.flatten(3, 4))
