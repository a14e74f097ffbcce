"""Every command as a function of the same name, with the same words.

    import sslkit
    run = sslkit.pretrain("photos", epochs=100)
    sslkit.probe(run, data="labelled-photos")

Each one puts its configuration together, calls the floor that does the work and, where there is something to
see, the pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import SILENT, Console, command
from sslkit.core.distributed import environment
from sslkit.core.errors import UserError
from sslkit.core.paths import check_free, refuse_unwritable, write_whole
from sslkit.training.pretrain.config import pretrain_config

if TYPE_CHECKING:
    from sslkit.testing.doctor import Finding
    from sslkit.training.loop.rates import DryRun, Rates


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
        resume: continue this run instead; nothing else is needed, and only `epochs` (another length, for a
            run that is complete too), `allow_data_change` and `devices` are allowed.
        allow_data_change: resume although the images have changed.
        overwrite: a run that is already at `out` is moved aside, to OUT-old-1.
        flags: the words of PRETRAIN_FLAGS, e.g. `epochs=100, batch_size=256`; None means not given.

    Raises:
        UserError: what was asked for can't work; nothing was written.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if resume is not None:
        free = {name: given.pop(name, None) for name in ("devices", "epochs")}
        if data or given or method or config or settings or overwrite:
            raise UserError(
                "--resume goes alone: the run knows its own settings",
                command("sslkit", "pretrain", "--resume", resume),
            )
        from sslkit.training.pretrain.pretrain import resume as continue_run

        run = continue_run(Path(resume), console, allow_data_change, **free)
    else:
        if allow_data_change:
            raise UserError(
                "--allow-data-change belongs to --resume", "leave it out, or sslkit pretrain --resume RUN"
            )
        wanted = pretrain_config(data, method, config, settings, given)
        from sslkit.training.pretrain.pretrain import pretrain as train

        run = train(wanted, console, overwrite)
    if environment.number() == 0:
        from sslkit.visualization.report.results import write_page

        write_page(run, console)
    return run


def dry_run(
    *data: str | Path,
    method: str | None = None,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    console: Console = SILENT,
    **flags: Any,
) -> DryRun:
    """What `pretrain` with the same words would take, from a few timed steps; writes nothing."""
    given = {name: value for name, value in flags.items() if value is not None}
    wanted = pretrain_config(data, method, config, settings, given)
    from sslkit.training.pretrain.bench import dry_run as run

    return run(wanted, console)


def bench(
    *data: str | Path,
    method: str | None = None,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    steps: int = 20,
    console: Console = SILENT,
    **flags: Any,
) -> tuple[PretrainConfig, Rates]:
    """The settings, and images per second of loader, bare backbone, model and all, from `steps` of each."""
    given = {name: value for name, value in flags.items() if value is not None}
    wanted = pretrain_config(data, method, config, settings, given)
    from sslkit.training.pretrain.bench import measure

    return measure(wanted, console, steps)


def probe(
    *sources: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    console: Console = SILENT,
    **options: Any,
) -> Any:
    """Frozen features of each source, classified by kNN and a linear layer beside baselines.

    A source that is a run gets the result into its folder and its report, unless the data are masks or there
    is an `out`, a new folder for table, pictures and JSON. Options and result: `evaluation.probe.probe`.
    """
    from sslkit.evaluation.probe.probe import probe as run
    from sslkit.visualization.figures.probe_charts import write_result
    from sslkit.visualization.report.results import is_run, keep_probe

    if out is not None:
        if os.path.lexists(out):
            raise UserError(f"{out} exists", "choose another folder; nothing is overwritten")
        refuse_unwritable(Path(out))
    result = run([str(source) for source in sources], str(data), console=console, **options)
    if out is not None:  # the run stays as it is: a small experiment must not replace its probe and verdict
        write_result(result, Path(out))
        return result
    for source in map(Path, sources):
        if is_run(source) and result.rows:  # masks alone don't take the place of a probe of classes
            keep_probe(result, source, console)
    return result


def finetune(
    source: str | Path | None = None,
    data: str | Path | None = None,
    console: Console = SILENT,
    **options: Any,
) -> Any:
    """Train a classifier that starts from `source`, or continue: `finetune(resume=RUN)`.

    A source that is a run gets the result into its folder and its report. See `finetuning.finetune.finetune`
    for the options, and the FinetuneResult or, with a baseline or several seeds, the Comparison.
    """
    from sslkit.finetuning.finetune import finetune as run
    from sslkit.visualization.figures.confusion import draw_runs
    from sslkit.visualization.report.results import add_to_report
    from sslkit.visualization.report.stored import draw_robustness

    given = [None if value is None else str(value) for value in (source, data)]
    result = run(*given, console=console, **options)
    if environment.number() > 0:
        return result
    draw_runs([one.folder for one in result.runs], console)
    if result.robustness is not None:
        draw_robustness(result.robustness, result.folder / "pictures")
    if not result.scratch:
        add_to_report(Path(source or result.source), "finetune", result.to_document(), console)
    return result


def finetune_dry_run(
    source: str | Path | None = None,
    data: str | Path | None = None,
    console: Console = SILENT,
    **options: Any,
) -> DryRun:
    """What `finetune` with the same words would take, from a few timed steps; writes nothing."""
    from sslkit.finetuning.finetune import dry_run as run

    given = [None if value is None else str(value) for value in (source, data)]
    return run(*given, console=console, **options)


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
    for name in ("kinds", "others"):
        options |= {name: [str(options[name])]} if isinstance(options.get(name), str | Path) else {}
    return run(str(source), [str(image) for image in images], console=console, **options)


def embed(
    source: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    console: Console = SILENT,
    **options: Any,
) -> Any:
    """One vector per image into a new file; an Embedding. Options: sslkit.evaluation.embedding.embed."""
    from sslkit.evaluation.embedding.embed import embed as run

    options |= {"query": str(options["query"])} if options.get("query") else {}
    return run(str(source), str(data), None if out is None else Path(out), console=console, **options)


def check(
    *data: str | Path,
    against: Sequence[str | Path] = (),
    out: str | Path | None = None,
    workers: int | None = None,
    console: Console = SILENT,
) -> Any:
    """What is wrong with images, before hours are spent on them; an Audit. See sslkit.data.audit.audit.

    Args:
        against: images that `data` should not share, such as a validation set.
        out: a new .tsv file with a line for every finding: kind, path, detail.

    Raises:
        UserError: nothing to look at, or `out` exists or can't be written.
    """
    from sslkit.data.audit.audit import audit

    if out is not None:
        check_free(Path(out))
        refuse_unwritable(Path(out))
    found = audit([str(source) for source in data], [str(other) for other in against], workers, console)
    if out is not None:
        rows = "".join("\t".join(row) + "\n" for row in found.rows())
        made = write_whole(Path(out), lambda file: file.write_text(rows, encoding="utf-8"))
        if made != Path(out):
            console.warn(f"another command has made {out} meanwhile: the findings are in {made}")
    return found


def pack(
    *data: str | Path,
    out: str | Path,
    shard_size: str = "256MB",
    workers: int | None = None,
    limit: int | None = None,
    range: str | Sequence[float] | None = None,
    console: Console = SILENT,
    **settings: Any,
) -> Any:
    """Image files into tar shards and an index, DATA like any other; a Packing. See sslkit.data.packs.writer.

    Args:
        out: a new folder.
        shard_size: such as "256MB".
        range: as `data.range`, by which images of more than 8 bits are made smaller.
        settings: `size` and `quality` of sslkit.data.packs.members.Settings.
    """
    from sslkit.data.packs.members import Settings
    from sslkit.data.packs.writer import pack as run
    from sslkit.data.packs.writer import parse_bytes

    chosen = Settings(shard_size=parse_bytes(shard_size), **settings)
    return run([str(source) for source in data], Path(out), chosen, workers, limit, console, range)


def doctor(train: bool = False) -> Iterator[Finding]:
    """What in the environment could spoil a run, finding by finding. See sslkit.testing.doctor."""
    from sslkit.testing.doctor import examine

    return examine(train)
