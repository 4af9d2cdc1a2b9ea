"""
Completion: a causal model goes on from P prompts, G times each.

`generate` samples. A prompt is read once, whatever G is: its completions attend to the same keys and values
with one matrix product, and to their own with another, under one softmax (GroupCache). Rows that have ended
leave the batch. Each token costs one uniform number, which depends on the row's seed alone. `CausalPolicy`,
which grpo.py trains, samples, and scores the same completions again with gradients: again a prompt once.

Shapes: P prompts · G completions each · B rows still running, at most P G · T prompt tokens · R completion
tokens · V vocabulary · D width · H heads, H_kv of keys · d head width.
"""
import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from grpo import Rollout
from kernels import logits_of, wide
from kernels.decoding import draw_rows, fused
from runtime.console import Progress
from runtime.graphs import Kept, RowCache, compiled
from runtime.lora import adapters_off
from runtime.ranks import any_of
from runtime.shard import is_sharded

# -----------------------------------------------------------------------------
# the numbers that choose

def uniforms(seeds, G, R):
    """(P, G, R) numbers in [0, 1): hashes of (seeds[p], g, r) by splitmix64's mixer (Steele et al. 2014)."""
    golden = np.uint64(0x9E3779B97F4A7C15)

    def mix(x):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    g = np.arange(1, G + 1, dtype=np.uint64)[:, None]
    r = np.arange(1, R + 1, dtype=np.uint64)
    with np.errstate(over='ignore'):
        x = np.array(seeds, dtype=np.int64).astype(np.uint64)[:, None, None] * golden
        x = mix(mix(mix(x) + g * golden) + r * golden)
    return torch.from_numpy(x >> np.uint64(32)).double() / 2 ** 32


# -----------------------------------------------------------------------------
# the group cache

class GroupCache:
    """
    Keys and values while completions grow, in L lines of `width` rows. The rows of a line go on from the same
    prompt, whose keys, already scaled, and values the line holds once, (L H_kv, d, T) and (L H_kv, T, d);
    their own follow in slots that are the same for all, (L, H_kv, width, d, R) and (L, H_kv, width, R, d). So
    a line reads its prompt in one product. At first a line is a group; `keep` moves the rows that still run
    into fewer lines, or narrower ones. With a window above 1 all batches go through the same operations, and
    shapes change once per window, so that a step can be compiled. On a GPU runtime.graphs.RowCache is in its
    place.
    """

    def __init__(self, prefix, prompt_lengths, G, R, window):
        P, T, H_kv, d = prefix[0][0].shape
        device = prompt_lengths.device
        self.width, self.window, self.scale = G, window, d ** -0.5
        self.slot, self.n = 0, window                               # the newest token's; own ones looked at
        self.at = torch.zeros(1, dtype=torch.long, device=device)   # the slot again, for a compiled step
        self.prompt = torch.arange(P, device=device)                # (L,) of each line
        if window > 1:
            R = -(-R // window) * window + 1  # a slice is never the whole, which compiles separately
        prefix = [tuple(map(wide, pair)) for pair in prefix]        # scores are fp32, as in training
        self.keys = [k.permute(0, 2, 3, 1).flatten(0, 1) * self.scale for k, _ in prefix]
        self.values = [v.transpose(1, 2).flatten(0, 1).contiguous() for _, v in prefix]
        self.own = [(k.new_zeros(P, H_kv, G, d, R), k.new_zeros(P, H_kv, G, R, d)) for k, _ in prefix]
        absent = torch.arange(T, device=device) >= prompt_lengths.repeat_interleave(H_kv)[:, None]
        self.ragged = window > 1 or bool(absent.any())
        self.bias = prefix[0][0].new_zeros(P * H_kv, 1, T).masked_fill_(absent[:, None], -torch.inf)
        self.slots, self.zero = torch.arange(R, device=device), self.bias.new_zeros(())

    def go_to(self, slot):
        """Slot number `slot` is next: rows look at the slots written, rounded up to a window."""
        self.slot, self.n = slot, -(-(slot + 1) // self.window) * self.window

    def attend(self, layer, q, k, v):
        """One new token for each row: q (B, H, d), k and v (B, H_kv, d) -> (B, H, d), B = L width."""
        (keys, values), later, dtype = self.own[layer], None, q.dtype
        L, H_kv, width, _, d = values.shape
        q, k, v = map(wide, (q, k, v))
        k, v = (x.view(L, width, H_kv, d).transpose(1, 2) for x in (k, v))      # (L, H_kv, width, d)
        if self.window > 1:
            keys.index_copy_(4, self.at, k.unsqueeze(4))
            values.index_copy_(3, self.at, v.unsqueeze(3))
            later = self.slots[:self.n] > self.at
        else:
            torch._foreach_copy_((keys.select(4, self.slot), values.select(3, self.slot)), (k, v))
        q = q.view(L, width, H_kv, -1, 1, d).transpose(1, 2)
        return self.look(layer, q, later).transpose(1, 2).reshape(L * width, -1, d).to(dtype)

    def look(self, layer, q, later=None):
        """
        M queries of each row and head, q (L, H_kv, width, heads, M, d), at its prompt and at its own first n
        slots but those that are `later`, broadcast to (..., M, n) -> the same shape.
        """
        keys, values, shape, n = self.keys[layer], self.values[layer], q.shape, self.n
        L, H_kv, width, heads, M, d = shape
        own_keys, own_values = (x.flatten(0, 2) for x in self.own[layer])
        q = q.reshape(L * H_kv, width * heads * M, d)
        # (L H_kv, width heads M, T)
        scores = torch.baddbmm(self.bias, q, keys) if self.ragged else torch.bmm(q, keys)
        of_rows, own_keys = q.reshape(-1, heads * M, d), own_keys[:, :, :n]
        own_scores = torch.baddbmm(self.zero, of_rows, own_keys, beta=0, alpha=self.scale)
        if later is not None:
            own_scores = own_scores.view(*shape[:-1], n).masked_fill(later, -torch.inf)
        scores = torch.cat((scores, own_scores.view(*scores.shape[:2], n)), dim=-1)
        of_prompt, of_own = scores.softmax(dim=-1).split_with_sizes([keys.shape[-1], n], -1)
        y = torch.bmm(of_prompt, values).view(-1, heads * M, d)
        return torch.baddbmm(y, of_own.reshape(-1, heads * M, n), own_values[:, :n]).view(shape)

    def pays(self, alive, places):
        """Whether it pays to keep no more than the rows that are alive."""
        least = 8 if self.window > 1 else 1  # one row alone would be compiled separately
        return least <= alive <= 0.85 * places

    def keep(self, rows):
        """Only rows (B',) stay, in order. Returns which of the old ones each place has now, -1 for none."""
        old, H_kv, device = self.width, self.own[0][0].shape[1], rows.device
        prompts = self.prompt[rows // old]                                      # (B',)
        _, group, counts = prompts.unique_consecutive(return_inverse=True, return_counts=True)
        width = self.width = self.widest(counts.cpu())
        lines = -(-counts // width)                                             # of each group
        first_row, first_line = counts.cumsum(0) - counts, lines.cumsum(0) - lines
        places = first_line[group] * width + torch.arange(len(rows), device=device) - first_row[group]
        moved = torch.full((int(lines.sum()) * width,), -1, device=device).index_copy_(0, places, rows)
        source = moved.clamp(min=0).view(-1, 1, width)                          # (L', 1, width)
        line = source[:, 0, 0] // old
        head = torch.arange(H_kv, device=device)
        of_prompt = (line[:, None] * H_kv + head).flatten()                     # (L' H_kv,)
        of_own = ((source // old * H_kv + head[:, None]) * old + source % old).flatten()
        self.prompt, self.bias = self.prompt[line], self.bias[of_prompt]
        for layer, own in enumerate(self.own):
            own = (x.flatten(0, 2).index_select(0, of_own) for x in own)
            self.own[layer] = tuple(x.unflatten(0, (len(line), H_kv, width)) for x in own)
            self.keys[layer] = self.keys[layer].index_select(0, of_prompt)
            self.values[layer] = self.values[layer].index_select(0, of_prompt)
        return moved

    def widest(self, counts):
        """The widest lines for groups of counts (g,) rows, on the CPU, with at most a tenth to spare."""
        least = 2 if self.window > 1 else 1  # a width of 1 compiles separately
        total = counts.sum()
        for width in range(int(counts.max()), least, -1):
            if (-(-counts // width)).sum() * width * 0.9 <= total:
                return width
        return least


# -----------------------------------------------------------------------------
# sampling

@dataclass
class Completions:
    """What generate() returns."""
    tokens: torch.Tensor                  # (P, G, R) int64, right-padded with 0; the end token is among them
    lengths: torch.Tensor                 # (P, G) true lengths, the end token included
    logps: torch.Tensor                   # (P, G, R) fp32, under the distribution that was drawn from
    ended: torch.Tensor                   # (P, G) bool: False where max_new_tokens cut it off
    allowed: torch.Tensor | None = None   # (P, G, R, V / 8) bits: what top_k and top_p left; None: everything


class Decoder:
    """
    The completions of a batch while they grow: buffers for all N = P G, and one to spare for places of the
    cache that no row has; and the B rows that such places hold. `write` and `step` change tensors in place
    and never wait for the device: a CUDA graph can hold them.
    """

    def __init__(self, model, cache, N, R, ends, sampling):
        """ends: ids of end tokens; sampling: see kernels.decoding.draw."""
        device = model.wte.weight.device
        zeros = partial(torch.zeros, device=device)
        self.model, self.cache, self.sampling = model, cache, sampling
        self.ends = torch.tensor(ends).to(device, non_blocking=True) if ends else None
        self.u, self.tokens = zeros(N + 1, R, dtype=torch.double), zeros(N + 1, R, dtype=torch.long)
        self.logps, self.allowed = zeros(N + 1, R), None
        if sampling[1] or sampling[2] < 1:
            self.allowed = zeros(N + 1, R, -(-model.config.vocab_size // 8), dtype=torch.uint8)
        self.room = zeros(3, N, dtype=torch.long)

    def start(self, u, positions):
        """u (N, R): a number for each token; positions (N,) of the first tokens."""
        self.u[:-1] = u
        self.logps.zero_()
        self.hold(torch.arange(len(u), device=u.device), torch.ones_like(positions), positions)

    def hold(self, *places):
        """From now on: rows (B,), p G + g or N; 1 where one runs; positions. In the memory a graph reads."""
        self.rows, self.running, self.positions = self.room[:, :len(places[0])].copy_(torch.stack(places))
        self.cache.rows = self.rows

    def write(self, hidden):
        """Draw the token at slot cache.at of each row from hidden (B, D)."""
        draw_rows(logits_of(hidden, self.model.lm_head.weight), self.u, self.rows, self.cache.at, self.tokens,
                  self.logps, self.allowed, self.running, self.ends, self.sampling)

    def step(self):
        """Read the newest token of each row and write the next."""
        at, attend = self.cache.at, self.cache.attend
        tokens, positions = self.tokens[self.rows, at], self.positions + at
        hidden = self.model.run(tokens, positions, attend, turns=isinstance(self.cache, RowCache))
        at.add_(1)
        self.write(hidden)

    def is_end(self, tokens):
        return torch.zeros_like(tokens) > 0 if self.ends is None else torch.isin(tokens, self.ends)

    def newest(self, r):
        """The rows whose completion has a token number r, and those tokens."""
        rows = self.rows[self.rows < len(self.u) - 1]
        rows = rows[~self.is_end(self.tokens[rows, :r]).any(dim=1)]
        return rows, self.tokens[rows, r]

    def drop_ended(self):
        """The rows that have ended leave the batch, and the cache."""
        moved = self.cache.keep(self.running.nonzero().squeeze(-1))
        running, source = moved >= 0, moved.clamp(min=0)
        rows = torch.where(running, self.rows[source], len(self.u) - 1)
        self.hold(rows, running.long(), self.positions[source])

    def completions(self, P, G, lengths=None, ended=None):
        """All of them, as Completions. Raises FloatingPointError where the model's logits were NaN."""
        tokens, logps = self.tokens[:-1], self.logps[:-1]
        if lengths is None:  # (P G,), to the first end token
            ends = self.is_end(tokens)
            ended = ends.any(dim=1)
            lengths = torch.where(ended, ends.int().argmax(dim=1) + 1, tokens.shape[1])
        if not torch.isfinite(logps).all():
            raise FloatingPointError("the model's logits are NaN, its weights are broken: start from an "
                                     "earlier checkpoint with a lower learning_rate")
        R = int(lengths.max())
        padding = torch.arange(R, device=lengths.device) >= lengths[:, None]
        tokens = tokens[:, :R].masked_fill(padding, 0)  # ended rows went on writing until they left
        logps = logps[:, :R].masked_fill(padding, 0.0)
        allowed = None if self.allowed is None else self.allowed[:-1, :R]
        parts = tokens, lengths, logps, ended, allowed
        return Completions(*(None if x is None else x.unflatten(0, (P, G)) for x in parts))


def generate(model: torch.nn.Module, prompts: list[list[int]], group_size: int = 1,  # noqa: PLR0913
             max_new_tokens: int = 256,
             temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
             eos_id: int | Sequence[int] | None = None,
             seed: int | list[int] | None = None, forbidden: torch.Tensor | None = None,
             on_token: Callable | None = None, compile: bool = False, prefill: Callable | None = None,
             lockstep: bool = False, kept: Kept | None = None) -> Completions:
    """
    group_size completions of each prompt (P lists of token ids), until eos_id (an id or several) or
    max_new_tokens. temperature 0 is greedy; top_k 0 and top_p 1 are off; forbidden (V,) bool: never sampled.
    seed: an int, P ints (a completion then depends on its prompt, its seed and its place in the group alone),
    or None: different each time. on_token(r, rows, tokens) is called after each token with the rows p G + g
    still running. compile: on a CPU the step goes through torch.compile (ten seconds per layer at first use);
    only last digits change. prefill stands in for model.prefill. lockstep: the model is sharded, and all
    ranks, each with its own prompts, take every step together. kept: holds a GPU's CUDA graphs for the next
    call. Raises ValueError for an empty prompt, and for one that leaves no room for max_new_tokens in the
    model's block_size.
    """
    check_request(prompts, model.config.block_size, group_size, max_new_tokens, temperature, top_k, top_p)
    P, G, R, device = len(prompts), group_size, max_new_tokens, model.wte.weight.device
    look_every = 16 if device.type == 'cuda' and not on_token else 1  # counting makes the host wait
    # not in inference mode if sharded: weights collected in it could not be trained with
    with torch.no_grad() if lockstep else torch.inference_mode():
        u = uniforms(seeds_of(seed, P), G, R).flatten(0, 1).to(device)
        hidden, prefix, lengths = read_prompts(prefill or model.prefill, prompts, device)
        ends = [] if eos_id is None else torch.as_tensor(eos_id).view(-1).tolist()
        sampling = temperature, top_k, top_p, forbidden
        kept = kept or Kept(captures=not lockstep)
        decoder, step = decoder_of(model, prefix, lengths, u, ends, sampling, compile, kept)
        decoder.write(hidden.repeat_interleave(G, dim=0))
        for r in range(R):
            if on_token:
                on_token(r, *decoder.newest(r))
            if r + 1 == R:
                break
            if ends and r % look_every == 0:
                alive = int(decoder.running.sum())
                if not (any_of(device, alive)[0] if lockstep else alive):
                    break
                if decoder.cache.pays(alive, len(decoder.rows)):
                    decoder.drop_ended()
            decoder.cache.go_to(r)
            step()
        completions = decoder.completions(P, G)
        kept.let_go()
    # autograd may keep these
    return Completions(*(None if x is None else x.clone() for x in vars(completions).values()))


def decoder_of(model, prefix, lengths, u, ends, sampling, compile, kept):
    """A Decoder behind the prompts, and its step; on a GPU `kept` has them."""
    (N, R), P, (like, _) = u.shape, len(lengths), prefix[0]
    make = partial(Decoder, model, N=N, R=R, ends=ends, sampling=sampling)
    if not fused(like):
        decoder = make(GroupCache(prefix, lengths, N // P, R, 16 if compile else 1))
        step = compiled(decoder.step) if compile else decoder.step
    else:
        kind = P, N, R, ends, *sampling[:3], id(sampling[3])
        decoder = kept.decoder_for(model, kind, like.shape[1],
                                   lambda T: make(RowCache(model, like, N // P, T, R)))
        decoder.cache.start(prefix, lengths)
        step = kept.step
    decoder.start(u, lengths.repeat_interleave(N // P))
    return decoder, step


def check_request(prompts, block_size, G, R, temperature, top_k, top_p):
    """Raises ValueError for what generate cannot do."""
    lengths = [len(p) for p in prompts]
    longest = max(lengths)
    if 0 in lengths:
        raise ValueError(f"prompt {lengths.index(0)} is empty: a model goes on from at least one token")
    if longest + R > block_size:
        raise ValueError(f"a prompt of {longest} tokens and max_new_tokens {R} exceed the model's block_size "
                         f"of {block_size}: shorten one of them")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or R < 1 or G < 1:
        raise ValueError(f"temperature {temperature} and top_k {top_k} must be at least 0, top_p {top_p} in "
                         f"(0, 1], max_new_tokens {R} and group_size {G} at least 1")


def seeds_of(seed, P):
    """P seeds: as given, or made of one; of None, from the system's randomness."""
    if isinstance(seed, (list, tuple)):
        return seed
    seed = int.from_bytes(os.urandom(5)) if seed is None else seed
    return [seed % 2 ** 40 * 2 ** 20 + p for p in range(P)]


def read_prompts(prefill, prompts, device):
    """Each prompt read once: hidden states (P, D) that predict its first new token; prefix; lengths (P,)."""
    lengths = torch.tensor([len(p) for p in prompts])
    hidden, prefix = prefill(padded(prompts, device), lengths)
    lengths = lengths.to(device)
    return hidden[torch.arange(len(prompts), device=device), lengths - 1], prefix, lengths


def padded(prompts, device):
    """Lists of token ids as one tensor (P, T), right-padded with 0."""
    T = max(map(len, prompts))
    return torch.tensor([list(p) + [0] * (T - len(p)) for p in prompts], device=device)


# -----------------------------------------------------------------------------
# the policy

class CausalPolicy:
    """
    What grpo.py trains. Its batch: prompts (P, T) int64 right-padded, prompt_lengths (P,) and seeds (P,) on
    the CPU.
    """
    mirror = None  # the MirrorMap of a reference, if its divergence is one

    def __init__(self, model: torch.nn.Module, tokenizer, max_new_tokens: int = 256, temperature: float = 1.0,
                 top_k: int = 0, top_p: float = 1.0, compile: bool = False):
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} must be above 0, or a group's completions are equal")
        if not model.config.causal:
            raise ValueError("this model fills gaps and cannot continue a text: name a causal model")
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.temperature, self.top_k, self.top_p, self.compile = temperature, top_k, top_p, compile
        self.kept = Kept()
        self.forbidden = forbidden_tokens(tokenizer, model)

    def with_model(self, model):
        """The same distribution under another model's weights: a reference."""
        reference = copy.copy(self)
        reference.model = model
        return reference

    def without_adapters(self):
        """The same model with its LoRA adapters switched off: a reference that costs no memory."""
        def hidden(rollout):
            with adapters_off(self.model):
                return self.hidden(rollout)

        reference = copy.copy(self)
        reference.hidden = hidden
        return reference

    def prefill(self, prompts, batch):
        """Prompts (P, T) read once; see GPT.prefill."""
        return self.model.prefill(prompts, batch['prompt_lengths'].numpy())  # FSDP2 would move a tensor

    def sample(self, batch: dict, group_size: int) -> Rollout:
        """Completions at the policy's temperature, see generate."""
        prompts = prompts_of(batch)
        on_cpu = self.model.wte.weight.device.type == 'cpu'
        options = {'temperature': self.temperature, 'top_k': self.top_k, 'top_p': self.top_p,
                   'eos_id': self.tokenizer.eos_ids, 'seed': batch['seeds'].tolist(),
                   'forbidden': self.forbidden, 'compile': self.compile, 'lockstep': is_sharded(self.model),
                   'kept': None if is_sharded(self.model) else self.kept}
        with Progress('tokens', self.max_new_tokens) as progress:
            on_token = progress.step if on_cpu else None  # it would wait for a GPU at each token
            made = generate(self.model, prompts, group_size, self.max_new_tokens, on_token=on_token,
                            prefill=lambda tokens, _: self.prefill(tokens, batch), **options)
        return Rollout(batch=batch, tokens=made.tokens, lengths=made.lengths.cpu(), logps=made.logps,
                       ended=made.ended.cpu(), allowed=made.allowed)

    def greedy(self, batch: dict) -> Rollout:
        """The likeliest token each time: a rollout with one completion per prompt."""
        greedy = copy.copy(self)
        greedy.temperature, greedy.top_k, greedy.top_p = 0.0, 0, 1.0
        return greedy.sample(batch, 1)

    def hidden(self, rollout: Rollout) -> torch.Tensor:
        """Hidden states (P, G, R, D) that predict the completions' tokens; the first is the prompt's last."""
        P, G, R = rollout.tokens.shape
        prompt_lengths = rollout.batch['prompt_lengths']
        states, prefix = self.prefill(rollout.batch['prompts'][:, :int(prompt_lengths.max())], rollout.batch)
        ends = prompt_lengths.to(states.device, non_blocking=True) - 1
        last = states[torch.arange(P, device=states.device), ends]
        hidden = last[:, None, None].expand(P, G, 1, -1)
        lengths = (rollout.lengths - 1).clamp(min=0)  # a last token is predicted, and predicts none
        if is_sharded(self.model) and not lengths.any():
            lengths[0, 0] = 1  # its ranks take the same forwards
        steps, known = int(lengths.max()), (prompt_lengths.numpy(), lengths.numpy())
        if steps:
            behind = self.model.complete(rollout.tokens[:, :, :steps], prefix, *known)
            hidden = torch.cat((hidden, behind), dim=2)
        return F.pad(hidden, (0, 0, 0, R - hidden.shape[2]))

    def texts(self, rollout: Rollout) -> list[list[str]]:
        """The completions without their end token: P lists of G strings."""
        return [list(map(self.text, group)) for group in rollout.ids()]

    def text(self, ids):
        return self.tokenizer.decode(ids[:-1] if ids and ids[-1] in self.tokenizer.eos_ids else ids)


def forbidden_tokens(tokenizer, model):
    """
    (V,) bool of what is never sampled, or None: rows of the embedding without a token, and the [MASK], [PAD]
    and [CLS] of a model of characters.
    """
    forbidden = torch.arange(model.config.vocab_size) >= tokenizer.vocab_size
    if getattr(tokenizer, 'ids', None):
        forbidden[:] = True
        forbidden[tokenizer.ids] = False
    if hasattr(tokenizer, 'chars'):
        forbidden[[i for i in tokenizer.special_ids if i not in tokenizer.eos_ids]] = True
    return forbidden.to(model.wte.weight.device) if forbidden.any() else None


def prompt_batch(prompts: list[list[int]], seeds: list[int], device: str = 'cpu') -> dict[str, torch.Tensor]:
    """What a CausalPolicy samples from, of P lists of token ids and P seeds."""
    lengths = torch.tensor([len(p) for p in prompts])
    return {'prompts': padded(prompts, device), 'prompt_lengths': lengths, 'seeds': torch.tensor(seeds)}


def prompts_of(batch):
    """The P lists of token ids again."""
    rows = zip(batch['prompts'].tolist(), batch['prompt_lengths'].tolist(), strict=True)
    return [row[:n] for row, n in rows]


# -----------------------------------------------------------------------------
# what a model thinks of texts

def next_log_probs(model, tokens, lengths=None):
    """(N, T - 1) fp32: the log-prob of each of tokens (N, T) but the first; lengths: see GPT.forward."""
    log_probs = model.logits(tokens, lengths)[:, :-1].float().log_softmax(dim=-1)
    return log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)


@torch.no_grad()
def text_log_prob(model, ids):
    """Mean log-prob per token of a text (token ids): how much of its language a model has kept."""
    return next_log_probs(model, torch.tensor([ids], device=model.wte.weight.device)).mean().item()


@torch.no_grad()
def text_log_probs(model, tokenizer, texts, batch_size=16):
    """
    Each text's mean log-prob per character, in nats, of what follows its first token; -inf when nothing does.
    A text longer than the model's block_size is cut.
    """
    rows = [tokenizer.encode_prompt(text)[:model.config.block_size] for text in texts]
    values = [-float('inf')] * len(texts)
    longer = [i for i, ids in enumerate(rows) if len(ids) > 1]
    longer.sort(key=lambda i: len(rows[i]))  # similar lengths together
    for start in range(0, len(longer), batch_size):
        batch = longer[start:start + batch_size]
        tokens = padded([rows[i] for i in batch], model.wte.weight.device)
        found = next_log_probs(model, tokens, torch.tensor([len(rows[i]) for i in batch]))
        for i, log_probs in zip(batch, found.cpu(), strict=True):
            ids = rows[i]
            n_characters = len(tokenizer.decode(ids)) - len(tokenizer.decode(ids[:1]))
            values[i] = log_probs[:len(ids) - 1].sum().item() / max(1, n_characters)
    return values
