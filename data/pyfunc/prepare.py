"""
Python functions of one line, for a small model: "Write a Python function add3(x) that returns x plus 3. For
example, add3(4) == 7, ..." `python data/pyfunc/prepare.py` writes train.jsonl and val.jsonl with the fields
prompt, answer (a solution), tests (three asserts, which the prompt shows) and hidden_tests (five it does
not, and which an answer that hard-codes the three fails). Tests that a constant passes are left out.
"""
import os
import random
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.prompts import write_splits
from formats.text_files import read_text
from runtime.config import Count, configure

N_SHOWN = 3   # tests in the prompt
N_HIDDEN = 5  # and not in it
LETTERS = 'aeiorstlnpdcmbg'
# functions.txt: parameters | name | what it returns | expression; draw_function fills them in
FOLDER = os.path.dirname(os.path.abspath(__file__))
FILES = [os.path.join(FOLDER, name) for name in ('functions.txt', 'words.txt')]
TEMPLATES, WORDS = read_text(FILES[0]).splitlines(), read_text(FILES[1]).split()


def draw_arguments(parameters, constants, rng):
    """Arguments near the template's numbers, letters and word, where the functions do different things."""
    def number():
        k = constants['k']
        return rng.choice((rng.randint(-10, 60), k + rng.randint(-3, 3), k * rng.randint(0, 5)))

    def word():
        return rng.choice((rng.choice(WORDS), constants['w'], constants['c'] + rng.choice(WORDS),
                           ''.join(rng.choices(LETTERS, k=rng.randint(1, 8)))))

    if parameters == 's':
        return (word(),)
    if parameters == 'xs':
        return ([number() for _ in range(rng.randint(1, 6))],)
    return tuple(number() for _ in parameters.split(', '))


def draw_function(rng):
    """
    (constants, parameters, name, what it returns, expression) of a random template: {j} and {k} are numbers,
    {c} and {d} letters, {w} is a word.
    """
    parameters, *texts = rng.choice(TEMPLATES).split(' | ')
    constants = {'j': rng.randint(2, 20), 'k': rng.randint(2, 10 if parameters == 's' else 99),
                 'c': rng.choice(LETTERS), 'd': rng.choice('xyzuvw'), 'w': rng.choice(WORDS)}
    return constants, parameters, *(text.format(**constants) for text in texts)


def make_problem(constants, parameters, name, returns, expression, rng):
    """The function's record, or None when no tests were drawn that constants fail."""
    function = eval(f'lambda {parameters}: {expression}')  # an expression of functions.txt
    values = {}  # by arguments, all as source
    for _ in range(50):
        arguments = draw_arguments(parameters, constants, rng)
        values[', '.join(map(repr, arguments))] = repr(function(*arguments))
    asked = rng.sample(sorted(values), min(N_SHOWN + N_HIDDEN, len(values)))
    results = [values[arguments] for arguments in asked]
    constant = 1 in (len(set(results[:N_SHOWN])), len(set(results[N_SHOWN:])))
    if len(asked) < N_SHOWN + N_HIDDEN or constant:
        return None
    calls = [f'{name}({arguments}) == {values[arguments]}' for arguments in asked]
    tests = [f'assert {call}' for call in calls]
    *first, last = calls[:N_SHOWN]
    return {'prompt': f"Write a Python function {name}({parameters}) that returns {returns}. For example, "
                      f"{', '.join(first)} and {last}.",
            'answer': f'def {name}({parameters}):\n    return {expression}',
            'tests': tests[:N_SHOWN], 'hidden_tests': tests[N_SHOWN:]}


def make_problems(n, n_val, seed):
    """(train, val): n and n_val records, no function twice. Raises ValueError."""
    rng, seen, problems, in_vain = random.Random(seed), set(), [], 0
    while len(problems) < n + n_val:
        drawn = draw_function(rng)
        in_vain = in_vain + 1 if drawn[1:] in seen else 0
        if in_vain == 10_000:
            raise ValueError(f"found only {len(problems):,} of {n + n_val:,} different functions: lower n")
        if not in_vain:
            seen.add(drawn[1:])
            problem = make_problem(*drawn, rng)
            problems += [problem] if problem else []
    rng.shuffle(problems)
    return problems[n_val:], problems[:n_val]


def main(n=3000, n_val=200, seed=0):
    train, val = make_problems(n, n_val, seed)
    write_splits(__file__, FILES, val=val, train=train)


if __name__ == '__main__':
    n: Count = 3000     # functions to train on
    n_val: Count = 200  # and held out
    seed = 0            # another seed gives other functions and tests
    configure(globals())
    main(n, n_val, seed)
