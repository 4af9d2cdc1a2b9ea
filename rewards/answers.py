r"""
Right or wrong: is the answer the record's? A text and its reference go the same way:

    cleaned          no thoughts, later turns, programs
    final_statement  a box, ####, 'the answer is', bold, the last sentence
    says             a choice, a value (rewards/values.py), or words
"""
import functools
import json
import re
import unicodedata

from formats.optional import optional
from rewards.numerals import tokenize
from rewards.parsing import answer_part, plain_text
from rewards.reward import reward
from rewards.values import same, spans, squeezed, value_of, values_in

LONGEST_TEXT = 50_000       # characters, from the end
LONGEST_STATEMENT = 2_000

# ---- 1. the text without thoughts, later turns and programs

THOUGHTS_END = re.compile(r'</think(?:ing)?>|\[/THINK\]|<\|channel\|>final(?:<\|message\|>)?', re.IGNORECASE)
THOUGHTS = re.compile(r'<think(?:ing)?>|\[THINK\]|<\|channel\|>analysis', re.IGNORECASE)
NEXT_TURN = re.compile(r'<\|\w+\|>|</s>|<end_of_turn>|\[/?INST\]|'
                       r'^[ \t]*(?:Q|Question|Problem|Human|User)[ \t]*\d*[ \t]*[:.]', re.MULTILINE)
FENCE = re.compile(r'\s*(?:`{3,}|~{3,})\s*(\w*)')
PROGRAMS = ('python', 'py', 'python3', 'tool_code', 'javascript', 'bash', 'java')
MARKUP = re.compile(r'</?(?:b|i|u|em|strong|br|code)\s*/?>|~~[^~\n]*~~|\[\d+\](?!\S)'
                    r'|[✅\u200b-\u200d\ufeff\u00ad]', re.IGNORECASE)


def cleaned(text):
    *_, text = THOUGHTS_END.split(text[-LONGEST_TEXT:].replace('\r\n', '\n'))
    text = THOUGHTS.split(text, maxsplit=1)[0].strip()
    turns = [turn.start() for turn in NEXT_TURN.finditer(text) if turn.start() > 0]
    kept, inside = [], None
    for line in MARKUP.sub('', text[:min(turns, default=None)]).split('\n'):
        fence = FENCE.match(line)
        if fence:
            inside = fence[1].lower() if inside is None else None
        elif inside not in PROGRAMS:      # what they print, in fences of its own, stays
            kept.append(line)
    return '\n'.join(kept).strip()


# ---- plainer characters

RAISED = re.compile('[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+')
TEXT_COMMAND = re.compile(r'\\(?:(?:text)?color\s*\{\w+\}|text[a-z]*|math(?:rm|bf|it|sf|tt)|[mh]box'
                          r'|operatorname|underline|emph)\s*\{([^{}]*)\}')
SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen""".split()
TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()
SPOKEN = re.compile(rf'\b(?:({"|".join(TENS)})(?:[- ]({"|".join(SMALL[1:10])}))?'
                    rf'|({"|".join(SMALL[::-1])}))\b', re.IGNORECASE)
PLAINER = [(re.compile(pattern), plain) for pattern, plain in (
    (r'[−–‐‑—]|\$-\$', '-'), (r'\\approx(?![a-z])', '≈'), (r'\\\$', ' '), (r'\\%', '%'),
    ('⁄', '/'), ('π', r'\\pi '), ('∞', r'\\infty '), ('√|(?<![A-Za-z\\\\])sqrt', r'\\sqrt'),
    (r'\\sqrt\s*\(([^()]*)\)', r'\\sqrt{\1}'), (r'\^?\{?\s?\\(?:circ|degree)(?![a-z])\s?\}?', '°'),
    (r'\\!\s*', ''), (r'\{\s?,\s?\}\s?(?=\d{3}\b)', ''), (r'\{,\}', ','),
    (r'\b(?:percent|percentage|pct)\b', '%'),
    (r'\b(?:[Mm]inus|[Nn]egative)\s+(?=[\d.])', '-'), (r'\\boxed\s*(?:\{\s*\})?', ''), (r'<<[^<>\n]*>>', ''),
    (r'(?<=\d)(?:st|nd|rd|th)\b', ''), (r'(["\'])(-?\d[\d.]*)\1', r'\2'), (r'(?<=\d) and a half', ' 1/2'),
    (r'\b[A-Za-z]\s?(?:\\in(?![a-z])|∈)', ''), ('≤', r'\\leq '), ('≥', r'\\geq '),
    (r'(?<![\\A-Za-z])(sin|cos|tan|ln|log|exp)(?=\()', r'\\\1'),
    (r'(?<=\d)\s?x\s?(?=\d)', '×'), (r'\\([dtc]?frac)\s*(\d)\s*(\d)', r'\\\1{\2}{\3}'),
    (r'(?<![\d/.,%])(\d+) (?:out )?of (\d+)(?![\d.])', r'\1/\2'),
    (r'(?<=\d) and (?=\d+/\d)', ' '), (r'(?<!\\)\\\\(?=\s*&?\s*=)|&(?=\s*=)', ' '),
    (r'\\(?:left|right|displaystyle|[bB]igg?[lr]?|q?quad)(?![A-Za-z])', ' '),
    (r'\\(?:begin|end)\{(?:align|equation|gather|aligned|split)\*?\}|(?<!\\)\\[,;: ()\[\]]|~', ' '))]


def spoken(match):
    tens, ones, small = (word.lower() if word else 'zero' for word in match.groups())
    return str(20 + 10 * TENS.index(tens) + SMALL.index(ones) if match[1] else SMALL.index(small))


def plainer(text):
    """The text in plainer characters and LaTeX: − is -, ² is ^{2}, \\text{km} is km."""
    text = RAISED.sub(lambda m: '^{' + unicodedata.normalize('NFKC', m[0]) + '}', text)
    text = re.sub('[¼-¾⅐-⅞]', r' \g<0>', text)
    text = unicodedata.normalize('NFKC', text)
    text = SPOKEN.sub(spoken, text)
    for pattern, plain in PLAINER:
        text = pattern.sub(plain, text)
    for _ in range(2):       # one in another
        text = TEXT_COMMAND.sub(r' \1 ', text)
    return text.replace('$', ' ')


# ---- 2. where the answer stands

SAID = re.compile(r'(?:\b|(?<=[^\x00-\x7f]))(?:answer|antwort|réponse|答案|correct (?:choice|option))'
                  r'(?:[^\n.:=,]{0,40}?(?:\b(?:is|ist|est)\b|[:=是])(?:\s*(?:therefore|thus|:|\*\*))*'
                  r'|[ \t*_#]*\n|\s*-\s|(?=\s*[\\$(]))|^A:\s|故选', re.IGNORECASE | re.MULTILINE)
BOX = re.compile(r'(\\(?:boxed|fbox)\s*)?(\{|\})|\\boxed\s*(\w+)')
HASHES = re.compile(r'(?<!#)####(?!#)[ \t]*([^\n]*)')
TAG = re.compile(r'<answer>(.*?)(?:</answer>|\Z)', re.DOTALL | re.IGNORECASE)
BOLD = re.compile(r'\*\*([^*\n]+)\*\*')
BOLD_MARKS = re.compile(r'\*\*(?!\d)|(?<!\d)\*\*|`')
SENTENCE_END = re.compile(r'(?<=[.!?。])["”*)$]*(?:\s+(?![a-z0-9])|\n)|\n+'
                          r'|[,;] (?=(?:no,? )?(?:wait|oops|scratch that|correction|or rather)\b)')
CORRECTION = re.compile(r'\b(?:wait|actually|correction|corrected|oops|scratch that|i (?:forgot|made|mis\w+)'
                        r'|my mistake|sorry|hmm|revised|or rather)\b|^no[,.]', re.IGNORECASE)
EXPLANATION = re.compile(r'^\W*(?:note|explanation|details?|check|to (?:verify|check)|if (?:it|there|you)'
                         r'|(?:i )?hope|let me know|thank)\b', re.IGNORECASE)
BETWEEN_BOXES = re.compile(r'(?:[\s$.,;*\\{}]|q?quad|text|and|or|\(?[a-h1-9]\)|\\\][^a-z]){0,20}')
JSON_END = re.compile(r'",\s*"|"\s*\}$')


def boxes(text):
    """[(start, content, end)] of the boxes without boxes in them; the content is None where it breaks off."""
    found, openings = [], []
    for brace in BOX.finditer(text):
        if brace[3]:
            found.append((brace.start(), brace[3], brace.end()))
        elif brace[2] == '{':
            openings.append(brace)
        elif openings:
            opening = openings.pop()
            if opening[1] and not (found and found[-1][0] > opening.start()):
                found.append((opening.start(), text[opening.end():brace.start()], brace.end()))
    broken = [opening for opening in openings if opening[1]]
    if broken:
        found.append((broken[-1].start(), None, len(text)))
    return [box for box in found if box[1] is None or box[1].strip(' .\\_?') not in ('', 'answer')]


def marked(text):
    """[(start, content, end)] of all that is marked as an answer, by where it ends."""
    found = boxes(text) + [(m.start(), m[1], m.end()) for m in TAG.finditer(text)]
    for match in HASHES.finditer(text):
        is_heading = re.match(r'[^\W\d_]{2}', match[1]) and re.compile(r'\s*\S').match(text, match.end())
        found += [] if is_heading else [(match.start(), match[1], match.end())]
    for match in reversed(list(SAID.finditer(text))):
        start = re.compile(r'(?:[ \n*_$`":#>]|\\[\[("])*').match(text, match.end()).end()
        end = SENTENCE_END.search(text, start)
        end = end.start() if end else len(text)
        if text[start:end].strip():      # the last is enough
            found.append((match.start(), JSON_END.split(text[start:end])[0].rstrip('!'), end))
            break
    return sorted((mark for mark in found if mark[1] is None or mark[1].strip()), key=lambda mark: mark[2])


def final_statement(text):
    """What a cleaned text ends up with, '' for nothing. Without a mark: the last sentences, one a line."""
    marks = marked(text)
    if not marks:
        return last_statement(text)
    start, content, end = marks[-1]
    if content is None:
        return ''
    if boxes(content):
        return final_statement(content)
    for before in reversed(marks[:-1]):         # \boxed{3} and \boxed{5}
        both = text.startswith('\\', before[0]) and text.startswith('\\', start)
        if not both or not BETWEEN_BOXES.fullmatch(text[before[2]:start]):
            break
        content, start = f'{before[1]} and {content}', before[0]
    parts = sentences(text[end:])
    corrected = next((i for i, part in enumerate(parts) if CORRECTION.search(part)), None)
    return unmarked(content) if corrected is None else last_statement('\n'.join(parts[corrected:]))


def unmarked(statement):
    """Without the markup and the stop around a statement."""
    statement = BOLD_MARKS.sub('', statement).lstrip(' \n*_`"$').rstrip(' \n*_`"$\\')
    return re.sub(r'(?<!\.)[.。]$', '', statement)


def sentences(text):
    return [part.strip() for part in SENTENCE_END.split(text) if part.strip(' \n.*$')]


def last_statement(text):
    """Without marks: what is bold, else the last sentences that are no notes."""
    bold = [b for b in BOLD.findall(text) if not b.endswith(':') and re.search(r'\d', b)]
    if bold:
        return unmarked(bold[-1])
    parts = sentences(text)
    while len(parts) > 1 and (EXPLANATION.search(parts[-1]) or ASIDE.fullmatch(' ' + parts[-1].rstrip('.'))):
        parts.pop()
    return '\n'.join(unmarked(part).rstrip('!') for part in parts[-300:])


# ---- 3. what a statement says

CHOICE = re.compile(r'\(?([A-Z])\)?')
CHOICES = re.compile(r'[A-Z]\)?(?:(?:,\s*|\s+and\s+)\(?[A-Z]\)?)+')
LABEL = re.compile(r'^\(?[A-J](?:\)\s*|[.:]\s+| - )(?=\S)')
ASIDE = re.compile(r'(?:(?<=\S)\s*|\s)\((?=[^()\\]*[^\W\d_]{2})[^()]*\)')      # 18 (9 eggs at 2 dollars)
NOT_BUT = re.compile(r'\b(?:is |was |are )?not [^,;.]{0,60}? (?:but|which is) (?:rather )?', re.IGNORECASE)
CONTRAST = re.compile(r'(?:\b(?:instead of|rather than|and not)|, (?:not|and no|and \S+ (?:is|are|was|were))'
                      r'|(?<=[a-z] )up to)\b[^,;.]*',
                      re.IGNORECASE)
RULED_OUT = re.compile(r'\b(?:ruled out|ignores?|fails?|too (?:small|large|big)|wrong|tempting|except'
                       r'|other than)\b', re.IGNORECASE)
REASON = re.compile(r"[,;]?\s\b(?:because|since|as|who|where)\b.*", re.DOTALL)
SO = re.compile(r'\b(?:so|thus|hence|therefore|i\.e|that is|but|leaves|then)\b', re.IGNORECASE)
SAYS = re.compile(r'\b(?:is|are|was|were|be|giving|making|leaving|said|got|get|(?:equal|give|make|yield|leave'
                  r'|cost|total|return|print|show|become|take|need)s?)\b|(?<!\s):\s')
BOUND = re.compile(r'(?:\w+ than|at (?:least|most)|under|over|between|up to|from)\s(?=\W{0,3}\d)',
                   re.IGNORECASE)
RANGE = re.compile(r'(?<=\d) to (?=\d)')
UNSAID = re.compile(r"\b(?:cannot|\w+n['’]t|not|never|neither|nor|either|whether)\b", re.IGNORECASE)


@functools.lru_cache(maxsize=4096)
def values_of(text):
    """The Values in a text, in order."""
    return values_in(text)


def whole_value(statement):
    """The Value that a statement is, perhaps with words behind; None for others."""
    if '\\' in statement and not re.search(r'(?<![\\A-Za-z])(?!d[a-z]\b)[A-Za-z]{2,}', statement):
        return value_of(tokenize(statement))
    found = spans(statement)
    return values_of(statement)[0] if len(found) == 1 and found[0][0] == 0 < found[0][1] else None


def value_said(statement):
    """The Value that a statement gives, or None."""
    statement = CONTRAST.sub('', RANGE.sub('-', NOT_BUT.sub(' ', statement)))
    statement = LABEL.sub('', statement.strip(' *_`"\n'))
    for form in (ASIDE.sub('', statement), statement):
        whole = whole_value(form)
        if whole is not None:
            return whole
    clause = last_clause(REASON.sub('', ASIDE.sub('', statement)))
    if UNSAID.search(clause) or BOUND.search(clause) and '=' not in clause:
        return None
    return value_in(clause)


def last_clause(statement):
    """What stands behind the last 'so' that has a value or says another thing: so the output is empty."""
    parts = SO.split(statement)
    while len(parts) > 1 and not values_of(parts[-1]) and not SAYS.search(parts[-1]):
        parts.pop()
    return parts[-1]


def value_in(clause):
    """The first value behind the last 'is' that has one behind it, else the last."""
    first, *others = SAYS.split(clause)
    for part in reversed(others):
        if found := values_of(part):
            return found[0]
    return next((found[-1] for part in BY.split(first) if (found := values_of(part))), None)


def choices_said(statement):
    """The set of the letters that a statement chooses."""
    statement = CONTRAST.sub('', REASON.sub('', NOT_BUT.sub(' ', statement)))
    parts = re.split('[,;.]', statement)
    statement = ', '.join(part for part in parts if not RULED_OUT.search(part))
    letters = re.findall(r"(?<![\w'])([B-HJ-Z]|A(?!\s+(?!and\b|or\b|is\b)[a-z])|I(?=[).]))(?![\w']"
                         r"|\s?[=^+*/_<>])", statement)
    lead = re.match(r'[\s*(\["\'`{]*([A-Za-z])[\s*)\]"\'`}]*(?:[.:,)\-]|\s[A-Z(]|$)', statement)
    several = CHOICES.match(statement) or re.search(r'\b(?:or|and) (?:maybe )?\(?[A-Z]\b', statement)
    return {lead[1].upper()} if lead and not several else set(letters)


NAMES = re.compile(r"\b(?:is|are|was|were|be|it's|named|called|returns?|raises?|reads?|prints?|say)\s|[:=] ?")
BY = re.compile(r'\b(?:in|at|on|to|by|from|with|for|of|per|than)\b')


def bare(text):
    """Words to compare: lower case, without articles, quotes, hyphens and stops."""
    text = re.sub(r'["“”\'’`*_$\\{}!?-]', '', text.lower()).strip(' .,;:()[]')
    return ' '.join(re.sub(r'\b(?:the|a|an)\s+', '', text).split())


def words_said(statement):
    """What a statement may name, bare: itself, or what stands behind 'is', 'in', 'prints', or in quotes."""
    statement = ASIDE.sub('', CONTRAST.sub('', NOT_BUT.sub(' ', statement))).strip()
    if answer := re.match(r'(yes|no|true|false)\b(?! (?:and|or)\b)', statement, re.IGNORECASE):
        return {answer[1].lower()}
    clause = SO.split(REASON.sub('', statement))[-1].strip(' ,').rpartition('; ')[2]
    after = NAMES.split(clause)
    forms = [statement, clause, LABEL.sub('', statement), re.sub(r'\([^()]*\)$', '', statement)]
    if not UNSAID.search(clause):
        forms += [after[-1], BY.split(after[-1])[-1]]
        forms += after[:1] if len(after) == 2 and after[1].startswith(('the ', 'a ')) else []
    elif len(after) > 1:
        forms.append(after[-1])
    return {bare(form) for form in forms}


def last_with_value(statements):
    """Of lines, in plainer characters, the last that has a value, else the last."""
    lines = [line[-LONGEST_STATEMENT:] for line in statements.split('\n')]
    return next(filter(values_of, map(plainer, reversed(lines))), plainer(lines[-1])).strip()


def says(statements, wanted):
    """Does the last of the statements, or for a value the last that has one, give what is wanted?"""
    statement = plainer(statements.rpartition('\n')[2][-LONGEST_STATEMENT:]).strip()
    if squeezed(statement) == squeezed(wanted):
        return True
    if CHOICE.fullmatch(wanted):
        return choices_said(statement) == {CHOICE.fullmatch(wanted)[1]}
    if CHOICES.fullmatch(wanted):
        return choices_said(statement) == set(re.findall('[A-Z]', wanted))
    value = whole_value(RANGE.sub('-', wanted.strip('$ ')))
    if value is None:
        return bare(wanted) in words_said(statement)
    got = value_said(last_with_value(statements))
    if got is not None:
        return same(value, got)
    return value.number is None and bare(wanted) in words_said(statement)


@functools.lru_cache(maxsize=4096)
def wanted_of(reference):
    """A reference's statement: it may be a worked solution, a boxed answer, or the answer alone."""
    text = cleaned(reference)
    return plainer(final_statement(text) if marked(text) else text).strip()


def references_of(reference):
    """A list as the reference means any of it; chat messages are one text; nan is no answer."""
    if isinstance(reference, (list, tuple)) and reference and not isinstance(reference[-1], dict):
        return [text for one in reference for text in references_of(one)]
    return ['' if reference != reference else plain_text(reference)]


def is_right(text, reference):
    """Is the text's answer the reference, or any of a list? None where the reference is empty."""
    wanted = [wanted_of(one) for one in references_of(reference)]
    if not all(wanted):
        return None
    statement = final_statement(cleaned(text))
    return any(says(statement, one) for one in wanted)


def numbers_in(text):
    """All exact numbers of a text, in order."""
    values = [value for line in plainer(text).split('\n') for value in values_of(line)]
    flat = [item for value in values for item in value.items or [value]]
    return [value.number for value in flat if value.number is not None]


@functools.lru_cache(maxsize=1024)
def final_number(text):
    """The number that a text answers with, a Fraction, or None."""
    got = value_said(last_with_value(final_statement(cleaned(text))))
    if got is None or got.number is None or ':' in got.source:
        return None
    return got.number * 100 if got.percent else got.number


# ---- the rewards

@reward(binary=True)
def exact_answer(text, *, reference, case_sensitive=True, after=None, tag=None):
    """1 for the reference, but for space around it. after, tag: where the answer is, see answer_part."""
    wanted, got = [one.strip() for one in references_of(reference)], answer_part(text, after, tag)
    if not all(wanted):
        return None
    if got is not None and not case_sensitive:
        wanted, got = [one.casefold() for one in wanted], got.casefold()
    return float(got in wanted)


@reward(binary=True)
def number_answer(text, *, reference, after=None, tag=None):
    """1 when the final number is the reference's, which may be a solution that ends in `#### 42`."""
    if any(final_number(one) is None for one in references_of(reference)):
        return None
    part = answer_part(text, after, tag)
    return float(part is not None and is_right(part, reference))


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
