"""`dvgen download`: a public model, from the Hugging Face hub to where `--model` finds it."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from dit_video.checkpoints import hub
from dit_video.checkpoints.files import read_json
from dit_video.checkpoints.places import find_checkpoint
from dit_video.errors import CheckpointError, UsageError
from dvgen import console, options
from dvgen.logs import with_logging

MEGABYTE = 10**6
_CONFIGS = ("transformer/config.json", "vae/config.json")


@with_logging
def download(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help=f"OWNER/REPOSITORY of the hub, or one of {', '.join(hub.KNOWN)}.", show_default=False
        ),
    ],
    yes: Annotated[
        bool, options.option("--yes -y", None, "Do not ask before the download begins.", of="download")
    ] = False,
    to: Annotated[
        Path | None,
        options.option("--to", "FOLDER", "Instead of the Hugging Face cache.", show_default=False, of="download"),
    ] = None,
    revision: Annotated[
        str, options.option("--revision", "REV", "A branch, a tag or a commit.", setting=False)
    ] = hub.MAIN,
    dry_run: Annotated[
        bool, options.option("--dry-run", None, "Show what would be fetched, and fetch nothing.", setting=False)
    ] = False,
    quiet: Annotated[
        bool, options.option("--quiet -q", None, "No progress and no notes.", panel=options.MESSAGES)
    ] = False,
) -> None:
    """Fetch a model's configs, weights and tokenizer, and nothing else.

    What is there already is not fetched again. Standard output gets the folder, standard error all else. HF_ENDPOINT,
    HF_TOKEN, HF_HOME and HF_HUB_OFFLINE mean what they always do.
    """
    repository = hub.repository_of(name)
    if to is not None:
        hub.check_folder(to)
    if not (yes or dry_run or _is_asked()):
        raise UsageError(f"{name}: without a terminal nobody can be asked before the download; add --yes.")
    listing = hub.look_up(repository, revision)
    plan = hub.plan(listing, to)
    if plan.left:
        _check_configs(listing)
    lines = _lines(plan, name)
    if dry_run:
        console.result("\n".join(lines))
        plan.check_room()
        return
    asks = bool(plan.left) and not yes
    for line in lines if asks or not quiet else []:
        console.say(line)
    plan.check_room()
    if asks and not _agrees():
        console.say("nothing was fetched.")
        raise typer.Exit(1)
    path = _fetch(plan, quiet=quiet)
    _check(path)
    if not quiet:
        console.say(f'run it: dvgen sample "a prompt" --model {_model(path, repository)}')
    console.result(str(path))


def _is_asked() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _agrees() -> bool:
    """Whether the answer is yes; no answer is a no."""
    sys.stderr.write("Fetch them? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _lines(plan: hub.Plan, name: str) -> list[str]:
    """What is fetched, from where and to where."""
    listing, known = plan.listing, hub.KNOWN.get(name.lower())
    licence = known.licence if known else listing.licence
    lines = [f"{listing.repository} at {listing.commit[:12]}{f', licence {licence}' if licence else ''}"]
    lines += [f"{size(plan.files[file]):>10}  {file}" for file in plan.left]
    if here := len(plan.files) - len(plan.left):
        lines.append(f"{here} of {len(plan.files)} files are there already")
    if plan.left:
        count = f"{len(plan.left)} file{'s' * (len(plan.left) > 1)}"
        lines.append(f"{size(plan.bytes_left)} in {count} to {plan.place}, where {size(plan.free)} are free")
    return lines


def size(count: int) -> str:
    """ "12.3 GB", "4.5 MB", "6.7 kB" or "89 B"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _check_configs(listing: hub.Listing) -> None:
    """Refuses a diffusers folder of another family before its weights are fetched. Raises CheckpointError."""
    if not set(_CONFIGS) <= listing.files.keys():
        return
    from dit_video.models.wan.layouts import config_from_diffusers
    from dit_video.models.wan.vae_layouts import from_diffusers_config

    with TemporaryDirectory(prefix="dvgen-") as folder:
        hub.peek(listing, _CONFIGS, Path(folder))
        readers = (config_from_diffusers, from_diffusers_config)
        for file, read in zip(_CONFIGS, readers, strict=True):
            try:
                read(read_json(Path(folder) / file))
            except CheckpointError as error:
                raise CheckpointError(f"{listing.repository}: is no model that dvgen runs; {error}") from error


def _fetch(plan: hub.Plan, *, quiet: bool) -> Path:
    """Fetches, and shows how far it has come."""
    with console.Speaker(quiet=quiet) as speaker:

        def progress(done: int, total: int) -> None:
            megabytes = -(
                -total // MEGABYTE
            )  # rounded up, and what is done down: the last one comes with the last byte
            speaker.progress("downloading, MB", megabytes if done == total else done // MEGABYTE, megabytes)

        return hub.fetch(plan, progress)


def _check(path: Path) -> None:
    """Refuses what was fetched and does not open. Raises CheckpointError."""
    from dit_video.models import open_checkpoint

    try:
        open_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: everything was fetched, but it does not open: {error}") from error


def _model(path: Path, repository: str) -> str:
    """What --model calls it: the repository, where that means this revision of it."""
    try:
        return repository if find_checkpoint(repository) == path else str(path)
    except CheckpointError:
        return str(path)
