"""One model's process: `python -m text_svc.worker`, started by `text_svc.process`."""
