"""Right or wrong: is the answer the record's?"""
import functools
import json
import re

from rewards.parsing import answer_part, final_number
from rewards.reward import optional, reward


@reward(binary=True)
def exact_answer(text, *, reference, case_sensitive=True, after=None, tag=None):
    """1 for the reference, but for space around it. after, tag: where the answer is, see answer_part."""
    wanted, got = str(reference).strip(), answer_part(text, after, tag)
    if not wanted:
        return None
    if got is None or case_sensitive:
        return float(got == wanted)
    return float(got.casefold() == wanted.casefold())


@reward(binary=True)
def number_answer(text, *, reference, after=None, tag=None):
    """1 when the final number is the reference's, which may be a solution that ends in `#### 42`."""
    wanted, part = final_number(str(reference)), answer_part(text, after, tag)
    if wanted is None:
        return None
    return float(part is not None and final_number(part) == wanted)


# ---- reasoning-gym

# Tasks whose own scoring evaluates the completion: __import__('os').system(...) in it is run. Each task of
# reasoning-gym 0.1.25 was tried.
EXECUTES_COMPLETIONS = ('binary_matrix', 'intermediate_integration', 'n_queens', 'polynomial_multiplication',
                        'simple_integration', 'spiral_matrix', 'string_insertion')
# These do so too, but their answers are digits and operators, and anything else is refused.
ARITHMETIC_TASKS = ('countdown', 'puzzle24')
ARITHMETIC = re.compile(r'(?!.*\*\s*\*)[0-9+\-*/() ]{1,200}')  # no powers: 9**9**9 does not end


@functools.cache
def reasoning_gym_task(task, options):
    package = optional('reasoning_gym', "it needs the package: pip install reasoning-gym")
    return package.create_dataset(task, size=1, seed=0, **json.loads(options))


@reward(cheap=False)
def reasoning_gym(text, *, context, partial=False, after=None, tag=None):
    """1 for full marks by the task's own scoring. partial: its marks; many tasks give junk a few."""
    if not isinstance(context, dict) or not {'task', 'options', 'entry'} <= set(context):
        return None
    task, entry = context['task'], context['entry']
    if task in EXECUTES_COMPLETIONS:
        raise ValueError(f"the task {task!r} runs the model's answer as Python code: not safe")
    answer = answer_part(text, after, tag)
    if answer is None or (task in ARITHMETIC_TASKS and not ARITHMETIC.fullmatch(answer)):
        return 0.0
    scorer = reasoning_gym_task(task, json.dumps(context['options'], sort_keys=True))
    try:
        value = float(scorer.score_answer(answer, entry))
    except Exception:  # an answer that it cannot read is wrong, unless it cannot read its own either
        scorer.score_answer(entry['answer'], entry)
        value = 0.0
    return value if partial else float(value >= 1)
