"""The programs of this folder, each an ordinary use of a framework, and what is to be seen when they are broken."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
INSTALL = "python3 -m pip install transformers accelerate lightning peft safetensors scikit-learn jax"


@dataclass(frozen=True)
class Program:
    """`table`: lines of its lane's table; `broken`: a change of its code, and where the result then parts; `ranks`: how
    many processes torchrun starts."""

    name: str
    framework: str  # as it is called
    packages: tuple[str, ...]
    table: str
    broken: tuple[str, str]
    place: str
    ranks: int = 1
    steps: int = 6
    seen: tuple[str, ...] = field(default=())  # parameters that must be in the trace
    arguments: tuple[str, ...] = ()
    patch: tuple[str, str, str] = ("Adam", "eps", "1e-7")  # another default of torch's: class, setting, value

    @property
    def versions(self) -> tuple[str, ...]:
        return self.packages if self in UNTRACED else ("torch", *self.packages)

    @property
    def setting(self) -> str:
        return f".{self.patch[1]}"

    def patched(self, text: str) -> str:
        """The `sitecustomize` that gives torch that default."""
        name, setting, value = self.patch
        return text.replace("MODULE", name.lower()).replace("CLASS", name).replace("CHANGE", f"{setting}={value}")

    @property
    def command(self) -> list[str]:
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={self.ranks}", f"--master-port={free_port()}"]
        return [*(launch if self.ranks > 1 else []), f"{self.name}.py", *self.arguments]

    def need(self) -> None:
        """Skip where a package is missing."""
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                pytest.skip(f"{package} is not installed: {INSTALL}")

    def run(self, folder: Path, *launcher: str) -> None:
        """Once, in a folder of its own; ``launcher``: what runs it, in the place of Python."""
        folder.mkdir()
        for path in PROGRAMS.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "LANE_"))}
        environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAMS.parents[2]) if launcher else ""}
        command = [*(launcher or [sys.executable]), *self.command]
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


SLOWER = ("RATE = 1e-2", "RATE = 9e-3")
ALL = [
    Program("hf_trainer", "Hugging Face Trainer", ("transformers", "accelerate", "safetensors"),
            'checkpoint = "out/checkpoint-6"', ("RATE = 1e-3", "RATE = 9e-4"), "step 2 of 6, phase optimizer",
            seen=("transformer.h.1.attn.c_attn.weight",)),
    Program("accelerate_loop", "Accelerate", ("accelerate", "safetensors"), 'checkpoint = "out"', SLOWER,
            "step 1 of 6, phase optimizer", seen=("3.weight",)),
    # What a callback notes (its best value so far is inf) is no parameter.
    Program("lightning_trainer", "Lightning", ("lightning",),
            'checkpoint = "out/end.ckpt"\ntensors = {exclude = ["callbacks.*"]}', SLOWER,
            "step 1 of 6, phase optimizer", seen=("net.3.weight",)),
    Program("peft_lora", "PEFT (LoRA)", ("peft", "transformers"), 'checkpoint = "out"', SLOWER,
            "step 1 of 6, phase optimizer",
            seen=("base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight",)),
    Program("nano_gpt", "a script like nanoGPT's", (), 'checkpoint = "out/ckpt.pt"',
            ("dropout=0.1", "dropout=0.11"), "step 1 of 6, phase forward", seen=("words.weight",)),
    Program("diffusion", "a diffusion loop", (), 'checkpoint = "out/net.pth"', ("mse_loss", "l1_loss"),
            "step 1 of 6, phase forward", seen=("3.weight",)),
    Program("vision", "torchvision's ResNet-18", ("torchvision",), 'checkpoint = "out/resnet.pth"', SLOWER,
            "step 1 of 6, phase optimizer", seen=("layer1.0.conv1.weight",), patch=("SGD", "momentum", "0.8")),
    Program("data_parallel", "DistributedDataParallel, 2 ranks", (), 'checkpoint = "out/model.pt"', SLOWER,
            "step 1 of 6, phase optimizer", ranks=2, seen=("2.weight",)),
    Program("fully_sharded", "fully_shard (FSDP), 2 ranks", (), 'checkpoint = "out"', SLOWER,
            "step 1 of 6, phase optimizer", ranks=2, seen=("2.weight",)),
]  # fmt: skip
# Without a trace: of a program that has no torch.
UNTRACED = [
    Program("scikit", "scikit-learn, saved with NumPy", ("scikit-learn",), 'checkpoint = "out/model.npz"',
            ("SIZE = 8", "SIZE = 9"), "", arguments=("npz",)),
    Program("jax_loop", "JAX, saved as safetensors", ("jax", "safetensors"), 'checkpoint = "out/model.safetensors"',
            ("RATE = 1e-1", "RATE = 9e-2"), ""),
]  # fmt: skip

PAGE = PROGRAMS.parents[2] / "docs" / "frameworks.md"
BEGIN, END = "<!-- the table: begin -->\n", "<!-- the table: end -->\n"


def write_table(rows: dict[str, dict[str, str]]) -> None:
    """Replace the table in docs/frameworks.md by what the programs gave; rows that were not run stay as they were."""
    text = PAGE.read_text(encoding="utf-8")
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    kept = {line.split(" | ")[0].removeprefix("| "): line for line in text[begin:end].splitlines()}
    lines = ["| program | versions | seen | not seen | again | code | data | environment | on |", "|" + "---|" * 9]
    today = datetime.date.today().isoformat()
    for program in [*ALL, *UNTRACED]:
        row = rows.get(program.name)
        if not row:
            lines += [kept[program.framework]] if program.framework in kept else []
            continue
        versions = ", ".join(f"{name} {version(name)}" for name in program.versions)
        cells = [program.framework, versions]
        cells += [row.get(key, "not run") for key in ("seen", "unseen", "sound", "code", "data", "environment")]
        lines.append("| " + " | ".join([*cells, today]) + " |")
    PAGE.write_text(text[:begin] + "\n" + "\n".join(lines) + "\n\n" + text[end:], encoding="utf-8")
