"""
Talk to a model: chat, complete a prompt, fill a text, explain an activation.
$ python sample.py --checkpoint=path/to/model  # chat; a folder, also of adapters, a .gguf or a run's ckpt.pt
$ echo "12+34=" | python sample.py --checkpoint=out-arithmetic-grpo/ckpt.pt  # or --prompt="12+34="
$ python sample.py --checkpoint=... --prompt="12+34=" --rewards=number_answer --reference=46  # best of 8
$ python sample.py --checkpoint=... --prompt="tker>" --reward_checkpoint=out-shop/reward.pt  # by a model
$ python sample.py --text="def __init__(s?lf, na?e):" --mask_char="?"  # fill-in: '?' is a slot
$ python sample.py --text="import os, sys" --mask_ratio=0.3  # or mask a share of the text at random
$ python sample.py --checkpoint=out-nla/grpo/ckpt.pt --text="A text"  # an NLA: what its model thinks
Several completions are a table, best first. Where stdout is no terminal it gets the best one and nothing
else; the rest goes to stderr.
"""
import runtime.early  # noqa: F401, I001  before torch
from typing import Annotated, Literal

from model import GPT
from runtime.checkpoint import load_checkpoint, tokenizer_of
from runtime.config import Count, Natural, NonNegative, Share, configure
from runtime.masters import compute_in, precision_of
from runtime.run import usable_device
from tasks import TASKS


def main(cfg):
    path = cfg.checkpoint
    if (cfg.reference or cfg.tests or cfg.context) and not cfg.rewards:
        raise ValueError("reference, tests and context need --rewards that judge by them, as number_answer")
    cfg.device = usable_device(cfg.device)
    saved = load_checkpoint(path, 'generator', 'run', 'adapters', 'nla') if path.endswith('.pt') else {}
    model, task, causal = None, 'nla', False  # its actor and critic are built when they are shown
    if 'nla' not in saved:
        model = GPT.from_pretrained(path).to(cfg.device).eval().requires_grad_(False)
        compute_in(model, precision_of(cfg.precision, cfg.device, model.config.n_embd))
        causal = model.config.causal
        task = saved.get('config', {}).get('task') or ('completion' if causal else 'fill_in')
    tokenizer = tokenizer_of(path)
    if model:
        tokenizer.check_fits(model.config.vocab_size, path)
    if cfg.text and causal:
        raise ValueError(f"{path} goes on from a --prompt; a --text is for fill-in models and autoencoders")
    if cfg.prompt and not causal:
        raise ValueError(f"{path} takes a --text; a --prompt is for a causal model")
    TASKS[task].show(saved, model, tokenizer, cfg)


if __name__ == '__main__':
    checkpoint = 'out-grpo/ckpt.pt'  # a run's checkpoint, a Hugging Face folder or name, a .gguf file
    # a causal model
    prompt = ''                     # to complete, or piped in; at a terminal without either it chats
    chat_template = False           # True: the prompt becomes the user's turn
    chat_template_kwargs: dict | None = None  # what the template reads beside it, {'enable_thinking': False}
    add_special_tokens = True       # False: without the begin token that transformers adds to a plain prompt
    system_prompt = ''
    max_new_tokens: Count = 256     # at most, and no more than the model reads
    environment: Literal['calculator', 'python'] | None = None  # what answers them; None: what the run had
    # what its completions are ranked by, best first
    rewards: str | list | tuple | None = None  # number_answer,length; or as in train_grpo.py
    reference = ''                  # what they judge by, as far as they need it: the right answer,
    tests = ''                      # assert statements,
    context = ''                    # a source
    reward_checkpoint = ''          # a reward model; '': the one that an alignment run learned from
    cost_checkpoint = ''            # and a cost model
    lambda_cost: float | None = None  # the price of its cost; None: what the run arrived at, else 1
    scorer_template: str | None = None  # '{prompt}{response}', what they read; None: as trained
    # a fill-in model, a Natural Language Autoencoder
    text = ''                       # its slots are filled, its last token explained; or piped in
    mask_char = '□'                 # this character marks a slot
    mask_ratio: Share = 0.0         # above 0: mask this share of the text at random instead
    unmask_steps: Count = 1         # fill in so many steps, each seeing the fills before it
    judge_checkpoint: str | None = None  # None: the one the run learned from, or no score
    activations: str | None = None  # explain a row of this file instead of a text
    row: Natural = 0
    # sampling
    num_samples: Count | None = None  # None: 8 where they are ranked, else 1 as it comes
    temperature: NonNegative = 0.8  # 0: the likeliest token each time
    top_k: Natural = 0
    top_p: Annotated[float, '(0, 1]'] = 1.0
    seed: Natural = 1
    device = 'auto'                 # 'cpu', 'cuda', 'cuda:1'; 'auto' takes a GPU when there is one
    precision: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'auto'  # 'auto': bf16 where it is faster
    main(configure(globals()))
