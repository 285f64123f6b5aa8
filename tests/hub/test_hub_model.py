"""facebook/musicgen-small by its name, without a network: a hub cache of the real layout, small, with made-up weights.

    pytest -m hub

Needs transformers and sentencepiece (`pip install '.[hub]'`). What runs is the lane as it is, and the gates as they
are: only the cache was put there by support/hub_cache.py instead of by a download.
"""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hub_cache import CODEC, COMMIT, MODEL, TEXT
from lane_child import Ended, assert_refused, run

ROOT = Path(__file__).resolve().parents[2]
AUDIO = ROOT / "data" / "knowledge_audio_source" / "auntie_dottie.flac"
PACKAGES = [name for name in ("transformers", "sentencepiece") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.hub,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(PACKAGES), reason=f"not installed: {', '.join(PACKAGES)} (pip install '.[hub]')"),
]
QUICK = {"LANE_MODEL": MODEL, "LANE_STEPS": "3", "LANE_STRIDE_SECONDS": "20", "LANE_BATCH": "2", "LANE_THREADS": "1"}


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``HF_HOME`` with all that facebook/musicgen-small needs; built in a process of its own."""
    home = tmp_path_factory.mktemp("hub")
    command = [sys.executable, str(ROOT / "tests" / "support" / "hub_cache.py"), str(home), str(AUDIO)]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    return home


def spy(folder: Path) -> tuple[Path, dict[str, str]]:
    """A pytest plugin ``spy`` that writes the names that its process looks up to the first; the second finds it."""
    asked = folder / "asked"
    (folder / "spy.py").write_text(
        "import sys\n"
        f"sys.addaudithook(lambda event, of: open({str(asked)!r}, 'a').write(str(of[0]) + chr(10)) "
        "if event == 'socket.getaddrinfo' else None)\n"
    )
    return asked, {"PYTHONPATH": str(folder)}


def cached(home: Path, repository: str) -> Path:
    """A repository's folder in the cache."""
    return home / "hub" / f"models--{repository.replace('/', '--')}"


def test_all_gates_hold(home: Path, tmp_path: Path) -> None:
    """`LANE_MODEL=facebook/musicgen-small pytest -m smoke`: every gate but the four that need a recorded baseline."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LANE_")}
    asked, spying = spy(tmp_path)
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "https://hub.invalid"}
    environment = {**ours, **spying, **online, "LANE_MODEL": MODEL, "HF_HOME": str(home)}
    gates = [str(ROOT / "tests" / "smoke" / f"test_{name}.py") for name in ("gates", "meaning", "recipe", "said")]
    options = [
        "-m",
        "smoke",
        "-p",
        "no:cacheprovider",
        "-p",
        "spy",
        f"--lane-run-dir={tmp_path}",
        f"--junitxml={tmp_path}/junit.xml",
    ]
    command = [sys.executable, "-m", "pytest", *gates, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    suite = next(iter(ElementTree.parse(tmp_path / "junit.xml").getroot()))
    skipped = [case.get("name") for case in suite.iter("testcase") if case.find("skipped") is not None]
    assert skipped == ["test_model_digest_is_that_of_the_models_files"], "its files are in the hub's cache"
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0"), done.stdout[-2000:]
    assert (tmp_path / "checkpoints" / "tts_voice_train_musicgen_small.pt").is_file()
    command = [sys.executable, "-m", "harness", "listen", str(tmp_path)]
    heard = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert heard.returncode == 0, heard.stdout[-2000:] + heard.stderr[-2000:]
    assert len(list((tmp_path / "listen").glob("*.flac"))) == 4
    assert not asked.exists(), f"everything is in the cache, and the gates asked {asked.read_text()}"


def test_transformers_looks_round_before_the_placeholders() -> None:
    """It takes a placeholder for the package, and imports more that is not there (librosa: soxr)."""
    code = (
        "import sys\nfrom harness.lane import audiocraft_import as lane\nreal = lane._add_placeholders\n"
        "def add(package, more):\n    print(package, 'transformers.models.t5.modeling_t5' in sys.modules)\n"
        "    real(package, more)\nlane._add_placeholders = add\nlane.prepare_audiocraft(transformers=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "xformers True" in done.stdout and "False" not in done.stdout, done.stdout


def quick(home: Path, run_dir: Path, **settings: str) -> Ended:
    """A short run with this cache and no network."""
    return run(run_dir, {**QUICK, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **settings}, timeout=300)


def test_digest_names_every_file_the_model_is_made_from(home: Path, tmp_path: Path) -> None:
    """Another byte in the codec or in the text encoder is another model."""
    first = quick(home, tmp_path / "one")
    assert first.exit_code == 0, first.stderr
    digest = first.report["model_digest"]
    assert len(digest) == 64
    other = tmp_path / "home"
    shutil.copytree(home, other, symlinks=True)
    for repository, name in ((CODEC, "config.json"), (TEXT, "tokenizer_config.json")):
        path = cached(other, repository) / "snapshots" / COMMIT / name
        path.resolve().write_text(json.dumps(json.loads(path.read_text()), indent=7))
        changed = quick(other, tmp_path / name)
        assert changed.exit_code == 0, changed.stderr
        assert changed.report["model_digest"] != digest, f"{repository}/{name} is not in the model's digest"
        # The values are the same: only the text of a file is not.
        assert changed.report["checkpoint_tensor_digest"] == first.report["checkpoint_tensor_digest"]
        digest = changed.report["model_digest"]


@pytest.mark.parametrize(
    ("repository", "gone"),
    [(MODEL, "state_dict.bin"), (CODEC, "model.safetensors"), (TEXT, "tokenizer.json")],
    ids=["model", "codec", "text"],
)
def test_a_missing_file_is_named_at_once(repository: str, gone: str, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "home"
    shutil.copytree(home, other, symlinks=True)
    snapshot = cached(other, repository) / "snapshots" / COMMIT
    (snapshot / gone).unlink()
    if repository == TEXT:
        (snapshot / "spiece.model").unlink()  # the other form of the tokenizer
    ended = quick(other, tmp_path / "run")
    assert_refused(ended, "model_not_cached", repository, gone, "HF_HUB_OFFLINE")
    assert f"hf download {repository}" in ended.status["next_unblock_action"]


def test_audiocraft_cache_dir_holds_the_models_own_files(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "home"
    shutil.copytree(home, other, symlinks=True)
    (tmp_path / "audiocraft").mkdir()
    shutil.move(cached(other, MODEL), tmp_path / "audiocraft")
    assert_refused(quick(other, tmp_path / "without"), "model_not_cached", "state_dict.bin")
    ended = quick(other, tmp_path / "with", AUDIOCRAFT_CACHE_DIR=str(tmp_path / "audiocraft"))
    assert ended.exit_code == 0, ended.stderr


def test_a_pickle_that_would_run_code_is_refused(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "home"
    shutil.copytree(home, other, symlinks=True)
    (cached(other, MODEL) / "snapshots" / COMMIT / "state_dict.bin").resolve().write_bytes(
        b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    )
    assert_refused(quick(other, tmp_path / "run"), "model_refused", "state_dict.bin")
    assert not (tmp_path / "ran").exists()


class Hub(http.server.BaseHTTPRequestHandler):
    """The two requests by which huggingface_hub gets a file, answered from a cache."""

    home: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        repository, _, name = unquote(self.path).lstrip("/").partition("/resolve/main/")
        if not name:  # with a revision: the commit that the HEAD named
            repository, _, name = unquote(self.path).lstrip("/").partition(f"/resolve/{COMMIT}/")
        path = cached(self.home, repository) / "snapshots" / COMMIT / name
        if not name or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        self.send_response(200)
        for header, value in (
            ("ETag", f'"{path.resolve().name}"'),
            ("X-Repo-Commit", COMMIT),
            ("Content-Length", str(len(data))),
        ):
            self.send_header(header, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(home: Path) -> Iterator[str]:
    """The address of a hub that serves the cache."""
    Hub.home, Hub.asked = home, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_with_a_network_it_downloads_and_shows_it(hub: str, home: Path, tmp_path: Path) -> None:
    network = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    first = run(tmp_path / "first", {**QUICK, **network}, timeout=300)
    assert first.exit_code == 0, first.stderr + first.stdout[-2000:]
    shown = [line for line in first.stdout.splitlines() if line.startswith("DOWNLOAD ")]
    for name in (f"{MODEL}/state_dict.bin", f"{CODEC}/model.safetensors", f"{TEXT}/model.safetensors"):
        assert any(name in line for line in shown), shown
    assert any(line.endswith(" MB") for line in shown), f"no progress: {shown}"
    Hub.asked.clear()
    again = run(tmp_path / "again", {**QUICK, **network}, timeout=300)
    assert again.exit_code == 0, again.stderr
    assert not Hub.asked, f"everything is in the cache, and the hub was asked: {Hub.asked}"
    assert again.report["model_digest"] == first.report["model_digest"]


@pytest.mark.parametrize("endpoint", ["https://hub.invalid", "http://10.255.255.1"], ids=["no-name", "no-route"])
def test_without_a_hub_it_says_so_and_waits_for_no_answer(endpoint: str, tmp_path: Path) -> None:
    settings = {**QUICK, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    ended = run(tmp_path / "run", settings, timeout=60)
    assert_refused(ended, "model_not_cached", MODEL, "state_dict.bin", str(tmp_path / "home"))
    for repository in (MODEL, CODEC, TEXT):
        assert f"hf download {repository}" in ended.status["next_unblock_action"]


@pytest.mark.parametrize("named", [True, False], ids=["name", "directory"])
def test_gates_do_not_ask_the_hub_themselves(named: bool, home: Path, tmp_path: Path) -> None:
    """Also of a model in a directory whose codec and text encoder are on the hub. The lane has said why it cannot have
    the model; loading it for the gates would try for half a minute more."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LANE_")}
    nowhere = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "https://hub.invalid", "HF_HUB_OFFLINE": "0"}
    asked, spying = spy(tmp_path)
    gate = str(ROOT / "tests" / "smoke" / "test_meaning.py")
    options = ["-m", "smoke", "-p", "no:cacheprovider", "-p", "spy", f"--lane-run-dir={tmp_path / 'run'}"]
    model = MODEL if named else str(cached(home, MODEL) / "snapshots" / COMMIT)
    environment = {**ours, **spying, **nowhere, "LANE_MODEL": model}
    command = [sys.executable, "-m", "pytest", gate, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "model_not_cached" in done.stdout
    assert not asked.exists(), asked.read_text()
