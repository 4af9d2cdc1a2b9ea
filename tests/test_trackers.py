"""What a run leaves behind for Weights & Biases and TensorBoard, read back from their own files."""
import json
import os
import shutil
import struct
import sys
import types

import pytest
import torch

from runtime.trackers import TensorBoard, Wandb, grouped
from test_train_grpo import TEXT, TOY, run

tensorboard = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run that was stopped in iteration 6 and resumed from 4, with both trackers."""
    folder = tmp_path_factory.mktemp('tracked')
    (folder / 'toy.txt').write_text(TEXT)
    both = ['--hist_interval=2', '--tensorboard', '--wandb_log', '--wandb_mode=offline', '--wandb_project=cats', '--save_interval=4']
    done = run(folder, *TOY, *both, '--max_iters=6', '--lr_schedule=constant')
    assert done.returncode == 0, done.stderr
    shutil.copy(folder / 'out-grpo' / 'ckpt_000004.pt', folder / 'out-grpo' / 'ckpt.pt')
    done = run(folder, *TOY, *both, '--lr_schedule=constant', '--init_from=resume')
    assert done.returncode == 0, done.stderr
    return folder / 'out-grpo'


def logged(folder):
    return [json.loads(line) for line in open(folder / 'metrics.jsonl')]


def wandb_records(path):
    """
    The records of a .wandb file: a head of 7 bytes, then LevelDB's log, blocks of 32 KiB with pieces of records, each after checksum,
    length and kind (1 whole, 2 first, 3 middle, 4 last).
    """
    from wandb.proto.wandb_internal_pb2 import Record
    data, place, record = path.read_bytes(), 7, b''
    assert data[:4] == b':W&B'
    while place < len(data):
        if 32768 - place % 32768 < 7:  # no head fits into the rest of the block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack('<HB', data[place + 4:place + 7])
        record += data[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b''


def test_wandb_offline(folder):
    runs = sorted((folder / 'wandb').glob('offline-run-*/*.wandb'))
    assert len(runs) == 2 and len({path.name for path in runs}) == 1  # resumed, it is the same run
    history, settings = {}, {}
    for path in runs:
        for record in wandb_records(path):
            for update in record.run.config.update if record.HasField('run') else ():
                settings[update.key] = json.loads(update.value_json)
            if record.HasField('run'):
                assert record.run.project == 'cats'
            if record.HasField('history'):
                row = {'.'.join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                history.setdefault(record.history.step.num, {}).update(row)
    assert settings['group_size'] == 4 and settings['max_iters'] == 8
    assert sorted(history) == list(range(9))
    for row in logged(folder):
        for name, value in row.items():
            assert name == 'iter' or value is None or history[row['iter']][grouped(name)] == pytest.approx(value), name
    assert all(
        history[it]['reward/judge_histogram._type'] == 'histogram' and sum(history[it]['reward/judge_histogram.values']) == 16
        for it in (0, 2, 4, 6)
    )
    assert history[4]['samples._type'] == 'table-file' and history[4]['samples.nrows'] == 4
    table = json.loads((runs[1].parent / 'files' / history[4]['samples.path']).read_text())
    assert table['columns'][:4] == ['iter', 'prompt', 'answer', 'completion'] and table['data'][0][0] == 4


def test_tensorboard(folder):
    events = tensorboard.EventAccumulator(str(folder / 'tensorboard'), {'scalars': 0, 'histograms': 0, 'tensors': 0}).Reload()
    rows = logged(folder)
    names = {name for row in rows for name, value in row.items() if value is not None} - {'iter'}
    assert {grouped(name) for name in names} == set(events.Tags()['scalars'])
    for name in names:  # each iteration once, although 4 and 5 ran twice
        assert [(event.step, event.value) for event in events.Scalars(grouped(name))] == [
            (row['iter'], pytest.approx(row[name], rel=1e-6)) for row in rows if row.get(name) is not None
        ], name
    assert [event.step for event in events.Histograms('reward/judge_histogram')] == [0, 2, 4, 6]
    assert all(event.histogram_value.num == 16 for event in events.Histograms('reward/judge_histogram'))
    text = {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors('samples/text_summary')}
    first = json.loads(open(folder / 'samples.jsonl').readline())
    assert set(text) == {0, 4} and f'    completion: {first["completion"]!r}\n' in text[0]
    assert '"group_size": 4' in events.Tensors('config/text_summary')[0].tensor_proto.string_val[0].decode()


def test_names_are_grouped(folder):
    assert [
        grouped(name)
        for name in ('loss', 'mean_reward', 'time_rollout', 'tokens_per_s', 'eval/reward', 'reward/cost', 'reward_missing/cost', 'lambda')
    ] == [
        'train/loss',
        'reward/mean_reward',
        'time/rollout',
        'time/tokens_per_s',
        'eval/reward',
        'reward/cost',
        'reward/missing_cost',
        'train/lambda',
    ]
    names = {name for row in logged(folder) for name in row}
    assert len({grouped(name) for name in names}) == len(names)


def test_a_reward_that_applies_to_no_completion(tmp_path):
    tracker = TensorBoard(str(tmp_path), {'name': 'ü'}, 0)
    tracker.histograms({'cost': torch.randn(4, 2), 'none': torch.full((4, 2), torch.nan)}, 3)
    tracker.close()
    events = tensorboard.EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    assert events.Tags()['histograms'] == ['reward/cost_histogram']


@pytest.mark.parametrize('package, key', [('wandb', '--wandb_log'), ('tensorboard', '--tensorboard')])
def test_a_missing_package_is_named_at_once(tmp_path, monkeypatch, package, key):
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').write_text('raise ImportError("not here")')
    monkeypatch.setitem(os.environ, 'PYTHONPATH', str(tmp_path))
    monkeypatch.setattr('test_train_grpo.ENV', {**os.environ, 'OMP_NUM_THREADS': '1'})
    done = run(tmp_path, key, '--dataset=nowhere.txt')
    assert done.returncode != 0 and done.stderr.startswith('error: ') and f'pip install {package}' in done.stderr, done.stderr


def test_wandb_switched_on_later_hears_of_before(tmp_path, monkeypatch):
    """A run that goes on without an id sends the metrics of before, less what is no number; with one, wandb knows them."""
    sent = []
    stub = types.SimpleNamespace(init=lambda **_: types.SimpleNamespace(log=lambda row, step: sent.append((step, row))))
    monkeypatch.setitem(sys.modules, 'wandb', stub)
    (tmp_path / 'metrics.jsonl').write_text('{"iter": 0, "loss": 1.5, "eval/cost": null}\n{"iter": 2, "mean_reward": 0.5}\n')
    config = dict.fromkeys(('wandb_project', 'wandb_name', 'wandb_run_name', 'wandb_mode', 'quiet'))
    Wandb(str(tmp_path), config, 3)
    assert sent == [(0, {'train/loss': 1.5}), (2, {'reward/mean_reward': 0.5})]
    Wandb(str(tmp_path), config, 3)
    assert len(sent) == 2
