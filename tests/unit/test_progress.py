"""A lane's output is shown as a few lines; what the voice lane says of the held-out loss is always among them."""

from __future__ import annotations

from harness.runs.progress import Progress


def shown(*lines: str) -> list[str]:
    said: list[str] = []
    progress = Progress(said.append)
    for line in lines:
        progress(line)
    return said


def test_a_step_with_a_held_out_loss_is_always_shown() -> None:
    steps = [f"PROGRESS {n} 800 LOSS 4.1 SMOOTHED 4.05" for n in range(2, 8)]
    measured = "PROGRESS 8 800 LOSS 4.2 SMOOTHED 4.0 HELD_OUT 4.0469 3.9921"
    found = shown("STEP train", *steps, measured)
    assert len(found) == 2
    for words in ("8/800", "loss 4.2", "smoothed 4.0", "held out 4.0469 → 3.9921"):
        assert words in found[1]


def test_a_line_that_is_cut_or_of_another_lane_is_shown_as_far_as_it_goes() -> None:
    found = shown("STEP train", "PROGRESS 1 2 LOSS", "PROGRESS 2 2 HELD_OUT 4.0", "PROGRESS 2 2")
    counts = [line.partition(" loss")[0] for line in found[1:]]
    assert counts == ["lane: train 1/2", "lane: train 2/2", "lane: train 2/2"]
    assert not any("→" in line for line in found)
