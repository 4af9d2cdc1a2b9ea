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
from itertools import chain, pairwise
from pathlib import Path

from formats.optional import optional
from rewards.numerals import ENGLISH, tokenize
from rewards.parsing import answer_part, plain_text
from rewards.reward import reward
from rewards.values import any_of, same, spans, squeezed, value_of, values_in

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
# A stop that ends no sentence: Mr. Smith, J. K. Rowling, the U.S. Senate.
ABBREVIATION = re.compile(r'(?:(?<=\b(?:Mr|Ms|Dr|St|Mt|Jr|Sr))|(?<=\bMrs)|(?<=\b[A-Z])(?=\.\s?[A-Z]\.)'
                          r'|(?<=\.[A-Z])(?=. (?!It|Th|He|So|In))|(?<=\. [A-Z]))\.(?=\s?[A-Z])')


def cleaned(text):
    *_, text = THOUGHTS_END.split(text[-LONGEST_TEXT:].replace('\r\n', '\n'))
    text = THOUGHTS.split(text, maxsplit=1)[0].strip()
    turns = [turn.start() for turn in NEXT_TURN.finditer(text) if turn.start() > 0]
    kept, inside = [], None
    for line in ABBREVIATION.sub('', MARKUP.sub('', text[:min(turns, default=None)])).split('\n'):
        fence = FENCE.match(line)
        if fence:
            inside = fence[1].lower() if inside is None else None
        elif inside not in PROGRAMS:      # what they print, in fences of its own, stays
            kept.append(line)
    return '\n'.join(kept).strip()


# ---- plainer

RAISED = re.compile('[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+')
TEXT_COMMAND = re.compile(r'\\(?:(?:text)?color\s*\{\w+\}|text[a-z]*|math(?:rm|bf|it|sf|tt)|[mh]box'
                          r'|operatorname|underline|emph)\s*\{([^{}]*)\}')
NUMBERS = {word: n for n, word in enumerate(ENGLISH['below twenty'])}
NUMBERS |= {word: 10 * n for n, word in enumerate(ENGLISH['tens'], 2)}
DIGIT = any_of(*ENGLISH['below twenty'][:10])
BELOW_100 = any_of(rf"{any_of(*ENGLISH['tens'])}(?:[- ]{DIGIT})?", *ENGLISH['below twenty'][::-1])
BELOW_1000 = rf'{BELOW_100}(?: hundred(?: (?:and )?{BELOW_100})?)?'
SPOKEN = re.compile(rf'\b{BELOW_1000}(?: (?:thousand|million|billion)(?:,? (?:and )?{BELOW_1000})?)*'
                    rf'(?: point(?: {DIGIT})+)?\b', re.IGNORECASE)
MONTHS = ENGLISH['months']
DATE = re.compile(rf'\b(?:\d\d?(?:st|nd|rd|th)? (?:of )?)?({"|".join(MONTHS)})\b'
                  r'(?: (?:the )?\d\d?(?:st|nd|rd|th)?(?![\d:]))?(?:,? \d{4}\b)?')
TIME = re.compile(r"\b(\d\d?)(?::(\d\d))?\s?(?:([ap])\.?m\b\.?|o'clock)", re.IGNORECASE)

def spoken(match):
    words, _, decimals = match[0].lower().replace('-', ' ').partition(' point ')
    total = below = 0
    for word in words.replace(',', '').split():
        scale = ENGLISH['scales'].get(word, 1)
        below = below * scale + NUMBERS.get(word, 0)
        if scale > 100:
            total, below = total + below, 0
    behind = ''.join(str(NUMBERS[word]) for word in decimals.split())
    return f'{total + below}.{behind}' if behind else str(total + below)


def date(match):
    """§7-4-1776, which is no number."""
    numbers = sorted(map(int, re.findall(r'\d+', match[0])))
    return '-'.join(map(str, [f'§{MONTHS.index(match[1]) + 1}', *numbers])) if numbers else match[0]


def time_of_day(match):
    hour, minute, half = match.groups('')
    return f"{int(hour) % 12 + 12 * (half in 'pP') if half else hour}:{minute or '00'}"


ISO_DATE = re.compile(r'(?<!\d)(\d{4})-(0[1-9]|1[0-2])-(\d\d)(?!\d)')
PLAINER = [(ISO_DATE, lambda m: f'{m[3]} {MONTHS[int(m[2]) - 1]} {m[1]}'), (SPOKEN, spoken), (DATE, date),
           (TIME, time_of_day)]
for line in Path(__file__).with_name('plainer.txt').read_text(encoding='utf-8').splitlines():
    pattern, arrow, plain = line.partition(' => ')
    if arrow:
        PLAINER.append((re.compile(pattern), plain.replace('␣', ' ').replace('∅', '')))


def plainer(text):
    """The text in plainer characters and LaTeX: − is -, ² is ^{2}, \\text{km} is km, 3:30 PM is 15:30."""
    text = RAISED.sub(lambda m: '^{' + unicodedata.normalize('NFKC', m[0]) + '}', text)
    text = re.sub('[¼-¾⅐-⅞]', r' \g<0>', text)
    text = unicodedata.normalize('NFKC', text)
    for pattern, plain in PLAINER:
        text = pattern.sub(plain, text)
    for _ in range(2):       # one in another
        text = TEXT_COMMAND.sub(r' \1 ', text)
    return re.sub(r'(?<=\{) | (?=\})', '', text.replace('$', ' '))


# ---- 2. where the answer stands

def phrases(before, name, behind=r')\b'):
    return re.compile(before + '|'.join(ENGLISH[name]) + behind, re.IGNORECASE)


SAID = phrases(r'(?:\b|(?<=[^\x00-\x7f]))(?:', 'answer', r')(?:[^\n.:=,]{0,40}?(?:\b(?:is|ist|est)\b|[:=是])'
               r'(?:\s*(?:therefore|thus|:|\*\*))*|[ \t*_#]*\n|\s*-\s|(?=\s*[\\$(]))|(?m:^)A:\s|故选')
BOX = re.compile(r'(\\(?:boxed|fbox)\s*)?(\{|\})|\\boxed\s*(\w+)')
HASHES = re.compile(r'(?<!#)####(?!#)[ \t]*([^\n]*)')
TAG = re.compile(r'<answer>(.*?)(?:</answer>|\Z)', re.DOTALL | re.IGNORECASE)
BOLD = re.compile(r'\*\*([^*\n]+)\*\*')
BOLD_MARKS = re.compile(r'\*\*(?!\d)|(?<!\d)\*\*|`')
TAKEN_BACK = any_of(*ENGLISH['taken back'])
SENTENCE_END = re.compile(
    r'(?<=[.!?。])["”*)$]*(?:\s+(?![a-z0-9]|(?:Or|Alternatively),? (?:it is )?\W?\d|It \w+ also)|\n)'
    rf'|\n+|(?<=\d[.!?])\s+(?=\d)|(?:[,;]|\.\.) (?=(?:no,? )?{TAKEN_BACK}(?!\w))')
CORRECTION = phrases(rf"\b(?:{TAKEN_BACK}|", 'corrected', r')(?!\w)|^no[,.]')
EXPLANATION = phrases(r'^\W*(?:', 'explanation')
BROKEN_OFF = phrases(r'\b(?:', 'broken off', r')$|[=+*/×]$|\\boxed\s*\{\W*$')
BETWEEN_BOXES = re.compile(r'(?:[\s$.,;*\\{}]|q?quad|text|and|or|\(?[a-h1-9]\)|\\\][^a-z]){0,20}'
                           r'|[^.\n]{0,40}\b(?:or|alternatively)\b[^.\n]{0,40}')
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
        start = re.compile(r'(?:[ \n*_$`":#]|\n>|\\[\[("])*').match(text, match.end()).end()
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
    bold = [match for match in BOLD.finditer(text) if re.search(r'\d.*(?<!:)$', match[1])]
    if bold:
        content, start = bold[-1][1], bold[-1].start()
        for before in reversed(bold[:-1]):      # **3** or **5**
            between = text[before.end():start]
            if '\n\n' in between or not BETWEEN_BOXES.fullmatch(between):
                break
            content, start = f'{before[1]} and {content}', before.start()
        return unmarked(content)
    parts = sentences(text)
    while len(parts) > 1 and (EXPLANATION.search(parts[-1]) or ASIDE.fullmatch(' ' + parts[-1].rstrip('.'))):
        parts.pop()
    if not parts or BROKEN_OFF.search(parts[-1]):
        return ''
    return '\n'.join(unmarked(part).rstrip('!') for part in parts[-300:])


# ---- 3. what a statement says

CHOICE = re.compile(r'\(?[A-Z]\)?')
CHOICES = re.compile(r'[A-Z]\)?(?:(?:,\s*|\s+and\s+)\(?[A-Z]\)?)+')
LABEL = re.compile(r'^\(?[A-J](?:\)\s*|[.:]\s+| - )(?=\S)')
ASIDE = re.compile(r'(?:(?<=\S)\s*|\s)\((?!or |alternatively )(?=[^()\\]*[^\W\d_]{2})[^()]*\)')  # 18 (9 eggs)
RESTATED = re.compile(r'(?<=[\d%]) \(([\d\s.+*/×÷·^%=-]+)\)(?![^.]*=)')      # 18 (3 × 6)
# What was before, or is not: not 12 but 15, falls from 80 to 68.
NOT_BUT = phrases('(?:', 'not but', ')')
CONTRAST = phrases('(?:', 'contrast', r')\b[^,;.]*')
RULED_OUT = phrases(r'\b(?:', 'ruled out')
REASON = phrases('(?:', 'reason', r')(?s:.*)')
SO = phrases(r'\b(?:', 'so')
SAYS = phrases(r'\b(?:', 'says', r')\b|(?<!\s):\s')
BOUND = phrases('(?:', 'bound', r')\s(?=\W{0,3}\d)')
RANGE = re.compile(r'(?<![\d.,])(\d+(?:\.\d+)?) to (\d+(?:\.\d+)?)')
UNSAID = phrases(r'\b(?:', 'unsaid')
NOT_IT = phrases(r'^[\s$(*]*(?:[<>]|\\[lg]eq?(?![a-z]))|\d\s*(?:≠|\\neq?(?![a-z]))|\b(?:', 'not it')
OR = phrases('(?:', 'or')
FINDING = phrases(r'\b(?:', 'finding')
GUESS = phrases(r'\b(?:', 'guess')


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
    """The Value that a statement gives, or None. A calculation is done where its result stands with it."""
    value = value_given(statement)
    if value is None or not value.undone:
        return value
    sides = [values_of(side) for side in re.split('[=≈]|: ', statement)]
    done = {item.number for item in items_of(chain(*sides)) if not item.undone}
    return value._replace(undone=value.number is None or value.number not in done)


def value_given(statement):
    statement = CONTRAST.sub('', ranged(NOT_BUT.sub(' is ', statement)))
    statement = LABEL.sub('', RESTATED.sub(r', \1', statement).strip(' *_`"\n'))
    if NOT_IT.search(last_part(last_clause(REASON.sub('', ASIDE.sub('', statement))))):
        return None
    for form in (ASIDE.sub('', statement), statement):
        whole = whole_value(form)
        if whole is not None:
            return whole
    statement = REASON.sub('', ASIDE.sub('', statement))
    clause = last_clause(statement)
    unsaid = UNSAID.search(clause) or BOUND.search(clause) and '=' not in clause
    return None if unsaid or alternatives_in(statement, len(statement) - len(clause)) else value_in(clause)


def last_part(clause):
    """From the last of its parts that has a value."""
    parts = re.split('[;:,] ', clause)
    last = max((i for i, part in enumerate(parts) if values_of(part)), default=0)
    return ', '.join(parts[last:]).strip()


def ranged(text):
    """With 3-5 for 3 to 5, and 3:2 for 3 to 2."""
    def joined(match):
        rises = float(match[1]) < float(match[2]) and 'ratio' not in text
        return f"{match[1]}{'-' if rises else ':'}{match[2]}"
    return RANGE.sub(joined, text)


def alternatives_in(text, at):
    """Does it give one value or another, behind `at`? 12 or maybe 15; it might be 12, it might be 15."""
    pieces = [piece for piece in spans(text) if piece[0] < piece[1]]
    for one, other in pairwise(pieces):
        between = text[one[1]:other[0]]
        either = OR.search(between) or GUESS.search(between) and GUESS.search(text[:one[0]])
        if other[0] >= at and either and not same(*(value_of(tokenize(text[i:j])) for i, j in (one, other))):
            return True
    return False


def last_clause(statement):
    """What stands behind the last 'so' that has a value or says another thing: so the output is empty."""
    parts = SO.split(statement)
    while len(parts) > 1 and not values_of(parts[-1]) and not SAYS.search(parts[-1]):
        parts.pop()
    return parts[-1]


def value_in(clause):
    """The first value behind the last 'is' that has one behind it, else the last."""
    total, colon, parts = clause.rpartition(': ')
    if colon and len(values_of(parts)) > 1 and values_of(total):      # 11 objects: 2 cones, 3 cubes
        clause = total
    first, *others = SAYS.split(clause)
    for part in reversed(others):
        if found := values_of(part):
            return found[0]
    return next((found[-1] for part in BY.split(first) if (found := values_of(part))), None)


def choices_said(statement):
    """The set of the letters that a statement chooses."""
    statement = CONTRAST.sub('', REASON.sub('', NOT_BUT.sub(' is ', statement)))
    parts = re.split('[,;.]', statement)
    statement = ', '.join(part for part in parts if not RULED_OUT.search(part))
    letters = re.findall(r"(?<![\w'])([B-HJ-Z]|A(?!\s+(?!and\b|or\b|is\b)[a-z])|I(?=[).]))(?![\w']"
                         r"|\s?[=^+*/_<>])", statement)
    lead = re.match(r'[\s*(\["\'`{]*([A-Za-z])[\s*)\]"\'`}]*(?:[.:,)\-]|\s[A-Z(]|$)', statement)
    several = CHOICES.match(statement) or re.search(r'\b(?:or|and) (?:maybe )?\(?[A-Z]\b', statement)
    options = re.findall(r'(?<!\w)(?<!\w\()[A-Z]\)\s', statement)      # all of them, repeated
    several = several or len(options) > 1
    return {lead[1].upper()} if lead and not several else set(letters)


VERDICT = re.compile(r'(yes|no|true|false)\b(?! (?:and|or)\b|(?:[\s,/]+(?:yes|no|true|false|maybe)\b)+\W*$)',
                     re.IGNORECASE)
NAMES = phrases(r'\b(?:', 'named', r')\s|[:=] ?')
BY = phrases(r'\b(?:', 'by')


def bare(text):
    """Words to compare: lower case, without articles, quotes, hyphens and stops."""
    text = re.sub(r'["“”\'’`*_$\\{}!?-]', '', text.lower()).strip(' .,;:()[]')
    text = re.sub(r',?\s(?:\d+ times|then|instead|now|does|did|is|was)$|\b(?:the|a|an)\s+', '', text)
    return ' '.join(text.split())


def words_said(statement):
    """What a statement may name, bare: itself, or what stands behind 'is', 'in', 'prints', or in quotes."""
    statement = ASIDE.sub('', CONTRAST.sub('', NOT_BUT.sub(' is ', statement))).strip()
    verdict = VERDICT.match(statement)
    *_, clause = ['', *filter(str.strip, SO.split(REASON.sub('', statement)))]
    clause = clause.strip(' ,').rpartition('; ')[2]
    after = NAMES.split(clause)
    forms = [statement, clause, LABEL.sub('', statement), re.sub(r'\([^()]*\)$', '', statement)]
    if not UNSAID.search(clause):
        forms += [after[-1], BY.split(after[-1])[-1]]
        forms += after[:1] if len(after) == 2 and after[1].startswith(('the ', 'a ')) else []
    elif len(after) > 1:
        forms.append(after[-1])
    named = {bare(form) for form in forms}
    return (named - {'yes', 'no', 'true', 'false'}) | {verdict[1].lower()} if verdict else named


def answer_said(statements):
    """The Value that the last line with one gives. The line before it may be the result of a calculation."""
    lines = (plainer(line[-LONGEST_STATEMENT:]).strip() for line in reversed(statements.split('\n')))
    lines = filter(values_of, lines)
    value, before = value_said(next(lines, '')), None
    if value is not None and value.undone and value.number is not None:
        before = value_said(next(lines, ''))
    return before if before is not None and before.number == value.number else value


def says(statements, wanted):
    """Does the last of the statements, or for a value the last that has one, give what is wanted?"""
    statement = plainer(statements.rpartition('\n')[2][-LONGEST_STATEMENT:]).strip()
    if squeezed(statement) == squeezed(wanted):
        return True
    if CHOICE.fullmatch(wanted) or CHOICES.fullmatch(wanted):
        return choices_said(statement) == set(re.findall('[A-Z]', wanted))
    value = whole_value(ranged(wanted.strip('$ ')))
    if value is None:
        return bare(wanted) in words_said(statement) or states(statement, wanted)
    got = answer_said(statements)
    if got is not None:
        wants_result = value.number is not None and not (value.equation or value.undone)
        return same(value, got) and not (wants_result and got.undone)
    return value.number is None and bare(wanted) in words_said(statement)


def states(statement, wanted):
    """Is it there in these words, which say themselves that there is no other answer?"""
    return ' ' in wanted and bool(FINDING.search(wanted)) and f' {bare(wanted)} ' in f' {bare(statement)} '


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
    return [item.number for item in items_of(values) if item.number is not None]


def items_of(values):
    """The values, and in a list's place its items."""
    return [item for value in values for item in value.items or [value]]


@functools.lru_cache(maxsize=1024)
def final_number(text):
    """The number that a text answers with, a Fraction, or None."""
    got = answer_said(final_statement(cleaned(text)))
    if got is None or got.number is None or got.undone or ':' in got.source:
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
