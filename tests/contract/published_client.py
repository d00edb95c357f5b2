"""A client made from the published contract alone; it imports nothing of this project.

Run as a program: `published_client.py STUBS ADDRESS PICTURE`. It does the main job and prints what
it saw as JSON.
"""

import json
import pathlib
import sys

import grpc


def main(stubs: str, address: str, picture: str) -> None:
    """Load, embed, chat, generate, detect, stream faces, list, unload."""
    sys.path.insert(0, stubs)
    import contract_pb2 as pb
    import contract_pb2_grpc as rpc

    chat_model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    embedding_model = "sentence-transformers/all-MiniLM-L6-v2"
    seen = {}
    with grpc.insecure_channel(address) as channel:
        manage = rpc.ModelManagementServiceStub(channel)
        text = rpc.TransformersServiceStub(channel)
        vision = rpc.MediapipeServiceStub(channel)

        for model, pipeline in (
            (chat_model, "text-generation"),
            (embedding_model, "feature-extraction"),
        ):
            answer = manage.LoadModel(pb.LoadModelRequest(model_id=model, pipeline_type=pipeline))
            seen[f"load {pipeline}"] = [answer.success, answer.ram_allocated_mb]

        answer = text.GenerateEmbeddings(
            pb.GenerateEmbeddingsRequest(texts=["hello", "world"], model=embedding_model)
        )
        seen["embeddings"] = [len(e.values) for e in answer.embeddings]

        # As existing clients do: join the texts, stop at the first done, drop the stream.
        stream = text.ChatCompletion(
            pb.ChatRequest(
                model=chat_model,
                temperature=0.01,
                messages=[pb.ChatMessage(role="user", content="What is the capital of France?")],
            )
        )
        joined, messages = "", 0
        for message in stream:
            joined, messages = joined + message.content, messages + 1
            if message.done:
                seen["chat end"] = [message.content, message.finish_reason]
                break
        stream.cancel()
        seen["chat"], seen["chat messages"] = joined, messages

        stream = text.GenerateText(
            pb.TextRequest(
                model=chat_model, prompt="The sea is", max_length=8, temperature=0.7, top_p=0.9
            )
        )
        counts = [(m.tokens_generated, m.done, m.text) for m in stream]
        seen["generated tokens"] = counts[-1][0]
        seen["generate ends"] = [done for _, done, _ in counts].index(True) == len(counts) - 1
        seen["generate last text"] = counts[-1][2]

        data = pathlib.Path(picture).read_bytes()
        faces = vision.DetectFaces(pb.ImageRequest(image_data=data, format="png")).faces
        seen["faces"] = [[f.x, f.y, f.width, f.height, f.confidence] for f in faces]
        seen["keypoints"] = [len(f.keypoints) for f in faces]
        frames = [
            pb.VideoFrame(frame_data=data, format="png", timestamp_ms=40 * i, frame_number=i)
            for i in range(3)
        ]
        answers = list(vision.StreamFaceDetection(iter(frames)))
        seen["stream"] = [[a.frame_number, a.timestamp_ms, len(a.faces)] for a in answers]

        loaded = manage.GetLoadedModels(pb.EmptyRequest()).models
        seen["loaded"] = sorted(m.model_id for m in loaded)
        seen["unload"] = [
            manage.UnloadModel(pb.UnloadModelRequest(model_id=m)).success
            for m in (chat_model, embedding_model)
        ]
        seen["left"] = [m.model_id for m in manage.GetLoadedModels(pb.EmptyRequest()).models]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:4])
