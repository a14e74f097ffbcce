"""Several fine-tunings on the same validation images: with other seeds, and from random weights.

    OUT/comparison.json  config.toml  table.md  log.txt
        source-seed-0/  scratch-seed-0/  …    a run's folder each

The budget of both arms is the same; only layer decay, which would freeze random layers, is not.
"""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sslkit.core.config import build as configuration
from sslkit.core.console import Console, command, nearby
from sslkit.core.errors import UserError
from sslkit.core.files import write_json
from sslkit.evaluation.metrics.significance import Difference, against_random, paired_shares
from sslkit.evaluation.robustness.robustness_result import RobustnessResult
from sslkit.finetuning.config import FinetuneConfig
from sslkit.finetuning.result import FinetuneResult
from sslkit.training.run.folder import RunFolder
from sslkit.version import __version__

COMPARISON_FILE = "comparison.json"
SCRATCH = "random weights"
"""What those from scratch are called beside a source."""


@dataclass(frozen=True)
class Arm:
    """One run of a comparison, done or not."""

    folder: Path
    seed: int
    scratch: bool

    def begun(self) -> bool:
        """Whether there is something to resume; a folder that was only just made is removed."""
        if (self.folder / "run.json").is_file() and (self.folder / "config.toml").is_file():
            return True
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        return False

    def result(self) -> FinetuneResult | None:
        """Its result if it is complete."""
        if not (self.folder / "run.json").is_file():
            return None
        facts = RunFolder(self.folder).facts
        if facts.get("status") != "completed":
            return None
        try:
            return FinetuneResult.of_document(facts["result"], self.folder)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{self.folder / 'run.json'} holds no result", "was it edited?") from None


@dataclass(frozen=True)
class Comparison:
    """All runs, and what follows from them."""

    folder: Path
    pretrained: tuple[FinetuneResult, ...]  # from the source, one a seed
    baseline: tuple[FinetuneResult, ...]  # from scratch, in the same order; empty without --baseline
    difference: Difference | None  # of top-1, to the baseline; over images and, with several, over seeds
    per_seed: tuple[float, ...]  # points of top-1
    verdict: str
    robustness: RobustnessResult | None = None

    @property
    def runs(self) -> tuple[FinetuneResult, ...]:
        return (*self.pretrained, *self.baseline)

    @property
    def source(self) -> str:
        return self.pretrained[0].source

    @property
    def scratch(self) -> bool:
        """The source gave only its architecture."""
        return self.pretrained[0].scratch

    @property
    def counts(self) -> dict[str, int]:
        return self.pretrained[0].counts

    @property
    def top1(self) -> float:
        """Percent of the validation images, mean over the seeds."""
        return statistics.mean(result.top1 for result in self.pretrained)

    def to_document(self) -> dict[str, Any]:
        """For JSON: the first run's figures, the means over the seeds, and every run."""
        document = {
            **self.pretrained[0].to_document(),
            "folder": str(self.folder),
            "verdict": self.verdict,
            "seeds": [result.seed for result in self.pretrained],
            **_means(self.pretrained),
            "runs": [result.to_document() for result in self.runs],
        }
        if self.difference is not None:
            document["baseline"] = {"name": SCRATCH, **_means(self.baseline)}
            document["difference"] = {**asdict(self.difference), "per_seed": list(self.per_seed)}
        if self.robustness is not None:
            document["robustness"] = self.robustness.to_document()
        return document


def begin(path: Path, wanted: FinetuneConfig, baseline: bool, seeds: Sequence[int]) -> None:
    """Write down what is to be done, for those who resume."""
    repeat = ["sslkit", "finetune", wanted.model.source, wanted.data.source, "-c", str(path / "config.toml")]
    repeat += ["--baseline", "scratch"] if baseline else []
    repeat += ["--seeds", ",".join(map(str, seeds))]
    header = f"sslkit {__version__}: `{command(*repeat)}` repeats this comparison"
    (path / "config.toml").write_text(configuration.dump(wanted, header), encoding="utf-8")
    arms = [
        {"folder": f"{name}-seed-{seed}", "seed": seed, "scratch": scratch}
        for seed in seeds
        for name, scratch in [("source", wanted.model.scratch), *([("scratch", True)] if baseline else [])]
    ]
    plan = {"format": 1, "kind": "finetune comparison", "baseline": baseline, "arms": arms}
    write_json(path / COMPARISON_FILE, plan)


def read_arms(path: Path) -> list[Arm]:
    """The runs of a comparison, in the order in which they are made. Raises UserError: damaged."""
    try:
        plan = json.loads((path / COMPARISON_FILE).read_text(encoding="utf-8-sig"))
        return [Arm(path / arm["folder"], int(arm["seed"]), bool(arm["scratch"])) for arm in plan["arms"]]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path / COMPARISON_FILE} can't be read: {problem}", "was it edited?") from None


def compare_arms(path: Path, arms: Sequence[Arm], console: Console) -> Comparison:
    """The comparison of complete runs: said, and written to comparison.json and table.md."""
    plan = json.loads((path / COMPARISON_FILE).read_text(encoding="utf-8-sig"))
    results = [result for result in (arm.result() for arm in arms) if result is not None]
    step = 2 if plan["baseline"] else 1
    sources, others = tuple(results[::step]), tuple(results[1::2] if plan["baseline"] else ())
    difference: Difference | None = None
    per_seed: tuple[float, ...] = ()
    if others:
        pairs = [(one.folder, other.folder) for one, other in zip(sources, others, strict=True)]
        difference, per_seed = difference_of(pairs)
    found = Comparison(path, sources, others, difference, per_seed, _verdict(sources, difference, per_seed))
    write_json(path / COMPARISON_FILE, {**plan, "status": "completed", "result": found.to_document()})
    header, rows = _table(found)
    marks = [" --- " for _ in header]
    lines = ["|".join(["", *(f" {cell} " for cell in row), ""]) for row in (header, *rows)]
    lines.insert(1, "|".join(["", *marks, ""]))
    (path / "table.md").write_text("\n".join([*lines, "", found.verdict, ""]), encoding="utf-8")
    console.table(header, rows)
    console.say(found.verdict)
    return found


def difference_of(pairs: Sequence[tuple[Path, Path]]) -> tuple[Difference, tuple[float, ...]]:
    """The first folder of each pair against the second, a pair per seed: together, and points per seed.

    From their predictions.csv, over the images that all runs could read. Raises UserError: damaged.
    """
    tables = [(_predictions(first), _predictions(second)) for first, second in pairs]
    shared = set.intersection(*(set(table) for pair in tables for table in pair))
    images = [path for path in tables[0][0] if path in shared]
    first, second = (
        torch.tensor([[pair[i][path] for path in images] for pair in tables], dtype=torch.float64)
        for i in (0, 1)
    )
    return paired_shares(first, second), tuple((100 * (first - second).mean(dim=1)).tolist())


def _predictions(folder: Path) -> dict[str, int]:
    """Path → 1 if it was named right, else 0."""
    path = folder / "predictions.csv"
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return {row["path"]: int(row["label"] == row["predicted"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, csv.Error) as problem:
        raise UserError(f"{path} can't be read: {problem}", "was it edited?", code=1) from None


def _means(results: Sequence[FinetuneResult]) -> dict[str, float | None]:
    """Mean and standard deviation over the seeds; the latter null with one."""
    means: dict[str, float | None] = {}
    for name in ("top1", "macro_f1", "balanced", "calibration_error"):
        values = [float(getattr(result.scores, name)) for result in results]
        means[name] = statistics.mean(values)
        means[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return means


def _table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """A row per kind of weights, mean ± standard deviation over the seeds."""
    rows = []
    for name, results in ((nearby(found.source), found.pretrained), (SCRATCH, found.baseline)):
        if results:
            means = _means(results)
            cells = [_spread(means, key) for key in ("top1", "macro_f1", "balanced")]
            rows.append([name, *cells, _spread(means, "calibration_error", 3)])
    return ["weights", "top-1 %", "macro-F1 %", "balanced %", "calibration error"], rows


def _spread(means: dict[str, float | None], key: str, digits: int = 1) -> str:
    std = means[f"{key}_std"]
    return f"{means[key]:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def _verdict(
    sources: Sequence[FinetuneResult], difference: Difference | None, per_seed: Sequence[float]
) -> str:
    """One sentence, which claims nothing that is not significant."""
    if difference is None:
        return f"fine-tuned top-1 {_spread(_means(sources), 'top1')} % over {len(sources)} seeds"
    sentence = against_random("fine-tuned top-1", difference)
    if len(per_seed) == 1:
        return f"{sentence}; one seed says nothing about others: --seeds 0,1,2"
    each = ", ".join(f"{points:+.1f}" for points in per_seed)
    return f"{sentence}; {each} with seeds {', '.join(str(source.seed) for source in sources)}"
