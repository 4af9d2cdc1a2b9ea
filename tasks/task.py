"""
What differs between the jobs that train_grpo.py can do: their data, their models, their rewards, their evaluation. One
class each, all with the same few names: `load_model()`, `policy(model)`, `batch(it, attempt)` (the prompts of iteration `it`, all
ranks together, and with attempt 1, 2... others for dynamic_sampling; a function of these and the seed alone, so there is no state to save), `rewards` (see compute_rewards),
`evaluate(policy)` and `describe(metrics)`, `headline` (the metric that makes a checkpoint the best one), `closing` (those that
the last lines compare with the start), `asked(rollout)` (the first prompt, and the right answer where it has one, as samples.jsonl keeps them),
`max_answer_tokens`, `saved()`, what a checkpoint holds beside the weights (of what is sharded, this rank's part), and `restore(checkpoint)`, which takes it back. `try_out()`:
what sample.py is to be given to show the trained model, the file in out_dir and the arguments. `actor_rests(it)`: the policy
does not learn in this iteration; `learn_beside(rollout)`: what else learns from its answers, returning metrics.
`s` holds the settings of train_grpo.py; `once(f)` calls f() on one rank while the others wait; `say` prints there.
"""


class Job:
    """What most jobs have no part in."""
    home = property(lambda self: 'cpu' if self.s.shard else self.device)  # where the model is loaded to: a GPU would not hold all of one that is to be sharded

    def restore(self, checkpoint): pass
    def actor_rests(self, it): return False
    def learn_beside(self, rollout): return {}
    closing = property(lambda self: [self.headline])


def longest_line(text):
    """What of a text fits into a command."""
    return max(text.splitlines(), key=len, default=text).strip()
