"""llm-comply: `python comply.py BASE_URL MODEL FORMAT`; prints its results as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llm_comply
from llm_comply.config import ComplianceConfig
from llm_comply.runner import TestRunner
from llm_comply.schema import SpecLoader
from llm_comply.tests.anthropic import ANTHROPIC_TESTS
from llm_comply.tests.open_responses import OPEN_RESPONSES_TESTS
from llm_comply.tests.openai_chat import OPENAI_CHAT_TESTS

SPECS = Path(llm_comply.__file__).parent / "specs"
FORMATS = {
    "openai-chat": (OPENAI_CHAT_TESTS, "openai_chat.json"),
    "anthropic": (ANTHROPIC_TESTS, "anthropic.json"),
    "open-responses": (OPEN_RESPONSES_TESTS, "openresponses.json"),
}

base, model = sys.argv[1:]
found = {}
for tests, spec in FORMATS.values():
    config = ComplianceConfig(base, "none", model, timeout=300)
    suite = TestRunner(config, tests, SpecLoader(str(SPECS / spec))).run_all()
    found |= {result.id: result.to_dict() for result in suite.results}
print(json.dumps(found))
