"""
The head without its logits: hidden states and the lm_head's weight in, log-probs, entropy and KL of chosen tokens out, or a whole
loss and its gradients, so that memory does not grow with rows x vocabulary.

All is made of two passes over a chunk of logits z (n, V), between two of the library's matrix products:
    row_stats      z -> log-prob of each asked token, entropy, KL to a reference's logits
    row_grads      dloss/d(those) -> dloss/dz, in place
on a GPU a Triton kernel each, elsewhere torch by blocks of rows that stay in the cache. There are two ways around them:
    fused_logps    differentiable log-probs and entropy; backward computes the logits again (8 N D V operations in all)
    fused_loss     calls any loss of those numbers for each chunk while its logits are there, so nothing is computed twice (6 N D V)
The loss stays where one reads it, in grpo.py: a chunk asks it for its gradient with respect to a few numbers a row.
Shapes: N rows · K tokens asked of each row (the G fills of one slot share one) · V vocabulary · D width · U units of R rows, of which some are real.
"""
import os

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # there are no wheels for some platforms
    triton = None

CHUNK = {'cpu': 2 ** 27, 'cuda': 2 ** 32}  # bytes of logits held at once: 128 MB on a CPU, 4 GB on a GPU
BLOCK = 2 ** 19                            # of which a CPU looks at so many at a time: 2 MB stay in its cache
INTERPRET = os.environ.get('TRITON_INTERPRET') == '1'  # the kernels run on a CPU, for tests


# ---------------------------------------------------------------------------------------------------------------------
# the two passes in torch

def row_blocks(z):
    size = max(1, BLOCK // z.shape[1])
    return [slice(start, start + size) for start in range(0, len(z), size)]


def scaled(z, scale, forbidden):
    """What is sampled from: logits over the temperature, forbidden ids at -inf. May be z itself."""
    z = z.float() if scale == 1 else z.float() * scale
    return z if forbidden is None else z.masked_fill(forbidden, -torch.inf)


def row_stats_torch(z, ids, scale, forbidden, z_ref=None):
    logps, (entropy, lse, kl, lse_ref) = torch.empty(ids.shape, device=z.device), torch.zeros(4, len(z), 1, device=z.device)
    for rows in row_blocks(z):
        x = scaled(z[rows], scale, forbidden)
        largest = x.amax(dim=1, keepdim=True)
        p = x.softmax(dim=1)                                                    # one fast pass, where exp and sum would be four
        log_total = -p.amax(dim=1, keepdim=True).log()                          # of sum e^(x - largest)
        y = (x - largest).clamp_(min=-1e30)                                     # at most 0; the clamp makes 0 * -inf the 0 that it means
        logps[rows] = y.gather(1, ids[rows]) - log_total
        lse[rows] = largest + log_total
        entropy[rows] = log_total - (p * y).sum(dim=1, keepdim=True)
        if z_ref is not None:
            x = scaled(z_ref[rows], scale, forbidden)
            largest = x.amax(dim=1, keepdim=True)
            log_total_ref = -x.softmax(dim=1).amax(dim=1, keepdim=True).log()
            lse_ref[rows] = largest + log_total_ref
            kl[rows] = p.mul_(y.sub_((x - largest).clamp_(min=-1e30))).sum(dim=1, keepdim=True) - log_total + log_total_ref
    return logps, entropy, lse, kl, lse_ref


def row_grads_torch(z, dz, ids, scale, forbidden, stats, grads, z_ref=None):
    entropy, lse, kl, lse_ref = stats
    of_logps, of_entropy, of_kl = grads
    dead = ~((of_logps != 0).any(dim=1, keepdim=True) | (of_entropy != 0) | (of_kl != 0))
    plain, some_dead = z_ref is None and not of_entropy.any(), bool(dead.any())
    for rows in row_blocks(z):
        x = scaled(z[rows], scale, forbidden)
        p = x.softmax(dim=1)
        factor = -scale * of_logps[rows].sum(dim=1, keepdim=True)
        if not plain:
            log_p = (x - lse[rows]).clamp_(min=-1e30)
            factor = factor - scale * of_entropy[rows] * (log_p + entropy[rows])
            if z_ref is not None:
                log_p_ref = (scaled(z_ref[rows], scale, forbidden) - lse_ref[rows]).clamp_(min=-1e30)
                factor += scale * of_kl[rows] * (log_p - log_p_ref - kl[rows])
        p.mul_(factor).scatter_add_(1, ids[rows], scale * of_logps[rows])
        dz[rows] = p.masked_fill_(dead[rows], 0.0) if some_dead else p          # what nobody asked about may be NaN


# ---------------------------------------------------------------------------------------------------------------------
# the two passes in Triton: ROWS rows per program (1 on a GPU), the vocabulary in blocks of BLOCK columns

if triton is not None:

    @triton.jit
    def load(z, row, column, inside, forbidden, V, SCALE: tl.constexpr, FORBIDDEN: tl.constexpr):
        x = tl.load(z + row * V + column, mask=inside, other=-float('inf')).to(tl.float32) * SCALE
        if FORBIDDEN:
            x = tl.where(tl.load(forbidden + column, mask=column < V, other=1) != 0, -float('inf'), x)
        return x

    @triton.jit
    def stats_kernel(z, z_ref, ids, forbidden, logps, entropy, lse, kl, lse_ref, N, V, K: tl.constexpr, SCALE: tl.constexpr,
                     FORBIDDEN: tl.constexpr, REF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # 16384 x 151936 is more than 2^31
        real = row < N
        # one pass: the largest so far m, s = sum e^(z - m), t = sum e^(z - m) (z - m), u = sum e^(z - m) ((z - m) - (z_ref - m_ref))
        m, m_ref = tl.full((ROWS, 1), -1e30, tl.float32), tl.full((ROWS, 1), -1e30, tl.float32)
        s, t, u, s_ref = (tl.zeros((ROWS, 1), tl.float32), tl.zeros((ROWS, 1), tl.float32), tl.zeros((ROWS, 1), tl.float32), tl.zeros((ROWS, 1), tl.float32))
        for start in range(0, V, BLOCK):
            column = start + tl.arange(0, BLOCK)[None, :]
            inside = real & (column < V)
            x = load(z, row, column, inside, forbidden, V, SCALE, FORBIDDEN)
            new = tl.maximum(m, tl.max(x, axis=1)[:, None])
            e = tl.exp(x - new)
            y = tl.where(e > 0, x - new, 0.0)
            old = tl.exp(m - new)
            shift = tl.where(s > 0, m - new, 0.0)
            if REF:
                x_ref = load(z_ref, row, column, inside, forbidden, V, SCALE, FORBIDDEN)
                new_ref = tl.maximum(m_ref, tl.max(x_ref, axis=1)[:, None])
                shift_ref = tl.where(s > 0, m_ref - new_ref, 0.0)
                u = old * (u + s * (shift - shift_ref)) + tl.sum(e * (y - tl.where(e > 0, x_ref - new_ref, 0.0)), axis=1)[:, None]
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
            tl.store(logps + row * K + k, (load(z, row, chosen, real, forbidden, V, SCALE, FORBIDDEN) - m) - log_s, mask=real)
        if REF:
            tl.store(lse_ref + row, m_ref + tl.log(s_ref), mask=real)
            tl.store(kl + row, u / s - log_s + tl.log(s_ref), mask=real)

    @triton.jit
    def grads_kernel(z, dz, z_ref, ids, forbidden, entropy, lse, kl, lse_ref, of_logps, of_entropy, of_kl, N, V, K: tl.constexpr, SCALE: tl.constexpr,
                     FORBIDDEN: tl.constexpr, REF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
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
        if REF:
            d, n_ref = tl.load(kl + row, mask=real, other=0.0), tl.load(lse_ref + row, mask=real, other=0.0)
            kappa = tl.load(of_kl + row, mask=real, other=0.0)
            live = live | (kappa != 0)
        for start in range(0, V, BLOCK):
            column = start + tl.arange(0, BLOCK)[None, :]
            inside = real & (column < V)
            y = load(z, row, column, inside, forbidden, V, SCALE, FORBIDDEN) - n    # log p
            p = tl.exp(y)
            y = tl.where(p > 0, y, 0.0)
            factor = -total - eta * (y + h)
            if REF:
                y_ref = load(z_ref, row, column, inside, forbidden, V, SCALE, FORBIDDEN) - n_ref
                factor += kappa * (y - tl.where(p > 0, y_ref, 0.0) - d)
            g = p * factor
            for k in tl.static_range(K):
                c = tl.load(of_logps + row * K + k, mask=real, other=0.0)
                g += tl.where(tl.load(ids + row * K + k, mask=real, other=0) == column, c, 0.0)
            tl.store(dz + row * V + column, tl.where(live, g * SCALE, 0.0).to(dz.dtype.element_ty), mask=inside)


def launch(kernel, z, ids, scale, forbidden, z_ref, *tensors):
    N, V = z.shape
    rows, block, warps = (32, triton.next_power_of_2(V), 4) if INTERPRET else (1, min(8192, triton.next_power_of_2(V)), 16)
    if N:
        with torch.cuda.device_of(z):
            kernel[(triton.cdiv(N, rows),)](*tensors, N, V, K=ids.shape[1], SCALE=float(scale), FORBIDDEN=forbidden is not None, REF=z_ref is not None,
                                            ROWS=rows, BLOCK=block, num_warps=warps)


def row_stats_triton(z, ids, scale, forbidden, z_ref=None):
    logps, (entropy, lse, kl, lse_ref) = torch.empty(ids.shape, device=z.device), torch.zeros(4, len(z), 1, device=z.device)
    launch(stats_kernel, z, ids, scale, forbidden, z_ref, z, z_ref, ids, forbidden, logps, entropy, lse, kl, lse_ref)
    return logps, entropy, lse, kl, lse_ref


def row_grads_triton(z, dz, ids, scale, forbidden, stats, grads, z_ref=None):
    launch(grads_kernel, z, ids, scale, forbidden, z_ref, z, dz, z_ref, ids, forbidden, *stats, *(g.contiguous() for g in grads))


def row_stats(z, *arguments):
    """
    Of logits z (N, V), ids (N, K), scale = 1 / temperature, forbidden (V,) bool or None, z_ref (N, V) or None: log-probs (N, K), and (N, 1) each
    entropy, log of the normaliser, exact KL to z_ref, and its normaliser's log; all fp32, the last two 0 without a reference.
    """
    return (row_stats_triton if z.is_cuda and triton else row_stats_torch)(z, *arguments)


def row_grads(z, dtype, *arguments):
    """
    dloss/dz (N, V) in dtype, in z's own memory where that is its dtype. Arguments: ids, scale, forbidden as above; stats, what row_stats
    returned after the log-probs; grads, dloss/d of log-probs (N, K), of entropy and of KL (N, 1); z_ref.
    """
    dz = z if z.dtype == dtype else torch.empty_like(z, dtype=dtype)
    (row_grads_triton if z.is_cuda and triton else row_grads_torch)(z, dz, *arguments)
    return dz


# ---------------------------------------------------------------------------------------------------------------------
# around them: chunks of rows, and the matrix products

def logits_of(hidden, weight, allowed, room):
    z = room[:len(hidden)]
    if z.dtype == weight.dtype:
        torch.mm(hidden, weight.T, out=z)
    else:
        torch.mm(hidden, weight.T, out_dtype=z.dtype, out=z)
    if allowed is not None:  # bits, low to high, see sample.pack
        bits = (allowed[..., None] >> torch.arange(8, dtype=torch.uint8, device=allowed.device)) & 1
        z.masked_fill_(bits.flatten(-2)[:, :z.shape[-1]] == 0, -torch.inf)
    return z


def push_back(dz, hidden, weight, grad_weight):
    """The gradient of hidden from that of its logits; that of weight is added to grad_weight (fp32), if there is one."""
    if grad_weight is not None:
        if dz.dtype == torch.float32:
            grad_weight.addmm_(dz.T, hidden)
        elif dz.is_cuda:
            torch.addmm(grad_weight, dz.T, hidden, out_dtype=torch.float32, out=grad_weight)
        else:
            grad_weight += dz.T @ hidden
    return dz @ weight


def chunks(counts, hidden, weight):
    """
    Slices of units (rows, or sequences with `counts` rows) whose logits fill CHUNK bytes, at least one unit each; and room for the logits (n, V) of the
    largest, used again for each: fresh pages are slow. On a GPU fp32 out of bf16 products, where a row stays in the second-level cache; else
    the weight's dtype.
    """
    V, on_gpu = len(weight), hidden.is_cuda
    dtype = torch.float32 if on_gpu and V <= 2 ** 16 else weight.dtype
    most, slices, start, held, largest = CHUNK['cuda' if on_gpu else 'cpu'] // (V * dtype.itemsize), [], 0, 0, 0
    for unit, n in enumerate(counts):
        if unit > start and held + n > most:
            slices.append(slice(start, unit))
            start, held = unit, 0
        held += n
        largest = max(largest, held)
    return slices + [slice(start, len(counts))] * bool(counts), torch.empty(largest, V, device=hidden.device, dtype=dtype)


def part(tensor, rows):
    return None if tensor is None else tensor[rows]


class FusedLogps(torch.autograd.Function):

    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature, forbidden, allowed):
        logps, stats = torch.empty(ids.shape, device=hidden.device), torch.empty(4, len(ids), 1, device=hidden.device)
        slices, room = chunks([1] * len(ids), hidden, weight)
        for rows in slices:
            logps[rows], *some = row_stats(logits_of(hidden[rows], weight, part(allowed, rows), room), ids[rows], 1 / temperature, forbidden)
            stats[:, rows] = torch.stack(some)
        ctx.save_for_backward(hidden, weight, ids, forbidden, allowed, stats)
        ctx.temperature = temperature
        return logps, stats[0].squeeze(1)

    @staticmethod
    def backward(ctx, grad_logps, grad_entropy):
        hidden, weight, ids, forbidden, allowed, stats = ctx.saved_tensors
        grads = grad_logps, grad_entropy[:, None], torch.zeros_like(stats[0])
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, device=weight.device) if ctx.needs_input_grad[1] else None
        slices, room = chunks([1] * len(ids), hidden, weight)
        for rows in slices:
            z = logits_of(hidden[rows], weight, part(allowed, rows), room)
            dz = row_grads(z, weight.dtype, ids[rows], 1 / ctx.temperature, forbidden, stats[:, rows], [g[rows] for g in grads])
            grad_hidden[rows] = push_back(dz, hidden[rows], weight, grad_weight)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


def fused_logps(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, temperature: float = 1.0, forbidden: torch.Tensor | None = None,
                allowed: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probs like ids, (N,) or (N, K), of tokens ids in [0, V), and entropy (N,), both fp32, under softmax(hidden (N, D) @ weight
    (V, D).T / temperature) without the forbidden (V,) bool tokens and, where allowed (N, V / 8) uint8 bits are given, restricted to those.
    Differentiable in hidden and weight.
    """
    logps, entropy = FusedLogps.apply(hidden, weight, ids if ids.dim() == 2 else ids[:, None], temperature, forbidden, allowed)
    return logps.view(ids.shape), entropy


class FusedLoss(torch.autograd.Function):

    @staticmethod
    def forward(ctx, hidden, weight, ids, mask, counts, loss_of, temperature, forbidden, allowed, ref_hidden, ref_weight, grad_enabled):
        U, R, D = hidden.shape
        rows_of = lambda x, units: None if x is None else x[units].flatten(0, 1)
        wants_grad, wants_grad_weight = grad_enabled and any(ctx.needs_input_grad[:2]), grad_enabled and ctx.needs_input_grad[1]
        # in fp16 a share of a mean over many tokens would underflow before a loss scale reaches it: it gets a scale of its own
        ctx.boost = float(max(1, sum(counts))) if weight.dtype == torch.float16 else 1.0
        loss = torch.zeros((), device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if wants_grad else None
        grad_weight = torch.zeros(weight.shape, device=weight.device) if wants_grad_weight else None
        slices, room = chunks(counts, hidden, weight)
        room_ref = None if ref_hidden is None else torch.empty_like(room)
        for units in slices:
            real = mask[units].any(dim=1).flatten().nonzero_static(size=sum(counts[units])).squeeze(1)  # (n,) rows with a token that counts
            x, tokens = rows_of(hidden, units)[real], ids[units].transpose(1, 2).flatten(0, 1)[real]  # (n, D), (n, K)
            kept = part(rows_of(allowed, units), real)
            z = logits_of(x, weight, kept, room)
            z_ref = None if ref_hidden is None else logits_of(rows_of(ref_hidden, units)[real], ref_weight, kept, room_ref)
            logps, *stats = row_stats(z, tokens, 1 / temperature, forbidden, z_ref)

            def back(values):
                """(n, 1 or K) as (units, 1 or K, R), zeros elsewhere."""
                return values.new_zeros(len(mask[units]) * R, values.shape[1]).index_copy(0, real, values).view(-1, R, values.shape[1]).transpose(1, 2)

            with torch.set_grad_enabled(wants_grad):
                leaves = [value.detach().requires_grad_(wants_grad) for value in (logps, stats[0], stats[2])]  # log-probs, entropy, KL
                value = loss_of(units, *map(back, leaves))
                loss += value.detach()
            if wants_grad:
                grads = [g * ctx.boost for g in torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]
                dz = row_grads(z, weight.dtype, tokens, 1 / temperature, forbidden, stats, grads, z_ref)
                grad_hidden[units].view(-1, D).index_copy_(0, real, push_back(dz, x, weight, grad_weight))
        ctx.grads, ctx.dtype = (grad_hidden, grad_weight), weight.dtype
        return loss

    @staticmethod
    def backward(ctx, grad):
        (grad_hidden, grad_weight), ctx.grads = ctx.grads, None  # handed over, not kept: the head's gradient is there once
        scale = grad / ctx.boost  # a tensor: nothing waits for the device
        return grad_hidden.mul_(scale), None if grad_weight is None else grad_weight.mul_(scale).to(ctx.dtype), *[None] * 10


def fused_loss(hidden, weight, ids, mask, loss_of, temperature=1.0, forbidden=None, allowed=None, ref_hidden=None, ref_weight=None, counts=None):
    """
    A loss of log-probs, and in the same sweep its gradients for hidden (U, R, D) and weight (V, D). Of U units of R rows those rows count that
    predict a token that mask (U, K, R) has; ids (U, K, R). Whole units, as many as a chunk holds, are given to loss_of(units: slice,
    logps (u, K, R), entropy (u, 1, R), kl (u, 1, R)) -> scalar, a share: the shares are added. temperature, forbidden, allowed (U, R, V / 8) as in
    fused_logps. kl: exact, to softmax(ref_hidden @ ref_weight.T / temperature), where those are given. counts: rows of each unit that count, a
    list; without it the device is asked. Backward can be called once.
    """
    counts = mask.any(dim=1).sum(dim=1).tolist() if counts is None else counts
    return FusedLoss.apply(hidden, weight, ids, mask, counts, loss_of, temperature, forbidden, allowed, ref_hidden, ref_weight, torch.is_grad_enabled())


def wide(x):
    """In fp32 where it is bf16 on a CPU, whose attention is six times slower backward in bf16."""
    return x.float() if x.device.type == 'cpu' and x.dtype.itemsize == 2 else x


class GroupAttention(torch.autograd.Function):
    """
    Completions attend to their group's prompt, whose keys and values lie there once, and to themselves: two calls of a CPU's flash attention, merged by
    their normalisers. Given the merged output and normaliser, each one's own backward is its part of the whole's (the idea of ring attention, arXiv 2310.01889).
    """

    @staticmethod
    def forward(ctx, q, k, v, prompt_k, prompt_v, bias):
        """q (P, G, R, H, d), k and v (P, G, R, H_kv, d), prompt_k and prompt_v (P, T, H_kv, d), bias (P, 1, 1, T) or None -> (P, G, R, H, d)."""
        own, shared = GroupAttention.views(q, k, v, prompt_k, prompt_v)
        y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*own, 0.0, True)                      # (P G, H, R, d), (P G, H, R)
        y_shared, lse_shared = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*shared, 0.0, False, attn_mask=bias)
        y, y_shared = y.transpose(1, 2).view(q.shape), GroupAttention.unfold(y_shared, q.shape)
        lse, lse_shared = lse.transpose(1, 2).reshape(*q.shape[:-1], 1), GroupAttention.unfold(lse_shared[..., None], q.shape)
        whole = torch.logaddexp(lse, lse_shared)
        y = y * (lse - whole).exp() + y_shared * (lse_shared - whole).exp()
        ctx.save_for_backward(q, k, v, prompt_k, prompt_v, bias, y, whole)
        return y

    @staticmethod
    def backward(ctx, grad):
        q, k, v, prompt_k, prompt_v, bias, y, lse = ctx.saved_tensors
        own, shared = GroupAttention.views(q, k, v, prompt_k, prompt_v)
        rows = lambda x: x.flatten(0, 1).transpose(1, 2)                        # (P, G, R, H, ...) -> (P G, H, R, ...)
        back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad_q, grad_k, grad_v = back(rows(grad), *own, rows(y), rows(lse).squeeze(-1), 0.0, True)
        fold = lambda x: GroupAttention.fold(x, k.shape[3])
        grad_shared_q, *grad_prompt = back(fold(grad), *shared, fold(y), fold(lse).squeeze(-1), 0.0, False, attn_mask=bias)
        grad_q = grad_q.transpose(1, 2).view(q.shape) + GroupAttention.unfold(grad_shared_q, q.shape)
        return grad_q, *(x.transpose(1, 2).reshape(k.shape) for x in (grad_k, grad_v)), *(x.transpose(1, 2) for x in grad_prompt), None

    @staticmethod
    def views(q, k, v, prompt_k, prompt_v):
        """What the two calls get: each answer's own rows; and a prompt's keys with all its answers' queries, those of a key's heads together."""
        return tuple(x.flatten(0, 1).transpose(1, 2) for x in (q, k, v)), (GroupAttention.fold(q, k.shape[3]), prompt_k.transpose(1, 2), prompt_v.transpose(1, 2))

    @staticmethod
    def fold(x, H_kv):
        """(P, G, R, H, d) -> (P, H_kv, G R H/H_kv, d)"""
        P, G, R, H, d = x.shape
        return x.view(P, G * R, H_kv, H // H_kv, d).transpose(1, 2).reshape(P, H_kv, -1, d)

    @staticmethod
    def unfold(x, shape):
        """The way back, to (P, G, R, H, d)."""
        P, G, R, H, _ = shape
        return x.reshape(P, x.shape[1], G * R, -1, x.shape[-1]).transpose(1, 2).reshape(P, G, R, H, -1)


def pack(allowed):
    """bool (..., V) as bits (..., ceil(V / 8)) uint8: what was allowed at each token is kept for the trainer, an eighth of the size."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded.byte() << torch.arange(8, dtype=torch.uint8, device=allowed.device)).sum(dim=-1, dtype=torch.uint8)


def unpack(bits, V):
    """The bool (..., V) that pack was given."""
    return ((bits[..., None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1).bool().flatten(-2)[..., :V]
