"""
The sampler, and a script: chat with a model, complete a prompt, fill a text, explain an activation.
$ python sample.py --checkpoint=path/to/model                              # chat; a directory, a .gguf file or a run's ckpt.pt
$ echo "12+34=" | python sample.py --checkpoint=out-arithmetic-grpo/ckpt.pt   # complete what is piped in, or --prompt="12+34="
$ python sample.py --checkpoint=... --prompt="12+34=" --rewards=number_answer --reference=46     # the best of 8 by rewards, or
$ python sample.py --checkpoint=... --prompt="tker>" --reward_checkpoint=out-shop/reward.pt      # by a reward model
$ python sample.py --text="def __init__(s?lf, na?e):" --mask_char="?"      # fill-in: each '?' is a slot; best first by the judge
$ python sample.py --text="import os, sys" --mask_ratio=0.3                # or mask a share of the text at random
$ python sample.py --checkpoint=out-nla/grpo/ckpt.pt --text="A text"       # an NLA: what its model thinks at the text's last token
Several answers are a table, best first. Where stdout is no terminal it holds the (best) answer and nothing else; the rest goes to stderr.

`generate` samples G answers to each of P prompts in one batch. A prompt is read once and its keys and values are kept
once, whatever G is: all answers of a group attend to them with one matrix product, and to their own keys with another,
under one softmax. Rows that have ended leave the batch. Each token costs one uniform number: it is found in the
cumulated probabilities, which gives its log-prob too, and a row's numbers depend on its seed alone, not on its company.
Shapes: P prompts · G answers · B rows still running, at most P G · T, R tokens · V vocabulary · H heads, H_kv of keys · d head width.
"""
import contextlib
import math
import os
import sys
import warnings
from collections import Counter

import torch

from data.text import dataset_name
from grpo import gather_logps, head_log_probs, reward_tensor, weighted_reward
from judge import BEAVER_TEMPLATE, TextScorer
from model import GPT
from nla import activation_at_end, explain, read_vectors
from policy import forbidden_tokens, generate
from rewards import check_fields, resolve_rewards, score_completions
from runtime.checkpoint import load_checkpoint, tokenizer_of
from runtime.config import configure, one_line
from runtime.masters import compute_in
from runtime.scorer import joiner
from tasks.fill_in import FillInPolicy, fill, score_fills


class Stream:
    """An on_token that prints one answer as it grows; a character whose bytes are not all there yet waits for them, until `end`."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.shown = tokenizer, [], ''

    def __call__(self, step, rows, tokens):
        self.ids.append(tokens.item())
        text = self.tokenizer.decode(self.ids)
        if not text.endswith('\ufffd'):
            self.show(text)

    def show(self, text, end=''):
        print(text[len(self.shown):], end=end, flush=True)
        self.shown = text

    def end(self):
        """Print what is left, and the line's end. Returns the whole answer."""
        self.show(self.tokenizer.decode(self.ids), end='\n')
        return self.shown


def show_ranked(heading, rows):
    """
    Print a table of rows (cells, answer, note), best first; the heading's last name is the answers'. Where stdout is no terminal it gets the best answer alone, for
    the next program to read, and stderr the table.
    """
    table = sys.stdout if sys.stdout.isatty() else sys.stderr
    widths = [max(map(len, column)) for column in zip(heading, *(cells for cells, _, _ in rows))]
    line = lambda cells: '  '.join(cell.rjust(width) for cell, width in zip(cells, widths))
    print(f"{line(heading)}  {heading[-1]}", file=table)
    for cells, answer, note in rows:
        print(f"{line(cells)}  {one_line(answer)}{note}", file=table)
    if table is sys.stderr:
        print(rows[0][1], flush=True)


def given(key, value):
    """The value of a setting, or else what is piped in, all of it without its last line end. '' for no prompt at a terminal: somebody wants to chat."""
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if not value and not at_terminal:
        try:
            value = sys.stdin.buffer.read().decode().removesuffix('\n') if sys.stdin else ''
        except UnicodeDecodeError as e:
            raise ValueError(f"what is piped in is not UTF-8 text (byte {e.start})") from None
    if not value and not (at_terminal and key == 'prompt'):
        raise ValueError(f'there is no {key}: give one with --{key}="...", or pipe one in')
    return value


def with_room(options, ids, block_size):
    """The options of generate with max_new_tokens no larger than what a prompt (token ids) leaves of the block."""
    if len(ids) >= block_size:
        raise ValueError(f"the prompt has {len(ids)} tokens, and this model reads {block_size}, its own answer among them: shorten it")
    return options | {'max_new_tokens': min(options['max_new_tokens'], block_size - len(ids))}


def chat(model, tokenizer, system_prompt, options):
    """A conversation at the terminal until an empty line, the end of input or Ctrl-C; while the model answers, Ctrl-C ends the answer only."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  with it, input() knows the arrow keys
    system, turns, block_size = [{'role': 'system', 'content': system_prompt}] * bool(system_prompt), [], model.config.block_size
    print("an empty line ends the conversation" + ('' if tokenizer.has_chat_template else "; this model has no chat template and goes on from each line by itself"), file=sys.stderr)
    while True:
        try:
            said = input('> ' if sys.stdout.isatty() else '')
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if not said.strip():
            return
        kept = turns + [{'role': 'user', 'content': said}]
        try:
            if tokenizer.has_chat_template:
                ids = tokenizer.chat(system + kept)
                while len(ids) + min(options['max_new_tokens'], block_size // 2) > block_size and len(kept) > 1:
                    kept = kept[2:]
                    ids = tokenizer.chat(system + kept)
            else:
                ids = tokenizer.encode(system_prompt + said)
            now = with_room(options, ids, block_size)
        except ValueError as e:  # too long, or with a character that this model does not know: say it otherwise
            print(f"error: {e}", file=sys.stderr)
            continue
        if len(kept) < len(turns) + 1:
            print(f"(this model reads {block_size} tokens: the first {len(turns) + 1 - len(kept)} messages are forgotten)", file=sys.stderr)
        answer = Stream(tokenizer)
        with contextlib.suppress(KeyboardInterrupt):
            generate(model, [ids], on_token=answer, **now)
        turns = kept + [{'role': 'assistant', 'content': answer.end()}]


def score_texts(texts, record, rewards, scorer=None, join=None, lambda_cost=1.0):
    """
    Scores of answers to a record's prompt: {name: a value for each, or None where it does not apply} and {name: its weight}. rewards: of the catalogue, resolved;
    scorer: a TextScorer, whose reward counts 1 and whose cost -lambda_cost.
    """
    parts = {name: values[0] for name, values in score_completions(rewards, [texts], [record]).items()}
    weights = {name: weight for name, _, weight in rewards}
    if scorer:
        values = scorer.score(scorer.encode([join(record['prompt'], text) for text in texts]))
        parts |= {part.kind: list(value) for (part, *_), value in zip(scorer.parts, values)}
        weights |= {'reward': 1.0, 'cost': -lambda_cost}
    return parts, weights


def ranking(record, rewards, reward_checkpoint, cost_checkpoint, lambda_cost, template, device):
    """score_texts for answers to one record, a function of the texts alone; None when there is nothing to rank them by. All that is needed is loaded, and is known to apply."""
    if not (rewards or reward_checkpoint or cost_checkpoint):
        return None
    with warnings.catch_warnings(action='ignore'):  # of weights that do not sum to 1, and other things that matter in training
        rewards = resolve_rewards(rewards) if rewards else []
    try:
        check_fields(rewards, [record])
    except ValueError as e:
        raise ValueError(f"{e}; --reference, --tests and --context give more") from None
    scorer = TextScorer(reward_checkpoint, cost_checkpoint, device) if reward_checkpoint or cost_checkpoint else None
    join = joiner(template or ('{prompt}{response}' if (reward_checkpoint or cost_checkpoint).endswith('.pt') else BEAVER_TEMPLATE))
    return lambda texts: score_texts(texts, record, rewards, scorer, join, lambda_cost)


def complete(model, tokenizer, ids, num_samples, options, score=None):
    """Print num_samples answers to a prompt (token ids): one as it comes; several best first, by what score(texts) says (see score_texts), else the likeliest first."""
    if num_samples == 1 and not score:
        answer = Stream(tokenizer)
        try:
            generate(model, [ids], on_token=answer, **options)
        finally:
            answer.end()
        return
    answers = generate(model, [ids], num_samples, **options)
    lengths, ended, logps = answers.lengths[0].tolist(), answers.ended[0].tolist(), answers.logps[0].sum(dim=-1).tolist()
    texts = [tokenizer.decode(answer[:n]) for answer, n in zip(answers.tokens[0].tolist(), lengths)]
    columns = {'log-prob': logps}
    if score:
        parts, weights = score(texts)
        total = weighted_reward({name: reward_tensor(name, [values]) for name, values in parts.items()}, weights)[0]
        columns = {'score': total.nan_to_num(-torch.inf).tolist()} | (parts if len(parts) > 1 else {}) | columns
    rows = sorted(zip(*columns.values(), lengths, texts, ended), key=lambda row: (row[0], row[len(columns) - 1]), reverse=True)
    show_ranked([*columns, 'tokens', 'answer'], [([*('-' if value is None else f'{value:.3f}' for value in values), str(n)], text, '' if whole else ' ...') for *values, n, text, whole in rows])


def fill_text(model, tokenizer, batch, masked, judge, num_samples, temperature, top_p, unmask_steps):
    """Print fills of a text's slots (see fill_in.text_with_slots), shown as `masked`: where there is a judge, that first which it rewards most; else the likeliest."""
    policy = FillInPolicy(model, tokenizer, temperature or 1.0, top_p, unmask_steps)
    greedy = policy.greedy(batch)
    fills, logps = greedy, gather_logps(head_log_probs(policy, policy.slot_hidden(batch, None, 0)), greedy)
    if temperature > 0:
        rollout = policy.sample(batch, num_samples)
        fills, logps = torch.cat((fills, rollout.tokens), dim=1), torch.cat((logps, rollout.logps), dim=1)
    columns = ([(1 - score_fills(judge, batch, fills)[0]).tolist()] if judge else []) + [logps[0].sum(dim=-1).tolist()]
    texts = [tokenizer.decode(ids) for ids in fill(batch, fills)[0]]
    drawn = Counter(texts[1:])
    rows = {text: values for text, *values in reversed(list(zip(texts, *columns)))}  # each once
    order = sorted(rows, key=lambda text: rows[text], reverse=True)
    print(f"masked: {one_line(masked)}" + ("  (reward: 1 looks written, 0 machine-filled)" if judge else ''), file=sys.stderr)
    show_ranked(['reward'] * bool(judge) + ['log-prob', 'times', 'text'], [([*(f'{value:.3f}' for value in rows[text]), str(drawn[text])], text, '  (greedy)' if text == texts[0] else '') for text in order])


# ---------------------------------------------------------------------------------------------------------------------
# the script

if __name__ == '__main__':
    checkpoint = 'out-grpo/ckpt.pt'              # a run's checkpoint, a pretrained model, a Hugging Face directory, a .gguf file, a name on the hub
    # a causal model
    prompt = ''                                  # it completes this, or what is piped in; at a terminal, without either, it chats
    chat_template = False                        # True: the prompt becomes the user's turn
    system_prompt = ''
    max_new_tokens = 256                         # at most, and no more than the model reads
    # what its answers are ranked by, best first
    rewards: str | list | tuple | None = None    # of the catalogue: number_answer,length; or a list as train_grpo.py takes
    reference = ''                               # what they are judged by, as far as they need it: the right answer,
    tests = ''                                   # assert statements,
    context = ''                                 # a source
    reward_checkpoint = ''                       # a reward model, ours or a Hugging Face folder; '': the one that an alignment run learned from
    cost_checkpoint = ''                         # and a cost model
    lambda_cost: float | None = None             # the price of its cost; None: what the run arrived at, else 1
    scorer_template: str | None = None           # how they read '{prompt}' and '{response}'; None: one after the other, and for a Hugging Face folder as safe-rlhf does
    # a fill-in model, a Natural Language Autoencoder
    text = ''                                    # the one fills its slots, the other explains its last token; or what is piped in
    mask_char = '_'                              # this character marks a slot
    mask_ratio = 0.0                             # above 0: mask this share of the text at random instead
    unmask_steps = 1                             # fill in so many steps, each seeing the fills before it
    judge_checkpoint: str | None = None          # None: the one the run learned from, or no score
    activations: str | None = None               # explain a row of this .npy, .pt or .safetensors file instead of a text
    row = 0
    # sampling
    num_samples: int | None = None               # None: 8 fills, explanations or answers to be ranked, or 1 answer as it comes
    temperature = 0.8                            # 0: the likeliest token each time
    top_k = 0
    top_p = 1.0
    seed = 1
    device = 'auto'                              # 'cpu', 'cuda', 'cuda:1'; 'auto' takes a GPU when there is one
    precision = 'auto'                           # 'fp32' | 'bf16' | 'fp16'; 'auto': bf16 where it is faster
    configure(globals())


    for key, least, most in (('mask_ratio', 0, 1), ('num_samples', 1, math.inf), ('max_new_tokens', 1, math.inf), ('unmask_steps', 1, math.inf), ('temperature', 0, math.inf), ('top_k', 0, math.inf), ('top_p', 1e-9, 1)):
        if globals()[key] is not None and not least <= globals()[key] <= most:
            raise ValueError(f"{key} is {globals()[key]}: it must be {'above 0' if key == 'top_p' else f'at least {least}'}" + (f' and at most {most}' if most == 1 else ''))
    if (reference or tests or context) and not rewards:
        raise ValueError("reference, tests and context are what --rewards judge by, and there are none: name some, for instance --rewards=number_answer")
    if checkpoint.endswith('.pt') and not os.path.isfile(checkpoint):
        raise FileNotFoundError(f"there is no checkpoint at {checkpoint}: a run of train_grpo.py leaves one in its out_dir, and --checkpoint names it")
    if precision not in ('auto', 'fp32', 'bf16', 'fp16'):
        raise ValueError(f"precision is {precision!r}; it must be auto, fp32, bf16 or fp16")
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:  # no such device, none of that number, or a torch that was built without
        raise ValueError(f"device is {device!r}, which torch cannot use here ({str(e).splitlines()[0][:80]}): leave it at 'auto' or take 'cpu'") from None

    saved = load_checkpoint(checkpoint, 'generator', 'run', 'nla') if checkpoint.endswith('.pt') else {}
    model = None if 'nla' in saved else GPT.from_pretrained(checkpoint).to(device).eval().requires_grad_(False)
    causal = model is not None and model.config.causal
    if text and causal or prompt and not causal:
        raise ValueError(f"{checkpoint} " + ("goes on from a --prompt; a --text is for fill-in models and autoencoders" if causal else "takes a --text; a --prompt is for a causal model"))
    tokenizer = tokenizer_of(checkpoint)
    if model:
        tokenizer.check_fits(model.config.vocab_size, checkpoint)
        if precision == 'auto':
            fast_bf16 = device.startswith('cuda') or torch.cpu._is_avx512_bf16_supported() and model.config.n_embd >= 512
            precision = 'bf16' if fast_bf16 else 'fp32'
        compute_in(model, {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[precision])

    if 'nla' in saved:
        vectors = read_vectors(activations) if activations else activation_at_end(saved['nla'], tokenizer, given('text', text), device)
        if not 0 <= row < len(vectors):
            raise ValueError(f"row is {row} and {activations} has {len(vectors)} activations")
        rows = explain(saved, tokenizer, vectors[row:row + 1], num_samples or 8, temperature, seed, device)
        show_ranked(['FVE', 'explanation'], [([f'{value:.3f}'], answer, '  (greedy)' * greedy + ('' if whole else ' ...')) for value, answer, greedy, whole in rows])
    elif not causal:
        from fill_in import text_with_slots

        from judge import Judge
        text = given('text', text)
        if len(text) > model.config.block_size - 1:
            raise ValueError(f"the text has {len(text)} characters and this model reads {model.config.block_size - 1}: shorten it, or train with a larger block_size")
        batch = {key: value.to(device) for key, value in text_with_slots(tokenizer, text, mask_char, mask_ratio, seed).items()}
        learned_from = saved.get('judge_checkpoint')
        if not judge_checkpoint and learned_from and os.path.exists(learned_from):
            judge_checkpoint = learned_from
        judge = Judge.from_pretrained(judge_checkpoint, tokenizer).to(device) if judge_checkpoint else None
        masked = text if mask_ratio == 0 else tokenizer.decode(batch['tokens'][0])
        fill_text(model, tokenizer, batch, masked, judge, num_samples or 8, temperature, top_p, unmask_steps)
    else:
        options = dict(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, eos_id=tokenizer.eos_id, seed=seed, forbidden=forbidden_tokens(tokenizer, model))
        prompt = given('prompt', prompt)
        if not prompt:
            chat(model, tokenizer, system_prompt, options)
            sys.exit()
        if chat_template:
            ids = tokenizer.chat([{'role': 'system', 'content': system_prompt}] * bool(system_prompt) + [{'role': 'user', 'content': prompt}])
        else:
            ids = tokenizer.encode(system_prompt + prompt)
        options = with_room(options, ids, model.config.block_size)
        learned = saved.get('config', {})
        if (num_samples or 1) > 1 and learned.get('task') == 'alignment' and not (rewards or reward_checkpoint or cost_checkpoint):
            learned_from = [learned[key].format(dataset=dataset_name(learned['train_prompts'] or learned['dataset'])) for key in ('reward_checkpoint', 'cost_checkpoint')]
            if all(map(os.path.exists, learned_from)):
                reward_checkpoint, cost_checkpoint = learned_from
                scorer_template = scorer_template or learned['scorer_template']
        if lambda_cost is None:
            lambda_cost = saved.get('lagrange', {'value': 1.0})['value']
        record = {'prompt': prompt} | {key: value for key, value in (('reference', reference), ('tests', tests), ('context', context)) if value}
        score = ranking(record, rewards, reward_checkpoint, cost_checkpoint, lambda_cost, scorer_template, device)
        complete(model, tokenizer, ids, num_samples or (8 if score else 1), options, score)
