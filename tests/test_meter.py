"""What windows of steps find, the speed they ran at, and what the terminal shows of it."""

import io
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from bert_mtl.flops import Work, training_flops
from bert_mtl.history import read_history
from bert_mtl.meter import Meter, load_of, peak_by_name, peak_of, sizes_of
from bert_mtl.parts import part_pipelines
from bert_mtl.progress import Display
from bert_mtl.runs import open_run
from data_prep.build import build


@pytest.fixture(scope="module")
def pipeline(toy_run):
    run = open_run(toy_run)
    return part_pipelines(run, {name: build(run.config, name, run.tokenizer) for name in run.tasks}, "train")["imdb"]


def test_an_epochs_load_is_what_its_batches_hold(pipeline):
    epoch = pipeline.first_epoch
    load = load_of(pipeline, epoch)
    tokens = squares = places = 0
    for batch in pipeline.batches(epoch):
        lengths = np.bincount(batch["segment_ids"].ravel())[1:]
        tokens, squares = tokens + lengths.sum(), squares + np.square(lengths).sum()
        places += batch["segment_ids"].size
    assert (load.work.tokens, load.work.squares, load.places) == (tokens, squares, places)
    assert load.fill == pytest.approx(tokens / places) and load.work.masked == 0


def test_the_windows_of_a_run_hold_the_means_of_their_steps(toy_run):
    """The history's losses, weighed by their steps, come to the loss of the epoch."""
    lines = read_history(toy_run)
    epochs = json.loads((toy_run / "metrics.json").read_text())["epochs"]
    ends = [line for line in lines if "seconds" in line]
    assert [line["epoch"] for line in ends] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch_loss"] for line in ends] == [epoch["loss"] for epoch in epochs]
    assert all(
        line["imdb/dev_accuracy"] == epoch["dev"]["imdb"]["accuracy"] for line, epoch in zip(ends, epochs, strict=True)
    )
    assert sum("compile_seconds" in line for line in ends) == 1
    windows = [line for line in lines if "seconds" not in line]
    assert windows and all(0 < line["optimizer/learning_rate"] <= 0.01 for line in windows)
    rates = [line["optimizer/learning_rate"] for line in windows]
    assert rates == sorted(rates, reverse=True)  # warm-up is over by the first window
    assert [line["step"] for line in windows] == [6, 12, 18, 24, 30, 36]  # each epoch is one call
    assert [windows[place]["loss"] for place in range(6)] == pytest.approx([line["epoch_loss"] for line in ends])


class Steps:
    """A model whose losses and clock are known: the loss of step n is n, and a step takes a tenth of a second."""

    def __init__(self):
        self.taken, self.time = tf.Variable(0.0), 0.0
        self.loss_means = [self, self]
        self.optimizer = self.watch = self
        self.batches, self.numbers = tf.constant(3), [0.0, 2.0]

    def step(self, count):
        self.taken.assign_add(count)
        self.time += count / 10

    @property
    def total(self):
        return self.taken * (self.taken + 1) / 2

    @property
    def count(self):
        return self.taken + 0

    def result(self):
        return 0

    def schedule(self, step):
        return tf.cast(step, tf.float32) / 4


def test_a_window_knows_its_mean_loss_its_speed_and_its_share_of_the_peak(toy_run, pipeline, monkeypatch):
    run = open_run(toy_run)
    tracking = run.config.tracking.model_copy(update={"every": 2, "peak": 1e9})
    object.__setattr__(run, "config", run.config.model_copy(update={"tracking": tracking}))
    model = Steps()
    monkeypatch.setattr("bert_mtl.meter.time.perf_counter", lambda: model.time)
    meter, epoch = Meter(run, pipeline), pipeline.first_epoch
    meter.begin_epoch(model, epoch)
    steps, found = meter.load.steps, []
    for step in range(1, steps + 1):
        model.step(1)
        model.time += 3 * (step == 1)  # the first call compiles
        found += meter.end_steps(1, step, step)
        if step == 2:
            with meter.paused():
                model.time += 60  # a state is saved
    meter.end_epoch()
    assert [step for step, _ in found] == list(range(2, steps + 1, 2))
    assert [values["loss"] for _, values in found] == [step - 0.5 for step in range(2, steps + 1, 2)]
    work = meter.load.work
    for _, values in found:
        assert values["speed/tokens_per_second"] == pytest.approx(work.tokens / steps / 0.1)
        flops = training_flops(sizes_of(run.facts.encoder), work)
        assert values["speed/mfu"] == pytest.approx(flops / steps / 0.1 / 1e9)
        assert (values["optimizer/gradient_norm"], values["optimizer/learning_rate"]) == (2.0, 0.5)
    assert meter.compile_seconds == pytest.approx(3.0)
    assert meter.speeds["speed/tokens_per_second"] == pytest.approx(work.tokens / steps / 0.1)


def test_there_is_no_mfu_where_no_peak_is_known_or_not_all_is_trained(toy_run):
    run = open_run(toy_run)
    assert peak_of(run, 1) is None  # a CPU
    for trainable, peak in (("all", 2e12), ("heads", None)):
        changes = {
            "tracking": run.config.tracking.model_copy(update={"peak": 1e12}),
            "model": run.config.model.model_copy(update={"trainable": trainable}),
        }
        other = type(run)(run.folder, run.config.model_copy(update=changes), run.tokenizer, run.facts)
        assert peak_of(other, replicas=2) == peak


def test_masked_tokens_count_by_their_rate(multi_run):
    run = open_run(multi_run)
    words = part_pipelines(run, {"words": build(run.config, "words", run.tokenizer)}, "train")["words"]
    work = load_of(words, words.first_epoch).work
    assert work == Work(work.tokens, work.squares, round(0.15 * work.tokens))


def test_without_a_terminal_the_log_has_a_line_now_and_then(caplog, monkeypatch):
    caplog.set_level("INFO")
    clock = itertools.count(0, 20)  # seconds from look to look
    monkeypatch.setattr("bert_mtl.progress.time.monotonic", lambda: float(next(clock)))
    display = Display(2, True, Console(file=io.StringIO()))
    display.begin_epoch(1, 10, 40)
    for _ in range(3):
        display.end_steps(5)
        display.show({"loss": 0.5, "snips/intent/loss": 0.25, "speed/tokens_per_second": 1234.5, "speed/mfu": 0.3})
    display.close()
    (line, _) = [record.getMessage() for record in caplog.records] + [None] * (len(caplog.records) < 2)
    assert line.startswith("epoch 2 of 2: 20 of 40 steps")
    assert line.endswith(", 1,234 tokens/s; loss 0.5000; snips/intent/loss 0.2500")


def test_on_a_terminal_a_bar_shows_losses_speed_and_steps_and_goes_away(caplog):
    caplog.set_level("INFO")
    out = io.StringIO()
    display = Display(3, True, Console(file=out, force_terminal=True, width=100, color_system=None))
    display.begin_epoch(0, 0, 10)
    display.end_steps(4)
    display.show({"loss": 0.5, "imdb/loss": 0.25, "speed/tokens_per_second": 1234.5})
    display.live.refresh()
    shown = out.getvalue()
    display.close()
    assert "epoch 1 of 3" in shown and "4/30" in shown and "1,234 tokens/s" in shown
    assert "loss 0.5000" in shown and "imdb/loss 0.2500" in shown
    assert display.live is None and not caplog.records


def test_what_is_not_shown_is_neither_drawn_nor_logged(caplog):
    out = io.StringIO()
    display = Display(1, False, Console(file=out, force_terminal=True))
    display.begin_epoch(0, 0, 10)
    display.end_steps(4)
    display.show({"loss": 0.5})
    display.close()
    assert out.getvalue() == "" and not caplog.records


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 989e12), ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-40GB", 312e12), ("Tesla V100-SXM2-16GB", 125e12), ("Tesla T4", 65e12), ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None), ("NVIDIA A10G", None),
    ],
)  # fmt: skip
def test_the_makers_figure_goes_by_whole_words_of_the_name(name, peak):
    assert peak_by_name(name) == peak
