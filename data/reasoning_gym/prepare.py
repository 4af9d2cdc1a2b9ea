"""
Generated reasoning problems that check their own answers, from the package reasoning-gym (Apache-2.0, about
100 tasks). `python data/reasoning_gym/prepare.py --task=chain_sum --n=5000 --options="{'max_terms': 3}"`
writes train.jsonl and val.jsonl with the fields prompt, answer (one right answer; a few tasks name none) and
context, from which the reward reasoning_gym scores. Short prompts for a small model: basic_arithmetic,
chain_sum, gcd, letter_counting, spell_backward, countdown, gsm_symbolic.
"""
import difflib
import json
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.prompts import write_jsonl
from rewards import score
from rewards.answers import EXECUTES_COMPLETIONS
from runtime.config import configure


def make_problems(task, n, n_val, seed, options):
    """
    (train, val): lists of n and n_val records, no question twice. options: the task's own settings. Raises
    ImportError without the package; ValueError for an unknown task or option, one with too few different
    questions, and a task whose own scoring cannot be trusted with what a model writes.
    """
    try:
        import reasoning_gym
    except ImportError:
        raise ImportError("this data set needs the package: pip install reasoning-gym") from None
    if task not in reasoning_gym.factory.DATASETS:
        near = difflib.get_close_matches(task, reasoning_gym.factory.DATASETS, n=3, cutoff=0.4)
        meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ''
        raise ValueError(f"reasoning_gym has no task {task!r}{meant}")
    if task in EXECUTES_COMPLETIONS:
        raise ValueError(f"the task {task!r} runs the model's answer as Python code to score it: not safe, "
                         "choose another task")
    try:
        problems = reasoning_gym.create_dataset(task, seed=seed, size=3 * (n + n_val), **options)
    except (TypeError, ValueError, AssertionError) as e:
        raise ValueError(f"reasoning_gym refuses task {task!r} with options {options}: {e}") from None
    records = {}
    for problem in problems:
        context = {'task': task, 'options': options, 'entry': problem}
        records.setdefault(problem['question'],
                           {'prompt': problem['question'], 'answer': problem['answer'], 'context': context})
        if len(records) == n + n_val:
            break
    if len(records) < n + n_val:
        raise ValueError(f"the task {task!r} gave only {len(records)} different questions, {n + n_val} were "
                         "asked for: lower n, or widen it with options")
    records = [json.loads(json.dumps(record)) for record in records.values()]  # as they will be read back
    for record in records[:20]:
        if record['answer'] is not None and score('reasoning_gym', record['answer'],
                                                  **{k: record[k] for k in ('prompt', 'context')}) != 1:
            raise ValueError(f"the task {task!r} does not accept its own answer {record['answer']!r} once "
                             "it has been through a file: choose another task")
        if score('reasoning_gym', 'I do not know.',
                 context=record['context']) == 1 and record['answer'] != 'I do not know.':
            raise ValueError(f"the task {task!r} gives full marks to 'I do not know.': choose another task")
    return records[n_val:], records[:n_val]


def main(task='chain_sum', n=5000, n_val=500, seed=0, options=None):
    if min(n, n_val) < 1:
        raise ValueError(f"n is {n} and n_val {n_val}: both must be at least 1")
    folder = os.path.dirname(os.path.abspath(__file__))
    train, val = make_problems(task, n, n_val, seed, options or {})
    write_jsonl(os.path.join(folder, 'val.jsonl'), val)
    write_jsonl(os.path.join(folder, 'train.jsonl'), train)


if __name__ == '__main__':
    task = 'chain_sum'  # one of reasoning_gym's
    n = 5000            # problems to train on
    n_val = 500         # and held out
    seed = 0            # another seed gives other problems
    options = {}        # the task's own settings, "{'max_terms': 3}"
    configure(globals())
    main(task, n, n_val, seed, options)
