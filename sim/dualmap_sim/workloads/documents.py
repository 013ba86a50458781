"""Long documents, each asked about several times."""

from dataclasses import dataclass

from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.shape import Shape
from dualmap_sim.workloads.text import Span
from dualmap_sim.workloads.traffic import Sessions, Traffic, draw_tokens


@dataclass(frozen=True, slots=True)
class DocumentsShape(Shape):
    """Sizes in tokens; `pause_s` is the least mean time between two questions about one document."""

    system_tokens: int = 256
    document_tokens: int = 16_384
    max_document_tokens: int = 120_000
    question_tokens: int = 60
    answer_tokens: int = 200
    questions_mean: float = 4.0
    pause_s: float = 15.0


@dataclass(slots=True)
class _Reading:
    name: str
    document: Span
    question: int = 0


def documents(traffic: Traffic, shape: DocumentsShape) -> list[TimedRequest]:
    """Make the questions in order of arrival."""
    rng = traffic.rng("documents")
    system = Message("system", (Span(f"documents.{traffic.seed}.system", shape.system_tokens),))
    waiting: Sessions[_Reading] = Sessions()
    requests: list[TimedRequest] = []
    started = 0
    for at_s in traffic.arrivals(rng):
        reading = waiting.take(at_s)
        if reading is None:
            name = f"documents.{traffic.seed}.{started}"
            started += 1
            tokens = draw_tokens(rng, shape.document_tokens, 0.8, 256, shape.max_document_tokens)
            reading = _Reading(name, Span(f"{name}.text", tokens))
        asked = Span(
            f"{reading.name}.question.{reading.question}",
            draw_tokens(rng, shape.question_tokens, 0.5, 4, 2048),
        )
        requests.append(
            TimedRequest(
                at_s=at_s,
                request_id=f"documents-{len(requests)}",
                output_tokens=draw_tokens(rng, shape.answer_tokens, 0.6, 1, 4096),
                messages=(system, Message("user", (reading.document, asked))),
                session=reading.name,
            )
        )
        reading.question += 1
        if rng.random() < 1 - 1 / shape.questions_mean:
            waiting.park(reading, at_s + rng.expovariate(1) * shape.pause_s)
    return requests
