"""
The head without its logits: hidden states and the lm_head's weight in, log-probs and entropy of chosen tokens out, block by
block, so that memory does not grow with rows x vocabulary. What backward needs of the logits it computes again: that costs
one matrix product more and saves the passes over a matrix that no cache holds.
Shapes: N rows · K tokens asked of each row · V vocabulary · D width.
"""
import torch

BLOCK = 2 ** 23  # logits held at once: 32 MB in fp32


def head_block(hidden, weight, temperature, forbidden, allowed):
    """Logits (n, v) in fp32 of the sampling distribution: some rows, some of the vocabulary."""
    logits = (hidden @ weight.T).float()
    if temperature != 1:
        logits /= temperature
    if forbidden is not None:
        logits.masked_fill_(forbidden, -torch.inf)
    if allowed is not None:  # bits, low to high, see sample.pack
        bits = (allowed[..., None] >> torch.arange(8, dtype=torch.uint8, device=allowed.device)) & 1
        logits.masked_fill_(bits.flatten(-2)[:, :logits.shape[-1]] == 0, -torch.inf)
    return logits


def cut(tensor, *index):
    return None if tensor is None else tensor[index]


class FusedLogps(torch.autograd.Function):

    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature, forbidden, allowed):
        """By rows, so that each sees its whole vocabulary."""
        logps = torch.empty(ids.shape, device=hidden.device)
        entropy = torch.empty(len(ids), 1, device=hidden.device)
        normaliser = torch.empty(len(ids), 1, device=hidden.device)
        size = max(1, BLOCK // weight.shape[0])
        for start in range(0, len(ids), size):
            rows = slice(start, start + size)
            z = head_block(hidden[rows], weight, temperature, forbidden, cut(allowed, rows))
            chosen = z.gather(1, ids[rows])
            largest = z.amax(dim=1, keepdim=True)
            p = z.sub_(largest).exp()                                           # z is now at most 0
            total = p.sum(dim=1, keepdim=True)
            # entropy = log total - sum of p z / total; the clamp makes 0 * -inf the 0 that it means
            entropy[rows] = total.log() - p.mul_(z.clamp_(min=-1e30)).sum(dim=1, keepdim=True) / total
            normaliser[rows] = largest + total.log()
            logps[rows] = chosen - normaliser[rows]
        ctx.save_for_backward(hidden, weight, ids, forbidden, allowed, normaliser, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logps, entropy.squeeze(1)

    @staticmethod
    def backward(ctx, grad_logps, grad_entropy):
        """
        d logp_k / dz = [k] - p and d entropy / dz = -p (log p + entropy). By blocks of the vocabulary: each block's rows of the
        weight's gradient are then one matrix product over all N, summed in fp32 inside it and written once.
        """
        hidden, weight, ids, forbidden, allowed, normaliser, entropy = ctx.saved_tensors
        grad_logps = torch.zeros(ids.shape, device=hidden.device) if grad_logps is None else grad_logps
        grad_hidden = torch.zeros(hidden.shape, device=hidden.device)           # fp32: many blocks add up
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        size = max(8, BLOCK // max(1, len(ids)) // 8 * 8)                       # whole bytes of allowed
        for start in range(0, len(weight), size):
            block = slice(start, start + size)
            z = head_block(hidden, weight[block], ctx.temperature, cut(forbidden, block), cut(allowed, slice(None), slice(start // 8, (start + size) // 8)))
            z.sub_(normaliser)                                                  # log p
            scale = -grad_logps.sum(dim=1, keepdim=True)
            if grad_entropy is not None:
                scale = scale - grad_entropy[:, None] * (z.clamp(min=-1e30) + entropy)
            grad = z.exp_().mul_(scale)
            column = ids - start
            here = (column >= 0) & (column < grad.shape[1])
            grad.scatter_add_(1, column.clamp(0, grad.shape[1] - 1), grad_logps * here)
            grad = grad.div_(ctx.temperature).to(weight.dtype)
            grad_hidden += grad @ weight[block]
            if grad_weight is not None:
                torch.mm(grad.T, hidden, out=grad_weight[block])
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None


def fused_logps(hidden, weight, ids, temperature=1.0, forbidden=None, allowed=None):
    """
    Log-probs like ids, (N,) or (N, K), of tokens ids in [0, V), and entropy (N,), both fp32, under softmax(hidden (N, D) @ weight
    (V, D).T / temperature) without the forbidden (V,) bool tokens and, where allowed (N, V / 8) uint8 bits are given, restricted to those.
    Differentiable in hidden and weight.
    """
    logps, entropy = FusedLogps.apply(hidden, weight, ids if ids.dim() == 2 else ids[:, None], temperature, forbidden, allowed)
    return logps.view(ids.shape), entropy
