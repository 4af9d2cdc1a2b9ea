"""
What a token takes between a model's matrix products: norms, SwiGLU, attention to the cache, the draw. On a
GPU each is one Triton kernel, NAME_triton, elsewhere its twin, NAME_torch; none has a backward.
Shapes: B rows · V vocabulary · D width · P prompts · G completions · T, R tokens · H heads of width d.
"""
import torch
from torch.nn import functional as F

from kernels import jit, load, on_device, pack, scaled, tile, tl, triton

# ---- norms and SwiGLU

def fused(x):
    """Whether Triton kernels that have no backward serve x."""
    return x.is_cuda and triton is not None and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def plus(x, more):
    """x (..., D) plus more, None for 0."""
    return x if more is None else x + more


def add_linear(x, linear, y):
    """
    x (..., D) + linear(y), as two terms that the next add_norm adds; or, where the matrix product can add x
    itself, as the sum and None. On a GPU two: sampler and trainer then round alike in half precision.
    """
    if x.is_cuda or x.dim() != 2 or type(linear) is not torch.nn.Linear or linear.bias is not None:
        return x, linear(y)
    return torch.addmm(x, y, linear.weight.T), None


def add_norm_torch(x, more, norm):
    x = plus(x, more)
    return x, norm(x)


def add_norm_triton(x, more, norm):
    x, D = x.contiguous(), x.shape[-1]
    total, y = x if more is None else torch.empty_like(x), torch.empty_like(x)
    on_device(add_norm_kernel, (x.numel() // D,), x, more, norm.weight, total, y, D, EPS=norm.eps,
              BLOCK=triton.next_power_of_2(D))
    return total, y


def add_norm(x, more, norm):
    """The sum of x (..., D) and more, see plus; and that behind an nn.RMSNorm or another norm."""
    if fused(x) and isinstance(norm, torch.nn.RMSNorm):
        return add_norm_triton(x, more, norm)
    return add_norm_torch(x, more, norm)


def swiglu_torch(x):
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def swiglu_triton(x):
    width = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], width)
    on_device(swiglu_kernel, (y.numel() // width, triton.cdiv(width, 1024)), x, y, width, BLOCK=1024)
    return y


def swiglu(x):
    """silu(gate) * value of x (..., 2 h), whose first half is the gate: (..., h)."""
    return (swiglu_triton if fused(x) else swiglu_torch)(x)


# These kernels round where torch does, so that sampler and trainer agree in half precision.

@jit
def add_norm_kernel(x, more, weight, total, y, D, EPS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    place, inside = tl.program_id(0).to(tl.int64) * D + column, column < D
    value = tl.load(x + place, mask=inside, other=0.0)
    if more is not None:
        added = tl.load(more + place, mask=inside, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + added).to(value.dtype)
        tl.store(total + place, value, mask=inside)
    value = value.to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, axis=0) / D + EPS)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, (value * scale).to(y.dtype.element_ty), mask=inside)


@jit
def swiglu_kernel(x, y, width, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x += row * 2 * width + column
    gate = tl.load(x, mask=column < width, other=0.0)
    value = tl.load(x + width, mask=column < width, other=0.0).to(tl.float32)
    opened = (gate.to(tl.float32) / (1 + tl.exp(-gate.to(tl.float32)))).to(gate.dtype)
    product = opened.to(tl.float32) * value
    tl.store(y + row * width + column, product.to(y.dtype.element_ty), mask=column < width)


# ---- a new token of each row attends

def rotate(x, cos, sin):
    """x (..., heads, d) turned by cos and sin (..., 1, d); pairs are d/2 apart."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)


def attend_rows_torch(q, k, v, rope, slots, lengths, rows, at, sizes, width):
    G, T, R = sizes
    group, first = rows // G, (len(lengths) - 1) * T + rows * R
    if rope is not None:
        turn = [angles[lengths[group] + at, None] for angles in rope]
        q, k = rotate(q, *turn), rotate(k, *turn)
    slots[0, first + at], slots[1, first + at] = k, v
    t, r = torch.arange(T, device=q.device), torch.arange(R, device=q.device)
    prompt = group.clamp(max=len(lengths) - 2)[:, None] * T + t  # a place without a row sees none of it
    parts = (prompt, t < lengths[group, None]), (first[:, None] + r, (r <= at)[None])
    heads, found = q.unflatten(1, (k.shape[1], -1)).float() * q.shape[-1] ** -0.5, []
    for places, seen in parts:                                                  # (B, T), (B, R)
        keys, values = slots[:, places].transpose(2, 3).float()                 # (B, H_kv, T or R, d)
        scores = (heads @ keys.mT).masked_fill(~seen[:, None, None], -torch.inf)
        found += (scores.softmax(dim=-1) @ values).to(q.dtype).float(), scores.logsumexp(dim=-1, keepdim=True)
    y_prompt, lse_prompt, y, lse = found
    return torch.lerp(y_prompt, y, (lse - lse_prompt).sigmoid()).flatten(1, 2).to(q.dtype)


def attend_rows_triton(q, k, v, rope, slots, lengths, rows, at, sizes, width):
    (B, H, d), H_kv, y = q.shape, k.shape[1], torch.empty_like(q, memory_format=torch.contiguous_format)
    steps = [x.stride(0) for x in (q, k, v)]
    wide_d, queries = (max(16, triton.next_power_of_2(n)) for n in (d, width * H // H_kv))
    warps = 4 if queries * wide_d * q.dtype.itemsize <= 2048 else 8  # so that all stays in registers
    on_device(attend_kernel, (triton.cdiv(B, width), H_kv), q, k, v, y, *(rope or (None, None)), *slots,
              lengths, rows, at, *steps, B, len(lengths) - 1, *sizes, SCALE=d ** -0.5, WIDTH=width,
              HEADS=H // H_kv, H_KV=H_kv, D=d, WIDE=wide_d, M=queries, BLOCK=32, num_stages=2,
              num_warps=warps)
    return y


def attend_rows(q, *arguments):
    """
    A new token of each of B rows attends to its prompt and its completion: q (B, H, d), k, v (B, H_kv, d) ->
    (B, H, d), with scores in fp32. rope: None, or cos and sin (positions, d) that turn q and k. slots (2, P T
    + (P G + 1) R, H_kv, d): keys and values of P prompts, of P G rows and one to spare; k and v go into a
    row's slot at (1,). lengths (P + 1,) of the prompts, the last 0. rows (B,): p G + g, or P G for none, in
    order. sizes: G, T, R. width: how many rows read their prompt together.
    """
    return (attend_rows_triton if fused(q) else attend_rows_torch)(q, *arguments)


@jit
def heads_of(x, place, column, inside, cos, sin, D: tl.constexpr):
    value = tl.load(x + place[:, None] + column, mask=inside, other=0.0)
    if cos is not None:
        pair = tl.load(x + place[:, None] + (column + D // 2) % D, mask=inside, other=0.0).to(tl.float32)
        part = (value.to(tl.float32) * cos).to(value.dtype)
        value = (part.to(tl.float32) + pair * sin).to(value.dtype)
    return value


# A program takes `WIDTH` rows and one head of keys, for which they have M queries, `HEADS` each.

@jit
def attend_kernel(q, k, v, y, cos, sin, keys, values, lengths, rows, at, Q_STEP, K_STEP, V_STEP, B, P, G, T,
                  R, SCALE: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, H_KV: tl.constexpr,
                  D: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr):
    first, head, slot = tl.program_id(0) * WIDTH, tl.program_id(1), tl.load(at).to(tl.int32)
    query, column = tl.arange(0, M), tl.arange(0, WIDE)[None, :]
    member, of_head = query // HEADS, head * HEADS + query % HEADS
    place = first.to(tl.int64) + member
    real = (member < WIDTH) & (place < B)
    inside, row = real[:, None] & (column < D), tl.load(rows + place, mask=real, other=0)
    if cos is not None:
        angle = (tl.load(lengths + row // G) + slot)[:, None] * D + column
        cos = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    q = heads_of(q, place * Q_STEP + of_head * D, column, inside, cos, sin, D)
    key = heads_of(k, place * K_STEP + head * D, column, inside, cos, sin, D)
    value = heads_of(v, place * V_STEP + head * D, column, inside, None, None, D)
    kept = ((P * T + row * R + slot) * H_KV + head)[:, None] * D + column
    tl.store(keys + kept, key, mask=inside & (query % HEADS == 0)[:, None])
    tl.store(values + kept, value, mask=inside & (query % HEADS == 0)[:, None])
    # Online softmaxes: of the new key, from registers, and each row's other slots; then of each row's prompt,
    # unless the row before had the same. Merged, and rounded, as in PackedAttention.
    top = tl.sum(q.to(tl.float32) * key.to(tl.float32), axis=1)[:, None] * SCALE
    total, mean, before = tl.full((M, 1), 1.0, tl.float32), value.to(tl.float32), tl.full((), -1, tl.int64)
    own, lse, count = value, top, tl.minimum(WIDTH, B - first)
    for i in range(0, 2 * count):
        if i == count:
            own, lse = (mean / total).to(own.dtype), top + tl.log(total)
            top = top * 0 - 1e30  # the next block's decay is 0
        one = tl.load(rows + first + i % count)
        prompt, shared = one // G, i >= count
        length = tl.where(prompt == before, 0, tl.load(lengths + prompt)).to(tl.int32)
        n, seen = tl.where(shared, length, slot), tl.where(shared, row // G == prompt, member == i)
        start = (tl.where(shared, prompt * T, P * T + one * R) * H_KV + head) * D
        before = tl.where(shared, prompt, before)
        for block in range(0, n, BLOCK):
            t = block + tl.arange(0, BLOCK)
            part, there = start + t[:, None] * (H_KV * D) + column, (t < n)[:, None] & (column < D)
            of_keys = tl.load(keys + part, mask=there, other=0.0)
            of_values = tl.load(values + part, mask=there, other=0.0)
            scores = tl.dot(q, tl.trans(of_keys), input_precision='ieee') * SCALE
            scores = tl.where(seen[:, None] & (t < n)[None, :], scores, -float('inf'))
            new = tl.maximum(top, tl.max(scores, axis=1)[:, None])
            weights, decay = tl.exp(scores - new), tl.exp(top - new)
            mean = mean * decay + tl.dot(weights.to(of_values.dtype), of_values, input_precision='ieee')
            top, total = new, total * decay + tl.sum(weights, axis=1)[:, None]
    place = (place * H_KV * HEADS + of_head)[:, None] * D + column
    mean, share = (mean / total).to(own.dtype).to(tl.float32), tl.sigmoid(lse - top - tl.log(total))
    tl.store(y + place, (mean + (own.to(tl.float32) - mean) * share).to(own.dtype), mask=inside)


# ---- a new token of each row is drawn

def first(x, n, least):
    """bool like x (B, V): its n largest, down to `least` (B, 1); of equal ones the first."""
    stay = x >= least
    if not x.is_cuda and (stay.sum(dim=-1, keepdim=True) <= n).all():  # a GPU would have to wait for this
        return stay
    above, equal = x > least, x == least
    return above | equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= n - above.sum(dim=-1, keepdim=True))


def choices(logits, top_k, top_p):
    """(B, V) bool: the top_k likeliest tokens, and of these the nucleus of mass top_p (arXiv 1904.09751)."""
    keep = logits > -torch.inf
    if 0 < top_k < logits.shape[-1]:
        keep &= first(logits, top_k, logits.topk(top_k, dim=-1).values[..., -1:])
    if top_p < 1:
        ordered = logits.masked_fill(~keep, -torch.inf).sort(dim=-1, descending=True).values
        probs = ordered.softmax(dim=-1)
        # the mass before a token decides, so the likeliest always stays
        n = (probs.cumsum(dim=-1) - probs < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        keep &= first(logits, n, ordered.gather(-1, n - 1))
    return keep


def draw(logits, u, temperature, top_k, top_p, forbidden):
    """
    One token for each row of logits (B, V) by its number u (B,) in [0, 1): tokens (B,), their log-probs
    (B,) and what was allowed (B, V) or None. At temperature 0 the likeliest, its log-prob at temperature 1.
    """
    logits, allowed = scaled(logits, 1 / (temperature or 1.0), forbidden, None), None
    if top_k or top_p < 1:
        allowed = choices(logits, top_k, top_p)
        logits = logits.masked_fill(~allowed, -torch.inf)
    B, V = logits.shape
    largest = logits.amax(dim=-1, keepdim=True)
    # blocks of 128: first the block is looked up, then the token in it
    mass = F.pad((logits - largest).exp_(), (0, -V % 128)).view(B, -1, 128)
    blocks = F.pad(mass.sum(dim=-1).cumsum(dim=-1, dtype=torch.double), (1, 0))     # (B, 1 + V / 128)
    total = blocks[:, -1:]
    if temperature > 0:
        tokens = look_up(mass, blocks, u[:, None] * total).clamp(max=V - 1)
    else:
        tokens = logits.argmax(dim=-1, keepdim=True)
    logps = logits.gather(-1, tokens) - largest - total.log().float()
    return tokens.squeeze(-1), logps.squeeze(-1), allowed


def look_up(mass, blocks, target):
    """
    The token (B, 1) at which the cumulated mass (B, V / 128, 128) passes target (B, 1); blocks (B, 1 + V /
    128): 0, then the mass up to each block's end. The clamps are for rounding and for NaN, which generate
    reports at its end.
    """
    # `right`: the first token whose cumulated mass lies above, never one of probability 0
    end = torch.searchsorted(blocks, target, right=True).clamp(max=blocks.shape[1] - 1)     # (B, 1)
    block = end - 1
    before, until = blocks.gather(1, block), blocks.gather(1, end)
    share = ((target - before) / (until - before)).clamp(max=1 - 2 ** -40)      # how far into the block
    inside = mass.gather(1, block[..., None].expand(-1, 1, 128)).squeeze(1).cumsum(dim=-1, dtype=torch.double)
    return block * 128 + torch.searchsorted(inside, share * inside[:, -1:], right=True)


def draw_rows_torch(logits, u, rows, at, tokens, logps, allowed, running, ends, sampling):
    new, logps[rows, at], kept = draw(logits, u[rows, at], *sampling)
    tokens[rows, at] = new
    if allowed is not None:
        allowed[rows, at] = pack(kept)
    if ends is not None:
        running.mul_((new[:, None] != ends).all(dim=-1))


def draw_rows_triton(logits, u, rows, at, tokens, logps, allowed, running, ends, sampling):
    (B, V), (temperature, top_k, top_p, forbidden) = logits.shape, sampling
    n_rows, block, warps = tile(V, 4096)
    on_device(draw_kernel, (triton.cdiv(B, n_rows),), logits, u, rows, at, tokens, logps, allowed, running,
              ends, forbidden, B, V, logits.stride(0), u.shape[1], SCALE=1 / (temperature or 1.0),
              GREEDY=temperature == 0, TOP_K=top_k if top_k < V else 0, TOP_P=top_p,
              ENDS=0 if ends is None else len(ends), ROWS=n_rows, BLOCK=block, num_warps=warps)


def draw_rows(logits, *arguments):
    """
    A token for each row of logits (B, V) by its number in u (N + 1, R), put where rows (B,) and at (1,) say
    into tokens and logps (N + 1, R) and, None without top_k and top_p, the bits allowed (N + 1, R, V / 8).
    running (B,) turns 0 at one of ends (E,), or None. sampling: see draw. On a GPU logits are read twice, for
    top_k and top_p some twenty times.
    """
    (draw_rows_triton if fused(logits) else draw_rows_torch)(logits, *arguments)


@jit
def draw_kernel(z, u, rows, at, tokens, logps, allowed, running, ends, forbidden, B, V, STRIDE, R,
                SCALE: tl.constexpr, GREEDY: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr,
                ENDS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    index = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    real, zero = index < B, tl.zeros((ROWS, 1), tl.float32)
    place = tl.load(rows + index, mask=real, other=0) * R + tl.load(at)
    largest, total, inf = zero - 1e30, zero, zero + float('inf')
    least, places = zero - 3.4028235e38, zero + V
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        x = load(z, index, column, real, forbidden, None, V, STRIDE, SCALE)
        new = tl.maximum(largest, tl.max(x, axis=1)[:, None])
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new), axis=1)[:, None]
        largest = new
    # What is likelier than `least` stays, and of what is as likely the first `places`. For top_k, then for
    # top_p, two logits, least and most, close in on it. Where one is infinite all stay.
    for of_mass in range(0 if TOP_K > 0 else 1, 2 if TOP_P < 1 else 1):
        wanted = tl.where(of_mass > 0, TOP_P * total, TOP_K)
        most, number, weight = largest, zero, zero
        while tl.max(tl.where((least < most) & (most < 1e30), 1, 0)) > 0:
            middle = least + (most - least) * 0.49  # a half might be rounded to `most`
            n, mass, over, under = zero, zero, inf, -inf
            for start in range(0, V, BLOCK):
                column = start + tl.arange(0, BLOCK)[None, :]
                x = load(z, index, column, real, forbidden, None, V, STRIDE, SCALE)
                above = x > middle
                n += tl.sum(above.to(tl.float32), axis=1)[:, None]
                mass += tl.sum(tl.where(above, tl.exp(x - largest), 0.0), axis=1)[:, None]
                over = tl.minimum(over, tl.min(tl.where(above, x, inf), axis=1)[:, None])
                under = tl.maximum(under, tl.max(tl.where(above, -inf, x), axis=1)[:, None])
            enough = tl.where(of_mass > 0, mass, n) >= wanted
            least, most = tl.where(enough, over, least), tl.where(enough, most, under)
            number, weight = tl.where(enough, number, n), tl.where(enough, weight, mass)
        each = tl.maximum(tl.exp(least - largest), 1e-30)
        places = tl.where(of_mass > 0, tl.ceil((wanted - weight) / each), wanted - number)
        total = tl.minimum(total, weight + places * each)
    # the first token up to which lies more than u of the mass; rounding may leave none: then the last
    goal, before = tl.load(u + place, mask=real, other=0.0) * total, zero.to(tl.float64)
    found, last, taken = zero.to(tl.int32) - 1, zero.to(tl.int32), zero
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        unread = real & ((found < 0) | (allowed is not None))
        x = load(z, index, column, unread, forbidden, None, V, STRIDE, SCALE)
        mass = tl.exp(x - largest)
        if allowed is not None:
            equal = tl.where(x == least, 1.0, 0.0)
            stays = (x > least) | (equal > 0) & (taken + tl.cumsum(equal, axis=1) <= places)
            taken += tl.sum(equal, axis=1)[:, None]
            mass = tl.where(stays, mass, 0.0)
            bits = tl.reshape(stays.to(tl.int32), (ROWS, BLOCK // 8, 8)) << tl.arange(0, 8)
            byte, width = start // 8 + tl.arange(0, BLOCK // 8)[None, :], tl.cdiv(V, 8)
            to = allowed + place * width + byte
            tl.store(to, tl.sum(bits, axis=2).to(tl.uint8), mask=real & (byte < width))
        passed = x == largest if GREEDY else tl.cumsum(mass, axis=1) > (goal - before).to(tl.float32)
        token = tl.min(tl.where(passed & (mass > 0), column, V), axis=1)[:, None]
        found = tl.where((found < 0) & (token < V), token, found)
        last = tl.maximum(last, tl.max(tl.where(mass > 0, column, 0), axis=1)[:, None])
        before += tl.sum(mass, axis=1)[:, None]
    token = tl.where(found < 0, last, found)
    x = load(z, index, token, real, forbidden, None, V, STRIDE, SCALE)
    tl.store(tokens + place, token.to(tl.int64), mask=real)
    tl.store(logps + place, x - largest - tl.log(total), mask=real)
    for end in tl.static_range(ENDS):
        tl.store(running + index, zero.to(tl.int64), mask=real & (token == tl.load(ends + end)))
