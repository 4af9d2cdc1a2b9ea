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
from runtime.config import Count, configure

N_SHOWN = 3   # tests in the prompt
N_HIDDEN = 5  # and not in it
LETTERS = 'aeiorstlnpdcmbg'
WORDS = '''
banana apple tree river stone letter garden window summer orange little yellow tomato pepper silver candle
kitten rabbit needle bottle cat dog sun moon bread water paper pencil table chair bird fish cloud rain snow
blue green red milk sugar
'''.split()

FUNCTIONS = {  # by parameters: name | what it returns | expression; draw_function fills them in
    'x': '''
add{k} | x plus {k} | x + {k}
subtract{k} | x minus {k} | x - {k}
subtract_from{k} | {k} minus x | {k} - x
times{k} | x times {k} | x * {k}
linear | {j} times x plus {k} | {j} * x + {k}
scale | x plus {j}, multiplied by {k} | (x + {j}) * {k}
square_plus{k} | the square of x plus {k} | x * x + {k}
remainder{k} | the remainder of x divided by {k} | x % {k}
divide_by{k} | x divided by {k}, rounded down to a whole number | x // {k}
is_multiple_of{k} | True if x is a multiple of {k}, and False otherwise | x % {k} == 0
is_more_than{k} | True if x is greater than {k}, and False otherwise | x > {k}
at_least{k} | the larger of x and {k} | max(x, {k})
at_most{k} | the smaller of x and {k} | min(x, {k})
distance_to{k} | how far x is from {k}, as a number that is never negative | abs(x - {k})
count_up | the list of the numbers from x to x plus {k} | list(range(x, x + {k} + 1))
''',
    'x, y': '''
combine | {j} times x plus {k} times y | {j} * x + {k} * y
sum_plus{k} | the sum of x and y, plus {k} | x + y + {k}
product_minus{k} | x times y, minus {k} | x * y - {k}
larger_times{k} | the larger of x and y, times {k} | max(x, y) * {k}
average_plus{k} | the average of x and y, plus {k} | (x + y) / 2 + {k}
far_apart{k} | True if x and y differ by more than {k}, and False otherwise | abs(x - y) > {k}
''',
    's': '''
first{k} | the first {k} characters of the string s | s[:{k}]
last{k} | the last {k} characters of the string s | s[-{k}:]
skip{k} | the string s without its first {k} characters | s[{k}:]
repeat{k} | the string s repeated {k} times | s * {k}
every{k} | the characters of the string s at the positions 0, {k} and so on in steps of {k} | s[::{k}]
length_plus{k} | the length of the string s plus {k} | len(s) + {k}
is_longer_than{k} | True if the string s has more than {k} characters, and False otherwise | len(s) > {k}
count_{c} | how often the letter '{c}' occurs in the string s | s.count('{c}')
has_{c} | True if the letter '{c}' occurs in the string s, and False otherwise | '{c}' in s
replace_{c} | the string s with each '{c}' replaced by '{d}' | s.replace('{c}', '{d}')
without_{c} | the string s without the letter '{c}' | s.replace('{c}', '')
add_{w} | the string s with '{w}' added at its end | s + '{w}'
start_with_{w} | the string s with '{w}' put in front of it | '{w}' + s
upper_and_{w} | the string s in capital letters, followed by '{w}' | s.upper() + '{w}'
reverse_and_{w} | the string s written backwards, followed by '{w}' | s[::-1] + '{w}'
is_{w} | True if the string s is '{w}', and False otherwise | s == '{w}'
''',
    'xs': '''
sum_plus{k} | the sum of the list xs, plus {k} | sum(xs) + {k}
add{k}_to_each | a list with {k} added to each number of the list xs | [x + {k} for x in xs]
multiply_each_by{k} | a list with each number of the list xs multiplied by {k} | [x * {k} for x in xs]
change_each | a list with each number x of the list xs replaced by {j} times x plus {k} | \
[{j} * x + {k} for x in xs]
more_than{k} | a list of the numbers in the list xs that are greater than {k} | [x for x in xs if x > {k}]
less_than{k} | a list of the numbers in the list xs that are less than {k} | [x for x in xs if x < {k}]
multiples_of{k} | a list of the numbers in the list xs that are multiples of {k} | \
[x for x in xs if x % {k} == 0]
count_above{k} | how many numbers in the list xs are greater than {k} | len([x for x in xs if x > {k}])
contains{k} | True if {k} is in the list xs, and False otherwise | {k} in xs
append{k} | the list xs with {k} added at its end | xs + [{k}]
put{k}_first | the list xs with {k} put in front | [{k}] + xs
without{k} | the list xs without the number {k} | [x for x in xs if x != {k}]
largest_plus{k} | the largest number of the list xs, plus {k} | max(xs) + {k}
smallest_times{k} | the smallest number of the list xs, times {k} | min(xs) * {k}
''',
}
TEMPLATES = [(parameters, *line.split(' | ')) for parameters, lines in FUNCTIONS.items()
             for line in lines.strip().split('\n')]


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
    write_splits(__file__, val=val, train=train)


if __name__ == '__main__':
    n: Count = 3000     # functions to train on
    n_val: Count = 200  # and held out
    seed = 0            # another seed gives other functions and tests
    configure(globals())
    main(n, n_val, seed)
