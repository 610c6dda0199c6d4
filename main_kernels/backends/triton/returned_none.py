"""return_none_in_structs: lets Triton 3.6 compile functions that return a struct with a field of None.

Later versions return the None; 3.6 looks for a tensor to convert it to, and stops. Here None passes by that conversion.
The repair holds for the whole process, where all it does is turn that error into a result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton.compiler import code_generator


def return_none_in_structs() -> None:
    """Repair the code generator of Triton 3.6; do nothing for a later one."""
    if not triton.__version__.startswith("3.6."):
        return
    convert_fields = code_generator._apply_to_tuple_values

    def without_none(struct: Any, convert: Callable[[Any], Any]) -> Any:
        return convert_fields(struct, lambda field: field if _is_none(field) else convert(field))

    code_generator._apply_to_tuple_values = without_none


def _is_none(field: Any) -> bool:
    return isinstance(field, tl.constexpr) and field.value is None
