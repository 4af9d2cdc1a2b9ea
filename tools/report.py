"""
A run's page, report.html in its out_dir; of several runs one page, their curves in the same charts.
$ python -m tools.report out-grpo
$ python -m tools.report out-grpo out-arithmetic-grpo --out=both.html
train_grpo.py writes it at each evaluation and at its end.
"""
import argparse
import os
import sys

from report import write_report
from runtime.config import one_line_errors
from tasks import TASKS


def main():
    parser = argparse.ArgumentParser('python -m tools.report', description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out_dirs', nargs='+', help="of one run or of several")
    parser.add_argument('--out', help="another path for the page")
    given = parser.parse_args()
    path = write_report(given.out_dirs, TASKS, given.out)
    print(f"{path} ({os.path.getsize(path) / 1e3:,.0f} kB)")


if __name__ == '__main__':
    sys.excepthook = one_line_errors
    main()
