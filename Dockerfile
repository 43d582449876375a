# One image for web, worker, beat and migrate; docker-compose.yml says which is which.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /opt/venv
COPY requirements.txt .
RUN /opt/venv/bin/pip install --require-hashes -r requirements.txt

FROM python:3.11-slim
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 DJANGO_SETTINGS_MODULE=billing_site.settings
RUN groupadd --system --gid 10001 termkeeper \
    && useradd --system --uid 10001 --gid termkeeper --no-create-home --shell /usr/sbin/nologin termkeeper
WORKDIR /srv/termkeeper
COPY --from=build /opt/venv /opt/venv
COPY . .
# The settings insist on these three; nothing is connected to, and nothing of them stays in the image.
RUN SECRET_KEY=only-while-building-the-image DATABASE_URL=postgres://build@127.0.0.1/build \
    REDIS_URL=redis://127.0.0.1/0 python manage.py collectstatic --no-input --verbosity 0 \
    && python -m compileall -q .
USER 10001
EXPOSE 8000
# Asks by a name the service answers to, whatever ALLOWED_HOSTS says.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "\
import os, urllib.request as http; \
host = os.environ.get('ALLOWED_HOSTS', 'localhost').split(',')[0].strip(' .*') or 'localhost'; \
http.urlopen(http.Request('http://127.0.0.1:8000/healthz', headers={'Host': host}), timeout=4)"]
CMD ["gunicorn", "--bind", "0.0.0.0:8000", "--worker-class", "gthread", "--workers", "2", "--threads", "8", \
     "--worker-tmp-dir", "/dev/shm", "--access-logfile", "-", "--no-control-socket", "billing_site.wsgi:application"]
