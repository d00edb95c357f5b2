"""Inspection of a model's files: `python -m text_svc.inspection`, a process that ends.

It reads what a stranger wrote, such as the headers of weights and the tokenizer, before anything
relies on it. The front never parses these files itself: they could keep it busy for seconds.
"""
