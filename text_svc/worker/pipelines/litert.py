"""A .tflite of any kind: tensors in, tensors out."""

from __future__ import annotations

import threading
from typing import ClassVar

from ml import transformers_pb2 as pb
from shared.errors import InvalidModelError, UnknownOptionError
from text_svc.link.server import Handlers
from text_svc.processes.specs import WorkerReport, WorkerSpec
from text_svc.worker.engines.litert import STRING, LiteRtModel, Signature, elements
from text_svc.worker.infer.options import NoOptions
from text_svc.worker.infer.service import InferHandlers
from text_svc.worker.infer.tensors import arrays_of, described, fewest_bytes, tensors_of

# The signature of models that were exported from TensorFlow; it is taken if none is named.
SERVING_DEFAULT = "serving_default"


class TensorOptions(NoOptions):
    """Whether the answer describes the model, and the signature that is called."""

    describe: bool = False
    signature: str | None = None


class TensorModel:
    """A model behind `Infer`, see `text_svc.worker.infer.service.Infers`.

    Raises:
        InvalidModelError: LiteRT cannot load its file.
    """

    takes: ClassVar[tuple[str, ...]] = ("tensors",)
    options: ClassVar[type[TensorOptions]] = TensorOptions

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        assert spec.options.file is not None, "the front has a file for each of these models"
        path = spec.folder / spec.options.file
        self._model = LiteRtModel(path.resolve(), spec.threads, spec.max_running)
        for signature in self._model.signatures.values():
            size = sum(map(fewest_bytes, signature.inputs.values()))
            if size > spec.max_message_bytes:
                raise InvalidModelError(
                    f"the model's inputs have {size} bytes; a message may have "
                    f"{spec.max_message_bytes}"
                )

    def handlers(self) -> Handlers:
        """See `pipelines`."""
        return InferHandlers(self, self._spec, self._spec.max_running).table()

    def report(self) -> WorkerReport:
        """See `pipelines`."""
        return WorkerReport(weights_bytes=self._model.weights_bytes)

    def infer(
        self, request: pb.InferRequest, options: TensorOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        """The outputs of one call, or what the model takes and returns."""
        if options.describe:
            return pb.InferResponse(tensors=self._description())
        name = self._chosen(options.signature)
        signature = self._model.signatures[name]
        outputs = self._model.run(name, arrays_of(request.tensors.tensors, signature))
        tensors = tensors_of(outputs, signature, self._spec.max_message_bytes)
        return pb.InferResponse(tensors=pb.Tensors(tensors=tensors))

    def zeros(self) -> pb.Tensors | None:
        """Inputs of zeros, for a trial; None if their shapes vary, since no one shape is sure to
        be right, or if no signature is the usual one."""
        try:
            signature = self._model.signatures[self._chosen(None)]
        except UnknownOptionError:
            return None
        if any(-1 in spec.shape for spec in signature.inputs.values()):
            return None
        return pb.Tensors(
            tensors=[
                pb.Tensor(
                    name=spec.name,
                    strings=[b""] * elements(spec.shape) if spec.dtype == STRING else [],
                    data=b"" if spec.dtype == STRING else bytes(fewest_bytes(spec)),
                )
                for spec in signature.inputs.values()
            ]
        )

    def _description(self) -> pb.Tensors:
        return pb.Tensors(
            signatures=[_described(name, one) for name, one in self._model.signatures.items()]
        )

    def _chosen(self, name: str | None) -> str:
        signatures = self._model.signatures
        if name is None:
            if len(signatures) == 1:
                return next(iter(signatures))
            name = SERVING_DEFAULT
        if name not in signatures or not signatures:
            raise UnknownOptionError(
                f"option signature must be one of {', '.join(signatures) or 'none'}",
                field="options[signature]",
            )
        return name


def _described(name: str, signature: Signature) -> pb.TensorSignature:
    return pb.TensorSignature(
        name=name,
        inputs=map(described, signature.inputs.values()),
        outputs=map(described, signature.outputs.values()),
    )
