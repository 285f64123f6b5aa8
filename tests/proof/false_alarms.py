"""``python tests/proof false-alarms``: clean sessions of the gates, under everything that must not matter.

Each case is one whole session, `pytest -m smoke`, in a process of its own: it trains, and every gate must pass. The
plain repeats are made as the mutation campaign makes its runs: the lane and the gates in processes that are forked
after the imports, which takes a third of the time. Results are kept in a file of JSON lines, so that the command can be
stopped and goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proof import recordings
from proof.copies import MEASUREMENTS, ROOT
from proof.judge import preload
from proof.kept import read_rows, write_rows
from proof.mutation import CODE, Campaign, Trial, code_digest, say

from harness.numerics.processor import forced, lacking

RESULTS = MEASUREMENTS / "false_alarms.jsonl"
CHECKOUT = ("harness", "tests/smoke", "tests/support", "baselines", "data", "conftest.py", "pyproject.toml")
NOT_APPLICABLE = 18  # gates: on a watched program, what the voice lane's table does not give, a second training
NOT_RECORDED = ("--deselect=tests/smoke/test_baseline.py",)
LONG = "/".join(letter * 180 for letter in "abcd")
# A caller's habits that must not reach the lane.
CALLER = {
    "OMP_NUM_THREADS": "3",
    "MKL_NUM_THREADS": "2",
    "OPENBLAS_NUM_THREADS": "4",
    "KMP_BLOCKTIME": "0",
    "OMP_DYNAMIC": "true",
    "OMP_SCHEDULE": "dynamic",
    "MKL_DYNAMIC": "TRUE",
    "PYTHONWARNINGS": "default",
}


@dataclass(frozen=True)
class Case:
    """One circumstance. ``where``: the folder of a copy of the checkout; without it, the checkout itself is used."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()  # a program that starts the session
    flags: tuple[str, ...] = ()  # of Python
    options: tuple[str, ...] = ()  # of pytest
    where: str = ""
    umask: int = 0o022
    read_only: bool = False
    load: int = 0  # busy processes beside the session
    data: str = "shipped"
    backwards: bool = False  # the data's files are made anew in the opposite order
    memory: bool = False  # the data's files lie in memory (tmpfs lists the newest first)
    bare: bool = False  # nothing of the caller's environment but the path
    python: str = ""  # of another environment
    forked: bool = False  # a plain repeat, without the imports


def cases() -> Iterator[Case]:
    """Every circumstance but the repeats and the fresh environment."""
    yield Case("another directory, with a space and an umlaut in its name", where="another pläce")
    yield Case("an absolute path of more than 700 characters", where=LONG)
    for umask in (0o000, 0o077):
        yield Case(f"umask {umask:03o}", umask=umask)
    for locale in ("C", "POSIX", "C.utf8", "de_DE.UTF-8"):
        yield Case(f"locale {locale}", {"LC_ALL": locale, "LANG": locale})
    yield Case("locale C without Python's UTF-8 mode", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    for zone in ("Pacific/Chatham", "America/St_Johns", "Europe/Berlin"):
        yield Case(f"time zone {zone}", {"TZ": zone})
    for seed in ("0", "1", "4294967295"):
        yield Case(f"hash seed {seed}", {"PYTHONHASHSEED": seed})
    yield Case("OMP_NUM_THREADS and the like set by the caller", CALLER)
    yield Case("an empty environment", bare=True)
    yield Case("a loaded machine: four busy processes beside it", load=4)
    yield Case("nice 19", prefix=("nice", "-n", "19"))
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    yield Case("a read-only checkout of another user", prefix=nobody, where="checkout", read_only=True)
    yield Case("python -O", flags=("-O",))
    yield Case("python -X dev", flags=("-X", "dev"))
    yield Case("xdist, two workers", options=("-n", "2"))
    yield Case("gates in reverse order", options=("-p", "proof.backwards"))
    for backwards in (False, True):
        for memory in (False, True):
            order = "the last file made first" if backwards else "the first file made first"
            place = "in memory" if memory else "on disk"
            yield Case(f"five files, {order}, {place}", data="mixed", backwards=backwards, memory=memory)
    yield Case("daylight saving begins", {"TZ": "Europe/Berlin"},
               prefix=("faketime", "-f", "@2027-03-28 01:59:57"))  # fmt: skip
    yield Case("daylight saving ends", {"TZ": "Europe/Berlin"},
               prefix=("faketime", "-f", "@2027-10-31 02:59:57"))  # fmt: skip
    for date in ("1999-12-31 23:59:57", "2038-01-19 03:14:04"):
        yield Case(f"a wrong clock: {date}", {}, prefix=("faketime", "-f", f"@{date}"))
    yield Case("weight decay 0 (not recorded)", {"LANE_WEIGHT_DECAY": "0"}, options=NOT_RECORDED)
    yield Case("the recording by a link, and names with a colon and a tab", data="linked")
    for aten in ("default", "avx2", "avx512"):
        for threads in ("1", "2"):
            name = f"ATen {aten}, {threads} thread{'s' * (threads != '1')}"
            yield Case(name, {**forced(aten=aten), "LANE_THREADS": threads})
    yield Case("oneDNN capped at AVX2", forced(onednn="AVX2"))
    yield Case("MKL's compatible path", forced(mkl="COMPATIBLE"))


def why_not(case: Case) -> str:
    """Why a case cannot be tried on this machine; empty if it can."""
    program = case.prefix[0] if case.prefix else ""
    if program and shutil.which(program) is None:
        return f"there is no {program} here"
    if program == "setpriv" and os.geteuid() != 0:
        return "only root can become another user"
    return lacking(case.settings)


class Bench:
    """Runs cases. Data sets that need a recording of their own are recorded once, with the lane as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store: Path | None = None
        self._plain: Campaign | None = None

    def _mixed(self) -> Path:
        """The store with the recording of the mixed data."""
        if self._store is None:
            self._store = Campaign(self.folder / "recorded", ["universal"], ["mixed"]).stores["universal"]
        return self._store

    def run(self, case: Case) -> dict[str, Any]:
        """One session; returns what is kept of it."""
        if case.forked:
            return self._repeat(case)
        with tempfile.TemporaryDirectory(prefix="clean-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            folder.chmod(0o777)
            checkout, settings, options = ROOT, dict(case.settings), list(case.options)
            if case.where:
                checkout = folder / case.where
                for part in CHECKOUT:
                    (checkout / part).parent.mkdir(parents=True, exist_ok=True)
                    copy: Any = shutil.copytree if (ROOT / part).is_dir() else shutil.copyfile
                    copy(ROOT / part, checkout / part)
            if case.data == "linked":
                settings |= self._linked(folder)
            elif case.data != "shipped":
                options.append(f"--baselines={self._mixed()}")
                settings |= self._data(case, folder)
            for path in (checkout, *checkout.rglob("*")) if case.read_only else ():
                path.chmod(0o555 if path.is_dir() else 0o444)
            started = time.monotonic()
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(case.load)]
            try:
                result = folder / "result.xml"
                code, output = self._session(case, checkout, settings, options, folder, result)
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
            row = {"case": case.name, "exit": code, "seconds": round(time.monotonic() - started, 1)}
            return row | _counts(result, output)

    def _repeat(self, case: Case) -> dict[str, Any]:
        """The lane as it is and its gates, in forked processes."""
        if self._plain is None:
            preload()
            self._plain = Campaign(self.folder / "plain", ["universal"], ["shipped"])
        found = self._plain.run(Trial(None, "universal"))
        row = {"case": case.name, "exit": 1 if found["red"] else 0, "seconds": found["seconds"]}
        row |= {"gates": found["gates"], "passed": found["gates"] - len(found["red"])}
        return row | ({"why": found["message"]} if found["red"] else {})

    def _data(self, case: Case, folder: Path) -> dict[str, str]:
        place = Path(tempfile.mkdtemp(prefix="clean-", dir="/dev/shm")) if case.memory else folder / "data"
        settings = recordings.make(place)[case.data]
        source = Path(settings["KNOWLEDGE_SOURCE_DIR"])
        for path in sorted((p for p in source.rglob("*") if p.is_file()), reverse=case.backwards):
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data)
        return settings

    def _linked(self, folder: Path) -> dict[str, str]:
        """The shipped recording, under a name that is hard to print and to take apart, and AUDIO_PATH a link to it."""
        source = folder / "a: b"
        source.mkdir()
        shutil.copyfile(recordings.SHIPPED, recording := source / "c: d\te.flac")
        (source / "f: g\th.wma").write_bytes(b"no recording")
        (link := folder / "link.flac").symlink_to(recording)
        return {"AUDIO_PATH": str(link), "KNOWLEDGE_SOURCE_DIR": str(source)}

    def _session(
        self,
        case: Case,
        checkout: Path,
        settings: Mapping[str, str],
        options: Sequence[str],
        folder: Path,
        result: Path,
    ) -> tuple[int, str]:
        inherited = {"PATH": os.environ["PATH"]} if case.bare else os.environ
        environment = {
            **inherited,
            "PYTHONPATH": f"{checkout}{os.pathsep}{ROOT / 'tests'}",
            "TMPDIR": str(folder),
            **settings,
        }
        command = [*case.prefix, case.python or sys.executable, *case.flags, "-m", "pytest", "-q", "-m", "smoke"]
        command += ["-p", "no:cacheprovider", f"--lane-run-dir={folder / 'run'}", f"--junitxml={result}", *options]
        done = subprocess.run(
            command,
            cwd=checkout,
            env=environment,
            umask=case.umask,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=1800,
            check=False,
        )
        return done.returncode, done.stdout


def _counts(result: Path, output: str) -> dict[str, Any]:
    """How many gates there were and how many passed; the end of the output, where not all did."""
    try:
        suite = xml.etree.ElementTree.parse(result).getroot()[0]
    except (OSError, xml.etree.ElementTree.ParseError, IndexError):
        return {"gates": 0, "passed": 0, "why": output[-1500:]}
    numbers = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    away = sum(skip.get("message", "").startswith("not applicable") for skip in suite.iter("skipped"))
    gates = numbers["tests"] - min(away, NOT_APPLICABLE)
    passed = numbers["tests"] - numbers["failures"] - numbers["errors"] - numbers["skipped"]
    row: dict[str, Any] = {"gates": gates, "passed": passed}
    if passed != gates:
        row["why"] = [failure.get("message", "")[:300] for failure in suite.iter("failure")] or output[-1500:]
    return row


def good(row: Mapping[str, Any]) -> bool:
    """Whether a session was green: pytest says so, and every gate was there and passed."""
    return row.get("exit") == 0 and 0 < row["gates"] == row["passed"]


def main(arguments: list[str]) -> int:
    """The command; returns 0 if no case raises an alarm, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python tests/proof false-alarms",
        description="Run clean sessions of the gates under everything that must not matter; write detection.md.",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="kept results (JSON lines)")
    parser.add_argument("--repeats", type=int, default=100, metavar="N", help="clean repeats (100)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds TEXT")
    parser.add_argument("--python", action="append", default=[], metavar="PYTHON",
                        help="also in this environment, which was set up afresh")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="forget the kept results of the cases that are run")
    options = parser.parse_args(arguments)
    chosen = [*cases(), *(Case(f"repeat {number}", forked=True) for number in range(1, options.repeats + 1))]
    chosen += [Case("a fresh environment", python=python) for python in options.python]
    chosen = [case for case in chosen if options.only in case.name]
    kept = read_rows(options.results, "case")
    code = code_digest()
    alarms = 0
    with tempfile.TemporaryDirectory(prefix="false-alarms-") as folder:
        bench = Bench(Path(folder))
        from harness.baselines.second_leg import code_of

        for number, case in enumerate(chosen, 1):
            fit = hashlib.sha256(f"{dataclasses.asdict(case)} {code}".encode()).hexdigest()[:16]
            row = kept.get(case.name)
            if row is None or row.get("fits") != fit or options.again or "skipped" in row:
                if why := why_not(case):
                    row = {"case": case.name, "skipped": why}
                else:
                    row = bench.run(case)
                    commit = code_of(ROOT, CODE)
                    row |= {"fits": fit, "date": time.strftime("%Y-%m-%d"), "commit": commit.commit[:12]}
                kept[case.name] = row
                write_rows(options.results, kept)
            alarm = "skipped" not in row and not good(row)
            alarms += alarm
            state = (
                f"skipped, {row['skipped']}" if "skipped" in row else f"{row['passed']} of {row['gates']} gates passed"
            )
            why = f" ALARM {row.get('why', row.get('exit'))}" if alarm else ""
            say(f"{number}/{len(chosen)} {case.name}: {state}{why}")
    print(f"{alarms} false alarms")
    if options.results == RESULTS:
        print("python tests/proof detection writes the page")
    return 1 if alarms else 0
