"""
Fill-in: a text with masked slots, and a bidirectional model that fills all of them at once.

Given the unmasked text, the slots are independent of each other, so one forward gives the exact distribution of every
fill: the G fills of a text are G draws from the same logits, and log pi(fill) is a sum over its slots.
Shapes: P texts · G fills · T positions · M slots (right-padded) · V vocabulary · D width.
"""
import copy

import torch

from grpo import Rollout, gather_logps, head_log_probs
from sample import choices, pack, uniforms

MASK_KINDS = ('random', 'sticky', 'span')


def choose_slots(kind, lengths, T, ratio, generator, span_length=4):
    """
    Which positions to mask: bool (P, T), at least one in each text, never in padding.
    kind 'random': positions independent of each other. 'sticky': grows clumps, a position next to a masked one is ten
    times likelier to follow. 'span': runs of about span_length characters.
    lengths (P,) true lengths; ratio (low, high): each text's share of masked positions is uniform between them.
    """
    P = len(lengths)
    low, high = ratio
    exists = torch.arange(T) < lengths[:, None]
    shares = low + (high - low) * torch.rand(P, generator=generator)
    counts = (shares * lengths).round().long().clamp(min=1)  # (P,) slots of each text
    if kind == 'random':
        scores = torch.rand(P, T, generator=generator).masked_fill(~exists, 2.0)
        return scores.argsort(dim=1).argsort(dim=1) < counts[:, None]
    if kind == 'sticky':
        chosen = torch.zeros(P, T, dtype=torch.bool)
        while (short := chosen.sum(1) < counts).any():
            beside = chosen.roll(1, 1).index_fill(1, torch.tensor([0]), False) | chosen.roll(-1, 1).index_fill(1, torch.tensor([T - 1]), False)
            new = torch.rand(P, T, generator=generator) < torch.where(beside, 0.3, 0.03)
            new &= exists & ~chosen & short[:, None]
            # the last round may overshoot: keep only as many of the new ones as are missing, at random
            rank = torch.rand(P, T, generator=generator).masked_fill(~new, 2.0).argsort(dim=1).argsort(dim=1)
            chosen |= new & (rank < (counts - chosen.sum(1))[:, None])
        return chosen
    if kind == 'span':
        chosen = torch.zeros(P, T, dtype=torch.bool)
        for p, (count, length) in enumerate(zip(counts.tolist(), lengths.tolist())):
            n = max(1, round(count / span_length))
            sizes = torch.ones(n + length - count, dtype=torch.long)  # n runs, then single unmasked positions
            sizes[:n] = count // n
            sizes[:count % n] += 1
            order = torch.randperm(len(sizes), generator=generator)
            chosen[p, :length] = (order < n).repeat_interleave(sizes[order])
        return chosen
    raise ValueError(f"mask kind is {kind!r}; it must be one of {', '.join(MASK_KINDS)}")


def corrupt_like_bert(tokens, chosen, tokenizer, generator):
    """Of the chosen positions 80 % become [MASK], 10 % a random character, 10 % stay (BERT, arXiv 1810.04805). Returns inputs (P, T)."""
    u = torch.rand(tokens.shape, generator=generator)
    noise = torch.randint(len(tokenizer.chars), tokens.shape, generator=generator)
    inputs = torch.where(chosen & (u < 0.8), tokenizer.mask_id, tokens)
    return torch.where(chosen & (u >= 0.8) & (u < 0.9), noise, inputs)


def make_batch(tokens: torch.Tensor, lengths: torch.Tensor, chosen: torch.Tensor, mask_id: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """
    The prompts of a fill-in step: tokens (P, T) with every chosen position (P, T) bool masked. Returns a dict of tensors:
    tokens (P, T) masked, lengths (P,), slots (P, M) positions in reading order, n_slots (P,), original (P, T), and of `seed` each text's own, seeds (P,).
    """
    n_slots = chosen.sum(dim=1)
    if (n_slots == 0).any():
        raise ValueError(f"text {int((n_slots == 0).nonzero()[0, 0])} of the batch has no masked slot: there is nothing to fill in")
    M = int(n_slots.max())
    slots = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :M]         # masked positions first, in reading order
    slots = slots.masked_fill(torch.arange(M, device=slots.device) >= n_slots[:, None], 0)
    seeds = torch.tensor([(seed * 10 ** 5 + p) % 2 ** 62 for p in range(len(tokens))])
    return {'tokens': tokens.masked_fill(chosen, mask_id), 'lengths': lengths, 'slots': slots, 'n_slots': n_slots, 'original': tokens, 'seeds': seeds}


def text_with_slots(tokenizer, text, mask_char='_', mask_ratio=0.0, seed=1):
    """make_batch of one text in which mask_char marks the slots; or, with mask_ratio above 0, that share of it is masked at random. Raises ValueError where there is no slot."""
    lengths, chosen = torch.tensor([len(text)]), torch.tensor([[c == mask_char for c in text]])
    if mask_ratio > 0:
        chosen = choose_slots('random', lengths, len(text), (mask_ratio, mask_ratio), torch.Generator().manual_seed(seed))
    elif not chosen.any():
        raise ValueError(f"the text has no slot: mark some with {mask_char!r}, or give --mask_ratio=0.3")
    else:
        text = text.replace(mask_char, tokenizer.chars[0])  # what stands in a slot is unknown; the rest keeps its place
    return make_batch(torch.tensor([tokenizer.encode(text)]), lengths, chosen, tokenizer.mask_id, seed)


class FillInPolicy:
    """
    The policy of fill-in GRPO; see grpo.py for what a policy is.

    All slots of a text are filled from one forward over P rows, whatever G is. With unmask_steps=K > 1 the slots are
    dealt, at random and before anything is sampled, into K steps; a step sees the fills of those before it, so from the second
    on each of the G fills has a forward of its own. The order does not depend on the policy, so the log-probs stay exact.
    """

    def __init__(self, model: torch.nn.Module, tokenizer, temperature: float = 1.0, top_p: float = 1.0, unmask_steps: int = 1):
        if temperature <= 0 or not 0 < top_p <= 1 or unmask_steps < 1:
            raise ValueError(f"temperature {temperature} must be above 0, top_p {top_p} in (0, 1], unmask_steps {unmask_steps} at least 1")
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.top_p, self.unmask_steps = temperature, top_p, unmask_steps
        device = model.wte.weight.device
        self.forbidden = torch.zeros(tokenizer.vocab_size, dtype=torch.bool, device=device)
        self.forbidden[tokenizer.special_ids] = True

    def with_model(self, model):
        """The same distribution under another model's weights: a reference."""
        other = copy.copy(self)
        other.model = model
        return other

    def slot_hidden(self, batch, fills, step):
        """
        Hidden states at the slots, (P, 1, M, D) at step 0 and (P, G, M, D) later, of texts in which the slots of earlier
        steps hold `fills` (P, G, M) and the others [MASK].
        """
        slots = batch['slots'][:, None]                                         # (P, 1, M)
        texts = batch['tokens'][:, None]                                        # (P, 1, T)
        if step > 0:
            G = fills.shape[1]
            known = (batch['step_of_slot'] < step)[:, None].expand_as(fills)
            texts = fill(batch, torch.where(known, fills, self.tokenizer.mask_id))
            slots = slots.expand(-1, G, -1)
        P, H, T = texts.shape
        ragged = bool((batch['lengths'] < T).any())
        lengths = batch['lengths'].repeat_interleave(H) if ragged else None
        hidden = self.model(texts.reshape(P * H, T), lengths)                   # (P H, T, D)
        index = slots.reshape(P * H, -1, 1).expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index).view(P, H, slots.shape[-1], -1)          # (P, H, M, D)

    def hidden(self, rollout: Rollout) -> torch.Tensor:
        hidden = self.slot_hidden(rollout.batch, rollout.tokens, 0)
        for step in range(1, self.unmask_steps):
            now = (rollout.batch['step_of_slot'] == step)[:, None, :, None]
            hidden = torch.where(now, self.slot_hidden(rollout.batch, rollout.tokens, step), hidden)
        return hidden

    @torch.no_grad()
    def sample(self, batch: dict, group_size: int) -> Rollout:
        """Fills at the policy's temperature; each depends on its text, its seed and its place in the group, not on the rest of the batch."""
        P, M = batch['slots'].shape
        step_of_slot = torch.zeros_like(batch['slots'])
        noise, *u = uniforms(batch['seeds'].tolist(), 1 + group_size, M).to(step_of_slot.device).unbind(1)
        u = torch.stack(u, dim=1)                                               # (P, G, M)
        if self.unmask_steps > 1:
            noise.masked_fill_(torch.arange(M, device=noise.device) >= batch['n_slots'][:, None], 2.0)
            rank = noise.argsort(dim=1).argsort(dim=1)
            step_of_slot = rank * self.unmask_steps // batch['n_slots'][:, None]  # padding lands beyond the last step
        batch = batch | {'step_of_slot': step_of_slot}
        fills = batch['slots'].new_zeros(P, group_size, M)
        logps = torch.zeros(P, group_size, M, device=fills.device)
        allowed = None
        for step in range(self.unmask_steps):
            log_probs = head_log_probs(self, self.slot_hidden(batch, fills, step))            # (P, H, M, V)
            if not torch.isfinite(log_probs.amax(dim=-1)).all():
                raise FloatingPointError("the policy's logits are NaN: its weights are broken. Start from an earlier checkpoint with a lower learning_rate")
            now = (step_of_slot == step)[:, None]                                             # (P, 1, M)
            if self.top_p < 1:
                keep = choices(log_probs, 0, self.top_p)
                log_probs = log_probs.masked_fill(~keep, -torch.inf).log_softmax(dim=-1)
                allowed = pack(keep) if allowed is None else torch.where(now[..., None], pack(keep), allowed)
            draws = group_size // log_probs.shape[1]
            mass = log_probs.double().exp().cumsum(dim=-1)                                    # (P, H, M, V)
            target = u.view(P, -1, draws, M).transpose(2, 3).contiguous() * mass[..., -1:]    # (P, H, M, draws)
            drawn = torch.searchsorted(mass, target, right=True)  # the first whose cumulated mass lies above: never one of probability 0
            drawn = drawn.transpose(2, 3).reshape(P, group_size, M)
            fills = torch.where(now, drawn, fills)
            logps = torch.where(now, gather_logps(log_probs, drawn), logps)
        lengths = batch['n_slots'].cpu()[:, None].expand(P, group_size)
        return Rollout(batch=batch, tokens=fills, lengths=lengths, logps=logps, allowed=allowed)

    @torch.no_grad()
    def greedy(self, batch):
        """The likeliest fill of each slot from one forward: (P, 1, M)."""
        return head_log_probs(self, self.slot_hidden(batch, None, 0)).argmax(dim=-1)

    def texts(self, rollout: Rollout) -> list[list[str]]:
        """The filled texts: P lists of G strings."""
        return [[self.tokenizer.decode(ids[:n]) for ids in group]
                for group, n in zip(fill(rollout.batch, rollout.tokens).tolist(), rollout.batch['lengths'].tolist())]


def fill(batch, fills):
    """The texts (P, G, T) of a batch with their slots holding fills (P, G, M)."""
    P, G, M = fills.shape
    T = batch['tokens'].shape[1]
    # Padding slots all point at one extra position, cut off again: a real slot is never overwritten.
    real = torch.arange(M, device=fills.device) < batch['n_slots'][:, None]
    slots = torch.where(real, batch['slots'], T)[:, None].expand(P, G, M)
    texts = torch.cat((batch['tokens'], batch['tokens'][:, :1]), dim=1)[:, None].expand(P, G, T + 1)
    return texts.scatter(2, slots, fills)[..., :T]


def exact_match(batch, fills):
    """The share of slots that got the very character that stood there, over all texts and fills (P, G, M)."""
    wanted = batch['original'].gather(1, batch['slots'])[:, None]
    real = (torch.arange(fills.shape[-1], device=fills.device) < batch['n_slots'][:, None])[:, None].expand_as(fills)
    return (fills == wanted)[real].float().mean().item()


def score_fills(judge, batch, fills):
    """A judge's score of every fill: (P, G) in (0, 1), 1 for machine-made."""
    texts = fill(batch, fills)
    P, G, T = texts.shape
    lengths = batch['lengths'].repeat_interleave(G) if (batch['lengths'] < T).any() else None
    return judge.score(texts.reshape(P * G, T), lengths).view(P, G)


def describe_fills(tokenizer, batch, fills, n):
    """The first n texts, real over filled, with ^ under a slot filled as it was and x under one filled otherwise, as their first line says; a line end shows as |."""
    lines = ['  (^ as it was, x another character)']
    for p in range(min(n, len(fills))):
        length = int(batch['lengths'][p])
        real = tokenizer.decode(batch['original'][p][:length])
        filled = tokenizer.decode(fill(batch, fills)[p, 0][:length])
        slots = set(batch['slots'][p][:int(batch['n_slots'][p])].tolist())
        marks = ''.join(' ' if i not in slots else '^' if real[i] == filled[i] else 'x' for i in range(length))
        lines += [f"  real   {real}".replace('\n', '|'), f"  filled {filled}".replace('\n', '|'), f"         {marks}"]
    return '\n'.join(lines)
