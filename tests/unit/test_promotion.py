"""The production boundary: what passes, and every single thing that must not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_directory import write_run

from harness.promotion import REFUSALS, main, promotion_refusals

ROOT = Path(__file__).resolve().parents[2]
BASELINES = ROOT / "baselines"


def described(path: Path, folder: Path) -> dict[str, Any]:
    data = path.read_bytes()
    name = path.relative_to(folder).as_posix()
    return {"path": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def seal(directory: Path, **manifest: Any) -> Path:
    """Write the manifest and the status for what lies in `directory`, true in every digest."""
    bundle = directory / "voice_bundle"
    files = [path for path in sorted(bundle.rglob("*")) if path.is_file() and path != bundle / "manifest.json"]
    value: dict[str, Any] = {
        "bundle_version": "voice_bundle/1",
        "voice_profile_id": "narrator-1",
        "display_name": "A narrator",
        "created_at": "2026-01-01T00:00:00+00:00",
        "files": [described(path, bundle) for path in files],
        "base_weights": [{"name": "house-tts", "source": "https://example.org/house-tts", "licence": "Apache-2.0"}],
    }
    put(bundle / "manifest.json", {**value, **manifest})
    produced = [*files, bundle / "manifest.json", directory / "voice_dataset_manifest.json"]
    status = {
        "job_type": "tts_prod_train",
        "state": "completed",
        "progress": 1.0,
        "stats": {"loss": 0.5, "steps": 100},
        "artifacts": [described(path, directory) for path in produced],
    }
    put(directory / "train_status.json", status)
    return directory


def weights(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {"decoder.weight": random.standard_normal((64, 32)).astype(np.float32), "decoder.bias": np.zeros(32)}


def save(path: Path, tensors: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **tensors)


@pytest.fixture
def production(tmp_path: Path) -> Path:
    """What a production lane leaves, and nothing wrong with it."""
    directory = tmp_path / "production"
    save(directory / "voice_bundle" / "weights" / "voice.npz", weights())
    (directory / "voice_bundle" / "notes.txt").write_text("a voice\n")
    sha256 = hashlib.sha256(b"audio").hexdigest()
    entries = [{"target": "a.flac", "sha256": sha256, "bytes": 5}]
    digest = hashlib.sha256(f"{sha256}\n".encode()).hexdigest()
    put(
        directory / "voice_dataset_manifest.json",
        {"schema": "voice_dataset/1", "dataset_digest": digest, "entries": entries},
    )
    return seal(directory)


def edit(path: Path, **changes: Any) -> None:
    put(path, {**json.loads(path.read_text()), **changes})


def codes(directory: Path, *runs: Path) -> set[str]:
    return {refusal.code for refusal in promotion_refusals(directory, BASELINES, runs)}


def test_output_of_a_production_lane_may_be_promoted(
    production: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(production)]) == 0
    assert capsys.readouterr().out == f"may be promoted: {production}\n"
    assert main([str(production), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["promotable"] is True


def status(**changes: Any) -> Callable[[Path], None]:
    return lambda d: edit(d / "train_status.json", **changes)


def manifest(**changes: Any) -> Callable[[Path], None]:
    return lambda d: (seal(d, **changes), None)[1]


def files(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    def spoil(d: Path) -> None:
        listed = json.loads((d / "voice_bundle" / "manifest.json").read_text())["files"]
        change(listed)
        seal(d, files=listed)

    return spoil


def link(d: Path) -> None:
    target = d.parent / "elsewhere.txt"
    target.write_text("a voice\n")
    (d / "voice_bundle" / "notes.txt").unlink()
    (d / "voice_bundle" / "notes.txt").symlink_to(target)


def linked_folder(d: Path) -> None:
    shutil.move(d / "voice_bundle" / "weights", d.parent / "weights")
    (d / "voice_bundle" / "weights").symlink_to(d.parent / "weights")


def flip(d: Path) -> None:
    path = d / "voice_bundle" / "notes.txt"
    path.write_text("A voice\n")


def licence(text: str, name: str = "house-tts") -> Callable[[Path], None]:
    return manifest(base_weights=[{"name": name, "source": "https://example.org", "licence": text}])


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def spoil(d: Path) -> None:
        (d / "voice_bundle" / name).write_bytes(data)
        seal(d)

    return spoil


SPOILED: list[tuple[str, Callable[[Path], Any], set[str]]] = [
    ("no status", lambda d: (d / "train_status.json").unlink(), {"status_missing"}),
    ("status is no JSON", lambda d: (d / "train_status.json").write_text("{"), {"status_invalid"}),
    ("status without a field", lambda d: put(d / "train_status.json", {"state": "completed"}), {"status_invalid"}),
    ("another job", status(job_type="tts_voice_train"), {"status_job_type"}),
    ("still running", status(state="running"), {"status_state"}),
    ("not all of the work", status(progress=0.99), {"status_progress"}),
    ("no numbers", status(stats={}), {"status_stats"}),
    ("a loss that is none", status(stats={"loss": "nan"}), {"status_stats"}),
    ("a loss that is true", status(stats={"loss": True}), {"status_stats"}),
    ("status of another bundle", lambda d: write("notes.txt", b"other\n")(d) or status(
        artifacts=json.loads((d / "train_status.json").read_text())["artifacts"][:1])(d), {"artifact_mismatch"}),
    ("a file beside the bundle", lambda d: (d / "more.txt").write_text("x"), {"artifact_mismatch"}),
    ("no data set", lambda d: (d / "voice_dataset_manifest.json").unlink(), {"dataset_missing", "artifact_mismatch"}),
    ("a data set that is not its digest", lambda d: edit(d / "voice_dataset_manifest.json", dataset_digest="0" * 64),
     {"dataset_invalid", "artifact_mismatch"}),
    ("no bundle", lambda d: shutil.rmtree(d / "voice_bundle"), {"bundle_missing", "artifact_mismatch"}),
    ("no bundle manifest", lambda d: (d / "voice_bundle" / "manifest.json").unlink(),
     {"bundle_manifest_invalid", "artifact_mismatch"}),
    ("another version", manifest(bundle_version="voice_bundle/2"), {"bundle_version"}),
    ("a time without a zone", manifest(created_at="2026-01-01T00:00:00"), {"bundle_manifest_invalid"}),
    ("an id that is a path", manifest(voice_profile_id="../x"), {"bundle_manifest_invalid"}),
    ("a listed file is missing", files(lambda f: f.append({**f[0], "path": "gone.txt"})), {"bundle_file_missing"}),
    ("a file is not listed", files(lambda f: f.pop(0)), {"bundle_file_extra"}),
    ("a size is off", files(lambda f: f[0].update(bytes=1)), {"bundle_file_size"}),
    ("a digest is off", files(lambda f: f[0].update(sha256="0" * 64)), {"bundle_file_digest"}),
    ("a file changed afterwards", flip, {"bundle_file_digest", "artifact_mismatch"}),
    ("a path out of the bundle", files(lambda f: f.append({**f[0], "path": "../train_status.json"})), {"bundle_path"}),
    ("an absolute path", files(lambda f: f.append({**f[0], "path": "/etc/hostname"})), {"bundle_path"}),
    ("a second spelling", files(lambda f: f.append({**f[0], "path": "./notes.txt"})), {"bundle_path"}),
    ("a file twice", files(lambda f: f.append(f[0])), {"bundle_path"}),
    ("the manifest lists itself", files(lambda f: f.append({**f[0], "path": "manifest.json"})),
     {"bundle_path", "bundle_file_size"}),
    ("a link", link, {"not_a_plain_file", "bundle_path", "artifact_mismatch"}),
    ("a linked folder", linked_folder, {"not_a_plain_file", "bundle_path", "artifact_mismatch", "bundle_no_weights"}),
    ("a pipe", lambda d: os.mkfifo(d / "voice_bundle" / "pipe"), {"not_a_plain_file"}),
    ("no weights", lambda d: (shutil.rmtree(d / "voice_bundle" / "weights"), seal(d)), {"bundle_no_weights"}),
    ("weights that cannot be read", write("voice.pt", b"PK\x03\x04nothing"), {"unexamined"}),
    ("bytes that nobody knows", write("voice.bin", bytes(range(256))), {"unexamined"}),
    ("no licence", manifest(base_weights=None), {"licence_missing"}),
    ("no base weights", manifest(base_weights=[]), {"licence_missing"}),
    ("no licence in an entry", manifest(base_weights=[{"name": "a", "source": "b"}]), {"licence_missing"}),
    ("an unknown licence", licence("see the web page"), {"licence_unknown"}),
    ("a non-commercial licence", licence("CC-BY-NC-4.0"), {"licence_non_commercial"}),
    ("a non-commercial licence in words", licence("research, non-commercial"), {"licence_non_commercial"}),
    ("MusicGen under another name's licence", licence("MIT", "facebook/musicgen-small"), {"licence_non_commercial"}),
    ("marked in a text", write("a.txt", b"=== COLAB TRAIN REPORT ===\nlane: experimental\n"), {"experimental_marked"}),
    ("marked in JSON", write("a.json", b'{"deep": [{"promotable": false}]}'), {"experimental_marked"}),
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


def test_every_code_is_documented() -> None:
    text = (ROOT / "docs" / "promotion.md").read_text()
    for code, action in REFUSALS.items():
        assert f"| `{code}` | {action} |" in text, f"docs/promotion.md is behind: {code}"


def test_what_cannot_be_ruled_out_is_refused(production: Path, tmp_path: Path) -> None:
    found = promotion_refusals(production, tmp_path / "nothing")
    assert [refusal.code for refusal in found] == ["known_results_missing"]
    assert codes(production, tmp_path / "no-run") == {"known_results_missing"}
    assert codes(tmp_path / "nowhere") == {"directory_missing"}


@pytest.fixture
def experimental(tmp_path: Path) -> Path:
    """A run of the experimental lane, as another test's writer leaves it."""
    return write_run(tmp_path / "experimental")


def dressed_up(production: Path, write_weights: Callable[[Path], None]) -> Path:
    """A production directory, every digest true, whose weights are others."""
    folder = production / "voice_bundle" / "weights"
    shutil.rmtree(folder)
    folder.mkdir()
    write_weights(folder)
    return seal(production)


def test_a_copy_of_the_checkpoint_is_known_by_its_digest(production: Path, experimental: Path) -> None:
    source = next((experimental / "checkpoints").glob("*nano.pt"))
    dressed_up(production, lambda folder: shutil.copy(source, folder / "voice.pt"))
    # The marks inside are enough; the run that it is from is named too.
    assert codes(production) == {"experimental_marked"}
    assert codes(production, experimental) == {"experimental_marked", "experimental_digest"}


def test_its_tensors_alone_are_known_by_their_digest(production: Path, experimental: Path) -> None:
    import torch

    source = next((experimental / "checkpoints").glob("*nano.pt"))
    tensors = torch.load(source, weights_only=True)["adapter"]
    dressed_up(production, lambda folder: torch.save({"adapter": tensors, "meta": {}}, folder / "voice.pt"))
    assert codes(production) == set()  # a run that nobody names: docs/promotion.md says so
    assert codes(production, experimental) == {"experimental_digest"}
    cast = {name: value.double().numpy() for name, value in tensors.items()}
    dressed_up(production, lambda folder: save(folder / "voice.npz", cast))
    assert codes(production, experimental) == {"experimental_digest"}


def shaped_like_the_adapter(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        f"{block}.{name}": random.standard_normal(shape).astype(np.float32)
        for block in (0, 1)
        for name, shape in {
            "decay": (4,), "gate.bias": (4,), "gate.weight": (4, 4), "out.bias": (4,), "out.weight": (4, 4),
            "taps": (4, 8),
        }.items()
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "voice.", "model.decoder."])
def test_the_adapter_is_known_by_its_tensors_names(production: Path, prefix: str) -> None:
    tensors = {prefix + name: value for name, value in shaped_like_the_adapter().items()}
    dressed_up(production, lambda folder: save(folder / "voice.npz", {**tensors, **weights()}))
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
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_recorded_values_are_known_under_another_name_shape_and_dtype(
    production: Path, experimental: Path, tmp_path: Path, bfloat16: bool
) -> None:
    """One large tensor of a known run, renamed, reshaped and cast, among others."""
    import torch

    big = np.random.default_rng(5).standard_normal((64, 32)).astype(np.float32)
    source = next((experimental / "checkpoints").glob("*nano.pt"))
    torch.save({"adapter": {"0.taps": torch.from_numpy(big)}, "meta": {"lane": "experimental"}}, source)
    disguised = {"decoder.proj": big.reshape(32, 64), "decoder.bias": np.zeros(32)}
    dressed_up(production, lambda folder: as_safetensors(folder / "voice.safetensors", disguised, bfloat16))
    assert codes(production) == set()
    assert codes(production, experimental) == {"experimental_tensor"}


def test_the_shipped_model_and_the_published_checkpoint_are_known(production: Path) -> None:
    from harness.promotion import _known

    refusals: list[Any] = []
    known = _known(BASELINES, [], refusals)
    assert not refusals
    assert "64242758c67eff5e2c3a54f96a33ec5b08b182a98f5c2ab286c7aa3897ec8e86" in known.digests
    assert known.adapters and known.guarded and len(known.sketches) >= 12
