"""The faults of the campaign: mistakes that people make in training code, each as a small change of the lane's files.

Each names the gate that must notice it, and words that must stand in that gate's message: a gate that is red for
another reason has not caught the fault. Phases in those words ("step 1 of 24, phase optimizer") hold the harness to
its promise that a failure says where the run parts from the recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proof.copies import Edit

LANE = "harness/lane/"
FAMILIES = {
    "data": "which audio, and what becomes of it before the codec",
    "order": "which chunks are trained on, and when",
    "objective": "what the loss is computed from",
    "adapter": "what the adapter computes, and what is trained",
    "optimizer": "how gradients become an update",
    "model": "the frozen model and its precision",
    "held out": "what is never trained on, and what is measured on it",
    "checkpoint": "what is written of the result",
    "report": "what the run says of itself",
    "ranks": "what several processes do that train together",
}

# The gates, by the names of their tests.
TOKENS = "tokens_are_the_codecs_own_of_the_audio"
FIRST_LOSS = "first_loss_is_the_models_own_on_the_audio"
CHUNKS = "every_chunk_is_trained_on_and_in_whole_batches"
SAME_DATA = "dataset_digest_is_the_recorded_one"
SAME_TOKENS = "tokens_digest_is_the_recorded_one"
SAME_LOSS = "loss_curve_is_the_recorded_one"
SAME_CHECKPOINT = "checkpoint_digest_is_the_recorded_one"
CAUSAL = "adapter_is_causal"
MOVED = "every_adapter_tensor_moved"
ENDED_WITH = "checkpoint_is_what_training_ended_with"
GIVES_LOSS = "checkpoint_gives_the_loss_that_training_ended_with"
COMPLETED = "objective_status_is_completed"
CUT = "chunks_are_cut_as_the_recipe_says"
USED = "each_chunk_is_used_as_the_recipe_says"
BEGIN = "adapters_begin_as_the_recipe_says"
RATE = "learning_rate_of_each_step_is_the_recipes"
FIRST_STEPS = "first_two_steps_are_the_recipes"
LAST_STEP = "last_step_is_the_recipes"
BELONGS = "last_step_belongs_to_the_run"
WHOLE = "whole_training_is_the_recipes"
ALIKE = "all_ranks_hold_the_same_parameters"
EVERY_RECORDING = "every_recording_is_in_the_data_set"
# What the verdict's likely cause must say of a fault that the recording sees, by the words for it: the right part of
# the lane, and no other.
CAUSES = {
    "how it is cut into chunks": "stride wrong; one chunk twice; end of file dropped; order of the listing; "
    "quiet chunks dropped; tail padded; one sample late",
    "resampling": "resampling skipped; resampled without a low-pass; stereo summed; one channel dropped; "
    "audio clipped; gain by chunk",
    "the codec": "random codes",
    "other data": "a file left out; wrong file staged; wrong file, and the manifest agrees",
    "other settings": "seed truncated; setting not used",
    "the drawing of batches": "not shuffled; one chunk repeated; last batch dropped; order by hostname; order by path; "
    "the same order in each epoch; order lost when it goes on",
    "draws without a seed": "unseeded shuffle; order by hash; unseeded initialisation; seed of zero is none",
    "its condition or the objective": "targets shifted; mask ignored; loss over NaN; mean over all positions; "
    "clamp at 3; one codebook ignored; summed over codebooks; label smoothing; condition text dropped",
    "something that depends on the step": "always the first batch; condition dropped at some steps; "
    "conditions changed in place; token masking left on",
    "the adapters' forward function": "one token ahead; mean over time; adapter one token late; adapters scaled; "
    "adapter in float32; attached twice; attached with a scale of zero; blocks in reverse order; dropout left on",
    "backward pass": "backward over other counts; gradient of half of the batch; loss scaled; input detached; "
    "zero_grad missing; gradients of two steps; gradients of the step before",
    "their initialisation": "fresh adapters of another seed; other initial scales; drawn in another order; "
    "not the identity at the start",
    "the update": "learning rate x 2; learning rate x 1.01; scheduler off by one; no warm-up; schedule not applied; "
    "weight decay dropped; betas swapped; epsilon of 1e-8; Adam for AdamW; wrong parameters; gradients clipped; "
    "last update skipped; decay on some tensors; gradient one step old; epsilon inside the root; no bias correction; "
    "decay after the update; steps counted from one; schedule after the step; a rate that the trace does not see; "
    "rate by the clock; rate by the number of files; a spike skipped; a lost parameter group; one tensor frozen; "
    "moments lost when it goes on; schedule lost when it goes on",
    "an average of several": "an average saved",
}
RECORDED = (SAME_DATA, SAME_TOKENS, SAME_LOSS, SAME_CHECKPOINT)  # the gates that compare with a recording


@dataclass(frozen=True)
class Fault:
    """One mistake. ``gate`` must fail, with ``says`` in its message; ``gate32`` and ``says32`` in float32, if others.

    ``data``: the data set it is run on (see recordings.py). ``before``: a data set that an earlier run in the same run
    directory was made of. ``trains``: the gates' own session runs the lane, and runs it again when it is red, which
    takes longer and is needed to tell chance from change. ``settings``: of the run, beside the data set's.
    ``resumes``: the run is killed after half of its steps, and goes on. ``alone`` and ``alone_says``: the gate that
    needs no recording, and its words, where ``gate`` is one that compares with a recording; ``missed``: why there is
    none. ``float64_alone``: in float32 it is what the lane does anyway.
    """

    name: str
    what: str
    family: str
    edits: tuple[Edit, ...]
    gate: str
    says: str
    gate32: str = ""
    says32: str = ""
    data: str = "shipped"
    before: str = ""
    trains: bool = False
    settings: tuple[tuple[str, str], ...] = ()
    resumes: bool = False
    alone: str = ""
    alone_says: str = ""
    missed: str = ""
    float64_alone: bool = False

    def expected_alone(self) -> tuple[str, str]:
        """The gate that must fail where nothing is recorded, and its words; two empty texts where none does."""
        if self.alone or self.missed:
            return self.alone, self.alone_says
        return (self.gate, self.says) if self.gate not in RECORDED else ("", "")

    def expected(self, column: str) -> tuple[str, str]:
        """The gate that must fail in a column (`universal` or `float32`), and what its message must hold."""
        if column != "float32":
            return self.gate, self.says
        # Within a tolerance, a difference may come to light later than where it began.
        says = "beyond the tolerance" if "phase" in self.says else self.says
        return self.gate32 or self.gate, self.says32 or says


def cause_of(fault: Fault) -> str:
    """The words that the verdict's likely cause must hold; empty where none is laid down."""
    return next((words for words, names in CAUSES.items() if fault.name in names.split("; ")), "")


def lane(file: str, old: str, new: str) -> Edit:
    """A change of one of the lane's files."""
    return Edit(f"{LANE}{file}", old, new)


def faults() -> list[Fault]:
    """Every fault, family by family."""
    found = [
        *_data(),
        *_order(),
        *_objective(),
        *_adapter(),
        *_optimizer(),
        *_model(),
        *_held_out(),
        *_checkpoint(),
        *_report(),
        *_ranks(),
    ]
    names = [fault.name for fault in found]
    assert len(set(names)) == len(names), "two faults of one name"
    assert {fault.family for fault in found} == set(FAMILIES)
    return found


def one_of_each_family() -> list[Fault]:
    """The first fault of each family: the short form."""
    return [next(fault for fault in faults() if fault.family == family) for family in FAMILIES]


ENCODE = "codec.encode(wave.expand(-1, codec.channels, -1))[0]"
MONO = "block.mean(axis=1)"
CODED = "return TokenSet(torch.cat(codes), sources, chunk)"
LIST_SORTED = "return sorted(found, key=os.fsencode)"
ENTRIES_SORTED = 'entries.sort(key=lambda entry: (entry["sha256"], entry["target"]))'
REAL = 'digest = entry["sha256"][:12]'
ENTRY = "needs_av = kind_of(source) in NEED_AV"


def _data() -> Iterator[Fault]:
    yield Fault(
        "random codes", "random codes in place of the audio's", "data",
        (lane("tokens.py", ENCODE, "torch.randint(0, 256, (1, 4, wave.shape[-1] // hop), "
                                   "generator=torch.Generator().manual_seed(source[1]))"),),
        TOKENS, "are not the codec's tokens of the audio",
    )  # fmt: skip
    yield Fault(
        "resampling skipped", "samples at 44.1 kHz are taken for samples at the model's rate", "data",
        (
            lane("tokens.py", "resampler = Resampler(stream.sample_rate, sample_rate)",
                 "resampler = Resampler(sample_rate, sample_rate)"),
            lane("tokens.py", 'Resampler(entry["sample_rate"], rate).output_length',
                 "Resampler(rate, rate).output_length"),
        ),
        TOKENS, "are not the codec's tokens of the audio", data="mixed",
    )  # fmt: skip
    yield Fault(
        "resampled without a low-pass", "what lies above the model's highest frequency is folded into what is below",
        "data",
        (lane("resample.py", "self._cutoff = min(self.old, self.new) * ROLLOFF", "self._cutoff = self.old * ROLLOFF"),),
        TOKENS, "are not the codec's tokens of the audio", data="mixed",
    )  # fmt: skip
    yield Fault(
        "stereo summed", "the channels of a stereo file are summed, not averaged", "data",
        (lane("tokens.py", MONO, "block.sum(axis=1)"),),
        TOKENS, "are not the codec's tokens of the audio", data="mixed",
    )  # fmt: skip
    yield Fault(
        "one channel dropped", "of a stereo file only the left channel is used", "data",
        (lane("tokens.py", MONO, "block[:, 0]"),),
        TOKENS, "are not the codec's tokens of the audio", data="mixed",
    )  # fmt: skip
    yield Fault(
        "audio clipped", "a gain of 4 before a clip at full scale", "data",
        (lane("tokens.py", MONO, "np.clip(4 * block.mean(axis=1), -1, 1)"),),
        TOKENS, "are not the codec's tokens of the audio",
    )  # fmt: skip
    yield Fault(
        "wrong file staged", "the file to stage is found again by the first letters of its name", "data",
        (lane("dataset.py", REAL, f"{REAL}\n    real = next(p for p in sorted(real.parent.iterdir()) "
                                  "if p.name[:4] == real.name[:4])"),),
        "manifest_lists_what_is_on_disk", "as the manifest says", data="mixed",
    )  # fmt: skip
    yield Fault(
        "wrong file, and the manifest agrees", "the same, before the file's digest is taken", "data",
        (lane("dataset.py", ENTRY, "source = next(p for p in sorted(source.parent.iterdir()) "
                                   f"if p.name[:4] == source.name[:4])\n        {ENTRY}"),),
        "every_recording_is_in_the_data_set", "is not in the manifest", data="mixed",
    )  # fmt: skip
    yield Fault(
        "a file left out", "the first file of the folder is forgotten", "data",
        (lane("dataset.py", LIST_SORTED, f"{LIST_SORTED}[1:]"),),
        SAME_DATA, "no recording has this run's data", data="mixed",
        alone=EVERY_RECORDING, alone_says="is not in the manifest",
    )  # fmt: skip
    yield Fault(
        "bad file swallowed", "an unreadable file is left out without a word: the exception is swallowed", "data",
        (
            lane("dataset.py", "if not settings.skip_bad_files:", "if False:"),
            lane("dataset.py", "skipped.append(error.cause)", "pass"),
        ),
        "every_recording_is_in_the_data_set", "is not in the manifest", data="broken",
    )  # fmt: skip
    yield Fault(
        "stale tokens", "tokens come from a cache that was made from another recording", "data",
        (lane("tokens.py", CODED,
              'cache = settings.run_dir / "tokens-cache.npy"\n    if cache.exists():\n'
              "        codes = [torch.from_numpy(np.load(cache))]\n"
              f"    np.save(cache, torch.cat(codes).numpy())\n    {CODED}"),),
        TOKENS, "are not the codec's tokens of the audio", data="mixed", before="older",
    )  # fmt: skip
    yield Fault(
        "stride wrong", "chunks overlap by half", "data",
        (lane("tokens.py", "round(settings.stride_seconds * rate)", "round(settings.stride_seconds * rate / 2)"),),
        SAME_TOKENS, "phase tokens",
        alone=CUT, alone_says="by manifest and settings it is",
    )  # fmt: skip
    yield Fault(
        "one chunk twice", "the first chunk of a file is cut out twice", "data",
        (lane("tokens.py", "starts = list(range(0, total - chunk + 1, stride))",
              "starts = [0, *range(0, total - chunk + 1, stride)]"),),
        SAME_TOKENS, "phase tokens",
        alone=CUT, alone_says="by manifest and settings it is",
    )  # fmt: skip
    yield Fault(
        "end of file dropped", "what is left after the last whole chunk of a file is not used", "data",
        (lane("tokens.py", "if starts[-1] + chunk < total:", "if False:"),),
        SAME_TOKENS, "phase tokens",
        alone=CUT, alone_says="by manifest and settings it is",
    )  # fmt: skip
    yield Fault(
        "order of the listing", "files are taken in the order in which the file system lists them", "data",
        (lane("dataset.py", LIST_SORTED, "return found"), lane("dataset.py", ENTRIES_SORTED, "pass")),
        SAME_TOKENS, "phase tokens", data="mixed",
        alone=CUT, alone_says="by manifest and settings it is",
    )  # fmt: skip
    yield Fault(
        "one sample late", "each chunk is cut out one sample late", "data",
        (lane("tokens.py", "piece, low, start, chunk)", "piece, low - 1, start, chunk)"),),
        TOKENS, "are not the codec's tokens of the audio",
    )  # fmt: skip
    yield Fault(
        "gain by chunk", "each chunk is brought to full scale", "data",
        (lane("tokens.py", "wave = torch.from_numpy(samples)[None, None]",
              "wave = torch.from_numpy(samples / abs(samples).max())[None, None]"),),
        TOKENS, "are not the codec's tokens of the audio",
    )  # fmt: skip
    yield Fault(
        "quiet chunks dropped", "chunks with little sound in them are left out", "data",
        (
            lane("tokens.py", 'yield entry["sha256"], start, samples',
                 'if samples.std() > 0.053:\n                    yield entry["sha256"], start, samples'),
            lane("tokens.py", "at_once if len(codes) + len(encoding) < len(mine) else 0", "0"),
        ),
        SAME_TOKENS, "phase tokens",
        alone=CUT, alone_says="by manifest and settings it is",
    )  # fmt: skip
    yield Fault(
        "tail padded", "the last chunk of a file begins where the one before ends, and is filled with what is at the "
        "end", "data",
        (lane("tokens.py", "starts.append(total - chunk)", "starts.append(starts[-1] + stride)"),),
        SAME_TOKENS, "phase tokens",
        alone=CUT, alone_says="by manifest and settings it is",
    )  # fmt: skip


PERMUTED = "waiting += [chunks[index] for index in draws.permutation(len(chunks))]"
ORDER = 'draws = Draws(settings.seed, "order")'


def _order() -> Iterator[Fault]:
    yield Fault(
        "one chunk repeated", "chunks are drawn with replacement", "order",
        (lane("trainer.py", PERMUTED,
              "waiting += [chunks[int(v * len(chunks))] for v in draws.uniform((len(chunks),), 0.5) + 0.5]"),),
        CHUNKS, "left out or repeated",
    )  # fmt: skip
    yield Fault(
        "unseeded shuffle", "the order of chunks comes from the operating system", "order",
        (lane("trainer.py", ORDER, 'import os\n\n    draws = Draws(int.from_bytes(os.urandom(7), "big"), "order")'),),
        SAME_LOSS, "nondeterministic", trains=True,
        alone=USED, alone_says="the first batch is another one",
    )  # fmt: skip
    yield Fault(
        "order by hash", "the order of chunks depends on Python's hash seed", "order",
        (lane("trainer.py", PERMUTED, "waiting += sorted(chunks, key=lambda i: hash(str(i)))"),),
        SAME_LOSS, "nondeterministic", trains=True,
        alone=USED, alone_says="the first batch is another one",
    )  # fmt: skip
    yield Fault(
        "not shuffled", "chunks come in the order of the files", "order",
        (lane("trainer.py", PERMUTED, "waiting += chunks"),),
        SAME_LOSS, "step 1 of 24, phase data",
        alone=USED, alone_says="the first batch is another one",
    )  # fmt: skip
    yield Fault(
        "last batch dropped", "what is left of an epoch and fills no batch is thrown away", "order",
        (lane("trainer.py", PERMUTED, "waiting = [chunks[index] for index in draws.permutation(len(chunks))]"),),
        CHUNKS, "repeat",
    )  # fmt: skip
    yield Fault(
        "smaller last batch", "the last batch of an epoch is what is left", "order",
        (lane("trainer.py", "while len(waiting) < settings.batch:", "if not waiting:"),),
        CHUNKS, "a whole batch",
    )  # fmt: skip
    yield Fault(
        "always the first batch", "every step trains on the first batch, and the trace says otherwise", "order",
        (lane("trainer.py", "codes = tokens.codes[chunks].to(device)\n\n", "codes = first_codes\n\n"),),
        SAME_LOSS, "step 2 of 24, phase forward",
        alone=FIRST_STEPS, alone_says="at step 2 the loss of codebook",
    )  # fmt: skip
    yield Fault(
        "the same order in each epoch", "every epoch has the first one's order", "order",
        (lane("trainer.py", PERMUTED,
              'waiting += [chunks[i] for i in Draws(settings.seed, "order").permutation(len(chunks))]'),),
        SAME_LOSS, "phase data",
        alone=USED, alone_says="takes the chunks",
    )  # fmt: skip
    yield Fault(
        "order by hostname", "the machine's name is mixed into the seed of the order", "order",
        (lane("trainer.py", ORDER,
              'import socket\n\n    draws = Draws(settings.seed + len(socket.gethostname()), "order")'),),
        SAME_LOSS, "step 1 of 24, phase data",
        alone=USED, alone_says="the first batch is another one",
    )  # fmt: skip
    yield Fault(
        "order by path", "the length of the run directory's path is mixed into the seed of the order", "order",
        (lane("trainer.py", ORDER, 'draws = Draws(settings.seed + len(str(settings.run_dir)), "order")'),),
        SAME_LOSS, "step 1 of 24, phase data",
        alone=USED, alone_says="the first batch is another one",
    )  # fmt: skip
    yield Fault(
        "order lost when it goes on", "a run that goes on begins the order of chunks anew", "order",
        (lane("trainer.py", "        for _ in range(done):\n            chunks = next(order)\n", ""),),
        SAME_LOSS, "step 13 of 24, phase data", resumes=True,
        alone=USED, alone_says="step 13 takes the chunks",
    )  # fmt: skip


TARGETS = "targets = torch.where(mask, codes, -100)"
SANITIZED = "clean, replaced = sanitize(logits, mask)"
MEAN = "return Loss(by_codebook.mean(), "
BY_VALID = "by_codebook = sums / valid"


def _objective() -> Iterator[Fault]:
    yield Fault(
        "targets shifted", "targets are shifted by one, where logits are already aligned", "objective",
        (lane("objective.py", TARGETS, "targets = torch.where(mask, codes.roll(-1, dims=2), -100)"),),
        FIRST_LOSS, "the model's own is",
    )  # fmt: skip
    yield Fault(
        "mask ignored", "invalid positions count, with logits of zero", "objective",
        (lane("objective.py", TARGETS, "targets = codes"),),
        FIRST_LOSS, "the model's own is",
    )  # fmt: skip
    yield Fault(
        "loss over NaN", "NaN-filled positions are made zero by nan_to_num, and count", "objective",
        (
            lane("objective.py", SANITIZED,
                 "clean, replaced = torch.nan_to_num(logits), torch.zeros((), dtype=torch.int64)"),
            lane("objective.py", TARGETS, "targets = codes"),
            lane("objective.py", "valid = mask.sum(dim=(0, 2))", "valid = torch.ones_like(mask).sum(dim=(0, 2))"),
        ),
        FIRST_LOSS, "the model's own is",
    )  # fmt: skip
    yield Fault(
        "mean over all positions", "the sum over valid positions is divided by the number of all positions",
        "objective",
        (lane("objective.py", BY_VALID, "by_codebook = sums / (codes.shape[0] * codes.shape[2])"),),
        FIRST_LOSS, "the model's own is",
    )  # fmt: skip
    yield Fault(
        "sanitizer hides everything", "replaced logits are not counted", "objective",
        (lane("objective.py", "replaced = (valid &", "replaced = 0 * (valid &"),),
        "sanitizer_counts_what_it_hides", "counted 0",
    )  # fmt: skip
    yield Fault(
        "clamp at 3", "logits are clamped to ±3", "objective",
        (lane("objective.py", "CPU_CLAMP = 30.0", "CPU_CLAMP = 3.0"),),
        FIRST_LOSS, "the model's own is",
    )  # fmt: skip
    yield Fault(
        "one codebook ignored", "the last codebook does not count in the loss", "objective",
        (lane("objective.py", MEAN, "return Loss(by_codebook[:-1].mean(), "),),
        FIRST_LOSS, "the mean over the codebooks is",
    )  # fmt: skip
    yield Fault(
        "summed over codebooks", "the loss is the sum over codebooks, not the mean", "objective",
        (lane("objective.py", MEAN, "return Loss(by_codebook.sum(), "),),
        FIRST_LOSS, "the mean over the codebooks is",
    )  # fmt: skip
    yield Fault(
        "loss scaled", "the loss is scaled by 1/4 before the backward pass, as if batches were accumulated",
        "objective",
        (lane("trainer.py", "(loss.total * scale).backward()", "(loss.total / 4).backward()"),),
        SAME_LOSS, "step 1 of 24, phase backward",
        alone=FIRST_STEPS, alone_says="at step 1 the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "label smoothing", "a smoothing of 0.1 is left over from an experiment", "objective",
        (lane("objective.py", 'reduction="none"', 'reduction="none", label_smoothing=0.1'),),
        FIRST_LOSS, "the model's own is",
    )  # fmt: skip
    yield Fault(
        "condition text dropped", "the model is conditioned on an empty text", "objective",
        (lane("trainer.py", "condition_tensors(model, settings.description,", 'condition_tensors(model, "",'),),
        FIRST_LOSS, "the model's own is",
    )  # fmt: skip
    yield Fault(
        "backward over other counts", "the loss that is reported is right, and the one that is trained on is divided "
        "by all positions", "objective",
        (lane("trainer.py", "(loss.total * scale).backward()",
              "((loss.by_codebook * loss.valid).mean() / codes[:, 0].numel() * scale).backward()"),),
        SAME_LOSS, "step 1 of 24, phase backward",
        alone=FIRST_STEPS, alone_says="at step 1 the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "gradient of half of the batch", "the gradient is that of the batch's first half", "objective",
        (lane("trainer.py", "(loss.total * scale).backward()",
              "(loss_of(codes[: len(codes) // 2]).total * scale).backward()"),),
        SAME_LOSS, "step 1 of 24, phase backward",
        alone=FIRST_STEPS, alone_says="at step 1 the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "condition dropped at some steps", "every tenth step has an empty text for its condition", "objective",
        (lane("trainer.py", "compute_predictions(codes, [], conditions(len(codes)))",
              'compute_predictions(\n            codes, [], conditions(len(codes)) if step % 10 != 9 else '
              'condition_tensors(model, "", len(codes))\n        )'),),
        SAME_LOSS, "step 9 of 24, phase forward",
        alone=WHOLE, alone_says="at step 9 the loss of codebook",
    )  # fmt: skip
    yield Fault(
        "conditions changed in place", "the condition's tensors are kept, and made a little larger at each step",
        "objective",
        (lane("trainer.py", UPDATE,
              f"{UPDATE}        for condition, _ in conditions(len(codes)).values():\n"
              "            condition.mul_(1.01)\n"),),
        SAME_LOSS, "step 2 of 24, phase forward",
        alone=FIRST_STEPS, alone_says="at step 2 the loss of codebook",
    )  # fmt: skip
    yield Fault(
        "token masking left on", "a tenth of the tokens is replaced, from the third step on", "objective",
        (lane("trainer.py", "loss = loss_of(codes)\n        loss_value",
              "if step > 2:\n            codes[:, :, step % 10 :: 10] = 0\n        loss = loss_of(codes)\n"
              "        loss_value"),),
        SAME_LOSS, "step 3 of 24, phase forward",
        alone=LAST_STEP, alone_says="at step 24 the loss of codebook",
    )  # fmt: skip
    yield Fault(
        "setting not used", "the description is read and not used", "objective",
        (lane("trainer.py", "condition_tensors(model, settings.description,",
              'condition_tensors(model, "a narration by Auntie Dottie",'),),
        FIRST_LOSS, "the model's own is", settings=(("LANE_DESCRIPTION", "a calm voice reads"),),
    )  # fmt: skip


ATTACH = "hooks = [attach(model.lm, adapters, watch), *give_back_on_the_way(model.lm.transformer, find_trim())]"
ADDED = "added: Tensor = adapter(given[0])"
FREEZE = "module.requires_grad_(False)"
NOT_CAUSAL = "moves logits before it"


def _adapter() -> Iterator[Fault]:
    yield Fault(
        "one token ahead", "the adapters' output is that of the next position", "adapter",
        (lane("adapter.py", ADDED, f"{ADDED}.roll(-1, dims=1)"),),
        CAUSAL, NOT_CAUSAL,
    )  # fmt: skip
    yield Fault(
        "mean over time", "the adapters see the mean over all positions beside their own", "adapter",
        (lane("adapter.py", ADDED, "added: Tensor = adapter(given[0] + given[0].mean(dim=1, keepdim=True))"),),
        CAUSAL, NOT_CAUSAL,
    )  # fmt: skip
    yield Fault(
        "not the identity at the start", "the second factor starts with random values in place of zero", "adapter",
        (lane("adapter.py", "torch.zeros(outputs, RANK, dtype=torch.float64)",
              "torch.from_numpy(draws.uniform((outputs, RANK), 0.01))"),),
        "fresh_adapters_are_the_identity", "change the model's logits",
    )  # fmt: skip
    yield Fault(
        "not attached", "the adapters are taken off again, and the base model is not frozen", "adapter",
        (lane("trainer.py", ATTACH, f"{ATTACH}\n    hooks[0].remove()"), lane("model.py", FREEZE, "")),
        COMPLETED, "has no gradient",
    )  # fmt: skip
    yield Fault(
        "attached with a scale of zero", "the adapters' output is multiplied by zero", "adapter",
        (lane("adapter.py", "return output + added.to(output.dtype)", "return output + 0.0 * added.to(output.dtype)"),),
        "loss_falls", "fell by 0.0000",
    )  # fmt: skip
    yield Fault(
        "attached twice", "the hooks are registered twice: each adapter is applied two times", "adapter",
        (lane("trainer.py", ATTACH, f"attach(model.lm, adapters, watch)\n    {ATTACH}"),),
        GIVES_LOSS, "the lane says",
    )  # fmt: skip
    yield Fault(
        "one layer of three attached", "only the first layer's adapters are applied", "adapter",
        (lane("adapter.py", "zip(lm.transformer.layers, adapters, strict=True)",
              "zip(lm.transformer.layers, adapters[:1])"),),
        COMPLETED, "1.linear1.down has no gradient",
    )  # fmt: skip
    yield Fault(
        "first factor detached", "the first factor is detached from the graph", "adapter",
        (lane("adapter.py", "@ self.down.T @", "@ self.down.T.detach() @"),),
        COMPLETED, "0.linear1.down has no gradient",
    )  # fmt: skip
    yield Fault(
        "input detached", "the adapters' input is detached: no gradient through one layer's adapter to those before",
        "adapter",
        (lane("adapter.py", ADDED, "added: Tensor = adapter(given[0].detach())"),),
        SAME_CHECKPOINT, "phase backward",
        alone=FIRST_STEPS, alone_says="the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "dropout left on", "the adapter has a dropout that no evaluation turns off", "adapter",
        (lane("adapter.py", ADDED, "added: Tensor = adapter(nn.functional.dropout(given[0], 0.1))"),),
        FIRST_STEPS, "at step 1 the gradient norm of",  # at the end by chance alone: it draws
    )  # fmt: skip
    yield Fault(
        "one tensor frozen", "the optimizer is not given one of the adapters' tensors", "adapter",
        (lane("trainer.py", UPDATE, f'        parameters["1.linear2.down"].grad = None\n{UPDATE}'),),
        MOVED, "1.linear2.down",
    )  # fmt: skip
    yield Fault(
        "fresh adapters of another seed", "the seed of the adapters' initialisation is a constant", "adapter",
        (lane("recipe.py", "make_adapters(model.lm, settings.seed,", "make_adapters(model.lm, 1234,"),),
        SAME_CHECKPOINT, "phase start",
        alone=BEGIN, alone_says="begins with norm",
    )  # fmt: skip
    yield Fault(
        "unseeded initialisation", "the adapters' initial values come from the operating system", "adapter",
        (lane("adapter.py", 'draws = Draws(seed, "adapter")',
              'import os\n\n    draws = Draws(int.from_bytes(os.urandom(7), "big"), "adapter")'),),
        SAME_CHECKPOINT, "nondeterministic", trains=True,
        alone=BEGIN, alone_says="begins with norm",
    )  # fmt: skip
    yield Fault(
        "adapter one token late", "the adapters' output is that of the position before", "adapter",
        (lane("adapter.py", ADDED, f"{ADDED}.roll(1, dims=1)"),),
        SAME_LOSS, "step 1 of 24, phase backward",
        alone=FIRST_STEPS, alone_says="at step 1 the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "adapters scaled", "the adapters' output is doubled, as a scale of 16 over a rank of 8 would", "adapter",
        (lane("adapter.py", "output + added.to(output.dtype)", "output + 2.0 * added.to(output.dtype)"),),
        SAME_LOSS, "step 1 of 24, phase backward",
        alone=FIRST_STEPS, alone_says="at step 1 the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "adapter in float32", "one product of the adapter is computed in float32", "adapter",
        (lane("adapter.py", "return x.to(self.down.dtype) @ self.down.T @ self.up.T",
              "return (x.float() @ self.down.T.float()).to(self.up.dtype) @ self.up.T"),),
        SAME_CHECKPOINT, "phase backward",
        alone=FIRST_STEPS, alone_says="at step 1 the gradient norm of",
        float64_alone=True,
    )  # fmt: skip
    yield Fault(
        "blocks in reverse order", "the first block has the last one's adapters", "adapter",
        (lane("adapter.py", "zip(lm.transformer.layers, adapters, strict=True)",
              "zip(lm.transformer.layers, reversed(adapters), strict=True)"),),
        SAME_LOSS, "step 1 of 24, phase backward",
        alone=FIRST_STEPS, alone_says="at step 1 the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "other initial scales", "the first factor begins twice as large", "adapter",
        (lane("adapter.py", "(RANK, inputs), inputs**-0.5", "(RANK, inputs), 2 * inputs**-0.5"),),
        SAME_CHECKPOINT, "phase start",
        alone=BEGIN, alone_says="begins with norm",
    )  # fmt: skip
    yield Fault(
        "drawn in another order", "the second layer of each block is drawn before the first", "adapter",
        (lane("adapter.py", "for name in LINEARS})\n        for layer",
              "for name in LINEARS[::-1]})\n        for layer"),),
        SAME_CHECKPOINT, "phase start",
        alone=BEGIN, alone_says="begins with norm",
    )  # fmt: skip
    yield Fault(
        "seed truncated", "only the seed's last byte is used", "adapter",
        (lane("adapter.py", 'draws = Draws(seed, "adapter")', 'draws = Draws(seed & 255, "adapter")'),),
        BEGIN, "begins with norm", settings=(("LANE_SEED", "1000"),),
    )  # fmt: skip
    yield Fault(
        "seed of zero is none", "the seed is used where it is not 0", "adapter",
        (lane("adapter.py", 'draws = Draws(seed, "adapter")',
              'import time\n\n    draws = Draws(seed or time.time_ns() % 2**62, "adapter")'),),
        SAME_CHECKPOINT, "nondeterministic", trains=True,
        alone=BEGIN, alone_says="begins with norm",
    )  # fmt: skip


SET_RATE = "optimizer.lr = learning_rate(settings, step)"
UPDATE = "        optimizer.step()\n"
UPDATED = "step 1 of 24, phase optimizer"

OWN_ADAMW = """
def adamw(parameters, gradients, first, second, _, steps, *, beta1, beta2, lr, weight_decay, eps, **__):
    for p, g, m, v, s in zip(parameters, gradients, first, second, steps, strict=True):
        s += 1
        p.mul_(1 - lr * weight_decay)
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        {update}
"""
IMPORTED = "from torch.optim.adamw import adamw"


def own_adamw(update: str) -> tuple[Edit, ...]:
    """The update by formulas of its own, whose last line is the given one."""
    return (lane("optimizer.py", IMPORTED, OWN_ADAMW.replace("{update}", update)),)


def _optimizer() -> Iterator[Fault]:
    def rate(name: str, what: str, new: str) -> Fault:
        edits = (lane("trainer.py", SET_RATE, f"optimizer.lr = {new}"),)
        return Fault(
            name, what, "optimizer", edits, SAME_CHECKPOINT, UPDATED, alone=RATE, alone_says="has the learning rate"
        )

    yield rate("learning rate x 2", "the learning rate is doubled", "2 * learning_rate(settings, step)")
    yield rate("learning rate x 1.01", "the learning rate is 1 % higher", "1.01 * learning_rate(settings, step)")
    yield rate("scheduler off by one", "the schedule counts steps from 0", "learning_rate(settings, step - 1)")
    yield rate("no warm-up", "the learning rate begins at its peak", "learning_rate(settings, max(step, 3))")
    yield Fault(
        "schedule not applied", "the scheduler is never called", "optimizer",
        (lane("trainer.py", SET_RATE, "pass"),), SAME_CHECKPOINT, UPDATED,
        alone=RATE, alone_says="has the learning rate",
    )  # fmt: skip
    yield Fault(
        "zero_grad missing", "gradients add up from step to step", "optimizer",
        (lane("trainer.py", "optimizer.zero_grad()", "pass"),), SAME_LOSS, "step 2 of 24, phase backward",
        alone=FIRST_STEPS, alone_says="at step 2 the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "weight decay dropped", "the weight decay is not handed on", "optimizer",
        (lane("trainer.py", "weight_decay=settings.weight_decay,", "weight_decay=0.0,"),), SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "betas swapped", "AdamW's betas are swapped", "optimizer",
        (lane("trainer.py", "BETAS = (0.9, 0.999)", "BETAS = (0.999, 0.9)"),), SAME_LOSS, "phase optimizer",
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "epsilon of 1e-8", "AdamW's epsilon is torch's own", "optimizer",
        (lane("trainer.py", "EPSILON = 1e-6", "EPSILON = 1e-8"),), SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "Adam for AdamW", "weight decay goes through the gradient's moments", "optimizer",
        (lane("optimizer.py", "from torch.optim.adamw import adamw", "from torch.optim.adam import adam as adamw"),),
        SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "wrong parameters", "the optimizer is given copies of the adapters' parameters", "optimizer",
        (lane("trainer.py", "parameters.values(),\n",
              "[nn.Parameter(p.detach().clone()) for p in parameters.values()],\n"),),
        MOVED, "not moved by the training",
    )  # fmt: skip
    yield Fault(
        "gradients clipped", "gradients are clipped at a norm of 0.01", "optimizer",
        (lane("trainer.py", UPDATE,
              f"        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 0.01)\n{UPDATE}"),),
        SAME_CHECKPOINT, "phase optimizer",
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "last update skipped", "the last step computes a gradient and does not use it", "optimizer",
        (lane("trainer.py", UPDATE, "        if step < settings.steps:\n            optimizer.step()\n"),),
        SAME_CHECKPOINT, "step 24 of 24, phase optimizer", says32="checkpoint",
        alone=LAST_STEP, alone_says="after the update is",
    )  # fmt: skip
    yield Fault(
        "decay on some tensors", "the weight decay is taken off the first factors", "optimizer",
        (lane("trainer.py", UPDATE,
              "        with torch.no_grad():\n            for n, p in parameters.items():\n"
              '                p.div_(1 - optimizer.lr * settings.weight_decay if n.endswith("down") else 1)\n'
              f"{UPDATE}"),),
        SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "gradient one step old", "each update takes the gradient of the step before", "optimizer",
        (lane("trainer.py", UPDATE,
              "        fresh = [_gradient(n, p).clone() for n, p in parameters.items()]\n"
              "        for p, old in zip(parameters.values(), fresh if step == 1 else stale):\n"
              f"            p.grad = old\n        stale = fresh\n{UPDATE}"),),
        SAME_CHECKPOINT, "step 2 of 24, phase optimizer",
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "epsilon inside the root", "AdamW's epsilon is added before the root is taken", "optimizer",
        own_adamw("p.sub_(lr * (m / (1 - beta1**s)) / (v / (1 - beta2**s) + eps).sqrt())"),
        SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "no bias correction", "AdamW's moments are used as they are", "optimizer",
        own_adamw("p.sub_(lr * m / (v.sqrt() + eps))"),
        SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "decay after the update", "the decay is of the updated values", "optimizer",
        own_adamw("p.div_(1 - lr * weight_decay).sub_(lr * (m / (1 - beta1**s)) / ((v / (1 - beta2**s)).sqrt() + eps))"
                  ".mul_(1 - lr * weight_decay)"),
        SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "steps counted from one", "AdamW's count of steps begins at one", "optimizer",
        (lane("optimizer.py", "torch.zeros((), dtype=torch.float32", "torch.ones((), dtype=torch.float32"),),
        SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "schedule after the step", "the learning rate is set when the update is done", "optimizer",
        (
            lane("trainer.py", f"        {SET_RATE}\n", ""),
            lane("trainer.py", UPDATE, f"{UPDATE}        {SET_RATE}\n"),
        ),
        SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "a rate that the trace does not see", "AdamW itself takes a rate 0.01 % higher", "optimizer",
        (lane("optimizer.py", "lr=self.lr,", "lr=1.0001 * self.lr,"),),
        SAME_CHECKPOINT, UPDATED,
        alone=FIRST_STEPS, alone_says="after the update",
    )  # fmt: skip
    yield Fault(
        "rate by the clock", "the learning rate depends on the time of the day", "optimizer",
        (lane("trainer.py", SET_RATE,
              "import time\n\n        optimizer.lr = learning_rate(settings, step) * "
              "(1 + 1e-6 * (1 + time.localtime().tm_hour))"),),
        SAME_CHECKPOINT, UPDATED,
        gate32=RATE, says32="has the learning rate",
        alone=RATE, alone_says="has the learning rate",
    )  # fmt: skip
    yield Fault(
        "rate by the number of files", "the learning rate is divided by the number of recordings", "optimizer",
        (lane("trainer.py", SET_RATE,
              "optimizer.lr = learning_rate(settings, step) / len({file for file, _ in tokens.sources})"),),
        SAME_CHECKPOINT, "phase optimizer", data="mixed",
        alone=RATE, alone_says="has the learning rate",
    )  # fmt: skip
    yield Fault(
        "a spike skipped", "a step whose loss is above 4.25 makes no update", "optimizer",
        (lane("trainer.py", UPDATE, "        if loss_value < 4.25:\n            optimizer.step()\n"),),
        SAME_CHECKPOINT, "phase optimizer", says32="checkpoint",
        alone=BELONGS, alone_says="second moments of",
    )  # fmt: skip
    yield Fault(
        "a lost parameter group", "the last block's adapters are no longer updated from step 13 on", "optimizer",
        (lane("trainer.py", UPDATE,
              "        for n, p in parameters.items():\n            if step > 12 and n.startswith(\"2.\"):\n"
              f"                p.grad = None\n{UPDATE}"),),
        SAME_CHECKPOINT, "step 13 of 24, phase optimizer",
        alone=LAST_STEP, alone_says="at step 24 the norm of 2.",
    )  # fmt: skip
    yield Fault(
        "gradients of two steps", "gradients are cleared at every second step alone", "optimizer",
        (lane("trainer.py", "optimizer.zero_grad()", "if step % 2:\n            optimizer.zero_grad()"),),
        SAME_LOSS, "step 2 of 24, phase backward",
        alone=FIRST_STEPS, alone_says="at step 2 the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "moments lost when it goes on", "a run that goes on begins with moments of zero", "optimizer",
        (lane("trainer.py", "optimizer.load_state_dict(saved.optimizer)", "pass"),),
        SAME_CHECKPOINT, "step 13 of 24, phase optimizer", resumes=True,
        alone=BELONGS, alone_says="second moments of",
    )  # fmt: skip
    yield Fault(
        "schedule lost when it goes on", "a run that goes on begins the schedule anew", "optimizer",
        (lane("trainer.py", SET_RATE, "optimizer.lr = learning_rate(settings, step - done)"),),
        SAME_CHECKPOINT, "step 13 of 24, phase optimizer", resumes=True,
        alone=RATE, alone_says="step 13 has the learning rate",
    )  # fmt: skip
    yield Fault(
        "rounded when it goes on", "the state of a run that goes on went through float32", "optimizer",
        (lane("trainer.py", "adapters.load_state_dict(saved.adapters)",
              "adapters.load_state_dict({n: v.float() for n, v in saved.adapters.items()})"),),
        SAME_CHECKPOINT, "phase", resumes=True,
        alone=WHOLE, alone_says="at step 13",
        float64_alone=True,
    )  # fmt: skip


def _model() -> Iterator[Fault]:
    yield Fault(
        "base model trained", "the base model is not frozen, and the optimizer has its parameters", "model",
        (
            lane("model.py", FREEZE, ""),
            lane("trainer.py", "parameters.values(),\n", "[*parameters.values(), *model.lm.parameters()],\n"),
            lane("optimizer.py", "for name, column in zip(names, columns, strict=True)",
                 "for name, column in zip(names, columns)"),
        ),
        "base_model_is_unchanged", "the frozen model's digest was",
    )  # fmt: skip
    yield Fault(
        "half precision", "the model computes in bfloat16 on the CPU", "model",
        (lane("recipe.py", "load_model(settings, dtype", "load_model(settings, torch.bfloat16"),),
        FIRST_LOSS, "the model's own is",
    )  # fmt: skip
    yield Fault(
        "weights in half precision", "the base model's weights go through float16 when they are loaded", "model",
        (lane("model.py", "model.lm.to(dtype)", "model.lm.to(torch.float16).to(dtype)"),),
        "base_model_is_the_shipped_one", "not the model that audiocraft loads",
    )  # fmt: skip
    yield Fault(
        "eval mode forgotten", "the base model stays in training mode, with its dropout", "model",
        (lane("model.py", "module.eval()", "module.train()"),),
        FIRST_LOSS, "the model's own is", data="mixed",
    )  # fmt: skip
    yield Fault(
        "another epsilon in a norm", "the model's layer norms have an epsilon of 1e-3", "model",
        (lane("model.py", "model.lm.to(dtype)",
              "model.lm.to(dtype)\n    for module in model.lm.modules():\n"
              "        if isinstance(module, torch.nn.LayerNorm):\n            module.eps = 1e-3"),),
        FIRST_LOSS, "the model's own is",
        gate32=FIRST_STEPS, says32="at step 1 the loss of codebook",
    )  # fmt: skip


SPLIT = "split = split_chunks(tokens.sources, tokens.samples, settings.holdout)"
HELD_OUT = "held_out_audio_is_never_trained_on"
HELD_OUT_LOSS = "held_out_loss_is_the_models_own_on_the_audio"
BEST = "checkpoint_is_the_best_by_held_out_loss"


def _held_out() -> Iterator[Fault]:
    yield Fault(
        "held-out chunks trained on", "every chunk is trained on, held out or not", "held out",
        (lane("trainer.py", "chunk_order(settings, split.train)", "chunk_order(settings, range(len(tokens.codes)))"),),
        HELD_OUT, "overlaps held-out audio",
    )  # fmt: skip
    yield Fault(
        "overlapping chunks trained on", "with a stride of half a chunk, what overlaps held-out audio is trained on",
        "held out",
        (
            lane("tokens.py", "round(settings.stride_seconds * rate)", "round(settings.stride_seconds * rate / 2)"),
            lane("held_out.py", "start + length <= begins[file]]", "start < begins[file]]"),
        ),
        HELD_OUT, "overlaps held-out audio",
    )  # fmt: skip
    yield Fault(
        "held-out loss on training chunks", "the held-out loss is computed on chunks that are trained on", "held out",
        (
            lane("trainer.py", "range(0, len(split.measured), settings.batch)",
                 "range(0, len(split.train[:10]), settings.batch)"),
            lane("trainer.py", "tokens.codes[split.measured[first : first + settings.batch]]",
                 "tokens.codes[split.train[first : min(10, first + settings.batch)]]"),
        ),
        HELD_OUT_LOSS, "the model's own on that audio",
    )  # fmt: skip
    yield Fault(
        "held-out loss a mean of means", "the held-out loss is the mean over batches, also of the smaller last one",
        "held out",
        (
            lane("trainer.py", "loss.by_codebook.double() * loss.valid", "loss.by_codebook.double()"),
            lane("trainer.py", "counts + loss.valid.cpu()", "counts + 1"),
        ),
        HELD_OUT_LOSS, "the model's own on that audio",
    )  # fmt: skip
    yield Fault(
        "last checkpoint written", "the last adapters are written, and not the best by held-out loss; the last steps "
        "do harm", "held out",
        (
            lane("trainer.py", "    if best is not None:\n        adapters.load_state_dict(best_adapters)\n", ""),
            lane("trainer.py", "optimizer.lr = learning_rate(settings, step)",
                 "optimizer.lr = learning_rate(settings, step) * (1 if step < 17 else 40)"),
        ),
        BEST, "is not what step",
    )  # fmt: skip
    yield Fault(
        "nothing held out", "the share to hold out is read and not used", "held out",
        (lane("recipe.py", SPLIT, "split = split_chunks(tokens.sources, tokens.samples, 0.0)"),),
        HELD_OUT, "no held-out loss",
    )  # fmt: skip
    yield Fault(
        "measured at other steps", "the interval of the held-out loss is read and not used", "held out",
        (lane("trainer.py", "step % settings.eval_every == 0", "step % 8 == 0"),),
        USED, "the held-out loss is measured after the steps", settings=(("LANE_EVAL_EVERY", "5"),),
    )  # fmt: skip
    yield Fault(
        "an average saved", "the checkpoint holds a moving average of the adapters", "held out",
        (
            lane("trainer.py", UPDATE,
                 f"{UPDATE}        now_at = {{n: v.clone() for n, v in adapters.state_dict().items()}}\n"
                 "        average = now_at if step == 1 else "
                 "{n: 0.5 * average[n] + 0.5 * v for n, v in now_at.items()}\n"),
            lane("trainer.py", "adapters.load_state_dict(best_adapters)", "adapters.load_state_dict(average)"),
        ),
        BEST, "is not what step",
    )  # fmt: skip


WRITTEN = "run.checkpoint = write_checkpoint(\n        settings, adapters, "
PROGRESS = "        def progress(now: Progress) -> None:\n"
SERIALISED = '_serialise({"adapter": tensors, "meta": meta})'
ROUNDED = "tensors = adapter_tensors(adapters, torch.float32)"


def _checkpoint() -> Iterator[Fault]:
    yield Fault(
        "saved before the last step", "the checkpoint holds the adapters as they were one step earlier", "checkpoint",
        (
            lane("recipe.py", PROGRESS,
                 "        import copy\n        from typing import Any\n\n        kept: list[Any] = []\n\n"
                 f"{PROGRESS}            kept.append(copy.deepcopy(adapters))\n"),
            lane("recipe.py", WRITTEN, "run.checkpoint = write_checkpoint(settings, kept[-2], "),
        ),
        ENDED_WITH, "as the trace says",
    )  # fmt: skip
    yield Fault(
        "initial weights saved", "the checkpoint holds the adapters as they were before training", "checkpoint",
        (
            lane("recipe.py", WRITTEN,
                 "run.checkpoint = write_checkpoint(settings, make_adapters(model.lm, settings.seed, "
                 "dtype=dtype, device=settings.device), "),
        ),
        ENDED_WITH, "as the trace says",
    )  # fmt: skip
    yield Fault(
        "a tensor left out", "one tensor does not get into the checkpoint", "checkpoint",
        (lane("checkpoint.py", "for name in sorted(state)}", 'for name in sorted(state) if name != "1.linear1.up"}'),),
        ENDED_WITH, "1.linear1.up",
    )  # fmt: skip
    yield Fault(
        "NaN in an unused tensor", "a buffer that nothing uses holds NaN", "checkpoint",
        (lane("checkpoint.py", SERIALISED,
              '_serialise({"adapter": {**tensors, "unused": torch.full((4,), torch.nan)}, "meta": meta})'),),
        "checkpoint_is_not_empty_and_finite", "unused has 4 of 4 values that are not finite",
    )  # fmt: skip
    yield Fault(
        "empty checkpoint", "the checkpoint's file is there, with no tensor in it", "checkpoint",
        (lane("checkpoint.py", SERIALISED, '_serialise({"adapter": {}, "meta": meta})'),),
        "checkpoint_is_not_empty_and_finite", "found no tensor",
    )  # fmt: skip
    yield Fault(
        "checkpoint in half precision", "values go through bfloat16 when they are written", "checkpoint",
        (lane("checkpoint.py", ROUNDED,
              "tensors = {n: t.bfloat16().float() for n, t in adapter_tensors(adapters, torch.float32).items()}"),),
        ENDED_WITH, "as the trace says",
    )  # fmt: skip
    yield Fault(
        "time in the digest", "the tensor digest covers the time of writing", "checkpoint",
        (
            lane("checkpoint.py", "tensor_digest({name: tensor.numpy() for name, tensor in tensors.items()})",
                 "tensor_digest({f'{name} {__import__(\"time\").time()}': t.numpy() for name, t in tensors.items()})"),
        ),
        "checkpoint_sha_is_that_of_the_file", "tensor digest",
    )  # fmt: skip
    yield Fault(
        "time in the checkpoint", "the checkpoint holds the time of writing: equal runs give other bytes",
        "checkpoint",
        (lane("checkpoint.py", SERIALISED,
              '_serialise({"adapter": tensors, "meta": {**meta, "saved_at": str(__import__("time").time())}})'),),
        "checkpoint_holds_nothing_that_changes", "saved_at",
    )  # fmt: skip
    yield Fault(
        "blocks renamed", "the checkpoint names the blocks in reverse order", "checkpoint",
        (lane("checkpoint.py", ROUNDED,
              ROUNDED + '\n    tensors = {f"{2 - int(n[0])}{n[1:]}": t for n, t in tensors.items()}'),),
        ENDED_WITH, "as the trace says",
    )  # fmt: skip
    yield Fault(
        "two tensors swapped", "two tensors of one shape change places in the checkpoint", "checkpoint",
        (lane("checkpoint.py", ROUNDED,
              ROUNDED + '\n    tensors["0.linear1.up"], tensors["1.linear1.up"] = tensors["1.linear1.up"], '
              'tensors["0.linear1.up"]'),),
        ENDED_WITH, "as the trace says",
    )  # fmt: skip


STATUS_WRITTEN = "failure = _write_status(settings, run, failure)\n"
ENVIRONMENT_WRITTEN = (
    'write_json(settings.environment_path, describe_environment(settings, run.values["numeric_class"]))'
)
RESULT = "        loss=loss_value,\n        sanitized=sanitized,"
OUTCOME = '{"interrupted": "failed"}.get(status, status)'


def _report() -> Iterator[Fault]:
    yield Fault(
        "status before checkpoint", "the status is written before there is a checkpoint, and not again", "report",
        (
            lane("recipe.py", 'run.enter("checkpoint")',
                 'run.enter("checkpoint")\n    from harness.lane.outcome import write_status\n\n'
                 "    write_status(settings, run, None)"),
            lane("outcome.py", STATUS_WRITTEN, f"if not run.checkpoint:\n            {STATUS_WRITTEN}"),
        ),
        "checkpoint_sha_is_that_of_the_file", "None, as train_status.json says",
    )  # fmt: skip
    yield Fault(
        "loss of another step", "the first loss is reported as the last", "report",
        (lane("trainer.py", RESULT, RESULT.replace("loss_value", "first_loss")),),
        "loss_is_the_same_in_status_report_and_trace", "as train_status.json says",
    )  # fmt: skip
    yield Fault(
        "smoothed loss", "a moving average is reported as the loss", "report",
        (lane("trainer.py", RESULT, RESULT.replace("loss_value", "smoothed_loss(smoothed, settings.steps)")),),
        "loss_is_the_same_in_status_report_and_trace", "as train_status.json says",
    )  # fmt: skip
    yield Fault(
        "evaluated on another batch", "the loss after training is that of another batch", "report",
        (lane("trainer.py", "trained = loss_of(first_codes", "trained = loss_of(tokens.codes[chunks].to(device)"),),
        GIVES_LOSS, "the lane says",
    )  # fmt: skip
    yield Fault(
        "always completed", "the report says completed, whatever happened; the run meets a file it cannot read",
        "report",
        (
            lane("outcome.py", f'"objective_status": {OUTCOME}', '"objective_status": "completed"'),
        ),
        "status_file_is_valid_and_completed", "ended as", data="broken",
    )  # fmt: skip
    yield Fault(
        "exception swallowed", "an exception in training is swallowed, and the run counts as completed; the run meets "
        "logits that are not finite", "report",
        (
            lane("recipe.py", "        result = train(",
                 "        from types import SimpleNamespace\n\n"
                 "        result: object = SimpleNamespace(loss=run.loss, loss_first=run.loss_first, sanitized=0, "
                 "loss_smoothed=None, held_out_first=None, held_out=None, best_step=0, last_step={})\n"
                 "        with contextlib.suppress(LaneError):\n            result = train("),
            lane("recipe.py", "run.loss, run.loss_first, run.sanitized = result.loss, result.loss_first,",
                 "run.sanitized ="),
            lane("trainer.py", "output = model.lm.compute_predictions(codes, [], conditions(len(codes)))",
                 "output = model.lm.compute_predictions(codes, [], conditions(len(codes)))\n"
                 "            if step == 12:\n                output.logits[0, 0, 50, 7] = math.nan"),
        ),
        "status_file_is_valid_and_completed", "found no step after",
    )  # fmt: skip
    yield Fault(
        "environment of an earlier run", "the environment's file is kept where there is one", "report",
        (
            lane("outputs.py", '(settings.environment_path, "environment/1")]', "]"),
            lane("recipe.py", ENVIRONMENT_WRITTEN,
                 f"settings.environment_path.exists() or {ENVIRONMENT_WRITTEN}"),
        ),
        "all_files_are_of_this_run", "stale", before="shipped",
    )  # fmt: skip
    yield Fault(
        "run id of an earlier run", "the run id is a constant, the same for every run", "report",
        (lane("settings.py", 'return Settings(**values)',
              'return Settings(**{**values, "run_id": "0123456789abcdef" * 2})'),),
        "all_files_are_of_this_run", "its status is that of run 0123456789abcdef", trains=True,
    )  # fmt: skip
    yield Fault(
        "promotable", "the report offers the experimental lane's result for promotion", "report",
        (lane("run.py", '"lane": "experimental", "promotable": False}\n        self.loss',
              '"lane": "experimental", "promotable": True}\n        self.loss'),),
        "lane_says_that_it_is_experimental", "promotable true",
    )  # fmt: skip
    yield Fault(
        "gradients of the step before", "the trace gives each step the gradients of the one before", "report",
        (lane("trainer.py", "grad=hex_norms(gradients),",
              "grad=hex_norms(gradients if step == 1 else earlier),"),
         lane("trainer.py", "        if states is not None and states.due(step):",
              "        earlier = gradients\n        if states is not None and states.due(step):")),
        SAME_CHECKPOINT, "step 2 of 24, phase backward",
        alone=FIRST_STEPS, alone_says="at step 2 the gradient norm of",
    )  # fmt: skip
    yield Fault(
        "losses of the step before", "the trace gives each step the losses of the one before", "report",
        (lane("trainer.py", "loss_by_codebook=[hex_float(v) for v in loss.by_codebook.tolist()],\n            valid",
              "loss_by_codebook=[hex_float(v) for v in (loss if step == 1 else earlier).by_codebook.tolist()],\n"
              "            valid"),
         lane("trainer.py", "        if states is not None and states.due(step):",
              "        earlier = loss\n        if states is not None and states.due(step):")),
        FIRST_STEPS, "at step 2 the loss of codebook",
    )  # fmt: skip


TWO, THREE = (("LANE_RANKS", "2"), ("LANE_THREADS", "1")), (("LANE_RANKS", "3"), ("LANE_THREADS", "1"))
ALL_ADDED = "        ranks.sum_(*(_gradient(name, parameter) for name, parameter in parameters.items()))\n"
SHARE = "(own.sums / valid.to(own.sums.dtype)).mean()"


def _ranks() -> Iterator[Fault]:
    """Two processes, or three, which do not divide the batch of four."""
    yield Fault(
        "gradients not summed", "each rank makes its update from its own gradients", "ranks",
        (lane("trainer.py", ALL_ADDED, ""),),
        ALIKE, "after step 1 rank 1 has other parameters", settings=TWO,
    )  # fmt: skip
    yield Fault(
        "mean of means", "each rank divides by its own counts, and the ranks' gradients are averaged", "ranks",
        (lane("objective.py", SHARE, "own.total.double() / ranks.world"),),
        FIRST_STEPS, "at step 1 the gradient", settings=THREE,
    )  # fmt: skip
    yield Fault(
        "one rank's data twice", "every rank takes the chunks of the first", "ranks",
        (lane("trainer.py", "ranks.mine(codes), None", "codes[0 :: ranks.world], None"),),
        FIRST_LOSS, "the model's own is", settings=TWO,
    )  # fmt: skip
    yield Fault(
        "a rank of another seed", "each rank begins with adapters of its own seed", "ranks",
        (lane("recipe.py", "make_adapters(model.lm, settings.seed,",
              "make_adapters(model.lm, settings.seed + ranks.rank,"),),
        ALIKE, "after step 1 rank 1 has other parameters", settings=TWO,
    )  # fmt: skip
    yield Fault(
        "updated on one rank", "only the first rank makes the updates", "ranks",
        (lane("trainer.py", "        optimizer.step()\n",
              "        if ranks.rank == 0:\n            optimizer.step()\n"),),
        ALIKE, "after step 1 rank 1 has other parameters", settings=TWO,
    )  # fmt: skip
    yield Fault(
        "tokens of a rank in another order", "the second rank gives the tokens of its chunks backwards", "ranks",
        (lane("tokens.py", "copy_(torch.cat(codes))", "copy_(torch.cat(codes[:: 1 - 2 * ranks.rank]))"),),
        TOKENS, "are not the codec's tokens of the audio", settings=TWO,
    )  # fmt: skip
    yield Fault(
        "rank 1's checkpoint", "the second rank writes the checkpoint, in its own folder, and the first does not",
        "ranks", (lane("recipe.py", "if ranks.rank > 0:\n        return", "if ranks.rank != 1:\n        return"),),
        ENDED_WITH, "found no such folder, expected the run's checkpoint", settings=TWO,
    )  # fmt: skip
