"""What the data sets of programs share: problems whose tests are sound are kept, the others are counted."""
import collections
import concurrent.futures

from data.sources import read_file
from sandbox import constant_passes, grade_many, processors


def fault_of_tests(record):
    """Why they are useless, or None."""
    try:
        return 'a constant passes their tests' if constant_passes(record['tests']) else None
    except ValueError:
        return 'their tests cannot be graded'


def keep_sound(records):
    """
    records: with tests as a list, a solution as answer and perhaps hidden_tests. Returns (those whose tests
    can be graded and are passed by no constant, but with the hidden ones by the solution; a Counter of why
    the others are not among them).
    """
    with concurrent.futures.ThreadPoolExecutor(processors()) as pool:
        faults = list(pool.map(fault_of_tests, records))
    dropped = collections.Counter(filter(None, faults))
    sound = [record for record, fault in zip(records, faults, strict=True) if not fault]
    solutions = [(record['answer'], record['tests'] + record.get('hidden_tests', [])) for record in sound]
    grades = grade_many(solutions, timeout=10.0)
    kept = [record for record, grade in zip(sound, grades, strict=True) if grade.score == 1]
    dropped['their own solution fails'] += len(sound) - len(kept)
    return kept, +dropped


def convert_file(path, convert, fields):
    """
    The sound records that convert makes of the objects in a file; prints how many others there were. fields:
    what convert reads, in words. Raises FileNotFoundError, ValueError.
    """
    try:
        records, dropped = convert([problem for _, problem in read_file(path)])
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: {type(e).__name__} {e}; a line must be an object with {fields}") from None
    reasons = ''.join(f", {n:,} because {why}" for why, n in dropped.most_common())
    print(f"left out {dropped.total():,} problems{reasons}")
    return records
