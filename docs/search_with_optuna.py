"""Search for weights of rewards with Optuna: a script to start from. It searches the demo's.

Typed again, it goes on: finished trials are kept in runs/search/, and a run that was killed is made again.
"""

import json
import subprocess
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

FOLDER = Path("runs/search")
METRIC = "eval/heldout/sampled/keyframe"
NUM_TRIALS = 12


def held_out_score(trial: optuna.Trial) -> float:
    """The last value of the metric in a run whose weights the trial proposes."""
    weights = {
        name: trial.suggest_float(f"rewards.{name}.weight", 0.0, 2.0) for name in ("format", "keyframe")
    }
    run_dir = FOLDER / f"trial_{trial.number:03d}"
    launch = ["accelerate", "launch", "--config_file", "launch/accelerate/single.yaml", "grpo/train.py"]
    changes = [f"rewards.{name}.weight={value}" for name, value in weights.items()]
    subprocess.run([*launch, "configs/demo.yaml", f"run_dir={run_dir}", *changes], check=True)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row[METRIC] for row in rows if METRIC in row][-1]


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(FOLDER / "trials.journal")))
    study = optuna.create_study(storage=storage, study_name="demo", direction="maximize", load_if_exists=True)
    # With one seed for all, a search that goes on would propose its first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
    done = [trial for trial in study.trials if trial.state.is_finished()]
    study.optimize(held_out_score, n_trials=max(0, NUM_TRIALS - len(done)))
    print(f"best: trial {study.best_trial.number} with {study.best_value:.3f}, {study.best_params}")


if __name__ == "__main__":
    main()
