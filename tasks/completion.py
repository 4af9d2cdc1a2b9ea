"""
The job of completion: prompts with verifiable rewards.
"""
import contextlib
import os
import warnings

import torch

from data.prompts import draw_indices, encode_prompts, held_out_split, load_prompts
from data.text import dataset_name
from formats.tokenizer import CharTokenizer
from grpo import reward_tensor, weighted_reward
from model import GPT, GPTConfig
from policy import CausalPolicy, generate, prompt_batch, text_log_prob, text_log_probs
from rewards import check_fields, fields_of, resolve_rewards, score_completions
from runtime import ranks
from runtime.checkpoint import tokenizer_of
from runtime.console import over
from runtime.shard import is_sharded
from tasks.task import Job, longest_line
from tasks.supervised import cross_entropy, save_model, supervised_loop


def check_answers(records):
    """Raises ValueError where there is no text to learn from."""
    for i, record in enumerate(records):
        if 'answer' not in record:
            raise ValueError(f"prompt {i} ({str(record['prompt'])[:60]!r}) has no 'answer' to teach a model with: give the answers, or name a model that exists in generator_checkpoint")


def character_tokenizer(records, system_prompt=''):
    """All characters of prompts and answers, and an end token."""
    check_answers(records)
    if not all(isinstance(r['prompt'], str) for r in records):
        raise ValueError("a model of characters knows no chat messages: give prompts that are texts, or name a model that exists in generator_checkpoint")
    return CharTokenizer(sorted(set(''.join(system_prompt + r['prompt'] + str(r['answer']) for r in records))), end=True)


def answerer_config(tokenizer, block_size, n_layer, n_head, n_embd):
    """A small Llama, so that what it becomes can be exported as one."""
    return GPTConfig(block_size=block_size, vocab_size=tokenizer.vocab_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
                     norm='rmsnorm', position='rope', mlp='swiglu', mlp_hidden=8 * n_embd // 3, bias=False)


def train_answerer(model, tokenizer, records, held_out, max_iters=1000, batch_size=64, learning_rate=3e-3, seed=1, until=1.0):
    """
    A supervised start for a causal model, in place: next token on prompt + answer + end token, with the loss on the answer and its end
    alone. records, held_out: dicts with 'ids' (see encode_prompts) and 'answer'. until: ends sooner at this greedy accuracy on some of
    held_out. Returns quality: loss in nats per token and greedy accuracy, both held out. Raises ValueError when a record is longer than the model's block_size.
    """
    if tokenizer.eos_id is None:
        raise ValueError("the tokenizer has no end token: an answer could not be taught to end")
    check_answers(records + held_out)
    generator = torch.Generator().manual_seed(seed)
    device = model.wte.weight.device
    answers = {id(r): tokenizer.encode(str(r['answer'])) + [tokenizer.eos_id] for r in records + held_out}
    longest = max(len(r['ids']) + len(answers[id(r)]) for r in records + held_out)
    if longest > model.config.block_size:
        raise ValueError(f"a prompt with its answer has {longest} tokens, more than this model's block_size {model.config.block_size}: shorten it, or raise block_size")

    def loss_of(batch):
        rows = [r['ids'] + answers[id(r)] for r in batch]
        T = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=device)
        targets = [[-1] * (len(r['ids']) - 1) + answers[id(r)] + [-1] * (T - len(row) + 1) for r, row in zip(batch, rows)]
        targets = torch.tensor(targets, device=device)
        answer = targets >= 0
        return cross_entropy(model, model(tokens)[answer], targets[answer])

    def loss_of_batch():
        return loss_of([records[i] for i in torch.randint(len(records), (batch_size,), generator=generator).tolist()])

    @torch.no_grad()
    def quality_on(held_out):
        model.eval()
        right, losses = 0, []
        for start in range(0, len(held_out), 256):
            batch = held_out[start:start + 256]
            losses.append(loss_of(batch).item() * len(batch))
            room = model.config.block_size - max(len(r['ids']) for r in batch)
            greedy = generate(model, [r['ids'] for r in batch], max_new_tokens=min(room, max(len(answers[id(r)]) for r in batch)), temperature=0, eos_id=tokenizer.eos_id)
            right += sum(ids[0, :n].tolist() == answers[id(r)] for r, ids, n in zip(batch, greedy.tokens, greedy.lengths.flatten()))
        model.train()
        return {'loss': sum(losses) / len(held_out), 'accuracy': right / len(held_out)}

    supervised_loop('model', model, loss_of_batch, max_iters, learning_rate, enough=lambda: until < 1 and quality_on(held_out[:256])['accuracy'] >= until)
    quality = quality_on(held_out)
    model.eval()
    return quality


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
        return score_completions(self.reward_functions, texts, records, self.s.reward_errors)

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
                return score_completions(functions, texts, records, s.reward_errors)

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
