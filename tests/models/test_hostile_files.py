"""Files made to harm: nothing in them runs, the answer is a line, and the memory stays small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sslkit import api
from sslkit.core.errors import UserError
from sslkit.models.encoder import Encoder
from sslkit.models.weights import ENCODER_FILE, architecture, load_encoder, write_encoder
from sslkit.training.run.folder import RunFolder, read_configuration

ROOT = Path(__file__).parents[2]

EXPECTED = {
    "pt_system": "would call posix.system",
    "pt_eval": "would call __builtin__.eval",
    "pt_exec": "would call __builtin__.exec",
    "pt_legacy": "would call posix.system",
    "pt_bare_pickle": "calls names in a hidden way",
    "pt_in_namespace": "would call __builtin__.eval",
    "pt_as_storage": "would call posix.system",
    "pt_hidden_name": "calls names in a hidden way",
    "pt_hub": "would call torch.hub.load",
    "pt_zip_bomb": "compressed, and torch.save never compresses",
    "pt_overlap": "together larger than the file",
    "pt_directory_bomb": "an archive's directory of more than",
    "pt_many_lists": "a pickle of more than 400,000 instructions",
    "pt_truncated": "an archive that is cut off",
    "pt_expanded": "claims tensors that are larger than itself",
    "pt_short_storage": "can't be read",
    "pt_no_pickle": "no data.pkl in it",
    "pt_noise": "can't be read",
    "pt_empty": "can't be read",
    "st_huge_header": "its header claims",
    "st_header_bomb": "its header claims",
    "st_overlap": "invalid offset",
    "st_negative_shape": "can't be read",
    "st_overflow": "overflow",
    "st_beyond": "can't be read",
    "st_not_json": "its header is no JSON",
    "st_deep": "can't be read",
    "st_twice": "names something twice",
    "dcp_metadata": "its .metadata a program",
}


@cache
def read_all() -> dict[str, dict[str, Any]]:
    """tests/faults/hostile.py makes the files and reads each in a process of its own."""
    if not hasattr(os, "fork") or not Path("/proc/self/statm").exists():
        pytest.skip("forks and /proc, by which memory is measured, are Linux's")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/faults/hostile.py"), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return {line["file"].split(".")[0]: line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_hostile_file(name: str) -> None:
    found = read_all()[name]
    assert found["kind"] == "UserError", found["text"]
    # The library writes "InvalidOffset" in one version and "invalid offset" in another.
    assert EXPECTED[name].replace(" ", "").lower() in found["text"].replace(" ", "").lower()
    assert not found["canary"]
    assert found["grown"] <= max(1.2 * found["bytes"], 32 << 20)
    assert found["harmless"]


@pytest.mark.slow
def test_every_hostile_file_is_expected() -> None:
    assert set(read_all()) == set(EXPECTED)


# --------------------------------------------------------------------------------------------- config.json

CONFIG: list[tuple[dict[str, Any], str]] = [
    ({"architecture": ["test_vit"]}, "architecture"),
    ({"architecture": {"a": 1}}, "architecture"),
    ({"architecture": "../../evil"}, "unknown backbone"),
    ({"architecture": "hf-hub:nobody/nothing"}, "unknown backbone"),
    ({"num_classes": 10**12}, "no last layer"),
    ({"num_classes": "many"}, "num_classes 'many'"),
    ({"model_args": {"img_size": 2**40}}, "img_size"),
    ({"model_args": {"img_size": 4096, "dynamic_img_size": True, "patch_size": 1}}, "4096 × 4096 positions"),
    ({"model_args": {"img_size": 4096, "dynamic_img_size": True}}, "128 × 128 positions"),
    ({"model_args": {"patch_size": 0}}, "patch_size 0"),
    ({"model_args": {"patch_size": -8}}, "patch_size -8"),
    ({"model_args": {"patch_size": [8, 8]}}, "patch_size"),
    ({"model_args": {"patch_size": 1e300}}, "patch_size"),
    ({"model_args": {"dynamic_img_size": True}}, "img_size"),
    ({"model_args": "img_size"}, "config.json"),
    ({"model_args": None}, "config.json"),
    ({"pretrained_cfg": {"input_size": [3, 32, True]}}, "input_size"),
    ({"pretrained_cfg": {"input_size": "32"}}, "input_size"),
    ({"pretrained_cfg": {"mean": [0, 0]}}, "mean"),
    ({"pretrained_cfg": {"mean": [0, 0, float("nan")]}}, "mean"),
    ({"pretrained_cfg": {"std": [1, 1, 0]}}, "std"),
    ({"pretrained_cfg": {"std": "one"}}, "config.json"),
    ({"sslkit": {"stem": ["small"]}}, "stem"),
    ({"sslkit": "small"}, "config.json"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIG, ids=lambda value: str(value)[:50])
def test_hostile_config(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_encoder(Encoder("test_vit", 32), tmp_path, ENCODER_FILE, {})
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in changes.items():
        merged = isinstance(value, dict) and key in ("model_args", "pretrained_cfg")
        config[key] = {**config[key], **value} if merged else value
    if changes == {"model_args": {"dynamic_img_size": True}}:
        del config["model_args"]["img_size"]
    if changes == {"model_args": {"img_size": 4096, "dynamic_img_size": True}}:
        config["model_args"].pop("patch_size", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        load_encoder(tmp_path)
    assert "\n" not in caught.value.message
    if "is not a timm model configuration" in caught.value.message:
        with pytest.raises(UserError):
            architecture(str(tmp_path))


def test_deep_config(tmp_path: Path) -> None:
    write_encoder(Encoder("test_vit", 32), tmp_path, ENCODER_FILE, {})
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json is not a timm model configuration"):
        load_encoder(tmp_path)


# --------------------------------------------------------------------------------------------- run folders

TOML = {
    "no TOML": b"[data\nsize=",
    "other bytes": b"\xff\xfe\x00",
    "another section": b"[evil]\nx = 1\n",
    "no section": b"x = 1\n",
    "a table for a number": b"[data]\nsize = {a = 1}\n",
    "a text for a number": b'[run]\nseed = "0"\n',
    "a huge number": b"[data]\nlimit = " + b"9" * 5000 + b"\n",
    "no number": b"[optim]\nlr = nan\n",
    "another method": b"[method]\nname = \"__import__('os')\"\n",
    "a path as method": b'[method]\nname = "../../evil"\n',
    "a list as method": b"[method]\nname = [1]\n",
    "deep": b"[data]\nx = " + b"[" * 100_000,
}


@pytest.mark.parametrize("name", TOML)
def test_hostile_configuration_of_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.toml").write_bytes(TOML[name])
    with pytest.raises(UserError) as caught:
        read_configuration(tmp_path / "config.toml")
    assert len(caught.value.message.splitlines()) == 1
    (tmp_path / "run.json").write_text(
        '{"kind": "pretrain", "data": {"fingerprint": "", "count": 1, "native": 8}}'
    )
    with pytest.raises(UserError):
        api.pretrain(resume=tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "\x00", '{"kind": 3}', '{"kind": "pretrain"}', "[" * 100_000, "\ud800"]
)
def test_hostile_run_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as caught:
        RunFolder.open(tmp_path)
    assert "\n" not in caught.value.message


def test_a_run_folder_names_no_code_outside_itself(tmp_path: Path) -> None:
    """A weight file's metadata is text: a name in it is shown, never imported or opened."""
    write_encoder(Encoder("test_vit", 32), tmp_path, ENCODER_FILE, {"method": "evil.py", "sslkit": "$(id)"})
    assert load_encoder(tmp_path).name == "test_vit"
