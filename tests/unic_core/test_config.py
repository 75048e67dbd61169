from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from unic_core.config import dump_config, json_schema, load_config, parse_config
from unic_core.config.evaluation import check_probes, check_tasks
from unic_core.errors import UnicError
from unic_core.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_survives_yaml(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "run.yaml") == config


def test_paper_recipe_holds_the_papers_constants() -> None:
    config = load_config("paper_vitb16")
    assert [t.name for t in config.teachers] == ["dino", "ibot", "deit3", "dbotft"]
    student = config.student
    assert (student.model, student.image_size, student.drop_path) == ("vit_base_patch16_224", 224, 0.1)
    assert (config.projector.kind, config.projector.hidden, config.projector.hidden_last) == ("ladder", 768, 3072)
    assert (config.optimizer.lr, config.optimizer.min_lr, config.optimizer.warmup) == (3e-4, 1e-6, 10)
    assert (config.optimizer.betas, config.optimizer.weight_decay) == ((0.9, 0.99), 0.03)
    assert (config.training.epochs, config.training.batch) == (200, 512)
    assert (config.standardizer.momentum_start, config.standardizer.momentum_end) == (1.0, 0.001)
    assert config.balancer.drop == 0.5
    assert config.data.augment.blur_kernel == 9


def test_overrides_are_yaml_and_reach_into_lists() -> None:
    config = load_config("smoke", ["optimizer.lr=1e-5", "teachers.0.image_size=64", "data.augment.scale=[0.5, 1]"])
    assert config.optimizer.lr == 1e-5
    assert config.teachers[0].image_size == 64
    assert config.data.augment.scale == (0.5, 1.0)


def test_another_kind_starts_the_section_afresh() -> None:
    config = load_config("smoke", ["projector.kind=mlp", "projector.hidden=7"])
    assert config.projector.model_dump()["hidden"] == 7
    assert not hasattr(config.projector, "hidden_last")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("foo=1", "unknown key foo"),
        ("projector.hiden=3", "unknown key projector.hiden"),
        ("training.batch=many", "training.batch: input should be a valid integer, not 'many'"),
        ("training.batch=1.5", "training.batch"),
        ("seed=true", "seed"),
        ("student.drop_path=2", "less than or equal to 1, not 2"),
        ("teachers.9.name=x", "the list has the items 0 to 0"),
        ("teachers=[]", "teachers"),
        ("training.epochs=3", "exactly one of epochs and steps"),
        ("training.accumulate=5", "not divisible by accumulate 5"),
        ("cluster.workers=64", "64 workers without an image"),
        ("data.augment.scale=[1, 0.5]", "scale must be two rising positive numbers"),
        ("data.augment.blur_kernel=4", "blur_kernel must be odd"),
        ("loss.cls={cosine: 0, smooth_l1: 0}", "both 0"),
        ("teachers.0.tokens=[cls, cls]", "each once"),
        ("evaluation.knn_k=[]", "at least one k"),
        ("evaluation.c_values=[.nan]", "evaluation.c_values.0: input should be a finite number, not nan"),
        ("optimizer.lr=.inf", "optimizer.lr: input should be a finite number, not inf"),
        ("evaluation.probes=[{dataset: a, train_on: b}, {dataset: a}]", "probes: 'a' is tested twice"),
        (
            "evaluation.probes=[{dataset: a}, {dataset: b, train_on: a, classifier: sgd}]",
            "'a' and 'b' share the classifier trained on 'a', but differ in classifier",
        ),
        (
            "evaluation.probes=[{dataset: a}, {dataset: b, train_on: a, train_split: all}]",
            "differ in train_split; give both the same",
        ),
        ("name=Has Spaces", "name"),
        ("nonsense", "write it as key.path=value"),
        ("name={", "must be YAML"),
        ("name.first=x", "name has no keys below it"),
        ("name.first.second=x", "nothing can lie below"),
    ],
)
def test_a_mistake_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UnicError) as error:
        load_config("smoke", [override])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_impossible_combinations_are_refused() -> None:
    data = load_config("smoke").model_dump(mode="json")
    twice = {**data, "teachers": data["teachers"] * 2}
    with pytest.raises(UnicError, match="name 'lite0' is used twice"):
        parse_config(twice)
    weights = {**data, "balancer": {"kind": "fixed", "weights": {"other": 1.0}}}
    with pytest.raises(UnicError, match="name each teacher once"):
        parse_config(weights)


@pytest.mark.parametrize(
    ("evaluated", "sentence"),
    [
        ("probes=[{dataset: digit}]", "probes names 'digit', which is not in datasets; choose from digits, add it"),
        ("probes=[{dataset: digits, train_on: letters}]", "names 'letters'"),
        ("probes=[{dataset: digits, test_split: val}]", "needs the split 'val' of digits, but datasets prepares only"),
        ("probes=[{dataset: 's3://b/p/0123', train_on: digits, test_split: any}]", None),
        ("segmentation=[{dataset: masks}]", "evaluation.segmentation names 'masks', which is not in datasets"),
        ("depth=[{dataset: digits, train_split: all}]", "evaluation.depth needs the split 'all' of digits"),
        ("zeroshot=[{dataset: digits, test_split: val, teacher: lite0, text: t}]", "zeroshot needs the split 'val'"),
        ("zeroshot=[{dataset: digits, teacher: lite0, text: t}]", None),
    ],
)
def test_evaluations_of_sets_that_are_not_prepared_are_refused(evaluated: str, sentence: str | None) -> None:
    config = load_config("smoke", [f"evaluation.{evaluated}", "datasets.0.splits=[train, test]"])

    def check() -> None:
        check_probes(config.evaluation.probes, config.datasets)
        check_tasks(config.evaluation.tasks.values(), config.datasets)

    if sentence is None:
        check()
        return
    with pytest.raises(UnicError) as error:
        check()
    assert sentence in str(error.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnicError, match="one of the recipes fashion_demo, paper_vitb16, smoke, unic_l"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2")
    for place in (tmp_path, tmp_path / "broken.yaml" / "under-a-file", "x" * 5000):
        with pytest.raises(UnicError, match="no config at"):
            load_config(place)
    with pytest.raises(UnicError, match="not valid YAML at line 2"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UnicError, match="must be a YAML mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnicError, match="not a text file"):
        load_config(tmp_path / "binary.yaml")


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("name: !!python/object/apply:os.getcwd []")
    with pytest.raises(UnicError, match="not valid YAML"):
        load_config(tmp_path / "evil.yaml")


def test_configs_are_frozen() -> None:
    config = load_config("smoke")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


def test_schema_describes_every_section() -> None:
    properties = json_schema()["properties"]
    assert set(properties) == set(yaml.safe_load(dump_config(load_config("smoke"))))
