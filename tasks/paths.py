"""Where the steps read and write, relative to the repository root.

`dvc.yaml` says the same, and a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path

PARAMS = Path("params.yaml")

# sources, in git
SCENARIOS = Path("data/scenarios")
PREFERENCES = Path("data/preferences")

# outputs, DVC's
BASE_MODEL = Path("data/base_model")
# train.jsonl validation.jsonl heldout.jsonl preferences_{train,heldout}.jsonl
VALIDATED = Path("data/validated")
DATA_REPORT = Path("data/reports/data")  # Great Expectations' Data Docs, summary.json
REWARD_MODEL = Path("data/reward_model")
# metrics.json calibration.json calibration.png
REWARD_MODEL_REPORT = Path("data/reports/reward_model")
TUNED = Path("data/tuned.yaml")
TUNE_REPORT = Path("data/reports/tune")  # summary.json report.html
POLICY = Path("data/policy")
POLICY_REPORT = Path("data/reports/policy")  # metrics.json steps.csv conversations.md
# metrics.json comparison.json conversations.jsonl report.html by_intent.json
# reward_distribution.csv
EVALUATION_REPORT = Path("data/reports/evaluation")
REGISTRATION = Path("data/registration.json")
PROMOTION = Path("data/promotion.json")

# not DVC's: DVC deletes `outs` before a run, a checkpoint must outlive that
STATE = Path(".stateset")
CHECKPOINTS = STATE / "checkpoints"
LOCKS = STATE / "locks"
STUDIES = STATE / "studies"  # a folder a study: which MLflow runs are its and its trials'
TUNE_EVENTS = STATE / "tune-events.jsonl"  # a line as a trial begins and as it ends
STEP_HISTORY = STATE / "steps.jsonl"  # a line for each step that really ran
