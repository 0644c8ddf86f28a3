"""The exported folder is loaded by Hugging Face `datasets` itself, and its rows are what TRL's trainers take."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from feedback.dataset import Dataset
from tests.feedback.events import pair, vote

PEER_ENV = "HUSTINGS_TEST_TRL"
"""Names the Python of an environment with TRL; nothing of ours needs it."""

pytestmark = pytest.mark.slow


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    dataset = Dataset(tmp_path / "data")
    dataset.append_votes([vote(n) for n in range(12)])
    dataset.append_pairs([pair(n) for n in range(12)])
    dataset.export(dataset.load_snapshot(dataset.build_snapshot().id), tmp_path / "hf", "hf")
    return tmp_path / "hf"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_datasets_loads_each_table_by_the_folder_alone(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import datasets

    datasets.disable_progress_bars()
    load = {"path": str(exported), "split": "train", "cache_dir": str(tmp_path / "cache")}
    preferences = datasets.load_dataset(**load)
    assert preferences["vote_id"][:3] == ["w0", "w1", "w4"]
    assert preferences[1]["prompt"] == [{"role": "user", "content": "Question 1?"}]
    assert preferences[1]["chosen"] == [{"role": "assistant", "content": "Right 1"}]
    assert preferences[1]["rejected"] == [{"role": "assistant", "content": "Left 1"}]
    assert len(datasets.load_dataset(**load, name="ties")) == 6
    assert datasets.load_dataset(**load, name="prompts")["pair_id"][0] == "p0"


TRAIN = """
import sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

folder, model, out = sys.argv[1:]
rows = load_dataset(folder, split="train")
tokenizer = AutoTokenizer.from_pretrained(model)
common = dict(output_dir=out, max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False)
scorer = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
scorer.config.pad_token_id = tokenizer.pad_token_id
RewardTrainer(model=scorer, args=RewardConfig(**common), train_dataset=rows, processing_class=tokenizer).train()
policy = AutoModelForCausalLM.from_pretrained(model)
DPOTrainer(model=policy, args=DPOConfig(**common), train_dataset=rows, processing_class=tokenizer).train()
"""


def test_trl_trains_on_the_folder_unchanged(exported: Path, tmp_path: Path, tiny_model: Path) -> None:
    python = os.environ.get(PEER_ENV)
    if python is None:
        pytest.skip(f"TRL isn't here: set {PEER_ENV} to the Python of an environment with it")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf_home"), "PYTHONPATH": ""}
    done = subprocess.run(
        [python, "-c", TRAIN, str(exported), str(tiny_model), str(tmp_path / "out")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
