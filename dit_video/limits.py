"""What values settings may have: for the command line and for Python alike."""

SOLVERS = ("euler", "heun", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "lcm")
SIGMAS = ("release", "diffusers")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
FITS = ("cover", "contain", "stretch")

MAX_STEPS = 1000  # the number of timesteps that Wan's transformers were trained with
FPS = (1.0, 240.0)
SHIFT = (0.1, 100.0)
GUIDANCE = (1.0, 100.0)
MEMORY = (2**29, 2**50)  # bytes
MAX_SEED = 2**63 - 1
MAX_FRAMES = 100_000
STRENGTH = 0.6  # of an edit, where none is given: the new colour comes, and the object stays where it was
