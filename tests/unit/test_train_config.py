import pytest

from dit_video.errors import DvgenError, UsageError
from dit_video.train.config import AutoencoderConfig, DiTTrainConfig, load_config


def write(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_values_and_defaults(tmp_path):
    path = write(
        tmp_path, 'out = "runs/x"\nlatent_noise = 1\n[loop]\nsteps = 7\n[arch]\nz_dim = 16\ndim_mult = [1, 2]\n'
    )
    config = load_config(path, AutoencoderConfig)
    assert config.loop.steps == 7
    assert config.loop.ema == 0.999
    assert config.arch.dim_mult == (1, 2)
    assert config.latent_noise == 1.0


def test_phases_are_a_list_of_tables(tmp_path):
    text = 'out = "o"\nautoencoder = "a"\n[loop]\nsteps = 1\n'
    text += "[[phase]]\nimages = 1.0\n[[phase]]\nfirst_shard = 3\nframes = [5, 9]\n"
    config = load_config(write(tmp_path, text), DiTTrainConfig)
    assert [phase.first_shard for phase in config.phase] == [0, 3]
    assert config.phase[1].frames == (5, 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('out = "x"\n[loop]\nstep = 7\n', "unknown key 'step'; the nearest known one is 'steps'"),
        ('out = "x"\n[loop]\nwarmup = 7\n', "'steps' is required"),
        ('out = "x"\n[loop]\nsteps = "many"\n', "must be of type int, not 'many'"),
        ('out = "x"\n[loop]\nsteps = 1\n[data]\nframes = [1]\n', "must have 2 values, not 1"),
        ('out = "x"\nloop = 3\n', "must be a table"),
        (
            'out = "x"\n[loop]\nsteps = 1\n[data]\ncommon = ["256x144"]\n',
            "shape '256x144': must be WIDTHxHEIGHTxFRAMES",
        ),
        (
            'out = "x"\n[loop]\nsteps = 1\n[data]\ncommon = ["0 * 64x64x5"]\n',
            "its weight must be a whole number from 1",
        ),
        ("out = \n", "not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, said):
    with pytest.raises(UsageError, match=said):
        load_config(write(tmp_path, text), AutoencoderConfig)


def test_a_missing_file(tmp_path):
    with pytest.raises(DvgenError, match="cannot be read"):
        load_config(tmp_path / "none.toml", AutoencoderConfig)
