"""Makes the console's pictures in docs/images anew: `python tests/monitoring/console/screenshots.py [OUT] [PAGE…]`.

Starts a yard with a past (`scene`), a real llama.cpp engine beside it where its package and model are there, and takes
every page at three widths: light on a phone and a screen, dark on a tablet. Needs Chromium, Playwright and Pillow.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
for folder in (ROOT, ROOT / "tests", ROOT / "tests" / "system", HERE):
    sys.path.insert(0, str(folder))

import httpx  # noqa: E402
from console_browser import Visit, sign_in  # noqa: E402
from past import yard_with_a_past  # noqa: E402
from PIL import Image  # noqa: E402
from stack import Stack  # noqa: E402

LOOKS = ((360, "light", 1500), (768, "dark", 1400), (1280, "light", 1500))
"""Width, colours, and the most of a page's height that is shown."""
BYTES_MAX = 120_000
MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PAGES = {
    "overview": "/console/",
    "rollout": "/console/rollout/assistant",
    "compare": "/console/compare?model=assistant",
    "requests": "/console/requests",
    "request": "/console/requests/req-00006",
    "drift": "/console/drift",
    "cost": "/console/cost",
    "engines": "/console/engines",
    "log": "/console/engines/local@v1/0/log",
    "audit": "/console/audit",
    "weights": "/console/rollout/assistant",
    "pause": "/console/rollout/assistant",
    "sign-in": "/console/sign-in",
}


DIALOGS = {"weights": "Change weights", "pause": "Pause"}
"""The button that opens what is shown."""


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    wanted = sys.argv[2:] or list(PAGES)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, yard_with_a_past(Path(folder), requests=1500, model=real()) as yard:
        traffic(yard)
        take(yard, out, wanted)


def real() -> Path | None:
    """The model of the real engine, where a test has fetched it."""
    return MODEL if MODEL.exists() else None


def traffic(yard: Stack) -> None:
    """A little of now: some questions, one of them to the real engine."""
    with httpx.Client(base_url=yard.url, trust_env=False, timeout=60) as client:
        for number in range(8):
            model = "local" if number % 4 == 0 and real() else "assistant"
            messages = [{"role": "user", "content": f"What is the capital of country {number}?"}]
            body = {"model": model, "messages": messages, "stream": True, "user": f"u{number}", "max_tokens": 24}
            client.post("/v1/chat/completions", json=body).raise_for_status()
    time.sleep(3)


def take(yard: Stack, out: Path, wanted: list[str]) -> None:
    from playwright.sync_api import sync_playwright

    cookie = sign_in(yard.admin_url, (yard.state / "admin.token").read_text().strip())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in wanted:
            for width, scheme, height in LOOKS:
                path = out / f"console-{name}-{width}.png"
                own = {} if name == "sign-in" else cookie
                with Visit(browser, yard.admin_url, PAGES[name], own, width=width, scheme=scheme, height=900) as one:
                    if name in DIALOGS:
                        one.page.get_by_role("button", name=DIALOGS[name]).first.click()
                        one.page.wait_for_selector("dialog[open]")
                    one.page.wait_for_timeout(400)
                    path.write_bytes(small(picture(one.page, width, height, whole=name not in DIALOGS)))
                print(f"{path} {path.stat().st_size / 1000:.0f} kB")
        browser.close()


def picture(page: Any, width: int, height: int, *, whole: bool) -> bytes:
    """The page from its top, as far as `height`; only the window where not `whole`."""
    if whole:
        full = min(height, page.evaluate("document.documentElement.scrollHeight"))
        page.set_viewport_size({"width": width, "height": full})
        page.wait_for_timeout(150)
    shot: bytes = page.screenshot()
    return shot


def small(data: bytes) -> bytes:
    """As a palette PNG under BYTES_MAX."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() < BYTES_MAX:
            return buffer.getvalue()
    raise SystemExit("a picture does not become small enough")


if __name__ == "__main__":
    main()
