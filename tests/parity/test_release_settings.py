"""What no tensor tells: the settings and constants that the original releases hard-code, against numbers noted there.

Sources: Wan-Video/Wan2.1, generate.py, README.md and wan/configs; Wan-Video/Wan2.2, wan/configs/*.py and
wan/modules/vae2_2.py.
"""

import pytest

from dit_video.models.wan.defaults import RELEASES
from dit_video.models.wan.vae_layouts import WAN_2_1_VAE, WAN_2_2_VAE
from dit_video.models.wan.variants import VARIANTS

# size, frames, frames a second, steps, shift, guidance, boundary. The release's guidance of two experts is (low, high).
NOTED = {
    "T2V-1.3B": ((832, 480), 81, 16, 50, 8.0, (6.0,), None),
    "T2V-14B": ((1280, 720), 81, 16, 50, 5.0, (5.0,), None),
    "T2V-A14B": ((1280, 720), 81, 16, 40, 12.0, (3.0, 4.0), 0.875),
    "TI2V-5B": ((1280, 704), 121, 24, 50, 5.0, (5.0,), None),
    "I2V-14B-480P": ((832, 480), 81, 16, 40, 3.0, (5.0,), None),
    "I2V-14B-720P": ((1280, 720), 81, 16, 40, 5.0, (5.0,), None),
    "FLF2V-14B": ((1280, 720), 81, 16, 50, 16.0, (5.0,), None),
    "I2V-A14B": ((1280, 720), 81, 16, 40, 5.0, (3.5, 3.5), 0.9),
}


@pytest.mark.parametrize("name", NOTED)
def test_settings_are_those_of_the_release(name: str):
    size, frames, fps, steps, shift, low_and_high, boundary = NOTED[name]
    ours = VARIANTS[name].defaults
    assert ours == RELEASES[name]
    assert (ours.width, ours.height) == size and (ours.frames, ours.fps) == (frames, fps)
    assert (ours.steps, ours.shift, ours.guidance) == (steps, shift, low_and_high[::-1])
    assert (ours.solver, ours.sigmas) == ("unipc", "release")
    assert VARIANTS[name].boundary == boundary


def test_every_release_is_noted():
    assert set(NOTED) == set(VARIANTS) == set(RELEASES)


@pytest.mark.parametrize(
    ("vae", "means", "deviations"), [(WAN_2_1_VAE, -0.2126, 286.1255), (WAN_2_2_VAE, -7.6248, 790.8891)]
)
def test_constants_of_the_latents(vae, means: float, deviations: float):
    """Sums weighted by the channel's number, which any two exchanged or one changed would change."""
    assert sum(i * value for i, value in enumerate(vae.latents_mean, 1)) == pytest.approx(means, abs=1e-9)
    assert sum(i * value for i, value in enumerate(vae.latents_std, 1)) == pytest.approx(deviations, abs=1e-9)
