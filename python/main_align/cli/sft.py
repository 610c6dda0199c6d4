"""sft: the command `main-align sft`."""

from __future__ import annotations

from pathlib import Path

import typer


def sft(context: typer.Context) -> None:
    """Fine-tune a model with mutual alignment, as `trl sft` fine-tunes without.

    Usage: `main-align sft [CONFIG.yaml] [OPTIONS]`

    The options are those of TRL's parser: every field of MutualAlignmentConfig (SFTConfig with the weights of the
    terms), of ModelConfig (`--model_name_or_path`, `--use_peft`, ...) and of ScriptArguments (`--dataset_name`, a
    file, a pattern, a folder or a hub id). `main-align sft --options` lists them all. Options override the settings
    file.

    **Examples**

    `main-align sft --model_name_or_path ./my-llama --dataset_name pairs.jsonl --output_dir out`

    `main-align sft sft.yaml --semantic_weight 0.1 --learning_rate 1e-5`

    `accelerate launch --multi_gpu -m main_align sft sft.yaml`
    """
    from ..errors import UserError
    from ..training.sft import run_sft
    from ..training.sft_parser import SftParser

    if "--options" in context.args:
        SftParser().print_help()
        return
    arguments = list(context.args)
    if arguments and not arguments[0].startswith("-"):
        if not Path(arguments[0]).is_file():
            raise UserError(f"{arguments[0]}: no such settings file")
        arguments.insert(0, "--config")
    trainer = run_sft(arguments)
    if trainer.is_world_process_zero():
        typer.echo(f"model: {trainer.args.output_dir}")
