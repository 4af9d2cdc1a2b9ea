"""
Fill a text from the command line: each '_' is a slot. Alternatives come with their log-prob and the judge's score.
$ python sample.py --text="def __init__(s_lf, na_e):" --mask_char="_"     # here the underscores of __init__ are slots too
$ python sample.py --text="def __init__(s?lf, na?e):" --mask_char="?"
$ python sample.py --text="import os, sys" --mask_ratio=0.3                # or mask a share of it at random
"""
import os

import torch

from configurator import configure
from data.tokenizer import CharTokenizer
from fill_in import FillInPolicy, choose_slots, fill, make_batch, score_fills
from judge import Judge
from model import GPT, load_checkpoint

checkpoint = 'out-grpo/ckpt.pt'              # a run's checkpoint, or a pretrained generator's
judge_checkpoint: str | None = None          # None: the one the run learned from, or no score
text = ''
mask_char = '_'                              # this character marks a slot
mask_ratio = 0.0                             # above 0: mask this share of the text at random instead
num_samples = 8
temperature = 0.8
top_p = 1.0
unmask_steps = 1                             # fill in so many steps, each seeing the fills before it
seed = 1
device = 'cpu'
configure(globals())

saved = load_checkpoint(checkpoint, 'generator', 'run')
tokenizer = CharTokenizer(saved['chars'])
model = GPT.from_pretrained(checkpoint).to(device).eval()
judge_checkpoint = judge_checkpoint or saved.get('judge_checkpoint')
judge = Judge.from_pretrained(judge_checkpoint, tokenizer).to(device) if judge_checkpoint and os.path.exists(judge_checkpoint) else None

if not text:
    raise ValueError('there is no text: give one with --text="..."')
if len(text) > model.config.block_size - 1:
    raise ValueError(f"the text has {len(text)} characters and this model reads {model.config.block_size - 1}: shorten it, or train with a larger block_size")
if not 0 <= mask_ratio <= 1:
    raise ValueError(f"mask_ratio is {mask_ratio}: it must be between 0 and 1")
generator = torch.Generator(device).manual_seed(seed)
lengths = torch.tensor([len(text)])
if mask_ratio > 0:
    tokens = torch.tensor([tokenizer.encode(text)])
    chosen = choose_slots('random', lengths, len(text), (mask_ratio, mask_ratio), torch.Generator().manual_seed(seed))
else:
    chosen = torch.tensor([[c == mask_char for c in text]])
    stand_in = tokenizer.chars[0]  # the slots' characters are unknown; encode the rest at its true positions
    tokens = torch.tensor([tokenizer.encode(text.replace(mask_char, stand_in))])
if not chosen.any():
    raise ValueError(f"the text has no slot: mark some with {mask_char!r}, or give --mask_ratio=0.3")
batch = {key: value.to(device) for key, value in make_batch(tokens, lengths, chosen, tokenizer.mask_id).items()}

policy = FillInPolicy(model, tokenizer, temperature, top_p, unmask_steps, generator)
print(f"prompt    {tokenizer.decode(batch['tokens'][0])}")
print(f"greedy    {tokenizer.decode(fill(batch, policy.greedy(batch))[0, 0])}")
rollout = policy.sample(batch, num_samples)
scores = score_fills(judge, batch, rollout.tokens)[0].tolist() if judge else [None] * num_samples
rows = sorted(set(zip(rollout.logps[0].sum(dim=-1).tolist(), policy.texts(rollout)[0], scores)), key=lambda row: -row[0])
print("log-prob   judge  (judge: 0 looks written, 1 looks machine-filled)")
for logp, filled, score in rows:
    print(f"{logp:8.2f}   {'    -' if score is None else f'{score:.3f}'}  {filled}")
