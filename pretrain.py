"""
Supervised stages: the models that GRPO starts from. train_grpo.py calls these functions for a checkpoint that does not
exist yet; as a script it makes one of them, for instance a better generator than the one-minute default:
$ python pretrain.py --stage=generator --max_iters=10000
$ python pretrain.py --stage=judge --generator_checkpoint=out-stdlib_char/generator.pt --checkpoint=out-stdlib_char/judge.pt
$ python pretrain.py --stage=answerer --dataset=arithmetic --block_size=16
$ python pretrain.py --stage=answerer --dataset=my.jsonl --generator_checkpoint=path/to/model --chat_template=True --learning_rate=1e-5
$ python pretrain.py --stage=reward --dataset=preferences.jsonl --generator_checkpoint=path/to/model --checkpoint=reward.pt      # and --stage=cost
"""
import math
import os
import time
from dataclasses import asdict

import numpy as np
import torch
from torch.nn import functional as F

import console
from completion import tokenizer_of
from console import say
from data.prompts import encode_prompts, held_out_split, load_prompts
from data.text import dataset_name, load_corpus, random_windows
from data.tokenizer import CharTokenizer
from fill_in import FillInPolicy, choose_slots, corrupt_like_bert, exact_match, make_batch
from judge import Judge, ScoreModel, joiner, score_ids
from kernels import fused_loss
from model import GPT, GPTConfig, configure_optimizers, load_checkpoint, save_checkpoint
from nla import fve
from sample import generate


def masked_windows(ids, n, block_size, tokenizer, mask_kinds, mask_ratio, generator, seed=0):
    """n random texts, an equal share masked in each kind: the batch of make_batch and chosen (n, block_size) bool. seed: of their fills."""
    tokens = random_windows(ids, n, block_size, generator)
    lengths = torch.full((n,), block_size)
    chosen = torch.cat([choose_slots(kind, lengths[i::len(mask_kinds)], block_size, mask_ratio, generator)
                        for i, kind in enumerate(mask_kinds)])
    return make_batch(tokens, lengths, chosen, tokenizer.mask_id, seed), chosen


def filler_config(tokenizer, block_size, n_layer, n_head, n_embd):
    """What learned fastest at this size: bidirectional, RoPE, RMSNorm, squared ReLU. One position more than a text, for the judge's [CLS]."""
    return GPTConfig(block_size=block_size + 1, vocab_size=tokenizer.vocab_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
                     causal=False, norm='rmsnorm', position='rope', mlp='relu2', bias=False)


def cross_entropy(model, hidden, targets):
    """Mean loss in nats of hidden (N, D) at predicting targets (N,)."""
    n = len(targets)
    return fused_loss(hidden[:, None], model.lm_head.weight, targets[:, None, None], torch.ones(n, 1, 1, dtype=torch.bool, device=hidden.device),
                      lambda units, logps, entropy, kl: -logps.sum() / n, counts=[1] * n)


def supervised_loop(name, model, loss_of_batch, max_iters, learning_rate, betas=(0.9, 0.98), weight_decay=0.1, enough=lambda: False):
    """Cosine schedule with warm-up, gradients clipped at 1, a progress line every tenth of the way. Ends sooner once enough(), asked every 20 steps, is true."""
    optimizer = configure_optimizers(model.parameters(), weight_decay, learning_rate, betas)
    warmup, start, recent = min(100, max_iters // 10 + 1), time.time(), []
    progress = console.Progress(name, max_iters)
    for it in progress.over(range(max_iters)):
        rate = min((it + 1) / warmup, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * it / max_iters)))
        for group in optimizer.param_groups:
            group['lr'] = learning_rate * rate
        loss = loss_of_batch()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.detach())
        if (it + 1) % max(1, max_iters // 10) == 0:
            mean, recent = torch.stack(recent).mean().item(), []
            say(f"  {name} {it + 1}/{max_iters}: loss {mean:.3f}, {time.time() - start:.0f} s{progress.left(it + 1)}")
            progress.note(f"loss {mean:.3f}")
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss of the {name} is {mean}: lower learning_rate")
        if (it + 1) % 20 == 0 and enough():
            say(f"  {name} {it + 1}/{max_iters}: good enough, {time.time() - start:.0f} s")
            break


def train_generator(tokenizer, corpus, config, max_iters=1200, batch_size=48, learning_rate=5e-3, mask_kinds=('random',),
                    mask_ratio=(0.1, 0.35), seed=1, device='cpu'):
    """A bidirectional model that fills masked slots, trained as BERT is. Returns (model, quality): held-out loss in nats and greedy accuracy."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config).to(device)
    text_length = config.block_size - 1

    def loss_of_batch():
        batch, chosen = masked_windows(corpus['train'], batch_size, text_length, tokenizer, mask_kinds, mask_ratio, generator)
        inputs = corrupt_like_bert(batch['original'], chosen, tokenizer, generator).to(device)
        chosen = chosen.to(device)
        return cross_entropy(model, model(inputs)[chosen], batch['original'].to(device)[chosen])

    supervised_loop('generator', model, loss_of_batch, max_iters, learning_rate)
    model.eval()
    batch, chosen = masked_windows(corpus['val'], 1024, text_length, tokenizer, mask_kinds, mask_ratio, torch.Generator().manual_seed(0))
    batch = {k: v.to(device) for k, v in batch.items()}
    with torch.no_grad():
        loss = cross_entropy(model, model(batch['tokens'])[chosen.to(device)], batch['original'][chosen.to(device)]).item()
    quality = {'loss': loss, 'accuracy': exact_match(batch, FillInPolicy(model, tokenizer).greedy(batch))}
    return model, quality


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


def syntheticity(share):
    """What a judge is taught to say of a text with this share of foreign characters: steep at first, 1 at 1 (0, .47, .81, .97, 1 at quarters)."""
    return share ** 4 - 2 * share ** 3 + 2 * share


@torch.no_grad()
def filled_texts(generator_model, tokenizer, ids, n, block_size, mask_kinds, mask_ratio, temperatures, untouched, generator):
    """
    Texts for a judge: windows with some characters filled in by the generator. Returns texts (n, T) and replaced (n, T)
    bool, true where a fill differs from what stood there: a fill that restores the text leaves it real.
    """
    batch, chosen = masked_windows(ids, n, block_size, tokenizer, mask_kinds, mask_ratio, generator)
    device = generator_model.wte.weight.device
    logits = generator_model.lm_head(generator_model(batch['tokens'].to(device))[chosen.to(device)]).float().cpu()
    low, high = temperatures
    temperature = (low + (high - low) * torch.rand(n, 1, generator=generator)).expand_as(chosen)[chosen]
    probs = (logits[:, :len(tokenizer.chars)] / temperature[:, None]).softmax(dim=-1)
    texts = batch['original'].clone()
    texts[chosen] = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
    keep = torch.rand(n, generator=generator) < untouched
    texts[keep] = batch['original'][keep]
    return texts.to(device), (texts != batch['original']).to(device)


def train_judge(generator_model, tokenizer, corpus, max_iters=500, batch_size=48, learning_rate=2e-3, mask_kinds=('random',),
                mask_ratio=(0.05, 0.6), temperatures=(0.6, 1.1), untouched=0.15, seed=1):
    """
    A judge that starts as the generator's trunk and learns how much of a text the generator has filled in, over a range
    of mask ratios and temperatures so that it still knows what to say when the policy moves.
    Returns (judge, quality) with quality measured on held-out texts: r2 of its score; auc, the chance that a text with a quarter
    of it filled in at temperature 0.8 scores above a real one; and the mean score of real and of such filled texts.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge(generator_model.config, tokenizer.cls_id).to(generator_model.wte.weight.device)
    judge.trunk.load_state_dict(generator_model.state_dict())
    text_length = generator_model.config.block_size - 1

    def loss_of_batch():
        texts, replaced = filled_texts(generator_model, tokenizer, corpus['train'], batch_size, text_length, mask_kinds, mask_ratio, temperatures, untouched, generator)
        score, slots = judge(texts)
        target = syntheticity(replaced.float().mean(dim=1))
        return 10 * F.mse_loss(score.sigmoid(), target) + F.binary_cross_entropy_with_logits(slots, replaced.float())

    supervised_loop('judge', judge, loss_of_batch, max_iters, learning_rate, weight_decay=0.1)
    judge.eval().requires_grad_(False)
    held_out = torch.Generator().manual_seed(0)
    texts, replaced = filled_texts(generator_model, tokenizer, corpus['val'], 1024, text_length, mask_kinds, mask_ratio, temperatures, untouched, held_out)
    target = syntheticity(replaced.float().mean(dim=1))
    r2 = 1 - F.mse_loss(judge.score(texts), target) / target.var(correction=0)
    real, _ = filled_texts(generator_model, tokenizer, corpus['val'], 1024, text_length, mask_kinds, (0.25, 0.25), (0.8, 0.8), 1.0, held_out)
    filled, _ = filled_texts(generator_model, tokenizer, corpus['val'], 1024, text_length, mask_kinds, (0.25, 0.25), (0.8, 0.8), 0.0, held_out)
    real, filled = judge.score(real), judge.score(filled)
    above = (filled[:, None] > real).float() + 0.5 * (filled[:, None] == real).float()
    return judge, {'auc': above.mean().item(), 'r2': r2.item(), 'score_real': real.mean().item(), 'score_filled': filled.mean().item()}


def save_model(path, kind, model, config, tokenizer, quality):
    """One of our checkpoint files. The tokenizer is in it, if it is one of characters; else it lies beside it in tokenizer/."""
    own = {'chars': tokenizer.chars, 'end': tokenizer.eos_id is not None} if hasattr(tokenizer, 'chars') else {}
    save_checkpoint(path, {'kind': kind, 'model': model.state_dict(), 'model_config': asdict(config), 'quality': quality, **own})
    if not own:
        tokenizer.save(os.path.join(os.path.dirname(path), 'tokenizer'))
    say(f"  saved {path}: " + ', '.join(f"{k} {v:.3f}" for k, v in quality.items()))


if __name__ == '__main__':
    from configurator import configure
    stage = 'generator'                        # 'generator': fills masked slots | 'judge': of its fills | 'answerer': a causal model, prompt -> answer | 'reward', 'cost': score models, from pairs of answers
    dataset = 'stdlib_char'                    # a folder under data/, or a file: text; for an answerer, prompts with answers
    checkpoint = 'out-{dataset}/{stage}.pt'    # where to save what is made; an answerer that starts from a released model becomes a folder
    generator_checkpoint: str | None = None    # what a judge learns to know, or a score model starts from (None: out-{dataset}/generator.pt), or an answerer (None: from nothing)
    chat_template = False                      # answerer: prompts become the user's turn
    template = '{prompt}{response}'            # reward and cost: how a text is put together; safe-rlhf's is 'BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}'
    system_prompt = ''
    eval_prompts_n = 500                       # answerer, reward, cost: held-out prompts
    block_size = 48                            # characters of a text, or of prompt and answer
    n_layer = 3
    n_head = 4
    n_embd = 96
    max_iters = 1200
    batch_size = 48
    learning_rate: float | None = None         # None: the stage's own
    mask_kinds = ('random',)                   # of 'random', 'sticky', 'span', in equal shares
    mask_ratio: tuple | None = None            # (low, high) share of masked characters; None: the stage's own
    seed = 1
    device = 'cpu'
    quiet = False                              # True: no lines but errors
    configure(globals())
    console.quiet = quiet

    if stage not in ('generator', 'judge', 'answerer', 'reward', 'cost'):
        raise ValueError(f"stage is {stage!r}; it must be generator, judge, answerer, reward or cost")
    path = checkpoint.format(dataset=dataset_name(dataset), stage=stage)
    options = dict(max_iters=max_iters, batch_size=batch_size, seed=seed)
    if learning_rate is not None:
        options['learning_rate'] = learning_rate
    if stage in ('reward', 'cost'):
        source = generator_checkpoint or f'out-{dataset_name(dataset)}/generator.pt'
        pairs, held_out = held_out_split(load_preferences(dataset), eval_prompts_n, seed)
        tokenizer, trunk = tokenizer_of(source), GPT.from_pretrained(source).to(device)
        model, quality = train_score_model(stage, trunk, tokenizer, pairs, held_out, joiner(template), **options)
        save_model(path, stage, model, trunk.config, tokenizer, quality)
    elif stage == 'answerer':
        records, held_out = load_prompts(dataset), None
        if os.path.isfile(dataset):
            records, held_out = held_out_split(records, eval_prompts_n, seed)
        else:
            held_out = load_prompts(dataset, split='val')[:eval_prompts_n]
        if generator_checkpoint:
            tokenizer, model = tokenizer_of(generator_checkpoint), GPT.from_pretrained(generator_checkpoint).to(device)
        else:
            tokenizer = character_tokenizer(records, system_prompt)
            torch.manual_seed(seed)
            model = GPT(answerer_config(tokenizer, block_size, n_layer, n_head, n_embd)).to(device)
        records, held_out = (encode_prompts(part, tokenizer, system_prompt, chat_template)[0] for part in (records, held_out))
        quality = train_answerer(model, tokenizer, records, held_out, **options)
        if hasattr(tokenizer, 'chars'):
            save_model(path, 'generator', model, model.config, tokenizer, quality)
        else:
            folder = path.removesuffix('.pt')
            model.save_pretrained(folder, tokenizer.eos_id)
            tokenizer.save(folder)
            say(f"  saved {folder}: " + ', '.join(f"{k} {v:.3f}" for k, v in quality.items()))
    else:
        tokenizer, corpus = load_corpus(dataset)
        options |= {'mask_kinds': mask_kinds} | ({'mask_ratio': mask_ratio} if mask_ratio is not None else {})
        if stage == 'generator':
            model_config = filler_config(tokenizer, block_size, n_layer, n_head, n_embd)
            model, quality = train_generator(tokenizer, corpus, model_config, device=device, **options)
        else:
            source = generator_checkpoint or f'out-{dataset_name(dataset)}/generator.pt'
            tokenizer.check_same(load_checkpoint(source, 'generator', 'run')['chars'], source)
            generator_model = GPT.from_pretrained(source).to(device).eval()
            model_config = generator_model.config
            model, quality = train_judge(generator_model, tokenizer, corpus, **options)
        save_model(path, stage, model, model_config, tokenizer, quality)
