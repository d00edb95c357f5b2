"""A process that imports torch without what it does not need; it has what it needs all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from textwrap import dedent

from tests.support.stack import ROOT

PROGRAM = """
    import json, sys
    from text_svc.worker.light_imports import import_torch

    def imported():
        names = ("sklearn", "sympy", "torch._dynamo.config")
        return [name for name in names if sys.modules.get(name)]

    import_torch()
    import torch
    from transformers import BertConfig, BertModel, masking_utils
    from transformers.models.bert.modeling_bert import create_bidirectional_mask

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = BertModel(config).eval()
    ids, mask = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 1, 0]])
    with torch.inference_mode():
        before = model(ids, mask).last_hidden_state
    light = imported()
    # A mask of a function of one's own is made by a class of the compiler.
    with masking_utils.TransformGetItemToIndex() as context:
        whole = type(context).__module__
    with torch.inference_mode():
        after = model(ids, mask).last_hidden_state
        compiled = torch.compile(lambda value: value + 1, backend="eager")(ids)
    print(json.dumps({
        "light": light,
        "then": imported(),
        "class": whole,
        "same": torch.equal(before, after),
        "compiled": compiled.tolist(),
    }))
"""


def test_what_is_not_needed_is_imported_when_it_is_used() -> None:
    done = subprocess.run(
        (sys.executable, "-c", dedent(PROGRAM)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "light": [],
        "then": ["sympy", "torch._dynamo.config"],
        "class": "torch._dynamo._trace_wrapped_higher_order_op",
        "same": True,
        "compiled": [[2, 3, 4]],
    }
