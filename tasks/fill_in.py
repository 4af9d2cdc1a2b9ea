"""
Fill-in: a text with masked slots, and a bidirectional model that fills all of them at once.

Given the unmasked text, the slots are independent of each other, so one forward gives the exact distribution of every
fill: the G fills of a text are G draws from the same logits, and log pi(fill) is a sum over its slots.
Shapes: P texts · G fills · T positions · M slots (right-padded) · V vocabulary · D width.
"""
import copy
import os

import torch
from torch.nn import functional as F

from data.text import dataset_name, load_corpus, random_windows
from grpo import Rollout, gather_logps, head_log_probs
from judge import Judge
from kernels import pack
from model import GPT, GPTConfig
from policy import choices, uniforms
from runtime.checkpoint import load_checkpoint
from tasks.task import Job, longest_line
from tasks.supervised import cross_entropy, save_model, supervised_loop

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


def masked_windows(ids, n, block_size, tokenizer, mask_kinds, mask_ratio, generator, seed=0):
    """n random texts, an equal share masked in each kind: the batch of make_batch and chosen (n, block_size) bool. seed: of their fills."""
    tokens = random_windows(ids, n, block_size, generator)
    lengths = torch.full((n,), block_size)
    chosen = torch.cat([choose_slots(kind, lengths[i::len(mask_kinds)], block_size, mask_ratio, generator)
                        for i, kind in enumerate(mask_kinds)])
    return make_batch(tokens, lengths, chosen, tokenizer.mask_id, seed), chosen


def filler_config(tokenizer, block_size, n_layer, n_head, n_embd):
    """What learned fastest at this size: bidirectional, RoPE, RMSNorm, squared ReLU. One position more than a text, for the judge's [CLS]."""
    return GPTConfig(block_size=block_size + 1, vocab_size=tokenizer.vocab_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
                     causal=False, norm='rmsnorm', position='rope', mlp='relu2', bias=False)


def train_generator(tokenizer, corpus, config, max_iters=1200, batch_size=48, learning_rate=5e-3, mask_kinds=('random',),
                    mask_ratio=(0.1, 0.35), seed=1, device='cpu'):
    """A bidirectional model that fills masked slots, trained as BERT is. Returns (model, quality): held-out loss in nats and greedy accuracy."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config).to(device)
    text_length = config.block_size - 1

    def loss_of_batch():
        batch, chosen = masked_windows(corpus['train'], batch_size, text_length, tokenizer, mask_kinds, mask_ratio, generator)
        inputs = corrupt_like_bert(batch['original'], chosen, tokenizer, generator).to(device)
        chosen = chosen.to(device)
        return cross_entropy(model, model(inputs)[chosen], batch['original'].to(device)[chosen])

    supervised_loop('generator', model, loss_of_batch, max_iters, learning_rate)
    model.eval()
    batch, chosen = masked_windows(corpus['val'], 1024, text_length, tokenizer, mask_kinds, mask_ratio, torch.Generator().manual_seed(0))
    batch = {k: v.to(device) for k, v in batch.items()}
    with torch.no_grad():
        loss = cross_entropy(model, model(batch['tokens'])[chosen.to(device)], batch['original'][chosen.to(device)]).item()
    quality = {'loss': loss, 'accuracy': exact_match(batch, FillInPolicy(model, tokenizer).greedy(batch))}
    return model, quality


def syntheticity(share):
    """What a judge is taught to say of a text with this share of foreign characters: steep at first, 1 at 1 (0, .47, .81, .97, 1 at quarters)."""
    return share ** 4 - 2 * share ** 3 + 2 * share


@torch.no_grad()
def filled_texts(generator_model, tokenizer, ids, n, block_size, mask_kinds, mask_ratio, temperatures, untouched, generator):
    """
    Texts for a judge: windows with some characters filled in by the generator. Returns texts (n, T) and replaced (n, T)
    bool, true where a fill differs from what stood there: a fill that restores the text leaves it real.
    """
    batch, chosen = masked_windows(ids, n, block_size, tokenizer, mask_kinds, mask_ratio, generator)
    device = generator_model.wte.weight.device
    logits = generator_model.lm_head(generator_model(batch['tokens'].to(device))[chosen.to(device)]).float().cpu()
    low, high = temperatures
    temperature = (low + (high - low) * torch.rand(n, 1, generator=generator)).expand_as(chosen)[chosen]
    probs = (logits[:, :len(tokenizer.chars)] / temperature[:, None]).softmax(dim=-1)
    texts = batch['original'].clone()
    texts[chosen] = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
    keep = torch.rand(n, generator=generator) < untouched
    texts[keep] = batch['original'][keep]
    return texts.to(device), (texts != batch['original']).to(device)


def train_judge(generator_model, tokenizer, corpus, max_iters=500, batch_size=48, learning_rate=2e-3, mask_kinds=('random',),
                mask_ratio=(0.05, 0.6), temperatures=(0.6, 1.1), untouched=0.15, seed=1):
    """
    A judge that starts as the generator's trunk and learns how much of a text the generator has filled in, over a range
    of mask ratios and temperatures so that it still knows what to say when the policy moves.
    Returns (judge, quality) with quality measured on held-out texts: r2 of its score; auc, the chance that a text with a quarter
    of it filled in at temperature 0.8 scores above a real one; and the mean score of real and of such filled texts.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge(generator_model.config, tokenizer.cls_id).to(generator_model.wte.weight.device)
    judge.trunk.load_state_dict(generator_model.state_dict())
    text_length = generator_model.config.block_size - 1

    def loss_of_batch():
        texts, replaced = filled_texts(generator_model, tokenizer, corpus['train'], batch_size, text_length, mask_kinds, mask_ratio, temperatures, untouched, generator)
        score, slots = judge(texts)
        target = syntheticity(replaced.float().mean(dim=1))
        return 10 * F.mse_loss(score.sigmoid(), target) + F.binary_cross_entropy_with_logits(slots, replaced.float())

    supervised_loop('judge', judge, loss_of_batch, max_iters, learning_rate, weight_decay=0.1)
    judge.eval().requires_grad_(False)
    held_out = torch.Generator().manual_seed(0)
    texts, replaced = filled_texts(generator_model, tokenizer, corpus['val'], 1024, text_length, mask_kinds, mask_ratio, temperatures, untouched, held_out)
    target = syntheticity(replaced.float().mean(dim=1))
    r2 = 1 - F.mse_loss(judge.score(texts), target) / target.var(correction=0)
    real, _ = filled_texts(generator_model, tokenizer, corpus['val'], 1024, text_length, mask_kinds, (0.25, 0.25), (0.8, 0.8), 1.0, held_out)
    filled, _ = filled_texts(generator_model, tokenizer, corpus['val'], 1024, text_length, mask_kinds, (0.25, 0.25), (0.8, 0.8), 0.0, held_out)
    real, filled = judge.score(real), judge.score(filled)
    above = (filled[:, None] > real).float() + 0.5 * (filled[:, None] == real).float()
    return judge, {'auc': above.mean().item(), 'r2': r2.item(), 'score_real': real.mean().item(), 'score_filled': filled.mean().item()}


class FillIn(Job):
    """Texts with masked slots; a frozen judge scores how real each fill looks, a second one only looks on."""
    headline = 'eval/judge_reward'
    max_answer_tokens = property(lambda self: self.s.block_size)

    def __init__(self, s, device, once, say):
        if len(s.mask_ratio) != 2 or not 0 < s.mask_ratio[0] <= s.mask_ratio[1] <= 1:
            raise ValueError(f"mask_ratio is {s.mask_ratio}: it must be (low, high) with 0 < low <= high <= 1, for instance (0.25, 0.35); at 0 there is nothing to fill in")
        for kind in s.mask_kinds:
            if kind not in MASK_KINDS:
                raise ValueError(f"mask_kinds holds {kind!r}; it takes {', '.join(MASK_KINDS)}")
        self.s, self.device, self.say = s, device, say
        once(lambda: load_corpus(s.dataset))  # prepares it on first use
        self.tokenizer, self.corpus = load_corpus(s.dataset)
        for ids in self.corpus.values():
            random_windows(ids, 1, s.block_size, torch.Generator())  # refuses now a split that is too short, not after a minute
        self.generator_path, *self.judge_paths = (path.format(dataset=dataset_name(s.dataset)) for path in (s.generator_checkpoint, s.judge_checkpoint, s.gold_checkpoint))
        once(self.make_missing)
        self.judge, self.gold = (Judge.from_pretrained(path, self.tokenizer).to(device) for path in self.judge_paths)
        for path, one in zip(self.judge_paths, (self.judge, self.gold)):
            if one.trunk.config.block_size < s.block_size + 1:
                raise ValueError(f"the judge at {path} reads texts of at most {one.trunk.config.block_size - 1} characters and block_size is {s.block_size}: lower block_size, or name a judge that does not exist yet to have it trained")
        say(f"judge: held-out AUC {self.judge.quality['auc']:.3f}, R2 {self.judge.quality['r2']:.3f}; gold judge: AUC {self.gold.quality['auc']:.3f}, R2 {self.gold.quality['r2']:.3f}")
        self.rewards = [('judge', lambda policy, rollout: 1 - score_fills(self.judge, rollout.batch, rollout.tokens), 1.0)]
        self.eval_batch = self.draw('val', s.eval_prompts_n, 0)

    def make_missing(self):
        s = self.s
        if not os.path.exists(self.generator_path):
            self.say(f"there is no generator at {self.generator_path}: training one on {s.dataset}")
            config = filler_config(self.tokenizer, s.block_size, s.n_layer, s.n_head, s.n_embd)
            model, quality = train_generator(self.tokenizer, self.corpus, config, s.pretrain_iters, mask_kinds=s.mask_kinds, seed=s.seed, device=self.device)
            save_model(self.generator_path, 'generator', model, config, self.tokenizer, quality)
        for number, path in enumerate(self.judge_paths):
            if not os.path.exists(path):
                self.say(f"there is no judge at {path}: training one on the fills of {self.generator_path}")
                generator = self.load_model().to(self.device)
                judge, quality = train_judge(generator, self.tokenizer, self.corpus, s.judge_iters, mask_kinds=s.mask_kinds, seed=s.seed + 1000 * number)
                save_model(path, 'judge', judge, generator.config, self.tokenizer, quality)

    def load_model(self):
        self.tokenizer.check_same(load_checkpoint(self.generator_path, 'generator', 'run')['chars'], self.generator_path)
        model = GPT.from_pretrained(self.generator_path).to(self.home)
        if model.config.block_size < self.s.block_size:
            raise ValueError(f"the generator at {self.generator_path} reads texts of at most {model.config.block_size} characters and block_size is {self.s.block_size}: lower block_size, or name a generator that does not exist yet to have it trained")
        return model

    def policy(self, model):
        return FillInPolicy(model, self.tokenizer, self.s.temperature, self.s.top_p, self.s.unmask_steps)

    def draw(self, split, n, seed):
        batch, _ = masked_windows(self.corpus[split], n, self.s.block_size, self.tokenizer, self.s.mask_kinds, self.s.mask_ratio, torch.Generator().manual_seed(seed), seed)
        return {key: value.to(self.device) for key, value in batch.items()}

    def batch(self, it, attempt=0):
        return self.draw('train', self.s.batch_size, ((self.s.seed + 10 ** 6 * attempt) * 10 ** 9 + it) % 2 ** 62)

    def evaluate(self, policy):
        """The same held-out texts with the same noise each time. The gold judge is never a reward."""
        rollout = policy.sample(self.eval_batch, 2)
        if self.s.eval_show:
            self.say(describe_fills(self.tokenizer, self.eval_batch, rollout.tokens, self.s.eval_show))
        return {'eval/judge_reward': 1 - score_fills(self.judge, self.eval_batch, rollout.tokens).mean().item(),
                'eval/gold_reward': 1 - score_fills(self.gold, self.eval_batch, rollout.tokens).mean().item(),
                'eval/judge_reward_real': 1 - self.judge.score(self.eval_batch['original']).mean().item(),
                'eval/gold_reward_real': 1 - self.gold.score(self.eval_batch['original']).mean().item(),
                'eval/exact_match_sampled': exact_match(self.eval_batch, rollout.tokens),
                'eval/exact_match_greedy': exact_match(self.eval_batch, policy.greedy(self.eval_batch))}

    def describe(self, m):
        return (f"held-out judge reward {m['eval/judge_reward']:.4f} (real text {m['eval/judge_reward_real']:.4f}), gold reward {m['eval/gold_reward']:.4f} "
                f"(real text {m['eval/gold_reward_real']:.4f}), exact match sampled {m['eval/exact_match_sampled']:.4f}, greedy {m['eval/exact_match_greedy']:.4f}")

    def asked(self, rollout):
        return {'prompt': self.tokenizer.decode(rollout.batch['tokens'][0]), 'answer': self.tokenizer.decode(rollout.batch['original'][0])}

    def try_out(self):
        return 'ckpt.pt', [f"--text={longest_line(self.tokenizer.decode(self.eval_batch['original'][0]))}", '--mask_ratio=0.3']

    def saved(self):
        """What a checkpoint holds beside the weights so that sample.py can use it."""
        return {'chars': self.tokenizer.chars, 'judge_checkpoint': self.judge_paths[0]}
