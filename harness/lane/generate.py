"""``python3 -m harness generate``: speech from a model, with a trained adapter or without it."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from pathlib import Path
from typing import Any

from harness.base.files import atomic_write, show
from harness.lane.settings import SHIPPED_MODEL, VARIABLES, is_shipped

TOY = "the shipped model is a toy of 1.1M parameters, and its voice buzzes"


def generate(arguments: list[str]) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        "python3 -m harness generate",
        description=f"Generates audio with a trained adapter. Experimental; {TOY}.",
        epilog="exit codes: 0 the file was written; 1 it was not, with a line that says why; 64 wrong usage",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="the trained adapter (.pt)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.wav", help="where to write; a new file")
    parser.add_argument("--prompt", default=VARIABLES["LANE_DESCRIPTION"].default_for(True), metavar="TEXT",
                        help="the description that the model is given (%(default)s)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=5.0, metavar="N", help="length (5), more than 0 and up to 120")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (0)")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu (default), or cuda")
    parser.add_argument("--model", default="", metavar="NAME", help="the model that the adapter was trained on: a "
                        "directory or a name on the hub (the shipped one, where that was it)")  # fmt: skip
    parser.add_argument("--without-adapter", action="store_true", help="the frozen model alone, from the same seed")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 120:
        parser.error(f"--seconds: found {options.seconds:g}, expected more than 0 and up to 120")
    if options.out.suffix.lower() != ".wav":
        parser.error(f"--out: found {show(options.out)}, expected a name that ends in .wav")
    if not 0 <= options.seed < 2**63:
        parser.error(f"--seed: found {options.seed}, expected 0 to 2^63-1")
    import torch

    from harness.lane.voice import VoiceError, attach_voice, load_musicgen, read_voice, sampled

    # audiocraft's codec uses a function of torch that is to go away; nothing to do about it here.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        check_place(options.out)
        meta = read_voice(options.checkpoint)[1]
        model = load_musicgen(options.model or own_model(meta), options.device)
        if not options.without_adapter:
            attach_voice(model, options.checkpoint)
        torch.manual_seed(options.seed)
        wave = sampled(model, options.prompt, options.seconds)
        write_wav(options.out, wave, model.sample_rate)
    except (VoiceError, OSError) as error:
        print(f"nothing was generated: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, AssertionError, ValueError) as error:  # of torch and audiocraft: no such device, no memory
        print(f"nothing was generated: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 1
    how = "without the adapter" if options.without_adapter else f"with {show(options.checkpoint)}"
    toy = f": {TOY}" if is_shipped(options.model) else ""
    print(f"{show(options.out)}: {options.seconds:g} s {how}, seed {options.seed}; experimental{toy}")
    return 0


def check_place(path: Path) -> None:
    """Refuse, before anything is computed, a file that is there or a folder that is not. Raises VoiceError."""
    from harness.lane.voice import VoiceError

    if path.exists() or path.is_symlink():
        raise VoiceError(f"{show(path)} is there already; next: name another file with --out")
    if not path.absolute().parent.is_dir():
        raise VoiceError(f"{show(path.parent)}: found no such folder, expected one for the file of --out")


def own_model(meta: dict[str, Any]) -> str:
    """The model of a checkpoint, where it is the shipped one. Raises VoiceError."""
    from harness.lane.voice import VoiceError

    if meta.get("model_id") == SHIPPED_MODEL.name and SHIPPED_MODEL.is_dir():
        return str(SHIPPED_MODEL)
    raise VoiceError(f"the adapter was trained on {meta.get('model_id')}; next: name that model with --model=NAME")


def write_wav(path: Path, wave: Any, rate: int) -> None:
    """Write 16-bit samples, whole or not at all, and over nobody's file; what is louder than full scale is clipped.
    Raises OSError."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, wave.clip(-1.0, 1.0), rate, format="WAV", subtype="PCM_16")
    atomic_write(path, buffer.getvalue())
