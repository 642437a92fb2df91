"""The configuration: three layers, one meaning of a value, and an error for everything that is not a key or a value."""

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from mvrecon.config import Config as PhotoConfig
from pointrecon.config import Config as CloudConfig
from shared.command_line import Parser, add_config_arguments
from shared.config import (
    PRESETS,
    Schedule,
    did_you_mean,
    from_mapping,
    key,
    read_config,
    to_mapping,
    to_yaml,
)
from shared.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Data:
    root: str = key("", "folder of the scene")
    holdout: tuple[int, ...] = key((), "indices held out", minimum=0)
    downscale: int = key(1, "divide the images by this", minimum=1, maximum=8)


@dataclass(frozen=True, kw_only=True)
class Train:
    steps: int | None = key(20000, "training steps", minimum=1)
    minutes: float | None = key(None, "training minutes", minimum=0)
    weight: Schedule = key(Schedule(0.1), "weight of 50% of the loss", minimum=0)
    fast: bool = key(True, "whether to hurry")

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("train.steps and train.minutes cannot both be none; set one")


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = key(0, "seed", minimum=0)
    device: str = key("auto", "device", choices=("auto", "cpu", "cuda"))
    data: Data = Data(downscale=2)
    train: Train = Train()


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "preset.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def refusal(file, *overrides):
    with pytest.raises(UserError) as caught:
        read_config(Config, file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_layers_in_order(write):
    file = write("seed: 3\ntrain:\n  steps: 100\n  fast: no\n")
    config = read_config(Config, file, [("train.steps", "7"), ("data.root", "scene"), ("train.steps", "8")])
    expected = Config(seed=3, data=Data(root="scene", downscale=2), train=Train(steps=8, fast=False))
    assert config == expected
    assert read_config(Config, None) == Config()
    with pytest.raises(FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.steps", "2e4", 20000),
        ("train.steps", "none", None),
        ("train.steps", "9007199254740993", 2**53 + 1),
        ("train.minutes", "1e-3", 0.001),
        ("train.minutes", "10", 10.0),
        ("data.root", "0065", "0065"),
        ("data.root", "no", "no"),
        ("data.holdout", "[8, 24, 40]", (8, 24, 40)),
        ("data.holdout", "[]", ()),
        ("data.holdout", "8", (8,)),
        ("train.fast", "Off", False),
        ("train.weight", "1e-2", Schedule(0.01)),
        ("train.weight", "[0.0, 0.1, 0, 0.5]", Schedule(0, 0.1, 0, 0.5)),
    ],
)
def test_text_means_the_same_in_a_file_and_after_a_flag(write, name, text, value):
    other = [("train.minutes", "1")] if value is None else []
    section, leaf = name.split(".")
    for config in (
        read_config(Config, None, [(name, text), *other]),
        read_config(Config, write(f"{section}:\n  {leaf}: {text}\n"), other),
    ):
        result = getattr(getattr(config, section), leaf)
        assert result == value
        assert type(result) is type(value)


def test_lists_without_brackets_and_blocks(write):
    assert read_config(Config, None, [("data.holdout", "8,24,40")]).data.holdout == (8, 24, 40)
    assert read_config(Config, write("data:\n  holdout:\n    - 8\n    - 24\n")).data.holdout == (8, 24)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trian: {}", ["trian", "did you mean train?"]),
        ("train:\n  step: 5", ["train.step", "did you mean train.steps?"]),
        ("minutes: 5", ["did you mean train.minutes?"]),
        ("train: 5", ["section"]),
        ("seed:\n  - 1", ["seed", "integer"]),
        ("seed: {a: 1}", ["seed", "integer"]),
        ("seed: 1\nseed: 2", ["line 2", "seed is given twice"]),
        ("train: {steps: 1}\ntrain.steps: 2", ["train.steps is given twice"]),
        ("seed: [1", ["line", "mend the YAML"]),
        ("- seed", ["not a mapping"]),
        ("seed", ["not a mapping"]),
        ("seed: -1", ["seed", "-1", "minimum is 0"]),
        ("seed: 1.5", ["integer", "1.5"]),
        ("seed:", ["integer"]),
        ("train: {minutes: .nan}", ["number"]),
        ("train: {minutes: inf}", ["number"]),
        ("train: {fast: maybe}", ["true|false", "maybe"]),
        ("data: {downscale: 9}", ["maximum is 8"]),
        ("data: {holdout: [1, -2]}", ["data.holdout", "-2"]),
        ("data: {holdout: [1, x]}", ["integer", "x"]),
        ("train: {weight: [0, 1, 2]}", ["train.weight", "one number or"]),
        ("train: {weight: [0, 1, -2, 1]}", ["train.weight", "minimum"]),
        ("train: {weight: [0.5, 1, 2, 0.2]}", ["p0 <= p1"]),
        ("device: cud", ["auto, cpu, cuda", "did you mean cuda?"]),
        ("train: {steps: null}", ["cannot both be none"]),
    ],
)
def test_a_bad_file_is_named_with_the_key(write, text, words):
    file = write(text)
    message = refusal(file)
    assert message.startswith(f"{file}: ")
    assert all(word in message for word in words), message


def test_unreadable_files(tmp_path):
    assert "No such file" in refusal(tmp_path / "missing.yaml")
    assert str(tmp_path) in refusal(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "not a text file" in refusal(tmp_path / "binary.yaml")


def test_a_bad_flag_is_named():
    assert refusal(None, ("train.stepps", "1")).startswith("--train.stepps: unknown key; did you mean --train.steps?")
    assert refusal(None, ("seed", "x")) == "--seed: expected integer, got 'x'"


def test_empty_files_and_sections_are_the_defaults(write):
    assert read_config(Config, write("# nothing\n")) == Config()
    assert read_config(Config, write("train:\ndata: {}\n")) == Config()


def test_yaml_round_trip(write):
    config = Config(
        seed=2**60,
        data=Data(root="a: 'b' #\n null ü", holdout=(3, 1)),
        train=Train(steps=None, minutes=1e-05, weight=Schedule(0, 1e-9, 0.25, 1), fast=False),
    )
    assert read_config(Config, write(to_yaml(config))) == config
    assert from_mapping(Config, to_mapping(config), "checkpoint") == config
    assert read_config(Config, write(to_yaml(Config()))) == Config()
    assert "holdout: [3, 1]" in to_yaml(config)


def test_schedule():
    ramp = Schedule(0.2, 1.0, 3.0, 0.6)
    assert [ramp(p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([1, 1, 2, 3, 3])
    jump = Schedule(0.5, 1.0, 0.0, 0.5)
    assert [jump(p) for p in (0.49, 0.5, 1.0)] == [1, 0, 0]
    assert Schedule(0.0, 5.0, 2.0, 0.0)(0.0) == 2.0
    assert Schedule(0.3)(0.9) == 0.3
    for numbers in ((), (1.0, 2.0), (0.0, 1.0, 2.0, 1.5), (-0.1, 1.0, 2.0, 1.0), (float("nan"),)):
        with pytest.raises(ValueError, match="schedule"):
            Schedule(*numbers)


@pytest.fixture
def parser():
    parser = Parser(prog="tool")
    train = parser.add_subparsers(dest="command", required=True).add_parser("train")
    train.add_argument("--out")
    add_config_arguments(train, Config)
    return parser


def test_arguments_are_collected_in_order(parser):
    arguments = parser.parse_args(["train", "--seed", "4", "--out", "run", "--train.minutes=10", "--seed", "5"])
    assert arguments.overrides == [("seed", "4"), ("train.minutes", "10"), ("seed", "5")]
    assert parser.parse_args(["train"]).overrides == []
    assert read_config(Config, None, arguments.overrides).seed == 5


def test_help_shows_every_key_with_its_type_and_default(parser, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "weight of 50% of the loss (number or [p0,v0,v1,p1]; default 0.1)" in text
    assert "divide the images by this (integer; default 2)" in text
    assert "--device auto|cpu|cuda" in text
    assert "data keys:" in text
    assert "training minutes (number or none; default none)" in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "--train.setps", "5"], "did you mean --train.steps?"),
        (["train", "--data.rooot=x"], "did you mean --data.root?"),
        (["trian"], "did you mean train?"),
        (["train", "--train", "5"], "--train"),
        (["train", "--seed"], "expected one argument"),
        ([], "required"),
    ],
)
def test_parser_errors_are_one_line_with_code_2(parser, capsys, arguments, hint):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert hint in text


def test_did_you_mean_says_nothing_when_nothing_is_close():
    assert did_you_mean("zzz", ["train.steps"]) == ""


def test_a_file_of_another_program_is_named(write):
    @dataclass(frozen=True, kw_only=True)
    class Owned(Config):
        PROGRAM: ClassVar[str] = "mvrecon"

    text = to_yaml(Owned(seed=3))
    assert text.startswith("program: mvrecon\n")
    assert read_config(Owned, write(text)) == Owned(seed=3)
    assert read_config(Owned, write("seed: 3\n")) == Owned(seed=3)
    with pytest.raises(UserError, match=r"preset\.yaml: is for `pointrecon`, not for `mvrecon`"):
        read_config(Owned, write("program: pointrecon\nseed: 3\n"))
    assert "program" in refusal(write(text)), "a key like any other where no program owns the class"


def test_an_option_may_be_left_out():
    parser = Parser(prog="p")
    add_config_arguments(parser, Config, without=["seed"])
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", "1"])
    assert parser.parse_args(["--device", "cpu"]).overrides == [("device", "cpu")]


def test_presets_have_names_that_hold_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for program in (CloudConfig, PhotoConfig):
        files = sorted((PRESETS / program.PROGRAM).glob("*.yaml"))
        assert len(files) > 2
        for file in files:
            assert read_config(program, Path(file.stem)) == read_config(program, file)
    for name in ("scen", "scen.yaml"):
        with pytest.raises(UserError, match=rf"^{name}: no such file, .* one of fast, .*; did you mean scene\?$"):
            read_config(CloudConfig, Path(name))
    (tmp_path / "scene").write_text("faces: 77\n")
    assert read_config(CloudConfig, Path("scene")).faces == 77, "a file of one's own goes before"
