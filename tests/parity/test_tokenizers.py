"""Tokenizers out of every kind of file that carries one, against the sentencepiece package, on 200 odd strings."""

import io
import random
from pathlib import Path

import gguf
import pytest
import sentencepiece
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers.utils.sentencepiece_model_pb2_new import ModelProto

from dit_video.checkpoints.formats import describe
from dit_video.text.encoders import clean_prompt, load_tokenizer

PHRASES = (
    "a red ball moves slowly across an empty street while rain falls on the grass",
    "café, naïve and Straße: über 3,5 km à pied; ¿dónde está el niño?",
    "一只猫在雨中的街道上慢慢地走。红色的球滚过草地！",
    "赤いボールがゆっくりと通りを横切る、東京タワーと猫。",
    "빨간 공이 거리를 천천히 가로질러 움직인다",
    "красный мяч медленно катится по пустой улице, и собака",
    "كرة حمراء تتحرك ببطء عبر الشارع",
    "ลูกบอลสีแดงเคลื่อนที่ช้าๆ ไปตามถนน",
    "लाल गेंद धीरे धीरे सड़क पार करती है",
    "smile 😀 and 🎬 under ☀ at 10:45 (f/2.8, 1/250 s) — “slow motion” …",
)
FRAGMENTS = (
    *("the quick ball", "Red BALL", "x", "e\u0301te\u0301", "\u0301"),
    *("Åse Ångström", "ﬁne ﬂow", "½ cup", "x²", "№ 5"),
    *("ＡＢＣ １２３", "ｶﾞｷﾞ", "㍿", "①②", "Ⅷ", "ß ẞ", "İstanbul ı"),
    *("Ǆ", "ſt", "µm Ω K", "東京", "猫が好き", "春 夏", "한글 조합"),
    *("각", "مرحبا", "שלום", "สวัสดี", "नमस्ते", "Привет, мир", "😀"),
    *("👩‍👩‍👧‍👦", "👍🏽", "🇯🇵🇫🇷", "☀️", "❤", "🫠", "𝕳𝖊𝖑𝖑𝖔"),
    *("a  b", "   lead", "trail   ", "tab\there", "new\nline"),
    *("\r\n", "nbsp\u00a0here", "ideo\u3000space", "zero\u200bwidth"),
    *("soft\u00adhyphen", "\ufeffbom", "left\u200e\u200fright", "\u0001\u007f"),
    *("\u2028para\u2029", "thin\u2009space", "▁low▁"),
    *("&amp;", "&amp;amp;", "&lt;b&gt;", "&amp;lt;i&amp;gt;", "&eacute;t&eacute;"),
    *("&#39;", "&#x1F600;", "&nbsp;", "&bogus;"),
    *("“curly” ‘quotes’", "wait…", "em—dash – en", "a/b\\c", "100%"),
    *("$5.00 €3", "#tag @you", "snake_case", "http://x.y/?q=1&r=2"),
    *("â€œmojibakeâ€\x9d", "schÃ¶n", "<unclosed", "[brackets] {braces}", "~`^|", "!!!???"),
    *("....", "'", '"', "zzzyzzyva", "qqqq"),
    *("supercalifragilistic" * 4, "ball" * 30, "0123456789" * 3, "ａ" * 9, "é" * 12),
    *("🎬" * 5, "", " ", "\n \t"),
)  # fmt: skip


def odd_strings() -> list[str]:
    """200 of them: the fragments alone, then several in a row, joined in every way."""
    draw = random.Random(5)
    found = list(FRAGMENTS)
    while len(found) < 200:
        parts = draw.choices((*FRAGMENTS, *PHRASES), k=draw.randint(2, 6))
        found.append(draw.choice(("", " ", "  ", "\n", ", ", "\u3000")).join(parts))
    return found


# tokenizers normalises these as one letter each, sentencepiece character by character; no cleaned prompt has them.
CLEANED_AWAY = ("\uff9e", "\r\n", "\u0001")

KINDS = {
    "umt5": dict(byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, vocab_size=620),
    "umt5, few letters": dict(byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, vocab_size=480,
                              character_coverage=0.98),
    "umt5 without bytes": dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, vocab_size=480, character_coverage=0.98),
    "t5": dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, vocab_size=360, character_coverage=0.98),
    "spaces kept": dict(byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, vocab_size=620,
                        remove_extra_whitespaces=False),
    "no space before": dict(byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, vocab_size=620,
                            add_dummy_prefix=False),
    "lower case": dict(byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, vocab_size=620,
                       normalization_rule_name="nmt_nfkc_cf"),
    "words of the user": dict(byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, vocab_size=620,
                              user_defined_symbols=["<extra_id_0>", "ball", "東京"]),
}  # fmt: skip


def in_folder(model: bytes, out: Path) -> Tokenizer:
    """spiece.model, as in google/umt5-xxl."""
    (out / "spiece.model").write_bytes(model)
    return load_tokenizer(out)


def in_comfyui_file(model: bytes, out: Path) -> Tokenizer:
    """A tensor of bytes, as in ComfyUI's umt5_xxl files."""
    save_file({"spiece_model": torch.frombuffer(bytearray(model), dtype=torch.uint8)}, out / "t.safetensors")
    return load_tokenizer(describe(out / "t.safetensors")["spiece_model"])


def in_gguf(model: bytes, out: Path, spare: int = 7) -> Tokenizer:
    """Metadata, as llama.cpp's convert_hf_to_gguf.py writes it of a T5 encoder; spare: rows beyond the last piece."""
    pieces = SentencePieceProcessor(model_proto=model)
    told = ModelProto.FromString(model).normalizer_spec
    kinds = (
        (pieces.IsUnknown, gguf.TokenType.UNKNOWN),
        (pieces.IsControl, gguf.TokenType.CONTROL),
        (pieces.IsUnused, gguf.TokenType.UNUSED),
        (pieces.IsByte, gguf.TokenType.BYTE),
    )
    count = pieces.GetPieceSize()
    types = [next((kind for test, kind in kinds if test(i)), gguf.TokenType.NORMAL) for i in range(count)]
    writer = gguf.GGUFWriter(out / "t.gguf", "t5encoder")
    writer.add_tokenizer_model("t5")
    writer.add_token_list([*map(pieces.IdToPiece, range(count)), *(f"[PAD{count + i}]" for i in range(spare))])
    writer.add_token_scores([*map(pieces.GetScore, range(count)), *[-1000.0] * spare])
    writer.add_token_types([*types, *[gguf.TokenType.UNUSED] * spare])
    writer.add_add_space_prefix(told.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(told.remove_extra_whitespaces)
    if told.precompiled_charsmap:
        writer.add_precompiled_charsmap(told.precompiled_charsmap)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return load_tokenizer(out / "t.gguf")


CARRIERS = {"spiece.model": in_folder, "comfyui": in_comfyui_file, "gguf": in_gguf}


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    """SentencePiece models by kind, trained on word salad of ten languages."""
    draw = random.Random(0)
    words = [word for phrase in PHRASES for word in phrase.split()]
    salad = [" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(600)]
    found = {}
    for kind, options in KINDS.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*salad, *PHRASES]), model_writer=model, hard_vocab_limit=False, minloglevel=2,
            **options,
        )  # fmt: skip
        found[kind] = model.getvalue()
    return found


def test_the_strings_are_odd(models: dict[str, bytes]):
    """All of what makes tokenizers differ is in them: bytes, other normal forms, runs of spaces, entities."""
    texts = odd_strings()
    assert len(texts) == 200 and len({*texts}) > 195
    pieces = SentencePieceProcessor(model_proto=models["umt5"])
    assert sum(any(map(pieces.IsByte, pieces.encode(text))) for text in texts) > 50
    assert sum(clean_prompt(text) != text for text in texts) > 100
    assert not any(part in clean_prompt(text) for text in texts for part in CLEANED_AWAY)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_sentencepiece(models: dict[str, bytes], tmp_path: Path, kind: str, carrier: str):
    """Of what the release's cleaning leaves of the strings, and of the strings as they are."""
    reference = SentencePieceProcessor(model_proto=models[kind])
    ours = CARRIERS[carrier](models[kind], tmp_path)
    texts = odd_strings()
    pairs = [(clean_prompt(text), prompt_clean(text)) for text in texts]
    pairs += [(text, text) for text in texts if not any(part in text for part in CLEANED_AWAY)]
    assert len(pairs) > 380
    wrong = [seen for seen, text in pairs if ours.encode(seen).ids != [*reference.encode(text), reference.eos_id()]]
    assert not wrong
