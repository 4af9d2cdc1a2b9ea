# Two-digit sums with a real model (config/smollm2.py), all weights trained, on rewards alone.
#
# 2 CPU cores (AMD EPYC with AVX-512 bf16), 300 held-out sums, seeds 1 and 2: greedy 0.283 -> 0.893 and 0.897,
# sampled 0.043 -> 0.860 and 0.887 in 15 min 54 s and 13 min 35 s; the log-prob of an ordinary text stays,
# -3.22 -> -3.20 and -3.21 a token. A machine with other work to do has taken 25 s for an iteration.
from config.smollm2 import generator_checkpoint
from rewards.answers import final_number


def digits_right(text, reference, **fields):
    """The share of the sum's digits that are right, so that a group of wrong ones still teaches."""
    said = str(final_number(text) or '')
    right = sum(a == b for a, b in zip(said[::-1], reference[::-1], strict=False))
    return right / max(len(said), len(reference))


task = 'completion'
dataset = 'sums'
chat_template = True
rewards = [('number_answer', 1.0), (digits_right, 0.5)]
max_new_tokens = 16
temperature = 1.0

# Many prompts with few completions: 16 x 16 stood still at 0.7, 24 x 8 ended at 0.82, 40 x 8 at 0.84.
batch_size = 64
group_size = 4
micro_batch_size = 32
loss_type = 'dapo'
kl_beta = 0.0            # no leash, so retain_text's log-prob is there to watch
learning_rate = 2e-5
min_lr = 0.0
lr_schedule = 'linear'
warmup_iters = 3
max_iters = 60

eval_interval = 60
eval_prompts_n = 300
eval_samples = 1
log_interval = 1
save_interval = 100      # a checkpoint is 1.6 GB
retain_text = ('The old lighthouse stood at the end of the pier. Every evening the keeper climbed the '
               'stairs, lit the lamp, and watched the ships come home from the sea.')
out_dir = 'out-smollm2-sums'
