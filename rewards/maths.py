"""Is the answer the reference's, and do the equations on the way hold? All numbers are exact."""
import ast
import operator
import re
import threading
from fractions import Fraction

from rewards.parsing import final_number, last_box, number_alone, numbers_in, plain_text
from rewards.reward import optional, reward, shorten

SAID = re.compile(r'answer\s*(?:is|:|=)\s*', re.IGNORECASE)
SIMPLE = str.maketrans('', '', ' \t\n$')
# Powers of powers, exponents and factorials of many digits do not end, and no answer is written so.
ENDLESS = re.compile(r'\^\s*\{[^{}]*\^|\^\s*\w\s*\^|\^\s*\{?\s*-?[0-9]{4,}|[0-9]{3,}\s*!')


def stated_answer(text):
    r"""What stands behind the last '####', else in the last \boxed{}, else behind 'answer is', else last."""
    _, mark, rest = text.rpartition('####')
    if mark:
        return rest.strip().partition('\n')[0].strip()
    box = last_box(text)
    if box is not None:
        return box.strip()
    said = list(SAID.finditer(text))
    line = text[said[-1].end():].partition('\n')[0] if said else text.strip().rpartition('\n')[2]
    return line.strip().rstrip('.').strip()


def equal_in_latex(wanted, got):
    """Do they mean the same? Read as LaTeX alone: math-verify evaluates plain expressions to read them."""
    need = "to compare expressions takes the package: pip install math-verify"
    math_verify = optional('math_verify', f"the reference {shorten(wanted)} is no number; {need}")
    # its time limit is an alarm, which fails silently outside of the main thread
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    options = {'extraction_mode': 'first_match', 'parsing_timeout': limit}
    latex = [math_verify.LatexExtractionConfig()]
    parsed = [math_verify.parse(f'${x}$', latex, **options) for x in (wanted, got)]
    if not parsed[0]:
        raise ValueError(f"math-verify cannot read the reference {shorten(wanted)}")
    return bool(math_verify.verify(*parsed, timeout_seconds=limit))


@reward(binary=True)
def math_correctness(text, *, reference):
    """
    1 when the text's answer is the reference's (or its solution's, `#### 42`): numbers exactly, words letter
    by letter, expressions as LaTeX. A number behind 'answer is' goes before final_number's.
    """
    wanted, got = stated_answer(plain_text(reference)), stated_answer(text)
    if not wanted:
        return None
    if wanted.translate(SIMPLE) == got.translate(SIMPLE):
        return 1.0
    number = number_alone(wanted)
    if number is not None:
        marked = '####' in text or last_box(text) is not None
        numbers = numbers_in(got) if SAID.search(text) and not marked else []
        return float((numbers[0] if numbers else final_number(text)) == number)
    if re.search(r'[\\^_=0-9]|[A-Za-z] ?[-+*/]', wanted):
        return float(0 < len(got) <= 300 and not ENDLESS.search(got) and equal_in_latex(wanted, got))
    # a word, or the letter of a choice
    return float(got.strip('()[]. ').casefold() == wanted.strip('()[]. ').casefold())


# ---- equations

TERM = r'[-−+(]{0,4}\$?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)%?\){0,4}'
OPERATOR = r'\s?[-+*/×÷−]\s?'
LEFT, RIGHT = rf'{TERM}(?:{OPERATOR}{TERM}){{1,20}}', rf'{TERM}(?:{OPERATOR}{TERM}){{0,20}}'
EQUATION = re.compile(rf'(?<![\w.])({LEFT})\s?=\s?(?=({RIGHT}))')
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
PLAIN = str.maketrans({'×': '*', '÷': '/', '−': '-', ',': None, '$': None})


def calculate(expression):
    """The Fraction that it comes to; nothing is run. Raises SyntaxError, ValueError, ZeroDivisionError."""
    expression = re.sub(r'([0-9.]+)%', r'(\1/100)', expression.translate(PLAIN)).strip()

    def value(node):
        match node:
            case ast.BinOp(left, sign, right) if type(sign) in OPERATIONS:
                return OPERATIONS[type(sign)](value(left), value(right))
            case ast.UnaryOp(ast.USub(), operand):
                return -value(operand)
            case ast.UnaryOp(ast.UAdd(), operand):
                return value(operand)
            case ast.Constant(int() | float()):
                return Fraction(ast.get_source_segment(expression, node))
        raise ValueError(f"cannot calculate {expression!r}")
    return value(ast.parse(expression, mode='eval').body)


def equations_in(text):
    """[(equation, is it true, perhaps rounded)] of each `a + b = c` and the like."""
    equations = []
    for left, right in EQUATION.findall(text):
        digits = len(right.partition('.')[2]) if re.fullmatch(r'[-−$0-9,]*\.[0-9]+', right) else 0
        try:
            error = abs(calculate(left) - calculate(right))
        except (SyntaxError, ValueError, ZeroDivisionError):
            continue  # what only looks like an equation: 6/0, 007
        allowed = Fraction(1, 2 * 10 ** digits) if digits else 0
        equations.append((f'{left}={right}', error <= allowed))
    return equations


@reward()
def math_reasoning(text, *, reference):
    """0.7 for the right answer (math_correctness), 0.3 for the share of different equations that are true."""
    right = math_correctness(text, reference=reference)
    if right is None:
        return None
    steps = dict(equations_in(text)).values()
    return 0.7 * right + (0.3 * sum(steps) / len(steps) if steps else 0.0)
