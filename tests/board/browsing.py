"""A board with everything on it, and a browser's window that remembers what no page may do."""

from __future__ import annotations

import shutil
from pathlib import Path

from .synthetic import COST, Board

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "' onmouseover='document.title=1",
    "javascript:document.title='owned'",
    "</script></style></td></table><h1>owned",
    "{{ 7 * 7 }}{% raw %}",
    "</title><svg onload=alert(1)>",
    "mae[note=a\u202eb\u0000]",
    "\u2067\u202ereversed\u200f",
    "`${alert(1)}`\u2028*/-->]]>",
    "W<b>" + "\u202e<i>'\"" * 2000,  # ten thousand characters
)


class Watched:
    """A page that remembers what a self-contained one never does."""

    def __init__(self, browser, path: Path, width: int = 1200, **context):
        self.page = browser.new_page(viewport={"width": width, "height": 800}, **context)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def names(self, table: int = 1) -> list[str]:
        """Methods of the rows that are shown, in order."""
        rows = self.page.locator(f"#table-{table} table:not(.figures) tbody tr:visible th")
        return [text.split("\n")[0].split(" ")[0] for text in rows.all_inner_texts()]


CARDS = {
    name: {
        "key": name,
        "name": name.upper(),
        "paper": f"The paper of {name}",
        "year": 2022,
        "arxiv": "2111.06377",
        "scheme": scheme,
        "masking": masking,
        "target": target,
        "classes": {"masking": masking, "target": target, "architecture": "x", "objective": "y"},
        "parity": "verified",
        "recipe": "its table 8",
    }
    for name, scheme, masking, target in (
        ("mae", "reconstruction", "random", "pixels"),
        ("hpm", "both", "network-guided", "pixels + features"),
        ("beit", "reconstruction", "block", "tokens"),
        ("random", "none", "none", "none"),
    )
}


def fill(board: Board) -> None:
    curve = [{"progress": i / 9, "images": i * 10, "lr": 1e-3, "loss": 1 / (1 + i)} for i in range(10)]
    for place, (variant, accuracy, role, external) in enumerate(
        [
            ("supervised", 0.92, "ceiling", "labels"),
            ("hpm", 0.75, "method", "none"),
            ("mae", 0.65, "method", "none"),
            ("mae[mask_ratio=0.9]", 0.55, "method", "none"),
            ("beit", 0.45, "method", "tokenizer"),
            ("random", 0.35, "floor", "none"),
        ]
    ):
        given = {"role": role, "external": external}
        cost = {**COST, "images_per_second": 100.0 + 7 * (place * 5 % 6), "flops": 1e15 * (1 + place)}
        for seed in (0, 1):
            card = CARDS.get(variant.split("[")[0])
            trained = board.pretrain(variant, seed, curve=curve, cost=cost, card=card, **given)
            needs = {trained.id: "1" * 64}
            board.evaluate(variant, accuracy + seed / 100, seed, needs=needs, cost=cost, **given)
            if variant != "hpm":  # a hole
                board.evaluate(variant, accuracy - 0.1, seed, "knn", needs=needs, cost=cost, **given)
    board.evaluate("mae", 0.3, 0, method_version=0, needs={"a" * 16: "2" * 64})
    board.pretrain("simmim", 0, error="the loss became NaN at step 12")
    board.with_setting(budget={"unit": "epochs", "amount": 20.0}).evaluate("mae", 0.8)
