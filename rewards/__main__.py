"""
The scores of a text, reward by reward; without names, by all rewards that can be computed.

$ python -m rewards "a text" --names=bleu,fluency --reference="..." [--prompt= --context= --tests=]
"""
import sys

from rewards import REWARDS, score
from rewards.reward import FIELDS


def main(arguments):
    options = dict(a[2:].partition('=')[::2] for a in arguments if a.startswith('--'))
    texts = [a for a in arguments if not a.startswith('--')]
    unknown = set(options) - {'names', *FIELDS}
    if len(texts) != 1 or unknown:
        fault = f"unknown option --{unknown.pop()}" if unknown else f"there are {len(texts)} texts, not one"
        usage = ' '.join(f'--{name}=...' for name in FIELDS)
        raise SystemExit(f"{fault}: python -m rewards \"the text\" --names=bleu,readability {usage}")
    fields = {name: options[name] for name in FIELDS if name in options}
    if 'tests' in fields:
        fields['tests'] = fields['tests'].split('\n')
    for name in options['names'].split(',') if 'names' in options else REWARDS:
        try:
            value = score(name, texts[0], **fields)
        except (RuntimeError, ValueError) as e:
            print(f"{name:24} cannot be computed: {e}" if name in REWARDS else e)
            continue
        reward = REWARDS[name]
        verdict = f"not applicable: {reward.why_none(fields)}" if value is None else f"{value:.4f}"
        print(f"{name:24} {verdict}{'  hackable' if reward.hackable else ''}")


if __name__ == '__main__':
    main(sys.argv[1:])
