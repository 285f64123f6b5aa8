"""`python3 -m harness init`: looks at a project and proposes the table of its lane."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.runs.table import LaneTableError, parse_lane, read_lanes

PASSED_OVER = {"node_modules", "site-packages", "build", "dist", "tests", "test", "docs"}
MOST_FILES, LARGEST = 2000, 500_000
SAVES = {"save", "savez", "savez_compressed", "save_file", "save_model", "save_pretrained", "save_checkpoint", "dump"}
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")
TRAINERS = {"fit": 3, "train": 1, "backward": 3, "step": 1}  # calls of a method, and what they say of a script
GATES_FILE = ("test_lane.py", "from harness.gates import *\n")


@dataclass
class Script:
    """A file of the project, and what its text says: how much it looks like a training, where it saves."""

    path: Path
    score: int = 0
    is_torch: bool = False
    saves: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    options: dict[str, str | None] = field(default_factory=dict)  # of its command line, with the default
    required: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """The command. Returns 0 for a proposal, 1 where no training script was found, or nothing could be added."""
    parser = argparse.ArgumentParser(
        prog="python3 -m harness init",
        description="Look at the project in this folder and propose a table for its training: what to run, where its "
        "checkpoint is. Nothing is run, and without --write nothing is written.",
        epilog="exit code: 0 proposed or written; 1 no training script, or there is such a table; 64 wrong usage",
    )
    parser.add_argument("script", nargs="?", type=Path, help="the training script (default: the likeliest one)")
    parser.add_argument("--write", action="store_true",
                        help=f"add the table to pyproject.toml, and {GATES_FILE[0]} with the gates")  # fmt: skip
    options = parser.parse_args(arguments)
    root = Path.cwd()
    found = sorted(scripts(root), key=lambda script: (-script.score, len(script.path.parts), str(script.path)))
    if options.script:
        wanted = options.script.resolve()
        found = [script for script in found if (root / script.path).resolve() == wanted]
    chosen = found[0] if found and (options.script or found[0].score >= 3) else None
    if chosen is None:
        looked = (
            f"{options.script} is no Python file below {root}"
            if options.script
            else f"no Python file below {root} looks like a training"
        )
        if not options.script and (notebook := next(_notebooks(root), None)):
            looked += f"; {notebook} is a notebook, which is run as a script: jupyter nbconvert --to script {notebook}"
        print(f"init: {looked}; next: python3 -m harness init SCRIPT, or docs/gate-your-own-lane.md", file=sys.stderr)
        return 1
    name = _name(chosen.path)
    text = proposal(name, chosen, root)
    print(text)
    others = [str(script.path) for script in found[1:4] if script.score >= 3]
    if others:
        print(f"# other files that look like trainings: {', '.join(others)} (python3 -m harness init SCRIPT)")
    if options.write:
        return _write(root, name, text)
    print("# nothing was written; next: python3 -m harness init --write, or put it into pyproject.toml yourself,")
    print(f"# with {GATES_FILE[0]}: {GATES_FILE[1].strip()}")
    return 0


def scripts(root: Path) -> Iterator[Script]:
    """The Python files of a project that its text shows to save or to train something."""
    count = 0
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = sorted(
            name
            for name in names
            if name not in PASSED_OVER and not name.startswith((".", "_")) and not (here / name / "pyvenv.cfg").exists()
        )
        for file in sorted(files):
            path = here / file
            if path.suffix != ".py" or file.startswith("test_") or count >= MOST_FILES or path.stat().st_size > LARGEST:
                continue
            count += 1
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, SyntaxError, RecursionError):
                continue
            yield _look(path.relative_to(root), tree)


def _notebooks(root: Path) -> Iterator[str]:
    """The notebooks of a project, as a shell takes their names."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in PASSED_OVER and not name.startswith((".", "_")))
        for file in sorted(files):
            if file.endswith(".ipynb"):
                yield shlex.quote(str((Path(folder) / file).relative_to(root)))


def _look(path: Path, tree: ast.Module) -> Script:
    script = Script(path)
    called: set[str] = set()
    pending: list[ast.Call] = []  # what it saves to a path that is put together
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            script.imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            script.imports.add("." * node.level + node.module)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            called.add(name)
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            texts = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
            if name == "add_argument" and texts and texts[0].startswith("-"):
                _option(script, node, next((t for t in texts if t.startswith("--")), texts[0]))
            if name in SAVES and not any(t.endswith(CHECKPOINTS) for t in texts):
                pending.append(node)
            if name in SAVES:
                script.saves += [t for t in texts if t.endswith(CHECKPOINTS) or name == "save_pretrained"]
    script.saves += [made for node in pending for argument in node.args if (made := _joined(argument, script.options))]
    tops = {name.lstrip(".").partition(".")[0] for name in script.imports}
    script.is_torch = bool(tops & {"torch", "transformers", "lightning", "pytorch_lightning", "accelerate"})
    script.score = sum(points for name, points in TRAINERS.items() if name in called) + 2 * bool(script.saves)
    script.score += 2 * ("train" in path.stem.lower())
    return script


def _option(script: Script, node: ast.Call, option: str) -> None:
    """Keep an option of the command line: its default, and whether it must be given."""
    given = {keyword.arg: keyword.value.value for keyword in node.keywords if isinstance(keyword.value, ast.Constant)}
    default = given.get("default")
    script.options[option.lstrip("-").replace("-", "_")] = default if isinstance(default, str) else None
    if given.get("required") is True:
        script.required.append(option)


def _joined(node: ast.AST, options: Mapping[str, str | None]) -> str | None:
    """A path that a program puts together of texts and options (`os.path.join(args.output_dir, "m.pt")`, `/`, an
    f-string), where it ends as a checkpoint does and all of it is known."""
    parts: list[str] = []

    def take(one: ast.AST) -> bool:
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            parts.append(one.value)
            return True
        if isinstance(one, ast.Attribute):
            default = options.get(one.attr)
            parts.append(default or "")
            return default is not None
        if isinstance(one, ast.BinOp) and isinstance(one.op, ast.Div):
            return take(one.left) and take(one.right)
        if isinstance(one, ast.Call) and getattr(one.func, "attr", getattr(one.func, "id", "")) in (
            "join",
            "Path",
            "str",
        ):
            return bool(one.args) and all(take(argument) for argument in one.args)
        if isinstance(one, ast.JoinedStr):
            return all(take(value.value if isinstance(value, ast.FormattedValue) else value) for value in one.values)
        return False

    if not take(node) or not parts[-1].endswith(CHECKPOINTS):
        return None
    return "/".join(part.strip("/") if index else part.rstrip("/") for index, part in enumerate(parts))


def proposal(name: str, script: Script, root: Path) -> str:
    """The table as TOML, with a comment where something could not be told from the text."""
    words = [_text(script.path.as_posix())]
    if script.path.name == "__main__.py" and (root / script.path.parent / "__init__.py").is_file():
        words = [_text("-m"), _text(".".join(script.path.parent.parts))]
    lines = [f"[tool.harness.lanes.{name}]", f'command = ["{{python}}", {", ".join(words)}]']
    if script.required:
        lines.append(f"# it must be given {', '.join(script.required)}: add them and their values to command")
    saves = list(dict.fromkeys(script.saves))
    if saves:
        lines.append(f"checkpoint = {_text(saves[0])}")
        if len(saves) > 1:
            lines.append(f"# it saves elsewhere too: {', '.join(saves[1:4])}")
    else:
        lines.append('# where it leaves its checkpoint was not found: checkpoint = "PATH"')
    if script.is_torch:
        lines.append('trace = "watch"  # step, phase and tensor of a difference (docs/watch.md)')
    code = ", ".join(_text(path.as_posix()) for path in [script.path, *_own_modules(script, root)])
    lines.append(f"code = [{code}]")
    return "\n".join(lines)


def _own_modules(script: Script, root: Path) -> list[Path]:
    """The project's own files and packages that a script imports, beside it or at the root."""
    found: dict[Path, None] = {}
    for name in sorted(script.imports):
        top = name.lstrip(".").partition(".")[0]
        for folder in (script.path.parent, Path()):
            for path in (folder / f"{top}.py", folder / top):
                if top and path != script.path and ((root / path).is_file() or (root / path / "__init__.py").is_file()):
                    found[path] = None
    return list(found)


def _name(path: Path) -> str:
    stem = path.stem if path.stem not in ("main", "run", "__main__") else path.resolve().parent.name
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:64] or "mine"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write(root: Path, name: str, text: str) -> int:
    """Add the table, and the file with the gates where there is none."""
    path = root / "pyproject.toml"
    try:
        if name in read_lanes(root):
            print(f"init: {path} has [tool.harness.lanes.{name}]; nothing was written", file=sys.stderr)
            return 1
        parse_lane(name, tomllib.loads(text)["tool"]["harness"]["lanes"][name], root)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = f"{before.rstrip()}\n\n{text}\n".lstrip("\n")
        tomllib.loads(after)
    except (LaneTableError, OSError, ValueError) as error:
        print(f"init: not added to {path}: {error}", file=sys.stderr)
        return 1
    path.write_text(after, encoding="utf-8")
    print(f"# added to {path}")
    gates = root / GATES_FILE[0]
    if not gates.exists():
        gates.write_text(GATES_FILE[1], encoding="utf-8")
        print(f"# made {gates}")
    print(f"# next: python3 -m pytest -m smoke --lane={name}")
    return 0
