"""TextEncoder against transformers, diffusers' Wan pipeline and sentencepiece, on tiny random models."""

import io
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from tokenizers import Tokenizer
from transformers import AutoTokenizer, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from dit_video.errors import CheckpointError
from dit_video.text.encoders import TextEncoder, clean_prompt
from dit_video.text.layouts import TWIN
from dit_video.text.spiece import read_sentencepiece
from dit_video.text.t5 import CONFIGS, IN_FLOAT32, T5Encoder
from dit_video.text.vocabulary import build_umt5, save_text_encoder, take_weights, to_sample_with

GATE = 2e-5
WORDS = (
    "the a red ball moves slowly across an empty street while rain falls on grass café naïve Straße 東京 猫 и собака"
)
PROMPTS = [
    "a red ball moves across the street",
    "",
    "  Rain&amp;amp;grass \n falls \t slowly … “quoted” caf\u0065\u0301 ",
    "the empty street " * 300,
    "smile 😀 and ½ ﬁsh Ａ 東京 猫",
]


def write_spiece(file: Path, **options) -> None:
    """A sentencepiece model trained on random word salad."""
    draw, model = random.Random(0), io.BytesIO()
    sentences = (" ".join(draw.choices(WORDS.split(), k=draw.randint(3, 12))) + draw.choice(".!?") for _ in range(500))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, hard_vocab_limit=False, minloglevel=2, **options
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.getvalue())


def write_tokenizer(folder: Path, **options) -> None:
    """`tokenizer.json` with what AutoTokenizer needs beside it."""
    write_spiece(folder / "spiece.model", **options)
    read_sentencepiece(folder / "spiece.model").save(str(folder / "tokenizer.json"))
    (folder / "spiece.model").unlink()
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


UMT5_PIECES = {"byte_fallback": True, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "vocab_size": 500}
T5_PIECES = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 150}
SIZES = {
    "vocab_size": 512,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 96,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}


@pytest.fixture(scope="module")
def umt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("umt5")
    write_tokenizer(folder / "tokenizer", **UMT5_PIECES)
    torch.manual_seed(0)
    UMT5EncoderModel(UMT5Config(**SIZES)).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    write_tokenizer(folder / "tokenizer", **T5_PIECES)
    torch.manual_seed(0)
    T5EncoderModel(T5Config(**SIZES)).save_pretrained(folder / "text_encoder")
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> TextEncoder:
    return TextEncoder.from_folder(folder / "text_encoder", folder / "tokenizer", dtype=dtype)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("family", ["umt5", "t5"])
def test_equals_transformers(family: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(family)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = {"umt5": UMT5EncoderModel, "t5": T5EncoderModel}[family].from_pretrained(folder / "text_encoder")
    prompts = [clean_prompt(prompt) for prompt in PROMPTS]
    batch = tokenizer(prompts, padding="max_length", truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        theirs = model(batch.input_ids, batch.attention_mask).last_hidden_state
    for ours, reference, mask in zip(load(folder).encode(PROMPTS), theirs, batch.attention_mask, strict=True):
        assert len(ours) == mask.sum()
        assert relative_error(ours, reference[: len(ours)]) < GATE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("family", "feed_forward"),
    [("umt5", "gated-gelu"), ("t5", "gated-gelu"), ("t5", "relu"), ("t5", "gelu"), ("t5", "gated-silu")],
)
def test_without_padding_every_bit_is_that_of_transformers(family: str, feed_forward: str, dtype: torch.dtype):
    config, model = {"umt5": (UMT5Config, UMT5EncoderModel), "t5": (T5Config, T5EncoderModel)}[family]
    torch.manual_seed(0)
    theirs = model(config(**SIZES | {"feed_forward_proj": feed_forward})).eval().to(dtype)
    ours = T5Encoder(CONFIGS[family].over(theirs.config.to_dict())).eval().to(dtype)
    weights = {name: 3 * torch.randn_like(tensor) for name, tensor in theirs.state_dict().items() if "norm" in name}
    theirs.load_state_dict(weights, strict=False)
    ours.load_state_dict({name: tensor for name, tensor in theirs.state_dict().items() if name != TWIN})
    for module in (theirs, ours):
        for name, parameter in module.named_parameters():
            if dtype == torch.float16 and any(f".{kept}." in name for kept in IN_FLOAT32):
                parameter.data = parameter.data.float()
    for length in (1, 2, 9, 40, 300, 512):  # across all ranges of distances
        ids = torch.randint(0, SIZES["vocab_size"], (1, length))
        with torch.no_grad():
            wanted = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            found = ours(ids)
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)


@pytest.mark.parametrize("family", ["umt5", "t5"])
def test_what_a_config_does_not_say_is_as_in_transformers(family: str):
    theirs = {"umt5": UMT5Config, "t5": T5Config}[family]()
    assert CONFIGS[family].over(theirs.to_dict()) == CONFIGS[family]
    assert tuple(UMT5EncoderModel._keep_in_fp32_modules) == tuple(T5EncoderModel._keep_in_fp32_modules) == IN_FLOAT32


def test_weights_go_to_the_encoder_that_is_trained_and_back():
    torch.manual_seed(0)
    sizes = {"vocab_size": 9, "d_model": 16, "layers": 2, "heads": 2, "d_kv": 8}
    first, second = (build_umt5(**sizes, d_ff=24) for _ in range(2))
    take_weights(second, to_sample_with(first))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        take_weights(build_umt5(**sizes, d_ff=32), to_sample_with(first))


@pytest.mark.parametrize("max_length", [512, 226, 8])
def test_equals_the_wan_pipeline(umt5: Path, max_length: int):
    pipeline = WanPipeline(
        AutoTokenizer.from_pretrained(umt5 / "tokenizer"),
        UMT5EncoderModel.from_pretrained(umt5 / "text_encoder"),
        vae=None,
        scheduler=UniPCMultistepScheduler(),
    )
    with torch.no_grad():
        theirs = pipeline._get_t5_prompt_embeds(PROMPTS, max_sequence_length=max_length)
    for ours, reference in zip(load(umt5).encode(PROMPTS, max_length), theirs, strict=True):
        assert relative_error(ours, reference[: len(ours)]) < GATE
        assert not reference[len(ours) :].any()  # what the transformer's text padding stands for


def test_truncation_keeps_the_end_token(umt5: Path):
    encoder = load(umt5)
    whole, cut = encoder.token_ids("the empty street " * 300, 2000), encoder.token_ids("the empty street " * 300, 10)
    assert len(whole) > 512
    assert cut == [*whole[:9], 1]
    assert len(encoder.token_ids("the empty street " * 300)) == 512
    assert encoder.token_ids("") == [1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "a  b\t\nc",
        "&amp;lt;b&amp;gt;",
        "<p> &amp;amp;lt;b &amp;eacute;",
        "â€œmojibakeâ€\x9d",
        "ﬁ … ＡＢ",
        "caf\u0065\u0301",
        "I&#39;m",
        *PROMPTS,
    ],
)
def test_cleaning_equals_diffusers(text: str):
    assert clean_prompt(text) == prompt_clean(text)


def test_a_batch_equals_its_prompts_alone(umt5: Path):
    encoder = load(umt5)
    together = encoder.encode([*PROMPTS, PROMPTS[0]])
    for prompt, embedding in zip([*PROMPTS, PROMPTS[0]], together, strict=True):
        assert torch.equal(embedding, encoder.encode([prompt])[0])
        assert embedding.shape[1] == encoder.module.config.d_model
    assert not together[0].requires_grad


def test_lower_precision_is_near(umt5: Path):
    for dtype in (torch.bfloat16, torch.float16):
        ours = load(umt5, dtype).encode(PROMPTS[:1])[0]
        assert ours.dtype == dtype
        assert 0 < relative_error(ours.float(), load(umt5).encode(PROMPTS[:1])[0]) < 3e-2


def test_reads_shards(umt5: Path, tmp_path: Path):
    UMT5EncoderModel.from_pretrained(umt5 / "text_encoder").save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sharded = TextEncoder.from_folder(tmp_path, umt5 / "tokenizer", dtype=torch.float32)
    assert torch.equal(sharded.encode(PROMPTS[:1])[0], load(umt5).encode(PROMPTS[:1])[0])


@pytest.mark.parametrize("options", [UMT5_PIECES, T5_PIECES], ids=["umt5", "t5"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "identity"])
def test_spiece_model_equals_sentencepiece(tmp_path: Path, options: dict, rule: str):
    write_spiece(tmp_path / "spiece.model", normalization_rule_name=rule, **options)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    ours = read_sentencepiece(tmp_path / "spiece.model")
    texts = [
        *PROMPTS,
        "Zebra  with   spaces ",
        "tabs\there",
        "qux 😀😀 zz",
        "日本語 テスト",
        " lead and trail ",
        *WORDS.split(),
    ]
    for text in texts:
        assert ours.encode(text).ids == [*reference.encode(text), reference.eos_id()], text


def test_spiece_model_is_read_when_there_is_no_tokenizer_json(umt5: Path, tmp_path: Path):
    write_spiece(tmp_path / "spiece.model", **UMT5_PIECES)
    encoder = TextEncoder.from_folder(umt5 / "text_encoder", tmp_path, dtype=torch.float32)
    assert torch.equal(encoder.encode(PROMPTS)[0], load(umt5).encode(PROMPTS)[0])


def test_subword_tokenizers_have_no_unknown_words(umt5: Path):
    assert load(umt5).unknown_words("zyzzyva 😀") == []


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_refuses_a_missing_file_by_name(umt5: Path, tmp_path: Path, file: str):
    broken = copied(umt5 / "text_encoder", tmp_path / "broken")
    (broken / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        TextEncoder.from_folder(broken, umt5 / "tokenizer", dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "'bert': the text encoder must be umt5 or t5"),
        ({"num_layers": 4}, r"tensors are missing: 'encoder\.block\.3"),
        ({"num_layers": 2}, r"tensors are unexpected: 'encoder\.block\.2"),
        ({"d_ff": 64}, "it must be"),
        ({"d_ff": "96"}, "d_ff is '96'; it must be a whole number from 1"),
        ({"num_heads": 0}, "num_heads is 0; it must be a whole number from 1"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon is None; it must be a number"),
        (
            {"feed_forward_proj": "gated-tanh"},
            "feed_forward_proj is 'gated-tanh'; it must be one of relu, gelu, gated-",
        ),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets is 2; it must be from 4"),
    ],
)
def test_refuses_a_config_that_does_not_fit(umt5: Path, tmp_path: Path, change: dict, message: str):
    broken = copied(umt5 / "text_encoder", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        TextEncoder.from_folder(broken, umt5 / "tokenizer", dtype=torch.float32)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_refuses_a_damaged_encoder(umt5: Path, tmp_path: Path, file: str):
    broken = copied(umt5 / "text_encoder", tmp_path / "broken")
    (broken / file).write_bytes((broken / file).read_bytes()[:100])
    with pytest.raises(CheckpointError, match="broken"):
        TextEncoder.from_folder(broken, umt5 / "tokenizer", dtype=torch.float32)


def test_refuses_a_damaged_tokenizer(umt5: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor spiece\.model"):
        TextEncoder.from_folder(umt5 / "text_encoder", tmp_path, dtype=torch.float32)
    (tmp_path / "spiece.model").write_bytes(b"\x0a\xff not a model")
    with pytest.raises(CheckpointError, match=r"spiece\.model: not a readable SentencePiece"):
        TextEncoder.from_folder(umt5 / "text_encoder", tmp_path, dtype=torch.float32)
    write_spiece(tmp_path / "spiece.model", model_type="char", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    with pytest.raises(CheckpointError, match="not a unigram"):
        TextEncoder.from_folder(umt5 / "text_encoder", tmp_path, dtype=torch.float32)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a readable tokenizer"):
        TextEncoder.from_folder(umt5 / "text_encoder", tmp_path, dtype=torch.float32)


def test_reading_a_prompt_does_not_import_transformers():
    code = (
        "import sys, torch, dit_video.text.vocabulary; from pathlib import Path;"
        "from dit_video.models import open_checkpoint;"
        "text = open_checkpoint(Path('weights/default')).load_text(dtype=torch.float32);"
        "text.encode(['a red ball']);"
        "print({'transformers', 'torch._dynamo', 'diffusers'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path.cwd())
    assert printed.stdout.strip() == "set()"


def test_loading_and_saving_print_nothing(umt5: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    module = UMT5EncoderModel.from_pretrained(umt5 / "text_encoder")
    capfd.readouterr()
    load(umt5)
    save_text_encoder(module, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_the_callers_tokenizer_settings_do_not_pad(umt5: Path):
    tokenizer = Tokenizer.from_file(str(umt5 / "tokenizer" / "tokenizer.json"))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(4)
    encoder = TextEncoder(UMT5EncoderModel.from_pretrained(umt5 / "text_encoder"), tokenizer)
    assert encoder.token_ids(PROMPTS[0]) == load(umt5).token_ids(PROMPTS[0])
