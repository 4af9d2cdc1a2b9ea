"""
Generated reasoning problems that check their own answers, from the package reasoning-gym (Apache-2.0, about
100 tasks). `python data/reasoning_gym/prepare.py --task=chain_sum --n=5000 --options="{'max_terms': 3}"`
writes train.jsonl and val.jsonl with the fields prompt, answer (one right answer; a few tasks name none) and
context, from which the reward reasoning_gym scores. Short prompts for a small model: basic_arithmetic,
chain_sum, gcd, letter_counting, spell_backward, countdown, gsm_symbolic.
"""
import json
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.prompts import write_splits
from formats.optional import optional
from rewards import score
from rewards.answers import EXECUTES_COMPLETIONS
from runtime.config import Count, configure


def check_scoring(task, record):
    """Raises ValueError where the task's own scoring cannot be trusted with what a model writes."""
    prompt, answer, context = record['prompt'], record['answer'], record['context']
    if answer is not None and score('reasoning_gym', answer, prompt=prompt, context=context) != 1:
        raise ValueError(f"the task {task!r} does not accept its own answer {answer!r}: choose another")
    no_answer = 'I do not know.'
    if answer != no_answer and score('reasoning_gym', no_answer, context=context) == 1:
        raise ValueError(f"the task {task!r} gives full marks to {no_answer!r}: choose another")


def make_problems(task, n, n_val, seed, options):
    """(train, val): n and n_val records, no question twice."""
    reasoning_gym = optional('reasoning_gym', "this data set takes a package: pip install reasoning-gym")
    if task in EXECUTES_COMPLETIONS:
        raise ValueError(f"the task {task!r} runs the model's answer as Python code: choose another")
    try:
        problems = reasoning_gym.create_dataset(task, seed=seed, size=3 * (n + n_val), **options)
    except (TypeError, ValueError, AssertionError) as e:
        raise ValueError(f"reasoning_gym refuses the task {task!r} with options {options}: {e}") from None
    records = {}
    for problem in problems:
        context = {'task': task, 'options': options, 'entry': problem}
        record = {'prompt': problem['question'], 'answer': problem['answer'], 'context': context}
        records.setdefault(problem['question'], json.loads(json.dumps(record)))  # as it will be read back
        if len(records) == n + n_val:
            break
    if len(records) < n + n_val:
        raise ValueError(f"the task {task!r} gave only {len(records)} of {n + n_val} different questions: "
                         "lower n, or widen it with options")
    records = list(records.values())
    for record in records[:20]:
        check_scoring(task, record)
    return records[n_val:], records[:n_val]


def main(task='chain_sum', n=5000, n_val=500, seed=0, options=None):
    train, val = make_problems(task, n, n_val, seed, options or {})
    write_splits(__file__, val=val, train=train)


if __name__ == '__main__':
    task = 'chain_sum'  # one of reasoning_gym's
    n: Count = 5000     # problems to train on
    n_val: Count = 500  # and held out
    seed = 0            # another seed gives other problems
    options = {}        # the task's own settings, "{'max_terms': 3}"
    configure(globals())
    main(task, n, n_val, seed, options)
