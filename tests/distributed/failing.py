"""Run in several processes: a fit in which rank 1 comes to grief when epoch 3 is planned.

Arguments: folder, and `die`, `hang`, `restart` or `interrupt`.
"""

import os
import sys
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from scenarios import data, fit, record_of

import scvae

FOLDER, MODE = Path(sys.argv[1]), sys.argv[2]
RANK = int(os.environ["RANK"])
ATTEMPT = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def main():
    original, planned = scvae.training.train.epoch_plan, []

    def epoch_plan(*args, **options):
        planned.append(options["epoch"])
        if options["epoch"] == 2 and RANK == 1 and ATTEMPT == 0:
            if MODE == "hang":
                time.sleep(600)
            os._exit(7)
        return original(*args, **options)

    adata = data()
    with patch("scvae.training.train.epoch_plan", epoch_plan):
        model = fit(adata, checkpoint=FOLDER / "run")
    whole = data()
    expected = record_of(fit(whole), whole)  # in one go
    found = {"resumed": record_of(model, adata), "whole": expected, "planned": planned, "attempt": ATTEMPT}
    torch.save(found, FOLDER / f"{RANK}.pt")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
