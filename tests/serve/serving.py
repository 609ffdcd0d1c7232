"""A real server with a small model, and images whose answers are known; for the tests of the server."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from types import SimpleNamespace

import numpy as np
from PIL import Image
from small_models import teach, tiny_model

from unimed.serve.app import create_app
from unimed.serve.pool import ModelPool
from unimed.serve.settings import Settings, token_digest

TOKENS = {"anna": "token-of-anna-0123456789", "ben": "token-of-ben-0123456789"}


def png(seed: int = 0, size=(40, 30)) -> bytes:
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def data_url(content: bytes, media: str = "image/png") -> str:
    import base64

    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def settings(folder, tokens: bool = True, **changes) -> Settings:
    known = {token_digest(token): owner for owner, token in TOKENS.items()} if tokens else {}
    return Settings(**{"state": folder / "state", "tokens": known, "max_new_tokens": 8, **changes})


def application(folder, model=None, doors=(), tokens: bool = True, **changes):
    model = model or tiny_model()
    return create_app(ModelPool({"tiny": lambda: model}), settings(folder, tokens, **changes), doors)


@contextlib.contextmanager
def served(app):
    """The application on a port of its own: a namespace with `url`, `core`, `stop`."""
    import uvicorn

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", core=app.state.core, server=server)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def speaking(model, text: str):
    """The model, which answers every question with exactly this text, and points where it says [SEG]."""
    usual = model._decode
    ids = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"] + [min(model.processor.stop_ids)]
    model._decode = lambda *a, **k: (teach(model, ids), usual(*a, **k))[1]
    if model.presence_head is not None:
        model.presence_head.bias.data.fill_(5.0)  # what it points at is there, whatever was drawn
    return model


def bearer(owner: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[owner]}"}
