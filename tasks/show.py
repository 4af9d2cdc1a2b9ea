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
from policy import CausalPolicy, generate, prompt_batch, seeds_of
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


def make_room(policy, cfg, ids):
    """Let the policy write no more behind a prompt's ids than its model reads. Raises ValueError for none."""
    block_size = policy.model.config.block_size
    if len(ids) >= block_size:
        seen = f"the prompt has {len(ids)} tokens, and this model reads {block_size} with its answer"
        raise ValueError(f"{seen}: shorten it")
    policy.max_new_tokens = min(cfg.max_new_tokens, block_size - len(ids))


def chat(policy, cfg):
    """A conversation until an empty line, the end of input or Ctrl-C, which in an answer ends that alone."""
    tokenizer, block_size = policy.tokenizer, policy.model.config.block_size
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
            kept, ids = fitting_turns(turns, tokenizer, block_size, cfg)
            make_room(policy, cfg, ids)
        except ValueError as e:  # too long, or with an unknown character
            print(f"error: {e}", file=sys.stderr)
            turns.pop()
            continue
        if len(kept) < len(turns):
            lost = f"the first {len(turns) - len(kept)} messages are forgotten"
            print(f"(this model reads {block_size} tokens: {lost})", file=sys.stderr)
        stream = Stream(tokenizer)
        with contextlib.suppress(KeyboardInterrupt):
            answer(policy, ids, cfg.seed, stream)
        turns = [*kept, {'role': 'assistant', 'content': stream.shown}]


def prompt_ids(prompt, tokenizer, cfg, chat_template='auto'):
    """Token ids of a text, or of chat messages, as training reads them."""
    ids, _ = render({'prompt': prompt}, tokenizer, cfg.system_prompt, chat_template, cfg.chat_template_kwargs,
                    cfg.add_special_tokens)
    return ids


def fitting_turns(turns, tokenizer, block_size, cfg):
    """The last turns that leave half of the model's block for the answer, and their token ids."""
    if not tokenizer.has_chat_template:
        return turns, prompt_ids(turns[-1]['content'], tokenizer, cfg)
    longest = block_size - min(cfg.max_new_tokens, block_size // 2)
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


def policy_of(saved, model, tokenizer, cfg):
    """A policy that samples as cfg says, and asks where cfg or the run's settings name an environment."""
    policy = CausalPolicy(model, tokenizer, top_k=cfg.top_k, top_p=cfg.top_p)
    policy.temperature = cfg.temperature  # which may be 0
    settings = {**vars(Asking.Settings), 'reward_errors': 'raise', **saved.get('config', {}), **vars(cfg)}
    name = cfg.environment or saved.get('config', {}).get('environment')
    if name in ENVIRONMENTS:
        records = [{'columns': {}, 'templated': cfg.chat_template}]
        return TurnPolicy(policy, type(cfg)(**settings), find_environment(name), lambda batch: records)
    if name:
        print(f"(environment {name!r} is a function of the run's config: nothing answers)", file=sys.stderr)
    return policy


def sample(policy, ids, num_samples, seed):
    """Completions of a prompt, token ids, as a Rollout of one prompt."""
    device = policy.model.wte.weight.device
    return policy.sample(prompt_batch([ids], seeds_of(seed, 1), device), num_samples)


def as_seen(policy, made):
    """The texts, at a terminal with what an environment wrote in brackets."""
    marks = made.own is not None and sys.stdout.isatty()
    return (policy.marked if marks else policy.texts)(made)[0]


def answer(policy, ids, seed, stream):
    """Print one completion: as it comes, or at its end where the policy asks."""
    if isinstance(policy, TurnPolicy):
        made = sample(policy, ids, 1, seed)
        stream.show(as_seen(policy, made)[0], end='\n')
        stream.shown = policy.texts(made)[0][0]
        return
    sampling = policy.temperature, policy.top_k, policy.top_p, policy.tokenizer.eos_ids
    try:
        generate(policy.model, [ids], 1, policy.max_new_tokens, *sampling, seed, policy.forbidden, stream)
    finally:
        stream.end()


def complete(policy, ids, num_samples, seed, score):
    """Print completions of a prompt (token ids): one by itself; several, by score, or else by log-prob."""
    if num_samples == 1 and not score:
        answer(policy, ids, seed, Stream(policy.tokenizer))
        return
    made = sample(policy, ids, num_samples, seed)
    texts, shown, ids = policy.texts(made)[0], as_seen(policy, made), made.ids()[0]
    lengths, logps = made.lengths[0].tolist(), made.logps[0].sum(dim=-1).tolist()
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
    policy, prompt = policy_of(saved, model, tokenizer, cfg), given('prompt', cfg.prompt)
    if not prompt:
        chat(policy, cfg)
        return
    ids = prompt_ids(prompt, tokenizer, cfg, cfg.chat_template)
    make_room(policy, cfg, ids)
    if cfg.lambda_cost is None:
        cfg.lambda_cost = saved.get('lagrange', {'value': 1.0})['value']
    fields = {'prompt': prompt, 'reference': cfg.reference, 'tests': cfg.tests, 'context': cfg.context}
    record = {name: value for name, value in fields.items() if value}
    score = ranking(record, cfg, model.wte.weight.device)
    complete(policy, ids, cfg.num_samples or (8 if score else 1), cfg.seed, score)
