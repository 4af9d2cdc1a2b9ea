"""pyproject.toml says what the requirements files say, and knows every package that an error message asks for."""
import inspect
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def required(name):
    lines = [line.strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith(('#', '-r'))]


def test_the_requirements_are_the_same():
    assert PROJECT['dependencies'] == required('requirements.txt')
    assert PROJECT['optional-dependencies']['dev'] == required('requirements-dev.txt')


def named(requirement):
    return re.match(r'[\w-]+', requirement)[0].replace('_', '-')


def test_it_names_the_versions_of_python_that_it_was_run_on():
    """A lower and an upper bound, each version between them by name, and the one that runs this among them; README says the same."""
    low, high = map(int, re.fullmatch(r'>=3\.(\d+),<3\.(\d+)', PROJECT['requires-python']).groups())
    versions = [f'3.{minor}' for minor in range(low, high)]
    assert PROJECT['classifiers'] == [f'Programming Language :: Python :: {version}' for version in versions]
    assert f'Python {", ".join(versions[:-1])} or {versions[-1]}.' in (ROOT / 'README.md').read_text(encoding='utf-8')
    assert '.'.join(map(str, sys.version_info[:2])) in versions


def test_what_an_error_message_asks_for_is_an_extra():
    sources = [path for path in ROOT.glob('**/*.py') if path.relative_to(ROOT).parts[0] not in ('tests', '.venv')]
    asked = {named(name) for path in sources for name in re.findall(r'pip install ([a-z][\w-]+)', path.read_text())}
    extras = {named(r) for name, extra in PROJECT['optional-dependencies'].items() if name != 'dev' for r in extra}
    assert 'gguf' in asked and asked - extras <= {named(r) for r in PROJECT['dependencies']}
    versions = {named(r): r for r in required('requirements-dev.txt')}
    for name, extra in PROJECT['optional-dependencies'].items():
        for requirement in extra:
            assert versions.get(named(requirement), requirement) == requirement, (
                f"{requirement} of the extra {name} is another in requirements-dev.txt"
            )


def test_public_names_say_their_types():
    """What users and tests call has a hint for every argument but policies and tokenizers (any object with those names) and a docstring."""
    import formats.tokenizer
    import grpo
    import judge
    import kernels
    import mirror
    import nla
    import policy
    import rewards
    import sandbox
    from model import GPT
    from runtime import masters, scorer
    from tasks import evolution, fill_in

    public = [
        GPT,
        GPT.from_pretrained,
        GPT.logits,
        GPT.save_pretrained,
        formats.tokenizer.load_tokenizer,
        formats.tokenizer.CharTokenizer.encode,
        formats.tokenizer.CharTokenizer.decode,
        formats.tokenizer.CharTokenizer.chat,
        policy.generate,
        grpo.generate_rollouts,
        grpo.compute_rewards,
        grpo.compute_advantages,
        grpo.train_on_rollout,
        grpo.policy_loss,
        grpo.kl_estimate,
        grpo.grpo_training_step,
        masters.update_reference,
        kernels.fused_logps,
        judge.Judge,
        judge.LLMJudge,
        judge.LLMJudge.grade,
        judge.LagrangeMultiplier,
        scorer.ScorerClient,
        rewards.score,
        sandbox.run,
        sandbox.grade,
        policy.CausalPolicy,
        policy.prompt_batch,
        fill_in.FillInPolicy,
        fill_in.make_batch,
        mirror.MirrorMap,
        mirror.MirrorMap.divergence,
        mirror.MirrorMap.gradient_map,
        nla.inject,
        nla.Critic,
        nla.fve,
        evolution.es_step,
    ]
    for thing in public:
        assert thing.__doc__, thing
        untyped = [p.name for p in inspect.signature(thing).parameters.values() if p.annotation is p.empty and p.kind is not p.VAR_KEYWORD]
        assert set(untyped) <= {'self', 'policy', 'tokenizer', 'reference', 'others', 'sampled', 'more_prompts'}, (thing, untyped)
