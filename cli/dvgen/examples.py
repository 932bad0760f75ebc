"""Examples for the help of every command, which the tests parse as they stand."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "sample": (
        'dvgen sample "a red ball moving right on a white background" --size 640x360 --frames 48 -o ball.mp4',
        'dvgen sample "a blue star moving up" --image star.png --duration 3 --seed 7',
        'dvgen sample "a cat on a beach" --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --memory 6GiB --dry-run',
        "dvgen sample - --frames 1 -o still.png --json < prompt.txt",
    ),
    "extend": (
        'dvgen extend clip.mp4 "a red ball moving right" --forward 24 -o longer.mp4',
        'dvgen extend clip.mp4 "a red ball moving right" --backward 12 --forward 12 --seed 7',
        "dvgen extend clip.mp4 --loop 24 -o loop.gif",
    ),
    "connect": (
        'dvgen connect first.mp4 second.mp4 "a blue square moving right" --frames 24 -o both.mp4',
        "dvgen connect first.png last.png --frames 22 --fit contain",
    ),
    "edit": (
        'dvgen edit clip.mp4 "a green ball moving right" -o green.mp4',
        'dvgen edit clip.mp4 "a green star moving right" --strength 0.8 --seed 7',
    ),
    "batch": (
        "dvgen batch prompts.txt --out videos --size 256x144 --frames 24",
        "dvgen batch jobs.jsonl --out videos --dry-run",
        "dvgen batch jobs.jsonl --out videos --keep-going",
        "dvgen batch jobs.csv --out videos --shard 3/8 --name {index}-{seed}",
    ),
    "decode": (
        "dvgen decode clip.safetensors",
        "dvgen decode clip.safetensors -o clip.webm --memory 4GiB --overwrite",
    ),
    "again": (
        "dvgen again clip.mp4 -o same.mp4",
        "dvgen again clip.mp4 --seed 8 --steps 40",
        "dvgen again clip.mp4 --show",
    ),
    "info": (
        "dvgen info default",
        "dvgen info wan2.1-t2v-14b-Q4_K_M.gguf",
        "dvgen info clip.mp4 --json",
    ),
    "convert": (
        "dvgen convert Wan-AI/Wan2.1-T2V-1.3B-Diffusers out --layout comfyui",
        "dvgen convert dit.safetensors out --layout diffusers --vae vae.safetensors --dtype bfloat16",
    ),
    "models": (
        "dvgen models",
        "dvgen models --json",
    ),
    "download": (
        "dvgen download wan2.1-t2v-1.3b --dry-run",
        "dvgen download Wan-AI/Wan2.1-T2V-1.3B-Diffusers --yes --to models/wan",
    ),
    "eval": (
        "dvgen eval --prompts 96 --json rates.json",
        "dvgen eval --mode extend --sheet clips.png",
        "dvgen eval --model runs/dit/checkpoint --reconstruct",
    ),
    "calibrate": (
        "dvgen calibrate",
        "dvgen calibrate --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --dtype bfloat16",
    ),
    "scenes": (
        "dvgen scenes out --count 20 --size 256x144 --frames 24",
        "dvgen scenes out --held-out --seed 1",
    ),
    "config": (
        "dvgen config",
        "dvgen config sample",
        "DVGEN_STEPS=20 dvgen config eval --json",
        "dvgen config --init",
    ),
    "autoencoder": (
        "dvgen train autoencoder configs/autoencoder-small.toml --dry-run",
        "dvgen train autoencoder configs/autoencoder-small.toml --resume",
    ),
    "dit": (
        "dvgen train dit configs/dit-small.toml",
        "dvgen train dit configs/dit-small.toml --lora 16 --log-file train.log",
        "torchrun --nproc-per-node 2 -m dvgen train dit configs/dit-small.toml --resume",
    ),
}
"""By the name of a command."""


def document(command: str | None) -> str | None:
    """The examples of a command as docs/cli.md has them; None where there are none."""
    if command not in EXAMPLES:
        return None
    return "\n".join(["**Examples**:", "", "```console", *(f"$ {line}" for line in EXAMPLES[command]), "```"])


def show(command: str | None) -> None:
    """Print the examples of a command below its help, each a line that can be copied, however narrow the terminal."""
    from rich.console import Console
    from rich.text import Text

    if command in EXAMPLES:
        lines = "\n".join(f"   {line}" for line in EXAMPLES[command])
        Console(highlight=False).print(Text.assemble((" Examples:\n", "bold"), lines, "\n"), soft_wrap=True)
