"""The production boundary: what passes, and every single thing that must not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import audio_files
import numpy as np
import pytest
from run_directory import write_run

from harness.numerics.digest import dataset_digest
from harness.promotion import RECORDED, REFUSALS, main, promotion_findings

ROOT = Path(__file__).resolve().parents[2]
STATUS = Path("artifacts") / "train_status.tts_prod_train.json"
DATASET = Path("artifacts") / "dataset_manifest.tts_prod_train.json"
BUNDLE = Path("bundles") / "narrator-1" / "voice_bundle"
MANIFEST = BUNDLE / "manifest.json"
AUDIO = Path("data") / "narration.flac"
NVIDIA = {
    "id": "nvidia/nemo-tts-fastpitch-en",
    "weights_license": "NVIDIA Open Model License",
    "code_license": "Apache-2.0",
    "license_url": "https://developer.nvidia.com/ngc/nvidia-open-model-license",
}


def described(path: Path, folder: Path) -> dict[str, Any]:
    data = path.read_bytes()
    name = path.relative_to(folder).as_posix()
    return {"path": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None takes one out."""
    value = {**json.loads(path.read_text()), **changes}
    put(path, {key: item for key, item in value.items() if item is not None})


def seal(directory: Path, **manifest: Any) -> Path:
    """Write the bundle's manifest for what lies in it, true in every digest; None takes a key out."""
    bundle = directory / BUNDLE
    files = [path for path in sorted(bundle.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    value = {
        "bundle_version": "voice_bundle/1",
        "voice_profile_id": "narrator-1",
        "display_name": "A narrator",
        "created_at": "2026-02-24T03:51:45.717385+00:00",
        "files": [described(path, bundle) for path in files],
        "provenance": {"source_bundle_version": "prod_tts_voice_bundle/1", "source_weights_refs": NVIDIA},
    }
    put(bundle / "manifest.json", value)
    edit(bundle / "manifest.json", **manifest)
    return directory


def weights(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {"decoder.weight": random.standard_normal((64, 32)).astype(np.float32), "decoder.bias": np.zeros(32)}


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the production lane leaves, in its own names and fields, and nothing wrong with it."""
    import torch

    directory = tmp_path_factory.mktemp("made") / "production"
    audio_files.write(directory / AUDIO, audio_files.voice(1.0))
    audio_files.write(directory / BUNDLE / "sample.wav", audio_files.voice(0.2, seed=1))
    tensors = {name: torch.from_numpy(value) for name, value in weights().items()}
    torch.save(
        {"format": "adapter/1", "sample_rate_hz": 22050, "state_dict": tensors}, directory / BUNDLE / "model.bin"
    )
    put(directory / BUNDLE / "eval.json", {"status": "ok", "final_loss": 0.05})
    put(directory / DATASET, {"mode": "voice_dataset", "entries": [{"path": AUDIO.as_posix()}]})
    status = {
        "job_type": "tts_prod_train",
        "status": "completed",
        "state": "completed",
        "progress": {"current": 100, "total": 100},
        "stats": {"dataset_items": 1, "bundle_valid": True},
        "artifacts": [f"/workspace/job/{path.as_posix()}" for path in (MANIFEST, DATASET)],
    }
    put(directory / STATUS, status)
    return seal(directory)


@pytest.fixture
def production(made_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_once, tmp_path / "production"))


def codes(directory: Path, *runs: Path, **options: Any) -> set[str]:
    return {refusal.code for refusal in promotion_findings(directory, runs=runs, **options).refusals}


def trusted(directory: Path) -> set[str]:
    return {finding.code for finding in promotion_findings(directory).trusted}


def test_output_of_a_production_lane_may_be_promoted_and_says_what_it_rests_on(
    production: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rests_on = {"origin", "licence", "artifact_digest", "recording_digest", "experimental_unknown"}
    assert main([str(production)]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA Open Model License" in out and all(f"  {code}: " in out for code in rests_on)
    assert main([str(production), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["promotable"] is True and {entry["code"] for entry in result["trusted"]} == rests_on


def flat(d: Path) -> None:
    """The layout and the fields that were documented before: all in one folder, each with its digest."""
    for path, name in ((STATUS, "train_status.json"), (DATASET, "voice_dataset_manifest.json"), (AUDIO, "a.flac")):
        shutil.move(d / path, d / name)
    entry = {"target": "a.flac", **described(d / "a.flac", d)}
    digest = hashlib.sha256(f"{entry['sha256']}\n".encode()).hexdigest()
    put(d / "voice_dataset_manifest.json",
        {"schema": "voice_dataset/1", "dataset_digest": digest, "entries": [entry]})  # fmt: skip
    seal(d, provenance=None, base_weights=[{"name": "house-tts", "source": "https://x.org", "licence": "MIT"}])
    shutil.move(d / BUNDLE, d / "voice_bundle")
    shutil.rmtree(d / "bundles")
    named = [*(d / "voice_bundle").iterdir(), d / "voice_dataset_manifest.json"]
    edit(d / "train_status.json", progress=1, stats={"loss": 0.5}, artifacts=[described(path, d) for path in named])


def status(**changes: Any) -> Callable[[Path], None]:
    return lambda d: edit(d / STATUS, **changes)


def dataset(**changes: Any) -> Callable[[Path], None]:
    return lambda d: edit(d / DATASET, **changes)


def entry(value: Any) -> Callable[[Path], None]:
    return dataset(entries=[value])


def manifest(**changes: Any) -> Callable[[Path], None]:
    return lambda d: (seal(d, **changes), None)[1]


def refs(value: Any) -> Callable[[Path], None]:
    return manifest(provenance={"source_weights_refs": value})


def made_from(digest: Callable[[Path], str]) -> Callable[[Path], None]:
    """The bundle says what data it was made from, and the status does not name the data set."""

    def change(d: Path) -> None:
        seal(d, provenance={"source_weights_refs": NVIDIA, "source_dataset_sha256": digest(d)})
        status(artifacts=[MANIFEST.as_posix()])(d)

    return change


def licence(text: Any, **more: Any) -> Callable[[Path], None]:
    return refs({**NVIDIA, "weights_license": text, **more})


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda d: ((d / BUNDLE / name).write_bytes(data), seal(d), None)[2]


def moved_recording(d: Path) -> None:
    (d.parent / "elsewhere").mkdir()
    shutil.move(d / AUDIO, d.parent / "elsewhere" / "narration.flac")
    entry(str(d.parent / "elsewhere" / "narration.flac"))(d)


SOUND: list[tuple[str, Callable[[Path], Any]]] = [
    ("the flat layout", flat),
    ("paths from the directory", status(artifacts=[MANIFEST.as_posix(), DATASET.as_posix()])),
    ("artifacts as objects", status(artifacts=[{"path": MANIFEST.as_posix()}, {"path": DATASET.as_posix()}])),
    ("progress as one number", status(progress=1.0)),
    ("a text among the numbers", status(stats={"loss": 0.5, "profile_id": "narrator-1"})),
    ("a data set that the bundle names", made_from(lambda d: described(d / DATASET, d)["sha256"])),
    ("recordings that the bundle names", made_from(lambda d: dataset_digest([described(d / AUDIO, d)["sha256"]]))),
    ("a recording beside the manifest", lambda d: (shutil.move(d / AUDIO, d / "artifacts" / "a.flac"),
                                                   entry({"audio_filepath": "a.flac", "text": "a"})(d))),
    ("a recording by where the lane ran", entry({"path": f"/workspace/job/{AUDIO.as_posix()}"})),
    ("a recording that lies elsewhere", moved_recording),
    ("an entry that is a text", entry(AUDIO.as_posix())),
    ("base weights at the top", manifest(provenance=None, source_weights_refs=[NVIDIA])),
    ("base weights by their names", refs({"house": {"licence": "MIT"}, "other": {"license": "apache-2.0"}})),
    ("base weights that are referred to", manifest(
        base_weights=[{"name": "house-tts", "source": "https://x.org", "licence": "MIT"}],
        provenance={"source_weights_refs": ["house-tts"]})),
    *((f"licence {text}", licence(text)) for text in (
        "MIT License", "Apache 2.0", "cc-by-4.0", "NVIDIA Open Model License Agreement", "nvidia-open-model-license",
        "LicenseRef-NVIDIA-Open-Model-License")),
]  # fmt: skip


@pytest.mark.parametrize("change", [s[1] for s in SOUND], ids=[s[0] for s in SOUND])
def test_may_be_promoted(change: Callable[[Path], Any], production: Path) -> None:
    change(production)
    assert promotion_findings(production).refusals == []


def test_what_a_digest_ties_is_not_taken_on_trust(production: Path) -> None:
    flat(production)
    assert trusted(production) == {"origin", "licence", "experimental_unknown"}


def files(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    def spoil(d: Path) -> None:
        listed = json.loads((d / MANIFEST).read_text())["files"]
        change(listed)
        seal(d, files=listed)

    return spoil


def link(d: Path) -> None:
    shutil.move(d / BUNDLE / "eval.json", d.parent / "elsewhere.json")
    (d / BUNDLE / "eval.json").symlink_to(d.parent / "elsewhere.json")


def linked_folder(d: Path) -> None:
    shutil.move(d / BUNDLE, d.parent / "bundle")
    (d / BUNDLE).symlink_to(d.parent / "bundle")


def without_weights(d: Path) -> None:
    (d / BUNDLE / "model.bin").unlink()
    seal(d)


def weights_beside(d: Path) -> None:
    shutil.move(d / BUNDLE / "model.bin", d / "artifacts" / "model.bin")
    seal(d)
    status(artifacts=[MANIFEST.as_posix(), DATASET.as_posix(), "artifacts/model.bin"])(d)


def archive(name: str) -> Callable[[Path], None]:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("notes.txt", "a voice")
    return write(name, data.getvalue())


def torch_file(name: str, value: Callable[[], Any]) -> Callable[[Path], None]:
    def spoil(d: Path) -> None:
        import torch

        torch.save(value(), d / BUNDLE / name)
        seal(d)

    return spoil


def tensor(*values: float) -> Any:
    import torch

    return torch.tensor(values)


def safetensors(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def claims(shape: list[int], size: int) -> bytes:
    return safetensors({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}}, b"\0")


SPOILED: list[tuple[str, Callable[[Path], Any], set[str]]] = [
    ("no status", lambda d: (d / STATUS).unlink(), {"status_missing"}),
    ("two statuses", lambda d: shutil.copy(d / STATUS, d / "data" / STATUS.name), {"ambiguous"}),
    ("status is no JSON", lambda d: (d / STATUS).write_text("{"), {"status_invalid"}),
    ("status without a field", lambda d: put(d / STATUS, {"state": "completed"}), {"status_invalid"}),
    ("another job", status(job_type="tts_voice_train"), {"status_job_type"}),
    ("still running", status(state="running"), {"status_state"}),
    ("its two states differ", status(status="error"), {"status_state"}),
    ("not all of the work", status(progress=0.99), {"status_progress"}),
    ("a part of the steps", status(progress={"current": 90, "total": 100}), {"status_progress"}),
    ("no steps of none", status(progress={"current": 0, "total": 0}), {"status_progress"}),
    ("more than all of it", status(progress={"current": 101, "total": 100}), {"status_progress"}),
    ("progress of another form", status(progress="100/100"), {"status_invalid"}),
    ("no numbers", status(stats={}), {"status_stats"}),
    ("nothing but flags", status(stats={"bundle_valid": True}), {"status_stats"}),
    ("a loss that is none", status(stats={"loss": "nan", "steps": 1}), {"status_stats"}),
    ("a loss that is true", status(stats={"loss": True, "steps": 1}), {"status_stats"}),
    ("a number that is none", status(stats={"wer": "-Infinity", "steps": 1}), {"status_stats"}),
    ("a bundle that is not valid", status(stats={"bundle_valid": False, "steps": 1}), {"status_stats"}),
    ("artifacts of another form", status(artifacts="manifest.json"), {"status_invalid"}),
    ("the bundle is not named", status(artifacts=[DATASET.as_posix()]), {"artifact_mismatch"}),
    ("the data set is not named", status(artifacts=[MANIFEST.as_posix()]), {"artifact_mismatch"}),
    ("an artifact that is not there", status(artifacts=[MANIFEST.as_posix(), DATASET.as_posix(), "gone.bin"]),
     {"artifact_mismatch"}),
    ("an artifact twice", status(artifacts=[MANIFEST.as_posix(), DATASET.as_posix(), f"/x/{DATASET.as_posix()}"]),
     {"artifact_mismatch"}),
    ("an artifact that changed", status(artifacts=[{"path": MANIFEST.as_posix(), "sha256": "0" * 64},
                                                   DATASET.as_posix()]), {"artifact_mismatch"}),
    ("the bundle of another voice", lambda d: (shutil.move(d / BUNDLE, d / "voice_bundle"), status(artifacts=[
        "/w/bundles/narrator-2/voice_bundle/manifest.json", DATASET.as_posix()])(d)), {"artifact_mismatch"}),
    ("a bundle of other data", manifest(provenance={"source_weights_refs": NVIDIA, "source_dataset_sha256": "0" * 64}),
     {"artifact_mismatch"}),
    ("an artifact outside", lambda d: ((d.parent / "x.bin").write_bytes(b"x"), status(
        artifacts=[MANIFEST.as_posix(), DATASET.as_posix(), str(d.parent / "x.bin")])(d)), {"artifact_mismatch"}),
    ("an artifact's digest of another form", status(artifacts=[{"path": MANIFEST.as_posix(), "sha256": "0"}]),
     {"status_invalid"}),
    ("a status that lies deeper", lambda d: shutil.copy(d / STATUS, d / BUNDLE.parent), {"artifact_mismatch"}),
    ("a file beside the bundle", lambda d: (d / "more.txt").write_text("x"), {"artifact_mismatch"}),
    ("no data set", lambda d: (d / DATASET).unlink(), {"dataset_missing", "artifact_mismatch"}),
    ("a data set of another kind", dataset(mode="images"), {"dataset_invalid"}),
    ("a data set of no kind", dataset(mode=None), {"dataset_invalid"}),
    ("a data set of nothing", dataset(entries=[]), {"dataset_invalid", "artifact_mismatch"}),
    ("a data set that is not its digest", dataset(dataset_digest="0" * 64), {"dataset_invalid"}),
    ("an entry without a name", entry({"text": "hello"}), {"dataset_audio", "artifact_mismatch"}),
    ("an entry with two names", entry({"path": AUDIO.as_posix(), "audio": "b.flac"}),
     {"dataset_audio", "artifact_mismatch"}),
    ("an entry that names no file", entry({"path": "data/gone.flac"}), {"dataset_audio", "artifact_mismatch"}),
    ("an entry whose name is no path", entry({"path": "x" * 5000 + "\0"}), {"dataset_audio", "artifact_mismatch"}),
    ("an entry that names a text", lambda d: (d / AUDIO).write_text("hello"), {"dataset_audio"}),
    ("an entry that names silence", lambda d: audio_files.write(d / AUDIO, np.zeros((9000, 1))), {"dataset_audio"}),
    ("a recording that changed", entry({"path": AUDIO.as_posix(), "sha256": "0" * 64}), {"dataset_audio"}),
    ("a recording of another size", entry({"path": AUDIO.as_posix(), "bytes": 1}), {"dataset_audio"}),
    ("two recordings of one name", lambda d: (shutil.copytree(d / "data", d / "artifacts" / "data")),
     {"ambiguous", "artifact_mismatch"}),
    ("a recording elsewhere that is none", lambda d: (moved_recording(d), (
        d.parent / "elsewhere" / "narration.flac").write_bytes(b"fLaC")), {"dataset_audio"}),
    ("no bundle", lambda d: shutil.rmtree(d / BUNDLE), {"bundle_missing", "artifact_mismatch"}),
    ("two bundles", lambda d: shutil.copytree(d / BUNDLE, d / "bundles" / "other" / "voice_bundle"),
     {"ambiguous", "artifact_mismatch"}),
    ("no bundle manifest", lambda d: (d / MANIFEST).unlink(), {"bundle_manifest_invalid", "artifact_mismatch"}),
    ("another version", manifest(bundle_version="prod_tts_voice_bundle/1"), {"bundle_version"}),
    ("a time without a zone", manifest(created_at="2026-01-01T00:00:00"), {"bundle_manifest_invalid"}),
    ("an id that is a path", manifest(voice_profile_id="../x"), {"bundle_manifest_invalid", "artifact_mismatch"}),
    ("a listed file is missing", files(lambda f: f.append({**f[0], "path": "gone.txt"})), {"bundle_file_missing"}),
    ("a file is not listed", files(lambda f: f.pop(0)), {"bundle_file_extra"}),
    ("a size is off", files(lambda f: f[0].update(bytes=1)), {"bundle_file_size"}),
    ("a digest is off", files(lambda f: f[0].update(sha256="0" * 64)), {"bundle_file_digest"}),
    ("a file changed afterwards", lambda d: put(d / BUNDLE / "eval.json", {"status": "OK", "final_loss": 0.05}),
     {"bundle_file_digest"}),
    ("a path out of the bundle", files(lambda f: f.append({**f[0], "path": "../x"})), {"bundle_path"}),
    ("an absolute path", files(lambda f: f.append({**f[0], "path": "/etc/hostname"})), {"bundle_path"}),
    ("a path that does not print", files(lambda f: f.append({**f[0], "path": "a\nb"})), {"bundle_path"}),
    ("a second spelling", files(lambda f: f.append({**f[0], "path": "./eval.json"})), {"bundle_path"}),
    ("a file twice", files(lambda f: f.append(f[0])), {"bundle_path"}),
    ("the manifest lists itself", files(lambda f: f.append({**f[0], "path": "manifest.json"})), {"bundle_path"}),
    ("a link", link, {"not_a_plain_file", "bundle_file_missing"}),
    ("a linked folder", linked_folder, {"not_a_plain_file", "bundle_missing", "artifact_mismatch"}),
    ("a pipe", lambda d: os.mkfifo(d / BUNDLE / "pipe"), {"not_a_plain_file"}),
    ("no weights", without_weights, {"bundle_no_weights"}),
    ("weights that cannot be read", write("voice.pt", b"PK\x03\x04nothing"), {"unexamined"}),
    ("a text for weights", write("model.nemo", b"dry-run-model"), {"unexamined"}),
    ("an archive without tensors", torch_file("model.nemo", lambda: {"mel_mean": 0.1}), {"unexamined"}),
    ("an archive of texts", archive("notes.zip"), {"unexamined"}),
    ("an empty archive", write("voice.npz", b"PK\x05\x06" + bytes(18)), {"unexamined"}),
    ("weights beside the bundle", weights_beside, {"bundle_no_weights"}),
    ("tensors without values", torch_file("model.pt", lambda: {"a": tensor()}), {"unexamined"}),
    ("weights that are not finite", torch_file("model.pt", lambda: {"a": tensor(1.0, float("nan"))}),
     {"weights_not_finite"}),
    ("safetensors of 4 TiB", write("a.safetensors", claims([1 << 42], 1 << 42)), {"unexamined"}),
    ("safetensors of 21,000 dimensions", write("a.safetensors", claims([1] * 21_000, 1)), {"unexamined"}),
    ("a .wav of 15 bytes", write("sample.wav", b"RIFF....WAVEfmt"), {"audio_invalid"}),
    ("a .wav that is a text", write("sample.wav", b"sample-data"), {"audio_invalid"}),
    ("a cut FLAC of another name", lambda d: write("sound", (d / AUDIO).read_bytes()[:9000])(d), {"audio_invalid"}),
    ("bytes that nobody knows", write("voice.dat", bytes(range(256))), {"unexamined"}),
    ("no licence", manifest(provenance=None), {"licence_missing"}),
    ("no base weights", refs([]), {"licence_missing"}),
    ("a bare reference", refs(["nvidia/nemo-tts-fastpitch-en"]), {"licence_missing"}),
    ("no licence in an entry", refs({"id": "a", "code_license": "MIT"}), {"licence_missing"}),
    ("a name that is a list", refs([{"id": ["a"], "license": "MIT"}]), {"licence_missing"}),
    ("no name in an entry", refs([{"license": "MIT"}]), {"licence_missing"}),
    ("no source in an entry", manifest(base_weights=[{"name": "a", "licence": "MIT"}]), {"licence_missing"}),
    ("one of two is unknown", refs([NVIDIA, {"id": "b", "license": "see the web page"}]), {"licence_unknown"}),
    ("an unknown licence", licence("NVIDIA-Model-License"), {"licence_unknown"}),
    ("two licences that differ", licence("MIT", license="GPL-3.0"), {"licence_unknown"}),
    ("code of an unknown licence", licence("MIT", code_license="ask the author"), {"licence_unknown"}),
    ("a non-commercial licence", licence("CC-BY-NC-4.0"), {"licence_non_commercial"}),
    ("a non-commercial licence in words", licence("MIT, non commercial"), {"licence_non_commercial"}),
    ("no commercial use", licence("MIT", commercial_use_allowed=False), {"licence_non_commercial"}),
    ("MusicGen under another name's licence", licence("MIT", id="facebook/musicgen-small"),
     {"licence_non_commercial"}),
    ("marked in a text", write("a.txt", b"=== COLAB TRAIN REPORT ===\nlane: experimental\n"), {"experimental_marked"}),
    ("marked in JSON", write("a.json", b'{"deep": [{"promotable": false}]}'), {"experimental_marked"}),
    ("marked in a configuration", write("a.yaml", b"voice: x\npromotable: false\n"), {"experimental_marked"}),
    ("marked in the manifest", manifest(lane="experimental"), {"experimental_marked"}),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "expected"), [s[1:] for s in SPOILED], ids=[s[0] for s in SPOILED])
def test_is_refused(spoil: Callable[[Path], Any], expected: set[str], production: Path) -> None:
    spoil(production)
    assert codes(production) == expected


def test_all_refusals_are_listed_at_once_with_what_to_do(
    production: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    licence("CC-BY-NC-4.0")(production)
    status(job_type="tts_voice_train", state="failed")(production)
    assert main([str(production)]) == 1
    out = capsys.readouterr().out
    for code in ("status_job_type", "status_state", "licence_non_commercial"):
        assert f"  {code}: " in out and REFUSALS[code] in out
    assert main([str(production), "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)["refusals"]
    assert {entry["code"] for entry in listed} == {"status_job_type", "status_state", "licence_non_commercial"}
    assert all(entry["action"] for entry in listed)


def test_every_code_is_documented(production: Path) -> None:
    text = (ROOT / "docs" / "promotion.md").read_text()
    for code, action in REFUSALS.items():
        assert f"| `{code}` | {action} |" in text, f"docs/promotion.md is behind: {code}"
    assert {code for _, _, expected in SPOILED for code in expected} <= REFUSALS.keys()
    for code in trusted(production):
        assert f"| `{code}` |" in text, f"docs/promotion.md is behind: {code}"


def test_recordings_may_lie_in_a_folder_that_is_named(production: Path) -> None:
    moved_recording(production)
    entry("narration.flac")(production)
    assert codes(production) == {"dataset_audio"}
    assert codes(production, audio=[production.parent / "elsewhere"]) == set()


def test_what_cannot_be_ruled_out_is_refused(production: Path, tmp_path: Path) -> None:
    assert codes(production, baselines=[RECORDED, tmp_path / "nothing"]) == {"known_results_missing"}
    assert codes(production, tmp_path / "no-run") == {"known_results_missing"}
    assert codes(tmp_path / "nowhere") == {"directory_missing"}


def test_known_results_that_cannot_be_read_are_named(production: Path, experimental: Path, tmp_path: Path) -> None:
    put(tmp_path / "recorded" / "mine" / "broken.json", {})
    put(tmp_path / "recorded" / "reference" / "broken.json", {})
    checkpoint_of(experimental).write_bytes(b"PK")
    found = promotion_findings(production, [RECORDED, tmp_path / "recorded"], [experimental]).refusals
    assert [refusal.code for refusal in found] == ["known_results_missing"] * 4  # and there is no whole recording
    for name in ("mine/broken.json", "reference/broken.json", checkpoint_of(experimental).name):
        assert any(name in refusal.what for refusal in found)


@pytest.mark.parametrize("module", ["contents", "production"])
def test_a_file_that_cannot_be_read_is_refused(module: str, production: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(f"harness.promotion.{module}.file_sha256", fails)
    assert "unexamined" in codes(production)


def test_nothing_is_written_and_no_set_up_is_asked_for(
    production: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, in a folder that is no project; the set-up would raise."""
    from harness.bootstrap import commands
    from harness.bootstrap.command_line import main as harness_main

    monkeypatch.setattr(commands, "prepare", lambda *_: pytest.fail("a command that reads asked for a set-up"))
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert harness_main(["promotion-check", "production"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.fixture
def experimental(tmp_path: Path) -> Path:
    """A run of the experimental lane, as another test's writer leaves it."""
    return write_run(tmp_path / "artifacts")


def checkpoint_of(run: Path) -> Path:
    return next((run / "checkpoints").glob("*nano.pt"))


def dressed_up(production: Path, write_weights: Callable[[Path], Any]) -> Path:
    """A production directory, every digest true, whose weights are others."""
    (production / BUNDLE / "model.bin").unlink(missing_ok=True)
    write_weights(production / BUNDLE)
    return seal(production)


def test_the_run_that_lies_here_is_compared_with_unless_it_is_the_one_to_promote(
    production: Path, experimental: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    tensors = torch.load(checkpoint_of(experimental), weights_only=True)["adapter"]
    dressed_up(production, lambda bundle: torch.save(tensors, bundle / "model.bin"))
    monkeypatch.delenv("LANE_RUN_DIR", raising=False)
    monkeypatch.chdir(production)
    assert main(["."]) == 0
    monkeypatch.chdir(experimental.parent)
    assert main(["production"]) == 1


def test_a_copy_of_the_checkpoint_is_known_by_its_digest(production: Path, experimental: Path) -> None:
    dressed_up(production, lambda bundle: shutil.copy(checkpoint_of(experimental), bundle / "voice.pt"))
    # The marks inside are enough; the run that it is from is named too.
    assert codes(production) == {"experimental_marked"}
    assert codes(production, experimental) == {"experimental_marked", "experimental_digest"}


def test_its_tensors_alone_are_known_by_their_digest(production: Path, experimental: Path) -> None:
    import torch

    tensors = torch.load(checkpoint_of(experimental), weights_only=True)["adapter"]
    dressed_up(production, lambda bundle: torch.save({"adapter": tensors, "meta": {}}, bundle / "model.bin"))
    assert codes(production) == set()  # a run that nobody names: docs/promotion.md says so
    assert codes(production, experimental) == {"experimental_digest"}
    cast = {name: value.double().numpy() for name, value in tensors.items()}
    dressed_up(production, lambda bundle: np.savez(bundle / "voice.npz", **cast))
    assert codes(production, experimental) == {"experimental_digest"}


LOW_RANK = {"linear1.down": (8, 4), "linear1.up": (4, 8), "linear2.down": (8, 4), "linear2.up": (4, 8)}
FILTER = {"decay": (4,), "gate.bias": (4,), "gate.weight": (4, 4), "out.bias": (4,), "out.weight": (4, 4),
          "taps": (4, 8)}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "voice.", "model.decoder."])
@pytest.mark.parametrize(("blocks", "shapes"), [(3, LOW_RANK), (2, FILTER)], ids=["today's", "an earlier one"])
def test_the_adapter_is_known_by_its_tensors_names(
    production: Path, blocks: int, shapes: dict[str, tuple[int, ...]], prefix: str
) -> None:
    random = np.random.default_rng(0)
    tensors = {
        f"{prefix}{block}.{name}": random.standard_normal(shape).astype(np.float32)
        for block in range(blocks)
        for name, shape in shapes.items()
    }
    dressed_up(production, lambda bundle: np.savez(bundle / "voice.npz", **tensors, **weights()))
    assert codes(production) == {"experimental_adapter"}


def as_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]], bfloat16: bool = False) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in tensors.items():
        bits = value.astype("<f4")
        raw = (bits.view("<u4") >> 16).astype("<u2").tobytes() if bfloat16 else bits.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "BF16" if bfloat16 else "F32", "shape": list(value.shape), "data_offsets": offsets}
        data += raw
    path.write_bytes(safetensors(header, data))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_recorded_values_are_known_under_another_name_shape_and_dtype(
    production: Path, experimental: Path, bfloat16: bool
) -> None:
    """One large tensor of a known run, renamed, reshaped and cast, among others."""
    import torch

    big = np.random.default_rng(5).standard_normal((64, 32)).astype(np.float32)
    known = {"adapter": {"0.taps": torch.from_numpy(big)}, "meta": {"lane": "experimental"}}
    torch.save(known, checkpoint_of(experimental))
    disguised = {"decoder.proj": big.reshape(32, 64), "decoder.bias": np.zeros(32)}
    dressed_up(production, lambda bundle: as_safetensors(bundle / "voice.safetensors", disguised, bfloat16))
    assert codes(production) == set()
    assert codes(production, experimental) == {"experimental_tensor"}


def test_the_shipped_model_and_the_published_checkpoint_are_known_from_the_package() -> None:
    from harness.promotion.contents import Findings, known_results

    findings = Findings(ROOT)
    known = known_results([RECORDED], [], findings)
    assert not findings.refusals and ROOT / "harness" in RECORDED.parents
    assert "64242758c67eff5e2c3a54f96a33ec5b08b182a98f5c2ab286c7aa3897ec8e86" in known.digests
    assert known.adapters and known.guarded and len(known.sketches) >= 12
    for path in (ROOT / "baselines").glob("*/*.json"):
        assert (RECORDED / path.parent.name / path.name).read_bytes() == path.read_bytes()
