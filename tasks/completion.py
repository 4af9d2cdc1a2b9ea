"""Completion: a causal model completes prompts, and functions of the text are its rewards."""
import collections
import contextlib
import itertools
import math
import types
import warnings
from typing import Literal

import torch

from data.prompts import draw_mixture, encode_prompts, load_split, say_how_prompts_are_read, source_name
from grpo import reward_tensor, weighted_reward
from model import GPT
from policy import CausalPolicy, prompt_batch, text_log_prob, text_log_probs
from rewards import check_fields, fields_of, resolve_rewards, score_completions
from runtime import ranks
from runtime.checkpoint import tokenizer_of
from runtime.config import Count, Positive, Share
from runtime.console import over, say
from runtime.lora import go_on_with_adapters
from runtime.made import content_of, made, recipe_for
from runtime.shard import is_sharded
from tasks.supervised import (
    character_tokenizer,
    characters_of,
    own_tokenizer,
    save_model,
    small_config,
    train_start,
)
from tasks.task import Task, longest_line, path_of, say_if_few
from tasks.turns import Asking

ENCODING = ('system_prompt', 'chat_template', 'max_prompt_length', 'too_long', 'chat_template_kwargs',
            'add_special_tokens')  # settings that encode_prompts takes


@contextlib.contextmanager
def notes():
    """What is warned of inside is said, and once."""
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter('always')
        yield
    for doubt in dict.fromkeys(str(doubt.message) for doubt in doubts):
        say(f"note: {doubt}")


def columns_of(records):
    """What rewards see of encoded records."""
    return [{'prompt_read': record['text']} | record['columns'] for record in records]


def start_path(cfg):
    """Where the model to start from is, or will be made."""
    return path_of('generator_checkpoint', vars(cfg), source_name(cfg.train_prompts or cfg.dataset))


class Completion(Asking, Task):
    """Prompts with verifiable rewards: a causal model completes, a function of the text says how well."""
    headline = 'eval/accuracy_greedy'

    class Settings:
        # prompts
        train_prompts: str | dict | None = None  # a file, a folder under data/, a hub name; None: dataset
        #                                         {'a.jsonl': 0.7, 'b.csv': 0.3}: shares of the prompts
        eval_prompts: str | None = None         # a name; None: what the data set holds out
        column_mapping: dict | types.FunctionType | None = None  # {'question': 'prompt'}, or a function
        train_prompts_n: Count | None = None    # no more than the first so many, of each source
        shuffle_prompts = True                  # False: in their order, epoch by epoch, for a curriculum
        num_epochs: Positive | None = None      # passes over all prompts, instead of max_iters
        system_prompt = ''                      # stands before each prompt
        chat_template: Literal[True, False, 'auto'] = 'auto'  # for lists of messages; True: texts too
        chat_template_kwargs: dict | None = None  # what it reads beside them, {'enable_thinking': False}
        add_special_tokens = True               # plain prompts get the begin token that transformers adds
        max_prompt_length: Count | None = None  # in tokens
        too_long: Literal['error', 'drop'] = 'error'  # what happens to a longer one
        max_new_tokens: Count = 64              # R: where a completion is cut off
        # rewards and evaluation
        rewards: list | str = ['exact_answer']  # or (name, weight, {parameters}), or functions
        reward_errors: Literal['raise', 'drop'] = 'raise'  # 'drop': leave out what it raises at
        eval_batch_size: Count = 256            # prompts sampled from at once
        eval_samples: Count = 4                 # sampled completions of each, beside the greedy one
        retain_text = ''                        # its log-prob is logged: is the language forgotten?
        pretrain_until: Share = 1.0             # the start's training ends at this accuracy

        @staticmethod
        def check(cfg):
            if cfg.overlong_penalty > cfg.max_new_tokens:
                raise ValueError(f"overlong_penalty is {cfg.overlong_penalty}, above max_new_tokens, "
                                 f"{cfg.max_new_tokens}: lower it")
            go_on_with_adapters(cfg, start_path(cfg))

    right_or_wrong = None           # whether the first reward is 0 or 1, once that is known

    def __init__(self, cfg, device):
        super().__init__(cfg, device)
        self.start_model = None
        self.reward_functions = self.named_rewards()
        self.train, self.held_out, self.split_by_seed = self.load_records()
        self.records, self.eval_records = list(itertools.chain(*self.train)), self.held_out
        self.content = {'prompts to train on': content_of(self.records),
                        'held-out prompts': content_of(self.held_out)}
        ranks.wait_for_rank_0()  # all have joined: who fails from here on is named to the others
        self.check_rewards(self.records + self.held_out)
        runs_tests = any('tests' in function.needs for _, function, _ in self.reward_functions[:1])
        self.has_hidden_tests = runs_tests and any(record.get('hidden_tests') for record in self.held_out)
        self.generator_path = start_path(cfg)
        ranks.once(self.make_missing)
        self.tokenizer = tokenizer_of(self.generator_path)
        n_dropped = self.encode(self.tokenizer)
        say_how_prompts_are_read(self.records, self.tokenizer, cfg)
        dropped = f"; {n_dropped} dropped, longer than {cfg.max_prompt_length} tokens" if n_dropped else ''
        say(f"{len(self.records)} prompts to train on, {len(self.eval_records)} held out{dropped}")
        say_if_few(len(self.eval_records), 'held-out prompts')
        if cfg.num_epochs:
            cfg.max_iters = math.ceil(cfg.num_epochs * len(self.records) / cfg.batch_size)
            say(f"max_iters is {cfg.max_iters}, for {cfg.num_epochs:g} epochs")

    # -----------------------------------------------------------------------------
    # prompts, and the model to start from

    def load_records(self):
        """(records to train on, a list for each source; held-out records; whether drawn by seed)"""
        cfg = self.cfg
        return load_split(cfg.train_prompts or cfg.dataset, cfg.column_mapping, cfg.train_prompts_n,
                          cfg.eval_prompts, cfg.eval_prompts_n, cfg.seed)

    def encode(self, tokenizer):
        """Token ids for all prompts. Returns how many were too long."""
        options = {name: getattr(self.cfg, name) for name in ENCODING}
        encoded = [encode_prompts(records, tokenizer, **options) for records in (*self.train, self.held_out)]
        *train, self.eval_records = [records for records, _ in encoded]
        self.sizes, self.records = list(map(len, train)), list(itertools.chain(*train))
        self.every_record = self.records + self.eval_records
        return sum(n_dropped for _, n_dropped in encoded)

    def check_room(self, block_size):
        longest, n = max(len(r['ids']) for r in self.records + self.eval_records), self.cfg.max_new_tokens
        if longest + n > block_size:
            raise ValueError(f"the longest prompt, {longest} tokens, and max_new_tokens {n} exceed the "
                             f"{block_size} that this model reads: lower max_new_tokens, raise block_size "
                             "for a start made here, or set max_prompt_length with --too_long=drop")

    def make_missing(self):
        if self.generator_path.endswith('.pt'):
            made(self.generator_path, self.start_recipe, self.make_start, self.remake)

    def other_text(self):
        """What the start's vocabulary needs beside prompts and answers."""
        told = self.environment.says if self.environment else ''
        return self.cfg.system_prompt + self.cfg.retain_text + told

    def start_recipe(self):
        """The data is what there is to teach, whichever part of it this seed holds out."""
        cfg, everything = self.cfg, [*itertools.chain(*self.train), *self.held_out]
        taught = everything if self.split_by_seed else itertools.chain(*self.train)
        limit = cfg.max_prompt_length if cfg.too_long == 'drop' else None
        pairs = [[record['prompt'], record.get('answer')] for record in taught
                 if limit is None or len(cfg.system_prompt) + len(record['prompt']) <= limit]
        characters = characters_of(everything, self.other_text())
        return recipe_for('a model', 1, cfg.train_prompts or cfg.dataset, cfg, 'block_size', 'n_layer',
                          'n_head', 'n_embd', 'pretrain_iters', 'pretrain_until', 'system_prompt', 'seed',
                          'eval_prompts_n', data=content_of(sorted(pairs, key=str)),
                          characters=''.join(characters))

    def make_start(self, path, recipe):
        """A small model of characters, taught prompts with answers."""
        cfg = self.cfg
        tokenizer = character_tokenizer(self.records + self.eval_records, self.other_text())
        self.encode(tokenizer)
        self.check_room(cfg.block_size)
        torch.manual_seed(cfg.seed)
        model = GPT(small_config(tokenizer, cfg)).to(self.device)
        quality = train_start(model, tokenizer, self.records, self.eval_records, cfg.pretrain_iters, cfg.seed,
                              cfg.pretrain_until)
        save_model(path, 'generator', model, model.config, tokenizer, quality, recipe)

    def load_model(self):
        model = GPT.from_pretrained(self.generator_path, merge=False).to(self.home)
        self.tokenizer.check_fits(model.config.vocab_size, self.generator_path)
        self.check_room(model.config.block_size)
        if self.cfg.retain_text:
            text_log_prob(model, self.tokenizer.encode_prompt(self.cfg.retain_text))  # refused now, if at all
        return model

    def policy(self, model):
        cfg = self.cfg
        return self.that_asks(CausalPolicy(model, self.tokenizer, cfg.max_new_tokens, cfg.temperature,
                                           cfg.top_k, cfg.top_p, cfg.compile))

    def make_batch(self, indices, seed):
        """The prompts of these records, each with a seed of its own for the noise of its completions."""
        seeds = [(seed * 10 ** 9 + n) % 2 ** 62 for n in range(len(indices))]
        batch = prompt_batch([self.every_record[i]['ids'] for i in indices], seeds, self.device)
        return batch | {'record': torch.tensor(indices)}

    def batch(self, it, attempt=0):
        cfg, seed = self.cfg, self.cfg.seed + 10 ** 6 * attempt
        shares = cfg.train_prompts.values() if isinstance(cfg.train_prompts, dict) else [1.0]
        shuffle = cfg.shuffle_prompts or attempt > 0
        indices = draw_mixture(self.sizes, list(shares), cfg.batch_size, it, seed, shuffle)
        return self.make_batch(indices, seed * 10 ** 5 + it)

    # -----------------------------------------------------------------------------
    # rewards

    def named_rewards(self):
        """[(name, function, weight)] of cfg.rewards; what is doubtful about them is said once."""
        with notes():
            return resolve_rewards(self.cfg.rewards, {'start_log_probs': self.start_log_probs})

    def check_rewards(self, records):
        """A reward that applies to no prompt is left out; one that lacks something in some is told of."""
        self.find_environment(records)
        with notes():
            gaps = check_fields(self.reward_functions, records, self.cfg.reward_errors)
        for name, gap in gaps.items():
            first = next(iter(gap.values()))
            if len(gap) < len(records):
                say(f"{name!r} does not apply to {len(gap)} of {len(records)} prompts; the first: {first}")
                continue
            self.reward_functions = [reward for reward in self.reward_functions if reward[0] != name]
            say(f"reward {name!r} is left out: no prompt has what it needs; the first: {first}")

    def start_log_probs(self, texts):
        """The start model's log-probs of texts, for rewards that ask."""
        if self.start_model is None:
            self.start_model = self.load_model().to(self.device).eval().requires_grad_(False)
        return text_log_probs(self.start_model, self.tokenizer, texts)

    @property
    def rewards(self):
        return [(name, self.scores, weight) for name, _, weight in self.reward_functions]

    def scores(self, policy, rollout):
        """{reward name: P lists of G} of a training rollout."""
        columns = columns_of(self.records_of(rollout.batch))
        return self.scored(self.reward_functions, policy, rollout, columns)

    def scored(self, functions, policy, rollout, columns):
        """{reward name: P lists of G} of the completions of prompts with these columns."""
        ids = rollout.ids() if any(reward.takes_tokens for _, reward, _ in functions) else None
        scores = score_completions(functions, policy.texts(rollout), columns, self.cfg.reward_errors, ids)
        return self.less_failed(scores, rollout)

    # -----------------------------------------------------------------------------
    # evaluation

    def in_step(self, policy):
        """A context for asking a scorer: where all ranks evaluate, all of them stop when one has lost it."""
        return ranks.together(self.device, False) if is_sharded(policy.model) else contextlib.nullcontext()

    def eval_batches(self):
        """(records, prompts) of the held-out set; the noise is the same at each evaluation."""
        size = self.cfg.eval_batch_size
        for start in over('evaluating', range(0, len(self.eval_records), size)):
            records, first = self.eval_records[start:start + size], len(self.records) + start
            yield records, self.make_batch(list(range(first, first + len(records))), start)

    def evaluate(self, policy):
        """
        Held-out prompts, completed greedily once and sampled eval_samples times. Accuracy is the first
        reward's mean; pass_at_k the share of prompts with a sampled completion that gets 1; reward the
        weighted sum, reward/NAME and reward_greedy/NAME the parts of several; pass_rate the share of
        completions that pass all tests, where the first reward runs tests and records have hidden_tests.
        """
        cfg, weights = self.cfg, {name: weight for name, _, weight in self.reward_functions}
        values, shown = collections.defaultdict(list), cfg.eval_show
        for records, batch in self.eval_batches():
            columns = columns_of(records)
            asked = {'': (self.reward_functions, columns)}
            if self.has_hidden_tests:
                hidden = [record | {'tests': record.get('hidden_tests')} for record in columns]
                asked['hidden_'] = self.reward_functions[:1], hidden
            for kind in ('greedy', 'sampled'):
                rollout = policy.greedy(batch) if kind == 'greedy' else policy.sample(batch, cfg.eval_samples)
                for tests, (functions, fields) in asked.items():
                    with self.in_step(policy):
                        scores = self.scored(functions, policy, rollout, fields)
                    for name, column in scores.items():
                        values[tests + kind, name].append(reward_tensor(name, column))
                if kind == 'greedy':
                    self.show_completions(records[:shown], getattr(policy, 'marked', policy.texts)(rollout))
                    shown = 0
                parts = {name: values[kind, name][-1] for name in weights}
                values[kind, 'all, weighted'].append(weighted_reward(parts, weights))
                values[kind, 'tokens'].append(rollout.own_lengths.float())
        values = {key: torch.cat(column).cpu() for key, column in values.items()}
        self.each = {f'{name}, {kind}': column.nanmean(dim=1) for (kind, name), column in values.items()}
        metrics = self.accuracies(values)
        if self.has_hidden_tests:
            name = self.reward_functions[0][0]
            hidden = self.each[f'{name}, hidden_greedy']
            self.each['above hidden tests'] = self.each[f'{name}, greedy'] - hidden
        if cfg.retain_text:
            ids = self.tokenizer.encode_prompt(cfg.retain_text)
            metrics['eval/text_log_prob'] = text_log_prob(policy.model, ids)
        return metrics

    def show_completions(self, records, texts):
        for record, (text, *_) in zip(records, texts, strict=False):
            wanted = f" (wanted {record['answer']!r})" if 'answer' in record else ''
            say(f"  {record['text']!r}\n    -> {text!r}{wanted}")

    def accuracies(self, values):
        """The metrics of an evaluation, from {(kind, reward name): (P, n)}."""
        names = [name for name, _, _ in self.reward_functions]
        greedy, sampled = values['greedy', names[0]], values['sampled', names[0]]
        seen = torch.cat((greedy, sampled), dim=1)
        if ((seen != 0) & (seen != 1) & ~seen.isnan()).any():
            self.right_or_wrong = False
        elif self.right_or_wrong is None and (self.reward_functions[0][1].binary or (seen == 1).any()):
            self.right_or_wrong = True
        judged = ~sampled.isnan().all(dim=1)
        metrics = {'eval/accuracy_greedy': greedy.nanmean().item(),
                   'eval/accuracy_sampled': sampled.nanmean().item(),
                   'eval/pass_at_k': (sampled >= 1).any(dim=1)[judged].float().mean().item(),
                   'eval/reward': values['sampled', 'all, weighted'].nanmean().item()}
        for tests in ('', 'hidden_') if self.has_hidden_tests else ():
            for kind in ('greedy', 'sampled'):
                column = values[tests + kind, names[0]]
                passed = column[~column.isnan()] >= 1
                metrics[f'eval/{tests}pass_rate_{kind}'] = passed.float().mean().item()
        for name in names if len(names) > 1 else []:
            metrics[f'eval/reward/{name}'] = values['sampled', name].nanmean().item()
            metrics[f'eval/reward_greedy/{name}'] = values['greedy', name].nanmean().item()
        return metrics

    def describe(self, metrics):
        m = {name.removeprefix('eval/'): value for name, value in metrics.items()}
        first, *others = [name for name, _, _ in self.reward_functions]
        line = (f"held-out {'accuracy' if self.right_or_wrong else first} greedy "
                f"{m['accuracy_greedy']:.4f}, sampled {m['accuracy_sampled']:.4f}")
        passed = f", pass@{self.cfg.eval_samples} {m['pass_at_k']:.4f}" if self.right_or_wrong else ''
        line += f"{passed}, reward {m['reward']:.4f}"
        for name in others:
            line += f", {name} greedy {m[f'reward_greedy/{name}']:.4f}, sampled {m[f'reward/{name}']:.4f}"
        if 'pass_rate_greedy' in m:
            line += (f", all tests passed: greedy {m['pass_rate_greedy']:.4f} (hidden tests "
                     f"{m['hidden_pass_rate_greedy']:.4f}), sampled {m['pass_rate_sampled']:.4f} "
                     f"({m['hidden_pass_rate_sampled']:.4f})")
        if 'text_log_prob' in m:
            line += f", log-prob of retain_text {m['text_log_prob']:.3f}"
        return line

    # -----------------------------------------------------------------------------
    # what a run leaves behind

    def asked(self, rollout):
        record = self.records[rollout.batch['record'][0].item()]
        answer = fields_of(record['columns']).get('reference')
        return {'prompt': record['text']} | ({} if answer is None else {'answer': str(answer)})

    def learns_from(self):
        return self.content

    def saved(self):
        return own_tokenizer(self.tokenizer)

    def try_out(self):
        cfg, prompt = self.cfg, self.eval_records[0]['prompt']
        plain = isinstance(prompt, str) and prompt == longest_line(prompt) and len(prompt) < 100
        options = {'prompt': prompt if plain else '', 'system_prompt': cfg.system_prompt,
                   'chat_template': plain and cfg.chat_template is True,
                   'chat_template_kwargs': cfg.chat_template_kwargs,
                   'add_special_tokens': '' if cfg.add_special_tokens else 'False',
                   'max_new_tokens': cfg.max_new_tokens,
                   'environment': '' if callable(cfg.environment) else cfg.environment}
        return 'export', [f'--{key}={value}' for key, value in options.items() if value]
