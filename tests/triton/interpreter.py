"""Repairs of Triton's interpreter: bfloat16, of which it multiplies the raw bits in ``tl.dot`` and truncates where it
should round, and loop bounds, which it cannot read under NumPy 2.4. It also patches triton.language once for all: anew
for each call of a function, which takes most of a kernel's time, is too often. A fifth of the rest would go to integer
sums computed again in search of an overflow, which is reported with debug=True alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np


def widened(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrowed(x: np.ndarray) -> np.ndarray:
    """bfloat16 bits of float32 values, rounded to nearest even; a NaN stays one."""
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded).astype(np.uint16).reshape(x.shape)


def repair() -> None:
    """Call before any kernel runs. Kernels do arithmetic in float32, so products and casts are all there is to it."""
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    product, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def wide(handle):  # type: ignore[no-untyped-def]
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle(widened(handle.data), tl.float32)

    def create_dot(self, a, b, *rest):  # type: ignore[no-untyped-def]
        return product(self, wide(a), wide(b), *rest)

    def cast_impl(self, source, target):  # type: ignore[no-untyped-def]
        narrow = target.scalar == tl.bfloat16
        if narrow == (source.dtype.scalar == tl.bfloat16):
            return cast(self, source, target)
        if narrow:
            return TensorHandle(narrowed(source.data.astype(np.float32)), tl.bfloat16)
        return wide(source) if target.scalar == tl.float32 else cast(self, wide(source), target)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl

    assert not interpreter.interpreter_builder.options.debug
    interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)

    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, scope):  # type: ignore[no-untyped-def]
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda _: interpreter._LangPatchScope()
