"""What the data sets of programs share: problems whose tests are sound are kept."""
import concurrent.futures

from data.sources import read_file
from sandbox import constant_passes, grade_many, processors


def is_sound(tests):
    """Whether they can be graded, and no constant passes them."""
    try:
        return not constant_passes(tests)
    except ValueError:
        return False


def keep_sound(records):
    """
    Of records with tests as a list, a solution as answer and perhaps hidden_tests those whose tests are sound
    and are passed, with the hidden ones, by the solution; prints how many others there were.
    """
    with concurrent.futures.ThreadPoolExecutor(processors()) as pool:
        fine = list(pool.map(is_sound, [record['tests'] for record in records]))
    sound = [record for record, is_fine in zip(records, fine, strict=True) if is_fine]
    solutions = [(record['answer'], record['tests'] + record.get('hidden_tests', [])) for record in sound]
    grades = grade_many(solutions, timeout=10.0)
    kept = [record for record, grade in zip(sound, grades, strict=True) if grade.score == 1]
    print(f"left out {len(records) - len(sound):,} problems whose tests cannot be graded or a constant "
          f"passes, and {len(sound) - len(kept):,} whose own solution fails")
    return kept


def convert_file(path, convert, fields):
    """What convert makes of the objects in a file; fields: what it reads, in words."""
    problems = [problem for _, problem in read_file(path)]
    try:
        return convert(problems)
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: {type(e).__name__} {e}; a line must be an object with {fields}") from None
