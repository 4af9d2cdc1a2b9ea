"""
docs/coming_from.md, made from runtime/other_names.json, which error messages read too.
$ python docs/coming_from.py
"""
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPENING = [
    "# Coming from elsewhere",
    "This page says what settings of other programs are called here. An old name, such as `beta`, is "
    "refused with its line of these tables. Some names are false friends: they exist here and mean something "
    "else, as the notes say. Names that mean the same in both (`temperature`, `top_p`, `seed`; "
    "nanoGPT's `learning_rate`, `min_lr`, `warmup_iters`, `max_iters`, `grad_clip`, `n_layer`, `compile`, "
    "`wandb_log`; ReLax's `reference_mode`, `ema_alpha`) are not listed.",
    "Four things differ. `batch_size` counts prompts, not completions, over all processes. `kl_beta` is 0 "
    "in TRL and 0.1 here by default. A loss is divided by counts of the whole step, so neither micro-batches "
    "nor ranks change it. Temperature is part of the log-probs. config/sources/ has the settings of five "
    "other programs under our names.",
    "Made by `python docs/coming_from.py` from runtime/other_names.json.",
]


def document(table):
    """The text of coming_from.md. table: {framework: {its name: [ours, a note]}}."""
    parts = [line + '\n' for line in OPENING]
    for framework, rows in table.items():
        lines = [f'## {framework}\n', '| there | here | note |', '|---|---|---|']
        for name, (ours, note) in rows.items():
            here = ', '.join(f'`{key}`' for key in ours.split(', ') if key)
            lines.append(f'| `{name}` | {here} | {note} |')
        parts.append('\n'.join(lines) + '\n')
    return '\n'.join(parts)


if __name__ == '__main__':
    names = json.loads((ROOT / 'runtime' / 'other_names.json').read_text(encoding='utf-8'))
    (ROOT / 'docs' / 'coming_from.md').write_text(document(names), encoding='utf-8')
