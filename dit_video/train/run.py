"""The two trainings of `dvgen train`, from a config file."""

from pathlib import Path

from dit_video.train.config import AutoencoderConfig, DiTTrainConfig, load_config
from dit_video.train.loop import Reporter


def train_autoencoder(config_path: Path, *, resume: bool, reporter: Reporter) -> Path:
    """Train the causal VAE of a TOML config; returns the run's folder.

    Raises:
        UsageError: the config. CheckpointError: nothing to resume.
    """
    config = load_config(config_path, AutoencoderConfig)
    from dit_video.train import autoencoder

    return autoencoder.train(config, resume=resume, report=reporter)


def train_dit(config_path: Path, *, resume: bool, reporter: Reporter) -> Path:
    """Train the diffusion transformer and its text encoder of a TOML config; returns the run's folder.

    Raises:
        UsageError: the config. CheckpointError: the autoencoder, or nothing to resume.
    """
    config = load_config(config_path, DiTTrainConfig)
    from dit_video.train import dit

    return dit.train(config, resume=resume, report=reporter)
