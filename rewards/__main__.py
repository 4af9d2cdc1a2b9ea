"""The scores of a text, reward by reward; without names, by all rewards that can be computed."""
import argparse
import re
import sys

from rewards import REWARDS, score
from rewards.reward import FIELDS


def main(arguments):
    parser = argparse.ArgumentParser('python -m rewards', description=__doc__, allow_abbrev=False)
    parser.add_argument('text')
    parser.add_argument('--names', help="joined by commas: bleu,readability")
    for field in FIELDS:
        parser.add_argument(f'--{field}')
    if arguments and re.match('-(?!h$|-)', arguments[0]):
        arguments = [*arguments[1:], '--', arguments[0]]  # a text that begins with a dash
    options = vars(parser.parse_args(arguments))
    text, names = options.pop('text'), options.pop('names')
    if options['tests']:
        options['tests'] = options['tests'].split('\n')
    for name in names.split(',') if names else REWARDS:
        try:
            value, reward = score(name, text, **options), REWARDS[name]
        except (RuntimeError, ValueError) as e:
            print(f"{name:24} cannot be computed: {e}" if name in REWARDS else e)
            continue
        verdict = f"not applicable: {reward.why_none(options)}" if value is None else f"{value:.4f}"
        print(f"{name:24} {verdict}{'  hackable' if reward.hackable else ''}")


if __name__ == '__main__':
    main(sys.argv[1:])
