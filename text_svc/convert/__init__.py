"""Conversion of a model to OpenVINO: `python -m text_svc.convert`, a process that ends.

It needs torch and transformers, which the process that serves the result never imports.
"""
