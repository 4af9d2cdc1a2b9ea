import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # two test processes share the cores, and each starts more

import torch

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # before any kernel is defined: they run on the CPU then


def pytest_collection_modifyitems(items):
    """Files that start many processes come first, so that no core is idle in the end."""
    slow = ('test_train_grpo', 'test_faults', 'test_alignment', 'test_ranks', 'test_nla', 'test_es', 'test_walkthrough', 'test_hacking', 'test_report', 'test_fuzz')
    items.sort(key=lambda item: slow.index(item.path.stem) if item.path.stem in slow else len(slow))


def pytest_terminal_summary(terminalreporter):
    """What tests/test_faults.py tried and survived."""
    survived = [value for report in terminalreporter.stats.get('passed', []) if report.when == 'call' for name, value in report.user_properties if name == 'survived']
    if survived:
        terminalreporter.section('tried and survived')
        for line in survived:
            terminalreporter.write_line('  ' + line)
