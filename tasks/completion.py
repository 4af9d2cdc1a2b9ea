"""
Completion: prompts with verifiable rewards. A causal model completes each, a function of the text says how
well.
"""
import contextlib
import os
import types
import warnings
from typing import Literal

import torch

from data.prompts import draw_indices, encode_prompts, goes_through_template, held_out_split, load_prompts
from data.text import dataset_name
from formats.chat import variables_read
from grpo import reward_tensor, weighted_reward
from model import GPT
from policy import CausalPolicy, prompt_batch, text_log_prob, text_log_probs
from rewards import check_fields, fields_of, resolve_rewards, score_completions
from runtime import ranks
from runtime.checkpoint import tokenizer_of
from runtime.config import Count, Share
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
from tasks.task import Task, chart, longest_line


def start_path(cfg):
    """Where the model to start from is, or will be made."""
    return cfg.generator_checkpoint.format(dataset=dataset_name(cfg.train_prompts or cfg.dataset))


class Completion(Task):
    """Prompts with verifiable rewards: a causal model completes, a function of the text says how well."""
    headline = 'eval/accuracy_greedy'
    charts = {
        'Evaluation': [
            chart('accuracy', 'First reward on held-out prompts: greedy, sampled, best of the samples.',
                  'eval/accuracy_greedy', 'eval/accuracy_sampled', 'eval/pass_at_k'),
            chart('all tests passed', 'Hidden tests far below shown ones: the policy writes for the tests.',
                  'eval/pass_rate_greedy', 'eval/hidden_pass_rate_greedy', 'eval/pass_rate_sampled',
                  'eval/hidden_pass_rate_sampled'),
            chart('held-out reward', 'The weighted sum. Where a true reward leaves it, it is being fooled.',
                  'eval/reward', 'eval/true_reward'),
        ],
    }

    class Settings:
        # prompts
        train_prompts: str | None = None        # a file, a folder under data/, a hub name; None: dataset
        eval_prompts: str | None = None         # the same; None: what the data set holds out
        column_mapping: dict | types.FunctionType | None = None  # {'question': 'prompt'}, or a function
        train_prompts_n: Count | None = None    # no more than the first so many
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

    def __init__(self, cfg, device):
        super().__init__(cfg, device)
        self.start_model, self.split_by_seed = None, False
        self.reward_functions = self.named_rewards()
        source = cfg.train_prompts or cfg.dataset
        self.records, self.eval_records = self.load_records(source)
        for records in (self.records, self.eval_records):
            for name, gap in check_fields(self.reward_functions, records, cfg.reward_errors).items():
                first = next(iter(gap.values()))
                say(f"{len(gap)} of {len(records)} prompts are judged without {name!r}; the first: {first}")
        runs_tests = any('tests' in function.needs for _, function, _ in self.reward_functions[:1])
        self.has_hidden_tests = runs_tests and any(record.get('hidden_tests') for record in self.eval_records)
        self.generator_path = start_path(cfg)
        self.content = {'prompts to train on': content_of(self.records),
                        'held-out prompts': content_of(self.eval_records)}
        ranks.once(self.make_missing)
        self.tokenizer = tokenizer_of(self.generator_path)
        dropped, eval_dropped = self.encode(self.tokenizer)
        self.say_how_prompts_are_read()
        text = f"{len(self.records)} prompts to train on, {len(self.eval_records)} held out"
        if dropped + eval_dropped:
            text += f"; {dropped} and {eval_dropped} dropped, longer than {cfg.max_prompt_length} tokens"
        say(text)

    # -----------------------------------------------------------------------------
    # prompts, and the model to start from

    def load_records(self, source):
        """The records to train on and those held out."""
        cfg = self.cfg
        ranks.once(lambda: load_prompts(source, cfg.column_mapping))  # prepares it on first use
        records = load_prompts(source, cfg.column_mapping)[:cfg.train_prompts_n]
        if os.path.isfile(source) and not cfg.eval_prompts:  # a file has one split
            self.split_by_seed = True
            return held_out_split(records, cfg.eval_prompts_n, cfg.seed)
        held_out = load_prompts(cfg.eval_prompts or source, cfg.column_mapping, split='val')
        return records, held_out[:cfg.eval_prompts_n]

    def encode(self, tokenizer):
        """Token ids for all prompts. Returns how many to train on, and how many held out, were too long."""
        cfg = self.cfg
        names = ('system_prompt', 'chat_template', 'max_prompt_length', 'too_long', 'chat_template_kwargs',
                 'add_special_tokens')
        options = {name: getattr(cfg, name) for name in names}
        self.records, dropped = encode_prompts(self.records, tokenizer, **options)
        self.eval_records, eval_dropped = encode_prompts(self.eval_records, tokenizer, **options)
        return dropped, eval_dropped

    def say_how_prompts_are_read(self):
        """The special tokens around plain prompts, and chat_template_kwargs that no template reads."""
        cfg, tokenizer = self.cfg, self.tokenizer
        rendered = [goes_through_template(record['prompt'], tokenizer, cfg.chat_template)
                    for record in self.records]
        if cfg.add_special_tokens and (tokenizer.prefix or tokenizer.suffix) and not all(rendered):
            around = [tokenizer.decode(ids, special=True) for ids in (tokenizer.prefix, tokenizer.suffix)]
            say(f"plain prompts are read as {'...'.join(around)!r}, as in transformers; "
                "--add_special_tokens=False leaves that out")
        read = variables_read(tokenizer.template) if tokenizer.has_chat_template and any(rendered) else {}
        unread = [name for name in cfg.chat_template_kwargs or {} if name not in read]
        if unread:
            why = f"it reads {', '.join(sorted(read))}" if read else "no prompt goes through one"
            say(f"note: no chat template reads {', '.join(unread)} of chat_template_kwargs: {why}")

    def check_room(self, block_size):
        longest, n = max(len(r['ids']) for r in self.records + self.eval_records), self.cfg.max_new_tokens
        if longest + n > block_size:
            raise ValueError(f"the longest prompt, {longest} tokens, and max_new_tokens {n} exceed the "
                             f"{block_size} that this model reads: lower max_new_tokens, or set "
                             "max_prompt_length with --too_long=drop")

    def make_missing(self):
        if self.generator_path.endswith('.pt'):
            made(self.generator_path, self.start_recipe, self.make_start, self.remake)

    def start_recipe(self):
        """The data is what there is to teach, whichever part of it this seed holds out."""
        cfg = self.cfg
        everything = self.records + self.eval_records
        limit = cfg.max_prompt_length if cfg.too_long == 'drop' else None
        taught = everything if self.split_by_seed else self.records
        pairs = [[record['prompt'], record.get('answer')] for record in taught
                 if limit is None or len(cfg.system_prompt) + len(record['prompt']) <= limit]
        characters = characters_of(everything, cfg.system_prompt + cfg.retain_text)
        return recipe_for('a model', 1, cfg.train_prompts or cfg.dataset, cfg, 'block_size', 'n_layer',
                          'n_head', 'n_embd', 'pretrain_iters', 'pretrain_until', 'system_prompt', 'seed',
                          'eval_prompts_n', data=content_of(sorted(pairs, key=str)),
                          characters=''.join(characters))

    def make_start(self, path, recipe):
        """A small model of characters, taught prompts with answers."""
        cfg = self.cfg
        tokenizer = character_tokenizer(self.records + self.eval_records, cfg.system_prompt + cfg.retain_text)
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
        return CausalPolicy(model, self.tokenizer, cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p,
                            cfg.compile)

    def make_batch(self, records, indices, seed):
        """The prompts of records[indices], each with a seed of its own for the noise of its completions."""
        seeds = [(seed * 10 ** 9 + n) % 2 ** 62 for n in range(len(indices))]
        batch = prompt_batch([records[i]['ids'] for i in indices], seeds, self.device)
        return batch | {'record': torch.tensor(indices)}

    def batch(self, it, attempt=0):
        seed = self.cfg.seed + 10 ** 6 * attempt
        indices = draw_indices(len(self.records), self.cfg.batch_size, it, seed)
        return self.make_batch(self.records, indices, seed * 10 ** 5 + it)

    # -----------------------------------------------------------------------------
    # rewards

    def named_rewards(self):
        """[(name, function, weight)] of cfg.rewards; what is doubtful about them is said once."""
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter('always')
            resolved = resolve_rewards(self.cfg.rewards, {'start_log_probs': self.start_log_probs})
        for doubt in doubts:
            say(f"note: {doubt.message}")
        return resolved

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
        records, texts = [self.records[i] for i in rollout.batch['record'].tolist()], policy.texts(rollout)
        return score_completions(self.reward_functions, texts, records, self.cfg.reward_errors)

    # -----------------------------------------------------------------------------
    # evaluation

    def in_step(self, policy):
        """A context for asking a scorer: where all ranks evaluate, all of them stop when one has lost it."""
        return ranks.together(self.device, False) if is_sharded(policy.model) else contextlib.nullcontext()

    def eval_batches(self):
        """(records, prompts) of the held-out set; the noise is the same at each evaluation."""
        size = self.cfg.eval_batch_size
        for start in over('evaluating', range(0, len(self.eval_records), size)):
            records = self.eval_records[start:start + size]
            yield records, self.make_batch(records, list(range(len(records))), start)

    def evaluate(self, policy):
        """
        Held-out prompts, completed greedily once and sampled eval_samples times. Accuracy is the first
        reward's mean; pass_at_k the share of prompts with a sampled completion that gets 1; reward the
        weighted sum; pass_rate the share of completions that pass all tests, where the first reward runs
        tests and the records have hidden_tests.
        """
        cfg, first = self.cfg, self.reward_functions[0][0]
        weights = {name: weight for name, _, weight in self.reward_functions}
        columns = {'greedy': [], 'sampled': [], 'reward': [], 'hidden_greedy': [], 'hidden_sampled': []}

        def scored(functions, texts, records):
            with self.in_step(policy):
                values = score_completions(functions, texts, records, cfg.reward_errors)
            return {name: reward_tensor(name, value) for name, value in values.items()}

        def hidden(kind, texts, records):
            if self.has_hidden_tests:
                records = [record | {'tests': record.get('hidden_tests')} for record in records]
                columns[f'hidden_{kind}'].append(scored(self.reward_functions[:1], texts, records)[first])

        shown = cfg.eval_show
        for records, batch in self.eval_batches():
            texts = policy.texts(policy.greedy(batch))
            columns['greedy'].append(scored(self.reward_functions[:1], texts, records)[first])
            hidden('greedy', texts, records)
            self.show_completions(records[:shown], texts)
            shown = 0
            texts = policy.texts(policy.sample(batch, cfg.eval_samples))
            hidden('sampled', texts, records)
            parts = scored(self.reward_functions, texts, records)
            columns['sampled'].append(parts[first])
            columns['reward'].append(weighted_reward(parts, weights))
        metrics = self.accuracies({name: torch.cat(values) for name, values in columns.items() if values})
        if cfg.retain_text:
            ids = self.tokenizer.encode_prompt(cfg.retain_text)
            metrics['eval/text_log_prob'] = text_log_prob(policy.model, ids)
        return metrics

    def show_completions(self, records, texts):
        for record, (text, *_) in zip(records, texts, strict=False):
            wanted = f" (wanted {record['answer']!r})" if 'answer' in record else ''
            say(f"  {record['text']!r}\n    -> {text!r}{wanted}")

    def accuracies(self, values):
        """The metrics of an evaluation, from {column: (P, n)}."""
        sampled = values['sampled']
        judged = ~sampled.isnan().all(dim=1)
        metrics = {'eval/accuracy_greedy': values['greedy'].nanmean().item(),
                   'eval/accuracy_sampled': sampled.nanmean().item(),
                   'eval/pass_at_k': (sampled >= 1).any(dim=1)[judged].float().mean().item(),
                   'eval/reward': values['reward'].nanmean().item()}
        if self.has_hidden_tests:
            for name, key in (('pass_rate_greedy', 'greedy'), ('pass_rate_sampled', 'sampled'),
                              ('hidden_pass_rate_greedy', 'hidden_greedy'),
                              ('hidden_pass_rate_sampled', 'hidden_sampled')):
                known = values[key][~values[key].isnan()]
                metrics[f'eval/{name}'] = (known >= 1).float().mean().item()
        return metrics

    def describe(self, metrics):
        m = {name.removeprefix('eval/'): value for name, value in metrics.items()}
        line = (f"held-out accuracy greedy {m['accuracy_greedy']:.4f}, sampled {m['accuracy_sampled']:.4f}, "
                f"pass@{self.cfg.eval_samples} {m['pass_at_k']:.4f}, reward {m['reward']:.4f}")
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
        answer = fields_of(record)['reference']
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
                   'max_new_tokens': cfg.max_new_tokens}
        return 'export', [f'--{key}={value}' for key, value in options.items() if value]
