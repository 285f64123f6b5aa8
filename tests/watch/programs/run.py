"""Runs programs of this folder, each in a process of its own: `python run.py sound.plain faults.same_batch …`.

torch is imported once, and each process forked, because importing it takes longer than any of the programs. Nothing
here knows that it is watched.
"""

import gc
import importlib
import os
import sys
import traceback

import torch
import torch._dynamo  # which the first optimizer of a process imports

torch.set_num_threads(1)


def run(name: str) -> None:
    module, _, function = name.partition(".")
    sys.argv[0] = name
    torch.manual_seed(0)
    getattr(importlib.import_module(module), function)()


def main(names: list[str]) -> None:
    gc.freeze()  # a recorder that looks for a program's modules need not look through all of torch in each
    for name in names:
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0, name
            continue
        try:
            run(name)
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        sys.exit(0)  # through atexit, as a program ends


if __name__ == "__main__":
    main(sys.argv[1:])
