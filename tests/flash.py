"""
Flash attention of packed sequences as torch's operators have it, in plain torch, one sequence after the other: what a test without a GPU
puts in their place. What a GPU refuses is refused, but float64.
"""
import itertools

import torch

SEEN = []  # (causal, rows of queries, rows of keys, their heads) of each forward


def check(q, k, v, ends, longest, causal):
    """What flash attention asks of its arguments."""
    assert q.dtype in (torch.bfloat16, torch.float16, torch.float64) and q.dtype == k.dtype == v.dtype
    assert q.shape[1] % k.shape[1] == 0 and k.shape == v.shape and q.shape[2] % 8 == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v)), "the last dimension must be contiguous"
    for each, n, most in zip(ends, (len(q), len(k)), longest, strict=True):
        assert each.dtype == torch.int32 and each.is_contiguous() and each[0] == 0 and each[-1] == n
        assert each.diff().max() <= most
    assert not causal or torch.equal(*ends), "here a causal part is one sequence that sees itself"


def sequences(ends, *tensors):
    """(slice of queries, slice of keys, its part of each tensor, heads first, keys' heads repeated), of tensors (x, whether of queries)."""
    wide = torch.promote_types(tensors[0][0].dtype, torch.float32)
    heads = next(x.shape[1] for x, of_queries in tensors if of_queries)
    for places in zip(*(itertools.starmap(slice, itertools.pairwise(each.tolist())) for each in ends), strict=True):
        parts = [x[places[0 if of_queries else 1]].transpose(0, 1).to(wide) for x, of_queries in tensors]
        yield places, [x.repeat_interleave(heads // len(x), dim=0) for x in parts]


def scores(q, k, causal):
    """In fp32 at least, never rounded."""
    found = q @ k.mT / q.shape[-1] ** 0.5
    return found.masked_fill(torch.ones_like(found).triu(1).bool(), -torch.inf) if causal else found


def forward(q, k, v, ends_q, ends_k, most_q, most_k, dropout, causal, debug):  # noqa: PLR0913
    """(n, H, d), normalisers (H, n) in fp32, and three things more."""
    ends = ends_q, ends_k
    check(q, k, v, ends, (most_q, most_k), causal)
    SEEN.append((causal, len(q), *k.shape[:2]))
    y, lse = torch.full_like(q, torch.nan), torch.full((q.shape[1], len(q)), torch.nan, dtype=torch.promote_types(q.dtype, torch.float32))
    for (rows, _), (part, keys, values) in sequences(ends, (q, True), (k, False), (v, False)):
        z = scores(part, keys, causal)
        y[rows] = (z.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
        lse[:, rows] = z.logsumexp(-1)
    return y, lse, *(torch.empty(0) for _ in range(3))


def backward(grad, q, k, v, y, lse, ends_q, ends_k, most_q, most_k, dropout, causal, rng, unused):  # noqa: PLR0913
    """dS = P (dP - sum of dO O), where P = exp(S - lse): of the sum over all keys that lse counts, if more than these."""
    ends = ends_q, ends_k
    check(q, k, v, ends, (most_q, most_k), causal)
    assert lse.is_contiguous() and lse.shape == (q.shape[1], len(q))
    grads = [torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v)]
    tensors = (grad, True), (q, True), (k, False), (v, False), (y, True), (lse.T[..., None], True)
    for (rows, seen), (g, part, keys, values, out, normaliser) in sequences(ends, *tensors):
        p = (scores(part, keys, causal) - normaliser).exp()
        of_scores = p * (g @ values.mT - (g * out).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        grads[0][rows] = (of_scores @ keys).transpose(0, 1)
        for whole, x in zip(grads[1:], (of_scores.mT @ part, p.mT @ g), strict=True):
            whole[seen] = x.unflatten(0, (k.shape[1], -1)).sum(1).transpose(0, 1)
    return [x.to(q.dtype) for x in grads]


STAND_INS = {torch.ops.aten._flash_attention_forward.default: forward, torch.ops.aten._flash_attention_backward.default: backward}
