# Fill-in GRPO with a frozen judge, on Python's own standard library, from an empty machine. A small
# bidirectional model fills masked characters; a judge that can tell machine-filled text from real text scores
# the fills; GRPO moves the model to where the judge cannot tell, on a leash to where it started.
# 4 to 6 minutes on 2 CPU cores, about 1 when generator and judges are there; figures in docs/jobs.md.
dataset = 'stdlib_char'
group_size = 8
temperature = 0.8
kl_beta = 0.1            # 0.02 shows reward hacking: the judge is happier, the text is worse
learning_rate = 6e-4     # ten times below pretraining's
min_lr = 6e-5
max_iters = 200
out_dir = 'out-grpo'
