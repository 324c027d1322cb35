"""compare.py as it is called: files, words, exit codes; and its report in a real browser."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.results.report import plotly_script
from experiments.results.tables import in_markdown, write_rows
from tests.experiments.results.made import a_run, cut

ROOT = Path(__file__).parents[3]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    " --disable-component-update --allow-file-access-from-files --virtual-time-budget=20000"
)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"


def command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "100"}
    called = [sys.executable, str(ROOT / "compare.py"), *arguments]
    return subprocess.run(called, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two arms of three tasks in four seeds, with a probe, and a killed run."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(1, 5):
        probes = {"probes/dormant_fraction/tau=0.025/all": 0.1 * seed}
        a_run(folder, f"a_{seed}", [80.0, 50.0 + seed, 30.0], seed, probes=probes)
        both = [{"name": "layer_norm"}, {"name": "weight_decay", "rate": 0.5}]
        a_run(folder, f"b_{seed}", [80.0, 70.0, 70.0 - seed], seed, interventions=both, probes=probes)
    cut(a_run(folder, "a_5", [80.0, 1.0, 1.0], 5), 170)
    return folder


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    out = tmp_path_factory.mktemp("out")
    return command(str(runs), "--out", str(out)), out


def test_it_says_what_it_did_and_what_came_of_it(compared):
    done, _ = compared
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "8 runs in 2 arms, 1 left out"
    assert re.search(r"a_5: unfinished at step 170 of 300, last written", lines[1])
    table = next(line for line in lines if line.startswith("none "))
    assert table.split()[:3] == ["none", "4", "54.2"]  # (80 + 52.5 + 30) / 3
    assert any(line.startswith("layer_norm") and line.endswith("undecided (n = 4)") for line in lines)
    assert any("least p possible with 4 pairs: 0.12" in line for line in lines)
    assert "verdicts need 10 seeds that an arm and its baseline both have; the fewest here are 4" in lines
    assert all(len(line) <= 100 for line in lines if "[95 %]" in line or line.startswith(("none", "layer_norm")))


def test_it_leaves_tables_pictures_and_a_page(compared):
    _, out = compared
    files = {"comparison.csv", "comparison.md", "probes.csv", "curves.png", "tasks.png", "probes.png", "report.html"}
    assert {path.name for path in out.iterdir()} == files
    with (out / "comparison.csv").open() as file:
        rows = {(row["scope"], row["arm"]): row for row in csv.DictReader(file)}
    assert len(rows) == 8  # overall and three tasks of two arms
    assert rows["task 2", "layer_norm+weight_decay"]["mean"] == "67.5" and rows["task 2", "none"]["collapsed"] == "1"
    assert rows["overall", "layer_norm+weight_decay"]["p"] == "0.125"
    with (out / "probes.csv").open() as file:
        found = {(row["arm"], row["tag"]): row["mean"] for row in csv.DictReader(file)}
    assert found["none", "probes/dormant_fraction/tau=0.025/all"] == "0.25"
    text = (out / "comparison.md").read_text()
    assert "| layer_norm+weight_decay | 4 |" in text and "left out: " in text and "## How to read it" in text
    for name in ("curves.png", "tasks.png", "probes.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_holds_everything_itself(compared):
    page = (compared[1] / "report.html").read_text(encoding="utf-8")
    assert plotly_script() in page
    own = page.replace(plotly_script(), "")
    assert not re.search(r"https?://", own) and "src=" not in own and own.count("href=") == 1  # the empty icon
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', own, re.S)[1])
    assert data["worlds"][0]["tasks"]["none"]["mean"] == [80, 52.5, 30]
    assert data["worlds"][0]["boundaries"] == [100, 200]
    assert [name for name, _ in data["commands"]] == ["none", "layer_norm+weight_decay"]
    assert data["commands"][0][1][0][1] == "python train.py dqn --seed 1"
    assert ["interventions", "none", "layer_norm+weight_decay"] in data["differing"]
    assert ["weight-decay.rate", "-", "0.5"] in data["differing"]


PROBE = """
<script>
window.addEventListener("error", event => { document.body.dataset.failed = event.message; });
const waiting = setInterval(async () => {
  if (!document.body.dataset.drawn) return;
  clearInterval(waiting);
  const body = document.body.dataset, first = charts[0];
  body.charts = charts.length;
  body.lines = document.querySelectorAll(".scatterlayer .trace").length;
  body.legend = document.querySelectorAll(".legendtoggle").length;
  body.boundaries = first.querySelectorAll(".shapelayer path").length;
  body.wide = document.documentElement.scrollWidth <= window.innerWidth;
  Plotly.Fx.hover(first, [{ curveNumber: 2, pointNumber: 3 }, { curveNumber: 5, pointNumber: 3 }]);
  body.hover = first.querySelector(".hoverlayer").textContent;
  const arm = first.data[2].legendgroup;
  first.emit("plotly_legendclick", { data: first.data, curveNumber: 2 });
  await new Promise(done => setTimeout(done, 500));
  const asItShould = one => (one.visible === "legendonly") === (one.legendgroup === arm);
  body.hidden = charts.every(chart => chart.data.every(asItShould));
  document.querySelector("input[type=checkbox]").click();
  await new Promise(done => setTimeout(done, 500));
  body.seeds = first.data.length;
  const select = document.querySelector("select");
  select.value = "charts/episodic_return";
  body.tags = select.options.length;
  body.tested = "yes";
}, 50);
</script>
</body>"""


def opened(page: Path, folder: Path, width: int) -> dict[str, str]:
    """What the page says of itself after it was used in a browser window of `width` pixels, without a network."""
    used = folder / f"used_{width}.html"
    used.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    frame = folder / f"frame_{width}.html"  # a window cannot be as narrow as a telephone
    frame.write_text(
        f'<iframe id="f" src="{used.name}" style="width:{width}px;height:3000px;border:0"></iframe><script>'
        "setInterval(() => { const b = f.contentDocument && f.contentDocument.body; if (b && (b.dataset.tested || "
        "b.dataset.failed)) document.body.dataset.told = JSON.stringify(b.dataset); }, 50)</script>"
    )
    called = [BROWSER, *QUIET.split(), OFFLINE, f"--user-data-dir={folder / str(width)}"]
    called += [f"--window-size={width + 40},3000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(called, capture_output=True, text=True, timeout=120)
    told = re.search(r'data-told="(.*?)"', done.stdout)
    assert told, done.stderr[-2000:] + done.stdout[-2000:]
    return json.loads(told[1].replace("&quot;", '"').replace("&amp;", "&"))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_works_in_a_browser_without_a_network(width, compared, tmp_path):
    found = opened(compared[1] / "report.html", tmp_path, width)
    assert "failed" not in found
    assert found["charts"] == "4"  # returns, two beside them, and the tasks
    assert found["boundaries"] == "2" and found["legend"] == "4" and found["wide"] == "true"
    assert "none" in found["hover"] and "layer_norm" in found["hover"]
    assert found["hidden"] == "true"  # one click in one chart, in all of them
    assert found["seeds"] == "8"
    assert int(found["tags"]) >= 3


REFUSED = {
    "no runs": ([], "runs = ''"),
    "nowhere": (["nowhere"], "runs = 'nowhere'"),
    "an unknown flag": (["RUNS", "--bi", "loss"], "--bi: no such flag"),
    "an unknown field": (["RUNS", "--by", "los"], "did you mean 'loss'"),
    "a share of nothing": (["RUNS", "--collapsed-below", "0"], "collapsed_below = 0.0: must be in (0, 1)"),
    "words for a share": (["RUNS", "--collapsed-below", "half"], "--collapsed-below = 'half'"),
    "another choice": (["RUNS", "--unfinished", "keep"], "must be one of leave-out, cut"),
    "a place where nothing can be written": (["RUNS", "--out", "/proc/x"], "out = '/proc/x'"),
    "a file for a folder": (["RUNS", "--out", "RUNS/a_1/config.json"], "out = "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_in_a_sentence(case, runs):
    arguments, words = REFUSED[case]
    done = command(*(argument.replace("RUNS", str(runs)) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_it_helps():
    done = command("--help")
    assert done.returncode == 0 and "--collapsed-below FLOAT" in done.stdout and "compare.py RUNS..." in done.stdout


def test_it_never_imports_torch(runs, tmp_path):
    code = "import sys; from pathlib import Path; from experiments.results.settings import CompareConfig; "
    code += "from experiments.results.written import compared; "
    code += "compared(CompareConfig((sys.argv[1],), out=Path(sys.argv[2])), ''); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(runs), str(tmp_path)], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_rows_with_other_columns_stand_beside_each_other(tmp_path):
    write_rows(tmp_path / "a.csv", [{"arm": "none", "seed": 1}, {"arm": "redo", "seed": 1 / 3, "tau": 0.5}])
    assert (tmp_path / "a.csv").read_text() == "arm,seed,tau\nnone,1,\nredo,0.333333,0.5\n"


def test_a_grid_in_markdown():
    assert in_markdown([["a", "b"], ["1", "2 | 3"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 \\| 3 |"
