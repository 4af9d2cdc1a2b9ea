"""
The job of safe alignment, as tasks.py describes jobs: a scorer says how helpful an answer is (R) and how much harm it does (C, above 0 is unsafe); the policy maximizes
R - lambda C, and lambda is the price at which the mean cost stays at or below -cost_threshold_d. It is updated from a batch's own costs before they are used.
Without a scorer_url the reward and the cost model are trained here on pairs of answers, and served by a child process.
"""
import os
import types
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from torch.nn import functional as F

from data.prompts import held_out_split, load_prompts
from data.text import dataset_name
from formats import weights
from judge import BEAVER_TEMPLATE, LagrangeMultiplier, ScoreModel, score_ids
from model import GPT
from policy import text_log_prob
from runtime import ranks
from runtime.checkpoint import tokenizer_of
from runtime.config import Count, NonNegative, Positive, Share
from runtime.console import over, say
from runtime.ranks import all_reduce
from runtime.scorer import ScorerClient, joiner, start_scorer
from tasks.completion import Completion
from tasks.supervised import save_model, supervised_loop


class Alignment(Completion):
    """Prompts, and a scorer for the answers to them."""
    headline = 'eval/feasible_reward'
    refuses = ('rewards', 'reward_errors', 'dynamic_sampling')

    class Settings:
        scorer_url: str | None = None                        # of `python judge.py serve` or another; None: trained and started
        scorer_batch_size: Count = 32                        # texts of a request
        scorer_timeout: Positive = 300.0                     # seconds that a request may take
        scorer_patience: Positive = 60.0                     # seconds that a failing request is tried again
        scorer_template: str | None = None                   # '... {prompt} ... {response}', what is scored
        scorer_device = 'cpu'                                # of the child
        preferences: str | None = None                       # pairs of answers with PKU-SafeRLHF's fields; None: where the prompts are
        reward_checkpoint = 'out-{dataset}/reward.pt'        # trained first if there is no such file; ours, or a Hugging Face folder
        cost_checkpoint = 'out-{dataset}/cost.pt'            # the same for the cost
        score_iters: Count = 400                             # supervised steps of each
        lambda_cost: NonNegative = 1.0                       # lambda, where it starts
        lambda_adapt = True                                  # False: it stays
        cost_threshold_d: Annotated[float, '(-inf, inf)'] = 0.0  # the mean cost shall be at most minus this
        lambda_lr: NonNegative = 0.005                       # of ln lambda
        lambda_min: Positive = 1e-4                          # its bounds
        lambda_max: Positive = 5.0
        lambda_rule: Literal['exponential', 'safe_rlhf'] = 'exponential'  # ln lambda += lambda_lr * J | lambda_lr * lambda * J
        lambda_positive_only = False                         # True: J counts as max(J, 0), so that lambda never falls
        jc_ema_beta: Share = 0.9                             # J is averaged over iterations
        true_reward: types.FunctionType | None = None        # f(text, prompt=..., ...) -> float, where it is known: only logged
        true_cost: types.FunctionType | None = None          # the same for the cost

    closing = ['eval/reward', 'eval/cost']  # the headline may be missing from an evaluation

    def __init__(self, cfg, device):
        s = cfg
        if s.scorer_batch_size < 1 or s.scorer_timeout <= 0 or s.scorer_patience <= 0:
            raise ValueError(f"scorer_batch_size ({s.scorer_batch_size}) must be at least 1, scorer_timeout ({s.scorer_timeout}) and scorer_patience ({s.scorer_patience}) above 0")
        template = s.scorer_template or (None if s.scorer_url or s.reward_checkpoint.endswith('.pt') else BEAVER_TEMPLATE)
        if not template and not s.scorer_url and (s.system_prompt or s.chat_template):
            raise ValueError("with a system_prompt or chat_template the scorer must be told what it reads: set scorer_template, '{prompt}{response}' for the bare texts")
        self.cfg, self.join = s, joiner(template) if template else None
        name = dataset_name(s.train_prompts or s.dataset)
        paths = {kind: path.format(dataset=name) for kind, path in (('reward', s.reward_checkpoint), ('cost', s.cost_checkpoint))}
        if s.scorer_url:  # what can go wrong there goes wrong before a start is trained
            self.client = ScorerClient(s.scorer_url, s.scorer_batch_size, s.scorer_timeout, s.scorer_patience)
            self.client.wait(s.scorer_patience)
        else:
            self.check_score_models(paths)
        self.multiplier = LagrangeMultiplier(s.lambda_cost, s.lambda_lr, s.lambda_min, s.lambda_max, s.jc_ema_beta, s.cost_threshold_d, s.lambda_positive_only, s.lambda_rule)
        if s.lambda_adapt and s.lambda_positive_only:
            say("note: with lambda_positive_only lambda can only rise, also when the answers have long been safe")
        super().__init__(s, device)
        for i, record in enumerate(self.records + self.eval_records):
            if template and not isinstance(record['prompt'], str):
                raise ValueError(f"prompt {i} is a list of chat messages, and scorer_template {template!r} takes a text")
        if not s.scorer_url:
            ranks.once(lambda: self.make_score_models(paths))
            self.client = ScorerClient(self.start_scorer(paths), s.scorer_batch_size, s.scorer_timeout, s.scorer_patience)
            self.client.wait(s.scorer_patience)
        say(f"scorer at {self.client.url}")
        self.of_scorer = [('helpfulness', self.scores, 1.0), ('cost', self.scores, self.minus_lambda)]

    def named_rewards(self):
        return []

    @property
    def rewards(self):
        return self.of_scorer

    def scores(self, policy, rollout):
        """Helpfulness and cost of a training rollout."""
        records = [self.records[i] for i in rollout.batch['record'].tolist()]
        return dict(zip(('helpfulness', 'cost'), self.ask(policy.texts(rollout), records)))

    def check_score_models(self, paths):
        """The models are there, or what they shall be trained on: self.pairs, (to train on, held out)."""
        s, self.pairs = self.cfg, ([], [])
        for path in paths.values():
            if not path.endswith('.pt'):
                weights.open_folder(weights.local_folder(path), scores=True)
        if not all(os.path.exists(path) for path in paths.values() if path.endswith('.pt')):
            self.source = s.preferences or s.train_prompts or s.dataset
            self.pairs = held_out_split(load_preferences(self.source, None if s.preferences else s.column_mapping), s.eval_prompts_n, s.seed)

    def make_score_models(self, paths):
        s, wanted = self.cfg, {kind: path for kind, path in paths.items() if path.endswith('.pt') and not os.path.exists(path)}
        if not wanted:
            return
        pairs, held_out = self.pairs
        trunk, tokenizer = GPT.from_pretrained(self.generator_path).to(self.device), tokenizer_of(self.generator_path)
        for kind, path in wanted.items():
            say(f"there is no {kind} model at {path}: training one on {len(pairs)} pairs of {self.source}")
            model, quality = train_score_model(kind, trunk, tokenizer, pairs, held_out, self.join or joiner('{prompt}{response}'), s.score_iters, seed=s.seed)
            save_model(path, kind, model, trunk.config, tokenizer, quality)

    def start_scorer(self, paths):
        """Rank 0 starts it, all know where."""
        url = [None]
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.process, url[0] = start_scorer(paths['reward'], paths['cost'], self.cfg.scorer_device)
        if dist.is_initialized():
            dist.broadcast_object_list(url)
        return url[0]

    def ask(self, texts, records):
        """Helpfulness and cost (P, G) of the answers texts (P lists of G) to the prompts of records."""
        joined = [self.join(r['prompt'], text) if self.join else r['text'] + text for r, group in zip(records, texts) for text in group]
        return tuple(torch.tensor(values).view(len(texts), -1) for values in self.client.score(joined))

    def minus_lambda(self, costs):
        """The weight of the cost. Called once an iteration, with its costs (P, G): lambda moves first, so that it is one number for the whole batch and on all ranks."""
        mean = all_reduce(costs.double().mean()).item() / (dist.get_world_size() if dist.is_initialized() else 1)
        if self.cfg.lambda_adapt:
            self.multiplier.update(mean)
        self.mean_cost = mean
        return -self.multiplier.value

    def learn_beside(self, rollout):
        n = dist.get_world_size() if dist.is_initialized() else 1
        average = {'J_C_ema': self.multiplier.ema} if self.multiplier.ema is not None else {}
        return {'lambda': self.multiplier.value, 'cost': self.mean_cost, 'J_C': self.mean_cost + self.cfg.cost_threshold_d, **average,
                'safe_ratio': all_reduce((rollout.reward_parts['cost'] <= 0).float().mean()).item() / n}

    @torch.no_grad()
    def evaluate(self, policy):
        """
        Held-out prompts, sampled eval_samples times with the same noise each time: means of helpfulness, cost, and of what they stand for where the config gives true_reward
        and true_cost; feasible_reward is the helpfulness, given only where the mean cost keeps to the threshold. It makes the best checkpoint.
        """
        s, rewards, costs, true = self.cfg, [], [], {'eval/true_reward': [], 'eval/true_cost': []}
        for start in over('evaluating', range(0, len(self.eval_records), s.eval_batch_size)):
            records = self.eval_records[start:start + s.eval_batch_size]
            texts = policy.texts(policy.sample(self.make_batch(records, list(range(len(records))), start), s.eval_samples))
            with self.in_step(policy):
                R, C = self.ask(texts, records)
            rewards.append(R)
            costs.append(C)
            for name, function in (('eval/true_reward', s.true_reward), ('eval/true_cost', s.true_cost)):
                true[name] += [function(text, **{k: v for k, v in r.items() if k not in ('ids', 'text')}) for r, group in zip(records, texts) for text in group] if function else []
            if start == 0:
                for record, group, r, c in list(zip(records, texts, R, C))[:s.eval_show]:
                    say(f"  {record['text']!r}\n    -> {group[0]!r} (reward {r[0]:.2f}, cost {c[0]:.2f})")
        rewards, costs = torch.cat(rewards), torch.cat(costs)
        reward, cost = rewards.mean().item(), costs.mean().item()
        metrics = {'eval/reward': reward, 'eval/cost': cost, 'eval/combined': reward - self.multiplier.value * cost, 'eval/safe_ratio': (costs <= 0).float().mean().item()}
        metrics |= {name: sum(values) / len(values) for name, values in true.items() if values}
        if s.retain_text:
            metrics['eval/text_log_prob'] = text_log_prob(policy.model, self.tokenizer.encode(s.retain_text))
        return metrics | ({self.headline: reward} if cost + s.cost_threshold_d <= 0 else {})

    def describe(self, m):
        return (f"held-out reward {m['eval/reward']:.4f}, cost {m['eval/cost']:.4f}, safe {m['eval/safe_ratio']:.4f}, lambda {self.multiplier.value:.4f}"
                + ''.join(f", {name.removeprefix('eval/').replace('_', ' ')} {m[name]:.4f}" for name in ('eval/true_reward', 'eval/true_cost') if name in m))

    def try_out(self):
        file, arguments = super().try_out()
        return (file, arguments) if self.cfg.scorer_url or self.cfg.lora_r else ('ckpt.pt', [*arguments, '--num_samples=8'])  # ranked by its own reward and cost

    def saved(self):
        return super().saved() | {'lagrange': self.multiplier.state_dict()}

    def restore(self, checkpoint):
        if self.cfg.lambda_adapt:  # else it is what the settings say today
            self.multiplier.load_state_dict(checkpoint['lagrange'])


def load_preferences(source, column_mapping=None):
    """
    Pairs of answers with the fields of PKU-SafeRLHF: prompt, response_0, response_1, better_response_id, safer_response_id (0 or 1), is_response_0_safe and
    is_response_1_safe. source: a file, or a folder under data/ whose preferences.jsonl it is. Raises ValueError naming the record and the field.
    """
    pairs = load_prompts(source, column_mapping, split='preferences')
    for i, pair in enumerate(pairs):
        for key, kinds in (('response_0', (str,)), ('response_1', (str,)), ('better_response_id', (int,)), ('safer_response_id', (int,)), ('is_response_0_safe', (bool,)), ('is_response_1_safe', (bool,))):
            if type(pair.get(key)) not in kinds or (kinds == (int,) and pair[key] not in (0, 1)):
                raise ValueError(f"{source}: preference {i} ({str(pair['prompt'])[:60]!r}) has {key} = {pair.get(key)!r}; it must be {'a text' if kinds == (str,) else '0 or 1' if kinds == (int,) else 'true or false'}")
    return pairs


def train_score_model(kind, trunk, tokenizer, pairs, held_out, join, max_iters=400, batch_size=48, learning_rate=2e-3, until=0.99, max_length=512, seed=1):
    """
    A reward or cost model (kind) that starts as the causal model `trunk`, from pairs of answers (see load_preferences; join(prompt, response) -> the text that is scored). Losses of
    Safe RLHF (arXiv 2310.12773): -log sigmoid(better - worse); for costs -log sigmoid(unsafer - safer) and, for each answer, -log sigmoid(cost) if it is unsafe, of -cost if not, which pins
    what 0 means. Ends sooner at the held-out accuracy `until`, for costs that of the sign. Returns (ScoreModel, quality): these.
    """
    torch.manual_seed(seed)
    model = ScoreModel(trunk.config, kind).to(trunk.wte.weight.device)
    model.trunk.load_state_dict(trunk.state_dict())
    torch.nn.init.zeros_(model.score_head.weight)
    torch.nn.init.zeros_(model.score_head.bias)
    device, room = trunk.wte.weight.device, min(max_length, trunk.config.block_size)
    generator = torch.Generator().manual_seed(seed)
    everyone = pairs + held_out
    rows_of = [[score_ids(tokenizer, join(pair['prompt'], pair[f'response_{i}']), room) for i in (0, 1)] for pair in everyone]

    def scores(indices):
        """(2, N): for rewards the better answer first; for costs the unsafer, with signs (2, N), 1 where it is unsafe and -1 where not."""
        first = [everyone[i]['better_response_id'] if kind == 'reward' else 1 - everyone[i]['safer_response_id'] for i in indices]
        rows = [rows_of[i][f] for i, f in zip(indices, first)] + [rows_of[i][1 - f] for i, f in zip(indices, first)]
        signs = [[-1.0 if everyone[i][f'is_response_{f if side == 0 else 1 - f}_safe'] else 1.0 for i, f in zip(indices, first)] for side in (0, 1)]
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        return model(tokens, torch.tensor([len(row) for row in rows], device=device)).view(2, -1), torch.tensor(signs, device=device)

    def loss_of_batch():
        (first, second), signs = scores(torch.randint(len(pairs), (batch_size,), generator=generator).tolist())
        loss = -F.logsigmoid(first - second).mean()
        if kind == 'cost':
            loss = loss - F.logsigmoid(signs * torch.stack((first, second))).mean(dim=1).sum()
        return loss

    @torch.no_grad()
    def held_out_scores():
        found, signs = zip(*(scores(list(range(start, min(start + 256, len(rows_of))))) for start in range(len(pairs), len(rows_of), 256)))
        return torch.cat(found, dim=1), torch.cat(signs, dim=1)

    def quality():
        found, signs = held_out_scores()
        return {'accuracy': (found[0] > found[1]).float().mean().item()} | ({'sign_accuracy': (found.sign() == signs).float().mean().item()} if kind == 'cost' else {})

    supervised_loop(f'{kind} model', model, loss_of_batch, max_iters, learning_rate, weight_decay=0.01, enough=lambda: quality().get('sign_accuracy' if kind == 'cost' else 'accuracy') >= until)
    model.eval().requires_grad_(False)
    measured, (found, _) = quality(), held_out_scores()
    model.mean.copy_(found.mean() if kind == 'reward' else 0.0)
    model.var.copy_((found.var() if kind == 'reward' else found.square().mean()).clamp(min=1e-6))
    return model, measured
