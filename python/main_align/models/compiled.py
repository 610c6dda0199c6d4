"""compile_layers: torch.compile for the layers of a model, one compilation for all of them and for packs of any length.

A layer's norms, rotary embedding, activation and residuals are many small operations that read and write all states.
Compiled, they are a few. The segments of packed attention on a CPU or in float32 stay as they are.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from ..errors import UserError


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the layers of a model when they first run.

    Args:
        model: the model, which is changed.

    Raises:
        UserError: the model does not say which modules are its layers.
    """
    names = model._no_split_modules or ()
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(f"{type(model).__name__} does not say which modules are its layers: leave out compile")
    for layer in layers:
        layer.compile(dynamic=True)
