# Grade-school maths (GSM8K) with any Hugging Face model, for one GPU: the reward is 1 when the last number of
# the answer is right.
#   python data/gsm8k/prepare.py            # downloads the problems, or --path=FOLDER
#   python train_grpo.py config/gsm8k.py --generator_checkpoint=path/or/hub-name
#
# Not yet run on a GPU. The test suite runs it on a CPU at toy size, with a tiny model of Qwen2's shape.
task = 'completion'
dataset = 'gsm8k'
generator_checkpoint = 'Qwen/Qwen2.5-0.5B-Instruct'
chat_template = True
system_prompt = 'Reason step by step, then give the final answer as a number after ####.'
rewards = [('number_answer', 1.0)]
max_prompt_length = 512
too_long = 'drop'
max_new_tokens = 400
mask_truncated = False    # a completion that never ends is wrong
temperature = 1.0

batch_size = 64           # 64 problems x 8 completions an iteration
group_size = 8
micro_batch_size = 4
loss_type = 'dapo'
clip_high = 0.28
kl_beta = 0.0
learning_rate = 2e-6
min_lr = 2e-7
warmup_iters = 10
max_iters = 300
eval_interval = 50
eval_prompts_n = 500
eval_batch_size = 125
eval_samples = 1
log_interval = 1
out_dir = 'out-gsm8k'
