"""The HTTP application of one simulated engine, to stand where vLLM's api_server would."""

from collections.abc import Callable

from aiohttp import web

from dualmap_sim.engine.admin_api import AdminApi
from dualmap_sim.engine.generation_api import GenerationApi
from dualmap_sim.engine.realtime import SimEngine
from dualmap_sim.engine.render_api import RenderApi
from dualmap_sim.engine.responses_api import ResponsesApi
from dualmap_sim.engine.service_api import ServiceApi
from dualmap_sim.engine.transport import api_errors

_MAX_BODY_BYTES = 64 * 2**20


def make_app(engine: SimEngine, crash: Callable[[], None]) -> web.Application:
    """All endpoints of one engine."""
    app = web.Application(middlewares=[api_errors], client_max_size=_MAX_BODY_BYTES)
    generation = GenerationApi(engine)
    app.add_routes(generation.routes())
    app.add_routes(ResponsesApi(engine, generation).routes())
    app.add_routes(RenderApi(engine, generation).routes())
    app.add_routes(ServiceApi(engine, generation).routes())
    app.add_routes(AdminApi(engine, crash).routes())
    return app
