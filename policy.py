"""
Completion: a causal model goes on from a prompt, G times. A group shares its prompt, so training, like sampling, reads
each prompt once: one forward over (P, T) prompts whose keys and values all G answers attend to, with gradients.
Shapes: P prompts · G answers · T prompt tokens · R answer tokens · D width · V vocabulary.
"""
import copy
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from grpo import Rollout
from kernels import pack
from runtime.console import Progress
from runtime.lora import adapters_off
from runtime.shard import is_sharded


@dataclass
class Completions:
    """What generate() returns."""
    tokens: torch.Tensor                    # (P, G, R) int64, right-padded with 0; an answer that ended holds its end token
    lengths: torch.Tensor                   # (P, G) true lengths, the end token included
    logps: torch.Tensor                     # (P, G, R) fp32, of each token under the distribution it was drawn from
    ended: torch.Tensor                     # (P, G) bool: false where max_new_tokens cut it off
    allowed: torch.Tensor | None = None     # (P, G, R, V / 8) uint8, see pack: what top_k and top_p left over; None is everything


def uniforms(seeds, G, R):
    """(P, G, R) numbers in [0, 1): that of answer g's token r is a hash of (seeds[p], g, r) (the mixer of splitmix64, Steele et al. 2014)."""
    with np.errstate(over='ignore'):
        x = np.array(seeds, dtype=np.int64).astype(np.uint64)[:, None, None] * np.uint64(0x9E3779B97F4A7C15)
        for counter, axis in ((np.arange(G, dtype=np.uint64), (-1, 1)), (np.arange(R, dtype=np.uint64), (1, -1))):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = (x ^ (x >> np.uint64(31))) + (counter.reshape(axis) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((x ^ (x >> np.uint64(31))) >> np.uint64(32)).double() / 2 ** 32


def choices(logits, top_k, top_p):
    """bool (B, V): the top_k likeliest tokens (0: all) and of these the smallest set with mass at least top_p (arXiv 1904.09751)."""
    keep = logits > -torch.inf
    if 0 < top_k < logits.shape[-1]:
        likeliest = logits.topk(top_k, dim=-1).indices  # by index, not by value: ties do not let more than k in
        keep &= torch.zeros_like(keep).scatter_(-1, likeliest, True)
    if top_p < 1:
        probs, order = logits.masked_fill(~keep, -torch.inf).softmax(dim=-1).sort(dim=-1, descending=True)
        inside = probs.cumsum(dim=-1) - probs < top_p  # the mass before a token decides, so the likeliest one always stays
        keep &= torch.zeros_like(keep).scatter_(-1, order, inside)
    return keep


def draw(logits, u, temperature, top_k, top_p, forbidden):
    """
    One token for each row of logits (B, V) fp32 by its number u (B,) in [0, 1). Returns tokens (B,), their log-probs (B,)
    fp32 and what was allowed (B, V) or None. At temperature 0 the likeliest token, with its log-prob at temperature 1.
    """
    if temperature not in (0, 1):
        logits = logits / temperature
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, -torch.inf)
    allowed = None
    if top_k or top_p < 1:
        allowed = choices(logits, top_k, top_p)
        logits = logits.masked_fill(~allowed, -torch.inf)
    B, V = logits.shape
    largest, likeliest = logits.max(dim=-1, keepdim=True)
    mass = logits.new_zeros(B, -(-V // 128) * 128)  # in blocks of 128: first the block is found, then the token in it
    torch.sub(logits, largest, out=mass[:, :V])
    mass[:, :V].exp_()
    mass = mass.view(B, -1, 128)
    blocks = mass.sum(dim=-1).double().cumsum(dim=-1)                            # (B, V / 128)
    total = blocks[:, -1:]
    tokens = likeliest
    if temperature > 0:
        # searchsorted with `right`: the first whose cumulated mass lies above; what has probability 0 adds none and is never found
        target = u[:, None] * total
        block = torch.searchsorted(blocks, target, right=True).clamp(max=blocks.shape[1] - 1)  # (B, 1); the clamps are for NaN, which is told of at the end
        before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)), 0.0)
        inside = mass.gather(1, block[..., None].expand(-1, 1, 128)).squeeze(1).double().cumsum(dim=-1)
        share = (target - before) / (blocks.gather(1, block) - before)          # how far into the block
        tokens = block * 128 + torch.searchsorted(inside, (share * inside[:, -1:]).clamp(max=inside[:, -1:] * (1 - 2 ** -40)), right=True)
        tokens = tokens.clamp(max=V - 1)
    logps = logits.gather(-1, tokens) - largest - total.log().float()
    return tokens.squeeze(-1), logps.squeeze(-1), allowed


class GroupCache:
    """
    Keys and values while answers grow. Each prompt's lie there once, (P, H_kv, d, T) and (P, H_kv, T, d); each row's own
    behind them in slots that are the same for all rows, (B, H_kv, R, d). `place` (B,) says which of the P x G places of the
    prompts' rectangle a row takes, `row` (P G,) which row is at a place; None while none has left. With a window every batch goes through the same operations,
    whatever its lengths and whoever has left, and shapes change once per window: something to compile.
    """

    def __init__(self, prefix, prompt_lengths, G, R, window):
        P, T, H_kv, d = prefix[0][0].shape
        device = prompt_lengths.device
        self.G, self.window = G, window
        self.n = window                                                         # how many of its own slots a row looks at, see go_to
        self.at = torch.zeros(1, dtype=torch.long, device=device)               # the slot of the newest token, where the device can count it
        self.place = self.row = None
        self.prompt = torch.arange(P, device=device).repeat_interleave(G)       # (B,) each row's prompt
        if window > 1:
            self.arrange()
            R = -(-R // window) * window + 1  # no slice is ever the whole, which would be another kind of tensor
        self.keys = [k.permute(0, 2, 3, 1).contiguous() for k, _ in prefix]
        self.values = [v.transpose(1, 2).contiguous() for _, v in prefix]
        self.own = [k.new_zeros(2, P * G, H_kv, R, d) for k, _ in prefix]       # keys, values
        absent = torch.arange(T, device=device) >= prompt_lengths[:, None]
        self.bias = torch.zeros(P, 1, 1, T, device=device).masked_fill_(absent[:, None, None], -torch.inf)
        self.ragged = window > 1 or bool(absent.any())
        self.slots = torch.arange(R, device=device)

    def go_to(self, slot):
        """Slot number `slot` is next: a row looks at those that are written; with a window, at their number rounded up."""
        self.n = -(-(slot + 1) // self.window) * self.window

    def attend(self, layer, q, k, v):
        """One new token for each row: q (B, H, d), k and v (B, H_kv, d) -> (B, H, d)."""
        B, H, d = q.shape
        keys, values, own, n = self.keys[layer], self.values[layer], self.own[layer], self.n
        P, H_kv, _, T = keys.shape
        share = H // H_kv
        own.index_copy_(3, self.at, torch.stack((k, v)).unsqueeze(3))
        q = q * d ** -0.5

        together = self.to_rectangle(q).view(P, self.G, H_kv, share, d).transpose(1, 2).reshape(P, H_kv, self.G * share, d)
        scores = (together @ keys).float()                                      # (P, H_kv, G share, T)
        if self.ragged:
            scores = scores + self.bias
        scores = self.from_rectangle(scores.view(P, H_kv, self.G, share, T).transpose(1, 2))
        own_scores = q.view(B, H_kv, share, d) @ own[0, :, :, :n].transpose(2, 3)
        if self.window > 1:
            own_scores = own_scores.masked_fill(self.slots[:n] > self.at, -torch.inf)
        weights = torch.cat((scores, own_scores), dim=-1).softmax(dim=-1).to(q.dtype)
        shared_weights, own_weights = weights.split([T, n], dim=-1)             # (B, H_kv, share, T), (..., n)
        together = self.to_rectangle(shared_weights).view(P, self.G, H_kv, share, T).transpose(1, 2).reshape(P, H_kv, self.G * share, T)
        y = self.from_rectangle((together @ values).view(P, H_kv, self.G, share, d).transpose(1, 2))
        return (y + own_weights @ own[1, :, :, :n]).reshape(B, H, d)

    def to_rectangle(self, x):
        """(B, ...) as (P, G, ...); where a row has left, that of another."""
        if self.row is not None:
            x = x[self.row]
        return x.view(len(self.bias), self.G, *x.shape[1:])

    def from_rectangle(self, x):
        """(P, G, ...) as (B, ...)."""
        x = x.flatten(0, 1)
        return x if self.place is None else x[self.place]

    def keep(self, rows):
        """Only rows (B',) stay, in order; prompts none of whose rows stay leave too, and the rectangle narrows to the fullest group."""
        self.own = [x[:, rows] for x in self.own]
        used, self.prompt = self.prompt[rows].unique_consecutive(return_inverse=True)
        if len(used) < len(self.bias):
            self.keys, self.values, self.bias = [x[used] for x in self.keys], [x[used] for x in self.values], self.bias[used]
        self.arrange()

    def arrange(self):
        """The places of the rows there are, in a rectangle as narrow as the fullest group; to be compiled, no narrower than 2: one would be compiled for apart."""
        counts = self.prompt.bincount()
        self.G = max(2 if self.window > 1 else 1, int(counts.max()))
        rows = torch.arange(len(self.prompt), device=self.prompt.device)
        self.place = self.prompt * self.G + rows - (counts.cumsum(0) - counts)[self.prompt]
        self.row = rows.new_zeros(len(counts) * self.G).index_copy_(0, self.place, rows)


def run(model, prompts, group_size, max_new_tokens, temperature, top_k, top_p, eos_id, seed, forbidden, on_token, compile, prefill, lockstep):
    P, G, R, V = len(prompts), group_size, max_new_tokens, model.config.vocab_size
    device = model.wte.weight.device
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise ValueError(f"prompt {[len(p) for p in prompts].index(0)} is empty: a model needs at least one token to go on from")
    if longest + R > model.config.block_size:
        raise ValueError(f"a prompt of {longest} tokens and max_new_tokens {R} make {longest + R}, more than this model's block_size of {model.config.block_size}: shorten one of them")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or R < 1 or G < 1:
        raise ValueError(f"temperature {temperature} and top_k {top_k} must be at least 0, top_p {top_p} in (0, 1], max_new_tokens {R} and group_size {G} at least 1")
    seed = int.from_bytes(os.urandom(5)) if seed is None else seed
    seeds = seed if isinstance(seed, (list, tuple)) else [seed % 2 ** 40 * 2 ** 20 + p for p in range(P)]
    u = uniforms(seeds, G, R).flatten(0, 1).to(device)                          # (P G, R)

    lengths = torch.tensor([len(p) for p in prompts], device=device)
    padded = torch.tensor([list(p) + [0] * (longest - len(p)) for p in prompts], device=device)
    hidden, prefix = (prefill or model.prefill)(padded)
    hidden = hidden[torch.arange(P, device=device), lengths - 1].repeat_interleave(G, dim=0)  # (P G, D): predicts each answer's first token
    cache = GroupCache(prefix, lengths, G, R, window=64 if compile else 1)
    del prefix

    tokens, logps = padded.new_zeros(P * G, R), torch.zeros(P * G, R, device=device)
    counts, ended = padded.new_full((P * G,), R), torch.zeros(P * G, dtype=torch.bool, device=device)
    allowed = torch.zeros(P * G, R, -(-V // 8), dtype=torch.uint8, device=device) if top_k or top_p < 1 else None
    rows, running = torch.arange(P * G, device=device), torch.ones(P * G, dtype=torch.bool, device=device)  # (B,)
    positions, at = lengths.repeat_interleave(G), cache.at

    def take(hidden):
        """Token `at` of each row. Here and in go_on all that changes does so in place, and nothing waits for the device: a CUDA graph can hold it."""
        new, logp, choice = draw(model.lm_head(hidden).float(), u[rows, at], temperature, top_k, top_p, forbidden)
        tokens[rows, at], logps[rows, at] = new, logp
        if choice is not None:
            allowed[rows, at] = pack(choice)
        if eos_id is not None:
            stops = running & (new == eos_id)
            counts[rows] = torch.where(stops, at + 1, counts[rows])
            ended[rows] |= stops
            running.logical_and_(~stops)

    def go_on():
        hidden = model.run(tokens[rows, at], positions + at, cache.attend)
        at.add_(1)
        take(hidden)

    if compile:
        torch.fx.experimental._config.use_duck_shape = False  # sizes that are equal by chance stay apart: one compilation for all batches
        go_on = torch.compile(go_on, dynamic=True)
    graphs = compile and device.type == 'cuda'
    graph, shape = None, None
    look_every = 16 if device.type == 'cuda' and not on_token else 1  # looking at how many still run makes the host wait for the GPU
    full = 0.5 if graphs else 0.85  # leaving costs a copy of the cache, about what one more step costs, and a new graph
    fewest = 8 if compile else 1    # one row alone would be compiled for apart
    def anyone(alive):
        """Has anyone to go on? In lockstep a rank whose answers have all ended keeps step with the others."""
        if lockstep:
            dist.all_reduce(alive := torch.tensor(alive, device=device))
        return int(alive) > 0

    take(hidden)
    for step in range(R):
        if on_token:
            now = rows[counts[rows] > step]
            on_token(step, now, tokens[now, step])
        if step + 1 == R:
            break
        if eos_id is not None and step % look_every == 0:
            alive = int(running.sum())
            if not anyone(alive):
                break
            if alive <= full * len(rows) and alive >= fewest:
                stay = running.nonzero().squeeze(-1)
                cache.keep(stay)
                rows, running, positions = rows[stay], running[stay], positions[stay]
        cache.go_to(step)
        if not graphs or shape != (len(rows), cache.n):
            shape, graph = (len(rows), cache.n), None  # the first step of a shape warms up
            go_on()
        else:
            if graph is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    go_on()
            graph.replay()
    if not torch.isfinite(logps).all():
        raise FloatingPointError("the model's logits are NaN: its weights are broken. Start from an earlier checkpoint with a lower learning_rate")
    R = int(counts.max())
    real = torch.arange(R, device=device) < counts[:, None]
    tokens, logps = tokens[:, :R].masked_fill(~real, 0), logps[:, :R].masked_fill(~real, 0.0)  # rows that waited for others wrote on
    shape = lambda x: None if x is None else x.unflatten(0, (P, G))
    return Completions(shape(tokens), shape(counts), shape(logps), shape(ended), shape(None if allowed is None else allowed[:, :R]))


def generate(model: torch.nn.Module, prompts: list[list[int]], group_size: int = 1, max_new_tokens: int = 256, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, eos_id: int | None = None,
             seed: int | list[int] | None = None, forbidden: torch.Tensor | None = None, on_token: Callable | None = None, compile: bool = False, prefill: Callable | None = None, lockstep: bool = False) -> Completions:
    """
    group_size answers to each of the prompts (P lists of token ids), each until eos_id or max_new_tokens. temperature 0 is
    greedy; top_k 0 and top_p 1 are off; forbidden (V,) bool: never sampled. seed: an int, a list of P ints (an answer then depends
    on its prompt, its seed and its place in the group, and on nothing else in the batch), or None: different each time.
    on_token(step, rows, tokens) is called after each step with the rows p G + g still running. compile: the step of all layers goes through
    torch.compile (ten seconds per layer at its first use) and is, on a GPU, replayed as a CUDA graph; only last digits change. prefill
    stands in for model.prefill. lockstep: the model is sharded (shard.py), and all ranks, each with prompts of its own, take every step together. Returns Completions. Raises ValueError
    for an empty prompt, and for one that leaves no room for max_new_tokens in the model's block_size.
    """
    with torch.no_grad() if lockstep else torch.inference_mode():  # weights collected in inference mode could not be trained with
        answers = run(model, prompts, group_size, max_new_tokens, temperature, top_k, top_p, eos_id, seed, forbidden, on_token, compile, prefill, lockstep)
    return Completions(*(None if x is None else x.clone() for x in vars(answers).values()))  # tensors that autograd may keep again


class CausalPolicy:
    """The policy of completion; see grpo.py for what a policy is. Its batch: prompts (P, T) int64 right-padded, prompt_lengths (P,) and seeds (P,) on the CPU."""

    def __init__(self, model: torch.nn.Module, tokenizer, max_new_tokens: int = 256, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, compile: bool = False):
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} must be above 0: at 0 all answers of a group are equal and there is nothing to learn from")
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.temperature, self.top_k, self.top_p, self.compile = temperature, top_k, top_p, compile
        self.forbidden = forbidden_tokens(tokenizer, model)

    def with_model(self, model):
        """The same distribution under another model's weights: a reference."""
        other = copy.copy(self)
        other.model = model
        return other

    def without_adapters(self):
        """The same model with its LoRA adapters switched off: a reference that costs no memory."""
        def hidden(rollout):
            with adapters_off(self.model):
                return self.hidden(rollout)

        other = copy.copy(self)
        other.hidden = hidden
        return other

    def prefill(self, prompts, batch):
        """Prompts (P, T) read once; see GPT.prefill."""
        return self.model.prefill(prompts)

    def sample(self, batch: dict, group_size: int) -> Rollout:
        """Completions at the policy's temperature; each depends on its prompt, its seed and its place in the group, not on the rest of the batch."""
        prompts = [row[:n] for row, n in zip(batch['prompts'].tolist(), batch['prompt_lengths'].tolist())]
        with Progress('tokens', self.max_new_tokens) as progress:
            on_token = progress.step if self.model.wte.weight.device.type == 'cpu' else None  # a GPU would have to be waited for at each token
            answers = generate(self.model, prompts, group_size, self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.tokenizer.eos_id, batch['seeds'].tolist(), self.forbidden,
                               on_token, self.compile, lambda tokens: self.prefill(tokens, batch), lockstep=is_sharded(self.model))
        return Rollout(batch=batch, tokens=answers.tokens, lengths=answers.lengths.cpu(), logps=answers.logps, ended=answers.ended.cpu(), allowed=answers.allowed)

    def greedy(self, batch: dict) -> Rollout:
        """The likeliest token each time: a rollout with one answer per prompt."""
        other = copy.copy(self)
        other.temperature, other.top_k, other.top_p = 0.0, 0, 1.0
        return other.sample(batch, 1)

    def hidden(self, rollout: Rollout) -> torch.Tensor:
        """Hidden states (P, G, R, D) that predict the answers' tokens; the first comes from the prompt's end, and all share its forward."""
        P, G, R = rollout.tokens.shape
        lengths, steps = rollout.batch['prompt_lengths'], max(int(rollout.lengths.max()) - 1, int(is_sharded(self.model)))  # the ranks of a sharded model do alike
        states, prefix = self.prefill(rollout.batch['prompts'][:, :int(lengths.max())], rollout.batch)
        lengths = lengths.to(states.device, non_blocking=True)
        hidden = states[torch.arange(P, device=states.device), lengths - 1][:, None, None].expand(P, G, 1, -1)
        if steps:
            tokens = rollout.tokens[:, :, :steps].masked_fill(~rollout.mask[:, :, :steps], 0)
            hidden = torch.cat((hidden, self.model.complete(tokens, prefix, lengths)), dim=2)
        return torch.nn.functional.pad(hidden, (0, 0, 0, R - hidden.shape[2]))

    def texts(self, rollout: Rollout) -> list[list[str]]:
        """The answers without their end token: P lists of G strings."""
        return [[self.tokenizer.decode(ids[:n]) for ids, n in zip(group, lengths)]
                for group, lengths in zip(rollout.tokens.tolist(), rollout.lengths.tolist())]


def forbidden_tokens(tokenizer, model):
    """(V,) bool, or None when there are none: rows that only pad the embedding, and the characters' [MASK], [PAD] and [CLS]. They are never sampled."""
    forbidden = torch.arange(model.config.vocab_size) >= tokenizer.vocab_size
    if hasattr(tokenizer, 'chars'):
        forbidden[[i for i in tokenizer.special_ids if i != tokenizer.eos_id]] = True
    return forbidden.to(model.wte.weight.device) if forbidden.any() else None


def prompt_batch(prompts: list[list[int]], seeds: list[int], device: str = 'cpu') -> dict[str, torch.Tensor]:
    """prompts: P lists of token ids; seeds: P ints. The batch that a CausalPolicy samples from."""
    longest = max(map(len, prompts))
    return {'prompts': torch.tensor([list(p) + [0] * (longest - len(p)) for p in prompts], device=device),
            'prompt_lengths': torch.tensor([len(p) for p in prompts]), 'seeds': torch.tensor(seeds)}


@torch.no_grad()
def text_log_prob(model, ids):
    """Mean log-prob per token of a text (token ids): what a model has kept of its language while it learned something else."""
    log_probs = model.logits(torch.tensor([ids], device=model.wte.weight.device))[0, :-1].float().log_softmax(dim=-1)
    return log_probs.gather(-1, torch.tensor(ids[1:], device=log_probs.device)[:, None]).mean().item()


@torch.no_grad()
def text_log_probs(model, tokenizer, texts, batch_size=16):
    """For each text the mean log-prob per character, in nats, of what follows its first token; -inf when nothing does. What is longer than the model reads is cut."""
    rows, found = [tokenizer.encode(text)[:model.config.block_size] for text in texts], [-float('inf')] * len(texts)
    order = sorted((i for i, ids in enumerate(rows) if len(ids) > 1), key=lambda i: len(rows[i]))  # like lengths together
    for some in (order[start:start + batch_size] for start in range(0, len(order), batch_size)):
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[i]) for i in some], batch_first=True).to(model.wte.weight.device)  # (N, T); the model is causal, so padding on the right is not seen
        log_probs = model.logits(tokens)[:, :-1].float().log_softmax(dim=-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
        for i, row in zip(some, log_probs.cpu()):
            ids = rows[i]
            found[i] = row[:len(ids) - 1].sum().item() / max(1, len(tokenizer.decode(ids)) - len(tokenizer.decode(ids[:1])))
    return found
