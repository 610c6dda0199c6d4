"""Op: a torch.library op whose arguments and outputs are NamedTuples. All custom ops of this package are Ops.

An op consists of a NamedTuple of arguments, from whose annotations the schema is built, a NamedTuple of outputs, the
implementation, its shapes for fake tensors, its autograd rule and its FLOPs. Each of these functions takes and returns
the NamedTuples, so no position is ever counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .amp import disabled
from .derivatives import first_only

Mutated = Tensor
"""Annotation of an argument that the op writes to."""

Args = TypeVar("Args", bound=tuple)
Outputs = TypeVar("Outputs", bound=tuple)

FLOP_FORMULAS: dict[str, Callable[..., int]] = {}
"""Name of each op -> FLOPs of one call."""

_PLAIN = {Tensor, torch.nn.Parameter}
_TENSORS = ("Tensor", "Tensor | None", "Mutated")

_SCHEMA_TYPES = {
    "Tensor | None": "Tensor?",
    "int | None": "int?",
    "float | None": "float?",
    "torch.dtype": "ScalarType",
}


def _annotations(args: type) -> dict[str, str]:
    """Return the annotations of a NamedTuple as they are written."""
    return {name: str(getattr(a, "__forward_arg__", a)) for name, a in args.__annotations__.items()}


def _schema(args: type, returns: str) -> str:
    def declaration(name: str, annotation: str) -> str:
        kind = f"Tensor({name}!)" if annotation == "Mutated" else _SCHEMA_TYPES.get(annotation, annotation)
        return f"{kind} {name}"

    return f"({', '.join(declaration(*item) for item in _annotations(args).items())}) -> {returns}"


class Op(Generic[Args, Outputs]):
    """The op ``main_kernels::<name>``.

    The first argument must be a tensor: autocast is disabled for its device while the implementation runs.

    Args:
        name: name of the op; ends with ``_`` if it writes to arguments, which are annotated ``Mutated``.
        args: NamedTuple of the arguments, in a module with ``from __future__ import annotations``.
        outputs: NamedTuple of the output tensors. None for an op without outputs.
        run: the implementation. Returns ``outputs`` or None.
        fake: the outputs' shapes and dtypes as uninitialised tensors. None for an op without outputs.
        flops: FLOPs of the matrix products of one call, for torch.utils.flop_counter. None if there are no products.
    """

    def __init__(
        self,
        name: str,
        args: type[Args],
        outputs: type[Outputs] | None,
        run: Callable[[Args], Outputs | None],
        *,
        fake: Callable[[Args], Outputs] | None = None,
        flops: Callable[[Args], int] | None = None,
    ) -> None:
        self._args, self._outputs, self._run = args, outputs, run
        self._apply: Callable[..., Any] | None = None
        self._tensors_of = attrgetter(*(name for name, kind in _annotations(args).items() if kind in _TENSORS))

        def implementation(*values: Any) -> list[Tensor] | None:
            with disabled(values[0]):
                result = run(args(*values))
            return None if result is None else list(result)

        self.definition = torch.library.custom_op(
            f"main_kernels::{name}",
            implementation,
            mutates_args=[name for name, annotation in _annotations(args).items() if annotation == "Mutated"],
            schema=_schema(args, "()" if outputs is None else "Tensor[]"),
        )
        if fake is not None:
            self.definition.register_fake(lambda *values: list(fake(args(*values))))
        if flops is not None:
            FLOP_FORMULAS[name] = lambda *values, **_: flops(args(*values))
        self._op = getattr(torch.ops.main_kernels, name).default

    def __call__(self, args: Args) -> Outputs:
        """Run the op.

        Args:
            args: the arguments.

        Returns:
            The outputs, or None for an op without outputs.
        """
        if torch.compiler.is_compiling():
            return self._run_by_torch_library(args)
        tensors = [tensor for tensor in self._tensors_of(args) if tensor is not None]
        if not _is_plain_call(tensors):
            return self._run_by_torch_library(args)
        if self._apply is not None and self._outputs is not None and _needs_grad(tensors):
            return self._outputs(*self._apply(*args))
        return self._run_directly(args)

    def _run_by_torch_library(self, args: Args) -> Outputs:
        register_flop_formulas()
        result = self._op(*args)
        return cast(Outputs, None) if self._outputs is None else self._outputs(*result)

    def _run_directly(self, args: Args) -> Outputs:
        with torch._C._AutoDispatchBelowAutograd(), disabled(args[0]):
            if not torch.autograd._profiler_enabled():
                return cast(Outputs, self._run(args))
            with torch.profiler.record_function(self._op.name()):  # as torch.library would name it
                return cast(Outputs, self._run(args))

    def register_autograd(
        self,
        label: str,
        *,
        save: Callable[[Any, Args, Outputs], None],
        backward: Callable[[Any, Outputs, Args], dict[str, Tensor | None]],
    ) -> None:
        """Register the autograd rule. Differentiating it a second time is an error.

        Args:
            label: the op's name in the error of a second derivative.
            save: called after the forward as ``save(ctx, args, outputs)``.
            backward: called as ``backward(ctx, grads, needs_grad)``, with the outputs' gradients (None for those that
                have none, which are not all) and, per argument, a bool. Returns the gradients by the argument's name; a
                missing one is None.
        """
        names: Sequence[str] = self._args._fields  # type: ignore[attr-defined]
        outputs = self._outputs
        assert outputs is not None

        def keep(ctx: Any, args: Args, result: Outputs) -> None:
            save(ctx, args, result)
            ctx.set_materialize_grads(False)  # else autograd allocates zeros for every output without a gradient

        def setup_context(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
            keep(ctx, self._args(*inputs), outputs(*output))

        @first_only(label)
        def gradients(ctx: Any, grads: Sequence[Any]) -> tuple[Tensor | None, ...]:
            by_name = backward(ctx, outputs(*grads), self._args(*ctx.needs_input_grad))
            return tuple(map(by_name.get, names))

        def rule(ctx: Any, grads: Sequence[Any]) -> tuple[Tensor | None, ...]:
            return gradients(ctx, grads) if True in [grad is not None for grad in grads] else (None,) * len(names)

        class Rule(torch.autograd.Function):
            """The same rule for a plain call."""

            @staticmethod
            def forward(ctx: Any, *values: Any) -> Any:
                args = self._args(*values)
                result = self._run_directly(args)
                keep(ctx, args, result)
                return tuple(result)

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return rule(ctx, grads)

        # Function.apply looks for transforms again and for their remains in every argument
        self._apply = super(torch.autograd.Function, Rule).apply
        self.definition.register_autograd(rule, setup_context=setup_context)


def _is_plain_call(tensors: Sequence[Tensor]) -> bool:
    """Return True if no torch machinery needs to see the op: no trace, no transform, no mode, no tensor subclass.

    torch.library takes ten times as long as a kernel's launch: half a millisecond for fifty arguments and outputs."""
    if torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
        return False
    return {type(tensor) for tensor in tensors} <= _PLAIN and not tensors[0].is_meta


def _needs_grad(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and True in [tensor.requires_grad for tensor in tensors]


def register_flop_formulas() -> None:
    """Register the formulas with torch.utils.flop_counter and with counters that are already running.

    The module is not imported here because it imports Triton. An op calls this before it runs, as a counter may be
    imported after this package.
    """
    if torch.compiler.is_compiling():
        return
    counter = sys.modules.get("torch.utils.flop_counter")
    if counter is None:
        return
    running = [getattr(mode, "counter", mode) for mode in _get_current_dispatch_mode_stack()]
    registries = [counter.flop_registry, *(getattr(mode, "flop_registry", {}) for mode in running)]
    for registry in registries:
        for name, formula in FLOP_FORMULAS.items():
            registry[getattr(torch.ops.main_kernels, name)] = formula
