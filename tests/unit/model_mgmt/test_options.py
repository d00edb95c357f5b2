"""What older clients send as options of LoadModel."""

from __future__ import annotations

import pytest

from model_mgmt_svc.options import usual_options
from shared.errors import UnknownOptionError


def test_older_names_and_values_are_understood() -> None:
    sent = {"device": "cpu", "torch_dtype": "torch.float16", "trust_remote_code": "False"}
    assert usual_options(sent) == {"device": "cpu", "dtype": "float16"}
    assert usual_options({"torch_dtype": "auto"}) == {"dtype": "auto"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"trust_remote_code": "true"}, "never run"),
        ({"trust_remote_code": "1"}, "must be false"),
        ({"torch_dtype": "auto", "dtype": "auto"}, "are the same"),
    ],
)
def test_code_of_the_models_own_is_refused(options: dict[str, str], reason: str) -> None:
    with pytest.raises(UnknownOptionError, match=reason) as caught:
        usual_options(options)
    assert caught.value.field.startswith("options[")
