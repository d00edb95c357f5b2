"""One model's process: `python -m text_svc.worker`, started by `processes.model_process`."""
