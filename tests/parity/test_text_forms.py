"""UMT5 from every form it is published in gives transformers' embeddings, and every name of UMT5-XXL is known.

The names of llama.cpp come from the gguf package, those of the original release (wan/modules/t5.py) are written down.
"""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.keymap import detect
from dit_video.checkpoints.parts import split
from dit_video.models.wan.release import KINDS, contents
from dit_video.text.encoders import TextEncoder, load_tokenizer
from dit_video.text.layouts import LLAMA_CPP, ORIGINAL, TEXT_LAYOUTS, TRANSFORMERS, text_config, text_part
from tests.parity.test_text_encoder import GATE, PROMPTS, UMT5_PIECES, relative_error, write_spiece
from tests.parity.test_tokenizers import in_gguf
from tests.unit.test_stored import write_gguf

CONFIG = UMT5Config(
    vocab_size=512, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu"
)
XXL = UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                 feed_forward_proj="gated-gelu")  # fmt: skip
"""google/umt5-xxl's config.json, as far as it differs from the class's defaults."""

Tensors = dict[str, Tensor]


def release_name(name: str) -> str:
    """What wan/modules/t5.py calls a tensor of transformers' UMT5EncoderModel.

    Its feed-forward is fc2(fc1(x) * gate(x)), of which `gate` ends in the GELU; transformers' is wo(gelu(wi_0(x)) *
    wi_1(x)).
    """
    layer = {
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.0.SelfAttention": "attn",
        "layer.0.layer_norm": "norm1",
        "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1",
        "layer.1.DenseReluDense.wo": "ffn.fc2",
        "layer.1.layer_norm": "norm2",
    }
    for theirs, ours in layer.items():
        name = name.replace(theirs, ours)
    name = name.replace("encoder.block.", "blocks.").replace("encoder.final_layer_norm", "norm")
    return name.replace("shared.", "token_embedding.")


def llama_name(name: str) -> str:
    """What the gguf package calls it."""
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 24).get_name(name, try_suffixes=(".weight",)) or ""


@pytest.fixture(scope="module")
def weights() -> Tensors:
    """Under transformers' names, of a size that makes each of them count."""
    torch.manual_seed(0)
    model = UMT5EncoderModel(CONFIG)
    found = {name: tensor.clone() for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    for name, tensor in found.items():
        if "norm" in name:
            tensor.copy_(1 + 0.3 * torch.randn_like(tensor))
        elif "relative_attention_bias" in name or name.startswith("shared"):
            tensor.copy_(torch.randn_like(tensor))
    return found


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spiece.model."""
    folder = tmp_path_factory.mktemp("spiece")
    write_spiece(folder / "spiece.model", **UMT5_PIECES)
    return folder


def theirs(weights: Tensors, tokenizer: Tokenizer) -> list[Tensor]:
    """transformers' embeddings of the prompts, each (L, dim), padded to 512 rows and masked as diffusers does."""
    model = UMT5EncoderModel(CONFIG)
    model.load_state_dict({**weights, "encoder.embed_tokens.weight": weights["shared.weight"]})
    reader = TextEncoder(model, tokenizer)
    ids = [torch.tensor(reader.token_ids(prompt)) for prompt in PROMPTS]
    batch = torch.stack([torch.nn.functional.pad(each, (0, 512 - len(each))) for each in ids])
    mask = torch.stack([(torch.arange(512) < len(each)).long() for each in ids])
    with torch.no_grad():
        found = model.eval()(batch, mask).last_hidden_state
    return [rows[: len(each)] for rows, each in zip(found, ids, strict=True)]


def ours(file: Path, spiece: Path | None = None) -> list[Tensor]:
    """Our embeddings by a file, with the tokenizer it carries if there is no other."""
    text = text_part(contents(file)["text_encoder"])
    tokenizer = load_tokenizer(spiece or text.spiece or file)
    return TextEncoder.from_part(text.part, tokenizer, dtype=torch.float32).encode(PROMPTS)


def assert_near(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < GATE


def renamed(weights: Tensors, name: Callable[[str], str]) -> Tensors:
    return {name(theirs): tensor.clone() for theirs, tensor in weights.items()}


@pytest.mark.parametrize("file", ["models_t5_umt5-xxl-enc-bf16.pth", "umt5.safetensors"])
@pytest.mark.parametrize("names", [str, release_name, llama_name], ids=["transformers", "release", "llama.cpp"])
def test_names(weights: Tensors, spiece: Path, tmp_path: Path, names: Callable[[str], str], file: str):
    made = renamed(weights, names)
    assert len(made) == len(weights)
    (torch.save if file.endswith(".pth") else save_file)(made, tmp_path / file)
    assert_near(ours(tmp_path / file, spiece), theirs(weights, load_tokenizer(spiece)))


def test_the_embedding_under_both_names(weights: Tensors, spiece: Path, tmp_path: Path):
    """As transformers 4 writes it, and behind the prefix of ComfyUI's all-in-one files."""
    twice = {**weights, "encoder.embed_tokens.weight": weights["shared.weight"].clone()}
    save_file({f"text_encoders.umt5xxl.transformer.{n}": t for n, t in twice.items()}, tmp_path / "all.safetensors")
    assert_near(ours(tmp_path / "all.safetensors", spiece), theirs(weights, load_tokenizer(spiece)))


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q5_1"])
def test_gguf(weights: Tensors, spiece: Path, tmp_path: Path, kind: str):
    """Matrices in blocks, the rest in float32, as llama.cpp quantises; and the tokenizer in the metadata."""
    quantised = gguf.GGMLQuantizationType[kind]
    matrices = {n for n, t in weights.items() if t.ndim == 2 and t.shape[-1] % 32 == 0}
    assert len(matrices) == 1 + 7 * CONFIG.num_layers
    kinds = {} if kind == "F16" else {llama_name(name): quantised for name in matrices}
    stored = {n: t.half() if kind == "F16" and n in matrices else t for n, t in weights.items()}
    file = write_gguf(tmp_path / "umt5.gguf", renamed(stored, llama_name), kinds)
    exact = {
        name: torch.from_numpy(gguf.dequantize(gguf.quantize(weights[name].numpy(), quantised), quantised))
        for name in matrices
    }
    assert all(0 < (exact[n] - weights[n]).abs().max() < 0.2 for n in matrices)
    tokenizer = in_gguf((spiece / "spiece.model").read_bytes(), tmp_path)
    assert_near(ours(file, spiece), theirs(weights | exact, tokenizer))


@pytest.mark.parametrize("convention", ["older", "newer"])
def test_fp8_scaled_with_its_tokenizer(weights: Tensors, spiece: Path, tmp_path: Path, convention: str):
    """ComfyUI's umt5_xxl_fp8_e4m3fn_scaled: W = q * scale, and spiece_model among the tensors."""
    matrices = {name for name in weights if name.startswith("encoder.block") and "norm" not in name}
    matrices -= {name for name in matrices if "bias" in name}
    made, exact = dict(weights), dict(weights)
    for name in matrices:
        scale = weights[name].abs().max() / 448
        layer, q = name.removesuffix(".weight"), (weights[name] / scale).to(torch.float8_e4m3fn)
        made[name], exact[name] = q, q.float() * scale
        if convention == "older":
            made |= {f"{layer}.scale_weight": scale.view(1), f"{layer}.scale_input": torch.ones(1)}
        else:
            about = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
            made |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": about}
    if convention == "older":
        made["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    data = (spiece / "spiece.model").read_bytes()
    made["spiece_model"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    save_file(made, tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    found = ours(tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    assert_near(found, theirs(exact, load_tokenizer(spiece)))
    assert relative_error(found[0], theirs(weights, load_tokenizer(spiece))[0]) > 1e-3  # the gate would see the scale


# Full size.


def infos(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    """Tensors of these names and shapes, as a header describes them."""
    return {
        name: TensorInfo(name=name, dtype="BF16", shape=shape, file=Path("x"), nbytes=0)
        for name, shape in shapes.items()
    }


NAMINGS = {
    "transformers": (TRANSFORMERS, str),
    "release": (ORIGINAL, release_name),
    "llama.cpp": (LLAMA_CPP, llama_name),
}


@pytest.mark.parametrize(("layout", "names"), NAMINGS.values(), ids=NAMINGS)
def test_every_name_of_umt5_xxl(layout, names: Callable[[str], str]):
    """Each is exactly one of ours, and back, and the shapes tell the configuration."""
    with torch.device("meta"):
        model = UMT5EncoderModel(XXL)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if "embed_tokens" not in name}
    assert len(shapes) == 242 and sum(p.numel() for p in model.parameters()) == pytest.approx(5.68e9, rel=1e-3)
    named = {names(name): shape for name, shape in shapes.items()}
    assert len(named) == len(shapes) and detect(named, TEXT_LAYOUTS) is layout
    assert {layout.to_ours(names(name)): shape for name, shape in shapes.items()} == shapes
    assert all(layout.to_theirs(name) == names(name) and layout.to_ours(names(name)) == name for name in shapes)
    (part,) = split(Path("x"), infos(named), KINDS).values()
    assert part.shapes == shapes
    fields = text_config(part)
    assert {name: getattr(XXL, name) for name in fields} == fields and fields["model_type"] == "umt5"
