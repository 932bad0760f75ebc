"""Models on the Hugging Face hub: those with short names, the files of a repository that a model needs, fetching them.

huggingface_hub does the fetching, into its own cache, which `places` reads, or into a folder; its variables count:
HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HUB_OFFLINE and the rest. It takes a second to import, so it is imported when it
is first used; nothing here imports torch.
"""

import difflib
import errno
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from dit_video.checkpoints.files import read_json
from dit_video.checkpoints.headers import reason
from dit_video.errors import CheckpointError, UsageError

MAIN = "main"  # the revision that is fetched where none is named
POLLED_EVERY = 0.2  # seconds between two looks at how far a download has come
PATIENCE = 5.0  # seconds that the threads of a download get to put away what they had begun, once it is stopped

_WEIGHTS = "diffusion_pytorch_model"
_STEMS = {"transformer": _WEIGHTS, "transformer_2": _WEIGHTS, "vae": _WEIGHTS} | {
    "text_encoder": "model",
    "image_encoder": "model",
}
"""The parts of a diffusers folder that have weights, and what their files are called."""

_NEEDED = ("transformer", "vae", "text_encoder")  # of every model
_SMALL = ("tokenizer", "scheduler", "image_processor")  # its other folders
_TEXT = (".json", ".model", ".txt")  # the files in them that are no pictures and no programs
_EXPERTS = ("high_noise_model", "low_noise_model")  # of an original folder
_ORIGINAL = (  # what stands beside the transformer in one
    re.compile(r"Wan2\.\d_VAE\.pth"),
    re.compile(r"models_(t5|clip)_.+\.pth"),
    re.compile(r"google/umt5-xxl/[^/]+\.(json|model)"),
)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model with a short name: where its diffusers folder is published, and its licence."""

    repository: str
    licence: str = "Apache-2.0"


KNOWN: Mapping[str, Known] = {
    "wan2.1-t2v-1.3b": Known(repository="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    "wan2.1-t2v-14b": Known(repository="Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    "wan2.1-i2v-14b-480p": Known(repository="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
    "wan2.1-i2v-14b-720p": Known(repository="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers"),
    "wan2.1-flf2v-14b": Known(repository="Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"),
    "wan2.2-t2v-a14b": Known(repository="Wan-AI/Wan2.2-T2V-A14B-Diffusers"),
    "wan2.2-i2v-a14b": Known(repository="Wan-AI/Wan2.2-I2V-A14B-Diffusers"),
    "wan2.2-ti2v-5b": Known(repository="Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
}
"""By their short names."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a repository holds at one revision: bytes by the names of its files.

    commit: what the revision stood for when it was asked. licence: as its page says, if it does.
    """

    repository: str
    revision: str
    commit: str
    files: Mapping[str, int]
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A download before it begins.

    files: bytes by the names of those that the model needs. left: those of them that are not there yet. to: the folder,
    or None for the cache. free: bytes on its disk.
    """

    listing: Listing
    files: Mapping[str, int]
    left: Collection[str]
    to: Path | None
    free: int

    @property
    def bytes_left(self) -> int:
        """Of the files that are to be fetched."""
        return sum(self.files[name] for name in self.left)

    @property
    def place(self) -> Path:
        """The folder or the cache."""
        return _cache() if self.to is None else self.to

    def check_room(self) -> None:
        """Refuses what does not fit. Raises CheckpointError."""
        if self.bytes_left > self.free:
            needs, has = f"{self.bytes_left / 1e9:.2f} GB", f"{self.free / 1e9:.2f} GB"
            raise CheckpointError(
                f"{self.listing.repository}: needs {needs} more, and the disk of {self.place} has {has} free; make "
                "room, or name a folder on another disk with --to."
            )


def repository_of(name: str) -> str:
    """The repository "OWNER/NAME" of a short name, in any case, or of a repository's own name.

    Raises:
        UsageError: it is neither; the most similar short name is told.
    """
    if known := KNOWN.get(name.lower()):
        return known.repository
    if name.count("/") == 1:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(name)
            return name
        except HFValidationError:
            pass
    # after the last slash, for pasted addresses and misspelt repositories
    nearest = difflib.get_close_matches(name.lower().rpartition("/")[2], KNOWN, n=1, cutoff=0.0)[0]
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    rule = f"must be OWNER/REPOSITORY of the hub, or one of {', '.join(KNOWN)}"
    raise UsageError(f"{shown!r}: {rule}; the nearest is {nearest}.")


def look_up(repository: str, revision: str = MAIN) -> Listing:
    """What the hub has under this name.

    Raises:
        CheckpointError: it has nothing, does not give it to us, or cannot be reached.
    """
    _quiet()
    from huggingface_hub import HfApi

    with _explained(repository, revision):
        found = HfApi().model_info(repository, revision=revision, files_metadata=True)
        return Listing(
            repository=repository,
            revision=revision,
            commit=found.sha or revision,
            files={file.rfilename: file.size or 0 for file in found.siblings or ()},
            licence=getattr(found.card_data, "license", None),
        )


def needed(listing: Listing, shards: Callable[[str], Collection[str]]) -> list[str]:
    """The names of the files that the model in a repository needs: no pictures, and no weights twice.

    shards: the names of the files that an index names.

    Raises:
        CheckpointError: there is no model of a known form, or some of its files are missing.
    """
    weights = _Weights(listing, shards)
    if "model_index.json" in listing.files:
        wanted = _of_diffusers(listing, weights)
    elif any(weights.there(folder, _WEIGHTS) for folder in (*_EXPERTS, "")):
        wanted = _of_release(listing, weights)
    else:
        raise CheckpointError(
            f"{listing.repository}: holds no model_index.json and no {_WEIGHTS}.safetensors, so it is neither a "
            f"diffusers folder nor an original one; fetch a single file with `hf download {listing.repository} FILE`."
        )
    return sorted(wanted)


def peek(listing: Listing, names: Collection[str], into: Path) -> None:
    """Puts small files of a repository into a folder. Raises CheckpointError."""
    with _explained(listing.repository, listing.revision):
        _snapshot(listing.repository, listing.commit, names, into, _Count())


def plan(listing: Listing, to: Path | None = None) -> Plan:
    """What is to be fetched into a folder, or into the cache; nothing is written there.

    Raises:
        CheckpointError: see `needed`, or the hub does not give the files to us.
    """
    with TemporaryDirectory(prefix="dvgen-") as folder:
        if indexes := [name for name in listing.files if name.endswith(".safetensors.index.json")]:
            peek(listing, indexes, Path(folder))
        names = needed(listing, lambda index: _shards(Path(folder) / index))
        # Even without downloads huggingface_hub makes the folder that is named to it, and notes in it what there is.
        place = to if to is None or to.is_dir() else Path(folder) / "new"
        with _explained(listing.repository, listing.revision):
            found = _snapshot(listing.repository, listing.commit, names, place, _Count(), dry_run=True)
    return Plan(
        listing=listing,
        files={name: listing.files[name] for name in names},
        left=sorted(file.filename for file in found if file.will_download),
        to=to,
        free=_free(_cache() if to is None else to),
    )


def check_folder(to: Path) -> None:
    """Refuses a folder that holds something else than an earlier download, of which files could be replaced.

    Raises:
        UsageError: it does, or is a file.
    """
    if to.exists() and not to.is_dir():
        raise UsageError(f"--to {to}: is a file; name a folder.")
    if to.is_dir() and any(to.iterdir()) and not (to / ".cache" / "huggingface").is_dir():
        raise UsageError(f"--to {to}: holds other things; name an empty or a new folder, such as {to / 'model'}.")


def fetch(plan: Plan, progress: Callable[[int, int], None]) -> Path:
    """Fetches the files that are not there yet, and says in which folder the model is now.

    A connection that breaks is taken up again where it broke. Whatever else ends the download, the files that are
    whole stay, and the next one fetches the others.

    Args:
        progress: called every moment with the bytes that have come, and those of all files to come.

    Raises:
        CheckpointError: the hub does not give the files, or they cannot be written.
    """
    listing, count, total = plan.listing, _Count(), plan.bytes_left
    found: list[str] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(_snapshot(listing.repository, listing.revision, plan.files, plan.to, count))
        except BaseException as error:
            failed.append(error)

    # In a thread of its own, because huggingface_hub ends with its slowest thread, also after Ctrl-C.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLLED_EVERY)
            if total:
                progress(min(count.bytes, total - 1), total)
    except BaseException:
        count.stopped = True
        _stop_xet()
        thread.join(PATIENCE)
        raise
    with _explained(listing.repository, listing.revision, plan.place):
        if failed:
            raise failed[0]
    if total:
        progress(total, total)
    return Path(found[0])


# What a model needs.


@dataclass(frozen=True)
class _Weights:
    """The files of weights in a repository, by the rules of `files.read_headers`."""

    listing: Listing
    shards: Callable[[str], Collection[str]]

    def there(self, folder: str, stem: str) -> bool:
        return any(_in(folder, f"{stem}.safetensors{end}") in self.listing.files for end in ("", ".index.json"))

    def of(self, folder: str, stem: str) -> set[str]:
        """One file, or an index and its shards. Raises CheckpointError."""
        single = _in(folder, f"{stem}.safetensors")
        index = f"{single}.index.json"
        if single in self.listing.files:
            return {single}
        repository = self.listing.repository
        if index not in self.listing.files:
            others = "; weights in other formats, or in one dtype of several, are not read"
            raise CheckpointError(f"{repository}: holds neither {single} nor {index}{others}.")
        shards = {_in(folder, name) for name in self.shards(index)}
        if missing := sorted(shards - self.listing.files.keys()):
            raise CheckpointError(f"{repository}: holds no {missing[0]}, which {index} names.")
        return {index, *shards}


def _of_diffusers(listing: Listing, weights: _Weights) -> set[str]:
    names = listing.files.keys()
    wanted = {"model_index.json", "dvgen.json"} & names
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder in _SMALL and PurePosixPath(file).suffix in _TEXT:
            wanted.add(name)
    for part, stem in _STEMS.items():
        if part in _NEEDED or f"{part}/config.json" in names:
            wanted |= weights.of(part, stem) | {f"{part}/config.json"}
    if missing := sorted(wanted - names):
        raise CheckpointError(f"{listing.repository}: holds no {missing[0]}, which a model needs.")
    return wanted


def _of_release(listing: Listing, weights: _Weights) -> set[str]:
    names = listing.files.keys()
    folders = [folder for folder in _EXPERTS if any(name.startswith(f"{folder}/") for name in names)] or [""]
    wanted = {_in(folder, "config.json") for folder in ("", *folders)} & names
    for folder in folders:
        wanted |= weights.of(folder, _WEIGHTS)
    return wanted | {name for name in names if any(rule.fullmatch(name) for rule in _ORIGINAL)}


def _in(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _shards(index: Path) -> set[str]:
    """The names of the files that an index names. Raises CheckpointError."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{index.name}: lacks a weight_map of tensor names to file names.")
    return set(found.values())


# Fetching.


class _Stopped(KeyboardInterrupt):
    """Ends a thread of huggingface_hub as Ctrl-C would end the main one."""


@dataclass
class _Count:
    """What the bars of huggingface_hub count: the bytes on the disk, and those from the network, which are fewer."""

    bytes: int = 0
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bar(self) -> type:
        """The class of a bar that draws nothing."""
        from huggingface_hub.utils import tqdm

        count = self

        class Bar(tqdm):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                self.counted = 0
                self.of_bytes = options.get("unit") == "B"
                super().__init__(*args, **(options | {"disable": True}))

            def update(self, n: float | None = 1) -> None:
                if count.stopped:
                    raise _Stopped
                if self.of_bytes:
                    with count.lock:
                        self.counted += int(n or 0)
                        count.bytes = max(count.bytes, self.counted)

        return Bar


def _snapshot(
    repository: str, revision: str, names: Collection[str], to: Path | None, count: _Count, *, dry_run: bool = False
) -> Any:
    """huggingface_hub's download of these files: the folder, or with `dry_run` what it would do."""
    from huggingface_hub import snapshot_download

    return snapshot_download(
        repository,
        revision=revision,
        allow_patterns=[escape(name) for name in names],
        local_dir=to,
        tqdm_class=count.bar(),
        dry_run=dry_run,
    )


def _stop_xet() -> None:
    """End the transfers that are in the hands of hf_xet, which does not ask us."""
    from huggingface_hub.utils import _xet

    if (abort := getattr(_xet, "abort_xet_session", None)) is not None:
        abort()


def _quiet() -> None:
    """Its warnings about every new attempt, with addresses of many lines, are not for our users."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _free(place: Path) -> int:
    """Bytes on the disk of a folder that may not exist yet."""
    place = place.expanduser().absolute()
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free


@contextmanager
def _explained(repository: str, revision: str, place: Path | None = None) -> Iterator[None]:
    """Says in a sentence what keeps files on the hub. Raises CheckpointError."""
    from huggingface_hub import errors

    broken = (OSError, errors.HTTPError, errors.DryRunError, errors.XetDownloadError, ValueError, RuntimeError)
    try:
        yield
    except broken as error:
        raise CheckpointError(_sentence(_cause(error), repository, revision, place)) from error


def _cause(error: BaseException) -> BaseException:
    """What huggingface_hub met, where it says only that there is nothing in its cache either."""
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    while isinstance(error, (DryRunError, LocalEntryNotFoundError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _sentence(error: BaseException, repository: str, revision: str, place: Path | None) -> str:
    from huggingface_hub import constants, errors

    hub, words = constants.ENDPOINT, str(error).strip().partition("\n")[0].rstrip(".")
    login = "log in with `hf auth login`, or set HF_TOKEN"
    again = "run the same command again to go on"
    match error:
        case errors.OfflineModeIsEnabled():
            return f"{repository}: cannot be fetched while HF_HUB_OFFLINE is set; unset it."
        case errors.GatedRepoError():
            return f"{repository}: its owner gives it only on demand; ask for it on {hub}/{repository}, then {login}."
        case errors.RepositoryNotFoundError():
            return f"{repository}: {hub} has no such repository, or it is private; check its name, or {login}."
        case errors.RevisionNotFoundError():
            return f"--revision {revision}: {repository} has no such branch, tag or commit; the nearest is {MAIN}."
        case errors.HfHubHTTPError(response=response):
            code = response.status_code
            if code in (401, 403):
                return f"{repository}: {hub} refuses the access token ({code}); {login} anew."
            return f"{repository}: {hub} answers with the error {code}; {again} later."
        case errors.HTTPError() | ConnectionError() | TimeoutError():
            return f"{repository}: {hub} cannot be reached ({words}); check the connection, then {again}."
        case OSError(errno=errno.ENOSPC):
            return f"{place or repository}: the disk is full; make room, then {again}."
        case OSError(errno=int()):
            return f"{error.filename or place or repository}: cannot be written ({reason(error)})."
    return f"{repository}: {hub} does not send what a hub sends ({words}); {again}."
