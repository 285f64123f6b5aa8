"""Where the recorder is put into torch: its global optimizer hooks, hooks on the modules that own the parameters, and
wrappers around what has no hook.

No hook is in the way of torch.compile. A compiled module has none, nor has what is in it: its inputs are seen at the
wrapper around it, and not at all where it was compiled in place. Where a hook is traced after all, as within a compiled
function (`is_compiling`), there is nothing in it that would break the graph.
"""

from __future__ import annotations

import atexit
import fnmatch
import functools
import json
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch

from .measure import is_compiling
from .names import named_modules
from .recorder import Recorder

recorder: Recorder
looking: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()  # the hooks on each module
counted: weakref.WeakSet[type] = weakref.WeakSet()  # the classes of schedulers


def begin(optimizers: Any) -> None:
    """Called when `torch.optim.optimizer` (``optimizers``) has been imported, which is before torch is whole."""
    global recorder
    recorder = Recorder(json.loads(os.environ["HARNESS_WATCH"]), attend)
    kind = optimizers.Optimizer
    inner = kind.__init__

    @functools.wraps(inner)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        guarded(adopt, self)

    kind.__init__ = init
    optimizers.register_optimizer_step_pre_hook(lambda o, args, kwargs: guarded(recorder.before_step, o, args, kwargs))
    optimizers.register_optimizer_step_post_hook(lambda o, args, kwargs: guarded(recorder.after_step, o))
    atexit.register(lambda: guarded(recorder.close))


def guarded(function: Callable[..., Any], *given: Any) -> None:
    """Call a part of the recorder. Whatever goes wrong in it is the recording's end, not the program's."""
    if is_compiling() or recorder.broken:
        return
    try:
        function(*given)
    except Exception as error:
        recorder.fail(error)


def adopt(optimizer: Any) -> None:
    """A new optimizer. With the first one torch is imported to its end, and what has no hook is wrapped."""
    if not recorder.is_in_place:
        recorder.is_in_place = True
        wrap_torch()
    recorder.adopt(optimizer)


def wrap_torch() -> None:
    from torch.amp.grad_scaler import GradScaler
    from torch.optim.lr_scheduler import LRScheduler
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    wrap(torch.autograd, "backward", before=recorder.before_backward, after=recorder.after_backward)
    wrap(_BaseDataLoaderIter, "__next__", after=lambda batch, *_: recorder.after_load(batch))
    wrap(GradScaler, "step", before=recorder.before_scaled_step, after=recorder.after_scaled_step)
    wrap(LRScheduler, "__init__", after=lambda _, scheduler, *__, **___: schedule(scheduler))
    wrap(
        torch,
        "compile",
        before=lambda module=None, *_, **__: look_away(module),
        after=lambda found, *_, **__: look_at(found),
    )
    wrap(torch.nn.Module, "compile", before=lambda module, *_, **__: look_away(module))


def wrap(
    owner: Any, name: str, *, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> None:
    """Put a function in the place of another that it calls. ``before`` has its arguments; ``after`` has the result
    before them."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            guarded(functools.partial(before, *args, **kwargs))
        result = inner(*args, **kwargs)
        if after is not None:
            guarded(functools.partial(after, result, *args, **kwargs))
        return result

    setattr(owner, name, outer)


def schedule(scheduler: Any) -> None:
    """A new learning-rate scheduler: the calls of its `step` are counted, whichever class has it."""
    for kind in type(scheduler).__mro__:
        if "step" in vars(kind) and kind not in counted:
            counted.add(kind)
            wrap(kind, "step", before=lambda scheduler, *_, **__: recorder.before_schedule(scheduler))
    recorder.schedule(scheduler)


def attend(root: Any) -> None:
    """Look at the inputs of a module and, because some programs never call it itself, of its children; and at the
    outputs that were asked for."""
    is_wrapper = getattr(root, "_orig_mod", None) is not None
    for module in [root] if is_wrapper or _is_compiled(root) else [root, *root.children()]:
        look_at(module)
    for name, module in named_modules(root):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in recorder.modules):
            module.register_forward_hook(functools.partial(_output, name))


def look_at(module: Any) -> None:
    if isinstance(module, torch.nn.Module) and module not in looking and not _is_compiled(module):
        before = module.register_forward_pre_hook(_before_forward, with_kwargs=True)
        looking[module] = [before, module.register_forward_hook(_after_forward)]


def look_away(module: Any) -> None:
    for inner in module.modules() if isinstance(module, torch.nn.Module) else ():
        for hook in looking.pop(inner, []):
            hook.remove()


def _is_compiled(module: Any) -> bool:
    """Whether a module was compiled in place."""
    return getattr(module, "_compiled_call_impl", None) is not None


def _before_forward(module: Any, args: Any, kwargs: Any) -> None:
    guarded(recorder.before_forward, module, args, kwargs)


def _after_forward(module: Any, args: Any, output: Any) -> None:
    guarded(recorder.after_forward)


def _output(name: str, module: Any, args: Any, output: Any) -> None:
    guarded(recorder.after_module, name, output)
