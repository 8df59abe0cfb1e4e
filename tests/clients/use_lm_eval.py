"""Run by the clients' Python: lm-evaluation-harness measures the bits per byte of a text. Prints JSON."""

import json
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

url, folder = sys.argv[1], Path(sys.argv[2])
task = {
    "task": "held_out",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(folder / "held_out.jsonl")}},
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}
(folder / "held_out.yaml").write_text(json.dumps(task))  # JSON is YAML
result = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={"base_url": f"{url}/completions", "model": "longhand", "max_length": 100_000, "max_retries": 1},
    tasks=["held_out"],
    task_manager=TaskManager(include_path=str(folder)),
    bootstrap_iters=0,
)
print(json.dumps(result["results"]["held_out"], default=str))
