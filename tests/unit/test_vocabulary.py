"""The word tokenizer and the small encoder that are trained from nothing, and what others read of them."""

import json
from pathlib import Path

import pytest
import torch

from dit_video.text.encoders import TextEncoder
from dit_video.text.vocabulary import build_umt5, build_word_tokenizer, embed_batch, save_text_encoder, save_tokenizer

WORDS = ["a", "red", "green", "ball", "square", "moving", "up-left", "to", "the", "Ball"]


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return build_umt5(vocab_size=20, d_model=32, layers=2, heads=2, d_kv=16, d_ff=48)


@pytest.fixture(scope="module")
def folder(module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    save_tokenizer(build_word_tokenizer(WORDS), folder / "tokenizer")
    save_text_encoder(module, folder / "text_encoder")
    return folder


def test_ids_follow_the_words():
    vocabulary = build_word_tokenizer(WORDS).get_vocab()
    expected = ["<pad>", "</s>", "<unk>", "a", "red", "green", "ball", "square", "moving", "up", "left", "to", "the"]
    assert sorted(vocabulary, key=vocabulary.__getitem__) == expected
    assert sorted(vocabulary.values()) == list(range(len(expected)))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A RED ball, moving up-left.", ["a", "red", "ball", "moving", "up", "left", "</s>"]),
        ("a 'red' zebra!", ["a", "red", "<unk>", "</s>"]),
        ("... ?", ["</s>"]),
        ("", ["</s>"]),
    ],
)
def test_text_becomes_words(text: str, tokens: list[str]):
    assert build_word_tokenizer(WORDS).encode(text).tokens == tokens


@pytest.mark.parametrize("text", ["A red ball, moving up-left.", "", "red zebra", "ball " * 600])
def test_transformers_reads_the_same_ids(folder: Path, text: str):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    theirs = AutoTokenizer.from_pretrained(folder / "tokenizer")
    ids = theirs(text, truncation=True, max_length=512).input_ids
    assert isinstance(theirs, PreTrainedTokenizerFast)
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.model_max_length) == (0, 1, 2, 512)
    assert ids == build_word_tokenizer(WORDS).encode(text).ids
    assert len(ids) <= 512
    assert ids[-1] == theirs.eos_token_id


def test_the_wan_pipeline_opens_the_folder(folder: Path):
    from diffusers import WanPipeline

    modules = {
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"} | modules))
    absent = {name: None for name in ("scheduler", "vae", "transformer", "transformer_2")}
    pipeline = WanPipeline.from_pretrained(folder, **absent)
    with torch.no_grad():
        theirs = pipeline._get_t5_prompt_embeds("A red ball, moving up-left.", max_sequence_length=512)[0]
    encoder = TextEncoder.from_folder(folder / "text_encoder", folder / "tokenizer", dtype=torch.float32)
    ours = encoder.encode(["A red ball, moving up-left."])[0]
    assert ours.shape == (7, 32)
    torch.testing.assert_close(ours, theirs[:7], rtol=0, atol=2e-5)


def test_emoji_are_unknown_words(folder: Path):
    encoder = TextEncoder.from_folder(folder / "text_encoder", folder / "tokenizer", dtype=torch.float32)
    assert encoder.unknown_words("a red ball 🎈🐈, 🎈!") == ["🎈", "🐈"]


def test_unknown_words_are_named_once_as_written(folder: Path):
    encoder = TextEncoder.from_folder(folder / "text_encoder", folder / "tokenizer", dtype=torch.float32)
    assert encoder.unknown_words("A red Cat, on the beach; a cat-like cat &amp; the ball") == [
        "Cat",
        "on",
        "beach",
        "cat",
        "like",
    ]
    assert encoder.unknown_words("a red ball") == []
    assert encoder.unknown_words("red " * 600 + "zebra") == ["zebra"]


def test_saved_encoder_gives_the_same_numbers(module, folder: Path):
    encoder = TextEncoder.from_folder(folder / "text_encoder", folder / "tokenizer", dtype=torch.float32)
    ids = build_word_tokenizer(WORDS).encode("a red ball").ids
    with torch.no_grad():
        expected = embed_batch(module, [ids])[0]
    assert torch.equal(encoder.encode(["a red ball"])[0], expected)


def test_embed_batch_equals_one_by_one_and_trains(module):
    ids = [[3, 4, 6, 1], [1], [5, 7, 8, 9, 10, 11, 12, 3, 1]]
    together = embed_batch(module, ids)
    alone = [embed_batch(module, [row])[0] for row in ids]
    for row, batch, single in zip(ids, together, alone, strict=True):
        assert batch.shape == (len(row), 32)
        torch.testing.assert_close(batch, single, rtol=0, atol=2e-5)
    module.zero_grad()
    torch.cat(together).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_random_initialisation_follows_the_seed():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        encoder = build_umt5(vocab_size=10, d_model=16, layers=1, heads=2, d_kv=8, d_ff=16)
        return torch.cat([parameter.flatten() for parameter in encoder.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
