"""
Mathematics: is the answer the reference's, and do the equations on the way hold? All numbers are exact.
"""
import ast
import re
import threading
from fractions import Fraction

from rewards import NUMBER, final_number, last_box, numbers_in, plain_numbers, plain_text, reward, shorten

SAID = re.compile(r'answer\s*(?:is|:|=)\s*', re.IGNORECASE)
SIMPLE = str.maketrans('', '', ' \t\n$')


def stated_answer(text):
    """What a text gives as its answer: what follows the last '####', else stands in the last \\boxed{}, else follows the last 'answer is' on its line, else the last line."""
    _, marked, rest = text.rpartition('####')
    if marked:
        return rest.strip().partition('\n')[0].strip()
    box = last_box(text)
    if box is not None:
        return box.strip()
    *_, said = [None, *SAID.finditer(text)]
    line = text[said.end():].partition('\n')[0] if said else text.strip().rpartition('\n')[2]
    return line.strip().rstrip('.').strip()


# Powers of powers, exponents of many digits and factorials of them: to work them out does not end. No answer is written so.
ENDLESS = re.compile(r'\^\s*\{[^{}]*\^|\^\s*\w\s*\^|\^\s*\{?\s*-?[0-9]{4,}|[0-9]{3,}\s*!')


def equal_in_latex(wanted, got):
    """Do two LaTeX expressions mean the same? By math-verify, never by its parser of plain expressions, which evaluates what the model wrote."""
    try:
        import math_verify
    except ImportError:
        raise ImportError(f"the reference {shorten(wanted)} is no number; to compare expressions it needs the package: pip install math-verify") from None
    # its time limit is an alarm, which works in the main thread alone and elsewhere fails silently
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    parsed = [math_verify.parse(f'${x}$', [math_verify.LatexExtractionConfig()], extraction_mode='first_match', parsing_timeout=limit) for x in (wanted, got)]
    if not parsed[0]:
        raise ValueError(f"math-verify cannot read the reference {shorten(wanted)}")
    return bool(math_verify.verify(*parsed, timeout_seconds=limit))


UNIT = re.compile(r'[\s$€£¥₹%.,°]*(?:[A-Za-z]{2,}[\s.,]*)*')


def number_alone(text):
    """The number that a text is, perhaps with a unit (18 eggs), or None: beside signs or a single letter it is part of an expression."""
    found = numbers_in(text)
    return found[0] if len(found) == 1 and UNIT.fullmatch(NUMBER.sub('', plain_numbers(text))) else None


@reward('math_correctness', needs=('reference',))
def math_correctness(text, *, reference=None):
    """
    1 when the text's answer is the reference's: numbers exactly, words letter by letter, and expressions as LaTeX (math-verify). A number is final_number's, but for one behind 'answer is',
    which counts before other numbers; a reference may be a solution that ends in `#### 42`.
    """
    wanted = stated_answer(plain_text(reference))
    if not wanted:
        return None
    number, got = number_alone(wanted), stated_answer(text)
    if wanted.translate(SIMPLE) == got.translate(SIMPLE):
        return 1.0
    if number is None and not re.search(r'[\\^_=0-9]|[A-Za-z] ?[-+*/]', wanted):  # a word, or the letter of a choice
        return float(got.strip('()[]. ').casefold() == wanted.strip('()[]. ').casefold())
    if number is None:
        return float(0 < len(got) <= 300 and not ENDLESS.search(got) and equal_in_latex(wanted, got))
    found = numbers_in(got) if SAID.search(text) and '####' not in text and last_box(text) is None else []
    return float((found[0] if found else final_number(text)) == number)


TERM = r'[-−+(]{0,4}\$?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)%?\){0,4}'
OPERATOR = r'\s?[-+*/×÷−]\s?'
EQUATION = re.compile(rf'(?<![\w.])({TERM}(?:{OPERATOR}{TERM}){{1,20}})\s?=\s?(?=({TERM}(?:{OPERATOR}{TERM}){{0,20}}))')
OPERATIONS = {ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b, ast.Mult: lambda a, b: a * b, ast.Div: lambda a, b: a / b}


def calculate(expression):
    """The exact value of numbers, brackets and + - * /, a Fraction. Raises SyntaxError, ValueError and ZeroDivisionError for all else; nothing is run."""
    def value(node):
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            return value(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return Fraction(ast.get_source_segment(expression, node))
        raise ValueError(f"cannot calculate {expression!r}")
    for sign, plain in (('×', '*'), ('÷', '/'), ('−', '-'), (',', ''), ('$', '')):
        expression = expression.replace(sign, plain)
    expression = re.sub(r'([0-9.]+)%', r'(\1/100)', expression).strip()
    return value(ast.parse(expression, mode='eval').body)


def equations_in(text):
    """[(is it true, the equation)] of `expression = expression`, the first with an operator: 2 + 3 = 5. To the digits that a number on the right is given with."""
    found = []
    for left, right in EQUATION.findall(text):
        digits = len(right.partition('.')[2]) if re.fullmatch(r'[-−$0-9,]*\.[0-9]+', right) else 0
        try:
            error = abs(calculate(left) - calculate(right))
        except (SyntaxError, ValueError, ZeroDivisionError):
            continue  # what only looks like an equation: 6/0, 007
        found.append((error <= (Fraction(1, 2 * 10 ** digits) if digits else 0), f'{left}={right}'))
    return found


@reward('math_reasoning', needs=('reference',))
def math_reasoning(text, *, reference=None):
    """0.7 for the right answer (math_correctness) and 0.3 times the share of different equations in the text (see equations_in) that are true."""
    right = math_correctness(text, reference=reference)
    steps = {equation: true for true, equation in equations_in(text)}
    return None if right is None else 0.7 * right + (0.3 * sum(steps.values()) / len(steps) if steps else 0.0)
