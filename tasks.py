"""
What differs between the jobs that train_grpo.py can do: their data, their models, their rewards, their evaluation. One
class each, all with the same few names: `load_model()`, `policy(model)`, `batch(it, attempt)` (the prompts of iteration `it`, all
ranks together, and with attempt 1, 2... others for dynamic_sampling; a function of these and the seed alone, so there is no state to save), `rewards` (see compute_rewards),
`evaluate(policy)` and `describe(metrics)`, `headline` (the metric that makes a checkpoint the best one), `closing` (those that
the last lines compare with the start), `asked(rollout)` (the first prompt, and the right answer where it has one, as samples.jsonl keeps them),
`max_answer_tokens`, `saved()`, what a checkpoint holds beside the weights (of what is sharded, this rank's part), and `restore(checkpoint)`, which takes it back. `try_out()`:
what sample.py is to be given to show the trained model, the file in out_dir and the arguments. `actor_rests(it)`: the policy
does not learn in this iteration; `learn_beside(rollout)`: what else learns from its answers, returning metrics.
`s` holds the settings of train_grpo.py; `once(f)` calls f() on one rank while the others wait; `say` prints there.
"""
import contextlib
import os
import warnings

import torch

import ranks
from completion import CausalPolicy, prompt_batch, text_log_prob, text_log_probs, tokenizer_of
from console import over
from data.prompts import draw_indices, encode_prompts, held_out_split, load_prompts
from data.text import dataset_name, load_corpus, random_windows
from fill_in import MASK_KINDS, FillInPolicy, describe_fills, exact_match, score_fills
from grpo import reward_tensor, weighted_reward
from judge import Judge
from model import GPT, load_checkpoint
from pretrain import answerer_config, character_tokenizer, filler_config, masked_windows, save_model, train_answerer, train_generator, train_judge
from rewards import check_fields, fields_of, resolve_rewards, score_answers
from shard import is_sharded


class Job:
    """What most jobs have no part in."""
    home = property(lambda self: 'cpu' if self.s.shard else self.device)  # where the model is loaded to: a GPU would not hold all of one that is to be sharded

    def restore(self, checkpoint): pass
    def actor_rests(self, it): return False
    def learn_beside(self, rollout): return {}
    closing = property(lambda self: [self.headline])


def longest_line(text):
    """What of a text fits into a command."""
    return max(text.splitlines(), key=len, default=text).strip()


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


class Completion(Job):
    """Prompts with verifiable rewards: a causal model answers, a function of the text says how well."""
    headline = 'eval/accuracy_greedy'
    max_answer_tokens = property(lambda self: self.s.max_new_tokens)

    def __init__(self, s, device, once, say):
        self.s, self.device, self.say, self.start_model = s, device, say, None
        self.reward_functions = self.named_rewards()
        source = s.train_prompts or s.dataset
        once(lambda: load_prompts(source, s.column_mapping))  # prepares it on first use
        self.records = load_prompts(source, s.column_mapping)[:s.train_prompts_n]
        if s.eval_prompts or not os.path.isfile(source):
            self.eval_records = load_prompts(s.eval_prompts or source, s.column_mapping, split='val')[:s.eval_prompts_n]
        else:  # a file has one split
            self.records, self.eval_records = held_out_split(self.records, s.eval_prompts_n, s.seed)
        for records in (self.records, self.eval_records):
            for name, gap in check_fields(self.reward_functions, records, s.reward_errors).items():
                say(f"{len(gap)} of {len(records)} prompts are judged without {name!r}; the first: {next(iter(gap.values()))}")
        self.has_hidden_tests = any('tests' in function.needs for _, function, _ in self.reward_functions[:1]) and any(record.get('hidden_tests') for record in self.eval_records)
        self.generator_path = s.generator_checkpoint.format(dataset=dataset_name(source))
        once(self.make_missing)
        self.tokenizer = tokenizer_of(self.generator_path)
        dropped, eval_dropped = self.encode(self.tokenizer)
        say(f"{len(self.records)} prompts to train on, {len(self.eval_records)} held out" + (f"; {dropped} and {eval_dropped} dropped, longer than max_prompt_length {s.max_prompt_length}" if dropped + eval_dropped else ''))
        self.rewards = [(name, lambda policy, rollout, name=name: self.scores(policy, rollout)[name], weight) for name, _, weight in self.reward_functions]
        self.scored = None, None

    def named_rewards(self):
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter('always')
            resolved = resolve_rewards(self.s.rewards, {'start_log_probs': self.start_log_probs})
        for doubt in doubts:  # said once, not on every rank
            self.say(f"note: {doubt.message}")
        return resolved

    def start_log_probs(self, texts):
        """What the model that the run starts from thinks of texts, see text_log_probs: for rewards that ask for it, and loaded when they first do."""
        self.start_model = self.start_model or self.load_model().to(self.device).eval().requires_grad_(False)
        return text_log_probs(self.start_model, self.tokenizer, texts)

    def encode(self, tokenizer):
        """Token ids for all prompts; how many of those to train on and of those held out were too long."""
        s = self.s
        options = dict(system_prompt=s.system_prompt, chat_template=s.chat_template, max_prompt_length=s.max_prompt_length, too_long=s.too_long)
        self.records, dropped = encode_prompts(self.records, tokenizer, **options)
        self.eval_records, eval_dropped = encode_prompts(self.eval_records, tokenizer, **options)
        return dropped, eval_dropped

    def check_room(self, block_size):
        longest = max(len(r['ids']) for r in self.records + self.eval_records)
        if longest + self.s.max_new_tokens > block_size:
            raise ValueError(f"the longest prompt has {longest} tokens; with max_new_tokens {self.s.max_new_tokens} that is more than the {block_size} this model reads: lower max_new_tokens, or set max_prompt_length with --too_long=drop")

    def make_missing(self):
        s = self.s
        if self.generator_path.endswith('.pt') and not os.path.exists(self.generator_path):
            tokenizer = character_tokenizer(self.records + self.eval_records, s.system_prompt + s.retain_text)
            self.encode(tokenizer)
            self.check_room(s.block_size)
            self.say(f"there is no model at {self.generator_path}: training one on prompts with their answers")
            torch.manual_seed(s.seed)
            model = GPT(answerer_config(tokenizer, s.block_size, s.n_layer, s.n_head, s.n_embd)).to(self.device)
            quality = train_answerer(model, tokenizer, self.records, self.eval_records, s.pretrain_iters, seed=s.seed, until=s.pretrain_until)
            save_model(self.generator_path, 'generator', model, model.config, tokenizer, quality)

    def load_model(self):
        model = GPT.from_pretrained(self.generator_path).to(self.home)
        self.tokenizer.check_fits(model.config.vocab_size, self.generator_path)
        self.check_room(model.config.block_size)
        if self.s.retain_text:
            text_log_prob(model, self.tokenizer.encode(self.s.retain_text))  # refuses now a text it cannot read
        return model

    def policy(self, model):
        return CausalPolicy(model, self.tokenizer, self.s.max_new_tokens, self.s.temperature, self.s.top_k, self.s.top_p, self.s.compile)

    def make_batch(self, records, indices, seed):
        batch = prompt_batch([records[i]['ids'] for i in indices], [(seed * 10 ** 9 + n) % 2 ** 62 for n in range(len(indices))], self.device)
        return batch | {'record': torch.tensor(indices)}

    def batch(self, it, attempt=0):
        seed = self.s.seed + 10 ** 6 * attempt
        return self.make_batch(self.records, draw_indices(len(self.records), self.s.batch_size, it, seed), seed * 10 ** 5 + it)

    def in_step(self, policy):
        """A context for asking a scorer in an evaluation: where all ranks evaluate with a sharded model, all of them stop when one has lost it, instead of waiting for it in the next forward."""
        return ranks.together(self.device, False) if is_sharded(policy.model) else contextlib.nullcontext()

    def ask(self, texts, records):
        """{reward name: (P, G)} of the answers texts (P lists of G) to the prompts of records."""
        return score_answers(self.reward_functions, texts, records, self.s.reward_errors)

    def scores(self, policy, rollout):
        """What `ask` says of a training rollout, asked once for all names."""
        if self.scored[0] is not rollout:
            self.scored = rollout, self.ask(policy.texts(rollout), [self.records[i] for i in rollout.batch['record'].tolist()])
        return self.scored[1]

    def evaluate(self, policy):
        """
        The held-out prompts, answered greedily once and sampled eval_samples times with the same noise each time. Accuracy is
        the first reward's mean, where it applies; pass_at_k the share of prompts of which a sampled answer gets 1; reward the weighted sum.
        Where the first reward runs tests and the records have hidden_tests, pass_rate is the share of answers that pass all tests, and hidden_pass_rate all the hidden ones.
        """
        s, first = self.s, self.reward_functions[0][0]
        greedy, sampled, total, hidden_greedy, hidden_sampled = [], [], [], [], []

        def scored(functions, texts, records):
            with self.in_step(policy):
                return score_answers(functions, texts, records, s.reward_errors)

        def score_first(texts, records):
            return reward_tensor(first, scored(self.reward_functions[:1], texts, records)[first])
        for start in over('evaluating', range(0, len(self.eval_records), s.eval_batch_size)):
            records = self.eval_records[start:start + s.eval_batch_size]
            batch = self.make_batch(records, list(range(len(records))), start)
            texts = policy.texts(policy.greedy(batch))
            greedy.append(score_first(texts, records))
            if self.has_hidden_tests:
                with_hidden = [record | {'tests': record.get('hidden_tests')} for record in records]
                hidden_greedy.append(score_first(texts, with_hidden))
            if start == 0:
                for record, (text,) in list(zip(records, texts))[:s.eval_show]:
                    self.say(f"  {record['text']!r}\n    -> {text!r}" + (f" (wanted {record['answer']!r})" if 'answer' in record else ''))
            texts = policy.texts(policy.sample(batch, s.eval_samples))
            if self.has_hidden_tests:
                hidden_sampled.append(score_first(texts, with_hidden))
            values = scored(self.reward_functions, texts, records)
            parts = {name: reward_tensor(name, value) for name, value in values.items()}
            sampled.append(parts[first])
            total.append(weighted_reward(parts, {name: weight for name, _, weight in self.reward_functions}))
        greedy, sampled = torch.cat(greedy), torch.cat(sampled)
        judged = ~sampled.isnan().all(dim=1)
        metrics = {'eval/accuracy_greedy': greedy.nanmean().item(), 'eval/accuracy_sampled': sampled.nanmean().item(),
                   'eval/pass_at_k': (sampled >= 1).any(dim=1)[judged].float().mean().item(), 'eval/reward': torch.cat(total).nanmean().item()}
        if self.has_hidden_tests:
            for name, values in (('pass_rate_greedy', greedy), ('pass_rate_sampled', sampled), ('hidden_pass_rate_greedy', torch.cat(hidden_greedy)), ('hidden_pass_rate_sampled', torch.cat(hidden_sampled))):
                metrics[f'eval/{name}'] = (values[~values.isnan()] >= 1).float().mean().item()
        if s.retain_text:
            metrics['eval/text_log_prob'] = text_log_prob(policy.model, self.tokenizer.encode(s.retain_text))
        return metrics

    def describe(self, m):
        return (f"held-out accuracy greedy {m['eval/accuracy_greedy']:.4f}, sampled {m['eval/accuracy_sampled']:.4f}, pass@{self.s.eval_samples} {m['eval/pass_at_k']:.4f}, reward {m['eval/reward']:.4f}"
                + (f", all tests passed: greedy {m['eval/pass_rate_greedy']:.4f} (hidden tests {m['eval/hidden_pass_rate_greedy']:.4f}), sampled {m['eval/pass_rate_sampled']:.4f} ({m['eval/hidden_pass_rate_sampled']:.4f})" if 'eval/pass_rate_greedy' in m else '')
                + (f", log-prob of retain_text {m['eval/text_log_prob']:.3f}" if 'eval/text_log_prob' in m else ''))

    def try_out(self):
        prompt = self.eval_records[0]['prompt']
        plain = isinstance(prompt, str) and prompt == longest_line(prompt) and len(prompt) < 100  # without a prompt sample.py chats
        options = {'prompt': prompt if plain else '', 'system_prompt': self.s.system_prompt, 'chat_template': plain and self.s.chat_template, 'max_new_tokens': self.s.max_new_tokens}
        return 'export', [f'--{key}={value}' for key, value in options.items() if value]

    def asked(self, rollout):
        record = self.records[rollout.batch['record'][0].item()]
        answer = fields_of(record)['reference']
        return {'prompt': record['text']} | ({} if answer is None else {'answer': str(answer)})

    def saved(self):
        return {'chars': self.tokenizer.chars, 'end': True} if hasattr(self.tokenizer, 'chars') else {}
