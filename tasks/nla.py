"""
The job of a Natural Language Autoencoder, see nla.py: minus the critic's error is the reward, and the critic
learns beside the policy. A fraction of variance explained (FVE) comes with controls: alone it says little.
Shapes: P prompts · G completions · N = P G texts · R tokens · A width of an activation.
"""
import copy
import json
import os
import random
from functools import cached_property, partial
from typing import Annotated, Literal

import numpy as np
import torch
from torch.nn import functional as F

import nla
from data.activations import (
    activations_recipe,
    layer_of,
    load_activations,
    load_documents,
    read_vectors,
    write_activations,
)
from data.prompts import draw_indices, goes_through_template, load_prompts
from data.text import dataset_name, random_windows
from formats.tokenizer import CharTokenizer
from grpo import sum_gradients
from kernels import fused_logps
from model import GPT
from runtime import ranks
from runtime.checkpoint import entry, load_checkpoint, save_checkpoint, tokenizer_of
from runtime.config import Count, Natural, NonNegative, Positive
from runtime.console import over, say
from runtime.lora import adapted_start, merge_lora
from runtime.made import check_made, content_of, content_of_path, is_due, made, recipe_for
from runtime.masters import AdamW
from runtime.shard import drop_collected, optimizer_parts, part_of, shard_model, whole_norm
from tasks.show import given, show_ranked
from tasks.supervised import (
    answer_loss,
    cross_entropy,
    own_tokenizer,
    save_model,
    small_config,
    supervised_loop,
)
from tasks.task import Task, longest_line, path_of

# what actor and critic were made with, and cannot be changed afterwards
FIXED = ('injection_mode', 'injection_layers', 'injection_scale', 'injection_token', 'critic_pooling',
         'critic_head', 'critic_target_norm', 'text_reversed')
MEANING = {
    'fve': 'sampled text',
    'fve_greedy': 'greedy text',
    'fve_frozen_actor': '  this is the control: the actor was frozen',
    'fve_shuffled': "another activation's text",
    'fve_no_injection': 'nothing injected',
    'fve_mean_injection': 'the mean activation injected',
    'fve_random_injection': 'a random vector of the same length injected',
    'fve_true_text': 'the true text, through the same critic'}



def check_size(cfg, setting, least, needed_by):
    if getattr(cfg, setting) < least:
        raise ValueError(f"{setting} is {getattr(cfg, setting)}: {needed_by} must fit, at least {least}")


def check_made_with(what, before, **now):
    """Raises ValueError where a setting is another now than before, {name: value}."""
    for name, value in now.items():
        if before[name] != value:
            raise ValueError(f"{what} was made with {name} = {before[name]!r} and it is {value!r} now: name "
                             "another, or one that does not exist yet")


class NLA(Task):
    """An actor puts activations into words, a critic rebuilds them from the words."""
    headline = 'eval/fve'
    exported = ''
    sharded_beside = True
    uses = ('train_prompts', 'column_mapping', 'chat_template', 'chat_template_kwargs', 'add_special_tokens',
            'max_prompt_length', 'max_new_tokens', 'eval_batch_size')
    refuses = ('overlong_penalty',)

    class Settings:
        # activations
        activations = 'out-{dataset}/activations'  # a folder, made if missing; or a file, with train_prompts
        activation_layer: Natural | None = None  # after this block; None: two thirds up
        activations_n: Count = 20000        # how many to train on
        activation_context: Count = 32      # tokens that the source model sees, up to the place
        injection_mode: Literal['replace', 'add', 'project'] = 'project'  # project: by a learned map
        injection_layers = (0,)             # 0: the marker's embedding; i: what block i puts out there
        injection_scale: Positive | Literal['raw', 'residual'] | None = None  # a length; None: an embedding's
        injection_token = '<INJECT>'        # in a prompt, where the vector goes; made if the model lacks it
        injection_prompt: str | None = None  # that of activations that come without one; None: the token
        text_reversed = False               # True: texts are written latest word first
        # the start of actor and critic
        nla_checkpoint = 'out-{dataset}/nla.pt'  # taught first if there is no such file
        warm_start_learning_rate: Positive = 5e-4
        warm_start_iters: Natural = 200     # supervised steps of the actor
        critic_start_iters: Natural = 100   # and of the critic
        # rewards, and the critic
        nla_reward: Literal['mse', 'log_mse', 'cosine'] = 'mse'  # minus the error, or minus its logarithm
        truncated_reward: Annotated[float, '(-inf, inf)'] = -2.0  # the most for a text that was cut off
        critic_pooling: Literal['last', 'mean', 'max'] = 'last'
        critic_head: Literal['linear', 'mlp'] = 'linear'  # both start as the identity
        critic_target_norm: Literal['standard', 'unit'] = 'standard'
        critic_learning_rate: NonNegative = 3e-4  # constant
        critic_train_epochs: Count = 1      # its steps on the completions of an iteration
        critic_warmup_iters: Natural = 0    # the actor rests as long
        freeze_actor = False                # True: it rests all along; the control

        @staticmethod
        def check(cfg):
            layers = cfg.injection_layers
            if not layers or not all(isinstance(layer, int) for layer in layers):
                raise ValueError(f"injection_layers is {layers}: it takes blocks, 0 for the embeddings")
            if cfg.sampling_batch_size and cfg.shard:
                raise ValueError("sampling_batch_size calls a sharded critic out of step: leave it or shard")

    def __init__(self, cfg, device):
        super().__init__(cfg, device)
        keys, name = ('generator_checkpoint', 'nla_checkpoint', 'activations'), dataset_name(cfg.dataset)
        paths = [path_of(key, vars(cfg), name) for key in keys]
        self.source_path, self.generator_path, self.activations_path = paths
        is_file = bool(os.path.splitext(self.activations_path)[1])
        given = self.read_given() if is_file else None  # refused, if at all, before a source is trained
        self.source = self.content = None
        ranks.once(self.make_missing_source)
        self.source = GPT.from_pretrained(self.source_path).requires_grad_(False)
        self.tokenizer = tokenizer_of(self.source_path)
        self.source_ids = self.tokenizer.vocab_size  # without a marker that is made
        self.marker_id = nla.marker_of(self.tokenizer, cfg.injection_token)
        self.ends = self.tokenizer.eos_id is not None
        check_size(cfg, 'max_new_tokens', 1 + self.ends, "a token and its text's end")
        self.text_length = cfg.max_new_tokens - self.ends
        if is_file:
            self.train, self.held_out = self.given_activations(*given)
        else:
            ranks.once(partial(made, self.activations_path, self.activations_recipe, self.make_activations,
                               self.remake))
            self.train, self.held_out = self.own_activations()
        self.content = content_of(content_of_path(self.activations_path), given and given[1])
        settings = json.loads(json.dumps({key: getattr(cfg, key) for key in FIXED}))
        self.about = {'layer': self.layer, 'source': self.source_path, 'context': self.context,
                      'prompt': self.train.prompts[0], 'max_new_tokens': cfg.max_new_tokens,
                      'settings': settings}
        ranks.once(partial(made, self.generator_path, self.start_recipe, self.make_start, self.remake))
        saved = load_checkpoint(self.generator_path, 'nla')
        self.check_start(saved)
        self.about, self.critic = saved['nla'] | self.about, self.placed(nla.build_critic(saved))
        self.quality = saved['quality']
        self.critic_optimizer = AdamW(self.critic.parameters(), lr=cfg.critic_learning_rate,
                                      betas=(0.9, 0.95), weight_decay=0.0)
        self.rewards = [('reconstruction', self.reconstruction, 1.0)]
        self.source = self.placed(self.source)
        quality = ', '.join(f'{key} {value:.3f}' for key, value in saved['quality'].items())
        say(f"{len(self.train):,} activations to train on, {len(self.held_out):,} held out; actor and critic "
            f"start from {self.generator_path}: {quality}")

    def make_missing_source(self):
        cfg, path = self.cfg, self.source_path
        if not path.endswith('.pt'):
            return
        if is_due(path, self.remake):  # what cannot be used later is refused before minutes are spent
            tokens = max(cfg.activation_context, cfg.max_new_tokens + 1)
            layers = max(*cfg.injection_layers, cfg.activation_layer or 0)
            check_size(cfg, 'max_new_tokens', 2, "a token and its text's end")
            check_size(cfg, 'block_size', tokens, 'activation_context, and max_new_tokens after a prompt')
            check_size(cfg, 'n_layer', layers, 'injection_layers and activation_layer')
            check_made(self.generator_path, self.start_recipe, self.remake)
            if os.path.isdir(self.activations_path):
                check_made(self.activations_path, self.activations_recipe, self.remake)
        made(path, self.source_recipe, self.make_source, self.remake)

    @cached_property
    def documents(self):
        return load_documents(self.cfg.dataset, self.cfg.column_mapping)

    def source_recipe(self):
        return recipe_for('a language model', 1, self.cfg.dataset, self.cfg, 'block_size', 'n_layer',
                          'n_head', 'n_embd', 'pretrain_iters', 'seed', data=content_of(self.documents))

    def make_source(self, path, recipe):
        cfg, documents = self.cfg, self.documents
        tokenizer = CharTokenizer(sorted(set(''.join(documents['train'] + documents['val']))), end=True)
        ids = {}
        for split, texts in documents.items():
            ended = [tokenizer.encode(text) + [tokenizer.eos_id] for text in texts]
            ids[split] = np.concatenate(ended, dtype=np.int32)
        torch.manual_seed(cfg.seed)
        model = GPT(small_config(tokenizer, cfg)).to(self.device)
        draws = torch.Generator().manual_seed(cfg.seed)

        def loss(split, n, generator):
            tokens = random_windows(ids[split], n, cfg.block_size + 1, generator).to(self.device)
            return cross_entropy(model, model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

        supervised_loop('language model', model, lambda: loss('train', 32, draws), cfg.pretrain_iters, 1e-3)
        with torch.no_grad():
            quality = {'loss': loss('val', 256, torch.Generator().manual_seed(0)).item()}
        save_model(path, 'generator', model, model.config, tokenizer, quality, recipe)

    def activations_recipe(self):
        n_layer = self.source.config.n_layer if self.source else self.cfg.n_layer
        return activations_recipe(self.cfg, self.documents, self.source_path, n_layer)

    def make_activations(self, path, recipe):
        model = GPT.from_pretrained(self.source_path).to(self.device).eval()
        tokenizer = tokenizer_of(self.source_path)  # without the marker
        write_activations(model, tokenizer, self.documents, self.cfg, path, recipe)

    def own_activations(self):
        cfg, path = self.cfg, self.activations_path
        header, splits = load_activations(path)
        self.layer, self.context = header['layer'], header['context']
        check_made_with(f"activations {path}", header, vocab_size=self.source_ids)
        prompts, slots = self.encoded([cfg.injection_prompt or cfg.injection_token])
        for split in splits.values():
            split.prompts, split.slots = prompts * len(split), slots.expand(len(split), -1)
        return splits['train'], splits['val']

    def encoded(self, prompts, count=1):
        """Prompts, with `count` vectors each, as token ids, and where the markers stand in each, (n, K)."""
        cfg, marker_id, encoded = self.cfg, self.marker_id, []
        for i, prompt in enumerate(prompts):
            rendered = goes_through_template(prompt, self.tokenizer, cfg.chat_template)
            ids = nla.encode_around(self.tokenizer, prompt, cfg.injection_token, marker_id, rendered,
                                    cfg.chat_template_kwargs, cfg.add_special_tokens)
            if len(ids) > (cfg.max_prompt_length or len(ids)):
                raise ValueError(f"prompt {i} has {len(ids)} tokens and max_prompt_length is "
                                 f"{cfg.max_prompt_length}: shorten it or raise the limit")
            encoded.append(ids)
        return encoded, nla.find_markers(encoded, marker_id, count)

    def read_given(self):
        """The activations of a file (n, A), or (n, K, A), and their n records."""
        cfg, path = self.cfg, self.activations_path
        if not cfg.train_prompts:
            raise ValueError(f"the activations of {path} need prompts: name their file in train_prompts")
        vectors, records = read_vectors(path), load_prompts(cfg.train_prompts, cfg.column_mapping)
        if len(vectors) != len(records):
            raise ValueError(f"{path} has {len(vectors)} activations and {cfg.train_prompts} {len(records)} "
                             "prompts: there must be one for each")
        return vectors, records

    def given_activations(self, vectors, records):
        """Those of a file, each with a prompt of its own, to train on and held out."""
        count = vectors.shape[1] if vectors.ndim == 3 else 1
        prompts, slots = self.encoded([record['prompt'] for record in records], count)
        vectors = vectors.reshape(len(vectors), -1)
        answered = all('answer' in record for record in records)
        self.layer, self.context = layer_of(self.cfg, self.source.config.n_layer), self.cfg.activation_context
        held_out, splits = self.which_are_held_out(records), []
        for part in (False, True):
            rows = [i for i, held in enumerate(held_out) if held == part]
            mine = [prompts[i] for i in rows]
            split = nla.Activations(vectors[rows], prompts=mine, slots=slots[rows], count=count)
            if answered:
                split.texts = [self.tokenizer.encode(str(records[i]['answer'])) for i in rows]
            splits.append(split)
        return splits

    def which_are_held_out(self, records):
        """A bool for each; records of one document stay on one side."""
        names = [json.dumps(record.get('document', i)) for i, record in enumerate(records)]
        order = sorted(set(names))
        if len(order) < 2:
            raise ValueError(f"{self.cfg.train_prompts} has one document: there must be another to hold out")
        random.Random('held out').shuffle(order)  # the same for every seed
        kept = set(order[:max(1, min(self.cfg.eval_prompts_n, len(order) // 10))])
        return [name in kept for name in names]

    def start_recipe(self):
        """All but the layer and the width, which check_start compares."""
        read = f'{self.source_path} and {self.activations_path}'
        return recipe_for('an actor and a critic', 1, read, self.cfg, *FIXED, 'injection_prompt',
                          'chat_template', 'max_new_tokens', 'warm_start_learning_rate', 'warm_start_iters',
                          'critic_start_iters', 'seed', 'eval_prompts_n', activations=self.content,
                          source=content_of_path(self.source_path))

    def make_start(self, path, recipe):
        """Actor and critic, taught on texts that come with the activations, if any."""
        cfg = self.cfg
        torch.manual_seed(cfg.seed)
        mean, scale = nla.standardiser(self.train.vectors)
        actor = GPT.from_pretrained(self.source_path)
        room = max(map(len, self.train.prompts + self.held_out.prompts)) + cfg.max_new_tokens
        if room > actor.config.block_size:
            raise ValueError(f"prompt and max_new_tokens are {room} tokens; {self.source_path} reads fewer")
        if self.marker_id >= actor.config.vocab_size:
            actor.grow(self.marker_id + 1)
        critic = nla.Critic(copy.deepcopy(nla.truncate(actor, self.layer)), mean, scale, cfg.critic_pooling,
                            cfg.critic_head, cfg.critic_target_norm).to(self.device)
        injection = cfg.injection_mode, cfg.injection_layers, cfg.injection_scale
        actor.injection = nla.Injection(actor, len(mean) // self.train.count, *injection)
        actor.to(self.device)
        quality, own = {}, own_tokenizer(self.tokenizer)
        if self.train.text(0) is not None:
            self.teach('actor', actor, self.actor_loss, cfg.warm_start_iters, 0.1)
            self.teach('critic', critic, self.critic_loss, cfg.critic_start_iters, 0.0)
            quality = self.start_quality(actor, critic)
        if not own:
            self.tokenizer.save(os.path.join(os.path.dirname(path), 'tokenizer'))
        about = self.about | {'injection': actor.injection.settings, 'critic': critic.settings}
        save(path, actor, {'critic': critic.state_dict(), 'nla': about, 'recipe': recipe, **own}, quality)

    def teach(self, name, model, loss, max_iters, weight_decay):
        """Supervised steps on the texts that come with the activations, in place."""
        rate, generator = self.cfg.warm_start_learning_rate, torch.Generator().manual_seed(self.cfg.seed)

        def loss_of_batch():
            indices = torch.randint(len(self.train), (64,), generator=generator)
            return loss(model, self.train, indices.tolist())

        supervised_loop(name, model, loss_of_batch, max_iters, rate, weight_decay)

    def actor_loss(self, actor, split, indices, injected=None):
        """Nats per token of writing the texts of some activations, with these or others injected."""
        texts = [split.text(i, self.text_length) for i in indices]
        if self.cfg.text_reversed:
            texts = [text[::-1] for text in texts]
        end = [self.tokenizer.eos_id] * self.ends
        pairs = [(split.prompts[i], text + end) for i, text in zip(indices, texts, strict=True)]
        vectors = split.injected(nla.fp32(split.vectors[injected or indices])).to(self.device)
        return answer_loss(actor, pairs, actor.injection.edit(split.slots[indices].to(self.device), vectors))

    def critic_loss(self, critic, split, indices):
        texts, lengths, h = self.true_texts(split, indices)
        return F.mse_loss(critic(texts, lengths), critic.target(h))

    def true_texts(self, split, indices):
        """Texts that come with activations (N, text_length), their lengths (N,), the activations (N, A)."""
        texts = [split.text(i, self.text_length) for i in indices]
        rows = [text + [0] * (self.text_length - len(text)) for text in texts]
        parts = torch.tensor(rows), torch.tensor([*map(len, texts)]), nla.fp32(split.vectors[indices])
        return [part.to(self.device) for part in parts]

    @torch.no_grad()
    def start_quality(self, actor, critic):
        """Held out: the actor's loss, and with_another activation injected (it should be more); FVE."""
        rows = list(range(min(512, len(self.held_out))))
        others = rows[len(rows) // 2:] + rows[:len(rows) // 2]
        texts, lengths, h = self.true_texts(self.held_out, rows)
        return {'loss': self.actor_loss(actor, self.held_out, rows).item(),
                'with_another': self.actor_loss(actor, self.held_out, rows, others).item(),
                'fve': nla.fve(*critic.standard(critic(texts, lengths), h))}

    def check_start(self, saved):
        """Raises ValueError unless actor and critic were made for these activations and settings."""
        path = self.generator_path
        for key in ('nla', 'model', 'model_config', 'critic'):
            entry(saved, key, dict, path)
        made, width, told = saved['nla'], 'activations of width', 'of width, told by a text'
        at, here = made['injection']['activation_dim'], self.train.vectors.shape[1]
        before = made['settings'] | {'layer': made['layer'], width: at, told: len(saved['critic']['mean'])}
        now = self.about['settings'] | {'layer': self.layer, width: here // self.train.count, told: here}
        check_made_with(f"nla_checkpoint {path}", before, **now)
        self.tokenizer.check_fits(saved['model_config']['vocab_size'], path)

    def placed(self, model):
        """A model in fp32 on its device, or spread over all ranks."""
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
                             cfg.compile, start=self.start, marker_id=self.marker_id)

    def batch(self, it, attempt=0):
        seed, n = self.cfg.seed + 10 ** 6 * attempt, self.cfg.batch_size
        indices, seed = draw_indices(len(self.train), n, it, seed), seed * 10 ** 5 + it
        return self.train.batch(indices, [(seed * 10 ** 9 + i) % 2 ** 62 for i in range(n)], self.device)

    # -----------------------------------------------------------------------------
    # the reward, and the critic's own learning

    def as_read(self, rollout):
        return nla.as_read(rollout, self.ends, self.cfg.text_reversed, self.train.count)

    @torch.no_grad()
    def predict(self, texts, lengths):
        size = self.cfg.eval_batch_size
        parts = zip(texts.split(size), lengths.split(size), strict=True)
        predictions = torch.cat([self.critic(*part) for part in parts])
        drop_collected(self.critic)
        return predictions

    def reconstruction(self, policy, rollout):
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
        n = ranks.all_reduce(whole.sum())
        if n == 0:
            return {}
        # the others are read too, with weight 0: a sharded critic takes as many forwards on every rank
        size, metrics = (self.cfg.micro_batch_size or len(rollout.tokens)) * rollout.tokens.shape[1], {}
        parts = [column.split(size) for column in (texts, lengths, h, whole / n)]
        for epoch in range(self.cfg.critic_train_epochs):
            self.critic_optimizer.zero_grad(set_to_none=True)
            shares = torch.zeros(3, device=h.device)  # loss, cosine, 1 - FVE
            for texts, lengths, h, weights in zip(*parts, strict=True):
                prediction = self.critic(texts, lengths)
                loss = weights @ (prediction - self.critic.target(h)).square().mean(dim=1)
                loss.backward()
                with torch.no_grad():
                    rebuilt, truth = self.critic.standard(prediction, h)
                    cosine = weights @ torch.cosine_similarity(rebuilt, truth)
                    shares += torch.stack((loss, cosine, weights @ (rebuilt - truth).square().mean(dim=1)))
            sum_gradients(list(self.critic.parameters()))
            norm = whole_norm(torch.nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0))
            if not torch.isfinite(norm):
                return metrics | {'critic_bad_steps': 1}
            self.critic_optimizer.step()
            if epoch == 0:
                loss, cosine, error = ranks.all_reduce(shares).tolist()
                metrics = {'critic_loss': loss, 'cosine': cosine, 'fve': 1 - error,
                           'critic_grad_norm': norm.item()}
        return metrics

    # -----------------------------------------------------------------------------
    # evaluation

    def write(self, policy, injected, greedy=False):
        """What as_read returns of a text to each held-out activation; injected: vectors (n, A), or None."""
        parts, rows = [], torch.arange(len(self.held_out)).split(self.cfg.eval_batch_size)
        for indices in over('evaluating', rows):
            batch = self.held_out.batch(indices.tolist(), indices.tolist(), self.device)
            vectors = None if injected is None else self.held_out.injected(injected[indices]).to(self.device)
            shown = batch | {'activation': vectors}
            rollout = policy.greedy(shown) if greedy else policy.sample(shown, 1)
            rollout.batch = batch  # what the text should have been about
            texts, *columns = self.as_read(rollout)
            parts.append((F.pad(texts, (0, self.cfg.max_new_tokens - texts.shape[1])), *columns))
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def fve_of(self, texts, lengths, h, *_):
        return nla.fve_each(*self.critic.standard(self.predict(texts, lengths), h))

    def evaluate(self, policy):
        """
        One sampled and one greedy text to each held-out activation, with the same noise each time, and the
        controls (see MEANING). The random vector is as far from the mean as the own.
        """
        own, n, mean = nla.fp32(self.held_out.vectors), len(self.held_out), self.critic.mean.cpu()
        texts, lengths, h, whole = self.write(policy, own)
        prediction, target = self.critic.standard(self.predict(texts, lengths), h)
        noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
        noise *= (own - mean).norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        self.each = {'fve': nla.fve_each(prediction, target),
                     'fve_greedy': self.fve_of(*self.write(policy, own, True)),
                     'fve_shuffled': nla.fve_each(prediction.roll(n // 2, 0), target),
                     'fve_no_injection': self.fve_of(*self.write(policy, None)),
                     'fve_mean_injection': self.fve_of(*self.write(policy, mean.expand(n, -1))),
                     'fve_random_injection': self.fve_of(*self.write(policy, noise + mean))}
        m = {name: values.mean().item() for name, values in self.each.items()}
        m['cosine'] = torch.cosine_similarity(prediction, target).mean().item()
        if self.cfg.freeze_actor:
            m['fve_frozen_actor'] = m['fve']
        shown = [row[:k] for row, k in zip(texts.tolist(), lengths.tolist(), strict=True)]
        m |= {'distinct_texts': len(set(map(tuple, shown))) / n, 'frac_whole': whole.float().mean().item(),
              'text_nll': self.nll(texts, lengths)}
        if self.held_out.text(0) is not None:
            m['fve_true_text'] = self.fve_of(*self.true_texts(self.held_out, range(n))).mean().item()
            right = [shown[i][-1:] == self.held_out.text(i, self.text_length)[-1:] for i in range(n)]
            m['last_token'] = sum(right) / n
        self.quality = {name: m[name] for name in ('fve', 'fve_greedy')}
        for i in range(min(self.cfg.eval_show, n)):
            about = self.tokenizer.decode(self.held_out.text(i) or self.held_out.prompts[i])
            value = nla.fve(prediction[i], target[i])
            say(f"  {about!r}\n    -> {self.tokenizer.decode(shown[i])!r}, FVE {value:.3f}")
        return {f'eval/{name}': value for name, value in m.items()}

    @torch.no_grad()
    def nll(self, texts, lengths):
        """Nats per token, from the second on, that the texts cost the source model."""
        total, count, size = 0.0, 0, self.cfg.eval_batch_size
        if texts.shape[1] < 2:
            return 0.0
        for rows, n in zip(texts.split(size), lengths.split(size), strict=True):
            outside = nla.padding(rows, n)
            rows, scored = rows.masked_fill(outside, 0), ~outside[:, 1:]
            hidden = self.source(rows[:, :-1])[scored]
            logps = fused_logps(hidden, self.source.lm_head.weight, rows[:, 1:][scored])[0]
            total, count = total - logps.sum().item(), count + len(logps)
        drop_collected(self.source)
        return total / max(1, count)

    @classmethod
    def verdict(cls, looks, settings):
        """Whether the text carries the activation: its FVE is above 0 and above that of each control."""
        own, controls = looks.last['fve'], looks.last.keys() - {'fve', 'fve_greedy'}
        above = {name: looks.mean(own, looks.last[name]) for name in sorted(controls)}
        best = min(above, key=lambda name: above[name].value)
        carries = looks.mean(own).sign > 0 and all(mean.sign > 0 for mean in above.values())
        return (f"the text {'carries' if carries else 'does not carry'} the activation: held-out FVE "
                f"{looks.mean(own)}, less the best control's, {MEANING[best]}: {above[best]}; "
                + looks.outcome('fve', 'its FVE'))

    def table(self, metrics):
        """The last evaluation, with what PCA of the training activations carries in k numbers."""
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
                f"{m['fve_shuffled']:.4f}, cosine {m['cosine']:.3f}, NLL of the texts {m['text_nll']:.3f}, "
                f"{100 * m['distinct_texts']:.0f} % distinct")
        if 'last_token' in m:
            line += f", last token right {m['last_token']:.3f}, true text {m['fve_true_text']:.4f}"
        return line

    # -----------------------------------------------------------------------------
    # what a run leaves behind

    def asked(self, rollout):
        i, train = rollout.batch['record'][0].item(), self.train
        ids = train.prompts[i] if train.contexts is None else train.text(i)
        return {'prompt': self.tokenizer.decode(ids)}

    def learns_from(self):
        return {'activations to train on': content_of(self.content, len(self.train))}

    def saved(self):
        return {'critic': self.critic.state_dict(), 'critic_optimizer': self.critic_optimizer.state_dict(),
                'nla': self.about, 'quality': self.quality, **own_tokenizer(self.tokenizer)}

    def restore(self, checkpoint):
        self.quality, own = checkpoint['quality'], self.critic.state_dict()
        self.critic.load_state_dict({name: part_of(checkpoint['critic'][name], p) for name, p in own.items()})
        state = optimizer_parts(checkpoint['critic_optimizer'], list(self.critic.parameters()))
        self.critic_optimizer.load_state_dict(state)
        for group in self.critic_optimizer.param_groups:
            group['lr'] = self.cfg.critic_learning_rate

    @classmethod
    def load(cls, saved, path):
        for key in ('model', 'model_config', 'critic'):
            entry(saved, key, dict, path)
        if saved['kind'] != 'adapters':
            return nla.build_actor(saved, path)
        return adapted_start(lambda start: nla.build_actor(load_checkpoint(start, 'nla'), start), saved, path)

    @classmethod
    def export(cls, saved, path, folder, adapter_folder):
        """Actor and critic in nla.pt, a start for others."""
        actor, tokenizer = merge_lora(cls.load(saved, path)), tokenizer_of(path, saved)
        kept = {key: saved[key] for key in ('critic', 'nla', 'chars', 'end') if key in saved}
        save(os.path.join(folder, 'nla.pt'), actor, kept, saved.get('quality', {}))
        if 'chars' not in saved:
            tokenizer.save(os.path.join(folder, 'tokenizer'))
        say(f"actor and critic saved in {os.path.join(folder, 'nla.pt')}")

    @classmethod
    @torch.no_grad()
    def show(cls, saved, model, tokenizer, cfg):
        """What the actor says of an activation: a row of a file, or that at a text's last token."""
        about, device = saved['nla'], cfg.device
        if cfg.activations:
            vectors = read_vectors(cfg.activations)
        else:  # as the actor knows them: of the same model and layer, with as many tokens before it
            ids = tokenizer.encode(given('text', cfg.text))[-about['context']:]
            source = nla.truncate(GPT.from_pretrained(about['source']), about['layer']).to(device)
            vectors = source(torch.tensor([ids], device=device))[:, -1].cpu().numpy()
        actor = merge_lora(cls.load(saved, cfg.checkpoint)).to(device)
        critic = nla.build_critic(saved).to(device)
        if cfg.row >= len(vectors):
            raise ValueError(f"row is {cfg.row} and {cfg.activations} has {len(vectors)} activations")
        prompts, settings = [about['prompt']], about['settings']
        marker_id = nla.marker_of(tokenizer, settings['injection_token'])
        row = vectors[cfg.row].reshape(1, -1)
        count = max(1, row.shape[1] // actor.injection.settings['activation_dim'])
        slots = nla.find_markers(prompts, marker_id, count)
        one = nla.Activations(row, prompts=prompts, slots=slots, count=count)
        batch, ends = one.batch([0], [cfg.seed], device), tokenizer.eos_id is not None
        policy = nla.NLAPolicy(actor, tokenizer, about['max_new_tokens'], cfg.temperature or 1.0,
                               marker_id=marker_id)
        rollouts, rows = {'  (greedy)': policy.greedy(batch)}, []
        if cfg.temperature > 0:
            rollouts[''] = policy.sample(batch, cfg.num_samples or 8)
        for note, rollout in rollouts.items():
            texts, lengths, h, whole = nla.as_read(rollout, ends, settings['text_reversed'], count)
            prediction, target = critic.standard(critic(texts, lengths), h)
            for i, n in enumerate(lengths.tolist()):
                text = tokenizer.decode(texts[i, :n].tolist())
                rows.append((nla.fve(prediction[i], target[i]), text, note + ' ...' * (not whole[i])))
        rows = [([f'{value:.3f}'], *more) for value, *more in sorted(rows, reverse=True)]
        show_ranked(['FVE', 'explanation'], rows)

    def try_out(self):
        text = self.held_out.text(0)
        if self.held_out.contexts is None:  # of a file: other vectors than its model has
            return 'nla.pt', [f'--activations={self.activations_path}', '--row=0']
        return 'nla.pt', [f'--text={longest_line(self.tokenizer.decode(text))}']


def save(path, actor, saved, quality):
    """Actor and critic as a start; saved: all but the actor's weights."""
    weights = {'model': actor.state_dict(), 'model_config': vars(actor.config)}
    save_checkpoint(path, {'kind': 'nla', **weights, 'quality': quality, **saved})
