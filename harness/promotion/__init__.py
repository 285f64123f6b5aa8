"""``python3 -m harness promotion-check DIR``: whether a directory may be promoted to production. docs/promotion.md.

Everything that is wrong is listed in one pass, each with a code that stays and what to do; so is what nobody here can
look into, and is taken on trust. Do the status, the data set and the bundle hold (`production.py`)? May the base
weights be used (`licences.py`)? What does each file hold, and is any of it a result of the experimental lane in other
clothes (`contents.py`)? Nothing is written, and nothing of a checkout is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from harness.base.project import default_run_dir
from harness.evidence.errors import one_line
from harness.promotion.contents import Findings, examine, hear, known_results
from harness.promotion.production import BUNDLE, DATASET, JOB_TYPE, STATUS, Production

RECORDED = Path(__file__).resolve().parent / "recorded"  # this project's baselines/, which the package brings along

# Every code there is, and what to do about it. The codes are stable: other programs may know them.
REFUSALS = {
    "directory_missing": "give the directory that the production lane wrote",
    "ambiguous": "leave only the one that belongs to the job in the directory",
    "status_missing": f"only a {JOB_TYPE} lane's output is promoted: run that lane, and keep its {STATUS[0]}",
    "status_invalid": "have the production lane write its status as docs/promotion.md says",
    "status_job_type": f"only a {JOB_TYPE} job is promoted: train the voice with the production lane",
    "status_state": "wait until the job has completed, or find out why it did not; then check again",
    "status_progress": "the job did not do all of its work: run it to its end",
    "status_stats": "the job's numbers must be there and finite: look at why one is not, and train again",
    "artifact_mismatch": "something was changed, added or lost after the job ended: take the job's output as it was",
    "dataset_missing": f"put the data set's manifest into the directory, as {DATASET[0]}",
    "dataset_invalid": "have the production lane write the data set's manifest as docs/promotion.md says",
    "dataset_audio": "put the whole recording where the manifest says, or name the folder that it lies in: --audio DIR",
    "bundle_missing": f"put the voice bundle into {BUNDLE}/",
    "bundle_manifest_invalid": f"have the production lane write {BUNDLE}/manifest.json as docs/promotion.md says",
    "bundle_version": "make the bundle with a lane that writes voice_bundle/1",
    "bundle_path": "name each file once, by its path inside the bundle",
    "bundle_file_missing": "make the bundle again: a file that its manifest lists is not there",
    "bundle_file_extra": "remove the file, or have the lane list it in the manifest",
    "bundle_file_size": "make the bundle again: the file is not the one that was listed",
    "bundle_file_digest": "make the bundle again: the file is not the one that was listed",
    "bundle_no_weights": "a voice bundle has the weights of a voice: make it again",
    "not_a_plain_file": "replace the link or special file by the file itself",
    "licence_missing": "state each base model's name, source and licence in the bundle's manifest",
    "licence_unknown": "find out the licence of these weights; unknown is not permitted",
    "licence_non_commercial": "train from weights whose licence permits the use; MusicGen's own are CC-BY-NC 4.0",
    "experimental_marked": "it says of itself that it is experimental: train the voice with the production lane",
    "experimental_digest": "it is a known result of the experimental lane: train the voice with the production lane",
    "experimental_adapter": "it is the experimental lane's adapter: train the voice with the production lane",
    "experimental_tensor": "it holds values that the experimental lane trained: use the production lane's own",
    "weights_not_finite": "find out where the training went wrong, and train again",
    "audio_invalid": "put a whole and audible recording in its place, or have the lane leave the file out",
    "unexamined": "bundle tensors as .pt, .npz or .safetensors, text as UTF-8, audio as WAV, FLAC, OGG or MP3",
    "known_results_missing": "give --baselines a folder of recordings, and --experimental a run with its checkpoint",
}


def main(argv: Sequence[str]) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m harness promotion-check",
        description="Says whether a directory may be promoted to production, and if not, everything that stands "
        "against it. This project serves nothing: a directory that passes is not thereby deployed anywhere.",
        epilog="exit codes: 0 may be promoted; 1 refused; 64 wrong usage. More: docs/promotion.md",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="what a production lane wrote")
    parser.add_argument("--json", action="store_true", help="for machines")
    several = {
        "--audio": ("DIR", "where else the data set's recordings lie"),
        "--baselines": ("DIR", "recorded results of an experimental lane, beside the ones that the package knows"),
        "--experimental": (
            "RUN",
            "a run directory of an experimental lane, whose result is refused too "
            "(default: LANE_RUN_DIR, else artifacts, where that holds a checkpoint)",
        ),
    }
    for option, (metavar, about) in several.items():
        about += "; may be given again"
        parser.add_argument(option, type=Path, action="append", default=[], metavar=metavar, help=about)
    options = parser.parse_args(argv)
    runs = options.experimental or _run_here(options.directory)
    findings = promotion_findings(options.directory, [RECORDED, *options.baselines], runs, options.audio)
    if options.json:
        refused = [{**asdict(finding), "action": REFUSALS[finding.code]} for finding in findings.refusals]
        trusted = [asdict(finding) for finding in findings.trusted]
        result = {"directory": str(options.directory), "promotable": not refused, "refusals": refused}
        print(json.dumps({**result, "trusted": trusted}))
    else:
        _print(options.directory, findings)
    return 1 if findings.refusals else 0


def _run_here(directory: Path) -> list[Path]:
    """The experimental run that is compared with unless others are named; none where it is what is to be promoted."""
    run = default_run_dir()
    here, there = run.resolve(), directory.resolve()
    apart = not (here.is_relative_to(there) or there.is_relative_to(here))
    return [run] if apart and any((run / "checkpoints").glob("*.pt")) else []


def _print(directory: Path, findings: Findings) -> None:
    name, count = one_line(str(directory), 300), len(findings.refusals)
    print(f"refused: {name} ({count} reason{'s' if count > 1 else ''})" if count else f"may be promoted: {name}")
    for refusal in findings.refusals:
        print(f"  {refusal.code}: {one_line(refusal.what, 900)}\n    next: {REFUSALS[refusal.code]}")
    if findings.trusted:
        print("taken on trust:")
    for trusted in findings.trusted:
        print(f"  {trusted.code}: {one_line(trusted.what, 900)}")


def promotion_findings(
    directory: Path, baselines: Sequence[Path] = (RECORDED,), runs: Sequence[Path] = (), audio: Sequence[Path] = ()
) -> Findings:
    """What stands against promoting `directory`, and what is taken on trust. Raises nothing for what it holds.

    `baselines`: folders with an experimental lane's recordings. `runs`: run directories of that lane. `audio`: folders
    in which the data set's recordings may lie, beside `directory`.
    """
    named, directory = directory, directory.resolve()
    findings = Findings(directory)
    if not directory.is_dir():
        findings.refuse("directory_missing", f"{named}: no such directory")
        return findings
    known = known_results(baselines, runs, findings)
    production = Production(directory, _plain_files(directory, findings), audio, findings)
    production.check()
    tensors = 0
    for path in production.files:
        held = examine(path, known, findings, recording=path in production.recordings)
        tensors += held if production.bundle and path.is_relative_to(production.bundle) else 0
    for path in production.recordings - set(production.files):
        hear(path, "dataset_audio", findings)
    if production.manifest is not None and not tensors:
        findings.refuse("bundle_no_weights", f"{production.bundle}: found no weights")
    compared = f"recordings: {len(known.guarded)}, runs: {len(runs)}"
    findings.trust(
        "experimental_unknown", f"it is not of an experimental run but those that were compared ({compared})"
    )
    return findings


def _plain_files(directory: Path, findings: Findings) -> list[Path]:
    """Every regular file below `directory`, sorted. Links and special files are refused, and not followed."""
    files: list[Path] = []
    folders = [directory]
    while folders:
        folder = folders.pop()
        try:
            modes = {Path(entry.path): entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(folder)}
        except OSError as error:
            findings.refuse("unexamined", f"{folder}: {error.strerror or error}")
            continue
        folders += [path for path, mode in modes.items() if stat.S_ISDIR(mode)]
        files += [path for path, mode in modes.items() if stat.S_ISREG(mode)]
        for path, mode in modes.items():
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
                findings.refuse("not_a_plain_file", f"{path}: found {kind}")
    return sorted(files)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
