"""``python -m presto_models COMMAND``: make and steer music, train, prepare data, measure.

Each command is a frozen dataclass of options and a ``run(options)`` in a module of its own, imported when asked for.
"""

from __future__ import annotations

import importlib
import sys

# command: (module, its options, what it does)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "generate": ("presto_models.generate", "GenerateOptions", "music from a prompt"),
    "control intensity": ("presto_models.ditto.commands", "IntensityOptions", "music as loud as a curve says"),
    "control melody": ("presto_models.ditto.commands", "MelodyOptions", "music with a melody"),
    "control structure": ("presto_models.ditto.commands", "StructureOptions", "music of a form, such as ABBA"),
    "control transfer": ("presto_models.ditto.commands", "TransferOptions", "music of the form a recording has"),
    "control outpaint": ("presto_models.ditto.commands", "OutpaintOptions", "a recording that goes on"),
    "control inpaint": ("presto_models.ditto.commands", "InpaintOptions", "a recording with a gap filled"),
    "control loop": ("presto_models.ditto.commands", "LoopOptions", "music that repeats without a seam"),
    "control invert": ("presto_models.ditto.commands", "InvertOptions", "the noise a model makes a recording of"),
    "train autoencoder": ("presto_models.training.autoencoder", "TrainAutoencoderOptions", "train an autoencoder"),
    "train stereo": ("presto_models.training.stereo", "TrainStereoOptions", "train a mono-to-stereo module"),
    "train diffusion": ("presto_models.training.diffusion", "TrainDiffusionOptions", "train a diffusion model"),
    "train adaptor": ("presto_models.ditto.adaptor.training", "TrainAdaptorOptions", "curves and melodies for a frozen model"),
    "distill presto-ls": ("presto_models.distill.cli", "PrestoLSOptions", "few steps of few layers: both of these"),
    "distill presto-l": ("presto_models.distill.cli", "PrestoLOptions", "fewer layers where there is more noise"),
    "distill presto-s": ("presto_models.distill.cli", "PrestoSOptions", "few steps, by distribution matching"),
    "distill ase": ("presto_models.distill.cli", "AseOptions", "the last layers dropped: what Presto-L is measured by"),
    "distill cm": ("presto_models.distill.cli", "CmOptions", "few steps, by consistency"),
    "distill ctm": ("presto_models.distill.cli", "CtmOptions", "any jump along a trajectory, by consistency"),
    "distill inspect": ("presto_models.distill.inspect", "InspectOptions", "hidden states by block and noise level"),
    "data render": ("presto_models.data.render", "RenderOptions", "public-domain scores to audio with captions"),
    "data encode": ("presto_models.data.encode", "EncodeOptions", "audio with captions to latents"),
    "evaluate methods": ("presto_models.metrics.methods", "MethodsOptions", "one table of many ways to generate"),
    "evaluate control": (
        "presto_models.metrics.control.command",
        "ControlTableOptions",
        "one table of ways to control",
    ),
    "evaluate": ("presto_models.metrics.evaluate", "EvaluateOptions", "how good a checkpoint is, on held-out pieces"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return _run(name, arguments[words:])
    wanted = bool(arguments) and arguments[0] not in ("-h", "--help")
    if wanted:
        print(f"no command {' '.join(arguments[:2])!r}\n", file=sys.stderr)
    print(_usage(), file=sys.stderr if wanted else sys.stdout)
    return 2 if wanted else 0


def _run(name: str, arguments: list[str]) -> int:
    try:
        import tyro
    except ImportError:
        print("the command line needs tyro: pip install 'presto-kernels[models]'", file=sys.stderr)
        return 1
    module_name, options_name, _ = COMMANDS[name]
    module = importlib.import_module(module_name)
    options = tyro.cli(
        getattr(module, options_name),
        args=arguments,
        prog=f"python -m presto_models {name}",
        config=(tyro.conf.FlagCreatePairsOff,),  # --no-plot, and no --no-no-plot beside it
    )
    try:
        status = module.run(options)
        return status if isinstance(status, int) else 0  # some give back what they found
    except (ValueError, TypeError, ArithmeticError, OSError, ImportError) as error:
        # What a person can act on, without the stack; anything else is ours and shows itself.
        print(f"presto: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = [f"  {name:<18} {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(("python -m presto_models COMMAND [--help]", "", *lines))


if __name__ == "__main__":
    sys.exit(main())
