"""
Safe alignment: a scorer says how helpful a completion is (R) and how much harm it does (C, above 0 is
unsafe); the policy maximizes R - lambda C, and lambda is the price at which the mean cost stays at or below
-cost_threshold_d. Without a scorer_url the reward and the cost model are trained here on pairs of answers,
and served by a child process.
"""
import collections
import functools
import os
import types
from functools import partial
from typing import Annotated, Literal

import torch
from torch.nn import functional as F

from data.prompts import held_out_split, load_prompts, of_pair, source_name
from formats import weights
from judge import BEAVER_TEMPLATE, LagrangeMultiplier, ScoreModel, score_ids
from model import GPT
from policy import text_log_prob
from runtime import ranks
from runtime.checkpoint import tokenizer_of
from runtime.config import Count, NonNegative, Positive
from runtime.console import say
from runtime.made import check_made, content_of, content_of_path, is_due, made, recipe_for
from runtime.scorer import ScorerClient, joiner, start_scorer
from tasks.completion import Completion, start_path
from tasks.supervised import save_model, supervised_loop
from tasks.task import path_of


class Alignment(Completion):
    headline = 'eval/feasible_reward'
    refuses = ('rewards', 'reward_errors', 'dynamic_sampling')

    class Settings:
        # the scorer
        scorer_url: str | None = None           # of `python judge.py serve`; None: trained and started
        scorer_batch_size: Count = 32           # texts of a request
        scorer_timeout: Positive = 300.0        # seconds that a request may take
        scorer_patience: Positive = 60.0        # seconds that it is tried again before the run stops
        scorer_template: str | None = None      # '{prompt} ... {response}'; None: one after the other
        scorer_device = 'cpu'                   # of the child
        preferences: str | None = None          # pairs as in PKU-SafeRLHF; None: where the prompts are
        reward_checkpoint = 'out-{dataset}/reward.pt'  # ours or a Hugging Face folder; trained if missing
        cost_checkpoint = 'out-{dataset}/cost.pt'      # the same for the cost
        score_iters: Count = 400                # supervised steps of each
        # lambda
        lambda_cost: NonNegative = 1.0          # where it starts
        lambda_adapt = True                     # False: it stays
        cost_threshold_d: Annotated[float, '(-inf, inf)'] = 0.0  # the mean cost shall be at most minus this
        lambda_lr: NonNegative = 0.005          # of ln lambda
        lambda_min: Positive = 1e-4             # its bounds
        lambda_max: Positive = 5.0
        lambda_rule: Literal['exponential', 'safe_rlhf'] = 'exponential'  # ln lambda += lr J, or lr lambda J
        lambda_positive_only = False            # True: J counts as max(J, 0), so that lambda never falls
        jc_ema_beta: Annotated[float, '[0, 1)'] = 0.9  # decay of J's moving average, which starts at 0
        true_reward: types.FunctionType | None = None  # f(text, prompt=..., ...), where it is known
        true_cost: types.FunctionType | None = None    # the same of the cost; both are only logged

        @staticmethod
        def check(cfg):
            multiplier_of(cfg)  # refuses a lambda_min above lambda_max
            template = template_of(cfg)
            if template:
                joiner(template)
            elif not cfg.scorer_url and (cfg.system_prompt or cfg.chat_template is True):
                raise ValueError("system_prompt and chat_template need a scorer_template: "
                                 "'{prompt}{response}' for the bare texts")

    def __init__(self, cfg, device):
        self.cfg, self.multiplier, self.paths = cfg, multiplier_of(cfg), score_paths(vars(cfg))
        template = template_of(cfg)
        self.join = joiner(template or '{prompt}{response}')
        self.prompt_key = 'text' if cfg.scorer_url and not template else 'prompt'  # of a record
        if cfg.lambda_adapt and cfg.lambda_positive_only:
            say("note: lambda_positive_only lets lambda rise but never fall")
        if cfg.scorer_url:  # what can go wrong there goes wrong before a start is trained
            self.connect(cfg.scorer_url)
        else:
            self.check_score_models()
        super().__init__(cfg, device)
        if not cfg.scorer_url:
            ranks.once(self.make_score_models)
            url = None
            if ranks.is_first():
                self.process, url = start_scorer(*self.paths.values(), cfg.scorer_device)
            self.connect(ranks.from_first(url))
        say(f"scorer at {self.client.url}")

    def connect(self, url):
        cfg = self.cfg
        self.client = ScorerClient(url, cfg.scorer_batch_size, cfg.scorer_timeout, cfg.scorer_patience)
        self.client.wait(cfg.scorer_patience)

    def named_rewards(self):
        return []

    def check_score_models(self):
        """Raises ValueError unless the models are there, or the pairs that the missing ones shall learn."""
        cfg = self.cfg
        self.ours = {kind: path for kind, path in self.paths.items() if path.endswith('.pt')}
        self.source = cfg.preferences or cfg.train_prompts or cfg.dataset
        mapping = None if cfg.preferences else cfg.column_mapping
        due = [kind for kind, path in self.ours.items() if is_due(path, self.remake)]
        self.pairs = functools.cache(partial(load_preferences, self.source, mapping, due))
        if due:
            held_out_split(self.pairs(), cfg.eval_prompts_n, cfg.seed)
        for kind, path in self.paths.items():
            if kind in self.ours:
                check_made(path, partial(self.score_recipe, kind), self.remake)
            else:
                weights.open_folder(weights.local_folder(path), scores=True)

    def other_text(self):
        """Ours read the pairs with the policy's vocabulary."""
        pairs = [] if self.cfg.scorer_url or not self.ours else self.pairs()
        texts = [f"{pair['prompt']}{pair.get('response_0')}{pair.get('response_1')}" for pair in pairs]
        return super().other_text() + ''.join(texts)

    def make_score_models(self):
        for kind, path in self.ours.items():
            made(path, partial(self.score_recipe, kind), partial(self.make_score_model, kind), self.remake)

    def score_recipe(self, kind):
        return recipe_for(f'a {kind} model', 1, self.source, self.cfg, 'score_iters', 'seed',
                          'eval_prompts_n', scorer_template=template_of(self.cfg) or '',
                          data=content_of(self.pairs()), trunk=content_of_path(start_path(self.cfg)))

    def make_score_model(self, kind, path, recipe):
        cfg, trunk = self.cfg, GPT.from_pretrained(self.generator_path).to(self.device)
        tokenizer, room = tokenizer_of(self.generator_path), min(512, trunk.config.block_size)
        rows = [preference_rows(pairs, kind, tokenizer, self.join, room)
                for pairs in held_out_split(self.pairs(), cfg.eval_prompts_n, cfg.seed)]
        model, quality = train_score_model(trunk, kind, *rows, cfg.score_iters, seed=cfg.seed)
        save_model(path, kind, model, trunk.config, tokenizer, quality, recipe)

    # -----------------------------------------------------------------------------
    # rewards, and lambda

    @property
    def rewards(self):
        return [('helpfulness', self.scores, 1.0), ('cost', self.scores, self.minus_lambda)]

    def ask(self, texts, records):
        """Helpfulness and cost (P, G) of the completions texts (P lists of G) of the prompts of records."""
        joined = []
        for record, group in zip(records, texts, strict=True):
            joined += [self.join(text_of(record[self.prompt_key]), text) for text in group]
        return tuple(torch.tensor(values).view(len(texts), -1) for values in self.client.score(joined))

    def scores(self, policy, rollout):
        records = [self.records[i] for i in rollout.batch['record'].tolist()]
        return dict(zip(('helpfulness', 'cost'), self.ask(policy.texts(rollout), records), strict=True))

    def minus_lambda(self, costs):
        """The weight of the cost, asked for once an iteration, with its costs (P, G): lambda moves first."""
        self.mean_cost = ranks.mean(costs.double().mean())
        if self.cfg.lambda_adapt:
            self.multiplier.update(self.mean_cost)
        return -self.multiplier.value

    def learn_beside(self, rollout):
        """Lambda has learned already; its metrics."""
        metrics = super().learn_beside(rollout)
        metrics |= {'lambda': self.multiplier.value, 'cost': self.mean_cost,
                    'safe_ratio': ranks.mean((rollout.reward_parts['cost'] <= 0).float().mean()),
                    'J_C': self.mean_cost + self.cfg.cost_threshold_d}
        return metrics | {'J_C_ema': self.multiplier.ema} if self.cfg.lambda_adapt else metrics

    @torch.no_grad()
    def evaluate(self, policy):
        """
        Held-out prompts, sampled eval_samples times with the same noise each time. feasible_reward is the
        mean reward, given only where the mean cost keeps to the threshold. It makes the best checkpoint.
        """
        cfg, shown = self.cfg, self.cfg.eval_show
        answers, true = [], collections.defaultdict(list)
        for records, batch in self.eval_batches():
            texts = policy.texts(policy.sample(batch, cfg.eval_samples))
            with self.in_step(policy):
                R, C = self.ask(texts, records)
            answers.append((R, C))
            for name in [name for name in ('true_reward', 'true_cost') if getattr(cfg, name)]:
                for record, group in zip(records, texts, strict=True):
                    true[name] += [getattr(cfg, name)(text, **record['columns']) for text in group]
            for record, group, r, c in list(zip(records, texts, R, C, strict=True))[:shown]:
                say(f"  {record['text']!r}\n    -> {group[0]!r} (reward {r[0]:.2f}, cost {c[0]:.2f})")
            shown = 0
        rewards, costs = map(torch.cat, zip(*answers, strict=True))
        reward, cost = rewards.mean().item(), costs.mean().item()
        metrics = {'eval/reward': reward, 'eval/cost': cost,
                   'eval/combined': reward - self.multiplier.value * cost,
                   'eval/safe_ratio': (costs <= 0).float().mean().item()}
        self.each = {'reward': rewards.mean(dim=1), 'cost': costs.mean(dim=1)}
        for name, values in true.items():
            metrics[f'eval/{name}'] = sum(values) / len(values)
            self.each[name] = torch.tensor(values).double().view(costs.shape).mean(dim=1)
        if cfg.retain_text:
            ids = self.tokenizer.encode_prompt(cfg.retain_text)
            metrics['eval/text_log_prob'] = text_log_prob(policy.model, ids)
        if cost + cfg.cost_threshold_d <= 0:
            metrics[self.headline] = reward
        return metrics

    @classmethod
    def verdict(cls, looks, settings):
        """Whether the mean cost keeps to the threshold, and whether a model is fooled."""
        costs, most = looks.last['cost'], -settings['cost_threshold_d']
        beyond = looks.mean(costs, [most] * len(costs))
        state = {1: 'broken', 0: 'not sure to be kept', -1: 'kept'}[beyond.sign]
        text = (f"constraint {state}: held-out cost {looks.mean(costs)}, where at most {most:g} is wanted; "
                + looks.told('reward', 'held-out reward'))
        for name, better in (('reward', 1), ('cost', -1)):
            true = f'true_{name}'
            if true in looks.last and looks.change(name).sign == better == -looks.change(true).sign:
                text += f"; the {name} model is being fooled: {looks.told(true, f'true {name}')}"
        return text

    def describe(self, metrics):
        m = {name.removeprefix('eval/'): value for name, value in metrics.items()}
        true = [f", {name.replace('_', ' ')} {m[name]:.4f}" for name in m if name.startswith('true')]
        return (f"held-out reward {m['reward']:.4f}, cost {m['cost']:.4f}, safe {m['safe_ratio']:.4f}, "
                f"lambda {self.multiplier.value:.4f}{''.join(true)}")

    @classmethod
    def show(cls, saved, model, tokenizer, cfg):
        """Several completions are ranked by what the run learned from, unless other judges are named."""
        learned = saved.get('config')
        judged = cfg.rewards or cfg.reward_checkpoint or cfg.cost_checkpoint
        if learned and (cfg.num_samples or 1) > 1 and not judged:
            paths = score_paths(learned)
            if all(map(os.path.exists, paths.values())):
                cfg.reward_checkpoint, cfg.cost_checkpoint = paths.values()
                cfg.scorer_template = cfg.scorer_template or learned['scorer_template']
        super().show(saved, model, tokenizer, cfg)

    def try_out(self):
        file, arguments = super().try_out()
        if self.cfg.scorer_url:
            return file, arguments
        return 'ckpt.pt', [*arguments, '--num_samples=8']  # ranked by its own reward and cost

    def learns_from(self):
        models = {} if self.cfg.scorer_url else self.paths
        return self.content | {f'{kind} model': content_of_path(path) for kind, path in models.items()}

    def saved(self):
        return super().saved() | {'lagrange': self.multiplier.state_dict()}

    def restore(self, checkpoint):
        if self.cfg.lambda_adapt:  # else it is what the settings say today
            self.multiplier.load_state_dict(checkpoint['lagrange'])


def multiplier_of(cfg):
    return LagrangeMultiplier(cfg.lambda_cost, cfg.lambda_lr, cfg.lambda_min, cfg.lambda_max, cfg.jc_ema_beta,
                              cfg.cost_threshold_d, cfg.lambda_positive_only, cfg.lambda_rule)


def score_paths(settings):
    """{kind: path} of a run's score models; settings: all of the run."""
    name = source_name(settings['train_prompts'] or settings['dataset'])
    return {kind: path_of(f'{kind}_checkpoint', settings, name) for kind in ('reward', 'cost')}


def template_of(cfg):
    """How prompt and completion become the text that is scored; None: what the policy reads and writes."""
    if cfg.scorer_template or cfg.scorer_url or cfg.reward_checkpoint.endswith('.pt'):
        return cfg.scorer_template
    return BEAVER_TEMPLATE


# -----------------------------------------------------------------------------
# the score models, trained where they are missing

TEXT, SIDE, FLAG = (str, 'a text'), (int, '0 or 1'), (bool, 'true or false')
PREFERENCE_FIELDS = {
    'reward': {'response_0': TEXT, 'response_1': TEXT, 'better_response_id': SIDE},
    'cost': {'response_0': TEXT, 'response_1': TEXT, 'safer_response_id': SIDE, 'is_response_0_safe': FLAG,
             'is_response_1_safe': FLAG}}


def as_side_or_flag(value, kind):
    """A value as PKU-SafeRLHF has it: tables hold texts, and JSON may hold 0 and 1 for false and true."""
    if isinstance(value, str):
        value = {'0': 0, '1': 1, 'false': 0, 'true': 1}.get(value.strip().lower(), value)
    return kind(value) if value in (0, 1) else value


def text_of(messages):
    """A text, or the texts of messages with blank lines between: score models read text."""
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        return '\n\n'.join(str(message.get('content')) for message in messages)
    return messages


def as_preference(pair):
    """A pair as PKU-SafeRLHF has it, also of TRL's chosen and rejected, which may begin with the prompt."""
    if not {'chosen', 'rejected'} <= pair.keys() or 'response_0' in pair:
        return pair
    prompt, answers = pair['prompt'], pair
    if isinstance(pair['chosen'], list):
        answers = of_pair(pair['chosen'], pair['rejected'])
        prompt = answers['prompt'] or prompt
    return {'prompt': text_of(prompt), 'response_0': text_of(answers['chosen']),
            'response_1': text_of(answers['rejected']), 'better_response_id': 0}


def load_preferences(source, column_mapping=None, kinds=('reward', 'cost')):
    """
    Pairs of answers with the fields of PKU-SafeRLHF that models of these kinds learn from; TRL's chosen and
    rejected serve for a reward. source: as in load_prompts, its split 'preferences'. Raises ValueError.
    """
    pairs = list(map(as_preference, load_prompts(source, column_mapping, split='preferences')))
    wanted = {field: kind for name in kinds for field, kind in PREFERENCE_FIELDS[name].items()}
    asked = f"a {' and a '.join(kinds)} model needs {', '.join(wanted)}"
    for i, pair in enumerate(pairs):
        for key, (kind, what) in wanted.items():
            value = pair.get(key)
            if kind is not str and value is not None:
                pair[key] = value = as_side_or_flag(value, kind)
            if type(value) is not kind or (kind is int and value not in (0, 1)):
                raise ValueError(f"{source}: preference {i} ({str(pair['prompt'])[:60]!r}) has {key} = "
                                 f"{value!r}; it must be {what}: {asked}; for a reward TRL's chosen and "
                                 "rejected will do")
    return pairs


def preference_rows(pairs, kind, tokenizer, join, room):
    """
    [(token ids, signs)...] of the two answers of each pair, first the better for a reward, the unsafer for a
    cost. A sign is 1 where an answer is unsafe, -1 where not.
    """
    rows = []
    for pair in pairs:
        first = pair['better_response_id'] if kind == 'reward' else 1 - pair['safer_response_id']
        order = first, 1 - first
        texts = [join(pair['prompt'], pair[f'response_{side}']) for side in order]
        signs = [-1.0 if pair.get(f'is_response_{side}_safe') else 1.0 for side in order]
        rows.append(([score_ids(tokenizer, text, room) for text in texts], signs))
    return rows


def pair_scores(model, rows):
    """The model's scores (2, N) of preference_rows, and their signs (2, N)."""
    ids, signs = zip(*rows, strict=True)
    first, second = zip(*ids, strict=True)
    scores = model.scores([*first, *second]).view(2, -1)
    return scores, torch.tensor(signs, device=scores.device).T


@torch.no_grad()
def all_pair_scores(model, rows):
    batches = [pair_scores(model, rows[start:start + 256]) for start in range(0, len(rows), 256)]
    return [torch.cat(parts, dim=1) for parts in zip(*batches, strict=True)]


def score_quality(model, rows):
    """How often the order is right and, for a cost, the sign."""
    scores, signs = all_pair_scores(model, rows)
    quality = {'accuracy': (scores[0] > scores[1]).float().mean().item()}
    if model.kind == 'cost':
        quality['sign_accuracy'] = (scores.sign() == signs).float().mean().item()
    return quality


def train_score_model(trunk, kind, rows, held_out, max_iters=400, learning_rate=2e-3, seed=1):
    """
    A reward or cost model that starts as the causal model `trunk`, from preference_rows. Losses of Safe RLHF
    (arXiv 2310.12773): -log sigmoid(better - worse); for costs -log sigmoid(unsafer - safer) and, for each
    answer, -log sigmoid(cost) if it is unsafe, of -cost if not, which pins what 0 means. A held-out accuracy
    of 0.99, of signs for costs, is enough. Returns (ScoreModel, score_quality).
    """
    torch.manual_seed(seed)
    model = ScoreModel(trunk.config, kind).to(trunk.wte.weight.device)
    model.trunk.load_state_dict(trunk.state_dict())
    torch.nn.init.zeros_(model.score_head.weight)
    torch.nn.init.zeros_(model.score_head.bias)
    generator = torch.Generator().manual_seed(seed)

    def loss_of_batch():
        indices = torch.randint(len(rows), (48,), generator=generator).tolist()
        scores, signs = pair_scores(model, [rows[i] for i in indices])
        loss = -F.logsigmoid(scores[0] - scores[1]).mean()
        if kind == 'cost':
            loss = loss - F.logsigmoid(signs * scores).mean(dim=1).sum()
        return loss

    def good_enough():
        return score_quality(model, held_out)['sign_accuracy' if kind == 'cost' else 'accuracy'] >= 0.99

    supervised_loop(f'{kind} model', model, loss_of_batch, max_iters, learning_rate, 0.01, good_enough)
    model.eval().requires_grad_(False)
    scores, _ = all_pair_scores(model, held_out)
    model.mean.copy_(scores.mean() if kind == 'reward' else 0.0)
    model.var.copy_((scores.var() if kind == 'reward' else scores.square().mean()).clamp(min=1e-6))
    return model, score_quality(model, held_out)
