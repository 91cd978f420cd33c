"""The routes of the server."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from conifer_cli.fit.streaming.wording import streamed_document
from conifer_cli.serve import fields
from conifer_cli.serve.answer import Ask, encode, prompt_tokens, render, start
from conifer_cli.serve.anthropic import message_events, message_reply, read_messages_request
from conifer_cli.serve.fields import BadRequest, Body, parse_body
from conifer_cli.serve.host import Host, ServedModel, available, model_card
from conifer_cli.serve.openai_chat import chat_events, chat_reply, read_chat
from conifer_cli.serve.openai_completions import (
    completion_events,
    completion_reply,
    read_completion,
)
from conifer_cli.serve.reports import prometheus
from conifer_cli.serve.responses import read_response, response_events, response_reply
from conifer_cli.serve.web import (
    LOCAL_NAMES,
    EventStream,
    Guards,
    Handler,
    answering_errors,
    client_of,
    error_response,
    headers_of,
    whole,
)
from conifer_cli.versions import installed_version


class Service:
    """The handlers of all paths."""

    def __init__(self, host: Host) -> None:
        self.host = host

    async def chat(self, request: Request) -> Response:
        body = parse_body(await request.body())
        ask = await asyncio.to_thread(read_chat, body, client_of(request))
        return await self._answer(request, body, ask, chat_reply, chat_events)

    async def completions(self, request: Request) -> Response:
        body = parse_body(await request.body())
        ask = read_completion(body, client_of(request))
        return await self._answer(request, body, ask, completion_reply, completion_events)

    async def messages(self, request: Request) -> Response:
        body = parse_body(await request.body())
        ask = await asyncio.to_thread(read_messages_request, body, client_of(request))
        return await self._answer(request, body, ask, message_reply, message_events)

    async def count_tokens(self, request: Request) -> Response:
        ask = read_messages_request(parse_body(await request.body()))
        served = await self.host.lease(ask.model)
        try:
            tokens = await asyncio.to_thread(prompt_tokens, served, ask)
        finally:
            self.host.release(served)
        return JSONResponse({"input_tokens": len(tokens)})

    async def responses(self, request: Request) -> Response:
        body = parse_body(await request.body())
        ask = await asyncio.to_thread(read_response, body, client_of(request))
        return await self._answer(request, body, ask, response_reply, response_events)

    async def _answer(
        self, request: Request, body: Body, ask: Ask, reply: Any, events: Any
    ) -> Response:
        streamed = fields.flag(body, "stream")
        usage = fields.flag(fields.mapping(body, "stream_options"), "include_usage")
        answer = await start(self.host, ask)
        if streamed:
            return EventStream(answer, events(answer, usage))
        found = await whole(request, answer, reply(answer))
        return JSONResponse(found, headers=headers_of(answer)) if found else Response()

    async def models(self, request: Request) -> Response:
        current = self.host.current
        cards = {current.name: model_card(current.name, current)} if current else {}
        if self.host.options.model is None:
            for name in sorted(set((await asyncio.to_thread(available)).values())):
                cards.setdefault(name, model_card(name, None))
        if (wanted := request.path_params.get("name")) is None:
            return JSONResponse({"object": "list", "data": list(cards.values())})
        if wanted not in cards:
            raise BadRequest(f"there is no model {wanted!r}", "model", 404, "model_not_found")
        return JSONResponse(cards[wanted])

    async def health(self, request: Request) -> Response:
        scheduler, current = self.host.scheduler, self.host.current
        body = {
            "status": "ok" if scheduler.alive else "error",
            "version": installed_version(),
            "model": current.name if current else None,
            "context": current.context if current else None,
            "running": scheduler.running,
            "queued": scheduler.queued,
            "parallel": scheduler.parallel,
            "loaded_s": current.loaded_s if current else None,
            "need_bytes": current.need_bytes if current else None,
            "prefix_bytes": current.prefixes.stored_bytes if current else None,
            "prefix_budget_bytes": current.prefixes.budget_bytes if current else None,
            "decoded_tokens_per_s": round(self.host.metrics.decode_per_s, 2),
            "prompt_tokens_per_s": round(self.host.metrics.prompt_per_s, 2),
            "experts_from_disk": _experts(current) if current else None,
        }
        return JSONResponse(body, 200 if scheduler.alive else 500)

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(prometheus(self.host.metrics, self.host))

    async def tokenize(self, request: Request) -> Response:
        body = parse_body(await request.body())
        content = fields.text(body, "content") or fields.text(body, "prompt") or ""
        markup = fields.flag(body, "parse_special")
        served = await self.host.lease(fields.text(body, "model"))
        try:
            tokenizer = served.model.tokenizer
            tokens = await asyncio.to_thread(lambda: tokenizer.encode(content, markup=markup))
        finally:
            self.host.release(served)
        return JSONResponse({"tokens": tokens, "count": len(tokens)})

    async def apply_template(self, request: Request) -> Response:
        body = parse_body(await request.body())
        ask = await asyncio.to_thread(read_chat, body)
        served = await self.host.lease(ask.model)
        try:
            prompt = await asyncio.to_thread(render, served, ask)
            count = len(await asyncio.to_thread(encode, served, ask))
        finally:
            self.host.release(served)
        return JSONResponse({"prompt": prompt, "count": count})

    async def embeddings(self, request: Request) -> Response:
        raise BadRequest("Conifer generates text; it computes no embeddings", status=501)


def build(host: Host) -> Starlette:
    """Return the application that serves a host's model."""
    service, options = Service(host), host.options
    routes: list[tuple[str, str, Handler]] = [
        ("POST", "/v1/chat/completions", service.chat),
        ("POST", "/v1/completions", service.completions),
        ("POST", "/v1/messages", service.messages),
        ("POST", "/v1/messages/count_tokens", service.count_tokens),
        ("POST", "/v1/responses", service.responses),
        ("POST", "/v1/embeddings", service.embeddings),
        ("GET", "/v1/models", service.models),
        ("GET", "/v1/models/{name:path}", service.models),
        ("GET", "/health", service.health),
        ("GET", "/metrics", service.metrics),
        ("POST", "/tokenize", service.tokenize),
        ("POST", "/apply-template", service.apply_template),
    ]
    local = options.host in LOCAL_NAMES
    hosts = (*LOCAL_NAMES, options.host) if local else ("*",)
    middleware = [Middleware(Guards, options.api_key, hosts, host.metrics)]
    if options.origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(options.origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
        middleware.insert(0, cors)
    return Starlette(
        routes=[Route(path, answering_errors(run), methods=[way]) for way, path, run in routes],
        middleware=middleware,
        exception_handlers={404: _no_route, 405: _no_route, BadRequest: _refused},
    )


def _experts(served: ServedModel) -> dict[str, Any] | None:
    """Return what a model's experts on the disk have cost; None if all are in memory."""
    stats, found = served.experts, served.report.streaming
    if stats is None or found is None:
        return None
    return {"experts": found.plan.experts.total, **streamed_document(stats)}


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    problem = "no such path" if status == 404 else "wrong method for"
    where = f"{request.method} {request.url.path}"
    return error_response(request.url.path, BadRequest(f"{problem}: {where}", status=status))


async def _refused(request: Request, error: Exception) -> Response:
    return error_response(request.url.path, error)
