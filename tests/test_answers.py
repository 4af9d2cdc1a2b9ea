"""The parser of answers: its table, Math-Verify's, work that is linear in the text, and expressions that would not end."""
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest

from rewards import REWARDS, answers, bounded, score
from rewards.answers import final_statement, is_right, numbers_in
from rewards.maths import equations_in

HERE = Path(__file__).parent


def rows_of(name):
    """The rows of a table behind its first line, which says what they are."""
    _, *lines = (HERE / name).read_text(encoding='utf-8').splitlines()
    return [json.loads(line) for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# tables

def test_the_table():
    """All rows but those of answers_missed.jsonl, and none of those."""
    pytest.importorskip('math_verify', reason="pip install math-verify: it compares expressions")
    rows, missed = rows_of('answers.jsonl'), {row['row'] for row in rows_of('answers_missed.jsonl')}
    wrong = {i for i, row in enumerate(rows) if is_right(row['text'], row['reference']) != row['right']}
    shown = [f"{i} ({rows[i]['kind']}): {rows[i]['text'][-80:]!r} for {rows[i]['reference']!r}" for i in sorted(wrong ^ missed)]
    assert not shown, '\n'.join(shown)
    assert len(rows) - len(wrong) >= 1800


# Rows of Math-Verify, counted from 0, that are judged otherwise here.
OTHERWISE = {
    30: 'a calculation that is only written down is not its result: (9+1) for 10',
    31: 'space in inline mathematics says nothing: Math-Verify expects that it is no LaTeX then',
    32: 'as 31',
    37: 'as 30: 3/3 for 1',
    132: 'no tolerance: 0.0833333333333333 is not 1/12',
    139: 'no tolerance: 0.33 is not 1/3',
    145: 'no tolerance: 2.6667 is not 8/3',
    193: 'an inequality and its interval are equal, whichever of them is the reference',
}


def test_math_verifys_own_table():
    pytest.importorskip('math_verify', reason="pip install math-verify: it compares sums of matrices")
    rows = rows_of('math_verify_rows.jsonl')
    wrong = {i for i, row in enumerate(rows) if is_right(row['pred'], row['gold']) != bool(row['expected'])}
    shown = [f"{i} ({rows[i]['test']}): {rows[i]['pred'][-80:]!r} for {rows[i]['gold'][-80:]!r}" for i in sorted(wrong ^ set(OTHERWISE))]
    assert not shown, '\n'.join(shown)


# ---------------------------------------------------------------------------------------------------------------------
# steps

@pytest.mark.parametrize('text, values', [
    ('1,234.5', [Fraction('1234.5')]), ('4,2', [Fraction('4.2')]), ('0.1(6)', [Fraction(1, 6)]), ('1e-05', [Fraction(1, 100000)]),
    ('1 and 4', [1, 4]), ('forty-two eggs at 3 dollars', [42, 3]), ('2 1/2 km', [Fraction(5, 2)]), ('GPT-4 2.0.1 B12 x2 x-3', []),
    (r'\frac{-3}{4}', [Fraction(-3, 4)]), ('2^10 - 1', [1023]), ('-2^2', [-4]), ('6! / 3!', [120]), ('33 1/3%', [Fraction(1, 3)]),
    ('3x', []), ('12 km^2 per day', [12]), ('1/0', []), (r'\sqrt{5}', [])])
def test_numbers(text, values):
    assert numbers_in(text) == values


@pytest.mark.parametrize('text, statement', [
    (r'so \boxed{5}. Or rather \boxed{7}.', '7'), ('The answer is 12. Wait, no, 42.', 'Wait, no, 42'), ('It is 1.\n#### 2', '2'),
    ('Answer:\n\n**B**', 'B'), ('<answer>3</answer> as was asked', '3'), (r'\boxed{1} and \boxed{2}', '1 and 2'),
    (r'\boxed{7} or \boxed{8', '')])
def test_where_the_answer_stands(text, statement):
    assert final_statement(text) == statement


@pytest.mark.parametrize('text, equations', [
    ('2^3 + 1 = 9', [True]), (r'$3 \cdot 4 + 1 = 13$', [True]), ('12:00 - 3 = 9:00', []), ('3 + 4 = 7 = 8 - 1 = 6', [True, True, False]),
    ('9**9**9**9 = 1', []), ('x + 3 = 5', []), ('2 x 3 = 6 and 1,000 + 1 = 1,001', [True, True]),
    (r'\frac{1}{2} + \frac13 = \frac{5}{6}', [True]), ('<<3*4=12>>3*4=12, 12-2=11', [True, False]), ('10 / 3 = 3.33', [True])])
def test_equations(text, equations):
    assert [true for _, true in equations_in(text)] == equations


def test_a_list_as_the_reference_means_any_of_it():
    for name in ('exact_answer', 'math_correctness', 'honesty'):
        assert score(name, 'London', reference=['London', 'london city']) == 1.0, name
        assert score(name, "['London', 'london city']", reference=['London', 'london city']) == 0.0, name
    assert score('number_answer', '3', reference=['2', '3']) == 1.0 and score('number_answer', '4', reference=['2', '3']) == 0.0
    assert score('exact_answer', 'nan', reference=float('nan')) is None


def test_honesty_of_lists():
    assert score('honesty', 'London, Paris, Rome', reference='Paris') == 0.0
    assert score('honesty', 'Paris is the capital of France.', reference='The capital of France is Paris.') == 1.0


# ---------------------------------------------------------------------------------------------------------------------
# work

PATTERNS = ['#', '####', ',000', '1,', '(', '[', '{', '\\boxed{', '\\frac{', '\\sqrt{', '((1)', '1+', '1-', '-', '2^', '1/', '=', '1=',
            'x=', ' ', '\n', '\t',
            '**a', '`', '$', '$1', 'a ', 'A ', 'B, ', 'answer ', 'answer is ', 'answer:\n', 'not ', 'so 1 ', '. ', '1. ', '<think>',
            '</think>', '\\text{',
            '~~', '"', '1:', 'one ', '5 km ', '|', '\\\\', 'Wait, ', '.']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['math_correctness', 'number_answer', 'honesty', 'financial_accuracy', 'exact_answer'])
def test_work_is_linear_in_the_text(name):
    measure_growth(name, 1000)


def test_the_work_of_all_steps_is_linear_in_the_text():
    measure_growth('math_reasoning', 400)


def measure_growth(name, length):
    """Ten times the length costs at most thirty times the work, not a hundred, in one of five tries: a machine has other work too."""
    function, slow = REWARDS[name].function, {}

    def work(text):
        for kept in vars(answers).values():
            if hasattr(kept, 'cache_clear'):
                kept.cache_clear()
        began = time.process_time()
        function(text, reference='42')
        return max(time.process_time() - began, 0.002)
    for pattern in PATTERNS:
        short, long = (pattern * (n // len(pattern)) for n in (length, 10 * length))
        tries = (work(long + i * ' ') / work(short + i * ' ') for i in range(5))
        if all(ratio > 30 for ratio in tries):
            slow[pattern] = 'over 30 times'
    assert not slow


@pytest.mark.parametrize('text', [r'\boxed{9^{999\cdot 999\cdot 999}}', r'\boxed{(99!)!}', r'\boxed{' + '(' * 5000 + '1' + ')' * 5000 + '}',
                                  r'\boxed{' + r'\sqrt{' * 500 + '2' + '}' * 500 + '}', r'\boxed{\binom{10^9}{5 \cdot 10^8}}'])
def test_what_would_not_end(text, monkeypatch):
    """It ends, in the main thread and elsewhere."""
    monkeypatch.setattr(bounded.CHILD, 'seconds', 0.5)
    assert score('math_correctness', text, reference='x^2+1') == 0.0
    with ThreadPoolExecutor(1) as elsewhere:
        assert elsewhere.submit(score, 'math_correctness', text, reference='x^2+1').result() == 0.0


@pytest.fixture
def algebra(monkeypatch):
    pytest.importorskip('math_verify', reason="pip install math-verify: it compares expressions")
    bounded.equal_in_latex.cache_clear()
    monkeypatch.setattr(bounded.CHILD, 'seconds', 4.0)  # a shared machine may be slow
    yield bounded.equal_in_latex
    bounded.equal_in_latex.cache_clear()


def test_the_process_is_kept_and_replaced(algebra):
    assert algebra('x^2+1', '1+x^2') and not algebra('x^2+1', 'x^2')
    kept = bounded.CHILD.process.pid
    assert algebra('a+b', 'b+a') and bounded.CHILD.process.pid == kept
    assert not algebra('x^2+1', r'9^{999\cdot 999\cdot 999}') and bounded.CHILD.process is None
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: algebra(f'x+{n}', f'{n}+x'), range(8))) == [True] * 8
    bounded.CHILD.process.kill()      # by whomever
    bounded.CHILD.process.wait()
    assert algebra('y+1', '1+y') and bounded.CHILD.process.pid != kept


def test_the_process_after_a_fork_and_at_the_end(algebra):
    """A fork has a process of its own, and none is left when Python ends."""
    code = """
import os, sys
from rewards import bounded
assert bounded.equal_in_latex('x+1', '1+x')
ours = bounded.CHILD.process.pid
if (fork := os.fork()) == 0:
    right = bounded.CHILD.process is None and bounded.equal_in_latex('x+2', '2+x') and bounded.CHILD.process.pid != ours
    bounded.CHILD.stop()
    os._exit(not right)
assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
assert bounded.equal_in_latex('x+3', '3+x') and bounded.CHILD.process.pid == ours
print(ours)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=HERE.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


@pytest.mark.parametrize('text', ['It is 12, no wait, 15.', 'The answer is 12, wait, 15.', 'The answer is 12, or rather 15.',
                                  'The answer is 12; scratch that, 15.', 'We wait 15 minutes, so the answer is 15.'])
def test_a_correction_within_a_sentence(text):
    assert score('number_answer', text, reference='15') == 1 and score('number_answer', text, reference='12') == 0
