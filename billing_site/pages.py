"""The few pages that are neither admin nor API yet."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def home(request: HttpRequest) -> HttpResponse:
    return render(request, "home.html", {"member": getattr(request.user, "member", None)})
