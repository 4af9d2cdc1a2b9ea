"""
Fill-in: texts with masked slots, a bidirectional model that fills all of them at once, and a frozen judge
that says how real each fill looks.

Given the unmasked text, the slots are independent of each other, so one forward gives the exact distribution
of every fill: the G fills of a text are G draws from the same logits, and log pi(fill) is a sum over its
slots. Shapes: P texts · G fills · T positions · M slots (right-padded) · V vocabulary · D width.
"""
import copy
import os
import sys
from collections import Counter

import torch
from torch.nn import functional as F

from data.text import dataset_name, load_corpus, random_windows
from grpo import Rollout, gather_logps, head_log_probs
from judge import Judge
from kernels import pack
from model import GPT, GPTConfig
from policy import choices, uniforms
from runtime import ranks
from runtime.checkpoint import load_checkpoint
from runtime.config import Count, Natural, one_line
from runtime.console import say
from tasks.show import given, show_ranked
from tasks.supervised import cross_entropy, save_model, supervised_loop
from tasks.task import Task, chart, longest_line

MASK_KINDS = ('random', 'sticky', 'span')


# -----------------------------------------------------------------------------
# the job

class FillIn(Task):
    """Texts with masked slots; a frozen judge scores how real each fill looks, a second one only looks on."""
    headline = 'eval/judge_reward'
    charts = {
        'Evaluation': [
            chart('judge reward',
                  'What the judge thinks of held-out fills, and of real text. Above real text it is being '
                  'fooled.',
                  'eval/judge_reward', 'eval/judge_reward_real'),
            chart('gold judge',
                  'A second judge that is never the reward. If it falls behind, the policy learns the first '
                  'one’s mistakes.',
                  'eval/gold_reward', 'eval/gold_reward_real'),
            chart('exact match',
                  'Slots that got the very character that stood there.',
                  'eval/exact_match_sampled', 'eval/exact_match_greedy'),
        ],
    }
    refuses = ('top_k', 'overlong_penalty', 'lora_r')

    class Settings:
        # texts
        mask_kinds = ('random',)                # of 'random', 'sticky', 'span', in equal shares
        mask_ratio = (0.25, 0.35)               # each text's share of masked characters lies between these
        unmask_steps: Count = 1                 # K: fill in K steps, each seeing the fills before it
        # judges, trained first where they are missing
        judge_checkpoint = 'out-{dataset}/judge.pt'     # its score is the reward
        gold_checkpoint = 'out-{dataset}/judge_gold.pt'  # only looks on, so that over-optimising shows
        judge_iters: Natural = 500              # supervised steps of each

        @staticmethod
        def check(cfg):
            if len(cfg.mask_ratio) != 2 or not 0 < cfg.mask_ratio[0] <= cfg.mask_ratio[1] <= 1:
                raise ValueError(f"mask_ratio is {cfg.mask_ratio}: it must be (low, high), 0 < low <= high "
                                 "<= 1")
            for kind in cfg.mask_kinds:
                if kind not in MASK_KINDS:
                    raise ValueError(f"mask_kinds holds {kind!r}; it takes {', '.join(MASK_KINDS)}")
            if cfg.advantage == 'gae':
                raise ValueError("advantage gae needs a value for each token, and slots share theirs: take "
                                 "another")

    def __init__(self, cfg, device):
        super().__init__(cfg, device)
        ranks.once(lambda: load_corpus(cfg.dataset))  # prepares it on first use
        self.tokenizer, self.corpus = load_corpus(cfg.dataset)
        for ids in self.corpus.values():
            random_windows(ids, 1, cfg.block_size, torch.Generator())  # refuses a split that is too short
        paths = cfg.generator_checkpoint, cfg.judge_checkpoint, cfg.gold_checkpoint
        name = dataset_name(cfg.dataset)
        self.generator_path, *self.judge_paths = (path.format(dataset=name) for path in paths)
        ranks.once(self.make_missing)
        self.judge, self.gold = map(self.load_judge, self.judge_paths)
        q, g = self.judge.quality, self.gold.quality
        say(f"judge: held-out AUC {q['auc']:.3f}, R2 {q['r2']:.3f}; gold judge: AUC {g['auc']:.3f}, R2 "
            f"{g['r2']:.3f}")
        self.rewards = [('judge', self.realness, 1.0)]
        self.eval_batch = self.draw('val', cfg.eval_prompts_n, 0)

    def load_judge(self, path):
        judge = Judge.from_pretrained(path, self.tokenizer).to(self.device)
        self.check_room(judge.trunk.config.block_size - 1, f"the judge at {path}")
        return judge

    def realness(self, policy, rollout):
        return 1 - score_fills(self.judge, rollout.batch, rollout.tokens)

    def check_room(self, room, which):
        if room < self.cfg.block_size:
            raise ValueError(f"{which} reads texts of at most {room} characters and block_size is "
                             f"{self.cfg.block_size}: lower block_size, or name one that does not exist yet "
                             "to have it trained")

    def make_missing(self):
        """Train the generator and the judges that are not there."""
        cfg = self.cfg
        if not os.path.exists(self.generator_path):
            say(f"there is no generator at {self.generator_path}: training one on {cfg.dataset}")
            config = filler_config(self.tokenizer, cfg.block_size, cfg.n_layer, cfg.n_head, cfg.n_embd)
            model, quality = train_generator(self.tokenizer, self.corpus, config, cfg.pretrain_iters,
                                             cfg.mask_kinds, cfg.seed, self.device)
            save_model(self.generator_path, 'generator', model, config, self.tokenizer, quality)
        for number, path in enumerate(self.judge_paths):
            if not os.path.exists(path):
                say(f"there is no judge at {path}: training one on the fills of {self.generator_path}")
                generator = self.load_model().to(self.device)
                judge, quality = train_judge(generator, self.tokenizer, self.corpus, cfg.judge_iters,
                                             cfg.mask_kinds, cfg.seed + 1000 * number)
                save_model(path, 'judge', judge, generator.config, self.tokenizer, quality)

    def load_model(self):
        chars = load_checkpoint(self.generator_path, 'generator', 'run')['chars']
        self.tokenizer.check_same(chars, self.generator_path)
        model = GPT.from_pretrained(self.generator_path).to(self.home)
        self.check_room(model.config.block_size, f"the generator at {self.generator_path}")
        return model

    def policy(self, model):
        cfg = self.cfg
        return FillInPolicy(model, self.tokenizer, cfg.temperature, cfg.top_p, cfg.unmask_steps,
                            cfg.block_size)

    def draw(self, split, n, seed):
        """n random texts of a split, masked, as prompts."""
        cfg, generator = self.cfg, torch.Generator().manual_seed(seed)
        tokens = random_windows(self.corpus[split], n, cfg.block_size, generator)
        batch, _ = masked_texts(tokens, self.tokenizer, cfg.mask_kinds, cfg.mask_ratio, generator, seed)
        return {name: value.to(self.device) for name, value in batch.items()}

    def batch(self, it, attempt=0):
        seed = self.cfg.seed + 10 ** 6 * attempt
        return self.draw('train', self.cfg.batch_size, (seed * 10 ** 9 + it) % 2 ** 62)

    def evaluate(self, policy):
        """The same held-out texts with the same noise each time. The gold judge is never a reward."""
        batch, original = self.eval_batch, self.eval_batch['original']
        fills = policy.sample(batch, 2).tokens
        if self.cfg.eval_show:
            say(describe_fills(self.tokenizer, batch, fills, self.cfg.eval_show))
        return {'eval/judge_reward': 1 - score_fills(self.judge, batch, fills).mean().item(),
                'eval/gold_reward': 1 - score_fills(self.gold, batch, fills).mean().item(),
                'eval/judge_reward_real': 1 - self.judge.score(original).mean().item(),
                'eval/gold_reward_real': 1 - self.gold.score(original).mean().item(),
                'eval/exact_match_sampled': exact_match(batch, fills),
                'eval/exact_match_greedy': exact_match(batch, policy.greedy(batch))}

    def describe(self, metrics):
        m = {name.removeprefix('eval/'): value for name, value in metrics.items()}
        both = [f"{m[key]:.4f} (real text {m[key + '_real']:.4f})" for key in ('judge_reward', 'gold_reward')]
        return (f"held-out judge reward {both[0]}, gold reward {both[1]}, exact match sampled "
                f"{m['exact_match_sampled']:.4f}, greedy {m['exact_match_greedy']:.4f}")

    def asked(self, rollout):
        texts = {'prompt': rollout.batch['tokens'][0], 'answer': rollout.batch['original'][0]}
        return {name: self.tokenizer.decode(ids) for name, ids in texts.items()}

    @classmethod
    def show(cls, saved, model, tokenizer, cfg):
        """
        Fills of a text's slots: where there is a judge, that first which it rewards most; else the likeliest.
        """
        text, room = given('text', cfg.text), model.config.block_size - 1
        if len(text) > room:
            raise ValueError(f"the text has {len(text)} characters and this model reads {room}: shorten it, "
                             "or train with a larger block_size")
        batch = text_with_slots(tokenizer, text, cfg.mask_char, cfg.mask_ratio, cfg.seed)
        batch = {name: value.to(cfg.device) for name, value in batch.items()}
        path = cfg.judge_checkpoint or saved.get('judge_checkpoint')
        judge = None
        if path and (cfg.judge_checkpoint or os.path.exists(path)):
            judge = Judge.from_pretrained(path, tokenizer).to(cfg.device)
        masked = text if cfg.mask_ratio == 0 else tokenizer.decode(batch['tokens'][0])
        hint = "  (reward: 1 looks written, 0 machine-filled)" if judge else ''
        print(f"masked: {one_line(masked)}{hint}", file=sys.stderr)
        policy = FillInPolicy(model, tokenizer, cfg.temperature or 1.0, cfg.top_p, cfg.unmask_steps)
        show_fills(policy, batch, judge, (cfg.num_samples or 8) * (cfg.temperature > 0))

    def token_places(self, rollout):
        return {'slots': rollout.batch['slots'][0].tolist()}

    def try_out(self):
        text = longest_line(self.tokenizer.decode(self.eval_batch['original'][0]))
        return 'ckpt.pt', [f"--text={text}", '--mask_ratio=0.3']

    def saved(self):
        """What sample.py needs to use the checkpoint."""
        return {'chars': self.tokenizer.chars, 'judge_checkpoint': self.judge_paths[0]}

    def export(self, model, saved, out_dir, metrics):
        """No other program knows such a model: its checkpoint is what others get."""


# -----------------------------------------------------------------------------
# masks

def choose_slots(kind, lengths, T, ratio, generator):
    """
    Which positions to mask: bool (P, T), at least one in each text, never in padding. kind 'random':
    positions independent of each other. 'sticky': grows clumps, a position next to a masked one is ten times
    likelier to follow. 'span': runs of about four characters. lengths (P,) true lengths; ratio (low, high):
    each text's share of masked positions is uniform between them.
    """
    low, high = ratio
    shares = low + (high - low) * torch.rand(len(lengths), generator=generator)
    counts = (shares * lengths).round().long().clamp(min=1)  # (P,) slots of each text
    exists = torch.arange(T) < lengths[:, None]
    if kind == 'random':
        return random_ranks(exists, generator) < counts[:, None]
    if kind == 'sticky':
        return sticky_slots(exists, counts, generator)
    if kind == 'span':
        return span_slots(lengths, counts, T, generator)
    raise ValueError(f"mask kind is {kind!r}; it must be one of {', '.join(MASK_KINDS)}")


def random_ranks(exists, generator):
    """(P, T): a random order of the positions that exist (P, T) bool; the others come last."""
    noise = torch.rand(exists.shape, generator=generator).masked_fill(~exists, 2.0)
    return noise.argsort(dim=1).argsort(dim=1)


def sticky_slots(exists, counts, generator):
    chosen = torch.zeros_like(exists)
    first, last = torch.tensor([0]), torch.tensor([exists.shape[1] - 1])
    while (short := chosen.sum(1) < counts).any():
        left, right = chosen.roll(1, 1), chosen.roll(-1, 1)
        neighbours = left.index_fill(1, first, False) | right.index_fill(1, last, False)
        new = torch.rand(exists.shape, generator=generator) < torch.where(neighbours, 0.3, 0.03)
        new &= exists & ~chosen & short[:, None]
        # the last round may overshoot: of the new ones only as many stay as are missing, at random
        chosen |= new & (random_ranks(new, generator) < (counts - chosen.sum(1))[:, None])
    return chosen


def span_slots(lengths, counts, T, generator):
    chosen = torch.zeros(len(lengths), T, dtype=torch.bool)
    for p, (count, length) in enumerate(zip(counts.tolist(), lengths.tolist(), strict=True)):
        n = max(1, round(count / 4))
        sizes = torch.ones(n + length - count, dtype=torch.long)  # n runs, then single unmasked positions
        sizes[:n] = count // n
        sizes[:count % n] += 1
        order = torch.randperm(len(sizes), generator=generator)
        chosen[p, :length] = (order < n).repeat_interleave(sizes[order])
    return chosen


def make_batch(tokens: torch.Tensor, lengths: torch.Tensor, chosen: torch.Tensor, mask_id: int,
               seed: int = 0) -> dict[str, torch.Tensor]:
    """
    The prompts of a fill-in step: tokens (P, T) with every chosen position (P, T) bool masked. Returns a dict
    of tensors: tokens (P, T) masked, lengths (P,), slots (P, M) positions in reading order, n_slots (P,),
    original (P, T), and of `seed` each text's own, seeds (P,). Raises ValueError for a text without a slot.
    """
    n_slots = chosen.sum(dim=1)
    if (n_slots == 0).any():
        empty = int((n_slots == 0).nonzero()[0, 0])
        raise ValueError(f"text {empty} of the batch has no masked slot: there is nothing to fill in")
    M = int(n_slots.max())
    slots = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :M]  # masked first, in reading order
    slots = slots.masked_fill(torch.arange(M, device=slots.device) >= n_slots[:, None], 0)
    seeds = torch.tensor([(seed * 10 ** 5 + p) % 2 ** 62 for p in range(len(tokens))])
    return {'tokens': tokens.masked_fill(chosen, mask_id), 'lengths': lengths, 'slots': slots,
            'n_slots': n_slots, 'original': tokens, 'seeds': seeds}


def masked_texts(tokens, tokenizer, mask_kinds, mask_ratio, generator, seed=0):
    """
    make_batch of texts (P, T), an equal share masked in each kind, and chosen (P, T) bool. seed: of their
    fills.
    """
    n, T = tokens.shape
    lengths, kinds = torch.full((n,), T), len(mask_kinds)
    parts = []
    for i, kind in enumerate(mask_kinds):
        parts.append(choose_slots(kind, lengths[i::kinds], T, mask_ratio, generator))
    chosen = torch.cat(parts)
    return make_batch(tokens, lengths, chosen, tokenizer.mask_id, seed), chosen


def text_with_slots(tokenizer, text, mask_char='_', mask_ratio=0.0, seed=1):
    """
    make_batch of one text in which mask_char marks the slots; or, with mask_ratio above 0, that share of it
    is masked at random. Raises ValueError where there is no slot.
    """
    lengths, chosen = torch.tensor([len(text)]), torch.tensor([[c == mask_char for c in text]])
    if mask_ratio > 0:
        generator = torch.Generator().manual_seed(seed)
        chosen = choose_slots('random', lengths, len(text), (mask_ratio, mask_ratio), generator)
    elif not chosen.any():
        raise ValueError(f"the text has no slot: mark some with {mask_char!r}, or give --mask_ratio=0.3")
    else:
        text = text.replace(mask_char, tokenizer.chars[0])  # any character: it is masked
    return make_batch(torch.tensor([tokenizer.encode(text)]), lengths, chosen, tokenizer.mask_id, seed)


def fill(batch, fills):
    """The texts (P, G, T) of a batch with their slots holding fills (P, G, M)."""
    P, G, M = fills.shape
    T = batch['tokens'].shape[1]
    # Padding slots all point at one extra position, cut off again: a real slot is never overwritten.
    real = torch.arange(M, device=fills.device) < batch['n_slots'][:, None]
    slots = torch.where(real, batch['slots'], T)[:, None].expand(P, G, M)
    texts = torch.cat((batch['tokens'], batch['tokens'][:, :1]), dim=1)[:, None].expand(P, G, T + 1)
    return texts.scatter(2, slots, fills)[..., :T]


# -----------------------------------------------------------------------------
# the policy

class FillInPolicy:
    """
    The policy of fill-in GRPO; see grpo.py for what a policy is. All slots of a text are filled from one
    forward over P rows, whatever G is. With unmask_steps=K > 1 the slots are dealt, at random and before
    anything is sampled, into K steps; a step sees the fills of those before it, so from the second on each of
    the G fills has a forward of its own. The order does not depend on the policy, so the log-probs stay
    exact. max_new_tokens: the most slots a text may have.
    """
    mirror = None

    def __init__(self, model: torch.nn.Module, tokenizer, temperature: float = 1.0, top_p: float = 1.0,
                 unmask_steps: int = 1, max_new_tokens: int | None = None):
        if temperature <= 0 or not 0 < top_p <= 1 or unmask_steps < 1:
            raise ValueError(f"temperature {temperature} must be above 0, top_p {top_p} in (0, 1], "
                             f"unmask_steps {unmask_steps} at least 1")
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.temperature, self.top_p, self.unmask_steps = temperature, top_p, unmask_steps
        self.forbidden = torch.zeros(tokenizer.vocab_size, dtype=torch.bool, device=model.wte.weight.device)
        self.forbidden[tokenizer.special_ids] = True

    def with_model(self, model):
        """The same distribution under another model's weights: a reference."""
        other = copy.copy(self)
        other.model = model
        return other

    def slot_hidden(self, batch, fills, step):
        """
        Hidden states at the slots, (P, 1, M, D) at step 0 and (P, G, M, D) later, of texts in which the slots
        of earlier steps hold `fills` (P, G, M) and the others [MASK].
        """
        slots = batch['slots'][:, None]                                     # (P, 1, M)
        texts = batch['tokens'][:, None]                                    # (P, 1, T)
        if step > 0:
            G = fills.shape[1]
            known = (batch['step_of_slot'] < step)[:, None].expand_as(fills)
            texts = fill(batch, torch.where(known, fills, self.tokenizer.mask_id))
            slots = slots.expand(-1, G, -1)
        P, H, T = texts.shape
        ragged = bool((batch['lengths'] < T).any())
        lengths = batch['lengths'].repeat_interleave(H) if ragged else None
        hidden = self.model(texts.reshape(P * H, T), lengths)               # (P H, T, D)
        index = slots.reshape(P * H, -1, 1).expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index).view(P, H, slots.shape[-1], -1)      # (P, H, M, D)

    def hidden(self, rollout: Rollout) -> torch.Tensor:
        """(P, H, M, D) at the slots; H = 1 where one step fills all, else G."""
        hidden = self.slot_hidden(rollout.batch, rollout.tokens, 0)
        for step in range(1, self.unmask_steps):
            now = (rollout.batch['step_of_slot'] == step)[:, None, :, None]
            hidden = torch.where(now, self.slot_hidden(rollout.batch, rollout.tokens, step), hidden)
        return hidden

    @torch.no_grad()
    def sample(self, batch: dict, group_size: int) -> Rollout:
        """
        Fills at the policy's temperature; each depends on its text, its seed and its place in the group, not
        on the rest of the batch.
        """
        P, M = batch['slots'].shape
        noise, *u = uniforms(batch['seeds'].tolist(), 1 + group_size, M).to(batch['slots'].device).unbind(1)
        u = torch.stack(u, dim=1)                                           # (P, G, M)
        batch = batch | {'step_of_slot': self.deal(batch, noise)}
        fills = batch['slots'].new_zeros(P, group_size, M)
        logps = torch.zeros(P, group_size, M, device=fills.device)
        allowed = None
        for step in range(self.unmask_steps):
            log_probs = head_log_probs(self, self.slot_hidden(batch, fills, step))  # (P, H, M, V)
            if not torch.isfinite(log_probs.amax(dim=-1)).all():
                raise FloatingPointError("the policy's logits are NaN: its weights are broken. Start from "
                                         "an earlier checkpoint with a lower learning_rate")
            now = (batch['step_of_slot'] == step)[:, None]                  # (P, 1, M)
            if self.top_p < 1:
                keep = choices(log_probs, 0, self.top_p)
                log_probs = log_probs.masked_fill(~keep, -torch.inf).log_softmax(dim=-1)
                allowed = pack(keep) if allowed is None else torch.where(now[..., None], pack(keep), allowed)
            drawn = draw_fills(log_probs, u)
            fills = torch.where(now, drawn, fills)
            logps = torch.where(now, gather_logps(log_probs, drawn), logps)
        lengths = batch['n_slots'].cpu()[:, None].expand(P, group_size)
        return Rollout(batch=batch, tokens=fills, lengths=lengths, logps=logps, allowed=allowed)

    def deal(self, batch, noise):
        """(P, M): the step in which each slot is filled, by noise (P, M)."""
        if self.unmask_steps == 1:
            return torch.zeros_like(batch['slots'])
        n_slots = batch['n_slots'][:, None]
        noise = noise.masked_fill(torch.arange(noise.shape[1], device=noise.device) >= n_slots, 2.0)
        rank = noise.argsort(dim=1).argsort(dim=1)
        return rank * self.unmask_steps // n_slots  # padding lands beyond the last step

    @torch.no_grad()
    def greedy(self, batch):
        """The likeliest fill of each slot from one forward: (P, 1, M)."""
        return head_log_probs(self, self.slot_hidden(batch, None, 0)).argmax(dim=-1)

    def texts(self, rollout: Rollout) -> list[list[str]]:
        """The filled texts: P lists of G strings."""
        rows = fill(rollout.batch, rollout.tokens).tolist()
        texts = []
        for group, n in zip(rows, rollout.batch['lengths'].tolist(), strict=True):
            texts.append([self.tokenizer.decode(ids[:n]) for ids in group])
        return texts


def draw_fills(log_probs, u):
    """One id for each number of u (P, G, M) in [0, 1), by log_probs (P, H, M, V): (P, G, M)."""
    P, G, M = u.shape
    H = log_probs.shape[1]
    mass = log_probs.double().exp().cumsum(dim=-1)                          # (P, H, M, V)
    target = u.view(P, H, G // H, M).transpose(2, 3).contiguous() * mass[..., -1:]
    drawn = torch.searchsorted(mass, target, right=True)  # never one of probability 0
    return drawn.transpose(2, 3).reshape(P, G, M)


# -----------------------------------------------------------------------------
# how good fills are

def exact_match(batch, fills):
    """The share of slots that got the very character that stood there, over all texts and fills (P, G, M)."""
    wanted = batch['original'].gather(1, batch['slots'])[:, None]
    real = torch.arange(fills.shape[-1], device=fills.device) < batch['n_slots'][:, None]
    return (fills == wanted)[real[:, None].expand_as(fills)].float().mean().item()


def score_fills(judge, batch, fills):
    """A judge's score of every fill: (P, G) in (0, 1), 1 for machine-made."""
    texts = fill(batch, fills)
    P, G, T = texts.shape
    lengths = batch['lengths'].repeat_interleave(G) if (batch['lengths'] < T).any() else None
    return judge.score(texts.reshape(P * G, T), lengths).view(P, G)


def describe_fills(tokenizer, batch, fills, n):
    """The first n texts, real over filled, with a mark under each slot; a line end shows as |."""
    lines = ['  (^ as it was, x another character)']
    filled_texts = fill(batch, fills)[:, 0]
    for p in range(min(n, len(fills))):
        length = int(batch['lengths'][p])
        real, filled = (tokenizer.decode(ids[p][:length]) for ids in (batch['original'], filled_texts))
        marks = [' '] * length
        for i in batch['slots'][p][:int(batch['n_slots'][p])].tolist():
            marks[i] = '^' if real[i] == filled[i] else 'x'
        lines += [f"  real   {real}".replace('\n', '|'), f"  filled {filled}".replace('\n', '|')]
        lines.append(f"         {''.join(marks)}")
    return '\n'.join(lines)


def show_fills(policy, batch, judge, n):
    """Print the greedy fill of one text and n sampled ones, each once, best first."""
    greedy = policy.greedy(batch)
    fills, logps = greedy, gather_logps(head_log_probs(policy, policy.slot_hidden(batch, None, 0)), greedy)
    if n:
        rollout = policy.sample(batch, n)
        fills, logps = torch.cat((fills, rollout.tokens), dim=1), torch.cat((logps, rollout.logps), dim=1)
    columns = [(1 - score_fills(judge, batch, fills)[0]).tolist()] if judge else []
    columns.append(logps[0].sum(dim=-1).tolist())
    texts = [policy.tokenizer.decode(ids) for ids in fill(batch, fills)[0]]
    times, values = Counter(texts[1:]), {}
    for text, *row in reversed(list(zip(texts, *columns, strict=True))):
        values[text] = row
    rows = []
    for text in sorted(values, key=values.get, reverse=True):
        cells = [*(f'{value:.3f}' for value in values[text]), str(times[text])]
        rows.append((cells, text, '  (greedy)' if text == texts[0] else ''))
    show_ranked(['reward'] * bool(judge) + ['log-prob', 'times', 'text'], rows)


# -----------------------------------------------------------------------------
# the generator and its judges, trained where they are missing

def filler_config(tokenizer, block_size, n_layer, n_head, n_embd):
    """
    What learned fastest at this size: bidirectional, RoPE, RMSNorm, squared ReLU. It reads one position more
    than a text has, for the judge's [CLS].
    """
    return GPTConfig(block_size=block_size + 1, vocab_size=tokenizer.vocab_size, n_layer=n_layer,
                     n_head=n_head, n_embd=n_embd, causal=False, norm='rmsnorm', position='rope',
                     mlp='relu2', bias=False)


def corrupt_like_bert(tokens, chosen, tokenizer, generator):
    """
    Of the chosen positions 80 % become [MASK], 10 % a random character, 10 % stay (arXiv 1810.04805): (P, T).
    """
    u = torch.rand(tokens.shape, generator=generator)
    noise = torch.randint(len(tokenizer.chars), tokens.shape, generator=generator)
    inputs = torch.where(chosen & (u < 0.8), tokenizer.mask_id, tokens)
    return torch.where(chosen & (u >= 0.8) & (u < 0.9), noise, inputs)


def train_generator(tokenizer, corpus, config, max_iters=1200, mask_kinds=('random',), seed=1, device='cpu'):
    """
    A bidirectional model that fills masked slots, trained as BERT is. Returns (model, quality): held-out loss
    in nats and greedy accuracy.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config).to(device)

    def masked(split, n, generator):
        tokens = random_windows(corpus[split], n, config.block_size - 1, generator)
        return masked_texts(tokens, tokenizer, mask_kinds, (0.1, 0.35), generator)

    def loss_of_batch():
        batch, chosen = masked('train', 48, generator)
        inputs = corrupt_like_bert(batch['original'], chosen, tokenizer, generator).to(device)
        chosen = chosen.to(device)
        return cross_entropy(model, model(inputs)[chosen], batch['original'].to(device)[chosen])

    supervised_loop('generator', model, loss_of_batch, max_iters, 5e-3)
    model.eval()
    batch, chosen = masked('val', 1024, torch.Generator().manual_seed(0))
    batch, chosen = {name: value.to(device) for name, value in batch.items()}, chosen.to(device)
    with torch.no_grad():
        loss = cross_entropy(model, model(batch['tokens'])[chosen], batch['original'][chosen]).item()
    return model, {'loss': loss, 'accuracy': exact_match(batch, FillInPolicy(model, tokenizer).greedy(batch))}


def syntheticity(share):
    """
    What a judge is taught to say of a text with this share of foreign characters: steep at first, 1 at 1 (0,
    .47, .81, .97, 1 at quarters).
    """
    return share ** 4 - 2 * share ** 3 + 2 * share


@torch.no_grad()
def machine_filled(generator_model, tokenizer, tokens, mask_kinds, generator, mask_ratio=(0.05, 0.6),
                   temperatures=(0.6, 1.1), untouched=0.15):
    """
    Texts for a judge: tokens (n, T) with a share of their characters filled in by the generator, but for a
    share of untouched texts. Returns texts (n, T) and replaced (n, T) bool, true where a fill differs from
    what stood there: a fill that restores the text leaves it real.
    """
    n, device = len(tokens), generator_model.wte.weight.device
    batch, chosen = masked_texts(tokens, tokenizer, mask_kinds, mask_ratio, generator)
    hidden = generator_model(batch['tokens'].to(device))[chosen.to(device)]
    logits = generator_model.lm_head(hidden).float().cpu()
    low, high = temperatures
    temperature = (low + (high - low) * torch.rand(n, 1, generator=generator)).expand_as(chosen)[chosen]
    probs = (logits[:, :len(tokenizer.chars)] / temperature[:, None]).softmax(dim=-1)
    texts = batch['original'].clone()
    texts[chosen] = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
    keep = torch.rand(n, generator=generator) < untouched
    texts[keep] = batch['original'][keep]
    return texts.to(device), (texts != batch['original']).to(device)


def train_judge(generator_model, tokenizer, corpus, max_iters=500, mask_kinds=('random',), seed=1):
    """
    A judge that starts as the generator's trunk and learns how much of a text the generator has filled in,
    over a range of mask ratios and temperatures so that it still knows what to say when the policy moves.
    Returns (judge, quality), measured on held-out texts: r2 of its score; auc, the chance that a text with a
    quarter of it filled in at temperature 0.8 scores above a real one; and the mean score of real and of such
    filled texts.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge(generator_model.config, tokenizer.cls_id).to(generator_model.wte.weight.device)
    judge.trunk.load_state_dict(generator_model.state_dict())

    def texts_of(split, n, generator, **options):
        tokens = random_windows(corpus[split], n, generator_model.config.block_size - 1, generator)
        return machine_filled(generator_model, tokenizer, tokens, mask_kinds, generator, **options)

    def loss_of_batch():
        texts, replaced = texts_of('train', 48, generator)
        score, slots = judge(texts)
        target = syntheticity(replaced.float().mean(dim=1))
        of_text = F.mse_loss(score.sigmoid(), target)
        return 10 * of_text + F.binary_cross_entropy_with_logits(slots, replaced.float())

    supervised_loop('judge', judge, loss_of_batch, max_iters, 2e-3)
    judge.eval().requires_grad_(False)
    held_out = torch.Generator().manual_seed(0)
    texts, replaced = texts_of('val', 1024, held_out)
    target = syntheticity(replaced.float().mean(dim=1))
    r2 = 1 - F.mse_loss(judge.score(texts), target) / target.var(correction=0)
    quarter = {'mask_ratio': (0.25, 0.25), 'temperatures': (0.8, 0.8)}
    real = judge.score(texts_of('val', 1024, held_out, untouched=1.0, **quarter)[0])
    filled = judge.score(texts_of('val', 1024, held_out, untouched=0.0, **quarter)[0])
    above = (filled[:, None] > real).float() + 0.5 * (filled[:, None] == real).float()
    return judge, {'auc': above.mean().item(), 'r2': r2.item(), 'score_real': real.mean().item(),
                   'score_filled': filled.mean().item()}
