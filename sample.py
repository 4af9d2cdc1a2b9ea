"""
The sampler, and a script: chat with a model, complete a prompt, fill a text, explain an activation.
$ python sample.py --checkpoint=path/to/model                              # chat; a directory, a .gguf file or a run's ckpt.pt
$ echo "12+34=" | python sample.py --checkpoint=out-arithmetic-grpo/ckpt.pt   # complete what is piped in, or --prompt="12+34="
$ python sample.py --checkpoint=... --prompt="12+34=" --rewards=number_answer --reference=46     # the best of 8 by rewards, or
$ python sample.py --checkpoint=... --prompt="tker>" --reward_checkpoint=out-shop/reward.pt      # by a reward model
$ python sample.py --text="def __init__(s?lf, na?e):" --mask_char="?"      # fill-in: each '?' is a slot; best first by the judge
$ python sample.py --text="import os, sys" --mask_ratio=0.3                # or mask a share of the text at random
$ python sample.py --checkpoint=out-nla/grpo/ckpt.pt --text="A text"       # an NLA: what its model thinks at the text's last token
Several answers are a table, best first. Where stdout is no terminal it holds the (best) answer and nothing else; the rest goes to stderr.

`generate` samples G answers to each of P prompts in one batch. A prompt is read once and its keys and values are kept
once, whatever G is: all answers of a group attend to them with one matrix product, and to their own keys with another,
under one softmax. Rows that have ended leave the batch. Each token costs one uniform number: it is found in the
cumulated probabilities, which gives its log-prob too, and a row's numbers depend on its seed alone, not on its company.
Shapes: P prompts · G answers · B rows still running, at most P G · T, R tokens · V vocabulary · H heads, H_kv of keys · d head width.
"""
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from configurator import configure


@dataclass
class Answers:
    """What generate() returns."""
    tokens: torch.Tensor                    # (P, G, R) int64, right-padded with 0; an answer that ended holds its end token
    lengths: torch.Tensor                   # (P, G) true lengths, the end token included
    logps: torch.Tensor                     # (P, G, R) fp32, of each token under the distribution it was drawn from
    ended: torch.Tensor                     # (P, G) bool: false where max_new_tokens cut it off
    allowed: torch.Tensor | None = None     # (P, G, R, V / 8) uint8, see pack: what top_k and top_p left over; None is everything


def pack(allowed):
    """bool (..., V) as bits (..., ceil(V / 8)) uint8: what was allowed at each token is kept for the trainer, an eighth of the size."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded.byte() << torch.arange(8, dtype=torch.uint8, device=allowed.device)).sum(dim=-1, dtype=torch.uint8)


def unpack(bits, V):
    """The bool (..., V) that pack was given."""
    return ((bits[..., None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1).bool().flatten(-2)[..., :V]


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
    return Answers(shape(tokens), shape(counts), shape(logps), shape(ended), shape(None if allowed is None else allowed[:, :R]))


def generate(model: torch.nn.Module, prompts: list[list[int]], group_size: int = 1, max_new_tokens: int = 256, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, eos_id: int | None = None,
             seed: int | list[int] | None = None, forbidden: torch.Tensor | None = None, on_token: Callable | None = None, compile: bool = False, prefill: Callable | None = None, lockstep: bool = False) -> Answers:
    """
    group_size answers to each of the prompts (P lists of token ids), each until eos_id or max_new_tokens. temperature 0 is
    greedy; top_k 0 and top_p 1 are off; forbidden (V,) bool: never sampled. seed: an int, a list of P ints (an answer then depends
    on its prompt, its seed and its place in the group, and on nothing else in the batch), or None: different each time.
    on_token(step, rows, tokens) is called after each step with the rows p G + g still running. compile: the step of all layers goes through
    torch.compile (ten seconds per layer at its first use) and is, on a GPU, replayed as a CUDA graph; only last digits change. prefill
    stands in for model.prefill. lockstep: the model is sharded (shard.py), and all ranks, each with prompts of its own, take every step together. Returns Answers. Raises ValueError
    for an empty prompt, and for one that leaves no room for max_new_tokens in the model's block_size.
    """
    with torch.no_grad() if lockstep else torch.inference_mode():  # weights collected in inference mode could not be trained with
        answers = run(model, prompts, group_size, max_new_tokens, temperature, top_k, top_p, eos_id, seed, forbidden, on_token, compile, prefill, lockstep)
    return Answers(*(None if x is None else x.clone() for x in vars(answers).values()))  # tensors that autograd may keep again


# ---------------------------------------------------------------------------------------------------------------------
# the script

if __name__ == '__main__':
    checkpoint = 'out-grpo/ckpt.pt'              # a run's checkpoint, a pretrained model, a Hugging Face directory, a .gguf file, a name on the hub
    # a causal model
    prompt = ''                                  # it completes this, or what is piped in; at a terminal, without either, it chats
    chat_template = False                        # True: the prompt becomes the user's turn
    system_prompt = ''
    max_new_tokens = 256                         # at most, and no more than the model reads
    # what its answers are ranked by, best first
    rewards: str | list | tuple | None = None    # of the catalogue: number_answer,length; or a list as train_grpo.py takes
    reference = ''                               # what they are judged by, as far as they need it: the right answer,
    tests = ''                                   # assert statements,
    context = ''                                 # a source
    reward_checkpoint = ''                       # a reward model, ours or a Hugging Face folder; '': the one that an alignment run learned from
    cost_checkpoint = ''                         # and a cost model
    lambda_cost: float | None = None             # the price of its cost; None: what the run arrived at, else 1
    scorer_template: str | None = None           # how they read '{prompt}' and '{response}'; None: one after the other, and for a Hugging Face folder as safe-rlhf does
    # a fill-in model, a Natural Language Autoencoder
    text = ''                                    # the one fills its slots, the other explains its last token; or what is piped in
    mask_char = '_'                              # this character marks a slot
    mask_ratio = 0.0                             # above 0: mask this share of the text at random instead
    unmask_steps = 1                             # fill in so many steps, each seeing the fills before it
    judge_checkpoint: str | None = None          # None: the one the run learned from, or no score
    activations: str | None = None               # explain a row of this .npy, .pt or .safetensors file instead of a text
    row = 0
    # sampling
    num_samples: int | None = None               # None: 8 fills, explanations or answers to be ranked, or 1 answer as it comes
    temperature = 0.8                            # 0: the likeliest token each time
    top_k = 0
    top_p = 1.0
    seed = 1
    device = 'auto'                              # 'cpu', 'cuda', 'cuda:1'; 'auto' takes a GPU when there is one
    precision = 'auto'                           # 'fp32' | 'bf16' | 'fp16'; 'auto': bf16 where it is faster
    configure(globals())

    from completion import forbidden_tokens, tokenizer_of
    from data.text import dataset_name
    from model import GPT, compute_in, load_checkpoint
    from talk import chat, complete, fill_text, given, ranking, show_ranked, with_room
    for key, least, most in (('mask_ratio', 0, 1), ('num_samples', 1, math.inf), ('max_new_tokens', 1, math.inf), ('unmask_steps', 1, math.inf), ('temperature', 0, math.inf), ('top_k', 0, math.inf), ('top_p', 1e-9, 1)):
        if globals()[key] is not None and not least <= globals()[key] <= most:
            raise ValueError(f"{key} is {globals()[key]}: it must be {'above 0' if key == 'top_p' else f'at least {least}'}" + (f' and at most {most}' if most == 1 else ''))
    if (reference or tests or context) and not rewards:
        raise ValueError("reference, tests and context are what --rewards judge by, and there are none: name some, for instance --rewards=number_answer")
    if checkpoint.endswith('.pt') and not os.path.isfile(checkpoint):
        raise FileNotFoundError(f"there is no checkpoint at {checkpoint}: a run of train_grpo.py leaves one in its out_dir, and --checkpoint names it")
    if precision not in ('auto', 'fp32', 'bf16', 'fp16'):
        raise ValueError(f"precision is {precision!r}; it must be auto, fp32, bf16 or fp16")
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:  # no such device, none of that number, or a torch that was built without
        raise ValueError(f"device is {device!r}, which torch cannot use here ({str(e).splitlines()[0][:80]}): leave it at 'auto' or take 'cpu'") from None

    saved = load_checkpoint(checkpoint, 'generator', 'run', 'nla') if checkpoint.endswith('.pt') else {}
    model = None if 'nla' in saved else GPT.from_pretrained(checkpoint).to(device).eval().requires_grad_(False)
    causal = model is not None and model.config.causal
    if text and causal or prompt and not causal:
        raise ValueError(f"{checkpoint} " + ("goes on from a --prompt; a --text is for fill-in models and autoencoders" if causal else "takes a --text; a --prompt is for a causal model"))
    tokenizer = tokenizer_of(checkpoint)
    if model:
        tokenizer.check_fits(model.config.vocab_size, checkpoint)
        if precision == 'auto':
            fast_bf16 = device.startswith('cuda') or torch.cpu._is_avx512_bf16_supported() and model.config.n_embd >= 512
            precision = 'bf16' if fast_bf16 else 'fp32'
        compute_in(model, {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[precision])

    if 'nla' in saved:
        from nla import activation_at_end, explain, read_vectors
        vectors = read_vectors(activations) if activations else activation_at_end(saved['nla'], tokenizer, given('text', text), device)
        if not 0 <= row < len(vectors):
            raise ValueError(f"row is {row} and {activations} has {len(vectors)} activations")
        rows = explain(saved, tokenizer, vectors[row:row + 1], num_samples or 8, temperature, seed, device)
        show_ranked(['FVE', 'explanation'], [([f'{value:.3f}'], answer, '  (greedy)' * greedy + ('' if whole else ' ...')) for value, answer, greedy, whole in rows])
    elif not causal:
        from fill_in import text_with_slots
        from judge import Judge
        text = given('text', text)
        if len(text) > model.config.block_size - 1:
            raise ValueError(f"the text has {len(text)} characters and this model reads {model.config.block_size - 1}: shorten it, or train with a larger block_size")
        batch = {key: value.to(device) for key, value in text_with_slots(tokenizer, text, mask_char, mask_ratio, seed).items()}
        learned_from = saved.get('judge_checkpoint')
        if not judge_checkpoint and learned_from and os.path.exists(learned_from):
            judge_checkpoint = learned_from
        judge = Judge.from_pretrained(judge_checkpoint, tokenizer).to(device) if judge_checkpoint else None
        masked = text if mask_ratio == 0 else tokenizer.decode(batch['tokens'][0])
        fill_text(model, tokenizer, batch, masked, judge, num_samples or 8, temperature, top_p, unmask_steps)
    else:
        options = dict(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, eos_id=tokenizer.eos_id, seed=seed, forbidden=forbidden_tokens(tokenizer, model))
        prompt = given('prompt', prompt)
        if not prompt:
            chat(model, tokenizer, system_prompt, options)
            sys.exit()
        if chat_template:
            ids = tokenizer.chat([{'role': 'system', 'content': system_prompt}] * bool(system_prompt) + [{'role': 'user', 'content': prompt}])
        else:
            ids = tokenizer.encode(system_prompt + prompt)
        options = with_room(options, ids, model.config.block_size)
        learned = saved.get('config', {})
        if (num_samples or 1) > 1 and learned.get('task') == 'alignment' and not (rewards or reward_checkpoint or cost_checkpoint):
            learned_from = [learned[key].format(dataset=dataset_name(learned['train_prompts'] or learned['dataset'])) for key in ('reward_checkpoint', 'cost_checkpoint')]
            if all(map(os.path.exists, learned_from)):
                reward_checkpoint, cost_checkpoint = learned_from
                scorer_template = scorer_template or learned['scorer_template']
        if lambda_cost is None:
            lambda_cost = saved.get('lagrange', {'value': 1.0})['value']
        record = {'prompt': prompt} | {key: value for key, value in (('reference', reference), ('tests', tests), ('context', context)) if value}
        score = ranking(record, rewards, reward_checkpoint, cost_checkpoint, lambda_cost, scorer_template, device)
        complete(model, tokenizer, ids, num_samples or (8 if score else 1), options, score)
