"""`varemb compare` of models that rank: cells, splits, tables, and what is refused."""

import numpy as np
import pytest

from varemb.cli import main
from varemb.compare import ranking_pairs
from varemb.compare.ranking_pairs import keep_split, load_pairs
from varemb.data import Split
from varemb.files import load_json
from varemb.plan import SizePlan
from varemb.report.ranking import cost_table, ranking_tables, summarize_levels
from varemb.report.ranking_figure import draw_ranking
from varemb.search import FixedSizes

USERS, ITEMS, WIDTH = 30, 20, 16
QUICK = [
    "--ranking-batch-size", "100", "--epochs", "1", "--round-epochs", "1", "--max-rounds", "2",
    "--sparsity", "0.5,0.75",
]  # fmt: skip
OWN = {  # options that are refused without their method
    "ciess": ["--ciess-episodes", "2", "--ciess-iterations", "2", "--ciess-plans", "1",
              "--ciess-hidden", "8"],
    "esapn": ["--ranking-esapn-stages", "1", "--ranking-esapn-sizes", f"2,{WIDTH}"],
    "optembed": ["--ranking-optembed-epochs", "1", "--ranking-optembed-generations", "2"],
}  # fmt: skip
METHODS = ("--methods", "es,mr,ciess,ciess-no-walk", "--seeds", "2", "--cost-sweep", "0.1,1")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A text file of purchases: users like the items of their half."""
    draw, lines = np.random.default_rng(0), ["who,what"]
    for user in range(USERS):
        liked = [item for item in range(ITEMS) if item % 2 == user % 2]
        lines += [f"{user},{item}" for item in draw.permutation(liked)[:8]]
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def quick(words) -> list[str]:
    """Options that make a comparison short, as far as its methods have them."""
    methods = words[words.index("--methods") + 1].split(",")
    found = QUICK if methods == ["esapn"] else ["--width", str(WIDTH), *QUICK]
    named = [more for name, more in OWN.items() if any(each.startswith(name) for each in methods)]
    return sum(named, list(found))


@pytest.fixture(scope="module")
def rank(pairs):
    """Runs `varemb compare` on them; returns the exit code."""

    def run(out, *words, model="mf") -> int:
        return main([
            "compare", "--data", str(pairs), "--user-column", "who", "--item-column", "what",
            "--model", model, "--out", str(out), *quick(words), *words,
        ])  # fmt: skip

    return run


@pytest.fixture(scope="module")
def ranked(tmp_path_factory, rank):
    out = tmp_path_factory.mktemp("rank") / "a"
    assert rank(out, *METHODS) == 0
    return out


def measures(out):
    """What the finished cells in a folder decided, times aside."""
    found = [load_json(path) for path in sorted(out.glob("*/metrics.json"))]
    return {
        (cell["model"], cell["method"], cell["seed"]): [
            {name: level[name] for name in ("metrics", "valid", "params", "dims")}
            for level in cell["levels"]
        ]
        for cell in found
    }


def test_every_cell_has_a_folder_with_its_plans(ranked):
    record = load_json(ranked / "comparison.json")
    assert record["failed"] == []
    labels = ["es", "mr", "ciess", "ciess-no-walk", "ciess cost=0.1", "ciess cost=1"]
    assert [(c["method"], c["seed"]) for c in record["cells"]] == [
        (label, seed) for seed in (0, 1) for label in labels
    ]
    for cell in record["cells"]:
        name = cell["method"].replace(" ", "-").replace("=", "")
        folder = ranked / f"mf-{name}-seed{cell['seed']}"
        assert load_json(folder / "metrics.json") == cell
        for level in cell["levels"]:
            plan = SizePlan.load(folder / f"plan-{level['sparsity']:g}.safetensors")
            assert plan.num_params == level["params"]
            assert level["params"] <= (1 - level["sparsity"]) * (USERS + ITEMS) * WIDTH
            assert level["bytes"]["weights"] == 4 * level["params"]
            assert level["dims"] == {name: plan[name].mean() for name in ("user", "item")}
    assert (ranked / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (ranked / "comparison.md").read_text()
    for sparsity in ("0.5", "0.75"):
        assert f"mf, sparsity {sparsity}; gain and p against the best baseline" in text
    assert "## CIESS by lambda, the weight of width in the reward" in text


def test_methods_are_what_they_are_called(ranked):
    for method, walk, cost in (
        ("ciess", "paper", 0.4), ("ciess-no-walk", "none", 0.4), ("ciess-cost0.1", "paper", 0.1)
    ):  # fmt: skip
        options = load_json(ranked / f"mf-{method}-seed1" / "options.json")
        assert (options["--ciess-walk"], options["--ciess-cost"]) == (walk, cost)
        assert (options["--sparsity"], options["--ranking-batch-size"]) == ([0.5, 0.75], 100)
        assert options["seed"] == 1
    found = measures(ranked)
    assert found["mf", "es", 0][1]["dims"] == {"user": 4, "item": 4}
    assert found["mf", "mr", 0][1]["dims"] != found["mf", "mr", 1][1]["dims"]
    episodes = load_json(ranked / "mf-ciess-seed0" / "metrics.json")["episodes"]
    assert [set(each) for each in episodes] == [
        {"reward", "quality", "mean_dim_user", "mean_dim_item"}
    ] * 2


def test_every_method_runs_to_the_end(rank, tmp_path, capsys):
    methods = "frequency,pep,optembed,esapn,esapn-fitted,ciess-code-walk,ciess-ou,ciess-warm"
    pep = ("--ranking-pep-s-init", "-3", "--ranking-pep-s-lr", "0.3")
    assert rank(tmp_path, "--methods", methods, "--seeds", "1", *pep, model="lightgcn") == 0
    for name, cells in measures(tmp_path).items():
        asked = [0] if name[1] == "esapn" else [0.5, 0.75]
        cell = load_json(tmp_path / f"lightgcn-{name[1]}-seed0" / "metrics.json")
        assert [level["sparsity"] for level in cell["levels"]] == asked
        assert all(0 < level["metrics"]["recall@20"] <= 1 for level in cells)
        assert all(
            level["params"] <= (1 - sparsity) * (USERS + ITEMS) * WIDTH
            for level, sparsity in zip(cells, asked, strict=True)
        )
    assert "lightgcn, the sparsity that results" in capsys.readouterr().out


def test_each_seed_has_its_split_and_all_cells_share_it(ranked):
    first, second = (Split.load(ranked / f"split-seed{seed}.safetensors") for seed in (0, 1))
    assert (first.seed, second.seed) == (0, 1)
    assert not np.array_equal(first.train.items, second.train.items)
    assert len(first.train.users) == USERS * 4
    contents = {path.parent.name[-1]: set() for path in ranked.glob("*/options.json")}
    for path in ranked.glob("*/options.json"):
        contents[path.parent.name[-1]].add(load_json(path)["content of the split"])
    assert [len(each) for each in contents.values()] == [1, 1]


def test_trainings_are_the_models_unless_they_are_given(rank, tmp_path):
    methods = ("--methods", "es", "--seeds", "1", "--sparsity", "0.5")
    given = ("--decay", "0.5", "--lr-steps", "7")
    assert rank(tmp_path / "a", *methods, model="ncf,lightgcn") == 0
    assert rank(tmp_path / "b", *methods, *given, model="ncf") == 0
    options = [
        load_json(tmp_path / place / "options.json")
        for place in ("a/ncf-es-seed0", "a/lightgcn-es-seed0", "b/ncf-es-seed0")
    ]
    trainings = [
        [each[name] for name in ("--decay", "--lr-steps", "--lr-floor")] for each in options
    ]
    assert trainings == [[1e-2, 50, 1e-4], [1e-4, 200, 1e-3], [0.5, 7, 1e-4]]


def test_finished_cells_are_not_run_again(ranked, rank, monkeypatch, capsys):
    before = measures(ranked)

    def fail(*args, **options):
        raise AssertionError("a finished cell is run again")

    monkeypatch.setattr(FixedSizes, "fit", fail)
    assert rank(ranked, "--methods", "es,mr", "--seeds", "2") == 0
    assert measures(ranked) == before
    assert capsys.readouterr().out.count("finished before") == 4


def test_the_tables_have_what_earlier_commands_finished(rank, tmp_path, capsys):
    out = tmp_path / "a"
    assert rank(out, "--methods", "mr", "--max-rounds", "1", "--seeds", "1") == 0
    assert rank(out, "--methods", "ciess", "--seeds", "1", "--epochs", "2") == 0
    assert f"{out}/mf-mr-seed0 is not in the tables: its --max-rounds is 1, not 2" in (
        capsys.readouterr().out
    )
    (out / "mf-mr-seed0" / "metrics.json").unlink()
    (out / "notes").mkdir()
    (out / "notes" / "metrics.json").write_text("{}")
    assert rank(out, "--methods", "es", "--seeds", "1", "--sparsity", "0.75") == 0
    said = capsys.readouterr().out
    assert "in the tables too, of earlier commands: mf-ciess-seed0\n" in said
    record = load_json(out / "comparison.json")
    assert [cell["method"] for cell in record["cells"]] == ["es", "ciess"]
    assert [(s["sparsity"], s["method"], s["baseline"]) for s in record["summary"]] == [
        (0.5, "ciess", None), (0.75, "es", "es"), (0.75, "ciess", "es")
    ]  # fmt: skip
    assert record["summary"][2]["gain"] is not None


def test_cells_of_other_pairs_or_another_width_are_not_in_the_tables(tmp_path, capsys):
    """A file that has changed since under the same name; ESAPN's width has no option of its own."""
    path = tmp_path / "pairs.csv"

    def run(*words):
        names = ["--user-column", "who", "--item-column", "what", "--out", str(tmp_path / "out")]
        words = [*names, "--model", "mf", *quick(words), *words]
        assert main(["compare", "--data", str(path), *words]) == 0
        return capsys.readouterr().out

    lines = [f"{user},{item}" for user in range(USERS) for item in range(8)]
    path.write_text("\n".join(["who,what", *lines]) + "\n")
    run("--methods", "esapn", "--seeds", "1")
    path.write_text("\n".join(["who,what", *lines[:-8]]) + "\n")
    said = run("--methods", "es", "--seeds", "1,")
    assert "mf-esapn-seed0 is not in the tables: its content of the split is checksum" in said
    path.write_text("\n".join(["who,what", *lines]) + "\n")
    said = run("--methods", "mr", "--seeds", "2,", "--width", "32")
    assert f"mf-esapn-seed0 is not in the tables: its --width is {WIDTH}, not 32" in said
    said = run("--methods", "mr", "--seeds", "0,")
    assert "in the tables too, of earlier commands: mf-esapn-seed0\n" in said


def test_a_broken_cell_is_reported_and_repaired(ranked, rank, tmp_path, monkeypatch, capsys):
    methods = ("--methods", "es,ciess", "--seeds", "1")

    def broken(self, *args, **options):
        raise RuntimeError("out of paper")

    with monkeypatch.context() as patch:
        patch.setattr(FixedSizes, "fit", broken)
        assert rank(tmp_path / "b", *methods) == 1
    assert "failed: RuntimeError: out of paper" in capsys.readouterr().out
    assert load_json(tmp_path / "b" / "comparison.json")["failed"] == [
        "mf-es-seed0: RuntimeError: out of paper"
    ]
    assert rank(tmp_path / "b", *methods) == 0
    whole = measures(ranked)
    assert measures(tmp_path / "b") == {
        key: whole[key] for key in (("mf", "es", 0), ("mf", "ciess", 0))
    }


def test_a_stopped_search_goes_on_to_the_same_result(ranked, rank, tmp_path, monkeypatch):
    from varemb.search.pairwise import Trainer

    advance, calls = Trainer.advance, []

    def stop(self, *args):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return advance(self, *args)

    methods = ("--methods", "ciess", "--seeds", "1")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", stop)
        assert rank(tmp_path / "c", *methods) == 130
    assert rank(tmp_path / "c", *methods) == 0
    assert measures(tmp_path / "c") == {("mf", "ciess", 0): measures(ranked)["mf", "ciess", 0]}


def test_a_split_of_other_pairs_is_refused(rank, tmp_path, pairs):
    out = tmp_path / "d"
    assert rank(out, "--methods", "es", "--seeds", "1") == 0
    other = tmp_path / "other.csv"
    other.write_text(pairs.read_text() + "0,1\n")
    bought = load_pairs(str(other), None, ("who", "what"))
    with pytest.raises(ValueError, match=r"split-seed0\.safetensors is a split of other pairs"):
        keep_split(bought, 0, out)


def test_a_folder_of_lists_is_read(tmp_path, pairs):
    items: dict[str, list[str]] = {}
    for line in pairs.read_text().splitlines()[1:]:
        user, item = line.split(",")
        items.setdefault(user, []).append(item)
    for name, part in (("train", slice(0, 5)), ("test", slice(5, None))):
        lines = [" ".join([user, *bought[part]]) for user, bought in items.items()]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    words = ["--model", "mf", "--methods", "es", "--seeds", "1", "--out", str(out)]
    assert main(["compare", "--data", str(tmp_path), *quick(words), *words]) == 0
    assert Split.load(out / "split-seed0.safetensors").num_items == ITEMS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "es,cies"], "no method that ranks 'cies', there are"),
        (["--methods", "fde"], "no method that ranks 'fde'"),
        (["--methods", "es", "--model", "mf,fm"], "models that rank (mf, ncf, ngcf, lightgcn) and"),
        (["--methods", "es", "--tune"], "--tune is not for models that rank, such as mf"),
        (["--methods", "es", "--lr", "0.1"], "--lr is not for models that rank, such as mf"),
        (["--methods", "es", "--pep-target", "0.1"], "--pep-target is not for models that rank"),
        (["--methods", "es", "--seeds", "3,3"], "distinct seeds"),
        (["--methods", "es,pep", "--sparsity-unit", "bytes"], "pep counts numbers alone"),
        (["--methods", "es,esapn", "--width", "32"],
         f"methods must have one width (--width; the largest of --ranking-esapn-sizes), got es 32, "
         f"esapn {WIDTH}"),
        (["--methods", "es", "--cost-sweep=-1"], "--cost-sweep needs distinct values >= 0"),
        (["--methods", "es", "--sparsity", "80"], "--sparsity must be in (0, 1), the shares left"),
        (["--methods", "es", "--sparsity", "0.5,0.5"], "--sparsity must be distinct"),
        (["--methods", "es", "--sparsity-unit", "bits"], "--sparsity-unit must be one of numbers"),
        (["--methods", "es,pep", "--width", "256"], "--width must be at most 255, got 256"),
        (["--methods", "es", "--ranking-lr", "-1"], "training: --ranking-lr must be finite"),
        (["--methods", "es,ciess", "--ciess-walk", "far"], "CIESS: --ciess-walk must be paper"),
        (["--methods", "es,ciess", "--ciess-actor-lr", "inf"], "--ciess-actor-lr must be finite"),
        (["--methods", "es,mr", "--ciess-cost", "0.5"], "--ciess-cost is not for es, mr; leave it"),
        (["--methods", "esapn", "--width", "32"], "--width is not for esapn; leave it out"),
        (["--methods", "ciess-ou", "--ciess-noise", "ou"], "--ciess-noise is not for ciess-ou"),
        (["--methods", "es,esapn", "--ranking-esapn-sizes", "8,2"], "--ranking-esapn-sizes must"),
        (["--methods", "pep", "--ranking-pep-max-epochs", "0"], "--ranking-pep-max-epochs must be"),
        (["--methods", "optembed", "--ranking-optembed-mutation", "2"], "-optembed-mutation must"),
        (["--methods", "es", "--data", "ml-2m"], "no data 'ml-2m' for models that rank"),
        (["--methods", "es", "--data", "ml-1m"], "--data ml-1m needs --data-dir"),
        (["--methods", "fde", "--model", "fm", "--data", "ml-2m", "--sparsity", "0.5"],
         "--width is not for models of clicks, such as fm"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_at_once(
    rank, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.setattr(ranking_pairs, "read_interactions", None)  # would fail, were it read
    assert rank(tmp_path / "e", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def make_result(method, seed, recalls, *, cut=False, cost=None, model="mf"):
    levels = [
        {
            "sparsity": sparsity, "sparsity_reached": sparsity + 0.001, "is_cut": cut,
            "params": 50, "bytes": {"weights": 200, "index": 24, "unify": 0, "optimizer": 9},
            "metrics": {"recall@5": recall / 2, "ndcg@5": 0.1, "recall@20": recall, "ndcg@20": 0.2},
        }
        for sparsity, recall in recalls.items()
    ]  # fmt: skip
    episodes = [{"reward": 0.1, "quality": 0.5, "mean_dim_user": 9.0, "mean_dim_item": 7.0}] * 2
    return {"model": model, "method": method, "seed": seed, "levels": levels, "seconds": 7.0,
            "cost": cost, "episodes": episodes if cost else []}  # fmt: skip


def test_tables_by_hand():
    results = [
        *(make_result("es", seed, {0.9: 0.10, 0.8: 0.20}) for seed in (0, 1)),
        *(make_result("mr", seed, {0.9: 0.05, 0.8: 0.30}) for seed in (0, 1)),
        make_result("ciess", 0, {0.9: 0.11, 0.8: 0.20}, cut=True, cost=0.4),
        make_result("ciess", 1, {0.9: 0.13, 0.8: 0.25}, cost=0.4),
    ]
    summaries = summarize_levels(results)
    assert [(s["sparsity"], s["method"], s["baseline"]) for s in summaries] == [
        (0.8, "es", "mr"), (0.8, "mr", "mr"), (0.8, "ciess", "mr"),
        (0.9, "es", "es"), (0.9, "mr", "es"), (0.9, "ciess", "es"),
    ]  # fmt: skip
    low, high = ranking_tables("shop", summaries)
    assert low.title == "shop, mf, sparsity 0.8; gain and p against the best baseline, MR"
    # differences .01 and .03: mean .02, deviation .0141, t = 2; p = 1 - 2 atan(2) / pi
    assert high.rows[2] == [
        "CIESS *1", "2", "0.0600 ±0.0071", "0.1000 ±0.0000", "0.1200 ±0.0141", "0.2000 ±0.0000",
        "0.9010", "224 B", "7", "+0.0200", "0.295",
    ]  # fmt: skip
    assert high.rows[0][-2:] == ["best baseline", ""]
    costs = [make_result("ciess cost=0.1", 0, {0.9: 0.3}, cost=0.1)]
    assert cost_table(costs).rows == [["0.1", "mf", "0.9", "1", "0.3000", "0.2000"]]
    assert draw_ranking(summaries, results, costs, "Shop").startswith(b"\x89PNG")
