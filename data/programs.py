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
    records: with tests as sandbox.as_asserts takes them, a solution as answer and perhaps hidden_tests.
    Returns (those whose tests can be taken apart, are passed by no constant, but by the solution, with the
    hidden ones; a Counter of why the others are not among them). tests become lists of statements.
    """
    sound, dropped = [], collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for record, (why, tests) in zip(records, pool.map(verdict_on_tests, records), strict=True):
            if why:
                dropped[why] += 1
            else:
                sound.append(record | {'tests': tests})
    solutions = [(record['answer'], record['tests'] + record.get('hidden_tests', [])) for record in sound]
    grades = grade_many(solutions, timeout=10.0)
    kept = [record for record, grade in zip(sound, grades, strict=True) if grade.score == 1]
    dropped['their own solution fails'] += len(sound) - len(kept)
    return kept, +dropped


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
