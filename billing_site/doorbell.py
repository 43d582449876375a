"""Stripe's deliveries go straight to their view: no session, no sign-in, no messages, no form token. What serves none
of these would be a quarter of the whole answer's cost.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve

PATH = "/webhook/stripe"


def doorbell(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """The first middleware. Whatever is not a delivery takes the way through the others."""

    def answer(request: HttpRequest) -> HttpResponse:
        if request.path_info.startswith(PATH):
            try:
                match = resolve(request.path_info)
            except Resolver404:
                return get_response(request)
            response: HttpResponse = match.func(request, *match.args, **match.kwargs)
            response.headers["Content-Length"] = str(len(response.content))  # else the server would close, or chunk
            return response
        return get_response(request)

    return answer
