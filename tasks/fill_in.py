"""
Fill-in: texts with masked slots, a bidirectional model that fills all of them at once, and a frozen judge
that says how real each fill looks.

Given the unmasked text, slots are independent of each other, so one forward gives the exact distribution of
every fill: the G fills of a text are G draws from the same logits, and log pi(fill) is a sum over its slots.
Shapes: P texts · G fills · T positions · M slots (right-padded) · V vocabulary · D width.
"""
import copy
import os
import sys
from collections import Counter
from functools import partial

import torch
from torch.nn import functional as F

from data.text import dataset_name, load_corpus, random_windows
from grpo import Rollout, gather_logps, head_log_probs
from judge import Judge
from kernels import pack
from kernels.decoding import choices
from model import GPT, GPTConfig
from policy import uniforms
from runtime import ranks
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.config import Count, Natural, one_line
from runtime.console import painted, say
from runtime.made import check_made, content_of, content_of_path, made, recipe_for
from tasks.show import given, show_ranked
from tasks.supervised import cross_entropy, save_model, supervised_loop
from tasks.task import Task, longest_line, path_of, say_if_few


class FillIn(Task):
    headline = 'eval/judge_reward'
    refuses = ('top_k', 'overlong_penalty', 'lora_r', 'micro_batch_tokens')
    exported = ''

    class Settings:
        # texts
        mask_kinds = ('random',)                # of 'random', 'sticky', 'span', in equal shares
        mask_ratio = (0.25, 0.35)               # each text's share of masked characters lies between these
        unmask_steps: Count = 1                 # K: fill in K steps, each seeing the fills before it
        # judges, trained first where they are missing
        judge_checkpoint = 'out-{dataset}/judge.pt'     # its score is the reward
        gold_checkpoint = 'out-{dataset}/judge_gold.pt'  # never a reward: it shows over-optimisation
        judge_iters: Natural = 500              # supervised steps of each

        @staticmethod
        def check(cfg):
            ratios = [x for x in cfg.mask_ratio if type(x) in (int, float)]
            if not len(ratios) == len(cfg.mask_ratio) == 2 or not 0 < ratios[0] <= ratios[1] <= 1:
                raise ValueError(f"mask_ratio is {cfg.mask_ratio}; it takes low, high: 0 < low <= high <= 1")
            if not cfg.mask_kinds or any(kind not in list(CHOOSERS) for kind in cfg.mask_kinds):
                raise ValueError(f"mask_kinds is {cfg.mask_kinds}; it takes some of {', '.join(CHOOSERS)}")
            if cfg.unmask_steps > cfg.block_size:
                raise ValueError(f"unmask_steps is {cfg.unmask_steps}; it must be at most block_size, "
                                 f"{cfg.block_size}")
            if cfg.advantage == 'gae':
                raise ValueError("advantage gae needs a value for each token, and fill-in has slots instead")

    def __init__(self, cfg, device):
        super().__init__(cfg, device)
        ranks.once(lambda: load_corpus(cfg.dataset))  # prepares it on first use
        self.tokenizer, self.corpus = load_corpus(cfg.dataset)
        for ids in self.corpus.values():
            random_windows(ids, 1, cfg.block_size, torch.Generator())  # refuses a split that is too short
        keys, name = ('generator', 'judge', 'gold'), dataset_name(cfg.dataset)
        paths = [path_of(f'{key}_checkpoint', vars(cfg), name) for key in keys]
        self.generator_path, *self.judge_paths = paths
        self.content = content_of(self.tokenizer.chars, *self.corpus.values())
        ranks.once(self.make_missing)
        self.judge, self.gold = map(self.load_judge, self.judge_paths)
        for name, judge in (('judge', self.judge), ('gold judge', self.gold)):
            say(f"{name}: held-out AUC {judge.quality['auc']:.3f}, R2 {judge.quality['r2']:.3f}")
        self.rewards = [('judge', self.realness, 1.0)]
        self.eval_batch = self.draw('val', cfg.eval_prompts_n, 0)
        real, gold = (1 - judge.score(self.eval_batch['original']) for judge in (self.judge, self.gold))
        self.real_each = real
        self.real = {'eval/judge_reward_real': real.mean().item(),
                     'eval/gold_reward_real': gold.mean().item()}
        self.independent = min(len(self.corpus['val']) // cfg.block_size, cfg.eval_prompts_n)
        say_if_few(self.independent, 'held-out texts that do not overlap')

    def check_room(self, room, which):
        if room < self.cfg.block_size:
            raise ValueError(f"{which} reads at most {room} characters and block_size is "
                             f"{self.cfg.block_size}: lower it, or name a new path")

    def load_model(self):
        chars = load_checkpoint(self.generator_path, 'generator', 'run')['chars']
        self.tokenizer.check_same(chars, self.generator_path)
        model = GPT.from_pretrained(self.generator_path).to(self.home)
        self.check_room(model.config.block_size, f"the generator at {self.generator_path}")
        return model

    def load_judge(self, path):
        judge = Judge.from_pretrained(path, self.tokenizer).to(self.device)
        self.check_room(judge.trunk.config.block_size - 1, f"the judge at {path}")
        return judge

    def policy(self, model):
        cfg = self.cfg
        return FillInPolicy(model, self.tokenizer, cfg.temperature, cfg.top_p, cfg.unmask_steps,
                            cfg.block_size)

    def realness(self, policy, rollout):
        return 1 - score_fills(self.judge, rollout.batch, rollout.tokens)

    def masked(self, split, n, T, ratio, generator, seed=0):
        """make_batch of n random texts (n, T), an equal share masked in each kind; seed: of their fills."""
        tokens, kinds = random_windows(self.corpus[split], n, T, generator), self.cfg.mask_kinds
        lengths, chosen = torch.full((n,), T), []
        for i, kind in enumerate(kinds):
            chosen.append(choose_slots(kind, lengths[i::len(kinds)], T, ratio, generator))
        return make_batch(tokens, lengths, torch.cat(chosen), self.tokenizer.mask_id, seed)

    def draw(self, split, n, seed):
        cfg, generator = self.cfg, torch.Generator().manual_seed(seed)
        batch = self.masked(split, n, cfg.block_size, cfg.mask_ratio, generator, seed)
        return on_device(batch, self.device)

    def batch(self, it, attempt=0):
        seed = self.cfg.seed + 10 ** 6 * attempt
        return self.draw('train', self.cfg.batch_size, (seed * 10 ** 9 + it) % 2 ** 62)

    # -----------------------------------------------------------------------------
    # the generator and the judges, trained where they are missing

    def make_missing(self):
        things = [(self.generator_path, self.generator_recipe, self.make_generator)]
        for number, path in enumerate(self.judge_paths):
            things.append((path, partial(self.judge_recipe, number), self.make_judge))
        for path, describe, _ in things:  # refused, if at all, before minutes are spent
            check_made(path, describe, self.remake)
        for path, describe, make in things:
            made(path, describe, make, self.remake)

    def generator_recipe(self):
        return recipe_for('a generator', 1, self.cfg.dataset, self.cfg, 'block_size', 'n_layer', 'n_head',
                          'n_embd', 'pretrain_iters', 'mask_kinds', 'seed', data=self.content)

    def judge_recipe(self, number):
        fills, seed = f"the fills of {self.generator_path}", self.cfg.seed + 1000 * number
        return recipe_for('a judge', 1, fills, self.cfg, 'judge_iters', 'mask_kinds', data=self.content,
                          seed=seed, generator=content_of_path(self.generator_path))

    def make_generator(self, path, recipe):
        """A model that fills slots, trained as BERT is; its quality is loss in nats and greedy accuracy."""
        cfg, tokenizer, device, ratio = self.cfg, self.tokenizer, self.device, (0.1, 0.35)
        torch.manual_seed(cfg.seed)
        generator = torch.Generator().manual_seed(cfg.seed)
        config = filler_config(tokenizer, cfg.block_size, cfg.n_layer, cfg.n_head, cfg.n_embd)
        model = GPT(config).to(device)

        def loss_on(batch, inputs):
            slots = (batch['tokens'] == tokenizer.mask_id).to(device)
            return cross_entropy(model, model(inputs.to(device))[slots], batch['original'].to(device)[slots])

        def loss_of_batch():
            batch = self.masked('train', 48, cfg.block_size, ratio, generator)
            chosen = batch['tokens'] == tokenizer.mask_id
            return loss_on(batch, corrupt_like_bert(batch['original'], chosen, tokenizer, generator))

        supervised_loop('generator', model, loss_of_batch, cfg.pretrain_iters, 5e-3)
        model.eval()
        batch = self.masked('val', 1024, cfg.block_size, ratio, torch.Generator().manual_seed(0))
        batch, policy = on_device(batch, device), FillInPolicy(model, tokenizer)
        with torch.no_grad():
            loss = loss_on(batch, batch['tokens']).item()
        quality = {'loss': loss, 'accuracy': exact_match(batch, policy.greedy(batch))}
        save_model(path, 'generator', model, config, tokenizer, quality, recipe)

    @torch.no_grad()
    def machine_filled(self, model, split, n, generator, ratio=(0.05, 0.6), heat=(0.6, 1.1), untouched=0.15):
        """
        n texts (n, T), of which some stay untouched and the others get a share of their characters, in
        `ratio`, filled in at a temperature in `heat`; and replaced (n, T) bool, true where a fill differs
        from what stood there. One that restores the text leaves it real.
        """
        batch = self.masked(split, n, model.config.block_size - 1, ratio, generator)
        chosen = batch['tokens'] == self.tokenizer.mask_id
        hidden = model(batch['tokens'].to(self.device))[chosen.to(self.device)]
        logits = model.lm_head(hidden).float().cpu()[:, :len(self.tokenizer.chars)]
        temperature = heat[0] + (heat[1] - heat[0]) * torch.rand(n, 1, generator=generator)
        probs = (logits / temperature.expand_as(chosen)[chosen][:, None]).softmax(dim=-1)
        texts = batch['original'].clone()
        texts[chosen] = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
        keep = torch.rand(n, generator=generator) < untouched
        texts[keep] = batch['original'][keep]
        return texts.to(self.device), (texts != batch['original']).to(self.device)

    def make_judge(self, path, recipe):
        """
        A judge that starts as the generator and learns how much of a text that has filled in, over many mask
        ratios and temperatures, because the policy will move. Its quality, held out: r2 of its score; auc,
        the chance that a text with a quarter of it filled in at temperature 0.8 scores above a real one; and
        the mean scores of both.
        """
        model, seed = self.load_model().to(self.device), recipe['seed']
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        judge = Judge(model.config, self.tokenizer.cls_id).to(self.device)
        judge.trunk.load_state_dict(model.state_dict())

        def loss_of_batch():
            texts, replaced = self.machine_filled(model, 'train', 48, generator)
            score, slots = judge(texts)
            of_text = F.mse_loss(score.sigmoid(), syntheticity(replaced))
            return 10 * of_text + F.binary_cross_entropy_with_logits(slots, replaced.float())

        supervised_loop('judge', judge, loss_of_batch, self.cfg.judge_iters, 2e-3)
        judge.eval().requires_grad_(False)
        held_out = torch.Generator().manual_seed(0)
        texts, replaced = self.machine_filled(model, 'val', 1024, held_out)
        target = syntheticity(replaced)
        r2 = 1 - F.mse_loss(judge.score(texts), target) / target.var(correction=0)

        def scores(untouched):
            texts, _ = self.machine_filled(model, 'val', 1024, held_out, (0.25, 0.25), (0.8, 0.8), untouched)
            return judge.score(texts)

        real, filled = scores(1.0), scores(0.0)
        above = 0.5 + 0.5 * (filled[:, None] - real).sign()
        quality = {'auc': above.mean().item(), 'r2': r2.item(), 'score_real': real.mean().item(),
                   'score_filled': filled.mean().item()}
        save_model(path, 'judge', judge, model.config, self.tokenizer, quality, recipe)

    def evaluate(self, policy):
        batch = self.eval_batch  # its seeds are the same each time
        first = policy.first(batch)
        fills = policy.sample(batch, 2, first).tokens
        if self.cfg.eval_show:
            say(describe_fills(self.tokenizer, batch, fills, self.cfg.eval_show))
        judge, gold = (1 - score_fills(judge, batch, fills).mean(dim=1) for judge in (self.judge, self.gold))
        right = right_fills(batch, fills) / (fills.shape[1] * batch['n_slots'])
        self.each = {'judge': judge, 'gold': gold, 'real': self.real_each, 'right': right}
        return {'eval/judge_reward': judge.mean().item(), 'eval/gold_reward': gold.mean().item(), **self.real,
                'eval/exact_match_sampled': exact_match(batch, fills),
                'eval/exact_match_greedy': exact_match(batch, first.argmax(dim=-1))}

    @classmethod
    def verdict(cls, looks, settings):
        """The judge is fooled where fills rise above real text, or while others fall."""
        told = looks.outcome('judge', 'held-out judge reward')
        above = looks.mean(looks.last['judge'], looks.last['real'])
        if looks.change('judge').sign < 1:
            return told
        fooled = told.replace('learned', 'the judge is being fooled')
        if above.sign > 0:
            return f"{fooled}, above real text's by {above}"
        for name, words in (('gold', 'the gold judge’s'), ('right', 'exact match, by text,')):
            if looks.change(name).sign < 0:
                return f"{fooled}, while {looks.told(name, words)}"
        return told

    def describe(self, metrics):
        m = {name.removeprefix('eval/'): f'{value:.4f}' for name, value in metrics.items()}
        return (f"held-out judge reward {m['judge_reward']} (real text {m['judge_reward_real']}), gold "
                f"reward {m['gold_reward']} (real text {m['gold_reward_real']}), exact match sampled "
                f"{m['exact_match_sampled']}, greedy {m['exact_match_greedy']}")

    def asked(self, rollout):
        decode, batch = self.tokenizer.decode, rollout.batch
        return {'prompt': decode(batch['tokens'][0]), 'answer': decode(batch['original'][0])}

    def token_places(self, rollout):
        return {'slots': rollout.batch['slots'][0].tolist()}

    def learns_from(self):
        return {'texts': self.content, 'judge': content_of_path(self.judge_paths[0])}

    def saved(self):
        return {'chars': self.tokenizer.chars, 'judge_checkpoint': self.judge_paths[0]}

    @classmethod
    def export(cls, saved, path, folder, adapter_folder):
        """No other program knows such a model: others get its checkpoint, less what resumes the run."""
        model, path = cls.load(saved, path).state_dict(), os.path.join(folder, 'fill_in.pt')
        kept = {key: saved[key] for key in ('model_config', 'chars', 'judge_checkpoint') if key in saved}
        save_checkpoint(path, {'kind': 'generator', 'model': model, **kept})
        say(f"exported to {path}")

    def try_out(self):
        text = longest_line(self.tokenizer.decode(self.eval_batch['original'][0]))
        steps = [f'--unmask_steps={self.cfg.unmask_steps}'] if self.cfg.unmask_steps > 1 else []
        return 'ckpt.pt', [f"--text={text}", '--mask_ratio=0.3', *steps]

    @classmethod
    def show(cls, saved, model, tokenizer, cfg):
        """Fills of a text's slots, those first that its judge rewards most, else the likeliest."""
        text, room = given('text', cfg.text), model.config.block_size - 1
        if len(text) > room:
            raise ValueError(f"the text has {len(text)} characters and this model reads {room}: shorten it")
        batch = text_with_slots(tokenizer, text, cfg.mask_char, cfg.mask_ratio, cfg.seed)
        batch, judge = on_device(batch, cfg.device), None
        path = cfg.judge_checkpoint or saved.get('judge_checkpoint')
        if path and (cfg.judge_checkpoint or os.path.exists(path)):
            judge = Judge.from_pretrained(path, tokenizer).to(cfg.device)
        masked = text if cfg.mask_ratio == 0 else tokenizer.decode(batch['tokens'][0])
        hint = "  (reward: 1 looks written, 0 machine-filled)" if judge else ''
        shown = one_line(masked.replace('\n', '⏎'))
        print(painted(f'masked: {shown}{hint}', sys.stderr), file=sys.stderr)
        policy = FillInPolicy(model, tokenizer, cfg.temperature or 1.0, cfg.top_p, cfg.unmask_steps)
        show_fills(policy, batch, judge, (cfg.num_samples or 8) * (cfg.temperature > 0))


# -----------------------------------------------------------------------------
# masks

def order_of(noise, exists):
    """(P, T): each position's rank by noise (P, T); positions that do not exist come last."""
    return noise.masked_fill(~exists, 2.0).argsort(dim=1).argsort(dim=1)


def random_slots(exists, counts, generator):
    """Positions independent of each other."""
    return order_of(torch.rand(exists.shape, generator=generator), exists) < counts[:, None]


def sticky_slots(exists, counts, generator):
    """Clumps that grow: next to a masked position others follow ten times likelier."""
    chosen = torch.zeros_like(exists)
    while (short := chosen.sum(1) < counts).any():
        neighbours = F.pad(chosen[:, :-1], (1, 0)) | F.pad(chosen[:, 1:], (0, 1))
        new = torch.rand(exists.shape, generator=generator) < torch.where(neighbours, 0.3, 0.03)
        new &= exists & ~chosen & short[:, None]
        # the last round may overshoot: as many stay as are missing, at random
        chosen |= new & random_slots(new, counts - chosen.sum(1), generator)
    return chosen


def span_slots(exists, counts, generator):
    """Runs of about four characters."""
    chosen = torch.zeros_like(exists)
    for p, (count, length) in enumerate(zip(counts.tolist(), exists.sum(1).tolist(), strict=True)):
        n = max(1, round(count / 4))
        sizes = torch.ones(n + length - count, dtype=torch.long)  # n runs, then single unmasked positions
        sizes[:n] = count // n
        sizes[:count % n] += 1
        order = torch.randperm(len(sizes), generator=generator)
        chosen[p, :length] = (order < n).repeat_interleave(sizes[order])
    return chosen


CHOOSERS = {'random': random_slots, 'sticky': sticky_slots, 'span': span_slots}


def choose_slots(kind, lengths, T, ratio, generator):
    """
    Which positions of texts of true lengths (P,) to mask: bool (P, T), at least one in each text; each text's
    share of them is uniform between the two of ratio.
    """
    low, high = ratio
    shares = low + (high - low) * torch.rand(len(lengths), generator=generator)
    counts = (shares * lengths).round().long().clamp(min=1)  # (P,) slots of each text
    return CHOOSERS[kind](torch.arange(T) < lengths[:, None], counts, generator)


def make_batch(tokens: torch.Tensor, lengths: torch.Tensor, chosen: torch.Tensor, mask_id: int,
               seed: int = 0) -> dict[str, torch.Tensor]:
    """
    The prompts of a fill-in step, from tokens (P, T), lengths (P,) and bool (P, T), which are chosen. A dict:
    tokens (P, T) masked, lengths, slots (P, M), positions in reading order, n_slots (P,), original (P, T),
    seeds (P,), each text's own.
    """
    n_slots = chosen.sum(dim=1)
    M = int(n_slots.max())
    slots = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :M]  # masked first, in reading order
    slots = slots.masked_fill(torch.arange(M, device=slots.device) >= n_slots[:, None], 0)
    seeds = torch.tensor([(seed * 10 ** 5 + p) % 2 ** 62 for p in range(len(tokens))])
    return {'tokens': tokens.masked_fill(chosen, mask_id), 'lengths': lengths, 'slots': slots,
            'n_slots': n_slots, 'original': tokens, 'seeds': seeds}


def on_device(batch, device):
    """The batch there, but for what the host reads."""
    return {name: x if name in ('lengths', 'seeds') else x.to(device) for name, x in batch.items()}


def real_slots(batch):
    """(P, M) bool: which slots are no padding."""
    slots = batch['slots']
    return torch.arange(slots.shape[1], device=slots.device) < batch['n_slots'][:, None]


def text_with_slots(tokenizer, text, mask_char='□', mask_ratio=0.0, seed=1):
    """
    make_batch of one text: mask_char marks the slots, or mask_ratio, above 0, is the share masked at random.
    """
    lengths, generator = torch.tensor([len(text)]), torch.Generator().manual_seed(seed)
    if mask_ratio > 0:
        chosen = choose_slots('random', lengths, len(text), (mask_ratio, mask_ratio), generator)
    else:
        chosen = torch.tensor([[c == mask_char for c in text]])
        text = text.replace(mask_char, tokenizer.chars[0])  # any character: it is masked
    if not chosen.any():
        raise ValueError(f"the text has no slot: mark some with {mask_char!r} (--mask_char=? makes it ?), or "
                         "give --mask_ratio=0.3")
    return make_batch(torch.tensor([tokenizer.encode(text)]), lengths, chosen, tokenizer.mask_id, seed)


def fill(batch, fills):
    """The texts (P, G, T) of a batch, filled in with fills (P, G, M)."""
    P, G, M = fills.shape
    T = batch['tokens'].shape[1]
    # padding slots all point at one extra position, cut off again
    slots = torch.where(real_slots(batch), batch['slots'], T)[:, None].expand(P, G, M)
    texts = torch.cat((batch['tokens'], batch['tokens'][:, :1]), dim=1)[:, None].expand(P, G, T + 1)
    return texts.scatter(2, slots, fills)[..., :T]


# -----------------------------------------------------------------------------
# the policy

class FillInPolicy:
    """
    The policy of fill-in GRPO; see grpo.py for what a policy is. All slots of a text are filled from one
    forward over P rows, whatever G is. With unmask_steps=K > 1 the slots are dealt into K steps at random,
    before anything is sampled, so that log-probs stay exact; a step sees the fills of those before it, and
    from the second on each fill has a forward of its own. max_new_tokens: the most slots of a text.
    """
    mirror = None

    def __init__(self, model: torch.nn.Module, tokenizer, temperature: float = 1.0, top_p: float = 1.0,
                 unmask_steps: int = 1, max_new_tokens: int | None = None):
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.temperature, self.top_p, self.unmask_steps = temperature, top_p, unmask_steps
        self.forbidden = torch.zeros(tokenizer.vocab_size, dtype=torch.bool, device=model.wte.weight.device)
        self.forbidden[tokenizer.special_ids] = True

    def with_model(self, model):
        """The same distribution under other weights: a reference."""
        other = copy.copy(self)
        other.model = model
        return other

    def slot_hidden(self, batch, fills, step):
        """Hidden states (P, H, M, D) at the slots, with earlier steps' fills (P, G, M); H = 1 at step 0."""
        slots, texts = batch['slots'][:, None], batch['tokens'][:, None]    # (P, 1, M), (P, 1, T)
        if step > 0:
            known = (batch['step_of_slot'] < step)[:, None].expand_as(fills)
            texts = fill(batch, torch.where(known, fills, self.tokenizer.mask_id))
            slots = slots.expand_as(fills)
        P, H, T = texts.shape
        lengths = batch['lengths'].repeat_interleave(H)
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
    def first(self, batch):
        """Log-probs (P, 1, M, V) at the slots before any is filled."""
        return head_log_probs(self, self.slot_hidden(batch, None, 0))

    @torch.no_grad()
    def sample(self, batch: dict, group_size: int, first: torch.Tensor | None = None) -> Rollout:
        """
        Fills that each depend on their text, its seed and their place in the group alone. first: what the
        method of that name returns, if it is known.
        """
        P, M = batch['slots'].shape
        u = uniforms(batch['seeds'].tolist(), 1 + group_size, M).to(batch['slots'].device)
        batch = batch | {'step_of_slot': self.deal(batch, u[:, 0])}
        fills, allowed = batch['slots'].new_zeros(P, group_size, M), None
        logps = torch.zeros(fills.shape, device=fills.device)
        for step in range(self.unmask_steps):
            if step == 0:
                log_probs = self.first(batch) if first is None else first           # (P, 1, M, V)
            else:
                log_probs = head_log_probs(self, self.slot_hidden(batch, fills, step))  # (P, H, M, V)
            if not torch.isfinite(log_probs.amax(dim=-1)).all():
                raise FloatingPointError("the policy's logits are NaN: start from an earlier checkpoint "
                                         "with a lower learning_rate")
            now = (batch['step_of_slot'] == step)[:, None]  # (P, 1, M)
            if self.top_p < 1:
                keep = choices(log_probs, 0, self.top_p)
                log_probs = log_probs.masked_fill(~keep, -torch.inf).log_softmax(dim=-1)
                allowed = pack(keep) if step == 0 else torch.where(now[..., None], pack(keep), allowed)
            drawn = draw_fills(log_probs, u[:, 1:])
            fills = torch.where(now, drawn, fills)
            logps = torch.where(now, gather_logps(log_probs, drawn), logps)
        lengths = batch['n_slots'].cpu()[:, None].expand(P, group_size)
        return Rollout(batch=batch, tokens=fills, lengths=lengths, logps=logps, allowed=allowed)

    def deal(self, batch, noise):
        """(P, M): the step in which each slot is filled, by noise (P, M). Padding lands beyond the last."""
        if self.unmask_steps == 1:
            return torch.zeros_like(batch['slots'])
        return order_of(noise, real_slots(batch)) * self.unmask_steps // batch['n_slots'][:, None]

    def greedy(self, batch):
        """The likeliest fill of each slot from one forward: (P, 1, M)."""
        return self.first(batch).argmax(dim=-1)

    def texts(self, rollout: Rollout) -> list[list[str]]:
        """The filled texts: P lists of G strings."""
        texts, filled = [], fill(rollout.batch, rollout.tokens)
        for group, n in zip(filled, rollout.batch['lengths'].tolist(), strict=True):
            texts.append([self.tokenizer.decode(ids) for ids in group[:, :n].tolist()])
        return texts


def draw_fills(log_probs, u):
    """One id for each number of u (P, G, M) in [0, 1), by log_probs (P, H, M, V): (P, G, M)."""
    P, G, M = u.shape
    H = log_probs.shape[1]
    mass = log_probs.double().exp().cumsum(dim=-1)  # (P, H, M, V)
    target = u.view(P, H, G // H, M).transpose(2, 3).contiguous() * mass[..., -1:]
    drawn = torch.searchsorted(mass, target, right=True)  # never one of probability 0
    return drawn.transpose(2, 3).reshape(P, G, M)


# -----------------------------------------------------------------------------
# how good fills are

def right_fills(batch, fills):
    """(P,): how many of each text's fills (P, G, M) are the very character that stood there."""
    wanted = batch['original'].gather(1, batch['slots'])[:, None]
    return ((fills == wanted) & real_slots(batch)[:, None]).sum(dim=(1, 2))


def exact_match(batch, fills):
    """The share of all fills that are."""
    return (right_fills(batch, fills).sum() / (fills.shape[1] * batch['n_slots'].sum())).item()


def score_fills(judge, batch, fills):
    """A judge's score of every fill: (P, G), 1 for machine-made."""
    P, G, _ = fills.shape
    lengths = batch['lengths'].repeat_interleave(G)
    return judge.score(fill(batch, fills).flatten(0, 1), lengths).view(P, G)


def describe_fills(tokenizer, batch, fills, n):
    """The first n texts, real over filled, with a mark under each slot; a line end shows as ⏎."""
    lines = ['  (^ as it was, x another character)']
    texts = fill(batch, fills)[:, 0]
    for p in range(min(n, len(fills))):
        length = int(batch['lengths'][p])
        real, filled = (tokenizer.decode(ids[p][:length]) for ids in (batch['original'], texts))
        marks = [' '] * length
        for i in batch['slots'][p][:int(batch['n_slots'][p])].tolist():
            marks[i] = '^' if real[i] == filled[i] else 'x'
        for name, text in (('real', real), ('filled', filled), ('', ''.join(marks))):
            lines.append(f"  {name:<6} {text}".replace('\n', '⏎'))
    return '\n'.join(lines)


def show_fills(policy, batch, judge, n):
    """Print the greedy fill of one text and n sampled ones, each once, best first."""
    first = policy.first(batch)
    fills = first.argmax(dim=-1)
    logps = gather_logps(first, fills)
    if n:
        rollout = policy.sample(batch, n, first)
        fills, logps = torch.cat((fills, rollout.tokens), dim=1), torch.cat((logps, rollout.logps), dim=1)
    columns = {'reward': (1 - score_fills(judge, batch, fills)[0]).tolist()} if judge else {}
    columns['log-prob'] = logps[0].sum(dim=-1).tolist()
    texts = [policy.tokenizer.decode(ids) for ids in fill(batch, fills)[0]]
    by_text = list(zip(texts, zip(*columns.values(), strict=True), strict=True))
    values = dict(reversed(by_text))  # of equal texts the first counts, the greedy one
    times, rows = Counter(texts[1:]), []
    for text in sorted(values, key=values.get, reverse=True):
        cells = [*(f'{value:.3f}' for value in values[text]), str(times[text])]
        rows.append((cells, text, '  (greedy)' if text == texts[0] else ''))
    show_ranked([*columns, 'times', 'text'], rows)


# -----------------------------------------------------------------------------
# what the generator and its judges are made of and taught

def filler_config(tokenizer, block_size, n_layer, n_head, n_embd):
    """What learned fastest at this size. It reads one position more than a text has, for a judge's [CLS]."""
    return GPTConfig(block_size=block_size + 1, vocab_size=tokenizer.vocab_size, n_layer=n_layer,
                     n_head=n_head, n_embd=n_embd, causal=False, norm='rmsnorm', position='rope',
                     mlp='relu2', bias=False)


def corrupt_like_bert(tokens, chosen, tokenizer, generator):
    """Of the chosen positions 80 % become [MASK], 10 % a random character, 10 % stay (arXiv 1810.04805)."""
    u = torch.rand(tokens.shape, generator=generator)
    noise = torch.randint(len(tokenizer.chars), tokens.shape, generator=generator)
    inputs = torch.where(chosen & (u < 0.8), tokenizer.mask_id, tokens)
    return torch.where(chosen & (u >= 0.8) & (u < 0.9), noise, inputs)


def syntheticity(replaced):
    """
    What a judge is taught to say (n,) of texts with replaced characters (n, T) bool: 0, .47, .81, .97 and 1
    at a share of 0, 1/4, 1/2, 3/4 and 1.
    """
    share = replaced.float().mean(dim=1)
    return share ** 4 - 2 * share ** 3 + 2 * share
