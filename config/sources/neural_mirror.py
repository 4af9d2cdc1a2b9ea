# Source 004, Neural Mirror GRPO with aligntune: its advanced configuration, with rewards for code on problems
# without tests. Its model is Qwen/Qwen3-1.7B, its data openai/gsm8k (train_prompts, with chat_template and
# system_prompt='You are a helpful math tutor.'); here the sums. Not run at full size.
from config.neural_mirror import *

generator_checkpoint = 'out-source-neural-mirror/generator.pt'
train_prompts_n = 1000          # max_samples
block_size = 1024
max_prompt_length = 768
max_new_tokens = 256            # max_completion_length
rewards = [('code_quality', 0.3), ('code_correctness', 0.4),
           ('length', 0.15, {'min_length': 20, 'max_length': 256}), ('diversity', 0.15)]

batch_size = 4                  # 16 completions x 8 gradient_accumulation_steps / num_generations
group_size = 32                 # num_generations
temperature = 0.8
top_p = 0.9
max_iters = 1600                # max_steps; the mirror's own numbers are our defaults
learning_rate = 1e-5
min_lr = 0.0
lora_r = 64
lora_alpha = 64
lora_dropout = 0.05
lora_targets = ('q', 'k', 'v', 'o')
save_interval = 100
wandb_project = 'nmgrpo-experiments'       # its loggers: --tensorboard --wandb_log
wandb_run_name = 'qwen3-neural-mirror-gsm8k'
out_dir = 'out-source-neural-mirror/grpo'
