"""Is the answer the reference's, and do the equations on the way hold? All numbers are exact."""
import ast
import operator
import re
from fractions import Fraction

from rewards.answers import is_right
from rewards.reward import reward


@reward()
def math_correctness(text, *, reference):
    """1 when the text's answer is the reference's (or its solution's, `#### 42`), see rewards/answers.py."""
    right = is_right(text, reference)
    return None if right is None else float(right)


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
