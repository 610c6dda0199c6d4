"""Load a checkpoint, encode pairs with its chat template, and run packed forward passes."""
