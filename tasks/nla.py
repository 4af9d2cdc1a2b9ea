"""
The job of a Natural Language Autoencoder, as tasks.py describes jobs: its source model, activations and start, the reward, the critic that learns
beside the policy, and the table of controls without which a fraction of variance explained (FVE) says little.
Shapes: P prompts · G answers · N = P G texts · R tokens · A width of an activation.
"""
import copy
import json
import os
import random

import numpy as np
import torch
from torch.nn import functional as F

from data.activations.prepare import load_documents, write_activations
from data.prompts import draw_indices, load_prompts
from data.text import dataset_name, random_windows
from formats.tokenizer import CharTokenizer
from grpo import sum_gradients
from kernels import fused_logps
from model import GPT
from nla import (
    Activations,
    Critic,
    Injection,
    NLAPolicy,
    as_read,
    build_actor,
    build_critic,
    encode_around,
    find_markers,
    fve,
    load_activations,
    marker_of,
    read_vectors,
    standardiser,
    truncate,
)
from runtime.checkpoint import load_checkpoint, save_checkpoint, tokenizer_of
from runtime.console import over
from runtime.ranks import all_reduce
from runtime.shard import drop_collected, optimizer_parts, part_of, shard_model, whole_norm
from tasks.task import Job, longest_line
from tasks.completion import answerer_config
from tasks.supervised import cross_entropy, save_model, supervised_loop


class NLA(Job):
    """An actor puts activations into words, a critic rebuilds them from the words; minus its error is the reward, and it learns beside."""
    headline = 'eval/fve'
    max_answer_tokens = property(lambda self: self.s.max_new_tokens)

    def __init__(self, s, device, once, say):
        self.s, self.device, self.say = s, device, say
        self.check_settings()
        name = dataset_name(s.dataset)
        self.source_path, self.generator_path, self.activations_path = (path.format(dataset=name) for path in (s.generator_checkpoint, s.nla_checkpoint, s.activations))
        once(self.make_source)
        self.tokenizer = tokenizer_of(self.source_path)
        self.marker_id = marker_of(self.tokenizer, s.injection_token)
        if os.path.splitext(self.activations_path)[1]:
            self.train, self.held_out = self.given_activations()
        else:
            once(self.make_activations)
            self.train, self.held_out = self.own_activations()
        self.ends = self.tokenizer.eos_id is not None
        self.text_length = s.max_new_tokens - self.ends
        if self.text_length < 1:
            raise ValueError(f"max_new_tokens is {s.max_new_tokens}: an explanation needs room for one token and its end")
        self.about = {'layer': self.layer, 'source': self.source_path, 'context': s.activation_context, 'prompt': self.train.prompts[0], 'max_new_tokens': s.max_new_tokens, 'settings': {
            key: json.loads(json.dumps(getattr(s, key))) for key in ('injection_mode', 'injection_layers', 'injection_scale', 'injection_token', 'critic_pooling', 'critic_head', 'critic_target_norm', 'text_reversed')}}
        once(self.make_start)
        saved = load_checkpoint(self.generator_path, 'nla')
        if 'chars' in saved and hasattr(self.tokenizer, 'chars'):
            self.tokenizer.check_same(saved['chars'], self.generator_path)
        self.tokenizer.check_fits(saved['model_config']['vocab_size'], self.generator_path)
        if saved['critic']['mean'].shape[0] != self.train.vectors.shape[1]:
            raise ValueError(f"the actor and critic at {self.generator_path} are made for activations of width {saved['critic']['mean'].shape[0]} and those at {self.activations_path} have {self.train.vectors.shape[1]}: name another nla_checkpoint, or one that does not exist yet to have it made")
        for key, now in (self.about['settings'] | {'activation_layer': self.layer}).items():
            before = (saved['nla']['settings'] | {'activation_layer': saved['nla']['layer']})[key]
            if before != now:
                raise ValueError(f"the actor and critic at {self.generator_path} were made with {key} = {before!r} and it is {now!r} now: name another nla_checkpoint, or one that does not exist yet to have it made")
        self.about, self.critic = saved['nla'] | self.about, self.placed(build_critic(saved))
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), lr=s.critic_learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.rewards = [('reconstruction', self.reconstruction, 1.0)]
        self.source = self.placed(GPT.from_pretrained(self.source_path).requires_grad_(False))  # says how natural a text is
        say(f"{len(self.train):,} activations of width {self.train.vectors.shape[1]} to train on, {len(self.held_out):,} held out; actor and critic start from {self.generator_path}: "
            + ', '.join(f'{key} {value:.3f}' for key, value in saved['quality'].items()))

    def check_settings(self):
        """What can be refused before a source model is trained."""
        s = self.s
        if not s.injection_layers or not all(isinstance(layer, int) for layer in s.injection_layers):
            raise ValueError(f"injection_layers is {s.injection_layers}: it takes numbers of blocks, 0 for the embeddings")
        if s.generator_checkpoint.endswith('.pt') and not os.path.exists(s.generator_checkpoint.format(dataset=dataset_name(s.dataset))):
            if max(*s.injection_layers, s.activation_layer or 0) > s.n_layer:
                raise ValueError(f"injection_layers is {s.injection_layers} and activation_layer {s.activation_layer}: the model that is to be trained has {s.n_layer} blocks")
            if max(s.activation_context, s.max_new_tokens + 1) > s.block_size:
                raise ValueError(f"activation_context is {s.activation_context} and max_new_tokens {s.max_new_tokens}: the model that is to be trained reads block_size {s.block_size} tokens, the prompt among them")

    def make_source(self):
        s = self.s
        if self.source_path.endswith('.pt') and not os.path.exists(self.source_path):
            self.say(f"there is no model at {self.source_path}: training one on the texts of {s.dataset}")
            documents = load_documents(s.dataset, s.column_mapping)
            tokenizer = CharTokenizer(sorted(set(''.join(documents['train'] + documents['val']))), end=True)
            torch.manual_seed(s.seed)
            model = GPT(answerer_config(tokenizer, s.block_size, s.n_layer, s.n_head, s.n_embd)).to(self.device)
            quality = train_language_model(model, *([tokenizer.encode(text) for text in documents[split]] for split in ('train', 'val')), tokenizer.eos_id, s.pretrain_iters, seed=s.seed)
            save_model(self.source_path, 'generator', model, model.config, tokenizer, quality)

    def make_activations(self):
        s = self.s
        if not os.path.exists(self.activations_path):
            model = GPT.from_pretrained(self.source_path).to(self.device).eval()
            write_activations(model, self.tokenizer, load_documents(s.dataset, s.column_mapping), self.activations_path, s.activation_layer, s.activations_n, s.eval_prompts_n,
                              s.activation_context, source=self.source_path, seed=s.seed)

    def own_activations(self):
        header, splits = load_activations(self.activations_path)
        if header['vocab_size'] != self.tokenizer.vocab_size or header['source'] != self.source_path:
            raise ValueError(f"the activations at {self.activations_path} are of {header['source']} and the model is {self.source_path}: name the folder that belongs to it, or one that does not exist yet to have it made")
        for key, before in (('activation_layer', header['layer']), ('activation_context', header['context'])):
            if getattr(self.s, key) not in (None, before):
                raise ValueError(f"the activations at {self.activations_path} were made with {key} = {before} and it is {getattr(self.s, key)} now: name another folder, or one that does not exist yet to have it made")
        self.layer = header['layer']
        prompt = encode_around(self.tokenizer, self.s.injection_prompt, self.s.injection_token, self.marker_id, self.s.chat_template)
        for split in splits.values():
            split.prompts, split.slots = [prompt], find_markers([prompt], self.marker_id)
        return splits['train'], splits['val']

    def given_activations(self):
        s = self.s
        if not s.train_prompts:
            raise ValueError(f"activations given in a file ({self.activations_path}) want their prompts: set train_prompts to a .jsonl with as many records, each prompt with {s.injection_token} in it")
        vectors, records = read_vectors(self.activations_path), load_prompts(s.train_prompts, s.column_mapping)
        if len(vectors) != len(records):
            raise ValueError(f"{self.activations_path} has {len(vectors)} activations and {s.train_prompts} {len(records)} prompts: there must be one for each")
        prompts = [encode_around(self.tokenizer, r['prompt'], s.injection_token, self.marker_id, s.chat_template) for r in records]
        for i, ids in enumerate(prompts):
            if s.max_prompt_length is not None and len(ids) > s.max_prompt_length:
                raise ValueError(f"prompt {i} has {len(ids)} tokens and max_prompt_length is {s.max_prompt_length}: shorten it or raise the limit, for cutting could take its injection marker away")
        slots = find_markers(prompts, self.marker_id)
        texts = [self.tokenizer.encode(str(r['answer'])) for r in records] if all('answer' in r for r in records) else None
        names = [json.dumps(r.get('document', i)) for i, r in enumerate(records)]  # rows of one document stay on one side
        order = sorted(set(names))
        random.Random('held out').shuffle(order)  # the same for every seed: a start may have been taught on the others
        kept = set(order[:max(1, min(s.eval_prompts_n, len(order) // 10))])
        if len(order) < 2:
            raise ValueError(f"{s.train_prompts} has one document: there must be another to hold out")
        self.layer = round(2 / 3 * GPT.from_pretrained(self.source_path).config.n_layer) if s.activation_layer is None else s.activation_layer
        return (Activations(vectors[rows], prompts=[prompts[i] for i in rows], slots=slots[rows], texts=texts and [texts[i] for i in rows])
                for rows in ([i for i, name in enumerate(names) if (name in kept) == held_out] for held_out in (False, True)))

    def explanation(self, split, i):
        """What the actor is taught to write of activation i, its end included."""
        text = split.text(i, self.text_length)
        return (text[::-1] if self.s.text_reversed else text) + [self.tokenizer.eos_id] * self.ends

    def make_start(self):
        """Actor and critic before GRPO: both from the source model, taught on texts that come with the activations, when there are any."""
        s = self.s
        if os.path.exists(self.generator_path):
            return
        self.say(f"there is no actor and critic at {self.generator_path}: making them from {self.source_path}")
        torch.manual_seed(s.seed)
        mean, scale = standardiser(self.train.vectors)
        actor = GPT.from_pretrained(self.source_path)
        room = max(map(len, self.train.prompts + self.held_out.prompts)) + s.max_new_tokens
        if room > actor.config.block_size:
            raise ValueError(f"the longest prompt and max_new_tokens {s.max_new_tokens} make {room} tokens, more than the {actor.config.block_size} that {self.source_path} reads: lower max_new_tokens")
        critic = Critic(copy.deepcopy(truncate(actor, self.layer)), mean, scale, s.critic_pooling, s.critic_head, s.critic_target_norm).to(self.device)
        actor.injection = Injection(actor, len(mean), s.injection_mode, s.injection_layers, s.injection_scale)
        actor.to(self.device)
        quality = {}
        if self.train.text(0, 1) is not None:
            quality = train_explainer(actor, self.train, self.held_out, self.explanation, s.warm_start_iters, learning_rate=s.warm_start_learning_rate, seed=s.seed)
            quality |= train_critic(critic, self.train, self.held_out, self.text_length, s.critic_start_iters, learning_rate=s.warm_start_learning_rate, seed=s.seed)
        if not hasattr(self.tokenizer, 'chars'):
            self.tokenizer.save(os.path.join(os.path.dirname(self.generator_path), 'tokenizer'))
        save_checkpoint(self.generator_path, {'kind': 'nla', 'model': actor.state_dict(), 'model_config': vars(actor.config), 'critic': critic.state_dict(), 'quality': quality,
                                              'nla': self.about | {'injection': actor.injection.settings, 'critic': critic.settings},
                                              **({'chars': self.tokenizer.chars, 'end': self.ends} if hasattr(self.tokenizer, 'chars') else {})})

    def placed(self, model):
        """A model that stays in fp32 on its device, or spread over all ranks: then they all go through each of its forwards."""
        if self.s.shard:
            shard_model(model, torch.float32, self.device)
        return model.to(self.device).eval()

    def load_model(self):
        model = build_actor(load_checkpoint(self.generator_path, 'nla')).to(self.home)
        self.start = copy.deepcopy(model.injection).requires_grad_(False).to(self.device)
        return model

    def policy(self, model):
        return NLAPolicy(model, self.tokenizer, self.s.max_new_tokens, self.s.temperature, self.s.top_k, self.s.top_p, self.s.compile, start=self.start)

    def batch(self, it, attempt=0):
        seed = self.s.seed + 10 ** 6 * attempt
        indices, seed = draw_indices(len(self.train), self.s.batch_size, it, seed), seed * 10 ** 5 + it
        return self.train.batch(indices, [(seed * 10 ** 9 + n) % 2 ** 62 for n in range(self.s.batch_size)], self.device)

    def predict(self, texts, lengths):
        size = self.s.eval_batch_size
        with torch.no_grad():
            predictions = [self.critic(texts[i:i + size], lengths[i:i + size]) for i in range(0, len(texts), size)]
        drop_collected(self.critic)
        return torch.cat(predictions)

    def reconstruction(self, policy, rollout):
        texts, lengths, h, whole = as_read(rollout, self.ends, self.s.text_reversed)
        prediction, target = self.predict(texts, lengths), self.critic.target(h)
        mse = (prediction - target).square().mean(dim=1)
        reward = {'mse': -mse, 'log_mse': -mse.clamp(min=1e-6).log(), 'cosine': torch.cosine_similarity(prediction, target)}[self.s.nla_reward]
        return torch.where(whole, reward, reward.clamp(max=self.s.truncated_reward)).view(rollout.lengths.shape)

    def actor_rests(self, it):
        return self.s.freeze_actor or it < self.s.critic_warmup_iters

    def learn_beside(self, rollout):
        """The critic's own steps on the whole texts. Its metrics are those before them."""
        texts, lengths, h, whole = as_read(rollout, self.ends, self.s.text_reversed)
        n = all_reduce(whole.sum())
        if n == 0:
            return {}  # nothing to learn from
        target, counts, metrics = self.critic.target(h), whole / n, {}  # the others are read too: a sharded critic takes as many forwards on every rank
        size = (self.s.micro_batch_size or len(rollout.tokens)) * rollout.tokens.shape[1]
        self.critic.train()
        for epoch in range(self.s.critic_train_epochs):
            self.critic_optimizer.zero_grad(set_to_none=True)
            shares = torch.zeros(3, device=h.device)
            for start in range(0, len(texts), size):
                part = slice(start, start + size)
                prediction = self.critic(texts[part], lengths[part])
                loss = counts[part] @ (prediction - target[part]).square().mean(dim=1)
                loss.backward()
                with torch.no_grad():
                    centred = self.critic.standard(prediction, h[part])
                    shares += torch.stack((loss, counts[part] @ torch.cosine_similarity(*centred), counts[part] @ (centred[0] - centred[1]).square().mean(dim=1)))
            sum_gradients(list(self.critic.parameters()))
            norm = whole_norm(torch.nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0))
            if not torch.isfinite(norm):
                return metrics | {'critic_bad_steps': 1}
            self.critic_optimizer.step()
            if epoch == 0:
                loss, cosine, error = all_reduce(shares).tolist()
                metrics = {'critic_loss': loss, 'cosine': cosine, 'fve': 1 - error, 'critic_grad_norm': norm.item()}
        self.critic.eval()
        return metrics

    def write(self, policy, inject='own', greedy=False):
        """One text to each held-out activation, as as_read has them. inject: 'own' activations, others (n, A), or None for nothing."""
        parts = []
        for start in over('evaluating', range(0, len(self.held_out), self.s.eval_batch_size)):
            indices = list(range(start, min(start + self.s.eval_batch_size, len(self.held_out))))
            batch = self.held_out.batch(indices, indices, self.device)
            shown = dict(batch)
            if inject is None:
                del shown['activation']
            elif not isinstance(inject, str):
                shown['activation'] = inject[indices, None].to(self.device)
            rollout = policy.greedy(shown) if greedy else policy.sample(shown, 1)
            rollout.batch = batch  # what the text should have been about
            pad = self.s.max_new_tokens - rollout.tokens.shape[2]
            texts, *rest = as_read(rollout, self.ends, self.s.text_reversed)
            parts.append((torch.nn.functional.pad(texts, (0, pad)), *rest))
        return tuple(torch.cat(column) for column in zip(*parts))

    def evaluate(self, policy):
        """
        Held-out activations, one sampled and one greedy text each, with the same noise each time, and what to compare with: texts dealt to the wrong
        activations, no injection, the mean activation, a random vector as far from it as the own; the critic on the true text; PCA. text_nll is the source model's.
        """
        n, A = self.held_out.vectors.shape
        texts, lengths, h, whole = self.write(policy)

        def value(texts, lengths, h):
            return fve(*self.critic.standard(self.predict(texts, lengths), h))

        prediction, target = self.critic.standard(self.predict(texts, lengths), h)
        m = {'eval/fve': fve(prediction, target), 'eval/fve_greedy': value(*self.write(policy, greedy=True)[:3]), 'eval/fve_shuffled': fve(prediction.roll(n // 2, 0), target),
             'eval/cosine': torch.cosine_similarity(prediction, target).mean().item(), 'eval/fve_no_injection': value(*self.write(policy, None)[:3]),
             'eval/fve_mean_injection': value(*self.write(policy, self.critic.mean.cpu().expand(n, A))[:3])}
        noise = torch.randn(n, A, generator=torch.Generator().manual_seed(0))
        noise = noise * ((h - self.critic.mean).cpu().norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)) + self.critic.mean.cpu()
        m['eval/fve_random_injection'] = value(*self.write(policy, noise)[:3])
        if self.s.freeze_actor:
            m['eval/fve_frozen_actor'] = m['eval/fve']
        shown = [row[:k] for row, k in zip(texts.tolist(), lengths.tolist())]
        m |= {'eval/distinct_texts': len(set(map(tuple, shown))) / n, 'eval/frac_whole': whole.float().mean().item(), 'eval/text_nll': self.nll(texts, lengths)}
        if self.held_out.text(0, 1) is not None:
            truth = [self.held_out.text(i, self.text_length) for i in range(n)]
            true = torch.tensor([row + [0] * (self.text_length - len(row)) for row in truth], device=self.device)
            m |= {'eval/fve_true_text': value(true, torch.tensor([len(row) for row in truth], device=self.device), h),
                  'eval/last_token': sum(a[-1:] == b[-1:] for a, b in zip(shown, truth)) / n}
        for i in range(min(self.s.eval_show, n)):
            about = self.held_out.text(i, 10 ** 6) or self.held_out.prompts[i]
            self.say(f"  {self.tokenizer.decode(about)!r}\n    -> {self.tokenizer.decode(shown[i])!r}, FVE {1 - ((prediction[i] - target[i]).square().sum() / target[i].square().sum()).item():.3f}")
        return m

    @torch.no_grad()
    def nll(self, texts, lengths):
        """Nats per token, from the second on, that the texts cost the source model."""
        total, count = 0.0, 0
        if texts.shape[1] < 2:
            return 0.0
        for start in range(0, len(texts), self.s.eval_batch_size):
            rows, n = texts[start:start + self.s.eval_batch_size], lengths[start:start + self.s.eval_batch_size]
            inside = torch.arange(1, rows.shape[1], device=rows.device) < n[:, None]
            rows = rows.masked_fill(torch.arange(rows.shape[1], device=rows.device) >= n[:, None], 0)
            logps = fused_logps(self.source(rows[:, :-1])[inside], self.source.lm_head.weight, rows[:, 1:][inside])[0]
            total, count = total - logps.sum().item(), count + len(logps)
        drop_collected(self.source)
        return total / max(1, count)

    def table(self, m):
        """What the last evaluation means, line by line; PCA of the training activations says how much that many numbers would carry."""
        train = torch.from_numpy(np.array(self.train.vectors[:20000], dtype=np.float32)) - self.critic.mean.cpu()
        held_out = torch.from_numpy(np.array(self.held_out.vectors, dtype=np.float32)) - self.critic.mean.cpu()
        directions = torch.linalg.eigh(train.T @ train)[1].flip(1)
        ranks = {k: (held_out @ directions[:, :k]).square().sum().item() / held_out.square().sum().item() for k in (1, 4, 8, 16, 32, 64) if k < held_out.shape[1]}
        names = {'fve': 'sampled text', 'fve_greedy': 'greedy text', 'fve_frozen_actor': '  this is the control: the actor rested', 'fve_shuffled': "another activation's text", 'fve_no_injection': 'nothing injected',
                 'fve_mean_injection': 'the mean activation injected', 'fve_random_injection': 'a random vector of the same length injected', 'fve_true_text': 'the true text, through the same critic'}
        lines = [f"  {m['eval/' + key]:6.3f}  {meaning}" for key, meaning in names.items() if f'eval/{key}' in m]
        lines += ["   0.000  the mean activation, whatever the text"] + [f"  {value:6.3f}  PCA, {k} number{'s' if k > 1 else ''}" for k, value in ranks.items()]
        return "held-out fraction of variance explained (FVE) by\n" + '\n'.join(lines)

    def describe(self, m):
        return (f"held-out FVE sampled {m['eval/fve']:.4f}, greedy {m['eval/fve_greedy']:.4f}, shuffled {m['eval/fve_shuffled']:.4f}, cosine {m['eval/cosine']:.3f}, source model's NLL of the texts {m['eval/text_nll']:.3f}, "
                f"{100 * m['eval/distinct_texts']:.0f} % distinct" + (f", last token right {m['eval/last_token']:.3f}, true text {m['eval/fve_true_text']:.4f}" if 'eval/fve_true_text' in m else ''))

    def try_out(self):
        text = self.held_out.text(0, 10 ** 6)
        return 'nla.pt', [f'--activations={self.activations_path}', '--row=0'] if text is None else [f'--text={longest_line(self.tokenizer.decode(text))}']

    def asked(self, rollout):
        i = rollout.batch['record'][0].item()
        return {'prompt': self.tokenizer.decode(self.train.text(i, 10 ** 6) if self.train.texts is None and self.train.contexts is not None else rollout.batch['prompts'][0, :rollout.batch['prompt_lengths'][0]])}

    def saved(self):
        return {'critic': self.critic.state_dict(), 'critic_optimizer': self.critic_optimizer.state_dict(),
                'nla': self.about} | ({'chars': self.tokenizer.chars, 'end': self.ends} if hasattr(self.tokenizer, 'chars') else {})

    def restore(self, checkpoint):
        self.critic.load_state_dict({name: part_of(checkpoint['critic'][name], p) for name, p in self.critic.state_dict().items()})
        self.critic_optimizer.load_state_dict(optimizer_parts(checkpoint['critic_optimizer'], list(self.critic.parameters())))
        for group in self.critic_optimizer.param_groups:
            group['lr'] = self.s.critic_learning_rate


def train_language_model(model, documents, held_out, eos_id, max_iters=1000, batch_size=32, learning_rate=1e-3, seed=1):
    """
    Next token, everywhere, on windows of the documents (lists of token ids, an end token between them), in place. Returns quality: the loss in nats
    per token on windows of held_out.
    """
    generator = torch.Generator().manual_seed(seed)
    device, width = model.wte.weight.device, model.config.block_size + 1
    joined = [np.array([token for ids in part for token in ids + [eos_id] * (eos_id is not None)], dtype=np.int32) for part in (documents, held_out)]

    def loss_on(ids, n, generator):
        tokens = random_windows(ids, n, width, generator).to(device)
        return cross_entropy(model, model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    supervised_loop('language model', model, lambda: loss_on(joined[0], batch_size, generator), max_iters, learning_rate)
    model.eval()
    with torch.no_grad():
        return {'loss': loss_on(joined[1], 256, torch.Generator().manual_seed(0)).item()}


def train_explainer(model, activations, held_out, explanation, max_iters=200, batch_size=64, learning_rate=5e-4, seed=1):
    """
    A start for the actor of an NLA, in place: from a prompt with an activation in it to a text. activations, held_out: nla.Activations;
    explanation(split, i): token ids that the actor is to write of activation i, the end token included. Returns quality: held-out loss in nats
    per token, and with_another, the same with activations dealt to the wrong texts: no more than the loss would mean that the actor does not look at them.
    """
    generator = torch.Generator().manual_seed(seed)
    device = model.wte.weight.device

    def loss_on(split, indices, seen=None):
        batch = split.batch(indices, indices, device)
        prompts, texts = batch['prompts'], [explanation(split, i) for i in indices]
        lengths = batch['prompt_lengths'].tolist()
        T = max(n + len(text) for n, text in zip(lengths, texts))
        tokens, targets = (torch.full((len(indices), T), fill) for fill in (0, -1))
        for row, (prompt, n, text) in enumerate(zip(prompts.tolist(), lengths, texts)):
            tokens[row, :n + len(text)] = torch.tensor(prompt[:n] + text)
            targets[row, n - 1:n + len(text) - 1] = torch.tensor(text)
        vectors = batch['activation'] if seen is None else split.batch(seen, seen, device)['activation']
        hidden = model(tokens.to(device), edit=model.injection.edit(batch['slots'], vectors))
        answer = (targets >= 0).to(device)
        return cross_entropy(model, hidden[answer], targets.to(device)[answer])

    supervised_loop('actor', model, lambda: loss_on(activations, torch.randint(len(activations), (batch_size,), generator=generator).tolist()), max_iters, learning_rate)
    model.eval()
    some = list(range(min(512, len(held_out))))
    with torch.no_grad():
        return {'loss': loss_on(held_out, some).item(), 'with_another': loss_on(held_out, some, some[len(some) // 2:] + some[:len(some) // 2]).item()}


def train_critic(critic, activations, held_out, length, max_iters=100, batch_size=64, learning_rate=5e-4, seed=1):
    """A start for the critic of an NLA, in place: from the texts that come with the activations, cut to `length` tokens, to the activations. Returns quality: held-out FVE."""
    generator = torch.Generator().manual_seed(seed)
    device = critic.mean.device

    def predict(split, indices):
        texts = [split.text(i, length) for i in indices]
        tokens = torch.zeros(len(indices), length, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens[row, :len(text)] = torch.tensor(text)
        h = torch.from_numpy(np.array(split.vectors[np.asarray(indices)], dtype=np.float32)).to(device)
        return critic(tokens.to(device), torch.tensor([len(text) for text in texts], device=device)), h

    def loss_of_batch():
        prediction, h = predict(activations, torch.randint(len(activations), (batch_size,), generator=generator).tolist())
        return F.mse_loss(prediction, critic.target(h))

    supervised_loop('critic', critic, loss_of_batch, max_iters, learning_rate, weight_decay=0.0)
    critic.eval()
    with torch.no_grad():
        return {'fve': fve(*critic.standard(*predict(held_out, list(range(min(512, len(held_out)))))))}
