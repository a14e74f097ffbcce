"""Every command as a function of the same name, with the same words.

    import sslkit
    run = sslkit.pretrain("photos", epochs=100)
    sslkit.probe(run, data="labelled-photos")

Each one puts its configuration together, calls the floor that does the work and, where there is something to
see, the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit import config as configuration
from sslkit.config import AUTO, PretrainConfig
from sslkit.console import SILENT, Console
from sslkit.errors import UserError, nearest
from sslkit.methods import card, full_name

if TYPE_CHECKING:
    from sslkit.diagnosis import Finding

PRETRAIN_FLAGS = {
    "backbone": "model.backbone",
    "init": "model.init",
    "epochs": "schedule.epochs",
    "batch_size": "run.batch_size",
    "micro_batch": "run.micro_batch",
    "lr": "optim.lr",
    "size": "data.size",
    "limit": "data.limit",
    "workers": "data.workers",
    "device": "run.device",
    "precision": "run.precision",
    "out": "run.out",
    "save_every": "run.save_every",
    "pictures": "run.pictures",
    "seed": "run.seed",
}
"""Flag of `sslkit pretrain` → the setting it stands for."""


def pretrain(
    *data: str | Path,
    method: str | None = None,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    resume: str | Path | None = None,
    allow_data_change: bool = False,
    overwrite: bool = False,
    console: Console = SILENT,
    **flags: Any,
) -> Path:
    """Learn from images without labels; returns the run's folder.

    Args:
        data: folders, .txt lists, .csv tables or fractal:N.
        method: name of a method, or a file with one; "mfm" by default.
        config: a TOML file or a recipe's name.
        settings: "section.key=value" texts, as after --set.
        resume: continue this run instead; nothing else is needed, and only `allow_data_change` is allowed.
        allow_data_change: resume although the images have changed.
        overwrite: a run that is already at `out` is moved aside, to OUT-old-1.
        flags: the words of PRETRAIN_FLAGS, e.g. `epochs=100, batch_size=256`; None means not given.

    Raises:
        UserError: what was asked for can't work; nothing was written.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if resume is not None:
        if data or given or method or config or settings or overwrite:
            raise UserError(
                "--resume goes alone: the run knows its own settings", f"sslkit pretrain --resume {resume}"
            )
        from sslkit.training.pretrain import resume as continue_run

        run = continue_run(Path(resume), console, allow_data_change)
    else:
        if allow_data_change:
            raise UserError("--allow-data-change belongs to --resume", "sslkit pretrain --resume RUN")
        wanted = pretrain_config(data, method, config, settings, given)
        from sslkit.training.pretrain import pretrain as train

        run = train(wanted, console, overwrite)
    _write_report(run, console)
    return run


def pretrain_config(
    data: Sequence[str | Path],
    method: str | None = None,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> PretrainConfig:
    """The layers put together and checked; imports no torch. Raises UserError."""
    file = configuration.read_again(str(config)) if config is not None else {}
    assigned = dict(map(configuration.parse_set, settings))
    in_file, in_settings = file.pop("method.name", None), assigned.pop("method.name", None)
    in_file = full_name(in_file) if in_file else None
    name = full_name(str(method or in_settings or in_file or "mfm"))
    if name != (in_file or name):  # another method than the file's: its settings mean nothing here
        file = {key: value for key, value in file.items() if not key.startswith("method.")}
    known = card(name)
    for flag in flags or {}:
        if flag not in PRETRAIN_FLAGS:
            raise UserError(f"pretrain has no option {flag!r}", nearest(flag, PRETRAIN_FLAGS))
    given = {PRETRAIN_FLAGS[flag]: _text(value) for flag, value in (flags or {}).items()}
    values = {**known.facts.get("defaults", {}), **file, **assigned, **given}
    if data:
        values["data.sources"] = [str(source) for source in data]
    if not values.get("data.sources"):
        raise UserError("no images given", "sslkit pretrain photos/, or fractal:2000 for generated ones")
    return configuration.build_pretrain(name, known.Config, values)


def probe(*sources: str | Path, data: str | Path, console: Console = SILENT, **options: Any) -> Any:
    """Frozen features of each source, classified by kNN and a linear layer beside baselines.

    A source that is a run gets the result into its folder and its report. See `evaluation.probe.probe` for
    the options and the ProbeResult.
    """
    from sslkit.evaluation.probe import probe as run

    result = run([str(source) for source in sources], str(data), console=console, **options)
    for source in sources:
        _add_to_report(Path(source), "probe", result.to_document(), console)
    return result


def finetune(source: str | Path, data: str | Path, console: Console = SILENT, **options: Any) -> Any:
    """Train a classifier that starts from `source`.

    A source that is a run gets the result into its folder and its report. See `evaluation.finetune.finetune`
    for the options and the FinetuneResult.
    """
    from sslkit.evaluation.finetune import finetune as run

    result = run(str(source), str(data), console=console, **options)
    if not result.scratch:
        _add_to_report(Path(source), "finetune", result.to_document(), console)
    return result


def export(
    source: str | Path, out: str | Path | None = None, console: Console = SILENT, **options: Any
) -> Any:
    """Weights for timm (or ONNX), each proven by loading them back. See sslkit.exporting."""
    from sslkit.exporting import export as run

    return run(str(source), Path(out) if out is not None else None, console=console, **options)


def visualize(
    source: str | Path, images: Sequence[str | Path] = (), console: Console = SILENT, **options: Any
) -> list[Path]:
    """Pictures of what a method does or a model learned; returns their files. See visualization.visualize."""
    from sslkit.visualization.visualize import visualize as run

    options |= {"out": Path(options["out"])} if options.get("out") else {}
    options |= {"kinds": [options["kinds"]]} if isinstance(options.get("kinds"), str) else {}
    return run(str(source), [str(image) for image in images], console=console, **options)


def check(
    *data: str | Path,
    against: Sequence[str | Path] = (),
    out: str | Path | None = None,
    workers: int | None = None,
    console: Console = SILENT,
) -> Any:
    """What is wrong with images, before hours are spent on them; an Audit. See sslkit.data.audit.

    Args:
        against: images that `data` should not share, such as a validation set.
        out: a new .tsv file with a line for every finding: kind, path, detail.

    Raises:
        UserError: nothing to look at, or `out` exists or can't be written.
    """
    from sslkit.data.audit import audit

    if out is not None and (Path(out).exists() or not Path(out).absolute().parent.is_dir()):
        reason = "exists" if Path(out).exists() else "lies in no folder"
        raise UserError(f"--out {out} {reason}", "choose another file; nothing is overwritten")
    found = audit([str(source) for source in data], [str(other) for other in against], workers, console)
    if out is not None:
        try:
            with Path(out).open("x", encoding="utf-8") as file:
                file.writelines("\t".join(row) + "\n" for row in found.rows())
        except OSError as problem:
            raise UserError(f"--out {out} can't be written: {problem.strerror}", code=1) from None
    return found


def doctor(train: bool = False) -> Iterator[Finding]:
    """What of the environment could spoil a run, finding by finding. See sslkit.diagnosis."""
    from sslkit.diagnosis import examine

    return examine(train)


def _add_to_report(run: Path, name: str, document: Mapping[str, Any], console: Console) -> None:
    """Keep the latest result beside the run that it judges: RUN/name.json, and RUN/report.html made anew."""
    if not (run / "run.json").is_file() or not (run / "config.toml").is_file():
        return
    unfinished = run / f".{name}.json"
    unfinished.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    unfinished.replace(run / f"{name}.json")
    _write_report(run, console)


def _write_report(run: Path, console: Console) -> None:
    """RUN/report.html. The work is done by now: a page that can't be written is no reason to fail."""
    from sslkit.visualization.report import write_report

    try:
        write_report(run)
    except (UserError, OSError) as problem:
        console.warn(f"{run / 'report.html'} was not written: {problem}")


def _text(value: Any) -> Any:
    """Paths as text; numbers and texts as they are; "auto" stays auto."""
    return AUTO if value == AUTO else str(value) if isinstance(value, Path) else value
