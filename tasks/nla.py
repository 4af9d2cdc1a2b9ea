"""
Natural Language Autoencoders: an actor puts activations into words, a critic rebuilds them from the words;
minus its error is the reward, and it learns beside the policy. With it comes the table of controls without
which a fraction of variance explained (FVE) says little.
Shapes: P prompts · G completions · N = P G texts · R tokens · A width of an activation.
"""
import copy
import json
import os
import random
from typing import Annotated, Literal

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
    activation_at_end,
    as_read,
    build_actor,
    build_critic,
    encode_around,
    explain,
    find_markers,
    fve,
    load_activations,
    marker_of,
    read_vectors,
    standardiser,
    truncate,
)
from runtime import ranks
from runtime.checkpoint import load_checkpoint, save_checkpoint, tokenizer_of
from runtime.config import Count, Natural, NonNegative, Positive
from runtime.console import over, say
from runtime.ranks import all_reduce
from runtime.shard import drop_collected, optimizer_parts, part_of, shard_model, whole_norm
from tasks.show import given, show_ranked
from tasks.supervised import cross_entropy, own_tokenizer, save_model, small_config, supervised_loop
from tasks.task import Task, chart, longest_line

# what actor and critic were made with, and cannot be changed afterwards
FIXED = ('injection_mode', 'injection_layers', 'injection_scale', 'injection_token', 'critic_pooling',
         'critic_head',
         'critic_target_norm', 'text_reversed')
MEANING = {
    'fve': 'sampled text', 'fve_greedy': 'greedy text',
           'fve_frozen_actor': '  this is the control: the actor rested',
    'fve_shuffled': "another activation's text", 'fve_no_injection': 'nothing injected',
    'fve_mean_injection': 'the mean activation injected',
    'fve_random_injection': 'a random vector of the same length injected',
    'fve_true_text': 'the true text, through the same critic'}


class NLA(Task):
    """An actor puts activations into words, a critic rebuilds them from the words."""
    headline = 'eval/fve'
    charts = {
        'Evaluation': [
            chart('variance explained',
                  'FVE on documents nobody trained on; 0 is the mean activation, whatever the text.',
                  'eval/fve', 'eval/fve_greedy', 'eval/fve_true_text', 'eval/fve_frozen_actor'),
            chart('FVE, controls',
                  'Texts dealt to other activations, nothing injected, the mean, noise: all should stay '
                  'low.',
                  'eval/fve_shuffled', 'eval/fve_no_injection', 'eval/fve_mean_injection',
                  'eval/fve_random_injection'),
        ],
        'Autoencoder': [
            chart('variance explained',
                  'FVE on the training batch, before the critic’s step.',
                  'fve'),
            chart('cosine',
                  'Between what the critic rebuilt and the activation.',
                  'cosine'),
            chart('critic',
                  'Its loss.',
                  'critic_loss'),
        ],
    }
    samples_title = 'Explanations'
    samples_hint = ("What the actor wrote about an activation (of the last token of the text above it), and "
                    "how well the critic rebuilt it from that: reconstruction is the reward. With "
                    "text_reversed the latest token comes first.")
    sharded_beside = True
    uses = ('train_prompts', 'column_mapping', 'chat_template', 'max_prompt_length', 'max_new_tokens',
            'eval_batch_size')
    refuses = ('overlong_penalty',)

    class Settings:
        # activations
        activations = 'out-{dataset}/activations'  # a folder, made if missing; or a file, with train_prompts
        activation_layer: Natural | None = None  # after this block; None: two thirds up
        activations_n: Count = 20000            # how many to train on
        activation_context: Count = 32          # tokens that the source model sees, up to the place
        injection_mode: Literal['replace', 'add', 'project'] = 'project'  # project: by a learned map
        injection_layers = (0,)                 # 0: the marker's embedding; i: what block i puts out there
        injection_scale: Positive | Literal['raw', 'residual'] | None = None  # a length; None: an embedding's
        injection_token = '<INJECT>'            # in a prompt, where the vector goes
        injection_prompt = '<INJECT>'           # the prompt of activations that come without one
        text_reversed = False                   # True: texts are written latest word first
        # the start of actor and critic
        nla_checkpoint = 'out-{dataset}/nla.pt'  # taught first if there is no such file
        warm_start_learning_rate: Positive = 5e-4
        warm_start_iters: Natural = 200         # supervised steps of the actor
        critic_start_iters: Natural = 100       # and of the critic
        # rewards, and the critic
        nla_reward: Literal['mse', 'log_mse', 'cosine'] = 'mse'  # minus the error, or minus its logarithm
        truncated_reward: Annotated[float, '(-inf, inf)'] = -2.0  # the most for a text that was cut off
        critic_pooling: Literal['last', 'mean', 'max'] = 'last'
        critic_head: Literal['linear', 'mlp'] = 'linear'  # both start as the identity
        critic_target_norm: Literal['standard', 'unit'] = 'standard'
        critic_learning_rate: NonNegative = 3e-4  # constant
        critic_train_epochs: Count = 1          # its steps on the completions of an iteration
        critic_warmup_iters: Natural = 0        # the actor rests as long
        freeze_actor = False                    # True: it rests all along; the control

        @staticmethod
        def check(cfg):
            if not cfg.injection_layers or not all(isinstance(layer, int) for layer in cfg.injection_layers):
                raise ValueError(f"injection_layers is {cfg.injection_layers}: it takes numbers of blocks, "
                                 "0 for the embeddings")
            if cfg.max_new_tokens < 2:
                raise ValueError(f"max_new_tokens is {cfg.max_new_tokens}: an explanation needs room for "
                                 "one token and its end")
            if cfg.rollout_batch_size and cfg.shard:
                raise ValueError("rollout_batch_size computes rewards during the sampling, and with a "
                                 "sharded critic all ranks must keep step: leave one of them")
            source = cfg.generator_checkpoint.format(dataset=dataset_name(cfg.dataset))
            if source.endswith('.pt') and not os.path.exists(source):  # it will be trained at this size
                if max(*cfg.injection_layers, cfg.activation_layer or 0) > cfg.n_layer:
                    raise ValueError(f"injection_layers is {cfg.injection_layers} and activation_layer "
                                     f"{cfg.activation_layer}: the model that is to be trained has "
                                     f"{cfg.n_layer} blocks")
                if max(cfg.activation_context, cfg.max_new_tokens + 1) > cfg.block_size:
                    raise ValueError(f"activation_context is {cfg.activation_context} and max_new_tokens "
                                     f"{cfg.max_new_tokens}: the model that is to be trained reads "
                                     f"block_size {cfg.block_size} tokens, the prompt among them")

    def __init__(self, cfg, device):
        super().__init__(cfg, device)
        name = dataset_name(cfg.dataset)
        paths = cfg.generator_checkpoint, cfg.nla_checkpoint, cfg.activations
        paths = [path.format(dataset=name) for path in paths]
        self.source_path, self.generator_path, self.activations_path = paths
        ranks.once(self.make_source)
        self.tokenizer = tokenizer_of(self.source_path)
        self.marker_id = marker_of(self.tokenizer, cfg.injection_token)
        if os.path.splitext(self.activations_path)[1]:
            self.train, self.held_out = self.given_activations()
        else:
            ranks.once(self.make_activations)
            self.train, self.held_out = self.own_activations()
        self.ends = self.tokenizer.eos_id is not None
        self.text_length = cfg.max_new_tokens - self.ends
        settings = json.loads(json.dumps({key: getattr(cfg, key) for key in FIXED}))
        self.about = {'layer': self.layer, 'source': self.source_path, 'context': cfg.activation_context,
                      'prompt': self.train.prompts[0], 'max_new_tokens': cfg.max_new_tokens,
                      'settings': settings}
        ranks.once(self.make_start)
        saved = load_checkpoint(self.generator_path, 'nla')
        self.check_start(saved)
        self.about, self.critic = saved['nla'] | self.about, self.placed(build_critic(saved))
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), lr=cfg.critic_learning_rate,
                                                  betas=(0.9, 0.95), weight_decay=0.0)
        self.rewards = [('reconstruction', self.reconstruction, 1.0)]
        self.source = self.placed(GPT.from_pretrained(self.source_path).requires_grad_(False))
        quality = ', '.join(f'{key} {value:.3f}' for key, value in saved['quality'].items())
        say(f"{len(self.train):,} activations of width {self.train.vectors.shape[1]} to train on, "
            f"{len(self.held_out):,} held out; actor and critic start from {self.generator_path}: {quality}")

    # -----------------------------------------------------------------------------
    # the source model and its activations

    def make_source(self):
        """A character model of the data set, where the .pt file is missing."""
        cfg = self.cfg
        if not self.source_path.endswith('.pt') or os.path.exists(self.source_path):
            return
        say(f"there is no model at {self.source_path}: training one on the texts of {cfg.dataset}")
        documents = load_documents(cfg.dataset, cfg.column_mapping)
        tokenizer = CharTokenizer(sorted(set(''.join(documents['train'] + documents['val']))), end=True)
        train, held_out = (list(map(tokenizer.encode, documents[split])) for split in ('train', 'val'))
        torch.manual_seed(cfg.seed)
        model = GPT(small_config(tokenizer, cfg)).to(self.device)
        quality = train_language_model(model, train, held_out, tokenizer.eos_id, cfg.pretrain_iters,
                                       seed=cfg.seed)
        save_model(self.source_path, 'generator', model, model.config, tokenizer, quality)

    def make_activations(self):
        if not os.path.exists(self.activations_path):
            model = GPT.from_pretrained(self.source_path).to(self.device).eval()
            documents = load_documents(self.cfg.dataset, self.cfg.column_mapping)
            write_activations(model, self.tokenizer, documents, self.activations_path, self.cfg,
                              self.source_path)

    def own_activations(self):
        """Those of a folder that was made here, to train on and held out."""
        path, remedy = self.activations_path, "name another, or one that does not exist yet"
        header, splits = load_activations(path)
        if header['vocab_size'] != self.tokenizer.vocab_size or header['source'] != self.source_path:
            raise ValueError(f"the activations at {path} are of {header['source']} and the model is "
                             f"{self.source_path}: {remedy}")
        for key, before in (('activation_layer', header['layer']), ('activation_context', header['context'])):
            now = getattr(self.cfg, key)
            if now not in (None, before):
                raise ValueError(f"the activations at {path} were made with {key} = {before} and it is "
                                 f"{now} now: {remedy}")
        self.layer = header['layer']
        prompt = self.encode_prompt(self.cfg.injection_prompt)
        for split in splits.values():
            split.prompts, split.slots = [prompt], find_markers([prompt], self.marker_id)
        return splits['train'], splits['val']

    def encode_prompt(self, prompt):
        cfg = self.cfg
        return encode_around(self.tokenizer, prompt, cfg.injection_token, self.marker_id, cfg.chat_template)

    def given_activations(self):
        """Those of a file, each with a prompt of its own, to train on and held out."""
        cfg, path = self.cfg, self.activations_path
        if not cfg.train_prompts:
            raise ValueError(f"activations given in a file ({path}) want their prompts: set train_prompts "
                             f"to a .jsonl with as many records, each prompt with {cfg.injection_token} in "
                             "it")
        vectors, records = read_vectors(path), load_prompts(cfg.train_prompts, cfg.column_mapping)
        if len(vectors) != len(records):
            raise ValueError(f"{path} has {len(vectors)} activations and {cfg.train_prompts} {len(records)} "
                             "prompts: there must be one for each")
        prompts = [self.encode_prompt(record['prompt']) for record in records]
        for i, ids in enumerate(prompts):
            if cfg.max_prompt_length is not None and len(ids) > cfg.max_prompt_length:
                raise ValueError(f"prompt {i} has {len(ids)} tokens and max_prompt_length is "
                                 f"{cfg.max_prompt_length}: shorten it or raise the limit, for cutting "
                                 "could take its injection marker away")
        slots, texts = find_markers(prompts, self.marker_id), None
        if all('answer' in record for record in records):
            texts = [self.tokenizer.encode(str(record['answer'])) for record in records]
        self.layer = cfg.activation_layer
        if self.layer is None:
            self.layer = round(2 / 3 * GPT.from_pretrained(self.source_path).config.n_layer)

        def split(rows):
            own_texts = texts and [texts[i] for i in rows]
            return Activations(vectors[rows], prompts=[prompts[i] for i in rows], slots=slots[rows],
                               texts=own_texts)

        return tuple(map(split, self.split_rows(records)))

    def split_rows(self, records):
        """The rows to train on and those held out; rows of one document stay on one side."""
        names = [json.dumps(record.get('document', i)) for i, record in enumerate(records)]
        order = sorted(set(names))
        if len(order) < 2:
            raise ValueError(f"{self.cfg.train_prompts} has one document: there must be another to hold out")
        random.Random('held out').shuffle(order)  # the same for every seed
        kept = set(order[:max(1, min(self.cfg.eval_prompts_n, len(order) // 10))])
        train = [i for i, name in enumerate(names) if name not in kept]
        return train, [i for i, name in enumerate(names) if name in kept]

    # -----------------------------------------------------------------------------
    # the start of actor and critic

    def explanation(self, split, i):
        """What the actor is taught to write of activation i, its end included."""
        text = split.text(i, self.text_length)
        return (text[::-1] if self.cfg.text_reversed else text) + [self.tokenizer.eos_id] * self.ends

    def make_start(self):
        """
        Actor and critic from the source model, taught on texts that come with the activations, when there are
        any.
        """
        cfg, path = self.cfg, self.generator_path
        if os.path.exists(path):
            return
        say(f"there is no actor and critic at {path}: making them from {self.source_path}")
        torch.manual_seed(cfg.seed)
        mean, scale = standardiser(self.train.vectors)
        actor = GPT.from_pretrained(self.source_path)
        room = max(map(len, self.train.prompts + self.held_out.prompts)) + cfg.max_new_tokens
        if room > actor.config.block_size:
            raise ValueError(f"the longest prompt and max_new_tokens {cfg.max_new_tokens} make {room} "
                             f"tokens, more than the {actor.config.block_size} that {self.source_path} "
                             "reads: lower max_new_tokens")
        trunk = copy.deepcopy(truncate(actor, self.layer))
        critic = Critic(trunk, mean, scale, cfg.critic_pooling, cfg.critic_head,
                        cfg.critic_target_norm).to(self.device)
        actor.injection = Injection(actor, len(mean), cfg.injection_mode, cfg.injection_layers,
                                    cfg.injection_scale)
        actor.to(self.device)
        quality = {}
        if self.train.text(0, 1) is not None:
            quality = self.teach(actor, critic)
        if not own_tokenizer(self.tokenizer):
            self.tokenizer.save(os.path.join(os.path.dirname(path), 'tokenizer'))
        about = self.about | {'injection': actor.injection.settings, 'critic': critic.settings}
        weights = {'model': actor.state_dict(), 'model_config': vars(actor.config),
                   'critic': critic.state_dict()}
        save_checkpoint(path,
                        {'kind': 'nla', **weights, 'quality': quality, 'nla': about,
                         **own_tokenizer(self.tokenizer)})

    def teach(self, actor, critic):
        cfg, splits = self.cfg, (self.train, self.held_out)
        options = {'learning_rate': cfg.warm_start_learning_rate, 'seed': cfg.seed}
        quality = train_explainer(actor, *splits, self.explanation, cfg.warm_start_iters, **options)
        return quality | train_critic(critic, *splits, self.text_length, cfg.critic_start_iters, **options)

    def check_start(self, saved):
        """
        Raises ValueError unless actor and critic of a checkpoint were made for these activations and
        settings.
        """
        path, remedy = self.generator_path, "name another nla_checkpoint, or one that does not exist yet"
        if 'chars' in saved and hasattr(self.tokenizer, 'chars'):
            self.tokenizer.check_same(saved['chars'], path)
        self.tokenizer.check_fits(saved['model_config']['vocab_size'], path)
        before, now = saved['critic']['mean'].shape[0], self.train.vectors.shape[1]
        if before != now:
            raise ValueError(f"the actor and critic at {path} are made for activations of width {before} "
                             f"and those at {self.activations_path} have {now}: {remedy}")
        settings = saved['nla']['settings'] | {'activation_layer': saved['nla']['layer']}
        for key, now in (self.about['settings'] | {'activation_layer': self.layer}).items():
            if settings[key] != now:
                raise ValueError(f"the actor and critic at {path} were made with {key} = {settings[key]!r} "
                                 f"and it is {now!r} now: {remedy}")

    def placed(self, model):
        """
        A model that stays in fp32 on its device, or spread over all ranks: then all go through each of its
        forwards.
        """
        if self.cfg.shard:
            shard_model(model, torch.float32, self.device)
        return model.to(self.device).eval()

    def load_model(self):
        model = build_actor(load_checkpoint(self.generator_path, 'nla')).to(self.home)
        self.start = copy.deepcopy(model.injection).requires_grad_(False).to(self.device)
        return model

    def after_lora(self, model):
        model.injection.requires_grad_(True)

    def policy(self, model):
        cfg = self.cfg
        return NLAPolicy(model, self.tokenizer, cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p,
                         cfg.compile,
                         start=self.start)

    def batch(self, it, attempt=0):
        seed, n = self.cfg.seed + 10 ** 6 * attempt, self.cfg.batch_size
        indices, seed = draw_indices(len(self.train), n, it, seed), seed * 10 ** 5 + it
        return self.train.batch(indices, [(seed * 10 ** 9 + i) % 2 ** 62 for i in range(n)], self.device)

    # -----------------------------------------------------------------------------
    # the reward, and the critic's own learning

    def as_read(self, rollout):
        return as_read(rollout, self.ends, self.cfg.text_reversed)

    def predict(self, texts, lengths):
        size, predictions = self.cfg.eval_batch_size, []
        with torch.no_grad():
            for i in range(0, len(texts), size):
                predictions.append(self.critic(texts[i:i + size], lengths[i:i + size]))
        drop_collected(self.critic)
        return torch.cat(predictions)

    def reconstruction(self, policy, rollout):
        """How well the critic rebuilds the activation from each text, (P, G)."""
        texts, lengths, h, whole = self.as_read(rollout)
        prediction, target = self.predict(texts, lengths), self.critic.target(h)
        mse = (prediction - target).square().mean(dim=1)
        if self.cfg.nla_reward == 'cosine':
            reward = torch.cosine_similarity(prediction, target)
        else:
            reward = -mse if self.cfg.nla_reward == 'mse' else -mse.clamp(min=1e-6).log()
        reward = torch.where(whole, reward, reward.clamp(max=self.cfg.truncated_reward))
        return reward.view(rollout.lengths.shape)

    def actor_rests(self, it):
        return self.cfg.freeze_actor or it < self.cfg.critic_warmup_iters

    def learn_beside(self, rollout):
        """The critic's own steps on the whole texts. Its metrics are those before them."""
        texts, lengths, h, whole = self.as_read(rollout)
        n = all_reduce(whole.sum())
        if n == 0:
            return {}
        # texts that are not whole are read too, with weight 0: a sharded critic takes as many forwards on
        # every rank
        weights, metrics = whole / n, {}
        size = (self.cfg.micro_batch_size or len(rollout.tokens)) * rollout.tokens.shape[1]
        self.critic.train()
        for epoch in range(self.cfg.critic_train_epochs):
            self.critic_optimizer.zero_grad(set_to_none=True)
            shares = torch.zeros(3, device=h.device)  # loss, cosine, error
            for start in range(0, len(texts), size):
                part = slice(start, start + size)
                shares += self.critic_backward(texts[part], lengths[part], h[part], weights[part])
            sum_gradients(list(self.critic.parameters()))
            norm = whole_norm(torch.nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0))
            if not torch.isfinite(norm):
                return metrics | {'critic_bad_steps': 1}
            self.critic_optimizer.step()
            if epoch == 0:
                loss, cosine, error = all_reduce(shares).tolist()
                metrics = {'critic_loss': loss, 'cosine': cosine, 'fve': 1 - error,
                           'critic_grad_norm': norm.item()}
        self.critic.eval()
        return metrics

    def critic_backward(self, texts, lengths, h, weights):
        """
        Backward of the weighted error on some texts. Returns their shares of loss, cosine and standardised
        error (3,).
        """
        prediction = self.critic(texts, lengths)
        loss = weights @ (prediction - self.critic.target(h)).square().mean(dim=1)
        loss.backward()
        with torch.no_grad():
            centred, truth = self.critic.standard(prediction, h)
            cosine = weights @ torch.cosine_similarity(centred, truth)
            return torch.stack((loss, cosine, weights @ (centred - truth).square().mean(dim=1)))

    # -----------------------------------------------------------------------------
    # evaluation

    def write(self, policy, inject='own', greedy=False):
        """
        One text to each held-out activation, as as_read has them. inject: 'own' activations, others (n, A),
        or None.
        """
        parts = []
        for start in over('evaluating', range(0, len(self.held_out), self.cfg.eval_batch_size)):
            indices = list(range(start, min(start + self.cfg.eval_batch_size, len(self.held_out))))
            batch = self.held_out.batch(indices, indices, self.device)
            shown = dict(batch)
            if inject is None:
                del shown['activation']
            elif not isinstance(inject, str):
                shown['activation'] = inject[indices, None].to(self.device)
            rollout = policy.greedy(shown) if greedy else policy.sample(shown, 1)
            rollout.batch = batch  # what the text should have been about
            texts, *columns = self.as_read(rollout)
            parts.append((F.pad(texts, (0, self.cfg.max_new_tokens - texts.shape[1])), *columns))
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def fve_of(self, texts, lengths, h, *_):
        return fve(*self.critic.standard(self.predict(texts, lengths), h))

    def evaluate(self, policy):
        """
        Held-out activations, one sampled and one greedy text each, with the same noise each time, and what to
        compare with: texts dealt to the wrong activations, no injection, the mean activation, a random vector
        as far from it as the own; the critic on the true text; PCA. text_nll is the source model's.
        """
        n, mean = len(self.held_out), self.critic.mean.cpu()
        texts, lengths, h, whole = self.write(policy)
        prediction, target = self.critic.standard(self.predict(texts, lengths), h)
        m = {'fve': fve(prediction, target), 'fve_greedy': self.fve_of(*self.write(policy, greedy=True)),
             'fve_shuffled': fve(prediction.roll(n // 2, 0), target),
             'cosine': torch.cosine_similarity(prediction, target).mean().item(),
             'fve_no_injection': self.fve_of(*self.write(policy, None)),
             'fve_mean_injection': self.fve_of(*self.write(policy, mean.expand(n, -1)))}
        noise = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(0))
        distance = (h - self.critic.mean).cpu().norm(dim=1, keepdim=True)
        noise = noise * (distance / noise.norm(dim=1, keepdim=True)) + mean
        m['fve_random_injection'] = self.fve_of(*self.write(policy, noise))
        if self.cfg.freeze_actor:
            m['fve_frozen_actor'] = m['fve']
        shown = [row[:k] for row, k in zip(texts.tolist(), lengths.tolist(), strict=True)]
        m |= {'distinct_texts': len(set(map(tuple, shown))) / n, 'frac_whole': whole.float().mean().item(),
              'text_nll': self.nll(texts, lengths)}
        if self.held_out.text(0, 1) is not None:
            m |= self.against_true_texts(shown, h)
        for i in range(min(self.cfg.eval_show, n)):
            about = self.held_out.text(i, 10 ** 6) or self.held_out.prompts[i]
            explained = 1 - ((prediction[i] - target[i]).square().sum() / target[i].square().sum()).item()
            text = self.tokenizer.decode(shown[i])
            say(f"  {self.tokenizer.decode(about)!r}\n    -> {text!r}, FVE {explained:.3f}")
        return {f'eval/{name}': value for name, value in m.items()}

    def against_true_texts(self, shown, h):
        """The critic on the texts that the activations came from, and how often the last token is theirs."""
        truth = [self.held_out.text(i, self.text_length) for i in range(len(shown))]
        texts = torch.tensor([row + [0] * (self.text_length - len(row)) for row in truth], device=self.device)
        lengths = torch.tensor([len(row) for row in truth], device=self.device)
        right = sum(a[-1:] == b[-1:] for a, b in zip(shown, truth, strict=True))
        return {'fve_true_text': self.fve_of(texts, lengths, h), 'last_token': right / len(shown)}

    @torch.no_grad()
    def nll(self, texts, lengths):
        """Nats per token, from the second on, that the texts cost the source model."""
        total, count, size = 0.0, 0, self.cfg.eval_batch_size
        if texts.shape[1] < 2:
            return 0.0
        for start in range(0, len(texts), size):
            rows, n = texts[start:start + size], lengths[start:start + size, None]
            places = torch.arange(rows.shape[1], device=rows.device)
            rows, scored = rows.masked_fill(places >= n, 0), places[1:] < n
            hidden = self.source(rows[:, :-1])[scored]
            logps = fused_logps(hidden, self.source.lm_head.weight, rows[:, 1:][scored])[0]
            total, count = total - logps.sum().item(), count + len(logps)
        drop_collected(self.source)
        return total / max(1, count)

    def verdict(self, metrics):
        """
        The last evaluation as a table; PCA of the training activations says how much that many numbers would
        carry.
        """
        mean = self.critic.mean.cpu()
        train = torch.from_numpy(np.array(self.train.vectors[:20000], dtype=np.float32)) - mean
        held_out = torch.from_numpy(np.array(self.held_out.vectors, dtype=np.float32)) - mean
        directions = torch.linalg.eigh(train.T @ train)[1].flip(1)
        lines = ["held-out fraction of variance explained (FVE) by"]
        for key, meaning in MEANING.items():
            if f'eval/{key}' in metrics:
                lines.append(f"  {metrics['eval/' + key]:6.3f}  {meaning}")
        lines.append("   0.000  the mean activation, whatever the text")
        total = held_out.square().sum().item()
        for k in (1, 4, 8, 16, 32, 64):
            if k < held_out.shape[1]:
                carried = (held_out @ directions[:, :k]).square().sum().item()
                lines.append(f"  {carried / total:6.3f}  PCA, {k} number{'s' * (k > 1)}")
        return '\n'.join(lines)

    def describe(self, metrics):
        m = {name.removeprefix('eval/'): value for name, value in metrics.items()}
        line = f"held-out FVE sampled {m['fve']:.4f}, greedy {m['fve_greedy']:.4f}, "
        line += f"shuffled {m['fve_shuffled']:.4f}, cosine {m['cosine']:.3f}, "
        line += f"source model's NLL of the texts {m['text_nll']:.3f}, "
        line += f"{100 * m['distinct_texts']:.0f} % distinct"
        if 'last_token' in m:
            line += f", last token right {m['last_token']:.3f}, true text {m['fve_true_text']:.4f}"
        return line

    # -----------------------------------------------------------------------------
    # what a run leaves behind

    def asked(self, rollout):
        i, batch = rollout.batch['record'][0].item(), rollout.batch
        ids = batch['prompts'][0, :batch['prompt_lengths'][0]]
        if self.train.texts is None and self.train.contexts is not None:
            ids = self.train.text(i, 10 ** 6)
        return {'prompt': self.tokenizer.decode(ids)}

    def saved(self):
        optimizer = {'critic_optimizer': self.critic_optimizer.state_dict()}
        return {'critic': self.critic.state_dict(), **optimizer, 'nla': self.about,
                **own_tokenizer(self.tokenizer)}

    def restore(self, checkpoint):
        own = self.critic.state_dict()
        self.critic.load_state_dict({name: part_of(checkpoint['critic'][name], p) for name, p in own.items()})
        state = optimizer_parts(checkpoint['critic_optimizer'], list(self.critic.parameters()))
        self.critic_optimizer.load_state_dict(state)
        for group in self.critic_optimizer.param_groups:
            group['lr'] = self.cfg.critic_learning_rate

    def export(self, model, saved, out_dir, metrics):
        """Actor and critic in nla.pt, a start for others."""
        path, names = os.path.join(out_dir, 'nla.pt'), ('eval/fve', 'eval/fve_greedy')
        quality = {name.removeprefix('eval/'): metrics[name] for name in names if name in metrics}
        weights = {'model': model.state_dict(), 'model_config': vars(model.config)}
        save_checkpoint(path, {'kind': 'nla', **weights, 'quality': quality, **saved})
        say(f"actor and critic saved in {path}")

    @classmethod
    def show(cls, saved, model, tokenizer, cfg):
        """What the actor says of an activation: a row of a file, or that at a text's last token."""
        if cfg.activations:
            vectors = read_vectors(cfg.activations)
        else:
            vectors = activation_at_end(saved['nla'], tokenizer, given('text', cfg.text), cfg.device)
        if cfg.row >= len(vectors):
            raise ValueError(f"row is {cfg.row} and {cfg.activations} has {len(vectors)} activations")
        vector, rows = vectors[cfg.row:cfg.row + 1], []
        said = explain(saved, tokenizer, vector, cfg.num_samples or 8, cfg.temperature, cfg.seed, cfg.device)
        for value, text, greedy, ended in said:
            rows.append(([f'{value:.3f}'], text, '  (greedy)' * greedy + ' ...' * (not ended)))
        show_ranked(['FVE', 'explanation'], rows)

    def try_out(self):
        text = self.held_out.text(0, 10 ** 6)
        if text is None:
            return 'nla.pt', [f'--activations={self.activations_path}', '--row=0']
        return 'nla.pt', [f'--text={longest_line(self.tokenizer.decode(text))}']


# -----------------------------------------------------------------------------
# supervised starts

def train_language_model(model, documents, held_out, eos_id, max_iters=1000, learning_rate=1e-3, seed=1):
    """
    Next token, everywhere, on windows of the documents (lists of token ids, an end token between them), in
    place. Returns quality: the loss in nats per token on windows of held_out.
    """
    generator = torch.Generator().manual_seed(seed)
    device, width = model.wte.weight.device, model.config.block_size + 1
    end = [eos_id] if eos_id is not None else []

    def joined(documents):
        return np.array([token for ids in documents for token in ids + end], dtype=np.int32)

    def loss_on(ids, n, generator):
        tokens = random_windows(ids, n, width, generator).to(device)
        return cross_entropy(model, model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    train = joined(documents)
    supervised_loop('language model', model, lambda: loss_on(train, 32, generator), max_iters, learning_rate)
    model.eval()
    with torch.no_grad():
        return {'loss': loss_on(joined(held_out), 256, torch.Generator().manual_seed(0)).item()}


def explainer_loss(model, split, indices, explanation, seen=None):
    """
    Loss in nats per token of writing explanations of activations; seen: the activations shown, their own if
    None.
    """
    device = model.wte.weight.device
    batch = split.batch(indices, indices, device)
    texts, lengths = [explanation(split, i) for i in indices], batch['prompt_lengths'].tolist()
    T = max(n + len(text) for n, text in zip(lengths, texts, strict=True))
    tokens, targets = (torch.full((len(indices), T), value) for value in (0, -1))
    for row, (prompt, n, text) in enumerate(zip(batch['prompts'].tolist(), lengths, texts, strict=True)):
        tokens[row, :n + len(text)] = torch.tensor(prompt[:n] + text)
        targets[row, n - 1:n + len(text) - 1] = torch.tensor(text)
    vectors = batch['activation'] if seen is None else split.batch(seen, seen, device)['activation']
    hidden = model(tokens.to(device), edit=model.injection.edit(batch['slots'], vectors))
    targets = targets.to(device)
    return cross_entropy(model, hidden[targets >= 0], targets[targets >= 0])


def train_explainer(model, activations, held_out, explanation, max_iters=200, learning_rate=5e-4, seed=1):
    """
    A start for the actor, in place: from a prompt with an activation in it to a text. activations, held_out:
    nla.Activations; explanation(split, i): token ids that the actor is to write of activation i, the end
    token included. Returns quality: held-out loss in nats per token, and with_another, the same with
    activations dealt to the wrong texts: no more than the loss would mean that the actor does not look at
    them.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss_of_batch():
        indices = torch.randint(len(activations), (64,), generator=generator).tolist()
        return explainer_loss(model, activations, indices, explanation)

    supervised_loop('actor', model, loss_of_batch, max_iters, learning_rate)
    model.eval()
    rows = list(range(min(512, len(held_out))))
    others = rows[len(rows) // 2:] + rows[:len(rows) // 2]
    with torch.no_grad():
        return {'loss': explainer_loss(model, held_out, rows, explanation).item(),
                'with_another': explainer_loss(model, held_out, rows, explanation, others).item()}


def train_critic(critic, activations, held_out, length, max_iters=100, learning_rate=5e-4, seed=1):
    """
    A start for the critic, in place: from the texts that come with the activations, cut to `length` tokens,
    to the activations. Returns quality: held-out FVE.
    """
    generator = torch.Generator().manual_seed(seed)
    device = critic.mean.device

    def predict(split, indices):
        texts = [split.text(i, length) for i in indices]
        tokens = torch.zeros(len(indices), length, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens[row, :len(text)] = torch.tensor(text)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        h = torch.from_numpy(np.array(split.vectors[np.asarray(indices)], dtype=np.float32)).to(device)
        return critic(tokens.to(device), lengths), h

    def loss_of_batch():
        indices = torch.randint(len(activations), (64,), generator=generator).tolist()
        prediction, h = predict(activations, indices)
        return F.mse_loss(prediction, critic.target(h))

    supervised_loop('critic', critic, loss_of_batch, max_iters, learning_rate, weight_decay=0.0)
    critic.eval()
    with torch.no_grad():
        return {'fve': fve(*critic.standard(*predict(held_out, list(range(min(512, len(held_out)))))))}
