"""Speak ``narration.txt`` with espeak-ng and store it as the FLAC file that the lane trains on.

The result stands in for a recording of the user's own. It is mono, 16 bit, 32 kHz, and carries a faint room tone,
because no recording has digital silence in its pauses. ``speak`` is also what the training narrations of the shipped
model are made with.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DATA_DIR = Path(__file__).resolve().parent
TEXT_PATH = DATA_DIR / "narration.txt"
DEFAULT_OUTPUT = DATA_DIR / "knowledge_audio_source" / "auntie_dottie.flac"

SAMPLE_RATE = 32_000  # Hz; what MusicGen's codec takes
PEAK = 0.7  # of full scale
ROOM_TONE_DBFS = -72.0  # RMS of the white noise that stands for a quiet room
ROOM_TONE_SEED = 1932
VOICE, PITCH, WORDS_PER_MINUTE = "en-gb+aunty", 45, 165
# A cut below this is no stand-in for a recording: the lane's size gate asks for more than 5,000,000 bytes.
MIN_SECONDS, MIN_BYTES = 150.0, 5_000_000


class NarrationError(RuntimeError):
    """The narration cannot be made; the message says what to do."""


def espeak_path() -> str:
    """Path of the espeak-ng program, or NarrationError with the command that installs it."""
    found = shutil.which("espeak-ng")
    if found is None:
        raise NarrationError(
            "espeak-ng is not installed. Install it with: sudo apt-get install espeak-ng"
            " (macOS: brew install espeak-ng)"
        )
    return found


def espeak_version() -> str:
    """What ``espeak-ng --version`` says of itself, without the path of its data."""
    said = subprocess.run([espeak_path(), "--version"], check=True, capture_output=True, text=True).stdout
    return said.split("  Data at")[0].strip()


def speak(text: str, *, voice: str, pitch: int, words_per_minute: int) -> Any:
    """Speak a text and return it as float32 samples at 32 kHz, shape ``[samples]``, with a peak of 0.7.

    ``pitch`` is espeak-ng's own scale, 0 to 99.
    """
    import numpy as np
    import soundfile
    import torch
    from julius.resample import ResampleFrac

    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command = [espeak_path(), "-v", voice, "-p", str(pitch), "-s", str(words_per_minute), "-b", "1"]
        spoken = [*command, "-w", str(wav), "--stdin"]
        done = subprocess.run(spoken, input=text, text=True, capture_output=True, check=False)
        if done.returncode != 0 or not wav.exists():
            raise NarrationError(f"espeak-ng could not speak with voice {voice!r}: {done.stderr.strip()}")
        samples, rate = soundfile.read(wav, dtype="float32")
    if samples.ndim != 1 or len(samples) < rate:
        raise NarrationError(f"espeak-ng gave {samples.shape} samples at {rate} Hz with voice {voice!r}")
    # 48 zero crossings on each side: the transition band is narrow enough that nothing audible is lost.
    resampled = ResampleFrac(rate, SAMPLE_RATE, zeros=48)(torch.from_numpy(samples)).numpy()
    return (resampled * (PEAK / np.abs(resampled).max())).astype(np.float32)


def add_room_tone(samples: Any, *, dbfs: float, rng: Any) -> Any:
    """Add white noise of the given RMS level (dB relative to full scale) to float32 samples ``[samples]``."""
    noise = rng.standard_normal(len(samples), dtype="float32")
    return samples + noise * samples.dtype.type(10.0 ** (dbfs / 20.0))


def write_flac(path: Path, samples: Any) -> None:
    """Store float samples in [-1, 1], shape ``[samples]``, as 16-bit mono FLAC, by way of an atomic rename."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    soundfile.write(temporary, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16", compression_level=0.5)
    temporary.replace(path)


def readme(*, sha256: str, size: int, seconds: float, espeak: str) -> str:
    """The text of the README beside the narration; every number in it is measured."""
    return f"""# The narration

`auntie_dottie.flac` **stands in for your own recording of that name**. It is synthetic speech, there so that the
harness can train for real on a machine that has no recording. It is not a person's voice, and it says nothing about
how the lane does on one.

| | |
|---|---|
| what | a story in English, told by "Auntie Dottie" |
| format | FLAC, mono, 16 bit, {SAMPLE_RATE} Hz |
| duration | {seconds:.3f} s |
| size | {size} bytes |
| SHA-256 | `{sha256}` |
| text | [`../narration.txt`](../narration.txt), written for this project |
| voice | {espeak}, voice `{VOICE}`, pitch {PITCH}, {WORDS_PER_MINUTE} words a minute |
| after that | resampled to {SAMPLE_RATE} Hz by julius, peak {PEAK} of full scale, room tone of {ROOM_TONE_DBFS} dBFS |
| licence | MIT, text and sound. espeak-ng is GPL-3.0; its licence covers the program, not the speech it gives out |

The room tone is white noise, far below the speech. A recording never has digital silence in its pauses, so this one
has none either. FLAC cannot compress noise: without it the file would be more than a quarter smaller.

## Your own recording

Either replace `auntie_dottie.flac` by your file of that name, or leave it and set

```
AUDIO_PATH=/path/to/your_recording.flac KNOWLEDGE_SOURCE_DIR=/path/to
```

`AUDIO_PATH` is the file that must be there; `KNOWLEDGE_SOURCE_DIR` is the folder whose `.wav`, `.mp3`, `.flac` and
`.ogg` files are prepared. Recorded baselines hold for the shipped narration: with other data they are reported as
`incomparable`, and you record your own.

## Making it again

```
python data/make_narration.py --force
```

It needs espeak-ng (`sudo apt-get install espeak-ng`), and writes the FLAC, this file and `../DIGESTS.json`. Another
release of espeak-ng, libFLAC or NumPy may give other bits; the digest above is of the file that is shipped.
"""


def main(arguments: list[str] | None = None) -> int:
    """Make the narration; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="FLAC to write (default: the shipped one)")
    parser.add_argument("--force", action="store_true", help="overwrite the file if it is there")
    options = parser.parse_args(arguments)
    if options.output.exists() and not options.force:
        print(f"{options.output} is there already; give --force to overwrite it", file=sys.stderr)
        return 1
    try:
        text = TEXT_PATH.read_text(encoding="utf-8")
        samples = speak(text, voice=VOICE, pitch=PITCH, words_per_minute=WORDS_PER_MINUTE)
        espeak = espeak_version()
    except NarrationError as error:
        print(f"make_narration: {error}", file=sys.stderr)
        return 1

    import numpy as np

    samples = add_room_tone(samples, dbfs=ROOM_TONE_DBFS, rng=np.random.default_rng(ROOM_TONE_SEED))
    seconds = len(samples) / SAMPLE_RATE
    write_flac(options.output, samples)
    size = options.output.stat().st_size
    print(f"{options.output}: {seconds:.1f} s, {size:,} bytes")
    if options.output.resolve() == DEFAULT_OUTPUT:
        sys.path.insert(0, str(DATA_DIR.parent))  # this file is run as a script
        from data.digests import file_sha256, record, write_text_atomically

        record(options.output)
        sha256 = file_sha256(options.output)
        about = readme(sha256=sha256, size=size, seconds=seconds, espeak=espeak)
        write_text_atomically(options.output.parent / "README.md", about)
    if seconds < MIN_SECONDS or size <= MIN_BYTES:
        print(f"too short: at least {MIN_SECONDS} s and more than {MIN_BYTES:,} bytes are needed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
