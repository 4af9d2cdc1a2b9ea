"""
How sample.py shows what a model says: a conversation, completions of a prompt as they grow, several as a
table, best first.
"""
import contextlib
import sys
import warnings

import torch

from data.prompts import render
from grpo import reward_tensor, weighted_reward
from judge import BEAVER_TEMPLATE, TextScorer
from policy import CausalPolicy, forbidden_tokens, generate, prompt_batch, seeds_of
from rewards import check_fields, resolve_rewards, score_completions
from rewards.environments import ENVIRONMENTS, find_environment
from runtime.config import one_line
from runtime.console import harmless, painted
from runtime.scorer import joiner
from tasks.turns import Asking, TurnPolicy


class Stream:
    """An on_token that prints one completion as it grows, each character when its bytes are all there."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.shown = tokenizer, [], ''

    def __call__(self, step, rows, tokens):
        if tokens.item() in self.tokenizer.eos_ids:  # which may have a text
            return
        self.ids.append(tokens.item())
        text = self.tokenizer.decode(self.ids)
        if not text.endswith('\ufffd'):
            self.show(text)

    def show(self, text, end=''):
        more = text[len(self.shown):]
        print(harmless(more) if sys.stdout.isatty() else more, end=end, flush=True)
        self.shown = text

    def end(self):
        """Print what is left, and the line's end. Returns the whole text."""
        self.show(self.tokenizer.decode(self.ids), end='\n')
        return self.shown


def show_ranked(heading, rows):
    """
    Print a table of rows (cells, text, note), best first; the heading's last name is the texts'. It goes to
    stderr where stdout is no terminal but a pipe, which gets the best text alone.
    """
    table = sys.stdout if sys.stdout.isatty() else sys.stderr
    rows = [(heading, heading[-1], ''), *rows]
    every_row = [row[0] for row in rows]
    widths = [max(map(len, column)) for column in zip(*every_row, strict=False)]
    for cells, text, note in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
        print(painted('  '.join([*aligned, one_line(text.replace('\n', '⏎')) + note]), table), file=table)
    if table is sys.stderr:
        print(rows[1][1], flush=True)


def given(key, value):
    """A setting's value, else what is piped in, less its line end; '' for no prompt at a terminal: a chat."""
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
    """The options of generate with max_new_tokens no larger than a prompt's ids leave room for."""
    if len(ids) >= block_size:
        seen = f"the prompt has {len(ids)} tokens, and this model reads {block_size} with its answer"
        raise ValueError(f"{seen}: shorten it")
    return options | {'max_new_tokens': min(options['max_new_tokens'], block_size - len(ids))}


def chat(model, tokenizer, cfg, options):
    """A conversation until an empty line, the end of input or Ctrl-C, which in an answer ends that alone."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  with it, input() knows the arrow keys
    print("an empty line ends the conversation", file=sys.stderr)
    if not tokenizer.has_chat_template:
        print("this model has no chat template and goes on from each line by itself", file=sys.stderr)
    turns = []
    while True:
        try:
            said = input('> ' if sys.stdout.isatty() else '')
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            said = ''
        if not said.strip():
            return
        turns.append({'role': 'user', 'content': said})
        try:
            kept, ids = fitting_turns(model, tokenizer, cfg, turns, options)
            room = with_room(options, ids, model.config.block_size)
        except ValueError as e:  # too long, or with an unknown character
            print(f"error: {e}", file=sys.stderr)
            turns.pop()
            continue
        if len(kept) < len(turns):
            lost = f"the first {len(turns) - len(kept)} messages are forgotten"
            print(f"(this model reads {model.config.block_size} tokens: {lost})", file=sys.stderr)
        answer = Stream(tokenizer)
        with contextlib.suppress(KeyboardInterrupt):
            generate(model, [ids], on_token=answer, **room)
        turns = [*kept, {'role': 'assistant', 'content': answer.end()}]


def prompt_ids(prompt, tokenizer, cfg, chat_template='auto'):
    """Token ids of a text, or of chat messages, as training reads them."""
    ids, _ = render({'prompt': prompt}, tokenizer, cfg.system_prompt, chat_template, cfg.chat_template_kwargs,
                    cfg.add_special_tokens)
    return ids


def fitting_turns(model, tokenizer, cfg, turns, options):
    """The last turns that leave half of the model's block for the answer, and their token ids."""
    if not tokenizer.has_chat_template:
        return turns, prompt_ids(turns[-1]['content'], tokenizer, cfg)
    block_size = model.config.block_size
    longest = block_size - min(options['max_new_tokens'], block_size // 2)
    while len(ids := prompt_ids(turns, tokenizer, cfg)) > longest and len(turns) > 1:
        turns = turns[2:]
    return turns, ids


def ranking(record, cfg, device):
    """
    What ranks completions of a record: a function of texts that returns {name: a value for each, or None
    where it does not apply}, the score first. None when nothing is asked for. All it needs is loaded, and
    known to apply.
    """
    models = cfg.reward_checkpoint or cfg.cost_checkpoint
    if not (cfg.rewards or models):
        return None
    with warnings.catch_warnings(action='ignore'):  # of weights that do not sum to 1: they matter in training
        rewards = resolve_rewards(cfg.rewards) if cfg.rewards else []
    try:
        for gap in check_fields(rewards, [record]).values():
            raise gap[0]
    except ValueError as e:
        raise ValueError(f"{e}; --reference, --tests and --context give more") from None
    scorer = TextScorer(cfg.reward_checkpoint, cfg.cost_checkpoint, device) if models else None
    template = '{prompt}{response}' if models.endswith('.pt') else BEAVER_TEMPLATE
    join = joiner(cfg.scorer_template or template)
    weights = {name: weight for name, _, weight in rewards}
    if models:
        weights |= {'reward': 1.0, 'cost': -cfg.lambda_cost}

    def score(texts, ids=None):
        scores = score_completions(rewards, [texts], [record], tokens=ids and [ids])
        parts = {name: values[0] for name, values in scores.items()}
        if scorer:
            values = scorer.score(scorer.encode([join(record['prompt'], text) for text in texts]))
            parts |= {part.kind: list(value) for (part, *_), value in zip(scorer.parts, values, strict=True)}
        tensors = {name: reward_tensor(name, [values]) for name, values in parts.items()}
        total = weighted_reward(tensors, {name: weights[name] for name in parts})[0]
        return {'score': total.nan_to_num(-torch.inf).tolist()} | (parts if len(parts) > 1 else {})

    return score


def asking_policy(saved, model, tokenizer, cfg, options, record):
    """A TurnPolicy where cfg, or the run's settings, name an environment of ours; else None."""
    asking = {**vars(Asking.Settings), 'reward_errors': 'raise', **saved.get('config', {})}
    name, asking = cfg.environment or asking['environment'], type(cfg)(**asking | vars(cfg))
    if name not in ENVIRONMENTS:
        return None
    policy = CausalPolicy(model, tokenizer, options['max_new_tokens'], top_k=cfg.top_k, top_p=cfg.top_p)
    policy.temperature = cfg.temperature  # which may be 0
    records = [{'columns': record, 'templated': cfg.chat_template}]
    return TurnPolicy(policy, asking, find_environment(name), lambda batch: records)


def complete(model, tokenizer, ids, num_samples, options, score, asking=None):
    """Print completions of a prompt (token ids): one as it comes; several, by score, or else by log-prob."""
    if num_samples == 1 and not score and not asking:
        answer = Stream(tokenizer)
        try:
            generate(model, [ids], on_token=answer, **options)
        finally:
            answer.end()
        return
    if asking:
        batch = prompt_batch([ids], seeds_of(options['seed'], 1), model.wte.weight.device)
        made = asking.sample(batch, num_samples)
    else:
        made = generate(model, [ids], num_samples, **options)
    lengths, logps = made.lengths[0].tolist(), made.logps[0].sum(dim=-1).tolist()
    rows = zip(made.tokens[0].tolist(), lengths, made.ended[0].tolist(), strict=True)
    ids = [tokens[:n] for tokens, n in zip(made.tokens[0].tolist(), lengths, strict=True)]
    texts = shown = [tokenizer.decode(tokens[:n - ended]) for tokens, n, ended in rows]
    if asking:
        texts = shown = asking.texts(made)[0]
    if asking and sys.stdout.isatty():
        shown = asking.marked(made)[0]
    columns = (score(texts, ids) if score else {}) | {'log-prob': logps}
    best, *_ = columns.values()
    rows = []
    for i in sorted(range(num_samples), key=lambda i: (best[i], logps[i]), reverse=True):
        values = [column[i] for column in columns.values()]
        cells = ['-' if value is None else f'{value:.3f}' for value in values]
        rows.append(([*cells, str(lengths[i])], shown[i], '' if made.ended[0, i] else ' ...'))
    show_ranked([*columns, 'tokens', 'completion'], rows)


def show_causal(saved, model, tokenizer, cfg):
    """Chat with a causal model, or let it complete cfg.prompt."""
    options = {'max_new_tokens': cfg.max_new_tokens, 'temperature': cfg.temperature, 'top_k': cfg.top_k,
               'top_p': cfg.top_p, 'eos_id': tokenizer.eos_ids, 'seed': cfg.seed,
               'forbidden': forbidden_tokens(tokenizer, model)}
    prompt = given('prompt', cfg.prompt)
    if not prompt:
        chat(model, tokenizer, cfg, options)
        return
    ids = prompt_ids(prompt, tokenizer, cfg, cfg.chat_template)
    options = with_room(options, ids, model.config.block_size)
    if cfg.lambda_cost is None:
        cfg.lambda_cost = saved.get('lagrange', {'value': 1.0})['value']
    fields = {'prompt': prompt, 'reference': cfg.reference, 'tests': cfg.tests, 'context': cfg.context}
    record = {name: value for name, value in fields.items() if value}
    score = ranking(record, cfg, model.wte.weight.device)
    asking = asking_policy(saved, model, tokenizer, cfg, options, record)
    complete(model, tokenizer, ids, cfg.num_samples or (8 if score else 1), options, score, asking)
