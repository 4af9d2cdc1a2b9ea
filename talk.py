"""
What sample.py does with a model, one function a job: a conversation, answers to a prompt, fills of a text; and how that looks: an answer as it grows, several as a
table, best first. A table is for a person; where stdout is no terminal it holds the best answer and nothing else.
"""
import contextlib
import sys
import warnings
from collections import Counter

import torch

from configurator import one_line
from fill_in import FillInPolicy, fill, score_fills
from grpo import gather_logps, head_log_probs, reward_tensor, weighted_reward
from judge import BEAVER_TEMPLATE, TextScorer, joiner
from rewards import check_fields, resolve_rewards, score_answers
from sample import generate


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
    parts = {name: values[0] for name, values in score_answers(rewards, [texts], [record]).items()}
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
