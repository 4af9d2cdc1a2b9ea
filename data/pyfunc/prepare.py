"""
Python functions of one line, for a small model: "Write a Python function add3(x) that returns x plus 3. For
example, add3(4) == 7, ..." `python data/pyfunc/prepare.py` writes train.jsonl and val.jsonl with the fields
prompt, answer (a solution), tests (three asserts, which the prompt shows) and hidden_tests (five it does
not): an answer that hard-codes what it was shown passes the first and fails the second. No function is in
both files. Tests that a constant passes are left out, with a count.
"""
import os
import random
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.prompts import write_jsonl
from runtime.config import configure

N_SHOWN = 3   # tests in the prompt
N_HIDDEN = 5  # and not in it
LETTERS = 'aeiorstlnpdcmbg'
WORDS = ('banana apple tree river stone letter garden window summer orange little yellow tomato pepper '
         'silver candle kitten rabbit needle bottle '
         'cat dog sun moon bread water paper pencil table chair bird fish cloud rain snow blue green red '
         'milk sugar').split()

# (arguments, name, what it returns, expression); {j} and {k} are numbers from 2 on, {c} and {d} letters, {w}
# a word
TEMPLATES = (
    ('x', 'add{k}', 'x plus {k}', 'x + {k}'),
    ('x', 'subtract{k}', 'x minus {k}', 'x - {k}'),
    ('x', 'subtract_from{k}', '{k} minus x', '{k} - x'),
    ('x', 'times{k}', 'x times {k}', 'x * {k}'),
    ('x', 'linear', '{j} times x plus {k}', '{j} * x + {k}'),
    ('x', 'scale', 'x plus {j}, multiplied by {k}', '(x + {j}) * {k}'),
    ('x', 'square_plus{k}', 'the square of x plus {k}', 'x * x + {k}'),
    ('x', 'remainder{k}', 'the remainder of x divided by {k}', 'x % {k}'),
    ('x', 'divide_by{k}', 'x divided by {k}, rounded down to a whole number', 'x // {k}'),
    ('x', 'is_multiple_of{k}', 'True if x is a multiple of {k}, and False otherwise', 'x % {k} == 0'),
    ('x', 'is_more_than{k}', 'True if x is greater than {k}, and False otherwise', 'x > {k}'),
    ('x', 'at_least{k}', 'the larger of x and {k}', 'max(x, {k})'),
    ('x', 'at_most{k}', 'the smaller of x and {k}', 'min(x, {k})'),
    ('x', 'distance_to{k}', 'how far x is from {k}, as a number that is never negative', 'abs(x - {k})'),
    ('x', 'count_up', 'the list of the numbers from x to x plus {k}', 'list(range(x, x + {k} + 1))'),
    ('x, y', 'combine', '{j} times x plus {k} times y', '{j} * x + {k} * y'),
    ('x, y', 'sum_plus{k}', 'the sum of x and y, plus {k}', 'x + y + {k}'),
    ('x, y', 'product_minus{k}', 'x times y, minus {k}', 'x * y - {k}'),
    ('x, y', 'larger_times{k}', 'the larger of x and y, times {k}', 'max(x, y) * {k}'),
    ('x, y', 'average_plus{k}', 'the average of x and y, plus {k}', '(x + y) / 2 + {k}'),
    ('x, y', 'far_apart{k}', 'True if x and y differ by more than {k}, and False otherwise',
     'abs(x - y) > {k}'),
    ('s', 'first{k}', 'the first {k} characters of the string s', 's[:{k}]'),
    ('s', 'last{k}', 'the last {k} characters of the string s', 's[-{k}:]'),
    ('s', 'skip{k}', 'the string s without its first {k} characters', 's[{k}:]'),
    ('s', 'repeat{k}', 'the string s repeated {k} times', 's * {k}'),
    ('s', 'every{k}', 'the characters of the string s at the positions 0, {k} and so on in steps of {k}',
     's[::{k}]'),
    ('s', 'length_plus{k}', 'the length of the string s plus {k}', 'len(s) + {k}'),
    ('s', 'is_longer_than{k}', 'True if the string s has more than {k} characters, and False otherwise',
     'len(s) > {k}'),
    ('s', 'count_{c}', "how often the letter '{c}' occurs in the string s", "s.count('{c}')"),
    ('s', 'has_{c}', "True if the letter '{c}' occurs in the string s, and False otherwise", "'{c}' in s"),
    ('s', 'replace_{c}', "the string s with each '{c}' replaced by '{d}'", "s.replace('{c}', '{d}')"),
    ('s', 'without_{c}', "the string s without the letter '{c}'", "s.replace('{c}', '')"),
    ('s', 'add_{w}', "the string s with '{w}' added at its end", "s + '{w}'"),
    ('s', 'start_with_{w}', "the string s with '{w}' put in front of it", "'{w}' + s"),
    ('s', 'upper_and_{w}', "the string s in capital letters, followed by '{w}'", "s.upper() + '{w}'"),
    ('s', 'reverse_and_{w}', "the string s written backwards, followed by '{w}'", "s[::-1] + '{w}'"),
    ('s', 'is_{w}', "True if the string s is '{w}', and False otherwise", "s == '{w}'"),
    ('xs', 'sum_plus{k}', 'the sum of the list xs, plus {k}', 'sum(xs) + {k}'),
    ('xs', 'add{k}_to_each', 'a list with {k} added to each number of the list xs', '[x + {k} for x in xs]'),
    ('xs', 'multiply_each_by{k}', 'a list with each number of the list xs multiplied by {k}',
     '[x * {k} for x in xs]'),
    ('xs', 'change_each', 'a list with each number x of the list xs replaced by {j} times x plus {k}',
     '[{j} * x + {k} for x in xs]'),
    ('xs', 'more_than{k}', 'a list of the numbers in the list xs that are greater than {k}',
     '[x for x in xs if x > {k}]'),
    ('xs', 'less_than{k}', 'a list of the numbers in the list xs that are less than {k}',
     '[x for x in xs if x < {k}]'),
    ('xs', 'multiples_of{k}', 'a list of the numbers in the list xs that are multiples of {k}',
     '[x for x in xs if x % {k} == 0]'),
    ('xs', 'count_above{k}', 'how many numbers in the list xs are greater than {k}',
     'len([x for x in xs if x > {k}])'),
    ('xs', 'contains{k}', 'True if {k} is in the list xs, and False otherwise', '{k} in xs'),
    ('xs', 'append{k}', 'the list xs with {k} added at its end', 'xs + [{k}]'),
    ('xs', 'put{k}_first', 'the list xs with {k} put in front', '[{k}] + xs'),
    ('xs', 'without{k}', 'the list xs without the number {k}', '[x for x in xs if x != {k}]'),
    ('xs', 'largest_plus{k}', 'the largest number of the list xs, plus {k}', 'max(xs) + {k}'),
    ('xs', 'smallest_times{k}', 'the smallest number of the list xs, times {k}', 'min(xs) * {k}'),
)


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
    """A random member of a random template: (constants, arguments, name, what it returns, expression)."""
    parameters, *texts = rng.choice(TEMPLATES)
    constants = {'j': rng.randint(2, 20), 'k': rng.randint(2, 10 if parameters == 's' else 99),
                 'c': rng.choice(LETTERS), 'd': rng.choice('xyzuvw'), 'w': rng.choice(WORDS)}
    return constants, parameters, *(text.format(**constants) for text in texts)


def make_problem(constants, parameters, name, returns, expression, rng):
    """The function's record, or None when no tests were drawn that constants fail."""
    function = eval(f'lambda {parameters}: {expression}')  # an expression from above
    values = {}  # by arguments, all as source
    for _ in range(50):
        arguments = draw_arguments(parameters, constants, rng)
        values[', '.join(map(repr, arguments))] = repr(function(*arguments))
    asked = rng.sample(sorted(values), min(N_SHOWN + N_HIDDEN, len(values)))
    shown, hidden = asked[:N_SHOWN], asked[N_SHOWN:]
    constant = 1 in (len({values[a] for a in shown}), len({values[a] for a in hidden}))
    if len(hidden) < N_HIDDEN or constant:
        return None
    examples = [f'{name}({a}) == {values[a]}' for a in asked]
    return {'prompt': f"Write a Python function {name}({parameters}) that returns {returns}. For example, "
                      f"{', '.join(examples[:N_SHOWN - 1])} and {examples[N_SHOWN - 1]}.",
            'answer': f'def {name}({parameters}):\n    return {expression}',
            'tests': ['assert ' + e for e in examples[:N_SHOWN]],
            'hidden_tests': ['assert ' + e for e in examples[N_SHOWN:]]}


def make_problems(n, n_val, seed):
    """
    (train, val, number left out): n and n_val records, no function twice. Raises ValueError when there are
    not so many.
    """
    rng, seen, problems, left_out, in_vain = random.Random(seed), set(), [], 0, 0
    while len(problems) < n + n_val:
        drawn = draw_function(rng)
        in_vain = in_vain + 1 if drawn[1:] in seen else 0
        if in_vain == 10_000:
            raise ValueError(f"there are hardly more than {len(problems):,} different functions, "
                             f"{n + n_val:,} were asked for: lower n")
        if not in_vain:
            seen.add(drawn[1:])
            problem = make_problem(*drawn, rng)
            problems += [problem] if problem else []
            left_out += problem is None
    rng.shuffle(problems)
    return problems[n_val:], problems[:n_val], left_out


def main(n=3000, n_val=200, seed=0):
    """Raises ValueError."""
    if min(n, n_val) < 1:
        raise ValueError(f"n is {n} and n_val {n_val}: both must be at least 1")
    folder = os.path.dirname(os.path.abspath(__file__))
    train, val, left_out = make_problems(n, n_val, seed)
    print(f"left out {left_out:,} functions whose tests a constant passes")
    write_jsonl(os.path.join(folder, 'val.jsonl'), val)
    write_jsonl(os.path.join(folder, 'train.jsonl'), train)


if __name__ == '__main__':
    n = 3000     # functions to train on
    n_val = 200  # and held out
    seed = 0     # another seed gives other functions and tests
    configure(globals())
    main(n, n_val, seed)
