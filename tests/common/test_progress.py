"""One line of progress, wherever it is shown."""

import io
import subprocess
import sys
import types
import warnings

import pytest

import scvae
from scvae import TrainingConfig
from scvae.common import progress as _progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(bar, n):
    for i in range(n):
        bar.set_postfix_str(f"ELBO {i}", refresh=False)
        bar.update()
    bar.close()


def shown(monkeypatch, stream, n=8, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    run(_progress.progress_bar(n, unit="epochs", verbose=True, **options), n)
    return stream.getvalue()


@pytest.fixture
def adata():
    return scvae.datasets.simulate(n_cells=40, n_genes=20, rng=0, truth=False)


def test_a_log_file_gets_one_line_at_the_end_and_nothing_that_goes_back(monkeypatch):
    text = shown(monkeypatch, io.StringIO())
    assert text.count("\n") == 1
    assert "\r" not in text
    assert text.startswith("scvae: 8/8 epochs in ")
    assert text.endswith("ELBO 7\n")


def test_a_long_run_tells_a_log_file_of_each_quarter(monkeypatch):
    monkeypatch.setattr(_progress, "QUIET", 0.0)
    lines = shown(monkeypatch, io.StringIO(), n=1000).splitlines()
    assert [line.split()[1] for line in lines] == ["250/1000", "500/1000", "750/1000", "1000/1000"]


def test_a_resumed_run_counts_from_where_it_stands(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = _progress.progress_bar(8, unit="epochs", initial=6, verbose=True)
    run(bar, 2)
    assert sys.stderr.getvalue().startswith("scvae: 8/8 ")


def test_a_terminal_sees_one_line_that_is_written_over(monkeypatch):
    text = shown(monkeypatch, Terminal())
    assert text.count("\n") == 1
    assert text.endswith("\n")
    last = text.rstrip("\n").split("\r")[-1]
    assert last.startswith("scvae: 100%")
    assert "ELBO 7" in last


def test_a_part_of_a_longer_work_leaves_no_line(monkeypatch):
    with _progress.passing():
        assert shown(monkeypatch, io.StringIO()) == ""
        assert "\n" not in shown(monkeypatch, Terminal())
    assert shown(monkeypatch, io.StringIO()) != ""


def test_nothing_is_said_where_nothing_is_asked_for_or_there_is_nowhere_to_say_it(monkeypatch, capsys):
    run(_progress.progress_bar(3, unit="epochs", verbose=False), 3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", None)
    run(_progress.progress_bar(3, unit="epochs", verbose=True), 3)


def test_a_notebook_without_widgets_gets_a_line_of_text_and_no_warning(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tqdm.") and name.split(".")[1].startswith("auto")]:
        monkeypatch.delitem(sys.modules, name)
    shell = types.SimpleNamespace(get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", types.ModuleType("ipykernel.zmqshell"))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "tqdm.notebook", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = shown(monkeypatch, io.StringIO())
    assert caught == []
    assert text.split("\r")[-1].startswith("scvae: 100%")
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda adata: scvae.fit(adata, rng=0, training=TrainingConfig(epochs=3)),
        lambda adata: scvae.fit(adata, rng=0, n_latent="auto", training=TrainingConfig(epochs=3)),
        lambda adata: scvae.tune_beta(
            adata, betas=[0.5, 1, 2], method="sweep", rng=0, training=TrainingConfig(epochs=2)
        ),
    ],
    ids=["fit", "fit auto", "sweep"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_training_however_many_fits_it_makes_leaves_one_line(work, adata, capsys):
    work(adata)
    assert capsys.readouterr().err.count("\n") == 1


def test_importing_the_package_loads_no_progress_bar():
    code = "import sys, scvae; print('tqdm.auto' in sys.modules or 'tqdm.notebook' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
