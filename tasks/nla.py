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

import nla
from data.activations.prepare import load_activations, load_documents, read_vectors, write_activations
from data.prompts import draw_indices, load_prompts
from data.text import dataset_name, random_windows
from formats.tokenizer import CharTokenizer
from grpo import sum_gradients
from kernels import fused_logps
from model import GPT
from runtime import ranks
from runtime.checkpoint import entry, load_checkpoint, save_checkpoint, tokenizer_of
from runtime.config import Count, Natural, NonNegative, Positive
from runtime.console import over, say
from runtime.ranks import all_reduce
from runtime.shard import drop_collected, optimizer_parts, part_of, shard_model, whole_norm
from tasks.show import given, show_ranked
from tasks.supervised import cross_entropy, own_tokenizer, save_model, small_config, supervised_loop
from tasks.task import Task, chart, longest_line

# what actor and critic were made with, and cannot be changed afterwards
FIXED = ('injection_mode', 'injection_layers', 'injection_scale', 'injection_token', 'critic_pooling',
         'critic_head', 'critic_target_norm', 'text_reversed')
MEANING = {
    'fve': 'sampled text',
    'fve_greedy': 'greedy text',
    'fve_frozen_actor': '  this is the control: the actor rested',
    'fve_shuffled': "another activation's text",
    'fve_no_injection': 'nothing injected',
    'fve_mean_injection': 'the mean activation injected',
    'fve_random_injection': 'a random vector of the same length injected',
    'fve_true_text': 'the true text, through the same critic'}


def room_for_text(max_new_tokens, ends):
    """The most tokens of a text, beside its end token where the tokenizer has one (`ends`)."""
    if max_new_tokens <= ends:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: an explanation needs room for one token and "
                         "its end")
    return max_new_tokens - ends


def check_made_with(what, settings, remedy):
    """Raises ValueError where one of settings, {name: (before, now)}, has changed."""
    for name, (before, now) in settings.items():
        if before != now:
            raise ValueError(f"{what} were made with {name} = {before!r} and it is {now!r} now: {remedy}, or "
                             "one that does not exist yet")


class NLA(Task):
    """An actor puts activations into words, a critic rebuilds them from the words."""
    headline = 'eval/fve'
    charts = {
        'Evaluation': [
            chart('variance explained',
                  'FVE on documents nobody trained on; 0 is the mean activation, whatever the text.',
                  'eval/fve', 'eval/fve_greedy', 'eval/fve_true_text', 'eval/fve_frozen_actor'),
            chart('FVE, controls',
                  'Texts dealt to other activations, nothing injected, the mean, noise: all should stay low.',
                  'eval/fve_shuffled', 'eval/fve_no_injection', 'eval/fve_mean_injection',
                  'eval/fve_random_injection'),
        ],
        'Autoencoder': [
            chart('variance explained', 'FVE on the training batch, before the critic’s step.', 'fve'),
            chart('cosine', 'Between what the critic rebuilt and the activation.', 'cosine'),
            chart('critic', 'Its loss.', 'critic_loss'),
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
            layers, source = cfg.injection_layers, cfg.generator_checkpoint
            if not layers or not all(isinstance(layer, int) for layer in layers):
                raise ValueError(f"injection_layers is {layers}: it takes numbers of blocks, 0 for the "
                                 "embeddings")
            if cfg.rollout_batch_size and cfg.shard:
                raise ValueError("rollout_batch_size lets ranks call a sharded critic out of step: leave it "
                                 "or shard")
            source = source.format(dataset=dataset_name(cfg.dataset))
            if not source.endswith('.pt') or os.path.exists(source):
                return
            room_for_text(cfg.max_new_tokens, ends=True)  # the model will be trained, at this size
            if max(*layers, cfg.activation_layer or 0) > cfg.n_layer:
                raise ValueError(f"injection_layers is {layers} and activation_layer {cfg.activation_layer}: "
                                 f"the model to be trained has {cfg.n_layer} blocks")
            if max(cfg.activation_context, cfg.max_new_tokens + 1) > cfg.block_size:
                raise ValueError(f"activation_context {cfg.activation_context} and max_new_tokens "
                                 f"{cfg.max_new_tokens} with a prompt must fit block_size {cfg.block_size}")

    def __init__(self, cfg, device):
        super().__init__(cfg, device)
        paths = cfg.generator_checkpoint, cfg.nla_checkpoint, cfg.activations
        paths = [path.format(dataset=dataset_name(cfg.dataset)) for path in paths]
        self.source_path, self.generator_path, self.activations_path = paths
        ranks.once(self.make_source)
        self.tokenizer = tokenizer_of(self.source_path)
        self.marker_id = nla.marker_of(self.tokenizer, cfg.injection_token)
        self.ends = self.tokenizer.eos_id is not None
        self.text_length = room_for_text(cfg.max_new_tokens, self.ends)
        if os.path.splitext(self.activations_path)[1]:
            self.train, self.held_out = self.given_activations()
        else:
            ranks.once(self.make_activations)
            self.train, self.held_out = self.own_activations()
        settings = json.loads(json.dumps({key: getattr(cfg, key) for key in FIXED}))
        self.about = {'layer': self.layer, 'source': self.source_path, 'context': cfg.activation_context,
                      'prompt': self.train.prompts[0], 'max_new_tokens': cfg.max_new_tokens,
                      'settings': settings}
        ranks.once(self.make_start)
        saved = load_checkpoint(self.generator_path, 'nla')
        self.check_start(saved)
        self.about, self.critic = saved['nla'] | self.about, self.placed(nla.build_critic(saved))
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
        ids = {}
        for split, texts in documents.items():
            ended = [tokenizer.encode(text) + [tokenizer.eos_id] for text in texts]
            ids[split] = np.concatenate(ended, dtype=np.int32)
        torch.manual_seed(cfg.seed)
        model = GPT(small_config(tokenizer, cfg)).to(self.device)
        generator = torch.Generator().manual_seed(cfg.seed)

        def loss_on(split, n, generator):
            tokens = random_windows(ids[split], n, cfg.block_size + 1, generator).to(self.device)
            return cross_entropy(model, model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

        supervised_loop('language model', model, lambda: loss_on('train', 32, generator), cfg.pretrain_iters,
                        1e-3)
        model.eval()
        with torch.no_grad():
            quality = {'loss': loss_on('val', 256, torch.Generator().manual_seed(0)).item()}
        save_model(self.source_path, 'generator', model, model.config, tokenizer, quality)

    def make_activations(self):
        if not os.path.exists(self.activations_path):
            model = GPT.from_pretrained(self.source_path).to(self.device).eval()
            documents = load_documents(self.cfg.dataset, self.cfg.column_mapping)
            write_activations(model, self.tokenizer, documents, self.activations_path, self.cfg,
                              self.source_path)

    def own_activations(self):
        """Those of a folder that was made here, to train on and held out."""
        cfg, path = self.cfg, self.activations_path
        header, splits = load_activations(path)
        self.layer = header['layer'] if cfg.activation_layer is None else cfg.activation_layer
        check_made_with(f"the activations at {path}", {
            'generator_checkpoint': (header['source'], self.source_path),
            'vocab_size': (header['vocab_size'], self.tokenizer.vocab_size),
            'activation_layer': (header['layer'], self.layer),
            'activation_context': (header['context'], cfg.activation_context)}, "name another folder")
        prompt = self.encode_prompt(cfg.injection_prompt)
        for split in splits.values():
            split.prompts = [prompt] * len(split)
            split.slots = nla.find_markers(split.prompts, self.marker_id)
        return splits['train'], splits['val']

    def encode_prompt(self, prompt):
        cfg = self.cfg
        return nla.encode_around(self.tokenizer, prompt, cfg.injection_token, self.marker_id,
                                 cfg.chat_template)

    def given_activations(self):
        """Those of a file, each with a prompt of its own, to train on and held out."""
        cfg, path = self.cfg, self.activations_path
        if not cfg.train_prompts:
            raise ValueError(f"the activations in {path} want their prompts: set train_prompts to a .jsonl "
                             f"with one for each, {cfg.injection_token} in it")
        vectors, records = read_vectors(path), load_prompts(cfg.train_prompts, cfg.column_mapping)
        if len(vectors) != len(records):
            raise ValueError(f"{path} has {len(vectors)} activations and {cfg.train_prompts} {len(records)} "
                             "prompts: there must be one for each")
        prompts, texts = [self.encode_prompt(record['prompt']) for record in records], None
        for i, ids in enumerate(prompts):
            if cfg.max_prompt_length is not None and len(ids) > cfg.max_prompt_length:
                raise ValueError(f"prompt {i} has {len(ids)} tokens and max_prompt_length is "
                                 f"{cfg.max_prompt_length}: shorten it or raise the limit")
        slots = nla.find_markers(prompts, self.marker_id)
        if all('answer' in record for record in records):
            texts = [self.tokenizer.encode(str(record['answer'])) for record in records]
        self.layer = cfg.activation_layer
        if self.layer is None:
            self.layer = round(2 / 3 * GPT.from_pretrained(self.source_path).config.n_layer)
        splits = []
        for rows in self.split_rows(records):
            own_prompts, own_texts = [prompts[i] for i in rows], texts and [texts[i] for i in rows]
            splits.append(nla.Activations(vectors[rows], None, None, own_prompts, slots[rows], own_texts))
        return splits

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

    def make_start(self):
        """Actor and critic from the source model, taught on texts that come with the activations, if any."""
        cfg, path = self.cfg, self.generator_path
        if os.path.exists(path):
            return
        say(f"there is no actor and critic at {path}: making them from {self.source_path}")
        torch.manual_seed(cfg.seed)
        mean, scale = nla.standardiser(self.train.vectors)
        actor = GPT.from_pretrained(self.source_path)
        room = max(map(len, self.train.prompts + self.held_out.prompts)) + cfg.max_new_tokens
        if room > actor.config.block_size:
            raise ValueError(f"the longest prompt and max_new_tokens {cfg.max_new_tokens} make {room} tokens, "
                             f"and {self.source_path} reads {actor.config.block_size}: lower max_new_tokens")
        critic = nla.Critic(copy.deepcopy(nla.truncate(actor, self.layer)), mean, scale, cfg.critic_pooling,
                            cfg.critic_head, cfg.critic_target_norm).to(self.device)
        actor.injection = nla.Injection(actor, len(mean), cfg.injection_mode, cfg.injection_layers,
                                        cfg.injection_scale)
        actor.to(self.device)
        quality = {}
        if self.train.text(0, 1) is not None:
            quality = self.teach_actor(actor) | self.teach_critic(critic)
        own = own_tokenizer(self.tokenizer)
        if not own:
            self.tokenizer.save(os.path.join(os.path.dirname(path), 'tokenizer'))
        about = self.about | {'injection': actor.injection.settings, 'critic': critic.settings}
        save(path, actor, {'critic': critic.state_dict(), 'nla': about, **own}, quality)

    def teach_actor(self, actor):
        """
        From a prompt with an activation in it to its text, in place. Returns quality: held-out loss in nats
        per token, and with_another, the same with activations dealt to the wrong texts: no more than the loss
        would mean that the actor does not look at them.
        """
        cfg, generator = self.cfg, torch.Generator().manual_seed(self.cfg.seed)

        def loss_of_batch():
            indices = torch.randint(len(self.train), (64,), generator=generator).tolist()
            return self.actor_loss(actor, self.train, indices, indices)

        supervised_loop('actor', actor, loss_of_batch, cfg.warm_start_iters, cfg.warm_start_learning_rate)
        actor.eval()
        rows = list(range(min(512, len(self.held_out))))
        others = rows[len(rows) // 2:] + rows[:len(rows) // 2]
        with torch.no_grad():
            return {'loss': self.actor_loss(actor, self.held_out, rows, rows).item(),
                    'with_another': self.actor_loss(actor, self.held_out, rows, others).item()}

    def actor_loss(self, actor, split, indices, seen):
        """Loss in nats per token of writing the texts of some activations where others are seen."""
        end = [self.tokenizer.eos_id] * self.ends
        prompts, texts = [split.prompts[i] for i in indices], []
        for i in indices:
            text = split.text(i, self.text_length)
            texts.append((text[::-1] if self.cfg.text_reversed else text) + end)
        T = max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
        tokens, targets = [], []
        for prompt, text in zip(prompts, texts, strict=True):
            padding = T - len(prompt) - len(text)
            tokens.append(prompt + text + [0] * padding)
            targets.append([-1] * (len(prompt) - 1) + text + [-1] * (padding + 1))
        tokens, targets = torch.tensor((tokens, targets), device=self.device)
        shown = split.batch(seen, seen, self.device)['activation']
        hidden = actor(tokens, edit=actor.injection.edit(split.slots[indices].to(self.device), shown))
        return cross_entropy(actor, hidden[targets >= 0], targets[targets >= 0])

    def teach_critic(self, critic):
        """From the texts that come with activations to these, in place. Returns quality: held-out FVE."""
        cfg, generator = self.cfg, torch.Generator().manual_seed(self.cfg.seed)

        def predict(split, indices):
            return critic(*self.true_texts(split, indices)), nla.fp32(split.vectors[indices]).to(self.device)

        def loss_of_batch():
            indices = torch.randint(len(self.train), (64,), generator=generator).tolist()
            prediction, h = predict(self.train, indices)
            return F.mse_loss(prediction, critic.target(h))

        supervised_loop('critic', critic, loss_of_batch, cfg.critic_start_iters, cfg.warm_start_learning_rate,
                        weight_decay=0.0)
        critic.eval()
        with torch.no_grad():
            rows = list(range(min(512, len(self.held_out))))
            return {'fve': nla.fve(*critic.standard(*predict(self.held_out, rows)))}

    def true_texts(self, split, indices):
        """The texts that come with activations, (N, text_length), and their lengths (N,)."""
        texts = [split.text(i, self.text_length) for i in indices]
        rows = [text + [0] * (self.text_length - len(text)) for text in texts]
        return torch.tensor(rows, device=self.device), torch.tensor([*map(len, texts)], device=self.device)

    def check_start(self, saved):
        """Raises ValueError unless actor and critic were made for these activations and settings."""
        path = self.generator_path
        for key in ('nla', 'model', 'model_config', 'critic'):
            entry(saved, key, dict, path)
        if 'chars' in saved and hasattr(self.tokenizer, 'chars'):
            self.tokenizer.check_same(saved['chars'], path)
        self.tokenizer.check_fits(saved['model_config']['vocab_size'], path)
        before = saved['nla']['settings']
        check_made_with(f"the actor and critic at {path}", {
            'activations of width': (len(saved['critic']['mean']), self.train.vectors.shape[1]),
            'activation_layer': (saved['nla']['layer'], self.layer),
            **{key: (before[key], now) for key, now in self.about['settings'].items()}},
            "name another nla_checkpoint")

    def placed(self, model):
        """A model in fp32 on its device, or spread over all ranks: then all go through each of its forwards."""
        if self.cfg.shard:
            shard_model(model, torch.float32, self.device)
        return model.to(self.device).eval()

    def load_model(self):
        saved = load_checkpoint(self.generator_path, 'nla')
        model = nla.build_actor(saved, self.generator_path).to(self.home)
        self.start = copy.deepcopy(model.injection).requires_grad_(False).to(self.device)
        return model

    def after_lora(self, model):
        model.injection.requires_grad_(True)

    def policy(self, model):
        cfg = self.cfg
        return nla.NLAPolicy(model, self.tokenizer, cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p,
                             cfg.compile, start=self.start)

    def batch(self, it, attempt=0):
        seed, n = self.cfg.seed + 10 ** 6 * attempt, self.cfg.batch_size
        indices, seed = draw_indices(len(self.train), n, it, seed), seed * 10 ** 5 + it
        return self.train.batch(indices, [(seed * 10 ** 9 + i) % 2 ** 62 for i in range(n)], self.device)

    # -----------------------------------------------------------------------------
    # the reward, and the critic's own learning

    def as_read(self, rollout):
        return nla.as_read(rollout, self.ends, self.cfg.text_reversed)

    @torch.no_grad()
    def predict(self, texts, lengths):
        size = self.cfg.eval_batch_size
        parts = zip(texts.split(size), lengths.split(size), strict=True)
        predictions = torch.cat([self.critic(*part) for part in parts])
        drop_collected(self.critic)
        return predictions

    def reconstruction(self, policy, rollout):
        """How well the critic rebuilds the activation from each text, (P, G)."""
        texts, lengths, h, whole = self.as_read(rollout)
        prediction, target = self.predict(texts, lengths), self.critic.target(h)
        mse = (prediction - target).square().mean(dim=1)
        reward = {'mse': -mse, 'log_mse': -mse.clamp(min=1e-6).log(),
                  'cosine': torch.cosine_similarity(prediction, target)}[self.cfg.nla_reward]
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
        parts = [column.split(size) for column in (texts, lengths, h, weights)]
        self.critic.train()
        for epoch in range(self.cfg.critic_train_epochs):
            self.critic_optimizer.zero_grad(set_to_none=True)
            shares = torch.zeros(3, device=h.device)  # loss, cosine, error
            for part in zip(*parts, strict=True):
                shares += self.critic_backward(*part)
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
        """Backward of the weighted error on some texts. Returns shares (3,) of loss, cosine, FVE's error."""
        prediction = self.critic(texts, lengths)
        loss = weights @ (prediction - self.critic.target(h)).square().mean(dim=1)
        loss.backward()
        with torch.no_grad():
            centred, truth = self.critic.standard(prediction, h)
            cosine = weights @ torch.cosine_similarity(centred, truth)
            return torch.stack((loss, cosine, weights @ (centred - truth).square().mean(dim=1)))

    # -----------------------------------------------------------------------------
    # evaluation

    def write(self, policy, seen, greedy=False):
        """A text to each held-out activation where `seen` (n, A) or None is injected, as as_read returns them."""
        parts = []
        for start in over('evaluating', range(0, len(self.held_out), self.cfg.eval_batch_size)):
            indices = list(range(start, min(start + self.cfg.eval_batch_size, len(self.held_out))))
            batch = self.held_out.batch(indices, indices, self.device)
            shown = batch | {'activation': None if seen is None else seen[indices, None].to(self.device)}
            rollout = policy.greedy(shown) if greedy else policy.sample(shown, 1)
            rollout.batch = batch  # what the text should have been about
            texts, *columns = self.as_read(rollout)
            parts.append((F.pad(texts, (0, self.cfg.max_new_tokens - texts.shape[1])), *columns))
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def fve_of(self, texts, lengths, h, *_):
        return nla.fve(*self.critic.standard(self.predict(texts, lengths), h))

    def evaluate(self, policy):
        """
        Held-out activations, one sampled and one greedy text each, with the same noise each time, and what to
        compare with: texts dealt to the wrong activations, no injection, the mean activation, a random vector
        as far from it as the own; the critic on the true text. text_nll is the source model's.
        """
        own, mean = nla.fp32(self.held_out.vectors), self.critic.mean.cpu()
        n = len(own)
        texts, lengths, h, whole = self.write(policy, own)
        prediction, target = self.critic.standard(self.predict(texts, lengths), h)
        noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
        noise *= (own - mean).norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        m = {'fve': nla.fve(prediction, target), 'fve_greedy': self.fve_of(*self.write(policy, own, True)),
             'fve_shuffled': nla.fve(prediction.roll(n // 2, 0), target),
             'cosine': torch.cosine_similarity(prediction, target).mean().item(),
             'fve_no_injection': self.fve_of(*self.write(policy, None)),
             'fve_mean_injection': self.fve_of(*self.write(policy, mean.expand(n, -1))),
             'fve_random_injection': self.fve_of(*self.write(policy, noise + mean))}
        if self.cfg.freeze_actor:
            m['fve_frozen_actor'] = m['fve']
        shown = [row[:k] for row, k in zip(texts.tolist(), lengths.tolist(), strict=True)]
        m |= {'distinct_texts': len(set(map(tuple, shown))) / n, 'frac_whole': whole.float().mean().item(),
              'text_nll': self.nll(texts, lengths)}
        if self.held_out.text(0, 1) is not None:
            m['fve_true_text'] = self.fve_of(*self.true_texts(self.held_out, range(n)), h)
            true_ends = [self.held_out.text(i, self.text_length)[-1:] for i in range(n)]
            m['last_token'] = sum(a[-1:] == b for a, b in zip(shown, true_ends, strict=True)) / n
        for i in range(min(self.cfg.eval_show, n)):
            about = self.held_out.text(i, 10 ** 6) or self.held_out.prompts[i]
            say(f"  {self.tokenizer.decode(about)!r}\n    -> {self.tokenizer.decode(shown[i])!r}, FVE "
                f"{nla.fve(prediction[i], target[i]):.3f}")
        return {f'eval/{name}': value for name, value in m.items()}

    @torch.no_grad()
    def nll(self, texts, lengths):
        """Nats per token, from the second on, that the texts cost the source model."""
        total, count, size = 0.0, 0, self.cfg.eval_batch_size
        if texts.shape[1] < 2:
            return 0.0
        places = torch.arange(texts.shape[1], device=texts.device)
        for rows, n in zip(texts.split(size), lengths[:, None].split(size), strict=True):
            rows, scored = rows.masked_fill(places >= n, 0), places[1:] < n
            hidden = self.source(rows[:, :-1])[scored]
            logps = fused_logps(hidden, self.source.lm_head.weight, rows[:, 1:][scored])[0]
            total, count = total - logps.sum().item(), count + len(logps)
        drop_collected(self.source)
        return total / max(1, count)

    def verdict(self, metrics):
        """The last evaluation as a table, with what PCA of the training activations carries in k numbers."""
        lines = ["held-out fraction of variance explained (FVE) by"]
        for key, meaning in MEANING.items():
            if f'eval/{key}' in metrics:
                lines.append(f"  {metrics['eval/' + key]:6.3f}  {meaning}")
        lines.append("   0.000  the mean activation, whatever the text")
        mean = self.critic.mean.cpu()
        train, held_out = nla.fp32(self.train.vectors[:20000]) - mean, nla.fp32(self.held_out.vectors) - mean
        directions, total = torch.linalg.eigh(train.T @ train)[1].flip(1), held_out.square().sum().item()
        for k in (1, 4, 8, 16, 32, 64):
            if k < held_out.shape[1]:
                carried = (held_out @ directions[:, :k]).square().sum().item()
                lines.append(f"  {carried / total:6.3f}  PCA, {k} number{'s' * (k > 1)}")
        return '\n'.join(lines)

    def describe(self, metrics):
        m = {name.removeprefix('eval/'): value for name, value in metrics.items()}
        line = (f"held-out FVE sampled {m['fve']:.4f}, greedy {m['fve_greedy']:.4f}, shuffled "
                f"{m['fve_shuffled']:.4f}, cosine {m['cosine']:.3f}, source model's NLL of the texts "
                f"{m['text_nll']:.3f}, {100 * m['distinct_texts']:.0f} % distinct")
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
        return {'critic': self.critic.state_dict(), 'critic_optimizer': self.critic_optimizer.state_dict(),
                'nla': self.about, **own_tokenizer(self.tokenizer)}

    def restore(self, checkpoint):
        own = self.critic.state_dict()
        self.critic.load_state_dict({name: part_of(checkpoint['critic'][name], p) for name, p in own.items()})
        state = optimizer_parts(checkpoint['critic_optimizer'], list(self.critic.parameters()))
        self.critic_optimizer.load_state_dict(state)
        for group in self.critic_optimizer.param_groups:
            group['lr'] = self.cfg.critic_learning_rate

    def export(self, model, saved, out_dir, metrics):
        """Actor and critic in nla.pt, a start for others."""
        path, names = os.path.join(out_dir, 'nla.pt'), ('fve', 'fve_greedy')
        quality = {name: metrics[f'eval/{name}'] for name in names if f'eval/{name}' in metrics}
        save(path, model, saved, quality)
        say(f"actor and critic saved in {path}")

    @classmethod
    @torch.no_grad()
    def show(cls, saved, model, tokenizer, cfg):
        """What the actor says of an activation, a row of a file or that at a text's last token, best first."""
        about, device = saved['nla'], cfg.device
        if cfg.activations:
            vectors = read_vectors(cfg.activations)
        else:  # as the actor knows them: of the same model and layer, with as many tokens before it
            ids = tokenizer.encode(given('text', cfg.text))[-about['context']:]
            source = nla.truncate(GPT.from_pretrained(about['source']).to(device).eval(), about['layer'])
            vectors = source(torch.tensor([ids], device=device))[:, -1].float().cpu().numpy()
        actor = nla.build_actor(saved, cfg.checkpoint).to(device).eval()
        critic = nla.build_critic(saved).to(device).eval()
        if cfg.row >= len(vectors):
            raise ValueError(f"row is {cfg.row} and {cfg.activations} has {len(vectors)} activations")
        if vectors.shape[1] != len(critic.mean):
            raise ValueError(f"the activation has width {vectors.shape[1]} and this NLA explains those of "
                             f"width {len(critic.mean)}: it belongs to another model")
        marker_id = nla.marker_of(tokenizer, about['settings']['injection_token'])
        slots = nla.find_markers([about['prompt']], marker_id)
        one = nla.Activations(vectors[cfg.row:cfg.row + 1], prompts=[about['prompt']], slots=slots)
        batch = one.batch([0], [cfg.seed], device)
        policy = nla.NLAPolicy(actor, tokenizer, about['max_new_tokens'], cfg.temperature or 1.0)
        rollouts, rows = [(policy.greedy(batch), '  (greedy)')], []
        if cfg.temperature > 0:
            rollouts.append((policy.sample(batch, cfg.num_samples or 8), ''))
        for rollout, note in rollouts:
            reading = nla.as_read(rollout, tokenizer.eos_id is not None, about['settings']['text_reversed'])
            texts, lengths, h, whole = reading
            prediction, target = critic.standard(critic(texts, lengths), h)
            for i, n in enumerate(lengths.tolist()):
                text = tokenizer.decode(texts[i, :n].tolist())
                rows.append((nla.fve(prediction[i], target[i]), text, note + ' ...' * (not whole[i])))
        rows.sort(reverse=True)
        show_ranked(['FVE', 'explanation'], [([f'{value:.3f}'], text, note) for value, text, note in rows])

    def try_out(self):
        text = self.held_out.text(0, 10 ** 6)
        if text is None:
            return 'nla.pt', [f'--activations={self.activations_path}', '--row=0']
        return 'nla.pt', [f'--text={longest_line(self.tokenizer.decode(text))}']


def save(path, actor, saved, quality):
    """Actor and critic as a start; saved: all but the actor's weights."""
    weights = {'model': actor.state_dict(), 'model_config': vars(actor.config)}
    save_checkpoint(path, {'kind': 'nla', **weights, 'quality': quality, **saved})
