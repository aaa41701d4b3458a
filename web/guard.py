"""Restriction of Gradio to allowed routes and hosts, without outgoing requests or decoding in the server.

Gradio can fetch addresses that a request names, store runs in remote buckets, and write an app from a prompt. Only the
routes that the page uses pass, and a policy forbids the browser to load anything from elsewhere.
"""

import base64
import os
import re

ROUTES = re.compile(r'''/(
    |config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|login/?|logout/?
    |(assets|static|svelte)/.*
    |gradio_api/(
        info/?|user/?|app_id/?|login_check/?|startup-events|theme\.css|upload(_progress)?|reset/?|cancel
        |run/\w+|queue/(join|data)|heartbeat/\w+|stream/\w+(/close)?
        |file=(?![a-zA-Z][a-zA-Z0-9+.-]*:).*
    )
)''', re.VERBOSE)
POLICY = ("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'; "
          "base-uri 'self'; object-src 'none'")
LOCAL_HOSTS = ('127.0.0.1', 'localhost', '[::1]')
ENVIRONMENT = {'GRADIO_ANALYTICS_ENABLED': 'False', 'GRADIO_SHARE': 'False', 'HF_HUB_OFFLINE': '1',
               'HF_HUB_DISABLE_TELEMETRY': '1', 'GRADIO_SSR_MODE': 'False'}


class Guard:
    """ASGI middleware around Gradio's app.

    hosts: allowed Host headers, against DNS rebinding; None allows any
    """

    def __init__(self, app, hosts):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http':
            if scope['type'] == 'lifespan':
                await self.app(scope, receive, send)
            return
        host = dict(scope['headers']).get(b'host', b'').decode('latin-1')
        if not ROUTES.fullmatch(scope['path']) or self.hosts and re.sub(r':\d+$', '', host) not in self.hosts:
            await send({'type': 'http.response.start', 'status': 404, 'headers': [(b'content-type', b'text/plain')]})
            await send({'type': 'http.response.body', 'body': b'not found'})
            return

        async def with_policy(message):
            if message['type'] == 'http.response.start':
                message['headers'] = [*message.get('headers', []), (b'content-security-policy', POLICY.encode()),
                                      (b'x-content-type-options', b'nosniff'), (b'referrer-policy', b'same-origin')]
            await send(message)
        await self.app(scope, receive, with_policy)


def undecoded(component, payload):
    """What Gradio passes for a picture or video, without decoding it: its path, a camera frame's bytes, or None."""
    if payload is None:
        return None
    return payload.path or base64.b64decode(payload.url.partition(',')[2])


def cut_off():
    """Import Gradio without analytics, outgoing requests and decoders; each upload gets a folder of its own."""
    os.environ.update(ENVIRONMENT)
    from gradio import Image, Video, processing_utils
    from gradio.route_utils import GradioUploadFile
    # Gradio names the folder of an upload by its content: two visitors would share, and delete, the same file.
    begin = GradioUploadFile.__init__

    def begin_uniquely(upload, *given, **named):
        begin(upload, *given, **named)
        upload.sha.update(os.urandom(16))
    GradioUploadFile.__init__ = begin_uniquely
    # In the classes, because Gradio creates new components after events.
    Image.preprocess = Video.preprocess = undecoded

    def refuse(url, *_, **__):
        raise ValueError('this page fetches nothing')

    async def refuse_later(url, *_, **__):
        refuse(url)
    fetch = re.compile(r'(async_)?(ssrf_protected|unsafe)_(get|download)')
    for name in filter(fetch.fullmatch, list(vars(processing_utils))):
        setattr(processing_utils, name, refuse_later if name.startswith('async') else refuse)
