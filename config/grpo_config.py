# Fill-in GRPO with a frozen judge, on Python's own standard library, from an empty machine. A small
# bidirectional model fills masked characters; a judge that can tell machine-filled text from real text scores
# the fills; GRPO moves the model to where the judge cannot tell, on a leash to where it started.
#
# 2 CPU cores (AMD EPYC, fp32): 3 min 15 s from nothing, 42 s when generator and judges are there.
# Held-out judge reward 0.69 -> 0.82 (real text 0.82), gold reward 0.72 -> 0.84 (0.86), exact match of sampled
# fills stays at 0.47 (seed 1; docs/jobs.md has three).
dataset = 'stdlib_char'
group_size = 8
temperature = 0.8
kl_beta = 0.1            # 0.02 shows reward hacking: the judge is happier, the text is worse
learning_rate = 6e-4     # ten times below pretraining's
min_lr = 6e-5
max_iters = 200
out_dir = 'out-grpo'
