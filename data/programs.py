"""What the data sets of programs share: problems whose tests are sound are kept, the others are counted."""
import collections
import concurrent.futures
import gzip
import json
import os

from sandbox import constant_passes, grade_many
from sandbox.asserts import as_asserts


def verdict_on_tests(record):
    """(why the tests are useless, or None; the tests as a list of statements)."""
    try:
        tests = as_asserts(record['tests'])
        return 'a constant passes their tests' if constant_passes(tests) else None, tests
    except ValueError:
        return 'their tests cannot be graded', None


def keep_sound(records):
    """
    records: with tests as sandbox.as_asserts takes them, a solution as answer and perhaps hidden_tests,
    statements too. Returns (those whose tests no constant passes and the solution does, with the hidden ones;
    a Counter of why the others are not among them). tests become lists of statements.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(verdict_on_tests, records))
    dropped = collections.Counter(why for why, _ in verdicts if why)
    pairs = zip(records, verdicts, strict=True)
    records = [record | {'tests': tests} for record, (why, tests) in pairs if not why]
    solutions = [(record['answer'], record['tests'] + record.get('hidden_tests', [])) for record in records]
    grades = grade_many(solutions, timeout=10.0)
    dropped['their own solution fails'] += sum(grade.score < 1 for grade in grades)
    pairs = zip(records, grades, strict=True)
    return [record for record, grade in pairs if grade.score == 1], +dropped


def convert_file(path, convert, fields):
    """
    The sound records that convert makes of the objects in a .jsonl or .jsonl.gz; prints how many others there
    were. fields: what convert reads, in words. Raises FileNotFoundError, ValueError.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no {path}: it must be the data set's original .jsonl")
    try:
        with (gzip.open if path.endswith('.gz') else open)(path, 'rt', encoding='utf-8') as f:
            records, dropped = convert([json.loads(line) for line in f if line.strip()])
    except (KeyError, TypeError, EOFError, gzip.BadGzipFile, json.JSONDecodeError) as e:
        raise ValueError(f"{path}: {type(e).__name__} {e}; a line must be an object with {fields}") from None
    reasons = ''.join(f", {n:,} because {why}" for why, n in dropped.most_common())
    print(f"left out {dropped.total():,} problems{reasons}")
    return records
