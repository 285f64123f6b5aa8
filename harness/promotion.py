"""``python3 -m harness promotion-check DIR``: whether a directory may be promoted to production. docs/promotion.md.

Only the output of a production lane may: its status, its data set's manifest and its voice bundle, each complete, each
what the others say. Everything that is wrong is listed in one pass, each with a code that stays and what to do. What
cannot be examined is refused: a check that believes what it cannot read keeps nothing out.

Three questions, asked by three functions: do the status, the manifest and the bundle hold (`_production`), may the
base weights be used (`_licences`), and is any of it a result of the experimental lane in other clothes (`_disguise`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from harness.baselines.baseline import Store
from harness.evidence import Checkpoint, EvidenceError, parse_json, parse_report, read_checkpoint
from harness.evidence.errors import one_line, show
from harness.evidence.report import REPORT_TITLE
from harness.evidence.strict import (
    COUNT,
    NUMBER,
    OBJECT,
    SHA256,
    TEXT,
    Kind,
    constant,
    list_of,
    read_bytes,
    read_json,
    record,
)
from harness.numerics.digest import dataset_digest, file_sha256, tensor_digest
from harness.numerics.sketch import Sketch, sketch, sketch_distance

STATUS = "train_status.json"
DATASET = "voice_dataset_manifest.json"
BUNDLE = "voice_bundle"
BUNDLE_MANIFEST = "manifest.json"
JOB_TYPE = "tts_prod_train"
TEXT_LIMIT = 16 << 20

# Licences under which weights may be used commercially and passed on in an altered form. An entry more is a decision,
# to be reviewed as one.
PERMITTED = frozenset({"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT"})
# Weights that are known to be non-commercial, whatever a bundle says of their licence.
NON_COMMERCIAL_NAMES = re.compile(r"musicgen|audiogen|encodec|magnet[-_]|audiocraft", re.IGNORECASE)
NON_COMMERCIAL_LICENCE = re.compile(r"(^|[^A-Z])(NC|NON-?COMMERCIAL)([^A-Z]|$)", re.IGNORECASE)

# A tensor of at least this many values whose sketch is this near to a recorded one's is that tensor: a cast to bfloat16
# moves it by 0.2 % of its norm, and unrelated tensors lie farther apart than their norm.
SAME_TENSOR = 0.01
ENOUGH_VALUES = 1000
AUDIO_MAGIC = (b"RIFF", b"fLaC", b"OggS", b"ID3")

_ARTIFACT = record({"path": TEXT, "sha256": SHA256, "bytes": COUNT})
_STATUS = record(
    {"job_type": TEXT, "state": TEXT, "progress": NUMBER, "stats": OBJECT, "artifacts": list_of(_ARTIFACT)}
)
_DATASET = record(
    {
        "schema": constant("voice_dataset/1"),
        "dataset_digest": SHA256,
        "entries": list_of(record({"target": TEXT, "sha256": SHA256, "bytes": COUNT})),
    }
)
_MANIFEST = record(
    {
        "bundle_version": TEXT,
        "voice_profile_id": TEXT,
        "display_name": TEXT,
        "created_at": TEXT,
        "files": list_of(_ARTIFACT),
    }
)
_BASE_WEIGHTS = list_of(record({"name": TEXT, "source": TEXT, "licence": TEXT}))

# Every code there is, and what to do about it. The codes are stable: other programs may know them.
REFUSALS = {
    "directory_missing": "give the directory that the production lane wrote",
    "status_missing": f"only a {JOB_TYPE} lane's output is promoted: run that lane, and keep its {STATUS}",
    "status_invalid": f"have the production lane write {STATUS} as docs/promotion.md says",
    "status_job_type": f"only a {JOB_TYPE} job is promoted: train the voice with the production lane",
    "status_state": "wait until the job has completed, or find out why it did not; then check again",
    "status_progress": "the job did not do all of its work: run it to its end",
    "status_stats": "the job's numbers must be there and finite: look at why one is not, and train again",
    "artifact_mismatch": "something was changed, added or lost after the job ended: take the job's output as it was",
    "dataset_missing": f"put the data set's manifest beside the status, as {DATASET}",
    "dataset_invalid": f"have the production lane write {DATASET} as docs/promotion.md says",
    "bundle_missing": f"put the voice bundle into {BUNDLE}/",
    "bundle_manifest_invalid": f"have the production lane write {BUNDLE}/{BUNDLE_MANIFEST} as docs/promotion.md says",
    "bundle_version": "make the bundle with a lane that writes voice_bundle/1",
    "bundle_path": "name each file once, by its path inside the bundle",
    "bundle_file_missing": "make the bundle again: a file that its manifest lists is not there",
    "bundle_file_extra": "remove the file, or have the lane list it in the manifest",
    "bundle_file_size": "make the bundle again: the file is not the one that was listed",
    "bundle_file_digest": "make the bundle again: the file is not the one that was listed",
    "bundle_no_weights": "a voice bundle has the weights of a voice: make it again",
    "not_a_plain_file": "replace the link or special file by the file itself",
    "licence_missing": "state each base model's name, source and licence (SPDX) in the manifest's base_weights",
    "licence_unknown": "find out the licence of these weights; unknown is not permitted",
    "licence_non_commercial": "train from weights whose licence permits the use; MusicGen's own are CC-BY-NC 4.0",
    "experimental_marked": "it says of itself that it is experimental: train the voice with the production lane",
    "experimental_digest": "it is a known result of the experimental lane: train the voice with the production lane",
    "experimental_adapter": "it is the experimental lane's adapter: train the voice with the production lane",
    "experimental_tensor": "it holds values that the experimental lane trained: use the production lane's own",
    "unexamined": "bundle weights as .pt, .npz or .safetensors, text as UTF-8, audio as WAV, FLAC, OGG or MP3",
    "known_results_missing": "give the recorded baselines: --baselines DIR (in a checkout: baselines)",
}


@dataclass(frozen=True)
class Refusal:
    """One reason not to promote. `code` is a key of REFUSALS, `what` names the thing and says what was found."""

    code: str
    what: str

    @property
    def action(self) -> str:
        """What to do about it."""
        return REFUSALS[self.code]


@dataclass
class Known:
    """What is known of the experimental lane's results."""

    digests: dict[str, str] = field(default_factory=dict)  # digest of a file, of tensors or of a model: whose it is
    adapters: dict[frozenset[str], str] = field(default_factory=dict)  # names of an adapter's tensors: whose they are
    guarded: list[tuple[Mapping[str, Sequence[int]], str, str]] = field(default_factory=list)  # left out, digest, whose
    sketches: list[tuple[int, float, Sketch, str]] = field(default_factory=list)  # values, norm, sketch, whose


def main(argv: Sequence[str]) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m harness promotion-check",
        description="Says whether a directory may be promoted to production, and if not, everything that stands "
        "against it. This project serves nothing: a directory that passes is not thereby deployed anywhere.",
        epilog="exit codes: 0 may be promoted, 1 refused, 2 wrong usage. More: docs/promotion.md",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="what a production lane wrote")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--baselines",
        type=Path,
        metavar="DIR",
        default=Path(__file__).resolve().parents[1] / "baselines",
        help="the experimental lane's recorded results (default: %(default)s)",
    )
    parser.add_argument(
        "--experimental",
        type=Path,
        metavar="RUN",
        action="append",
        help="a run directory of the experimental lane, whose result is refused too; may be given again "
        "(default: LANE_RUN_DIR, else artifacts, where there is one)",
    )
    options = parser.parse_args(argv)
    runs = options.experimental
    if runs is None:
        runs = [run for run in [Path(os.environ.get("LANE_RUN_DIR") or "artifacts")] if run.is_dir()]
    refusals = promotion_refusals(options.directory, options.baselines, runs)
    if options.json:
        listed = [{**asdict(refusal), "action": refusal.action} for refusal in refusals]
        print(json.dumps({"directory": str(options.directory), "promotable": not refusals, "refusals": listed}))
    elif refusals:
        print(f"refused: {options.directory} ({len(refusals)} reason{'s' if len(refusals) > 1 else ''})")
        for refusal in refusals:
            print(f"  {refusal.code}: {one_line(refusal.what, 900)}\n    next: {refusal.action}")
    else:
        print(f"may be promoted: {options.directory}")
    return 1 if refusals else 0


def promotion_refusals(directory: Path, baselines: Path, runs: Sequence[Path] = ()) -> list[Refusal]:
    """Everything that stands against promoting `directory`; empty when it may be. Raises nothing for what it holds.

    `baselines`: the experimental lane's recordings. `runs`: run directories of that lane.
    """
    if not directory.is_dir():
        return [Refusal("directory_missing", f"{directory}: no such directory")]
    refusals: list[Refusal] = []
    known = _known(baselines, runs, refusals)
    files = sorted(_plain_files(directory, refusals))
    manifest = _production(directory, files, refusals)
    if manifest is not None:
        _licences(manifest, refusals)
    weights = sum(_disguise(path, known, refusals) for path in files)
    if manifest is not None and not weights:
        refusals.append(Refusal("bundle_no_weights", f"{directory / BUNDLE}: found no weights"))
    return refusals


def _plain_files(folder: Path, refusals: list[Refusal]) -> Iterator[Path]:
    """Every regular file below `folder`. Links and special files are refused, and not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        refusals.append(Refusal("unexamined", f"{folder}: {error.strerror or error}"))
        return
    for entry in entries:
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from _plain_files(Path(entry.path), refusals)
        elif stat.S_ISREG(mode):
            yield Path(entry.path)
        else:
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            refusals.append(Refusal("not_a_plain_file", f"{one_line(entry.path, 300)}: found {kind}"))


def _production(directory: Path, files: Sequence[Path], refusals: list[Refusal]) -> dict[str, Any] | None:
    """Status, data set and bundle, each with what it says of the files. Returns the bundle's manifest, or None."""

    def refuse(code: str, what: str) -> None:
        refusals.append(Refusal(code, what))

    def document(path: Path, fields: Kind, missing: str, invalid: str) -> dict[str, Any] | None:
        if path not in files:
            refuse(missing, f"{path}: no such file")
            return None
        try:
            return read_json(path, fields, "what docs/promotion.md says")
        except EvidenceError as error:
            refuse(invalid, str(error))
            return None

    status_path, dataset_path = directory / STATUS, directory / DATASET
    status = document(status_path, _STATUS, "status_missing", "status_invalid")
    if status is not None:
        if status["job_type"] != JOB_TYPE:
            refuse("status_job_type", f"{status_path}: found job_type {show(status['job_type'])}, expected {JOB_TYPE}")
        if status["state"] != "completed":
            refuse("status_state", f"{status_path}: found state {show(status['state'])}, expected completed")
        if status["progress"] != 1:
            refuse("status_progress", f"{status_path}: found progress {status['progress']!r}, expected 1")
        if not status["stats"]:
            refuse("status_stats", f"{status_path}: found no stats, expected the job's numbers")
        for name, value in sorted(status["stats"].items()):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                where = f"{status_path}: stats.{one_line(name, 80)}"
                refuse("status_stats", f"{where}: found {show(value)}, expected a finite number")
    dataset = document(dataset_path, _DATASET, "dataset_missing", "dataset_invalid")
    if dataset is not None:
        if not dataset["entries"]:
            refuse("dataset_invalid", f"{dataset_path}: found no entries, expected at least one")
        elif (digest := dataset_digest(entry["sha256"] for entry in dataset["entries"])) != dataset["dataset_digest"]:
            found = f"{dataset_path}: found dataset_digest {dataset['dataset_digest']}"
            refuse("dataset_invalid", f"{found}, expected {digest}, as its entries give")

    bundle = directory / BUNDLE
    inside = [path for path in files if path.is_relative_to(bundle)]
    manifest = None
    if not inside:
        refuse("bundle_missing", f"{bundle}: no such folder, or nothing in it")
    else:
        manifest = document(bundle / BUNDLE_MANIFEST, _MANIFEST, "bundle_manifest_invalid", "bundle_manifest_invalid")
    if manifest is not None:
        _bundle(bundle, manifest, inside, refusals)
    if status is not None:
        # What ties the three together: a status beside another job's bundle names other files.
        named = _listed(directory, status["artifacts"], f"{status_path}: artifacts", "artifact_mismatch", refusals)
        for path in (*inside, dataset_path):
            if path in files and path not in named:
                refuse("artifact_mismatch", f"{status_path}: artifacts do not name {path.relative_to(directory)}")
        for path in files:
            if path not in (status_path, dataset_path) and path not in inside and path not in named:
                refuse("artifact_mismatch", f"{path}: a file that the job's status does not name")
    return manifest


def _bundle(bundle: Path, manifest: dict[str, Any], inside: Sequence[Path], refusals: list[Refusal]) -> None:
    """The bundle's files are exactly those that its manifest lists."""
    where = bundle / BUNDLE_MANIFEST
    if manifest["bundle_version"] != "voice_bundle/1":
        found = show(manifest["bundle_version"])
        refusals.append(Refusal("bundle_version", f"{where}: found {found}, expected voice_bundle/1"))
    try:
        zone = datetime.datetime.fromisoformat(manifest["created_at"]).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        found = f"created_at {show(manifest['created_at'])}, expected a time with its zone (ISO 8601)"
        refusals.append(Refusal("bundle_manifest_invalid", f"{where}: found {found}"))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", manifest["voice_profile_id"]):
        found = f"voice_profile_id {show(manifest['voice_profile_id'])}, expected letters, digits, '.', '_', '-'"
        refusals.append(Refusal("bundle_manifest_invalid", f"{where}: found {found}"))
    listed = _listed(bundle, manifest["files"], f"{where}: files", "", refusals)
    if where in listed:
        refusals.append(Refusal("bundle_path", f"{where}: files name the manifest itself"))
    for path in inside:
        if path != where and path not in listed:
            refusals.append(Refusal("bundle_file_extra", f"{path}: found a file that the manifest does not list"))


def _listed(
    folder: Path, entries: Sequence[Mapping[str, Any]], where: str, code: str, refusals: list[Refusal]
) -> set[Path]:
    """The paths that a list names, each held against the file. Refusals carry `code`, or the bundle's own codes."""
    seen: set[Path] = set()
    for index, entry in enumerate(entries):
        at, named = f"{where}[{index}]", entry["path"]
        path = _inside(folder, named)
        if path is None or path in seen:
            found = f"{show(named)} again" if path in seen else show(named)
            expected = "each file once" if path in seen else "a path inside the folder"
            refusals.append(Refusal(code or "bundle_path", f"{at}: found {found}, expected {expected}"))
            continue
        seen.add(path)
        try:
            if not path.is_file():
                refusals.append(Refusal(code or "bundle_file_missing", f"{at}: {path}: no such file"))
            elif (size := path.stat().st_size) != entry["bytes"]:
                said = f"{at}: {path}: found {size:,} bytes, expected {entry['bytes']:,}"
                refusals.append(Refusal(code or "bundle_file_size", said))
            elif (digest := file_sha256(path)) != entry["sha256"]:
                said = f"{at}: {path}: found SHA-256 {digest}, expected {entry['sha256']}"
                refusals.append(Refusal(code or "bundle_file_digest", said))
        except OSError as error:
            refusals.append(Refusal("unexamined", f"{path}: {error.strerror or error}"))
    return seen


def _inside(folder: Path, named: str) -> Path | None:
    """The path that `named` means below `folder`, written in the one way there is; None for any other."""
    parts = PurePosixPath(named).parts
    plain = named == "/".join(parts) and ".." not in parts and parts and not named.startswith("/")
    if not plain or "\\" in named or not named.isprintable():
        return None
    path = folder.joinpath(*parts)
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError):
        return None
    return path if resolved == folder.resolve().joinpath(*parts) else None


def _licences(manifest: Mapping[str, Any], refusals: list[Refusal]) -> None:
    """The manifest states the licence of each of the base weights, and each permits the use."""
    where = f"{BUNDLE}/{BUNDLE_MANIFEST}: base_weights"
    try:
        weights = _BASE_WEIGHTS.read(manifest.get("base_weights"))
    except Exception as error:  # the reader's own error, which names the field
        what = f"{where}{getattr(error, 'at', '')}: found {getattr(error, 'found', error)}"
        refusals.append(Refusal("licence_missing", f"{what}, expected {getattr(error, 'expected', 'a list')}"))
        return
    if not weights:
        refusals.append(Refusal("licence_missing", f"{where}: found an empty list, expected at least one"))
    for index, entry in enumerate(weights):
        licence = entry["licence"]
        at = f"{where}[{index}] ({one_line(entry['name'], 80)})"
        if NON_COMMERCIAL_LICENCE.search(licence):
            refusals.append(Refusal("licence_non_commercial", f"{at}: found licence {show(licence)}"))
        elif match := NON_COMMERCIAL_NAMES.search(f"{entry['name']} {entry['source']}"):
            found = f"found weights of {match.group()}, which are CC-BY-NC 4.0, with licence {show(licence)}"
            refusals.append(Refusal("licence_non_commercial", f"{at}: {found}"))
        elif licence not in PERMITTED:
            expected = f"one of {', '.join(sorted(PERMITTED))}"
            refusals.append(Refusal("licence_unknown", f"{at}: found licence {show(licence)}, expected {expected}"))


def _known(baselines: Path, runs: Sequence[Path], refusals: list[Refusal]) -> Known:
    """What the recordings and the runs say of the experimental lane's results."""
    known = Known()
    recorded, broken = Store(baselines).all()
    for line in broken:
        refusals.append(Refusal("known_results_missing", f"{line}"))
    if not recorded:
        what = f"{baselines}: found no recording, so known experimental results cannot be told apart"
        refusals.append(Refusal("known_results_missing", what))
    for baseline in recorded:
        result, whose = baseline.result, f"the baseline {baseline.path.name}"
        known.digests[result.key.model_digest] = f"the model of {whose}"
        known.guarded.append((result.guarded, result.tensor_digest, whose))
        known.adapters[frozenset(result.tensors)] = whose
        for name, tensor in result.tensors.items():
            shape = tensor.kind.partition(" ")[2]
            size = math.prod(int(length) for length in shape.split("x") if length)
            known.sketches.append((size, tensor.norm, tensor.sketch, f"{name} of {whose}"))
    for path in sorted((baselines / "reference").glob("*.json")):
        try:
            sha256 = str(parse_json(read_bytes(path, TEXT_LIMIT, "a reference"), path)["result"]["checkpoint_sha256"])
        except (EvidenceError, KeyError, TypeError) as error:
            refusals.append(Refusal("known_results_missing", f"{path}: {one_line(str(error), 200)}"))
            continue
        known.digests[sha256] = f"the published reference {path.name}"
    for run in runs:
        found = sorted((run / "checkpoints").glob("*.pt"))
        if not found:
            what = f"{run}: found no checkpoint in it, expected a run of the experimental lane"
            refusals.append(Refusal("known_results_missing", what))
        for path in found:
            try:
                checkpoint = read_checkpoint(path)
            except EvidenceError as error:
                refusals.append(Refusal("known_results_missing", str(error)))
                continue
            known.digests[checkpoint.sha256] = known.digests[checkpoint.tensor_digest] = str(path)
            for name, array in checkpoint.tensors.items():
                values = array.astype(np.float64)
                known.sketches.append(
                    (array.size, float(np.linalg.norm(values.reshape(-1))), sketch(values), f"{name} of {path}")
                )
    return known


def _disguise(path: Path, known: Known, refusals: list[Refusal]) -> int:
    """Whether a file is, or comes from, a result of the experimental lane. Returns how many tensors it holds."""
    try:
        if (whose := known.digests.get(file_sha256(path))) is not None:
            refusals.append(Refusal("experimental_digest", f"{path}: its SHA-256 is that of {whose}"))
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        refusals.append(Refusal("unexamined", f"{path}: {error.strerror or error}"))
        return 0
    if head.startswith(AUDIO_MAGIC):
        return 0
    if not head.startswith(b"PK") and path.suffix != ".safetensors":
        _text(path, refusals)
        return 0
    try:
        checkpoint = read_checkpoint(path)
    except EvidenceError as error:
        refusals.append(Refusal("unexamined", str(error)))
        return 0
    if _says_experimental(checkpoint.meta) or any(
        name.rpartition(".")[2] == "lane" and value == "experimental" for name, value in checkpoint.meta.items()
    ):
        refusals.append(Refusal("experimental_marked", f"{path}: its metadata say lane experimental"))
    _tensors(path, checkpoint, known, refusals)
    return len(checkpoint.tensors)


def _tensors(path: Path, checkpoint: Checkpoint, known: Known, refusals: list[Refusal]) -> None:
    """The tensors of a file, by their names, by their digest and, one by one, by their values."""
    for adapter, whose in known.adapters.items():
        # It may lie deeper in a larger model, after a dot.
        if all(any(name == own or name.endswith(f".{own}") for name in checkpoint.tensors) for own in adapter):
            what = f"{path}: its tensors have the names of the experimental adapter's ({min(adapter)}, …), as {whose}"
            refusals.append(Refusal("experimental_adapter", what))
            break
    with np.errstate(over="ignore"):  # a value too large for float32 is infinite in it
        rounded = {n: a.astype(np.float32) for n, a in checkpoint.tensors.items() if a.dtype.kind == "f"}
    for digest in sorted({checkpoint.tensor_digest, tensor_digest(rounded)} & known.digests.keys()):
        what = f"{path}: its tensor digest {digest[:12]} is that of {known.digests[digest]}"
        refusals.append(Refusal("experimental_digest", what))
    for guarded, digest, whose in known.guarded:
        try:
            same = tensor_digest(rounded, guarded) == digest
        except ValueError:  # other tensors, or of other shapes
            same = False
        if same:
            refusals.append(Refusal("experimental_digest", f"{path}: its tensor digest is that of {whose}"))
    for name, array in sorted(checkpoint.tensors.items()):
        if array.size < ENOUGH_VALUES or array.dtype.kind not in "fiu":
            continue
        own: Sketch | None = None
        for size, norm, recorded, whose in known.sketches:
            if size != array.size or norm == 0.0:
                continue
            own = sketch(array) if own is None else own
            if sketch_distance(own, recorded) <= SAME_TENSOR * norm:
                what = f"{path}: {one_line(name, 80)} has the values of {whose}"
                refusals.append(Refusal("experimental_tensor", what))
                break


def _text(path: Path, refusals: list[Refusal]) -> None:
    """A text, which may say of itself that it is experimental. What is no text cannot be examined."""
    try:
        data = read_bytes(path, TEXT_LIMIT, "a text")
        text = data.decode("utf-8")
        if "\0" in text:
            raise ValueError("it holds NUL bytes")
    except (EvidenceError, ValueError) as error:
        reason = str(error) if isinstance(error, EvidenceError) else f"{path}: no text, weights or audio that is known"
        refusals.append(Refusal("unexamined", reason))
        return
    marked = False
    try:
        marked = _says_experimental(parse_json(data, path))
    except EvidenceError:
        if text.startswith(REPORT_TITLE):
            try:
                report = parse_report(data, path)
                marked = report.get("lane") == "experimental" or report.get("promotable") == "false"
            except EvidenceError:
                marked = "lane: experimental" in text
        else:
            marked = re.search(r"""["']?lane["']?\s*[:=]\s*["']?experimental""", text) is not None
    if marked:
        refusals.append(Refusal("experimental_marked", f"{path}: says lane experimental or promotable false"))


def _says_experimental(value: Any) -> bool:
    """Whether a JSON value says, at any depth, `lane: experimental` or `promotable: false`."""
    if isinstance(value, Mapping):
        if value.get("lane") == "experimental" or value.get("promotable") is False:
            return True
        return any(map(_says_experimental, value.values()))
    return isinstance(value, list) and any(map(_says_experimental, value))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
